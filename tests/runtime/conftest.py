"""A tiny bundle whose networks really find bright balls, and scans with balls in a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from runtime.anatomy import LEVEL_NAMES
from runtime.bundle import BundleSpec, FracSegNetSpec, IntensityWindow, LevelNetSpec, LocNetSpec, write_bundle
from runtime.volume import Grid, Volume

RADIUS_MM = 10.0
PITCH_MM = 30.0
BALL_HU = 400


@dataclass(frozen=True, eq=False)
class BallScan:
    """A scan and the truth about it: centres from cranial to caudal, and their balls as labels on its grid."""

    volume: Volume
    centres_ras_mm: np.ndarray
    labels: np.ndarray


def oriented_grid(low_mm: np.ndarray, size_mm: np.ndarray, spacing_mm: Sequence[float], orientation: str) -> Grid:
    """A grid over a box of the patient whose index axes grow in the named directions."""
    linear, counts, origin = np.zeros((3, 3)), [], np.array(low_mm, float)
    for axis, letter in enumerate(orientation):
        patient = next(i for i, pair in enumerate(("LR", "PA", "IS")) if letter in pair)
        sign = 1 if letter in "RAS" else -1
        linear[patient, axis] = sign * spacing_mm[axis]
        counts.append(int(size_mm[patient] / spacing_mm[axis]))
        if sign < 0:
            origin[patient] += (counts[-1] - 1) * spacing_mm[axis]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = linear, origin
    return Grid((counts[2], counts[1], counts[0]), affine)


def make_scan(
    balls: int = 3,
    *,
    orientation: str = "RAS",
    spacing_mm: Sequence[float] = (1.5, 1.5, 2.0),
    name: str = "balls",
    top_cut_mm: float = 0.0,
) -> BallScan:
    """``balls`` bright balls on a curved line in soft tissue; ``top_cut_mm`` of the scan's top are cut off.

    The tissue has noise: without any it would be padding.
    """
    low = np.array([-30.0, 20.0, -400.0])
    height_mm = PITCH_MM * max(balls, 2) + 10.0 - top_cut_mm
    grid = oriented_grid(low, np.array([60.0, 60.0, height_mm]), spacing_mm, orientation)
    z_mm = low[2] + 20.0 + PITCH_MM * np.arange(balls)[::-1]
    centres = np.stack([4.0 * np.sin(z_mm / 50.0), 50.0 + 3.0 * np.cos(z_mm / 40.0), z_mm], axis=1)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape_zyx), indexing="ij"), axis=-1)
    points = grid.to_ras_mm(index)
    hu = np.random.default_rng(0).integers(-3, 4, grid.shape_zyx).astype(np.int16)
    labels = np.zeros(grid.shape_zyx, np.uint8)
    for number, centre in enumerate(centres, start=1):
        inside = np.linalg.norm(points - centre, axis=-1) < RADIUS_MM
        hu[inside], labels[inside] = BALL_HU, number
    return BallScan(Volume(hu, grid, name), centres, labels)


def save_scan(scan: Volume, path: Path) -> Path:
    import nibabel as nib

    image = nib.Nifti1Image(np.ascontiguousarray(scan.array.T), scan.grid.affine_ras)
    nib.save(image, path)
    return path


def _locnet(path: Path) -> None:
    """Heatmap: how much of the 9-voxel cube around a voxel is bright; highest in the middle of a ball."""
    import onnx
    from onnx import TensorProto, helper

    shape = ["n", 1, "z", "y", "x"]
    constants = [
        helper.make_tensor("level", TensorProto.FLOAT, [], [0.6]),
        helper.make_tensor("gain", TensorProto.FLOAT, [], [1.4]),
        helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]),
        helper.make_tensor("one", TensorProto.FLOAT, [], [1.0]),
    ]
    nodes = [
        helper.make_node("Greater", ["image", "level"], ["is_bright"]),
        helper.make_node("Cast", ["is_bright"], ["bright"], to=TensorProto.FLOAT),
        helper.make_node("AveragePool", ["bright"], ["share"], kernel_shape=[9] * 3, pads=[4] * 6, count_include_pad=1),
        helper.make_node("Mul", ["share", "gain"], ["scaled"]),
        helper.make_node("Clip", ["scaled", "zero", "one"], ["heatmap"]),
    ]
    graph = helper.make_graph(
        nodes,
        "locnet",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("heatmap", TensorProto.FLOAT, shape)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _fracsegnet(path: Path, crop: int) -> None:
    """Mask and body: bright voxels in the middle of the crop; grade 1; heights 20, 15 and 21 mm, losses 5, 25, 0 %."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    middle = np.zeros((1, 1, crop, crop, crop), np.float32)
    middle[..., 3:-3, 3:-3, 3:-3] = 1.0
    constants = [
        numpy_helper.from_array(np.float32(40.0), "steepness"),
        numpy_helper.from_array(np.float32(0.6), "level"),
        numpy_helper.from_array(middle, "middle"),
        numpy_helper.from_array(np.zeros((1, 4), np.float32), "no_weights_4"),
        numpy_helper.from_array(np.log(np.array([0.1, 0.7, 0.15, 0.05], np.float32)), "logits"),
        numpy_helper.from_array(np.zeros((1, 6), np.float32), "no_weights_6"),
        numpy_helper.from_array(np.array([20, 15, 21, 0.05, 0.25, 0.0], np.float32), "fixed_heights"),
    ]
    nodes = [
        helper.make_node("Sub", ["image", "level"], ["above"]),
        helper.make_node("Mul", ["above", "steepness"], ["steep"]),
        helper.make_node("Sigmoid", ["steep"], ["bright"]),
        helper.make_node("Mul", ["bright", "middle"], ["vertebra"]),
        helper.make_node("Concat", ["vertebra", "vertebra"], ["mask"], axis=1),
        helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"], axis=1),
        helper.make_node("Gemm", ["flat", "no_weights_4", "logits"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["grade"], axis=1),
        helper.make_node("Gemm", ["flat", "no_weights_6", "fixed_heights"], ["heights"]),
    ]
    graph = helper.make_graph(
        nodes,
        "fracsegnet",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, crop, crop, crop])],
        [
            helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["n", 2, crop, crop, crop]),
            helper.make_tensor_value_info("grade", TensorProto.FLOAT, ["n", 4]),
            helper.make_tensor_value_info("heights", TensorProto.FLOAT, ["n", 6]),
        ],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def level_hu(name: str) -> float:
    """How bright a ball is that the third network takes for this level; "none" too is bright enough to be found."""
    return 300.0 + 20.0 * LEVEL_NAMES.index(name)


def coloured(scan: BallScan, levels: Sequence[str | float]) -> BallScan:
    """The scan with its balls, from cranial to caudal, as bright as these levels, or of these Hounsfield units."""
    hu = scan.volume.array.copy()
    for number, level in enumerate(levels, start=1):
        hu[scan.labels == number] = round(level_hu(level) if isinstance(level, str) else level)
    return replace(scan, volume=replace(scan.volume, array=hu))


def _levelnet(path: Path, crop: int) -> None:
    """Level: the one whose brightness is nearest to the crop's brightest voxel; its neighbours get next to nothing."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    window = IntensityWindow(-1000.0, 1000.0)
    codes = [(level_hu(name) - window.low_hu) / (window.high_hu - window.low_hu) for name in LEVEL_NAMES]
    constants = [
        numpy_helper.from_array(np.array([codes], np.float32), "codes"),
        numpy_helper.from_array(np.float32(-1e5), "steepness"),
    ]
    nodes = [
        helper.make_node("GlobalMaxPool", ["image"], ["brightest"]),
        helper.make_node("Flatten", ["brightest"], ["flat"], axis=1),
        helper.make_node("Sub", ["flat", "codes"], ["apart"]),
        helper.make_node("Mul", ["apart", "apart"], ["square"]),
        helper.make_node("Mul", ["square", "steepness"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["level"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "levelnet",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, crop, crop, crop])],
        [helper.make_tensor_value_info("level", TensorProto.FLOAT, ["n", len(LEVEL_NAMES)])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def ball_spec(crop: int = 36) -> BundleSpec:
    window = IntensityWindow(-1000.0, 1000.0)
    return BundleSpec(
        name="balls",
        version="0.0.1",
        locnet=LocNetSpec(
            file="locnet.onnx",
            variant="H",
            spacing_mm=2.0,
            window_zyx=(32, 32, 32),
            overlap=0.5,
            intensity=window,
            heatmap_threshold=0.5,
            peak_threshold=0.5,
            peak_separation_voxels=5.0,
            refine_radius_voxels=3.0,
            min_confidence=0.4,
            skip_below_hu=100.0,
        ),
        fracsegnet=FracSegNetSpec(
            file="fracsegnet.onnx",
            spacing_mm=1.0,
            crop_zyx=(crop, crop, crop),
            intensity=window,
            mask_channels=("vertebra", "body"),
            mask_threshold=0.5,
            grade_names=("0", "1", "2", "3"),
            has_heights=True,
        ),
        files={},
        licence="Apache-2.0",
        intended_use="Tests only.",
        training={"data": "synthetic balls"},
    )


@pytest.fixture(scope="session")
def ball_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, in a folder, that finds the balls of ``make_scan``."""
    spec = ball_spec()
    source = tmp_path_factory.mktemp("networks")
    _locnet(source / "locnet.onnx")
    _fracsegnet(source / "fracsegnet.onnx", spec.fracsegnet.crop_zyx[0])
    folder = tmp_path_factory.mktemp("bundle") / "balls"
    write_bundle(spec, {file: source / file for file in ("locnet.onnx", "fracsegnet.onnx")}, folder)
    return folder


@pytest.fixture(scope="session")
def level_bundle(ball_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As ``ball_bundle``, with a third network that reads a ball's level from its brightness; see ``coloured``."""
    crop = 16
    levelnet = LevelNetSpec("levelnet.onnx", 2.0, (crop,) * 3, IntensityWindow(-1000.0, 1000.0), LEVEL_NAMES, 0.5)
    source = tmp_path_factory.mktemp("levelnet") / "levelnet.onnx"
    _levelnet(source, crop)
    files = {file: ball_bundle / file for file in ("locnet.onnx", "fracsegnet.onnx")}
    folder = tmp_path_factory.mktemp("bundle") / "levels"
    write_bundle(replace(ball_spec(), levelnet=levelnet), {**files, "levelnet.onnx": source}, folder)
    return folder


@pytest.fixture(scope="session")
def level_scan() -> Callable[..., BallScan]:
    """A scan of as many balls as levels are given, from cranial to caudal; see ``coloured``."""
    return lambda levels, **options: coloured(make_scan(len(levels), **options), levels)


@pytest.fixture(scope="session")
def ball_scan() -> Callable[..., BallScan]:
    """``make_scan``."""
    return make_scan


@pytest.fixture(scope="session")
def save() -> Callable[[Volume, Path], Path]:
    """``save_scan``: a volume as NIfTI."""
    return save_scan
