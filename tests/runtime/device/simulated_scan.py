"""Scans on the GPU, with the TensorRT session on its stand-in, say what scans in the host's memory say."""

from dataclasses import replace

import numpy as np
import onnx
import pytest

from runtime.bundle import IntensityWindow, write_bundle
from runtime.crops import crop_grid
from runtime.device import scan as device_scan
from runtime.device.scan import DevicePath
from runtime.engines import EngineChoice, engine_module
from runtime.errors import EngineError
from runtime.looks import second_look
from runtime.resample import working_grid
from runtime.scan_access import ScanOnHost
from runtime.volume import Volume
from tests.runtime import conftest
from tests.runtime.device import fake_tensorrt
from tests.runtime.device.fake_session import FakeDeviceSession
from tests.runtime.device.stream_in_simulator import CountingStream, HostDriver

INTENSITY = IntensityWindow(-1000.0, 1000.0)
SPEC = replace(
    conftest.ball_spec().locnet, variant="F", spacing_mm=5.0, window_zyx=(8, 8, 8), overlap=0.2, heatmap_threshold=0.6,
    peak_threshold=0.1, peak_separation_voxels=3.0, refine_radius_voxels=2.0,
)  # fmt: skip


def bright(image):
    """Heatmap: the image itself. Offsets: up the slope of brightness, so that a ball's votes gather in its middle."""
    slope = np.stack([np.roll(image[:, 0], -1, axis) - np.roll(image[:, 0], 1, axis) for axis in (1, 2, 3)], axis=1)
    return image.copy(), np.round(3 * slope, 2).astype(np.float32)


@pytest.fixture
def streams(monkeypatch):
    """The streams that are opened, which count what crosses."""
    opened = []

    def stream(device):
        opened.append(CountingStream(device))
        return opened[-1]

    monkeypatch.setattr(device_scan, "Stream", stream)
    return opened


@pytest.fixture(scope="module")
def scan():
    return conftest.make_scan(2, spacing_mm=(5.0, 4.0, 6.0)).volume


def test_centres_and_nothing_but_short_lists_leave_the_gpu(scan, streams):
    session, grid = FakeDeviceSession(bright, SPEC.window_zyx), working_grid(scan.grid, SPEC.spacing_mm)
    for spec in (SPEC, replace(SPEC, variant="H", heatmap_threshold=0.1)):
        expected = ScanOnHost(scan).image_on(grid).locate(spec, session).centres
        with DevicePath(0) as path, path.scan(scan) as there:
            image = there.image_on(grid)
            with streams[-1].counted() as crossed:
                assert image.locate(spec, session).centres == expected
        assert len(expected) >= 2
        assert max(crossed.downloaded) < 8 * 200
        assert max(crossed.uploaded) < 8 * 200


def test_a_scan_is_uploaded_once_as_it_is(scan, streams):
    with DevicePath(0) as path, path.scan(scan) as there:
        there.image_on(working_grid(scan.grid, 5.0))
    assert streams[0].uploaded[0] == scan.array.nbytes
    assert all(size < scan.array.nbytes / 5 for size in streams[0].uploaded[1:])


def test_a_scan_without_bone_has_no_centres_and_runs_nothing(scan):
    session = FakeDeviceSession(bright, SPEC.window_zyx)
    soft = Volume(np.full_like(scan.array, 40), scan.grid)
    with DevicePath(0) as path, path.scan(soft) as there:
        assert there.image_on(working_grid(soft.grid, 5.0)).locate(SPEC, session).centres == ()
    assert session.batches == []


def test_a_network_without_offsets_is_refused_for_variant_f(scan):
    session = FakeDeviceSession(lambda image: (image.copy(),), SPEC.window_zyx, names=("heatmap",))
    with DevicePath(0) as path, path.scan(scan) as there, pytest.raises(EngineError, match="three offsets"):
        there.image_on(working_grid(scan.grid, 5.0)).locate(SPEC, session)


def same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("count", [1, 3, 5])
def test_crops_and_windows(scan, count):
    """Also more than the session takes at once, and crops that leave the scan."""
    session = FakeDeviceSession(bright, (5, 4, 6), max_batch=3)
    rng = np.random.default_rng(count)
    corners = scan.grid.corners_ras_mm()
    places = rng.uniform(corners.min(axis=0), corners.max(axis=0), (count, 3))
    grids = [crop_grid(place, spacing_mm=5.0, shape_zyx=(5, 4, 6)) for place in places]
    whole = working_grid(scan.grid, 6.0)
    starts = rng.integers(0, np.array(whole.shape_zyx) - (5, 4, 6) + 1, (count, 3))
    at_home = ScanOnHost(scan)
    with DevicePath(0) as path, path.scan(scan) as there:
        for batch in (None, 1, 2, 9):
            found = there.run_crops(session, grids, INTENSITY, batch=batch)
            same(found, at_home.run_crops(session, grids, INTENSITY, batch=batch))
            same(found, at_home.run_crops(session, grids, INTENSITY))
        image = there.image_on(whole)
        found = image.run_windows(session, starts, (5, 4, 6), INTENSITY)
    same(found, at_home.image_on(whole).run_windows(session, starts, (5, 4, 6), INTENSITY))


@pytest.mark.parametrize("shift", [(0.0, -18.0, -4.0), (7.5, 0.0, 40.0)])
def test_crops_that_are_shifted_are_those_of_the_host(scan, shift):
    spec = replace(conftest.ball_spec().fracsegnet, spacing_mm=5.0, crop_zyx=(5, 4, 6), crop_shift_mm=shift)
    session = FakeDeviceSession(bright, spec.crop_zyx)
    corners = scan.grid.corners_ras_mm()
    centre = (corners.min(axis=0) + corners.max(axis=0)) / 2
    grids = [spec.grid_around(centre), spec.grid_around(centre + 3.0)]
    plain = [replace(spec, crop_shift_mm=(0.0, 0.0, 0.0)).grid_around(centre)] * 2
    with DevicePath(0) as path, path.scan(scan) as there:
        found, unshifted = (there.run_crops(session, which, INTENSITY) for which in (grids, plain))
    same(found, ScanOnHost(scan).run_crops(session, grids, INTENSITY))
    assert not np.array_equal(found[0][0], unshifted[0][0])


@pytest.mark.parametrize("interleaved", [False, True])
def test_second_looks_are_those_of_the_host(scan, interleaved):
    spec = replace(conftest.ball_spec().fracsegnet, spacing_mm=5.0, crop_zyx=(5, 4, 6), mirrored=True)
    spec = replace(spec, interleaved=interleaved)
    session = FakeDeviceSession(bright, spec.crop_zyx)
    corners = scan.grid.corners_ras_mm()
    first = spec.grid_around((corners.min(axis=0) + corners.max(axis=0)) / 2)
    grids = [first, second_look(first, spec)]
    with DevicePath(0) as path, path.scan(scan) as there:
        found = there.run_crops(session, grids, INTENSITY)
    same(found, ScanOnHost(scan).run_crops(session, grids, INTENSITY))
    turned = np.array_equal(found[0][0], found[0][1][..., ::-1])
    assert turned is not interleaved


def test_another_crop_than_the_networks_is_refused(scan):
    session = FakeDeviceSession(bright, (5, 4, 6))
    grids = [crop_grid((0, 0, 0), spacing_mm=5.0, shape_zyx=(4, 4, 4))]
    with DevicePath(0) as path, path.scan(scan) as there:
        with pytest.raises(EngineError, match=r"images are \(5, 4, 6\), not \(4, 4, 4\)"):
            there.run_crops(session, grids, INTENSITY)
        with pytest.raises(TypeError, match="keeps no tensors"):
            there.run_crops(object(), grids, INTENSITY)


# The whole pipeline, on the stand-in of TensorRT.


def _fix_window(path, window):
    """Let the network's windows have one size, as engines need."""
    model = onnx.load(path)
    for tensor in (*model.graph.input, *model.graph.output):
        for axis, size in zip(tensor.type.tensor_type.shape.dim[2:], window, strict=True):
            axis.dim_value = size
    onnx.save(model, path)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A bundle like ``level_bundle`` with windows and crops small enough for the simulator."""
    source = tmp_path_factory.mktemp("networks")
    crop, window = 10, (12, 12, 12)
    conftest._locnet(source / "locnet.onnx")
    _fix_window(source / "locnet.onnx", window)
    conftest._fracsegnet(source / "fracsegnet.onnx", crop)
    conftest._levelnet(source / "levelnet.onnx", crop)
    spec = conftest.ball_spec(crop)
    levelnet = conftest.LevelNetSpec("levelnet.onnx", 3.0, (crop,) * 3, INTENSITY, conftest.LEVEL_NAMES, 0.5)
    spec = replace(
        spec,
        locnet=replace(
            spec.locnet, spacing_mm=4.0, window_zyx=window, overlap=0.3, peak_threshold=0.05, min_confidence=0.05
        ),
        fracsegnet=replace(spec.fracsegnet, spacing_mm=3.0, crop_shift_mm=(0.0, -3.0, -1.5)),
        levelnet=levelnet,
    )
    names = ("locnet.onnx", "fracsegnet.onnx", "levelnet.onnx")
    folder = tmp_path_factory.mktemp("bundle") / "small"
    write_bundle(spec, {name: source / name for name in names}, folder)
    return folder


@pytest.fixture
def tensorrt(monkeypatch, tmp_path):
    """Let the pipeline choose the stand-in of TensorRT, in FP32."""
    streams = []

    def stream(device):
        streams.append(CountingStream(device))
        return streams[-1]

    fake_tensorrt.pretend_machine(monkeypatch, HostDriver(), stream, tmp_path)
    choice = EngineChoice(engine_module("tensorrt"), "tensorrt", "fp32", 0, "a test")
    monkeypatch.setattr("runtime.pipeline.select_engine", lambda *_, **__: choice)
    return streams


def test_findings_and_labels_are_those_of_the_processor(bundle, request):
    from runtime.pipeline import Pipeline

    scan = conftest.coloured(conftest.make_scan(3, spacing_mm=(4.0, 4.0, 4.0)), ["T12", "L1", "L2"]).volume
    with Pipeline.open(bundle, engine="onnxruntime", threads=1) as pipeline:
        expected = pipeline.analyse(scan)
    streams = request.getfixturevalue("tensorrt")
    with Pipeline.open(bundle) as pipeline:
        assert pipeline.engine_info.device == "NVIDIA RTX 4090"
        found = pipeline.analyse(scan)
    assert len(expected.findings.vertebrae) >= 2
    assert found.findings.vertebrae == expected.findings.vertebrae
    np.testing.assert_array_equal(found.labels, expected.labels)
    *sessions, path = streams
    assert [stream.uploaded for stream in sessions] == [[], [], []], "tensors went by way of the host"
    assert path.uploaded.count(scan.array.nbytes) == 1
