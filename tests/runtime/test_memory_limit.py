"""``--memory``: what a scan will need is known before its voxels are read, and the limit is kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from runtime.errors import OutOfMemoryError
from runtime.infer import build_parser, main
from runtime.memory import MIB
from runtime.memory_limit import GIB, MemoryLimit
from runtime.memory_need import RUN_BYTES, MemoryNeed, memory_need
from runtime.pipeline import Pipeline
from runtime.readers import nifti, read_scan
from runtime.readers.options import ReadOptions, ScanHeader
from runtime.volume import Grid
from tests.runtime.conftest import ball_spec
from tests.runtime.dicom.series import analysis_of
from tests.runtime.dicom_files import write_series

REPOSITORY = Path(__file__).resolve().parents[2]
LARGE = ScanHeader("large", Grid((600, 512, 512), np.diag([0.8, 0.8, 1.0, 1.0])), True, 0)


def header_of(path):
    """What the reader tells, which reads no voxel then."""
    told = []

    def tell(header):
        told.append(header)
        raise OutOfMemoryError("enough")

    with pytest.raises(OutOfMemoryError, match="enough"):
        read_scan(path, ReadOptions(on_header=tell))
    return told[0]


def limit_for(scans):
    """A limit with room for so many of the large scan, and for half of what reading another takes."""
    limit = MemoryLimit(1e15, ball_spec(), threads=2)
    need = limit.need_of(LARGE)
    beside = scans * (need.to_finish - limit.before_bytes) + 0.5 * (need.to_prepare - limit.before_bytes)
    return MemoryLimit(limit.before_bytes + beside, ball_spec(), threads=2)


def begin(limit, scan, header=LARGE):
    """Let a scan in on a thread of its own; the event is set once it is."""
    inside = threading.Event()
    reading = limit.applied_to(ReadOptions(), scan)

    def work():
        reading.on_header(header)
        inside.set()

    threading.Thread(target=work, daemon=True).start()
    return inside


def test_what_fits_together_is_let_in_together_and_what_does_not_waits():
    two = limit_for(2)
    assert begin(two, "a").wait(10)
    assert begin(two, "b").wait(10)
    one = limit_for(1)
    assert begin(one, "a").wait(10)
    second = begin(one, "b")
    assert not second.wait(0.2)
    one.through("a")
    assert second.wait(10)


def test_a_scan_that_was_let_in_is_read_again_without_waiting_and_waits_for_no_later_one():
    limit = limit_for(1)
    first = limit.applied_to(ReadOptions(), "first")
    assert begin(limit, "second").wait(10)
    first.on_header(LARGE)
    first.on_header(LARGE)


def test_a_scan_that_does_not_fit_alone_is_refused_with_what_to_do():
    limit = limit_for(0)
    with pytest.raises(OutOfMemoryError, match=r"^large \(512 x 512 x 600 voxels\) needs up to ") as refused:
        limit.applied_to(ReadOptions(), "a").on_header(LARGE)
    advised = float(str(refused.value).rstrip(".").rpartition("--memory ")[2])
    assert limit.need_of(LARGE).to_finish <= advised * GIB < limit.need_of(LARGE).to_finish + 0.011 * GIB


def test_a_scan_that_may_become_float_needs_more_and_so_do_dicom_results():
    def need(header, *, writes_dicom=False):
        return memory_need(header, ball_spec(), threads=2, writes_dicom=writes_dicom).to_finish

    voxels = 600 * 512 * 512
    assert need(LARGE) >= 3 * voxels
    assert need(replace(LARGE, stays_int16=False)) >= need(LARGE) + 2 * voxels
    assert need(LARGE, writes_dicom=True) > need(LARGE)
    assert need(replace(LARGE, reader_bytes=10 * voxels)) >= 12 * voxels


@pytest.mark.parametrize(
    ("stored", "slope", "stays"),
    [("i2", 1, True), ("u1", 1, True), ("u2", 1, False), ("i4", 1, False), ("f4", 1, False), ("i2", 0.5, False)],
)
def test_nifti_says_before_its_voxels_are_read_whether_they_stay_int16(tmp_path, stored, slope, stays):
    import nibabel as nib

    image = nib.Nifti1Image(np.arange(-60, 60).reshape(4, 5, 6).astype(stored), np.diag([1.0, 2.0, 3.0, 1.0]))
    image.header.set_slope_inter(slope, -10)
    nib.save(image, tmp_path / "scan.nii.gz")
    header = header_of(tmp_path / "scan.nii.gz")
    assert (header.grid.shape_zyx, header.grid.spacing_xyz_mm) == ((6, 5, 4), (1.0, 2.0, 3.0))
    assert header.stays_int16 == stays
    if stays:
        assert read_scan(tmp_path / "scan.nii.gz").array.dtype == np.int16


@pytest.mark.parametrize("name", ["scan.mha", "scan.nrrd"])
@pytest.mark.parametrize(("stored", "stays"), [("i2", True), ("u2", False), ("f4", False)])
def test_itk_formats_say_the_grid_that_reading_gives(tmp_path, name, stored, stays):
    import SimpleITK

    image = SimpleITK.GetImageFromArray(np.arange(120).reshape(4, 5, 6).astype(stored) - 60 * (stored != "u2"))
    image.SetSpacing((0.5, 0.75, 2.0))
    image.SetDirection((0, 1, 0, -1, 0, 0, 0, 0, 1))
    image.SetOrigin((10, 20, 30))
    SimpleITK.WriteImage(image, str(tmp_path / name))
    header = header_of(tmp_path / name)
    assert header.stays_int16 == stays
    assert header.reader_bytes >= 120 * np.dtype(stored).itemsize
    if stored != "u2":
        assert header.grid.same_as(read_scan(tmp_path / name).grid)


@pytest.mark.parametrize(("slope", "stays"), [(1, True), (1.5, False), (20, False)])
def test_dicom_says_the_grid_that_reading_gives(tmp_path, slope, stays):
    def change(_, dataset):
        dataset.RescaleSlope, dataset.BitsStored, dataset.HighBit = slope, 12, 11

    write_series(tmp_path / "series", change)
    header = header_of(tmp_path / "series")
    assert header.stays_int16 == stays
    assert header.reader_bytes > 0
    if slope < 20:
        assert header.grid.same_as(read_scan(tmp_path / "series").grid)


@pytest.mark.parametrize("met", ["0", "-1", "nan", "inf", "much", ""])
def test_a_limit_that_is_none_is_wrong_usage(met, capsys):
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args(["scan.nii", f"--memory={met}"])
    assert ended.value.code == 2
    assert "should be a number above 0" in capsys.readouterr().err


def test_whole_and_broken_gibibytes_are_understood():
    parse = build_parser().parse_args
    assert [parse(["a", "--memory", text]).memory for text in ("4", "2.5")] == [4.0, 2.5]
    assert parse(["a"]).memory is None


# Runs of the whole way. Scans whose header claims much are cheap to make: their file is never read.


def claims_much(path):
    """A NIfTI file whose header claims a scan of 2 GiB; there are no voxels behind it."""
    import nibabel as nib

    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((1024, 1024, 1024))
    header.set_sform(np.diag([0.5, 0.5, 0.5, 1.0]), code=1)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    path.write_bytes(header.binaryblock + bytes(4))
    return path


@pytest.fixture
def scans(tmp_path, monkeypatch, ball_scan, save):
    folder = tmp_path / "scans"
    folder.mkdir()
    save(ball_scan(2).volume, folder / "a.nii")
    claims_much(folder / "b.nii")
    save(ball_scan(3).volume, folder / "c.nii")
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def run(ball_bundle):
    options = ["--bundle", str(ball_bundle), "--precision", "fp32", "--no-overview"]
    return lambda *arguments: main([*map(str, arguments), *options])


def test_a_scan_over_the_limit_is_refused_before_it_is_read_and_leaves_nothing(scans, run, capsys):
    assert run(scans / "b.nii", "-o", "out", "--memory", 4) == 4
    err = capsys.readouterr().err
    assert err.startswith(f"error: {scans / 'b.nii'}: b.nii (1024 x 1024 x 1024 voxels) needs up to ")
    assert "--memory allows 4. Crop the scan to the spine, or allow more: --memory " in err
    assert not Path("out").exists()
    assert run(scans / "b.nii", "-o", "out") == 2  # without a limit it is read, and found to be cut off
    assert run(scans / "b.nii", "-o", "out", "--memory", 100) == 2


@pytest.mark.parametrize("more", [(), ("--resume",)])
def test_in_a_folder_the_others_are_done(scans, run, capsys, more):
    assert run(scans, "-o", "out", "--memory", 4, *more) == 4
    assert sorted(p.name for p in Path("out").iterdir()) == ["a.vertebrae", "c.vertebrae"]
    out, err = capsys.readouterr()
    assert "2 scans done" in out
    assert err.count("error: ") == 1


@pytest.mark.parametrize("fits", ["one", "both"])
def test_the_next_scan_is_read_ahead_only_where_both_fit(scans, run, monkeypatch, fits):
    (scans / "b.nii").unlink()
    events, is_read = [], threading.Event()
    collector, real = nifti.VoxelCollector, Pipeline.analyse

    def collect(shape, name):
        events.append(f"read {name}")
        if name == "c.nii":
            is_read.set()
        return collector(shape, name)

    def analyse(self, scan, **options):
        if scan.volume.name == "a":
            is_read.wait(10 if fits == "both" else 0.5)
        events.append(f"networks on {scan.volume.name}")
        return real(self, scan, **options)

    monkeypatch.setattr("runtime.memory_limit.memory_need", lambda *_, **__: MemoryNeed(10 * GIB, 10 * GIB))
    monkeypatch.setattr(nifti, "VoxelCollector", collect)
    monkeypatch.setattr(Pipeline, "analyse", analyse)
    assert run(scans, "-o", "out", "--memory", {"one": 17, "both": 100}[fits]) == 0
    read_a, on_a, read_c, on_c = "read a.nii", "networks on a", "read c.nii", "networks on c"
    assert events == ([read_a, on_a, read_c, on_c] if fits == "one" else [read_a, read_c, on_a, on_c])


def watched(monkeypatch, needs_gib, *, fails):
    """What is read and run, in order; no network is run. Memory runs out where ``fails`` agrees to an event.

    Args:
        needs_gib: by file name, in place of the estimate.
    """
    events = []
    collector = nifti.VoxelCollector

    def meet(event):
        events.append(event)
        if fails(event, events.count(event)):
            raise OutOfMemoryError("It does not fit.")

    def collect(shape, name):
        meet(f"read {name}")
        return collector(shape, name)

    def analyse(self, scan, **options):
        meet(f"run {scan.volume.name}.nii")
        return analysis_of(scan.volume)

    def need(header, *_, **__):
        return MemoryNeed(needs_gib[header.name] * GIB, needs_gib[header.name] * GIB)

    monkeypatch.setattr("runtime.memory_limit.memory_need", need)
    monkeypatch.setattr(nifti, "VoxelCollector", collect)
    monkeypatch.setattr(Pipeline, "analyse", analyse)
    return events


# Sizes in GiB beside which what this process holds already, some GiB after many tests, is next to nothing.


def status_in_time(run, *arguments):
    """The status of a run that must end by itself."""
    statuses = []
    thread = threading.Thread(target=lambda: statuses.append(run(*arguments, "--engine", "openvino")), daemon=True)
    thread.start()
    thread.join(300)
    assert statuses, "the scans wait for each other"
    return statuses[0]


def test_a_scan_for_which_memory_ran_out_is_not_kept_by_the_one_that_waits_for_it(scans, run, monkeypatch, capsys):
    (scans / "b.nii").unlink()
    events = watched(monkeypatch, {"a.nii": 100, "c.nii": 100}, fails=lambda event, _: event == "run a.nii")
    assert status_in_time(run, scans, "-o", "out", "--memory", 170) == 4
    assert events == ["read a.nii", "run a.nii", "read c.nii", "run c.nii"], "what waits takes no room: none is redone"
    assert "a.nii: It does not fit." in capsys.readouterr().err


def test_a_scan_read_beside_another_is_read_again_alone_while_the_next_goes_on_waiting(
    scans, run, monkeypatch, ball_scan, save
):
    save(ball_scan(2).volume, scans / "b.nii")
    events = watched(
        monkeypatch,
        {"a.nii": 50, "b.nii": 50, "c.nii": 150},
        fails=lambda event, times: event == "read b.nii" and times == 1,
    )
    assert status_in_time(run, scans, "-o", "out", "--memory", 170) == 0
    assert sorted(events[:3]) == ["read a.nii", "read b.nii", "run a.nii"]
    assert events[3:] == ["read b.nii", "run b.nii", "read c.nii", "run c.nii"]


def test_a_refused_scan_is_refused_once_and_what_was_read_beside_it_is_kept(
    scans, run, monkeypatch, ball_scan, save, caplog
):
    save(ball_scan(2).volume, scans / "b.nii")
    events = watched(monkeypatch, {"a.nii": 50, "b.nii": 500, "c.nii": 50}, fails=lambda *_: False)
    with caplog.at_level("INFO", logger="runtime"):
        assert status_in_time(run, scans, "-o", "out", "--memory", 170) == 4
    assert sorted(events) == ["read a.nii", "read c.nii", "run a.nii", "run c.nii"]
    assert "beside another" not in caplog.text


def test_no_later_scan_is_let_in_beside_one_that_is_kept_alone():
    limit = limit_for(3)
    assert begin(limit, "a").wait(10)
    assert not limit.keep_alone("a")
    second = begin(limit, "b")
    assert not second.wait(0.2)
    limit.through("a")
    assert second.wait(10)
    assert begin(limit, "c").wait(10)
    assert limit.keep_alone("b")


_PEAK = """
import json, sys
from pathlib import Path
from runtime.memory_limit import MemoryLimit
from runtime.output import Outputs, write_results
from runtime.pipeline import Pipeline
from runtime.progress import NoProgress
from runtime.readers.options import ReadOptions

scan, folder, bundle = sys.argv[1:]
with Pipeline.open(bundle, engine="openvino", precision="fp32") as pipeline:
    limit, needs = MemoryLimit(1e15, pipeline.spec), []
    reading = ReadOptions(on_header=lambda header: needs.append(limit.need_of(header).to_finish))
    analysis = pipeline.analyse(scan, reading=reading)
    findings = write_results(analysis, Path(folder), outputs=Outputs(), progress=NoProgress())
print(json.dumps([needs[0] / 2**20, findings.peak_memory_mb, len(findings.vertebrae)]))
"""
"""Prints what a scan should need and what it took, MiB, and how many vertebrae were found."""


def balls_in_noise(path, shape_zyx, dtype, *, turned):
    """A scan of 0.8 mm with four balls; of float32 the very last voxel alone is no whole number, the worst case."""
    import nibabel as nib

    noise = np.random.default_rng(1).integers(-3, 4, (20, *shape_zyx[1:])).astype(np.int16)
    array = np.resize(noise, shape_zyx)
    apart = np.array(shape_zyx) // 2 - np.indices((26, 26, 26)).reshape(3, -1).T
    inside = np.linalg.norm(apart - np.array(shape_zyx) // 2 + 12.5, axis=1) < 12.5
    for shift in (-60, -20, 20, 60):
        z, y, x = (apart[inside] + [shift, 0, 0]).T
        array[z, y, x] = 400
    angle = 0.5 * turned
    affine = np.diag([0.8, 0.8, 0.8, 1.0])
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine[:3, :3] = turn @ affine[:3, :3]
    stored = array.astype(dtype)
    if dtype == np.float32:
        stored[-1, -1, -1] = 0.5
    nib.save(nib.Nifti1Image(stored.T, affine), path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape_zyx", "dtype", "turned"),
    [((240, 400, 400), np.int16, False), ((300, 300, 360), np.float32, False), ((240, 360, 400), np.int16, True)],
    ids=["int16", "float32", "turned"],
)
def test_the_estimate_is_a_bound_and_about_what_a_fresh_process_takes(tmp_path, ball_bundle, shape_zyx, dtype, turned):
    scan = balls_in_noise(tmp_path / "scan.nii", shape_zyx, dtype, turned=turned)
    command = [sys.executable, "-c", _PEAK, str(scan), str(tmp_path / "out"), str(ball_bundle)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    said = subprocess.run(command, capture_output=True, check=True, text=True, env=environment).stdout
    needed, peak, vertebrae = json.loads(said)
    print(f"needed {needed:.0f} peak {peak:.0f} vertebrae {vertebrae}")
    assert vertebrae > 0
    assert peak < needed < 1.2 * peak + RUN_BYTES / MIB, "these networks take next to nothing of what is set aside"
