"""A segmentation over the images that it refers to, both as an archive gives them back: a picture to look at.

``python -m tests.pacs.overlay FOLDER PICTURE.png``, where FOLDER holds the objects of one study.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom import dcmread

COLOURS = ((86, 180, 233), (240, 228, 66), (245, 140, 0), (235, 60, 150), (0, 158, 115))
LOW_HU, HIGH_HU = -200.0, 600.0


@dataclass(frozen=True)
class Overlaid:
    """Images from the feet to the head, and on their pixels the segments' numbers.

    Args:
        hu: (z, y, x).
        labels: (z, y, x) uint8, 0 or a segment's number.
        spacing_zyx_mm: of the voxels.
        names: of the segments, by number.
    """

    hu: np.ndarray
    labels: np.ndarray
    spacing_zyx_mm: tuple[float, float, float]
    names: dict[int, str]


def overlaid(folder: Path) -> Overlaid:
    """Read a folder's axial CT images and its segmentation by their own headers alone, without this software."""
    objects = [dcmread(path) for path in sorted(folder.iterdir())]
    images = sorted((one for one in objects if one.Modality == "CT"), key=lambda one: one.ImagePositionPatient[2])
    (seg,) = (one for one in objects if one.Modality == "SEG")
    hu = np.stack([one.pixel_array * float(one.RescaleSlope) + float(one.RescaleIntercept) for one in images])
    z_of = {one.SOPInstanceUID: z for z, one in enumerate(images)}
    labels = np.zeros(hu.shape, np.uint8)
    frames = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    for frame, groups in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        source = groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        position = groups.PlanePositionSequence[0].ImagePositionPatient
        assert position == images[z_of[source]].ImagePositionPatient
        labels[z_of[source]][frame > 0] = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
    step_mm = float(images[1].ImagePositionPatient[2] - images[0].ImagePositionPatient[2])
    rows_mm, columns_mm = map(float, images[0].PixelSpacing)
    names = {one.SegmentNumber: one.SegmentLabel for one in seg.SegmentSequence}
    return Overlaid(hu, labels, (step_mm, rows_mm, columns_mm), names)


def draw(study: Overlaid) -> Image.Image:
    """A sagittal and a coronal slice through the middle of the mask, outlined, the head up."""
    marked = np.argwhere(study.labels)
    _, y, x = marked.mean(axis=0).astype(int) if len(marked) else np.array(study.labels.shape) // 2
    z_mm, y_mm, x_mm = study.spacing_zyx_mm
    views = [
        _view(study.hu[:, :, x], study.labels[:, :, x], z_mm / y_mm),
        _view(study.hu[:, y], study.labels[:, y], z_mm / x_mm),
    ]
    picture = Image.new("RGB", (sum(view.width for view in views) + 10, max(view.height for view in views)))
    picture.paste(views[0], (0, 0))
    picture.paste(views[1], (views[0].width + 10, 0))
    return picture


def _view(hu: np.ndarray, labels: np.ndarray, stretch: float) -> Image.Image:
    grey = (255 * np.clip((hu - LOW_HU) / (HIGH_HU - LOW_HU), 0, 1)).astype(np.uint8)
    shown = np.stack([grey] * 3, axis=-1)
    padded = np.pad(labels, 1)
    edge = np.zeros(labels.shape, bool)
    for dz, dx in ((0, 1), (2, 1), (1, 0), (1, 2)):
        edge |= padded[dz : dz + labels.shape[0], dx : dx + labels.shape[1]] != labels
    for number in np.unique(labels[labels > 0]):
        shown[edge & (labels == number)] = COLOURS[number % len(COLOURS)]
    picture = Image.fromarray(shown[::-1])
    return picture.resize((2 * picture.width, round(2 * picture.height * stretch)), Image.Resampling.NEAREST)


if __name__ == "__main__":
    draw(overlaid(Path(sys.argv[1]))).save(sys.argv[2])
