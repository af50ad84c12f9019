"""What a power cut can leave of a result folder: the disk may hold any of the names since the last flush."""

from __future__ import annotations

import errno
import os
import stat
from collections import defaultdict
from pathlib import Path

import pytest

from runtime.disk import flush_folder
from runtime.errors import InputError
from runtime.output import replaced_whole

pytestmark = pytest.mark.skipif(os.name != "posix", reason="folders can't be flushed elsewhere")
FINDINGS = "findings.json"
NAMES = (FINDINGS, "overview.png", "seg.dcm", "vertebrae.nii.gz")


class Disk:
    """Follows what is flushed and renamed, and looks after each step at all that a power cut could leave."""

    def __init__(self, monkeypatch, folder):
        self.folder, self.content, self.names = folder, {}, {}
        self.possible = defaultdict(lambda: {None})
        self.steps = []
        self._fsync, self._rename = os.fsync, Path.rename
        monkeypatch.setattr(os, "fsync", self.fsync)
        monkeypatch.setattr(Path, "rename", lambda source, target: self.rename(source, target))

    def fsync(self, descriptor):
        self._fsync(descriptor)
        found = os.fstat(descriptor)
        if stat.S_ISREG(found.st_mode):
            self.content[found.st_ino] = os.pread(descriptor, 100, 0)
        else:
            self.names[found.st_ino] = set(os.listdir(descriptor))
            if self.folder.exists() and self.folder.stat().st_ino == found.st_ino:
                self.possible.clear()
                for entry in self.folder.iterdir():
                    self.possible[entry.name] = {entry.stat().st_ino}
        self.look()

    def rename(self, source, target):
        inode = source.stat().st_ino
        if target == self.folder:
            assert self.names[inode] == {entry.name for entry in source.iterdir()}
            for entry in source.iterdir():
                self.possible[entry.name] = {entry.stat().st_ino}
        moved = self._rename(source, target)
        if source.parent == self.folder:
            self.possible[source.name].add(None)
        if target.parent == self.folder:
            self.possible[target.name].add(inode)
        self.steps.append(target.name)
        self.look()
        return moved

    def look(self):
        """Findings that may be there have beside them all that belongs to them, whole."""
        for findings in self.possible[FINDINGS] - {None}:
            assert findings in self.content, "the findings have their name before they are on the disk"
            for name in NAMES[1:]:
                found = {self.content.get(inode, b"") for inode in self.possible[name]}
                assert found == {self.content[findings]}, f"{name} after {self.steps}"


def write(folder, run):
    with replaced_whole(folder) as fresh:
        for name in NAMES:
            (fresh / name).write_text(run)


def test_a_new_result_folder_is_whole_or_not_there(tmp_path, monkeypatch):
    folder = tmp_path / "a.vertebrae"
    disk = Disk(monkeypatch, folder)
    write(folder, "first")
    assert disk.steps == ["a.vertebrae"]
    assert "a.vertebrae" in disk.names[tmp_path.stat().st_ino]


def test_findings_never_lie_beside_files_of_another_run_or_that_are_not_whole(tmp_path, monkeypatch):
    folder = tmp_path / "a.vertebrae"
    disk = Disk(monkeypatch, folder)
    write(folder, "first")
    write(folder, "second")
    assert disk.steps == ["a.vertebrae", *NAMES, *NAMES[1:], FINDINGS]
    assert disk.names[folder.stat().st_ino] >= set(NAMES)
    assert {(folder / name).read_text() for name in NAMES} == {"second"}


def test_a_disk_that_is_full_when_it_is_flushed_leaves_the_old_results(tmp_path, monkeypatch):
    folder = tmp_path / "a.vertebrae"
    write(folder, "first")

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left on device"):
        write(folder, "second")
    assert {entry.name: entry.read_text() for entry in folder.iterdir()} == dict.fromkeys(NAMES, "first")


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_a_file_system_that_cannot_flush_folders_is_put_up_with_and_a_bad_disk_is_not(tmp_path, monkeypatch, number):
    def refuse(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    if number == errno.EINVAL:
        flush_folder(tmp_path)
    else:
        with pytest.raises(OSError, match="Input/output error"):
            flush_folder(tmp_path)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.ENOENT])
def test_a_folder_that_may_be_written_and_not_listed_is_put_up_with_and_one_that_is_gone_is_not(
    tmp_path, monkeypatch, number
):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    if number == errno.ENOENT:
        with pytest.raises(OSError, match="No such file"):
            flush_folder(tmp_path)
    else:
        flush_folder(tmp_path)
