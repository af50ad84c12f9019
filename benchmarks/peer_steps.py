"""The steps of a scan as one would write them with well-known libraries: what the runtime is measured against.

Arrays are (z, y, x) as in the runtime. Each function does what the runtime's own does, in a common way; none is made
slower than the libraries' documentation suggests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from runtime.resample import index_map_zyx
from runtime.volume import LPS_FROM_RAS, Grid

FILL_HU = -1024.0
MONAI_SIGMA_SCALE = 0.125
"""MONAI's default; the runtime's windows are weighted likewise."""


def read_with_nibabel(path: Path) -> tuple[np.ndarray, Grid]:
    """Float32 HU and where they lie."""
    import nibabel

    image: Any = nibabel.load(path)
    array = np.ascontiguousarray(image.get_fdata(dtype=np.float32).T)
    z, y, x = array.shape
    return array, Grid((z, y, x), image.affine)


def read_integers_with_nibabel(path: Path) -> np.ndarray:
    """The voxels as they are stored: the fastest that nibabel offers."""
    import nibabel

    image: Any = nibabel.load(path)
    return np.asanyarray(image.dataobj).T


def read_with_simpleitk(path: Path) -> np.ndarray:
    """The voxels as they are stored."""
    import SimpleITK as sitk  # noqa: N813  the name all of its users know

    array: np.ndarray = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    return array


def write_with_nibabel(path: Path, labels: np.ndarray, grid: Grid) -> None:
    """A label volume; nibabel compresses with level 1."""
    import nibabel

    nibabel.save(nibabel.Nifti1Image(labels.T, np.array(grid.affine_ras)), path)


def itk_image(array: np.ndarray, grid: Grid) -> Any:
    """An array with its place, as SimpleITK has it."""
    import SimpleITK as sitk  # noqa: N813

    image = sitk.GetImageFromArray(array)
    _place(image, grid)
    return image


def _place(image: Any, grid: Grid) -> None:
    affine = LPS_FROM_RAS @ grid.affine_ras
    image.SetSpacing(grid.spacing_xyz_mm)
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / np.array(grid.spacing_xyz_mm)).ravel().tolist())


def resample_with_simpleitk(image: Any, target: Grid, *, smooth: bool = False) -> np.ndarray:
    """Trilinear, float32 HU; ``smooth`` filters before by a Gaussian of half the target's spacing, against aliasing."""
    import SimpleITK as sitk  # noqa: N813

    if smooth:
        image = sitk.SmoothingRecursiveGaussian(image, [s / 2 for s in target.spacing_xyz_mm])
    resampler = sitk.ResampleImageFilter()
    affine = LPS_FROM_RAS @ target.affine_ras
    resampler.SetSize(target.shape_zyx[::-1])
    resampler.SetOutputSpacing(target.spacing_xyz_mm)
    resampler.SetOutputOrigin(affine[:3, 3].tolist())
    resampler.SetOutputDirection((affine[:3, :3] / np.array(target.spacing_xyz_mm)).ravel().tolist())
    resampler.SetInterpolator(sitk.sitkLinear)
    resampler.SetOutputPixelType(sitk.sitkFloat32)
    resampler.SetDefaultPixelValue(FILL_HU)
    array: np.ndarray = sitk.GetArrayFromImage(resampler.Execute(image))
    return array


def resample_with_scipy(array: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """Trilinear, float32 HU."""
    from scipy import ndimage

    matrix = index_map_zyx(source, target)
    out: np.ndarray = ndimage.affine_transform(
        array, matrix[:, :3], matrix[:, 3], output_shape=target.shape_zyx, output=np.float32, order=1, cval=FILL_HU
    )
    return out


def votes_with_numpy(heatmap: np.ndarray, offsets: np.ndarray, *, threshold: float) -> np.ndarray:
    """Algorithm 1 of ``runtime.voting``."""
    voxels = np.argwhere(heatmap > np.float32(threshold))
    at = tuple(voxels.T)
    aims = np.stack([channel[at] for channel in offsets], axis=1).astype(np.float64)
    targets = np.floor(voxels + aims + 0.5)
    inside = ((targets >= 0) & (targets < heatmap.shape)).all(axis=1)
    votes = np.zeros(heatmap.shape, np.float32)
    np.add.at(votes, tuple(targets[inside].astype(np.int64).T), heatmap[at][inside])
    return votes


def peaks_with_skimage(votes: np.ndarray, *, threshold: float, separation_voxels: float) -> np.ndarray:
    """(n, 3) peaks, z, y, x, in scan order; nothing higher within a cube of the separation."""
    from skimage.feature import peak_local_max

    found = peak_local_max(votes, min_distance=int(separation_voxels), threshold_abs=threshold, exclude_border=False)
    return found[np.lexsort(found.T[::-1])].astype(np.int64)


def peaks_with_scipy(votes: np.ndarray, *, threshold: float, separation_voxels: float) -> np.ndarray:
    """(n, 3) peaks, z, y, x, in scan order: where a maximum filter of the separation leaves the value as it is."""
    from scipy import ndimage

    highest = ndimage.maximum_filter(votes, size=2 * int(separation_voxels) + 1, mode="constant")
    return np.argwhere((votes == highest) & (votes > np.float32(threshold)))


def monai_windows(
    image: np.ndarray,
    predict: Callable[[torch.Tensor], tuple[torch.Tensor, ...]],
    *,
    window_zyx: tuple[int, int, int],
    overlap: float,
) -> tuple[np.ndarray, ...]:
    """MONAI's sliding window with Gaussian weights, one window at a time: outputs (c, z, y, x) over the image."""
    from monai.inferers import SlidingWindowInferer

    inferer = SlidingWindowInferer(window_zyx, 1, overlap, mode="gaussian", sigma_scale=MONAI_SIGMA_SCALE)
    with torch.inference_mode():
        outputs: Any = inferer(torch.from_numpy(image)[None, None], predict)
    return tuple(output[0].float().numpy() for output in outputs)


Resampled = Callable[[np.ndarray, Grid, Grid], np.ndarray]


def simpleitk_onto(probability: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """A probability map on another grid by SimpleITK."""
    return resample_with_simpleitk(itk_image(probability, source), target)


def paste(masks: Iterable[tuple[Grid, np.ndarray]], target: Grid, onto: Resampled, *, threshold: float) -> np.ndarray:
    """Labels 1..n on a grid, the more probable mask in front; each is resampled onto the box that it reaches."""
    labels = np.zeros(target.shape_zyx, np.uint8)
    best = np.zeros(target.shape_zyx, np.float32)
    for label, (grid, probability) in enumerate(masks, start=1):
        corners = target.to_index_zyx(grid.corners_ras_mm())
        first = np.clip(np.floor(corners.min(axis=0)), 0, target.shape_zyx).astype(int)
        last = np.clip(np.ceil(corners.max(axis=0)) + 1, first, target.shape_zyx).astype(int)
        if (last <= first).any():
            continue
        box = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
        here = onto(probability, grid, target.sub_grid(first.tolist(), (last - first).tolist()))
        wins = (here >= threshold) & (here > best[box])
        labels[box][wins] = label
        best[box][wins] = here[wins]
    return labels
