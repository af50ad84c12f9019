"""Engine files: whole and what they say they are, or refused; written whole or not at all; one builder at a time."""

import dataclasses
import errno
import hashlib
import json
import logging
import subprocess
import sys
import time

import pytest

from runtime.engines import trt_cache
from runtime.engines.cuda_probe import Gpu
from runtime.engines.file_lock import file_lock
from runtime.engines.trt_cache import (
    check_engine,
    find_engine,
    find_engine_for,
    install_engine,
    list_engines,
    lock_folder,
    note_gate,
    prune,
    read_engine,
)
from runtime.engines.trt_key import FORMAT, EngineBuild, EngineKey, Sidecar, engine_name, gpu_and_driver
from runtime.errors import EngineError

KEY = EngineKey(
    network="locnet.onnx", onnx_sha256="a" * 64, precision="fp16", conversion="1", max_batch=8,
    library="tensorrt-rtx", library_version="1.7.1",
)  # fmt: skip
BUILD = EngineBuild(targets=("86", "120"))
NAME = engine_name(KEY, BUILD)
RTX_50 = Gpu(0, "NVIDIA RTX 5090", (12, 0), 32000, "580.1", (13, 0))
CONTENT = b"engine" * 1000


def sidecar(content=CONTENT, key=KEY, build=BUILD, **changes):
    digest = hashlib.sha256(content).hexdigest()
    values = {"gates": ("the typed graph",), "built": "2026-11-21T00:00:00", "build_s": 1.0}
    return Sidecar(FORMAT, key, build, digest, len(content), **{**values, **changes})


@pytest.fixture
def engine(tmp_path):
    path = tmp_path / NAME
    install_engine(CONTENT, path, sidecar())
    return path


def changed(**changes):
    return dataclasses.replace(KEY, **changes)


def install(folder, content, key=KEY, build=BUILD, **changes):
    path = folder / engine_name(key, build)
    install_engine(content, path, sidecar(content, key, build, **changes))
    return path


def test_what_was_installed_is_found_and_nothing_else_is_there(engine, tmp_path):
    assert find_engine(tmp_path, KEY, BUILD) == engine
    assert engine.read_bytes() == CONTENT
    assert check_engine(engine, key=KEY) == sidecar()
    assert read_engine(engine) == (sidecar(), CONTENT)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([engine.name, engine.with_suffix(".json").name])


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(EngineKey)])
def test_every_part_of_the_key_makes_another_engine(field, engine, tmp_path):
    value = getattr(KEY, field)
    key = changed(**{field: {str: "other", int: 9}[type(value)]})
    assert engine_name(key, BUILD) != NAME
    assert find_engine(tmp_path, key, BUILD) is None
    assert find_engine_for(tmp_path, key, RTX_50) is None
    with pytest.raises(EngineError, match=f"built for something else .*{field.replace('_', ' ')}"):
        check_engine(engine, key=key)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(EngineBuild)])
def test_every_way_to_build_is_a_file_of_its_own(field, engine, tmp_path):
    other = {str: "other", int: 9, tuple: ("89",), bool: True}[type(getattr(BUILD, field))]
    build = dataclasses.replace(BUILD, **{field: other})
    assert engine_name(KEY, build) != NAME
    assert find_engine(tmp_path, KEY, build) is None


def test_a_foreign_file_under_the_right_name_is_built_again(engine, tmp_path, caplog):
    for key, build, said in (
        (KEY, dataclasses.replace(BUILD, driver="600.1"), "was built otherwise (driver , not 600.1)"),
        (changed(library_version="1.8"), BUILD, "library version 1.7.1, not 1.8"),
    ):
        path = tmp_path / engine_name(key, build)
        path.write_bytes(engine.read_bytes())
        path.with_suffix(".json").write_bytes(engine.with_suffix(".json").read_bytes())
        with caplog.at_level(logging.WARNING):
            assert find_engine(tmp_path, key, build) is None
        assert "built again" in caplog.text
        assert said in caplog.text


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
        (lambda p: _edit(p, format=1), r"has format 1; this software reads 2"),
        (lambda p: _edit(p, size="big"), r"is not readable .*size should be a whole number"),
    ],
    ids=["short", "empty", "bytes", "gone", "no sidecar", "half sidecar", "binary", "bare", "format", "type"],
)  # fmt: skip
def test_damage_is_told_and_built_again(engine, tmp_path, harm, said, caplog):
    harm(engine)
    with pytest.raises(EngineError, match=said):
        check_engine(engine, key=KEY)
    with caplog.at_level(logging.WARNING):
        assert find_engine(tmp_path, KEY, BUILD) is None
        assert find_engine_for(tmp_path, KEY, RTX_50) is None
    assert "a cached engine is built again" in caplog.text
    install_engine(CONTENT, engine, sidecar())
    assert find_engine(tmp_path, KEY, BUILD) == find_engine_for(tmp_path, KEY, RTX_50) == engine


def _edit(engine, **changes):
    path = engine.with_suffix(".json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_host_code_is_only_let_through_where_the_bundle_vouches_for_it(tmp_path):
    path = install(tmp_path, CONTENT, build=EngineBuild(("120",), version_compatible=True))
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
        install_engine(CONTENT, tmp_path / NAME, sidecar())
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
from tests.runtime.test_trt_cache import NAME, install_engine, sidecar
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    install_engine(b"x" * 50_000, Path({str(tmp_path)!r}) / NAME, sidecar(b"x" * 50_000))
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
    path = tmp_path / NAME
    seen = []

    def refuse(candidate):
        seen.append((candidate.name, check_engine(candidate, key=KEY), path.exists()))
        raise EngineError("it says something else")

    with pytest.raises(EngineError, match="something else"):
        install_engine(CONTENT, path, sidecar(), gate=refuse)
    assert seen == [(path.name, sidecar(), False)]
    assert list(tmp_path.iterdir()) == []


def test_list_and_prune_tell_sound_from_damaged_and_wanted_from_old(engine, tmp_path):
    old = install(tmp_path, b"old", changed(library_version="1.6"))
    bad = install(tmp_path, b"bad", changed(max_batch=2))
    bad.write_bytes(b"worse")
    orphan = tmp_path / "orphan.json"
    orphan.write_text("{}")
    kernels, orphans = (tmp_path / f"{path.stem}-0123abcd.kernels" for path in (engine, old))
    kernels.write_bytes(b"compiled")
    orphans.write_bytes(b"compiled")
    left = tmp_path / ".build-killed"
    left.mkdir()
    (left / "x.engine").write_bytes(b"half")
    found = dict(list_engines(tmp_path))
    assert found[engine] == sidecar()
    assert found[old].key.library_version == "1.6"
    assert isinstance(found[bad], EngineError)
    removed = prune(tmp_path, lambda one: one.key.library_version == "1.7.1")
    assert {engine, engine.with_suffix(".json")}.isdisjoint(removed)
    remaining = {engine.name, engine.with_suffix(".json").name, kernels.name, ".lock"}
    assert {p.name for p in tmp_path.iterdir()} == remaining
    assert orphans in removed
    assert find_engine(tmp_path, KEY, BUILD) == engine
    timings = tmp_path / "timing-0123.cache"
    timings.write_bytes(b"measured")
    assert prune(tmp_path, lambda one: True) == []
    assert timings in prune(tmp_path, lambda one: False)
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]
    assert prune(tmp_path / "nowhere", lambda one: True) == []


def test_a_folder_that_cannot_be_read_is_not_an_empty_one(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match=r"folder of engines .*file cannot be read \(Not a directory\)"):
        list(list_engines(tmp_path / "file"))

    def locked(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(trt_cache.os, "scandir", locked)
    for look in (lambda: list(list_engines(tmp_path)), lambda: find_engine_for(tmp_path, KEY, RTX_50)):
        with pytest.raises(EngineError, match=r"cannot be read \(Permission denied\)"):
            look()


# Which engine of a key is taken on a GPU.


def on(gpu, **changes):
    """How an engine is built on a GPU."""
    name, driver = gpu_and_driver(gpu)
    return EngineBuild((str(gpu.sm),), name, driver, **changes)


def gpu(sm, name="NVIDIA X", driver="580.1"):
    return Gpu(0, name, divmod(sm, 10), 8000, driver, (13, 0))


@pytest.mark.parametrize(("sm", "is_for"), [(86, True), (120, True), (75, False), (89, False), (90, False)])
def test_an_engine_that_was_built_without_a_gpu_is_taken_on_those_it_was_built_for(engine, tmp_path, sm, is_for):
    assert find_engine_for(tmp_path, KEY, gpu(sm)) == (engine if is_for else None)


@pytest.mark.parametrize(
    ("build", "here", "is_for"),
    [
        (on(gpu(89)), gpu(89), True),
        (on(gpu(89)), gpu(89, driver="590.2"), False),
        (on(gpu(89)), gpu(89, name="NVIDIA Y"), False),
        (on(gpu(89)), gpu(86), False),
        (on(gpu(89), hardware_compatibility="same_compute_capability"), gpu(89, name="NVIDIA Y"), True),
        (on(gpu(89), hardware_compatibility="same_compute_capability"), gpu(86), False),
        (on(gpu(89), hardware_compatibility="ampere_plus"), gpu(86), True),
        (on(gpu(89), hardware_compatibility="ampere_plus"), gpu(90), True),
        (on(gpu(89), hardware_compatibility="ampere_plus"), gpu(75), False),
        (on(gpu(75), hardware_compatibility="ampere_plus"), gpu(86), False),
        (on(gpu(89), hardware_compatibility="ampere_plus"), gpu(87, name="Orin"), False),
        (on(gpu(87, name="Orin"), hardware_compatibility="ampere_plus"), gpu(89), False),
    ],
)
def test_an_engine_of_another_gpu_is_only_taken_where_it_was_built_to_be(tmp_path, build, here, is_for):
    path = install(tmp_path, CONTENT, build=build)
    assert find_engine_for(tmp_path, KEY, here) == (path if is_for else None)


def test_the_engine_that_was_built_on_the_gpu_comes_first_and_the_youngest_of_equals(engine, tmp_path):
    here = gpu(86)
    movable = install(tmp_path, b"movable", build=on(gpu(89), hardware_compatibility="ampere_plus"))
    younger = install(tmp_path, b"younger", build=EngineBuild(("86",)), built="2026-11-22T00:00:00")
    tuned = install(tmp_path, b"tuned", build=on(here))
    foreign = install(tmp_path, b"foreign", build=on(gpu(86, name="NVIDIA Y")))
    for expected in (tuned, younger, engine, movable):
        assert find_engine_for(tmp_path, KEY, here) == expected
        expected.unlink()
    assert foreign.exists()
    assert find_engine_for(tmp_path, KEY, here) is None


def test_a_damaged_engine_gives_way_to_the_next(engine, tmp_path, caplog):
    tuned = install(tmp_path, b"tuned", build=on(RTX_50))
    tuned.write_bytes(b"TUNED")
    assert find_engine_for(tmp_path, KEY, RTX_50) == engine
    assert "a cached engine is not used" in caplog.text
    assert "damaged or changed" in caplog.text


@pytest.mark.parametrize(
    ("built_by", "is_loaded"), [("1.7.1", True), ("1.7.0", True), ("1.6", True), ("1.8", False), ("0.9", False)]
)
def test_a_version_compatible_engine_is_taken_by_newer_versions_where_its_hash_is_known(
    tmp_path, built_by, is_loaded, caplog
):
    content = b"carries code"
    build = on(RTX_50, version_compatible=True)
    path = install(tmp_path, content, changed(library_version=built_by), build)
    assert find_engine_for(tmp_path, KEY, RTX_50) is None
    assert ("its hash is not in the bundle: it is not loaded" in caplog.text) == is_loaded
    known = {hashlib.sha256(content).hexdigest()}
    assert find_engine_for(tmp_path, KEY, RTX_50, trusted=known) == (path if is_loaded else None)
    plain = install(tmp_path, CONTENT)
    assert find_engine_for(tmp_path, KEY, RTX_50, trusted=known) == plain


def test_that_an_engine_passed_the_gate_is_noted_once_and_for_that_engine_alone(engine, tmp_path):
    before = check_engine(engine)
    for _ in range(2):
        note_gate(engine, before, "NVIDIA X")
    assert check_engine(engine) == dataclasses.replace(before, gates=("the typed graph", "NVIDIA X"))
    install_engine(b"other", engine, sidecar(b"other", gates=()))
    note_gate(engine, before, "NVIDIA Y")
    assert check_engine(engine).gates == ()


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
