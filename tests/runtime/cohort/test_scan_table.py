"""The list of scans: everything that is wrong with it is told before anything starts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.cohort.columns import RESERVED
from runtime.cohort.scan_table import read_scan_table
from runtime.errors import InputError
from runtime.output import result_folders
from runtime.scan_list import list_scans


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "scans"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.nii.gz", "b.mha", "deep/a.nii.gz"):
        (folder / name).write_bytes(b"scan")
    return folder


def read(folder, text, *, root=None, encoding="utf-8", at=None):
    path = (at or folder) / "scans.csv"
    path.write_bytes(text.encode(encoding))
    return read_scan_table(path, output=folder.parent / "out", root=root, reserved=RESERVED)


def refused(folder, text, **options):
    with pytest.raises(InputError) as caught:
        read(folder, text, **options)
    assert not (folder.parent / "out").exists()
    return str(caught.value)


def test_the_list_is_read_with_its_other_columns(folder):
    listed = read(folder, "age,scan,id,note\n61,a.nii.gz,p1,\n\n70,deep/a.nii.gz,p2,'x\n")
    assert listed.columns == ("age", "note")
    assert [(one.id, one.scan, one.others) for one in listed.scans] == [
        ("p1", "a.nii.gz", ("61", "")),
        ("p2", "deep/a.nii.gz", ("70", "'x")),
    ]


def test_results_go_where_the_command_for_a_folder_puts_them(folder):
    names = ["a.nii.gz", "b.mha", "deep/a.nii.gz"]
    listed = read(folder, "\n".join(["scan", *names]))
    scans, _ = list_scans([folder])
    expected = result_folders([one.path for one in scans], folder.parent / "out", under=[one.under for one in scans])
    assert {one.path: one.folder for one in listed.scans} == dict(
        zip((one.path for one in scans), expected, strict=True)
    )
    assert [one.id for one in listed.scans] == names


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("between", [",", ";"])
def test_what_spreadsheets_write_is_read(folder, encoding, ending, between):
    text = ending.join(between.join(row) for row in (("id", "scan"), ("p,1" if between == ";" else "p1", "b.mha")))
    (scan,) = read(folder, text, encoding=encoding).scans
    assert (scan.id, scan.path) == ("p,1" if between == ";" else "p1", folder / "b.mha")


def test_everything_wrong_is_told_at_once(folder):
    said = refused(folder, "id,scan\np1,a.nii.gz\np1,b.mha\np3,deep/../a.nii.gz\n,none.nii\np5,gone\n")
    assert said.splitlines()[0].endswith("scans.csv can't be used, for 5 reasons:")
    assert [line.strip() for line in said.splitlines()[1:]] == [
        "line 3: the id p1 is that of line 2 too",
        "line 4: the scan deep/../a.nii.gz is that of line 2 too",
        "line 5: the id is empty",
        "line 5: none.nii: there is no such file or folder",
        "line 6: gone: there is no such file or folder",
    ]


def test_of_very_many_problems_the_first_are_told_and_the_rest_counted(folder):
    said = refused(folder, "scan\n" + "".join(f"gone{i}.nii\n" for i in range(50)))
    assert len(said.splitlines()) == 22
    assert said.splitlines()[-1].strip() == "and 30 more"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "has no column 'scan'; its first line should name the columns, and names nothing."),
        ("path,id\na.nii.gz,1\n", "has no column 'scan'; its first line should name the columns, and names path, id."),
        ("scan\n", "lists no scan"),
        ("scan,\na.nii.gz,1\n", "column 2 has no name"),
        ("scan,age,age\na.nii.gz,1,2\n", "there are 2 columns 'age'"),
        ("scan,grade\na.nii.gz,1\n", "the tables of results have a column 'grade' themselves; rename it"),
        ("scan,age\na.nii.gz,1,2\n", "line 2 has 3 fields, the header 2"),
        ("scan,age\n,1\n", "line 2 names no scan"),
        ('scan,age\na.nii.gz,"1\n', "is no CSV: line 2"),
    ],
)
def test_a_list_that_is_none_is_refused(folder, text, expected):
    assert expected in refused(folder, text)


def test_a_list_in_another_encoding_is_refused(folder):
    assert "is not UTF-8 text" in refused(folder, "scan,name\na.nii.gz,Müller\n", encoding="latin-1")


def test_scans_outside_the_root_are_refused_with_a_root_that_would_do(folder):
    elsewhere = folder.parent / "lists"
    elsewhere.mkdir()
    text = f"scan\n{folder / 'a.nii.gz'}\n{folder / 'deep' / 'a.nii.gz'}\n"
    said = refused(folder, text, at=elsewhere)
    assert f"name a folder that all scans lie in with --root, such as {folder}" in said
    listed = read(folder, text, at=elsewhere, root=folder)
    assert [one.folder for one in listed.scans] == [
        folder.parent / "out" / "a.vertebrae", folder.parent / "out" / "deep" / "a.vertebrae"
    ]  # fmt: skip


def test_scans_that_would_share_a_folder_are_refused(folder):
    (folder / "a.mha").write_bytes(b"scan")
    assert "would both be written to" in refused(folder, "scan\na.nii.gz\na.mha\n")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_results_that_cannot_be_written_are_refused(folder):
    folder.parent.chmod(0o555)
    try:
        assert "Nothing can be written" in refused(folder, "scan\na.nii.gz\n")
    finally:
        folder.parent.chmod(0o755)


def test_a_folder_with_other_things_in_it_is_not_written_to(folder):
    results = Path(folder.parent, "out", "a.vertebrae")
    results.mkdir(parents=True)
    (results / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"line 2: .* holds other files \(thesis\.txt\)"):
        read(folder, "scan\na.nii.gz\n")
