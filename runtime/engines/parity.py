"""Does an engine say what the reference says? Figures of what differs, limits for them, and a gate for fresh engines.

The limits are on what a reader of the findings would notice: centres, masks, grades, levels. Raw differences of the
networks' outputs are told beside them and limited only for FP32, where they show a wrong graph before it matters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from runtime.bundle import FracSegNetSpec, IntensityWindow, LevelNetSpec, LocNetSpec, read_spec
from runtime.engines.base import Session
from runtime.errors import EngineError
from runtime.localise import centres_of
from runtime.volume import Grid

NetworkSpec = LocNetSpec | FracSegNetSpec | LevelNetSpec

OFFSET_HEAT = 0.1
"""Offsets are compared where the reference's heatmap exceeds this: elsewhere nobody reads them."""
SAME_CENTRE_MM = 8.0
"""Centres further apart are two: no two vertebral bodies are this near."""
SAME_WINDOW = 4
"""How often one window is put into a batch, to see whether its place in it matters."""


@dataclass(frozen=True)
class Parity:
    """How far an engine is from the reference, over all that was compared; figures of several parts are ``joined``.

    Args:
        heatmap: largest difference, probability.
        offsets: largest difference where the heatmap exceeds ``OFFSET_HEAT``, voxels.
        mask: largest difference of a voxel's probability.
        grade: largest shift of a grade's probability.
        level: largest shift of a level's probability.
        heights_mm: largest difference of a regressed height.
        centres: how many the reference found.
        centres_lost: found by one of the two and not by the other within ``SAME_CENTRE_MM``.
        centre_shift_mm: largest distance between the same centre of both.
        masks: how many masks of the reference hold a voxel.
        voxels_shared: in both masks, over all masks.
        voxels_of_both: in the one and in the other, added; ``dice`` is made of these.
        smallest_dice: of the one mask that agrees least.
        grades: how many were compared.
        grades_changed: how many of them have another most probable grade.
        levels: how many were compared.
        levels_changed: how many of them have another most probable level.
        not_finite: outputs with NaN or infinity.
        batch: largest difference between equal windows of one batch, and between them and the window alone.
        repeat: largest difference between two runs on the same input.
        failed: why the engine could not be run on something, or ``""``.
    """

    heatmap: float = 0.0
    offsets: float = 0.0
    mask: float = 0.0
    grade: float = 0.0
    level: float = 0.0
    heights_mm: float = 0.0
    centres: int = 0
    centres_lost: int = 0
    centre_shift_mm: float = 0.0
    masks: int = 0
    voxels_shared: int = 0
    voxels_of_both: int = 0
    smallest_dice: float = 1.0
    grades: int = 0
    grades_changed: int = 0
    levels: int = 0
    levels_changed: int = 0
    not_finite: int = 0
    batch: float = 0.0
    repeat: float = 0.0
    failed: str = ""

    @property
    def dice(self) -> float:
        """Of all masks' voxels together, 0..1; 1 where both have none."""
        return 2 * self.voxels_shared / self.voxels_of_both if self.voxels_of_both else 1.0


def joined(parts: Sequence[Parity]) -> Parity:
    """The figures of all parts together: counts are added, of the rest the worst is kept."""
    whole = Parity()
    for part in parts:
        values: dict[str, object] = {}
        for name in (field.name for field in fields(Parity)):
            one, other = getattr(whole, name), getattr(part, name)
            if isinstance(one, str):
                values[name] = one or other
            elif isinstance(one, int):
                values[name] = one + other
            else:
                values[name] = min(one, other) if name == "smallest_dice" else max(one, other)
        whole = replace(whole, **values)  # type: ignore[arg-type]
    return whole


@dataclass(frozen=True)
class Limits:
    """What an engine may differ by; see ``Parity``. None is no limit.

    Args:
        centre_shift_mm: largest shift.
        dice: of all masks together, at least.
        smallest_dice: of each mask; small ones, cut by the scan's edge, change much with one voxel.
        grade: largest shift of a probability.
        level: likewise.
        changed: largest share of grades, and of levels, that may change.
        repeat: largest difference of a repeated run.
        batch: largest difference that a window's place in a batch may make to a probability.
        heatmap: largest raw difference, or None.
        offsets: likewise.
        mask: likewise.
    """

    centre_shift_mm: float
    dice: float
    smallest_dice: float
    grade: float
    level: float
    changed: float
    repeat: float
    batch: float
    heatmap: float | None = None
    offsets: float | None = None
    mask: float | None = None


LIMITS: Mapping[str, Limits] = {
    "fp32": Limits(0.25, 0.9999, 0.995, 5e-3, 1e-2, 0.0, 1e-6, 1e-3, heatmap=5e-3, offsets=2e-2, mask=1e-2),
    "fp16": Limits(0.5, 0.999, 0.99, 0.02, 0.05, 0.0, 1e-6, 5e-3),
    "bf16": Limits(1.0, 0.995, 0.95, 0.10, 0.20, 0.02, 1e-6, 5e-2),
    "int8": Limits(1.0, 0.99, 0.95, 0.10, 0.20, 0.02, 1e-6, 5e-2),
}
"""By precision; docs/decisions/0013 says why, with what was measured."""


def faults(found: Parity, limits: Limits) -> tuple[str, ...]:
    """What is past the limits, one clause each; none when the engine passes."""
    at_most = {
        "outputs with NaN or infinity": (found.not_finite, 0),
        "centres found by one and not by the other": (found.centres_lost, 0),
        "centre shift mm": (found.centre_shift_mm, limits.centre_shift_mm),
        "grade probability shift": (found.grade, limits.grade),
        "level probability shift": (found.level, limits.level),
        "grades changed": (found.grades_changed, limits.changed * found.grades),
        "levels changed": (found.levels_changed, limits.changed * found.levels),
        "difference within a batch of one window": (found.batch, limits.batch),
        "difference on repetition": (found.repeat, limits.repeat),
        "heatmap difference": (found.heatmap, limits.heatmap),
        "offset difference": (found.offsets, limits.offsets),
        "mask difference": (found.mask, limits.mask),
    }
    said = [found.failed] if found.failed else []
    # Written so that a figure that is no number is a fault.
    said += [f"{name} {met:.3g}, limit {most:.3g}" for name, (met, most) in at_most.items()
             if most is not None and not met <= most]  # fmt: skip
    at_least = {"mask Dice": (found.dice, limits.dice), "one mask's Dice": (found.smallest_dice, limits.smallest_dice)}
    said += [f"{name} {met:.5f}, limit {least}" for name, (met, least) in at_least.items() if not met >= least]
    return tuple(said)


def compare_maps(
    reference: tuple[np.ndarray, np.ndarray], met: tuple[np.ndarray, np.ndarray], grid: Grid, spec: LocNetSpec
) -> Parity:
    """A localisation network's heatmap (z, y, x) and offsets (c, z, y, x), and the centres read out of them."""
    if not all(np.isfinite(part).all() for part in met):
        return Parity(not_finite=1)
    ours, theirs = ([centre.centre_ras_mm for centre in centres_of(*maps, grid, spec)] for maps in (reference, met))
    nearest = np.concatenate(nearest_mm(ours, theirs))
    same = nearest <= SAME_CENTRE_MM
    return Parity(
        heatmap=_largest(reference[0] - met[0]),
        offsets=_largest((reference[1] - met[1]) * (reference[0] > OFFSET_HEAT)),
        centres=len(ours),
        centres_lost=int((~same).sum()),
        centre_shift_mm=float(nearest[same].max(initial=0.0)),
    )


def nearest_mm(some: npt.ArrayLike, others: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """How far the nearest of the other side is, mm: from each of the points (n, 3) and of the others (m, 3).

    Infinity where the other side has none.
    """
    a, b = (np.asarray(points, np.float64).reshape(-1, 3) for points in (some, others))
    apart = np.linalg.norm(a[:, None] - b[None], axis=-1)
    return apart.min(axis=1, initial=np.inf), apart.min(axis=0, initial=np.inf)


def compare_crops(reference: Mapping[str, np.ndarray], met: Mapping[str, np.ndarray], *, threshold: float) -> Parity:
    """A crop network's outputs by name, each with the crops along its first axis: mask, grade, heights, or level."""
    if not all(np.isfinite(met[name]).all() for name in reference):
        return Parity(not_finite=1)
    return joined([_compare_output(name, reference[name], met[name], threshold) for name in reference])


def _compare_output(name: str, reference: np.ndarray, met: np.ndarray, threshold: float) -> Parity:
    difference = _largest(reference - met)
    if name == "mask":
        return joined([Parity(mask=difference), *_dices(reference > threshold, met > threshold)])
    changed = int((reference.argmax(axis=1) != met.argmax(axis=1)).sum())
    if name == "grade":
        return Parity(grade=difference, grades=len(reference), grades_changed=changed)
    if name == "level":
        return Parity(level=difference, levels=len(reference), levels_changed=changed)
    return Parity(heights_mm=_largest(reference[:, :3] - met[:, :3])) if name == "heights" else Parity()


def _dices(reference: np.ndarray, met: np.ndarray) -> list[Parity]:
    """Agreement of masks (n, c, z, y, x), bool."""
    space = (2, 3, 4)
    shared, both = (reference & met).sum(axis=space).ravel(), (reference.sum(axis=space) + met.sum(axis=space)).ravel()
    return [
        Parity(masks=1, voxels_shared=int(s), voxels_of_both=int(b), smallest_dice=2 * float(s) / float(b))
        for s, b in zip(shared, both, strict=True)
        if b
    ]


def compare_batches(session: Session, image: np.ndarray) -> Parity:
    """An engine against itself: one image (1, 1, z, y, x) alone, alone again, and ``SAME_WINDOW`` times in a batch.

    Probabilities alone are compared: offsets and heights where nothing is there are unbounded.
    """
    single, again = session(image), session(image)
    four = session(np.repeat(image, SAME_WINDOW, axis=0))
    compared = [i for i, name in enumerate(session.output_names) if name not in ("offsets", "heights")]
    if not all(np.isfinite(outputs[i]).all() for outputs in (single, again, four) for i in compared):
        return Parity(not_finite=1)
    return Parity(
        batch=max(_largest(four[i] - single[i]) for i in compared),
        repeat=max(_largest(again[i] - single[i]) for i in compared),
    )


def _largest(difference: np.ndarray) -> float:
    return float(np.abs(difference).max(initial=0.0))


def short_gate(onnx: Path, candidate: Session, *, precision: str, reference: Session | None = None) -> Parity:
    """Refuse an engine that does not say what the FP32 network says, on a few drawn windows; takes seconds on a CPU.

    Args:
        onnx: the FP32 ONNX file in its bundle, ``bundle.json`` beside it.
        candidate: the engine under test.
        precision: what it computes in; its ``LIMITS`` apply.
        reference: what is right; None for the FP32 file on this machine's processor.

    Returns:
        The figures, which are within the limits.

    Raises:
        EngineError: they are past the limits, and the message says which; or the engine failed.
        BundleError: the bundle can't be read.
    """
    with ExitStack() as stack:
        right = reference or stack.enter_context(processor_session(onnx))
        found = compare_networks(right, candidate, network_spec(onnx))
    wrong = faults(found, LIMITS[precision])
    if wrong:
        raise EngineError(
            f"{onnx.name} in {precision} on {candidate.info.name} does not say what the FP32 network says "
            f"({'; '.join(wrong)}); use another precision or engine."
        )
    return found


def compare_networks(
    reference: Session, candidate: Session, spec: NetworkSpec, images: Sequence[np.ndarray] | None = None
) -> Parity:
    """One network on both, image by image (1, 1, z, y, x); None for ``probe_images``."""
    given = probe_images(spec) if images is None else images
    parts = [compare_image(reference(image), candidate(image), candidate.output_names, spec) for image in given]
    return joined([*parts, compare_batches(candidate, given[0])])


def compare_image(
    reference: Sequence[np.ndarray], met: Sequence[np.ndarray], names: Sequence[str], spec: NetworkSpec
) -> Parity:
    """What two sessions of one network gave for one image, their outputs in the order of ``names``."""
    ours, theirs = dict(zip(names, reference, strict=True)), dict(zip(names, met, strict=True))
    if not isinstance(spec, LocNetSpec):
        return compare_crops(ours, theirs, threshold=getattr(spec, "mask_threshold", 0.5))
    grid = Grid(spec.window_zyx, np.diag([*[spec.spacing_mm] * 3, 1.0]))
    none = np.zeros((1, 0, *spec.window_zyx), np.float32)
    right, found = ((maps["heatmap"][0, 0], maps.get("offsets", none)[0]) for maps in (ours, theirs))
    return compare_maps(right, found, grid, spec)


def network_spec(onnx: Path) -> NetworkSpec:
    """What the bundle around an ONNX file says of its network.

    Raises:
        EngineError: the file is none of a bundle's networks.
        BundleError: ``bundle.json`` can't be read.
    """
    found = [n for n in read_spec(onnx.parent).networks if n.file == onnx.name]
    if not found:
        raise EngineError(f"{onnx} is none of the networks of the bundle around it, so it cannot be checked.")
    return found[0]


def processor_session(onnx: Path) -> Session:
    """The FP32 network on this machine's processor: by onnxruntime where it is installed, else by OpenVINO.

    Raises:
        EngineError: neither can run it.
    """
    from runtime.engines import openvino_cpu, ort

    if ort.preflight().available:
        return ort.processor_session(onnx, reason="the reference")
    return openvino_cpu.open_session(onnx, precision="fp32", device=0, threads=None, reason="the reference")


def rounding_session(graph: Path) -> Session:
    """A graph of ``runtime.rounded_graph`` on this machine's processor: by onnxruntime alone.

    OpenVINO takes a number's way to FP16 and back for nothing and leaves it out, so that a graph that overflows on a
    GPU would pass.

    Raises:
        EngineError: onnxruntime can't run it here.
    """
    from runtime.engines import ort

    unusable = ort.why_not_loadable()
    if unusable:
        raise EngineError(f"Without its GPU an engine's rounding can be checked by onnxruntime alone: {unusable}.")
    return ort.processor_session(graph, reason="rounded as on a GPU")


def probe_images(spec: NetworkSpec) -> list[np.ndarray]:
    """Inputs (1, 1, z, y, x) float32 that are drawn: a spine, another with noise, and one flat value.

    In a crop the vertebra lies where the bundle has it: off the middle, where crops are shifted.
    """
    shape = spec.window_zyx if isinstance(spec, LocNetSpec) else spec.crop_zyx
    rng = np.random.default_rng(20)
    shift = spec.crop_shift_mm if isinstance(spec, FracSegNetSpec) else (0.0, 0.0, 0.0)
    spine, tilted = (
        _drawn_spine(shape, spec.spacing_mm, spec.intensity, middle_mm=(shift[0], shift[1], shift[2] + further_up_mm))
        for further_up_mm in (0.0, 9.0)
    )
    noisy = (tilted + rng.normal(0, 0.03, shape)).clip(0, 1)
    images = (spine, noisy, np.full(shape, 0.5))
    return [np.ascontiguousarray(image, np.float32)[None, None] for image in images]


def _drawn_spine(
    shape_zyx: tuple[int, int, int],
    spacing_mm: float,
    window: IntensityWindow,
    *,
    middle_mm: tuple[float, float, float],
) -> np.ndarray:
    """Vertebral bodies of 25 mm with denser shells, discs of 7 mm between them, canal and arch behind, in a trunk.

    ``middle_mm`` is where the image's middle lies, (x, y, z) RAS from a vertebra's centre.
    """
    axes = zip(shape_zyx, middle_mm[::-1], strict=True)
    z, y, x = np.meshgrid(*(spacing_mm * (np.arange(n) - (n - 1) / 2) + at for n, at in axes), indexing="ij")
    z = (z + 0.1 * y + 16.0) % 32.0 - 16.0
    hu = np.where((x / 150) ** 2 + ((y + 20) / 100) ** 2 < 1, 45.0, -1000.0)
    across = np.hypot(x / 22.0, y / 16.0)
    hu[(across < 1) & (np.abs(z) < 12.5)] = 180.0
    hu[(across < 1) & (np.abs(z) < 12.5) & ((across > 0.9) | (np.abs(z) > 11.0))] = 450.0
    ring = np.hypot(x / 15.0, (y + 26.0) / 12.0)
    hu[(ring > 0.7) & (ring < 1) & (np.abs(z) < 9.0)] = 400.0
    hu[(np.abs(x) < 3) & (y < -36.0) & (y > -66.0) & (np.abs(z) < 8.0)] = 300.0
    return np.clip((hu - window.low_hu) / (window.high_hu - window.low_hu), 0.0, 1.0)
