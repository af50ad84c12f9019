"""Writes phantoms in the file layout of VerSe, with body masks, grades and true heights beside it.

Stored arrays are indexed (x, y, z) as nibabel does, in the grid's own axis order; centroids are in voxels of that
array, and the first entry of the centroid file names the direction in which each of its axes grows, as in VerSe.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.volume import Grid
from train.phantom.render import PhantomScan


def _write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Writes to a temporary name beside ``path``, then renames, so that no reader meets half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, *, indent: int | None = None) -> None:
    """Writes ``value`` as JSON, whole or not at all."""
    _write_whole(path, lambda at: _write_text(at, json.dumps(value, indent=indent) + "\n"))


def write_nifti(path: Path, array: npt.NDArray[Any], grid: Grid) -> None:
    """Writes a (z, y, x) array as NIfTI with the grid's affine in both its forms."""
    import nibabel

    image = nibabel.Nifti1Image(np.ascontiguousarray(array.transpose(2, 1, 0)), np.array(grid.affine_ras))
    image.set_sform(np.array(grid.affine_ras), code=1)
    image.set_qform(np.array(grid.affine_ras), code=1)
    _write_whole(path, lambda at: nibabel.save(image, at))


def to_int16(hu: npt.NDArray[np.float32]) -> npt.NDArray[np.int16]:
    """HU as a scanner stores them."""
    return np.round(hu).astype(np.int16)


def centroid_json(scan: PhantomScan) -> list[dict[str, Any]]:
    """The entries of VerSe's centroid file."""
    grid = scan.volume.grid
    entries: list[dict[str, Any]] = [{"direction": list(grid.orientation)}]
    for v in scan.vertebrae:
        z, y, x = (round(float(n), 2) for n in grid.to_index_zyx(v.centre_ras_mm))
        entries.append({"label": v.label, "X": x, "Y": y, "Z": z})
    return entries


def heights_json(scan: PhantomScan) -> list[dict[str, Any]]:
    """True heights, mm, and what else is known of every vertebra."""
    return [
        {
            "label": v.label,
            "level": v.level,
            "grade": v.grade,
            "shape": v.shape,
            "complete": v.complete,
            "height_loss": round(v.height_loss, 4),
            "centre_ras_mm": [round(float(n), 3) for n in v.centre_ras_mm],
            "heights_mm": [round(h, 3) for h in v.heights_mm],
            "original_heights_mm": [round(h, 3) for h in v.original_heights_mm],
        }
        for v in scan.vertebrae
    ]


def write_verse(scan: PhantomScan, root: Path, subject: str, *, split: str = "training") -> None:
    """Writes one subject: scan, masks, centroids, heights; its grades are added to ``root/genant.json``.

    Args:
        root: the data set's folder; ``rawdata`` and ``derivatives`` are made in it.
        subject: the part after ``sub-``; split: under which the grades are listed.
    """
    raw, derived = root / "rawdata" / f"sub-{subject}", root / "derivatives" / f"sub-{subject}"
    grid = scan.volume.grid
    write_nifti(raw / f"sub-{subject}_ct.nii.gz", to_int16(scan.volume.array), grid)
    write_nifti(derived / f"sub-{subject}_seg-vert_msk.nii.gz", scan.mask, grid)
    write_nifti(derived / f"sub-{subject}_seg-body_msk.nii.gz", scan.body_mask, grid)
    write_json(derived / f"sub-{subject}_seg-subreg_ctd.json", centroid_json(scan))
    write_json(derived / f"sub-{subject}_heights.json", heights_json(scan), indent=1)
    path = root / "genant.json"
    grades: dict[str, dict[str, int]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    grades.setdefault(split, {}).update(
        {f"sub-{subject}_{v.label}": v.grade for v in scan.vertebrae if v.level[0] != "C"}
    )
    write_json(path, grades, indent=4)
