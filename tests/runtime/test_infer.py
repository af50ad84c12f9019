from __future__ import annotations

import errno
import io
import json
import logging
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jsonschema
import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from runtime import infer, output, scan_access
from runtime.console import interrupted_by_sigterm, say
from runtime.errors import InputError, OutOfMemoryError, OutputError
from runtime.findings import from_json, schema
from runtime.infer import build_parser, main
from runtime.locks import HAS_POSIX_LOCKS
from runtime.output import check_replaceable, replaced_whole, result_folders
from runtime.read_ahead import Begun

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = {"findings.json", "vertebrae.nii.gz", "overview.png"}


@pytest.fixture
def there(tmp_path, monkeypatch, ball_bundle, ball_scan, save):
    """An empty working directory, beside a folder with two scans and a broken one."""
    scans = tmp_path / "scans"
    scans.mkdir()
    save(ball_scan(2).volume, scans / "two.nii.gz")
    save(ball_scan(3, orientation="PIR").volume, scans / "three.nii")
    (scans / "broken.nii.gz").write_bytes(b"no scan at all")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return scans


@pytest.fixture
def run(ball_bundle):
    return lambda *arguments: main([*map(str, arguments), "--bundle", str(ball_bundle), "--precision", "fp32"])


def content(folder):
    return {entry.name for entry in Path(folder).iterdir()}


def test_one_scan_leaves_all_results_where_they_are_expected(there, run, capsys):
    assert run(there / "three.nii") == 0
    assert content(".") == {"three.vertebrae"}
    assert content("three.vertebrae") == RESULTS
    text = Path("three.vertebrae/findings.json").read_text()
    jsonschema.validate(json.loads(text), schema())
    findings = from_json(text)
    assert len(findings.vertebrae) == 3
    assert {"read", "resample", "locate", "segment", "measure", "paste", "overview", "write", "total"} == set(
        findings.timings_s
    )
    mask, scan = nib.load("three.vertebrae/vertebrae.nii.gz"), nib.load(there / "three.nii")
    assert mask.shape == scan.shape
    assert np.allclose(mask.affine, scan.affine, atol=1e-4)
    labels = np.asarray(mask.dataobj)
    assert sorted(np.unique(labels)) == [0, 1, 2, 3]
    assert np.asarray(scan.dataobj)[labels > 0].mean() > 370
    with Image.open("three.vertebrae/overview.png") as picture:
        assert picture.mode == "RGB"
    out, err = capsys.readouterr()
    assert "three: 3 vertebrae" in out
    assert "NOT FOR CLINICAL USE" in out
    assert err == ""


def test_json_prints_the_findings_and_nothing_else(there, run, capsys):
    assert run(there / "two.nii.gz", "--json", "-o", "here") == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == json.loads(Path("here/findings.json").read_text())
    assert err == ""
    assert content("here") == RESULTS


def test_several_scans_share_a_run_and_a_bad_one_does_not_stop_them(there, run, capsys):
    scans = [there / name for name in ("two.nii.gz", "broken.nii.gz", "three.nii")]
    assert run(*scans, there / "none.nii", "--json", "-o", "all", "--no-overview") == 2
    out, err = capsys.readouterr()
    lines = [from_json(line) for line in out.splitlines()]
    assert [(f.scan.name, len(f.vertebrae)) for f in lines] == [("two", 2), ("three", 3)]
    assert content("all") == {"two.vertebrae", "three.vertebrae"}
    assert content("all/two.vertebrae") == RESULTS - {"overview.png"}
    assert len(err.splitlines()) == 2
    assert "broken.nii.gz" in err
    assert "none.nii" in err
    assert "Traceback" not in err


def test_air_is_done_with_no_vertebra(there, run, ball_scan, save, capsys):
    air = ball_scan(2).volume
    air.array[:] = -1000
    assert run(save(air, there / "air.nii.gz")) == 0
    assert "No vertebra was found." in capsys.readouterr().out
    assert content("air.vertebrae") == RESULTS
    assert from_json(Path("air.vertebrae/findings.json").read_text()).vertebrae == ()


@pytest.mark.parametrize(("quiet", "is_terminal"), [(False, True), (True, True), (False, False)])
def test_progress_and_log_are_for_terminals_that_want_them(there, run, monkeypatch, capsys, quiet, is_terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal, raising=False)
    assert run(there / "two.nii.gz", "--no-overview", *(["--quiet"] if quiet else [])) == 0
    err = capsys.readouterr().err
    if is_terminal and not quiet:
        assert err.startswith("engine openvino")
        assert "two: locate" in err
        assert err.endswith("\r")
    else:
        assert err == ""
    assert not [h for h in logging.getLogger().handlers if type(h) in (logging.StreamHandler, logging.NullHandler)]


def test_an_interrupt_while_a_scan_is_read_leaves_a_clean_line(there, run, monkeypatch, capsys):
    wait = Begun.wait

    def interrupt(begun):
        wait(begun)  # the thread that reads doesn't outlive this test
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(Begun, "wait", interrupt)
    assert run(there / "two.nii.gz") == 130
    assert capsys.readouterr().err.endswith(
        f"\rtwo: read\r{' ' * len('two: read')}\rerror: interrupted; no half-written result was left\n"
    )


@pytest.mark.parametrize(
    "arguments", [[], ["a.nii", "--engine", "abacus"], ["a.nii", "--device", "x"], ["--nonsense"], [""]]
)
def test_wrong_usage_is_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_a_missing_bundle_or_a_damaged_one_is_status_3(there, ball_bundle, tmp_path, capsys):
    assert main([str(there / "two.nii.gz"), "--bundle", str(tmp_path / "none")]) == 3
    damaged = tmp_path / "damaged"
    shutil.copytree(ball_bundle, damaged)
    (damaged / "locnet.onnx").write_bytes(b"something else")
    assert main([str(there / "two.nii.gz"), "--bundle", str(damaged)]) == 3
    err = capsys.readouterr().err
    assert err.count("error: ") == 2
    assert content(".") == set()


def test_memory_that_runs_out_is_status_4(there, run, monkeypatch, capsys):
    def no_memory(*_, **__):
        raise MemoryError

    monkeypatch.setattr(scan_access, "resample", no_memory)
    assert run(there / "two.nii.gz") == OutOfMemoryError.exit_status == 4
    assert "did not fit in memory" in capsys.readouterr().err
    assert content(".") == set()


@pytest.mark.parametrize("stage", ["scan_access.locate", "pipeline.paste_masks"])
def test_interrupted_while_working_is_status_130_and_leaves_nothing(there, run, monkeypatch, capsys, stage):
    def interrupt(*_, **__):  # by its own handler: background jobs of a shell start with the signal ignored
        signal.default_int_handler(signal.SIGINT, None)

    monkeypatch.setattr(f"runtime.{stage}", interrupt)
    assert run(there / "two.nii.gz") == 130
    assert "interrupted" in capsys.readouterr().err
    assert content(".") == set()


@pytest.mark.parametrize(("failure", "status"), [(KeyboardInterrupt, 130), (OSError(28, "No space left"), 2)])
def test_a_write_that_fails_keeps_the_result_that_was_there(there, run, monkeypatch, capsys, failure, status):
    assert run(there / "two.nii.gz") == 0
    before = Path("two.vertebrae/findings.json").read_bytes()

    def fail(*_, **__):
        raise failure

    monkeypatch.setattr(output, "to_json", fail)
    assert run(there / "two.nii.gz") == status
    assert content(".") == {"two.vertebrae"}
    assert content("two.vertebrae") == RESULTS
    assert Path("two.vertebrae/findings.json").read_bytes() == before
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("writes", ["isal.igzip.IGzipFile.write", "runtime.png.write_png"])
def test_a_full_disk_is_told_by_the_folder_that_the_user_named(there, run, monkeypatch, capsys, writes):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writes, full)
    assert run(there / "two.nii.gz", "-o", "out") == 2
    said = "results can't be written to out (No space left on device); choose a folder with -o"
    err = capsys.readouterr().err.replace(f"{Path.cwd()}{os.sep}", "")
    assert said in err
    assert ".vertscan-" not in err
    assert content(".") == set()


def test_a_defect_is_told_without_a_trace_unless_asked_for(there, run, monkeypatch, capsys):
    def defect(*_, **__):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(scan_access, "resample", defect)
    assert run(there / "two.nii.gz") == 1
    err = capsys.readouterr().err
    assert "internal error: ZeroDivisionError: oops" in err
    assert "Traceback" not in err
    assert run(there / "two.nii.gz", "--debug") == 1
    assert "Traceback" in capsys.readouterr().err


def test_no_memory_for_writing_the_results_is_no_defect(there, run, monkeypatch, capsys):
    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr("runtime.scan_runner.write_results", full)
    assert run(there / "two.nii.gz") == 4
    err = capsys.readouterr().err
    assert "two.nii.gz: out of memory while its results were written" in err
    assert "internal error" not in err


def test_a_result_is_replaced_and_anything_else_is_not(there, run, capsys):
    assert run(there / "two.nii.gz", "-o", "here") == 0
    assert run(there / "three.nii", "-o", "here", "--no-overview") == 0
    assert content("here") == RESULTS - {"overview.png"}
    Path("here/notes.txt").write_text("mine")
    assert run(there / "two.nii.gz", "-o", "here") == 2
    assert "notes.txt" in capsys.readouterr().err
    assert content("here") == (RESULTS - {"overview.png"}) | {"notes.txt"}
    Path("file").write_text("mine")
    assert run(there / "two.nii.gz", "-o", "file") == 2
    assert Path("file").read_text() == "mine"


def test_results_never_replace_the_scan_itself(there, run, capsys):
    folder = there / "in"
    folder.mkdir()
    scan = folder / "vertebrae.nii.gz"
    scan.write_bytes((there / "two.nii.gz").read_bytes())
    before = scan.read_bytes()
    assert run(scan, "-o", folder) == 2
    assert "would replace the scan" in capsys.readouterr().err
    assert scan.read_bytes() == before
    series = there / "series"
    series.mkdir()
    (series / "1.dcm").write_bytes(b"a slice")
    assert run(series, "-o", series) == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_stdout_is_said_and_the_results_stay(there, ball_bundle):
    command = [sys.executable, "-m", "runtime.infer", str(there / "two.nii.gz"), "--bundle", str(ball_bundle), "--json"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=there, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert "the results are on disk" in done.stderr
    assert "Traceback" not in done.stderr
    assert content(there / "two.vertebrae") == RESULTS


def test_two_scans_of_one_name_are_refused_before_any_work(there, run, capsys):
    (there / "other").mkdir()
    shutil.copy(there / "two.nii.gz", there / "other" / "TWO.nii.gz")
    assert run(there / "two.nii.gz", there / "other" / "TWO.nii.gz") == 2
    assert "one by one" in capsys.readouterr().err
    assert content(".") == set()


def test_result_folders_are_named_after_the_scans(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dicom = tmp_path / "CT 1.5 mm"
    dicom.mkdir()
    scans = [Path("a.nii.gz"), Path("b.v2.nrrd"), dicom]
    assert [f.name for f in result_folders(scans, None)] == ["a.vertebrae", "b.v2.vertebrae", "CT 1.5 mm.vertebrae"]
    assert result_folders(scans[:1], Path("x")) == (Path("x"),)
    assert result_folders(scans[:2], Path("x")) == (Path("x/a.vertebrae"), Path("x/b.v2.vertebrae"))


def test_what_fails_in_the_block_leaves_nothing_and_makes_nothing(tmp_path):
    def fail_half_way():
        with replaced_whole(tmp_path / "new") as fresh:
            (fresh / "findings.json").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert content(tmp_path) == set()


def test_a_folder_that_was_filled_meanwhile_is_not_replaced(tmp_path):
    def overtaken():
        with replaced_whole(tmp_path / "new") as fresh:
            (fresh / "findings.json").write_text("whole")
            (tmp_path / "new").mkdir()
            (tmp_path / "new" / "notes.txt").write_text("mine")

    with pytest.raises(InputError, match="other files"):
        overtaken()
    assert content(tmp_path) == {"new"}
    assert content(tmp_path / "new") == {"notes.txt"}


@pytest.mark.parametrize("failing", range(6))
def test_an_exchange_that_fails_anywhere_gives_all_old_or_all_new(tmp_path, monkeypatch, failing):
    """Five renames: two old files out, three new ones in."""
    folder, renames, real = tmp_path / "here", 0, Path.rename

    def sometimes(path, target):
        nonlocal renames
        renames += 1
        if renames == failing + 1:
            raise KeyboardInterrupt
        return real(path, target)

    def exchange():
        with replaced_whole(folder) as fresh:
            for name in RESULTS:
                (fresh / name).write_text("new")

    folder.mkdir()
    for name in RESULTS - {"overview.png"}:
        (folder / name).write_text("old")
    monkeypatch.setattr(Path, "rename", sometimes)
    if failing < 5:
        with pytest.raises(KeyboardInterrupt):
            exchange()
        expected = dict.fromkeys(RESULTS - {"overview.png"}, "old")
    else:
        exchange()
        expected = dict.fromkeys(RESULTS, "new")
    assert {entry.name: entry.read_text() for entry in folder.iterdir()} == expected


def test_results_can_go_to_the_working_directory(there, run):
    before = Path.cwd().stat().st_ino
    assert run(there / "two.nii.gz", "-o", ".", "--no-overview") == 0
    assert content(".") == RESULTS - {"overview.png"}
    assert Path.cwd().stat().st_ino == before


def test_odd_scans_do_not_stop_the_others(there, run, capsys):
    (there / "ring.nii.gz").symlink_to("ring.nii.gz")
    long = there / f"{'x' * 300}.nii.gz"
    assert run(there / "ring.nii.gz", there / "two.nii.gz", "-o", "all", "--no-overview") == 2
    assert content("all") == {"two.vertebrae"}
    assert run(long, "-o", "long") == 2
    assert run(long) == 2
    err = capsys.readouterr().err
    assert "internal error" not in err
    assert len(err.splitlines()) == 3
    assert content(".") == {"all"}


def test_a_scan_that_cannot_be_looked_at_is_no_defect_where_dicom_is_asked_for(there, run, monkeypatch, capsys):
    real = Path.is_file

    def is_file(self):
        if self.name == "two.nii.gz":
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return real(self)

    monkeypatch.setattr(Path, "is_file", is_file)
    assert run(there / "two.nii.gz", "--output", "seg") == 2
    err = capsys.readouterr().err
    assert "No permission to read" in err
    assert "internal error" not in err


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_what_stdout_cannot_encode_is_escaped(monkeypatch, encoding):
    stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stdout)
    say("Wirbelsäule ✓ \udcff")
    said = stdout.buffer.getvalue().decode(encoding)
    expected = {"ascii": r"Wirbels\xe4ule \u2713 \udcff", "cp1252": r"Wirbelsäule \u2713 \udcff"}
    assert said == expected.get(encoding, r"Wirbelsäule ✓ \udcff") + "\n"


@pytest.mark.skipif(os.name != "posix", reason="elsewhere the working directory can't vanish")
def test_a_working_directory_that_is_gone_is_refused(there, run, capsys, monkeypatch, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert run(there / "two.nii.gz") == 2
    assert "internal error" not in capsys.readouterr().err


def test_the_results_path_can_be_copied_where_the_terminal_shows_it(there, run, capsys, monkeypatch):
    scan = (there / "two.nii.gz").rename(there / "Müller, Jörg.nii.gz")
    assert run(scan, "--no-overview") == 0
    assert "results in Müller, Jörg.vertebrae\n" in capsys.readouterr().out
    monkeypatch.setattr(infer.sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert run(scan, "--no-overview") == 0
    assert b"results in M\\xfcller, J\\xf6rg.vertebrae\n" in infer.sys.stdout.buffer.getvalue()


@pytest.mark.skipif(sys.platform == "win32", reason="folders have no locks there")
def test_results_of_two_runs_into_one_folder_are_never_mixed(tmp_path, monkeypatch):
    folder, in_the_middle, rename = tmp_path / "here", threading.Event(), Path.rename

    def write(run):
        with replaced_whole(folder) as fresh:
            for name in RESULTS:
                (fresh / name).write_text(run)

    def dawdle(source, target):
        moved = rename(source, target)
        if threading.current_thread() is slow and source.parent.name == "new" and not in_the_middle.is_set():
            in_the_middle.set()
            time.sleep(0.5)
        return moved

    write("first")
    monkeypatch.setattr(Path, "rename", dawdle)
    slow = threading.Thread(target=write, args=("slow",))
    slow.start()
    assert in_the_middle.wait(10)
    write("fast")
    slow.join()
    assert content(folder) == RESULTS
    assert [(folder / name).read_text() for name in RESULTS] == ["fast"] * len(RESULTS)


def test_a_folder_that_another_run_makes_meanwhile_is_exchanged(tmp_path):
    folder = tmp_path / "here"
    with replaced_whole(folder) as fresh:
        (fresh / "findings.json").write_text("slow")
        with replaced_whole(folder) as other:
            for name in RESULTS:
                (other / name).write_text("fast")
    assert content(folder) == {"findings.json"}
    assert (folder / "findings.json").read_text() == "slow"


@pytest.mark.skipif(not HAS_POSIX_LOCKS, reason="no locks that tell whose a folder is")
def test_results_that_a_killed_process_was_exchanging_stay_until_there_are_new_ones(tmp_path):
    folder = tmp_path / "here"
    left = folder / ".vertscan-left"
    (left / "old").mkdir(parents=True)
    (left / "lock").write_text(platform.node())
    (left / "old" / "findings.json").write_text("the only ones")
    with pytest.raises(OutputError), replaced_whole(folder):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (left / "old" / "findings.json").read_text() == "the only ones"
    with replaced_whole(folder) as fresh:
        (fresh / "findings.json").write_text("new")
    assert content(folder) == {"findings.json"}


def test_what_a_killed_process_left_is_no_obstacle(tmp_path):
    (tmp_path / "here" / ".vertscan-left").mkdir(parents=True)
    check_replaceable(tmp_path / "here")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs permissions that bind")
def test_a_place_that_cannot_be_written_is_refused_first(tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    with pytest.raises(InputError, match="another folder"):
        check_replaceable(locked / "deep" / "down")


def process(*arguments, cwd, **options):
    command = [sys.executable, "-m", "runtime.infer", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, **options)


def test_the_real_process_prints_json_and_exits_well(there, ball_bundle):
    done = process(there / "two.nii.gz", there / "broken.nii.gz", "--bundle", ball_bundle, "--json", cwd=Path.cwd())
    assert done.returncode == 2
    (line,) = done.stdout.splitlines()
    assert len(from_json(line).vertebrae) == 2
    assert "Traceback" not in done.stderr
    assert content(".") == {"two.vertebrae"}


def test_the_real_process_refuses_with_one_line(there, tmp_path):
    done = process(there / "two.nii.gz", "--bundle", tmp_path / "none", cwd=Path.cwd())
    assert done.returncode == 3
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(os.name != "posix", reason="sends a POSIX signal")
def test_the_real_process_stops_at_an_interrupt_and_leaves_nothing(there, ball_bundle):
    code = (
        "import signal, sys, time, runtime.scan_access as s; from runtime.infer import main;"
        "signal.signal(signal.SIGINT, signal.default_int_handler);"  # background jobs of a shell start with it ignored
        "s.locate = lambda *_, **__: (print('here', flush=True), time.sleep(100));"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, str(there / "two.nii.gz"), "--bundle", str(ball_bundle)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True) as child:
        assert child.stdout.readline() == "here\n"
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert out == ""
    assert err == "error: interrupted; no half-written result was left\n"
    assert content(".") == set()


WRITES_AND_WAITS = (
    "import sys, time, runtime.overview as o; from runtime.infer import main;"
    "o.draw_overview = lambda *_, **__: (print('here', flush=True), time.sleep(100));"
    "sys.exit(main(sys.argv[1:]))"
)


def that_writes(scan, bundle, **streams):
    """A process that waits while it writes its results, once it says ``here``."""
    command = [sys.executable, "-c", WRITES_AND_WAITS, str(scan), "--bundle", str(bundle)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(command, env=environment, text=True, **{"stdout": subprocess.PIPE, **streams})


def half_written():
    return [name for name in content(".") if name.startswith(output.SCRATCH)]


@pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_process_that_is_ended_leaves_nothing_half_written(there, ball_bundle, name):
    with that_writes(there / "two.nii.gz", ball_bundle, stderr=subprocess.PIPE) as child:
        assert child.stdout.readline() == "here\n"
        assert len(half_written()) == 1
        child.send_signal(getattr(signal, name))
        _, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert err == "error: interrupted; no half-written result was left\n"
    assert content(".") == set()


@pytest.mark.skipif(sys.platform != "linux", reason="needs a terminal")
def test_a_terminal_that_is_closed_ends_the_run_and_nothing_is_left_half_written(there, ball_bundle):
    import fcntl
    import termios

    master, terminal = os.openpty()
    with that_writes(
        there / "two.nii.gz",
        ball_bundle,
        stdin=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    ) as child:
        os.close(terminal)
        assert child.stdout.readline() == "here\n"
        assert len(half_written()) == 1
        os.close(master)
        child.wait(timeout=60)
    assert content(".") == set()


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
@pytest.mark.parametrize(("before", "meanwhile"), [(signal.SIG_DFL, signal.default_int_handler), (signal.SIG_IGN,) * 2])
def test_a_hangup_that_is_ignored_as_under_nohup_stays_so(before, meanwhile):
    ours = signal.signal(signal.SIGHUP, before)
    try:
        with interrupted_by_sigterm(and_sighup=True):
            assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
            assert signal.getsignal(signal.SIGHUP) is meanwhile
        assert signal.getsignal(signal.SIGHUP) is before
    finally:
        signal.signal(signal.SIGHUP, ours)


@pytest.mark.skipif(not HAS_POSIX_LOCKS, reason="needs locks that their holder's end gives back")
def test_what_a_killed_process_left_goes_with_the_next_run_and_nothing_of_others(there, ball_bundle, run):
    with (
        that_writes(there / "three.nii", ball_bundle) as alive,
        that_writes(there / "three.nii", ball_bundle) as killed,
    ):
        assert [child.stdout.readline() for child in (alive, killed)] == ["here\n"] * 2
        both = half_written()
        killed.kill()
        killed.wait(timeout=60)
        Path(".vertscan-begins").mkdir()
        Path(".vertscan-elsewhere").mkdir()
        Path(".vertscan-elsewhere/lock").write_text("another machine")
        Path("..", "linked").mkdir()
        Path("..", "linked", "lock").write_text(platform.node())
        Path(".vertscan-link").symlink_to("../linked")
        assert (len(both), len(half_written())) == (2, 5)
        assert run(there / "two.nii.gz", "--no-overview") == 0
        assert content(".") > {"two.vertebrae", ".vertscan-begins", ".vertscan-elsewhere", ".vertscan-link"}
        assert len(set(both) & content(".")) == 1
        assert content("../linked") == {"lock"}
        alive.terminate()
        alive.wait(timeout=60)
    assert alive.returncode == 130
    assert set(both) & content(".") == set()


@pytest.mark.skipif(os.name != "posix", reason="a closed pipe is another error elsewhere")
def test_a_reader_that_goes_away_spoils_nothing(there, ball_bundle):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "runtime.infer", str(there / "two.nii.gz"), "--bundle", str(ball_bundle)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, env=environment, text=True, timeout=120)
    os.close(writing)
    assert done.returncode == 0
    assert done.stderr == ""
    assert content("two.vertebrae") == RESULTS


def test_the_help_tells_the_exit_statuses_and_imports_nothing_heavy():
    assert "130 interrupted" in " ".join(build_parser().format_help().split())
    code = (
        "import runtime.infer, sys; runtime.infer.build_parser().format_help();"
        "print([m for m in ('numba', 'SimpleITK', 'openvino', 'onnxruntime', 'PIL', 'torch') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert said.stdout.strip() == "[]"


@pytest.mark.parametrize("options", [[], ["--exhaustive"]])
def test_exhaustive_reaches_the_pipeline(options, tmp_path, monkeypatch):
    from runtime.errors import EngineError
    from runtime.pipeline import Pipeline

    asked = []

    def refuse(*_, exhaustive, **__):
        asked.append(exhaustive)
        raise EngineError("no engine in this test")

    monkeypatch.setattr(Pipeline, "open", refuse)
    scan = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)), scan)
    assert main([str(scan), "-o", str(tmp_path / "out"), *options]) == EngineError.exit_status
    assert asked == [bool(options)]
