"""Engine files: whole and what they say they are, or refused; written whole or not at all; one builder at a time."""

import dataclasses
import errno
import hashlib
import json
import logging
import os
import subprocess
import sys
import time

import pytest

from runtime.engines import trt_cache
from runtime.engines.file_lock import file_lock
from runtime.engines.trt_cache import (
    FORMAT,
    EngineKey,
    Sidecar,
    check_engine,
    find_engine,
    install_engine,
    list_engines,
    lock_folder,
    prune,
)
from runtime.errors import EngineError

KEY = EngineKey(
    network="locnet.onnx", onnx_sha256="a" * 64, precision="fp16", conversion="1", max_batch=8, workspace_mb=2048,
    library="tensorrt-rtx", library_version="1.7.1", targets=("86", "120"), gpu="", driver="",
    hardware_compatibility="none", version_compatible=False,
)  # fmt: skip
CONTENT = b"engine" * 1000


def sidecar(content=CONTENT, key=KEY, **changes):
    digest = hashlib.sha256(content).hexdigest()
    values = {"host_code": key.version_compatible, "gate": "passed", "built": "2026-11-21T00:00:00", "build_s": 1.0}
    return Sidecar(FORMAT, key, digest, len(content), **{**values, **changes})


@pytest.fixture
def engine(tmp_path):
    path = tmp_path / KEY.file_name
    install_engine(CONTENT, path, sidecar())
    return path


def changed(**changes):
    return dataclasses.replace(KEY, **changes)


def test_what_was_installed_is_found_and_nothing_else_is_there(engine, tmp_path):
    assert find_engine(tmp_path, KEY) == engine
    assert engine.read_bytes() == CONTENT
    assert check_engine(engine, key=KEY) == sidecar()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([engine.name, engine.with_suffix(".json").name])


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(EngineKey)])
def test_every_part_of_the_key_makes_another_engine(field, engine, tmp_path):
    value = getattr(KEY, field)
    other = {str: "other", int: 9, tuple: ("89",), bool: True}[type(value)]
    key = changed(**{field: other})
    assert key.digest != KEY.digest
    assert key.file_name != KEY.file_name
    assert find_engine(tmp_path, key) is None
    with pytest.raises(EngineError, match=f"built for something else .*{field.replace('_', ' ')}"):
        check_engine(engine, key=key)


def test_a_foreign_file_under_the_right_name_is_built_again(engine, tmp_path, caplog):
    wanted = changed(driver="600.1")
    os.rename(engine, tmp_path / wanted.file_name)
    os.rename(engine.with_suffix(".json"), (tmp_path / wanted.file_name).with_suffix(".json"))
    with caplog.at_level(logging.WARNING):
        assert find_engine(tmp_path, wanted) is None
    assert "built again" in caplog.text
    assert "driver , not 600.1" in caplog.text


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda p: p.write_bytes(CONTENT[:-1]), r"is cut off: 5999 bytes of 6000"),
        (lambda p: p.write_bytes(b""), r"is cut off: 0 bytes of 6000"),
        (lambda p: p.write_bytes(b"E" + CONTENT[1:]), r"was damaged or changed"),
        (lambda p: p.unlink(), r"cannot be read"),
        (lambda p: p.with_suffix(".json").unlink(), r"is not an engine of this software"),
        (lambda p: p.with_suffix(".json").write_text("{"), r"is not readable"),
        (lambda p: p.with_suffix(".json").write_bytes(b"\xff\xfe"), r"is not readable"),
        (lambda p: p.with_suffix(".json").write_text("{}"), r"is not readable .*lacks format"),
        (lambda p: _edit(p, format=2), r"has format 2; this software reads 1"),
        (lambda p: _edit(p, size="big"), r"is not readable .*size should be a whole number"),
    ],
    ids=["short", "empty", "bytes", "gone", "no sidecar", "half sidecar", "binary", "bare", "format", "type"],
)  # fmt: skip
def test_damage_is_told_and_built_again(engine, tmp_path, harm, said, caplog):
    harm(engine)
    with pytest.raises(EngineError, match=said):
        check_engine(engine, key=KEY)
    with caplog.at_level(logging.WARNING):
        assert find_engine(tmp_path, KEY) is None
    assert "a cached engine is built again" in caplog.text
    install_engine(CONTENT, engine, sidecar())
    assert find_engine(tmp_path, KEY) == engine


def _edit(engine, **changes):
    path = engine.with_suffix(".json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_host_code_is_only_let_through_where_the_bundle_vouches_for_it(tmp_path):
    key = changed(version_compatible=True)
    path = tmp_path / key.file_name
    install_engine(CONTENT, path, sidecar(key=key))
    for trusted in ((), ("0" * 64,)):
        with pytest.raises(EngineError, match=r"carries code that loading would run.* not\s+in the bundle"):
            check_engine(path, trusted=trusted)
    assert check_engine(path, trusted=(hashlib.sha256(CONTENT).hexdigest(),)).host_code


def full_disk(monkeypatch, after=0):
    """Writing fails from the given file on, having written half of it."""
    real, calls = trt_cache._write, []

    def write(path, data):
        calls.append(path)
        if len(calls) > after:
            path.write_bytes(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, data)

    monkeypatch.setattr(trt_cache, "_write", write)


@pytest.mark.parametrize("after", [0, 1])
def test_a_full_disk_leaves_nothing_and_says_so(tmp_path, monkeypatch, after):
    full_disk(monkeypatch, after)
    with pytest.raises(EngineError, match=r"needs 0 MiB, and the disk of .* is full: free some space .*prune"):
        install_engine(CONTENT, tmp_path / KEY.file_name, sidecar())
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_engine_that_was_there(engine, tmp_path, monkeypatch):
    full_disk(monkeypatch)
    with pytest.raises(EngineError, match="is full"):
        install_engine(b"newer", engine, sidecar(b"newer"))
    assert check_engine(engine, key=KEY) == sidecar()
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
def test_a_write_that_the_system_refuses_leaves_nothing(tmp_path):
    code = f"""
import resource, signal, sys
from tests.runtime.test_trt_cache import KEY, install_engine, sidecar
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    install_engine(b"x" * 50_000, Path({str(tmp_path)!r}) / KEY.file_name, sidecar(b"x" * 50_000))
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "EngineError The engine cannot be written to" in done.stdout
    assert "File too large" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match=r"cannot be written to .*file.*name another folder with -o"):
        lock_folder(tmp_path / "file" / "engines")
    with pytest.raises(EngineError, match=r"cannot be written"):
        install_engine(CONTENT, tmp_path / "file" / "x.engine", sidecar())


def test_a_gate_sees_the_engine_before_it_is_there_and_can_refuse_it(tmp_path):
    path = tmp_path / KEY.file_name
    seen = []

    def refuse(candidate):
        seen.append((candidate.name, check_engine(candidate, key=KEY), path.exists()))
        raise EngineError("it says something else")

    with pytest.raises(EngineError, match="something else"):
        install_engine(CONTENT, path, sidecar(), gate=refuse)
    assert seen == [(path.name, sidecar(), False)]
    assert list(tmp_path.iterdir()) == []


def test_list_and_prune_tell_sound_from_damaged_and_wanted_from_old(engine, tmp_path):
    old = tmp_path / changed(library_version="1.6").file_name
    install_engine(b"old", old, sidecar(b"old", changed(library_version="1.6")))
    bad = tmp_path / changed(max_batch=2).file_name
    install_engine(b"bad", bad, sidecar(b"bad", changed(max_batch=2)))
    bad.write_bytes(b"worse")
    orphan = tmp_path / "orphan.json"
    orphan.write_text("{}")
    left = tmp_path / ".build-killed"
    left.mkdir()
    (left / "x.engine").write_bytes(b"half")
    found = dict(list_engines(tmp_path))
    assert found[engine] == sidecar()
    assert found[old].key.library_version == "1.6"
    assert isinstance(found[bad], EngineError)
    removed = prune(tmp_path, lambda one: one.key.library_version == "1.7.1")
    assert {engine, engine.with_suffix(".json")}.isdisjoint(removed)
    assert {p.name for p in tmp_path.iterdir()} == {engine.name, engine.with_suffix(".json").name, ".lock"}
    assert find_engine(tmp_path, KEY) == engine
    assert prune(tmp_path / "nowhere", lambda one: True) == []


HOLD = """
import sys, time
from pathlib import Path
from runtime.engines.file_lock import file_lock
with file_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def hold(path, seconds):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path), str(seconds)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    return process


def test_the_lock_is_waited_for(tmp_path, caplog):
    start = time.monotonic()
    with hold(tmp_path / ".lock", 0.5), caplog.at_level(logging.INFO), file_lock(tmp_path / ".lock"):
        waited = time.monotonic() - start
    assert waited > 0.3
    assert "another process builds engines" in caplog.text


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    with hold(tmp_path / ".lock", 60) as process:
        process.kill()
        process.wait()
        start = time.monotonic()
        with file_lock(tmp_path / ".lock"):
            assert time.monotonic() - start < 5
