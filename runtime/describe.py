"""What is told of each vertebra, and the warnings that go with it: the last step before the findings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from runtime.anatomy import is_cervical
from runtime.bundle import BundleSpec
from runtime.findings import Heights, Vertebra
from runtime.levels import LevelCall
from runtime.paste import paste_masks
from runtime.segment import SegmentedVertebra
from runtime.volume import Grid, Volume

THICK_SLICES_MM = 5.0


def describe(
    number: int,
    found: SegmentedVertebra,
    volume: Volume,
    labels: np.ndarray,
    *,
    call: LevelCall | None,
    mask_threshold: float,
) -> Vertebra:
    """One vertebra as the findings report it.

    Volume and mean HU are those of the scan's own voxels. Where the edge of the scan cuts the vertebral body, its
    heights mean nothing, so grade, heights and loss are None; where it cuts only arch or processes, they are kept
    and a warning says that the vertebra is incomplete. Vertebrae known to be cervical get neither grade nor loss: no
    training data grade them.

    Args:
        number: 1..n, its label in ``labels``.
        found: what the network said.
        volume: the scan.
        labels: (z, y, x) uint8 on the scan's grid.
        call: what is said of its level, or None where the bundle can't tell.
        mask_threshold: probability from which a voxel belongs to a mask.
    """
    block = _block(found.grid, volume.grid)
    mask = labels[block] == number
    hu = volume.array[block]
    measured = mask
    if found.body is not None and mask.size:
        grid = volume.grid.sub_grid([s.start for s in block], mask.shape)
        measured = paste_masks([(found.grid, found.body)], grid, threshold=mask_threshold) > 0
    level = None if call is None else call.level
    whole, graded = found.body_complete, found.body_complete and not is_cervical(level)
    x, y, z = found.centre_ras_mm
    heights = found.heights_mm
    return Vertebra(
        index=number,
        level=level,
        level_confidence=None if call is None or level is None else round(call.confidence, 4),
        centre_ras_mm=(round(x, 2), round(y, 2), round(z, 2)),
        confidence=round(min(1.0, max(0.0, found.confidence)), 4),
        complete=found.complete,
        grade=int(np.argmax(found.grade_probabilities)) if graded else None,
        grade_probabilities=tuple(round(p, 4) for p in found.grade_probabilities) if graded else None,
        heights_mm=Heights(*(round(h, 2) for h in heights)) if whole and heights is not None else None,
        height_loss=round(found.height_loss, 4) if graded and found.height_loss is not None else None,
        volume_ml=round(float(mask.sum()) * volume.grid.voxel_volume_mm3 / 1000.0, 3),
        mean_hu=round(float(hu[measured].mean(dtype=np.float64)), 1) if measured.any() else None,
        mask_label=number,
    )


def _block(part: Grid, scan: Grid) -> tuple[slice, slice, slice]:
    """The scan's voxels that the crop ``part`` can reach, as slices along z, y and x; may be empty."""
    corners = scan.to_index_zyx(part.corners_ras_mm())
    reach = max(part.spacing_xyz_mm) / np.array(scan.spacing_xyz_mm[::-1])
    low = np.floor(corners.min(axis=0) - reach).astype(int)
    high = np.ceil(corners.max(axis=0) + reach).astype(int) + 1
    z, y, x = (slice(max(0, a), max(0, a, min(n, b))) for a, b, n in zip(low, high, scan.shape_zyx, strict=True))
    return z, y, x


def notice(spec: BundleSpec) -> str:
    """What table, picture and findings must say of a bundle; ``""`` for one that is fit for clinical use."""
    if spec.clinical:
        return ""
    if "synthetic" in str(dict(spec.training)).lower():
        return "Trained on synthetic data. Not for clinical use."
    return "Not for clinical use."


def warnings(
    spec: BundleSpec, volume: Volume, vertebrae: Sequence[Vertebra], *, dropped: int, rejected: int
) -> tuple[str, ...]:
    """Everything that a reader of the findings should know before trusting them.

    Args:
        spec: of the bundle.
        volume: the scan.
        vertebrae: what was found.
        dropped: centres that were too many.
        rejected: centres that were held for none when levels were told.
    """
    said = [text for text in (notice(spec),) if text]
    said += volume.notes
    thickest_mm = max(volume.grid.spacing_xyz_mm)
    if thickest_mm > THICK_SLICES_MM:
        said.append(
            f"Slices are {thickest_mm:.1f} mm apart; above {THICK_SLICES_MM:.0f} mm, heights and grades are unreliable."
        )
    if dropped:
        said.append(f"The network saw {dropped} more vertebrae than a patient has; the least confident were dropped.")
    if rejected:
        said.append(
            f"{rejected} candidate {_plural(rejected, 'centre was', 'centres were')} rejected as not a vertebra."
        )
    if not vertebrae:
        said.append("No vertebra was found.")
    elif spec.levelnet is None:
        said.append("Levels are not given: this bundle has no network that tells them.")
    if any(v.heights_mm is not None for v in vertebrae):
        said.append("Heights and height loss are estimated by the network, not measured on the mask.")
    return (*said, *_remarks(vertebrae, tells_levels=spec.levelnet is not None))


def _remarks(vertebrae: Sequence[Vertebra], *, tells_levels: bool) -> Iterator[str]:
    """What is to be said of single vertebrae, each remark with the numbers of those it is about."""
    for text, members in (
        ("without a level, because none is probable enough", [v for v in vertebrae if tells_levels and not v.level]),
        ("cut by the edge of the scan", [v for v in vertebrae if not v.complete]),
        (
            "without a grade, because the edge of the scan cuts the body",
            [v for v in vertebrae if v.grade is None and not is_cervical(v.level)],
        ),
        ("no grade: cervical vertebrae are not graded", [v for v in vertebrae if is_cervical(v.level)]),
        ("without a mask", [v for v in vertebrae if v.volume_ml == 0.0]),
    ):
        if members:
            numbers = ", ".join(str(v.index) for v in members)
            yield f"{_plural(len(members), 'Vertebra', 'Vertebrae')} {numbers}: {text}."


def _plural(count: int, one: str, many: str) -> str:
    return one if count == 1 else many
