"""Running a network over a volume that is larger than its window, and blending what it says where windows overlap."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from runtime.bundle import IntensityWindow
from runtime.engines.base import Session
from runtime.errors import EngineError
from runtime.intensity import normalise
from runtime.kernels.threads import run_slabs

AIR = 0.0
"""Normalised intensity of what lies outside the volume: the low end of every intensity window."""
REMEMBERED_BYTES = 2**28
"""Outputs of windows that are kept until they aren't needed any more: at 64 x 64 x 64 voxels those of 64 windows."""

Start = tuple[int, int, int]
"""A window's first voxel, z, y, x."""


@dataclass(frozen=True)
class WindowPlan:
    """Where a network's windows lie so that together they cover a volume.

    Args:
        shape_zyx: of the volume, voxels.
        window_zyx: of one window, voxels.
        starts_zyx: each window's first voxel, in scan order. Negative along an axis on which the volume is smaller
            than the window: the volume then lies in its middle and the rest is air.
    """

    shape_zyx: tuple[int, int, int]
    window_zyx: tuple[int, int, int]
    starts_zyx: tuple[tuple[int, int, int], ...]

    @property
    def padded_zyx(self) -> tuple[int, int, int]:
        """Size of what the windows cover together: the volume's, or the window's where that is larger."""
        z, y, x = (max(n, w) for n, w in zip(self.shape_zyx, self.window_zyx, strict=True))
        return z, y, x

    def starts_in(self, keep: np.ndarray) -> list[Start]:
        """The starts of the windows for which ``keep`` (bool, one for each) is true, in their order."""
        return [start for start, kept in zip(self.starts_zyx, keep, strict=True) if kept]

    def inside(self, start_zyx: tuple[int, int, int]) -> tuple[slice, slice, slice]:
        """The part of the volume that the window at ``start_zyx`` sees."""
        bounds = zip(start_zyx, self.window_zyx, self.shape_zyx, strict=True)
        z, y, x = (slice(max(0, start), min(start + size, n)) for start, size, n in bounds)
        return z, y, x


def plan_windows(shape_zyx: tuple[int, int, int], window_zyx: tuple[int, int, int], overlap: float) -> WindowPlan:
    """Spread windows evenly over a volume: as few as give at least the overlap, no voxel uncovered.

    Args:
        shape_zyx: of the volume, voxels.
        window_zyx: of the window, voxels.
        overlap: least fraction of a window that its neighbour shares, from 0 to below 1.

    Raises:
        ValueError: a size is below 1, or the overlap is not in its range.
    """
    if min(*shape_zyx, *window_zyx) < 1 or not 0 <= overlap < 1:
        raise ValueError(f"No windows of {window_zyx} with overlap {overlap} can be planned over {shape_zyx}.")
    axes = [_axis_starts(n, w, overlap) for n, w in zip(shape_zyx, window_zyx, strict=True)]
    return WindowPlan(shape_zyx, window_zyx, tuple((z, y, x) for z, y, x in product(*axes)))


def windows_reaching(hu: np.ndarray, plan: WindowPlan, threshold_hu: float) -> np.ndarray:
    """Which windows hold a voxel of at least ``threshold_hu``: bool, one for each of ``plan.starts_zyx``.

    Args:
        hu: (z, y, x) Hounsfield units of the planned volume.
        plan: the windows.
        threshold_hu: as ``LocNetSpec.skip_below_hu``.
    """
    return np.array([hu[plan.inside(start)].max() >= threshold_hu for start in plan.starts_zyx], dtype=bool)


def importance_profiles(window_zyx: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights along z, y and x, whose product weighs a window's voxels when windows are blended.

    A Gaussian around the window's centre with sigma an eighth of its size, so that it is 1 there, about 3e-4 in the
    middle of a face and never zero; float32. The weighting is that of nnU-Net (Isensee et al. 2021).
    """
    z, y, x = (np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (n / 8)) ** 2).astype(np.float32) for n in window_zyx)
    return z, y, x


def sliding_windows(
    image: np.ndarray,
    plan: WindowPlan,
    session: Session,
    *,
    batch: int = 1,
    keep: np.ndarray | None = None,
    intensity: IntensityWindow | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Run a localisation network over a volume: all that ``window_slabs`` gives, together.

    Returns:
        The heatmap (z, y, x) and the offsets (c, z, y, x; c is 0 without that output), float32; voxels that lie in no
        window that was run are 0 in both.
    """
    heatmap = np.zeros(plan.shape_zyx, np.float32)
    offsets = np.zeros((0, *plan.shape_zyx), np.float32)
    slabs = window_slabs(image, plan, session, batch=batch, keep=keep, intensity=intensity, progress=progress)
    for slab in slabs:
        if len(offsets) != len(slab.offsets):
            offsets = np.zeros((len(slab.offsets), *plan.shape_zyx), np.float32)
        heatmap[slab.planes] = slab.heatmap
        offsets[:, slab.planes] = slab.offsets
    return heatmap, offsets


@dataclass(frozen=True, eq=False)
class Slab:
    """What a network says of some planes of a volume; the arrays are used again for the next slab.

    Args:
        first: the first plane, along z.
        heatmap: (z, y, x) float32.
        offsets: (c, z, y, x) float32; c is 0 without that output.
    """

    first: int
    heatmap: np.ndarray
    offsets: np.ndarray

    @property
    def planes(self) -> slice:
        """The planes of the volume."""
        return slice(self.first, self.first + len(self.heatmap))


def window_slabs(
    image: np.ndarray,
    plan: WindowPlan,
    session: Session,
    *,
    batch: int = 1,
    keep: np.ndarray | None = None,
    intensity: IntensityWindow | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Slab]:
    """Run a localisation network over a volume, and give what it says plane by plane as soon as it is complete.

    Where windows overlap their outputs are averaged, weighted by ``importance_profiles``. Memory is that of one
    window's depth, whatever the length of the volume.

    Args:
        image: (z, y, x) float32, normalised to [0, 1]; with ``intensity`` any numbers, normalised window by window.
        plan: the windows; ``plan.shape_zyx`` is the image's shape.
        session: its outputs are named ``heatmap`` (n, 1, z, y, x) and perhaps ``offsets`` (n, c, z, y, x).
        batch: windows that are run at once, at most.
        keep: bool, which of the plan's windows to run; None for all.
        intensity: what becomes 0 and 1, None for an image that is normalised.
        progress: called with the number of windows done and to do, after each batch.

    Yields:
        Slabs from low z to high z that don't overlap; of planes in none of them nothing was run.

    Raises:
        EngineError: the network fails, an output has another shape, or holds NaN or infinity.
    """
    runner = WindowRunner(image, plan, session, batch=batch, intensity=intensity, progress=progress)
    yield from runner.slabs(np.ones(len(plan.starts_zyx), bool) if keep is None else keep)


class WindowRunner:
    """Runs a network on windows of one volume, counts them, and remembers outputs that will be asked for again.

    Args:
        image, plan, session, batch, intensity, progress: as for ``window_slabs``.
        most_bytes: of outputs that are remembered; windows whose outputs don't fit are run again when asked for.

    Raises:
        EngineError: the network has no output ``heatmap``.
    """

    def __init__(
        self,
        image: np.ndarray,
        plan: WindowPlan,
        session: Session,
        *,
        batch: int = 1,
        intensity: IntensityWindow | None = None,
        progress: Callable[[int, int], None] | None = None,
        most_bytes: int = REMEMBERED_BYTES,
    ) -> None:
        self._names = [name for name in ("heatmap", "offsets") if name in session.output_names]
        if "heatmap" not in self._names:
            raise EngineError(f"A localisation network has an output heatmap; met {', '.join(session.output_names)}.")
        self._image, self._plan, self._session = image, plan, session
        self._batch, self._intensity, self._progress = batch, intensity, progress
        self._most_bytes, self._remembered = most_bytes, dict[Start, list[np.ndarray]]()
        self._done = self._planned = 0
        self.scouted = 0
        """Windows of other volumes that ``heatmap_of`` has run."""

    @property
    def run_count(self) -> int:
        """Windows of this volume that were run; those that were run twice count twice."""
        return self._done - self.scouted

    def heatmap_of(self, image: np.ndarray, plan: WindowPlan, keep: np.ndarray) -> np.ndarray:
        """The heatmap (z, y, x) float32 of another volume, such as this one at another resolution."""
        count = int(np.count_nonzero(keep))
        before, self._planned, self.scouted = self._done, self._planned + count, self.scouted + count
        heatmap, _ = sliding_windows(
            image,
            plan,
            self._session,
            batch=self._batch,
            keep=keep,
            intensity=self._intensity,
            progress=lambda done, _: self._has_done(before + done - self._done),
        )
        return heatmap

    def run(self, starts: Sequence[Start], *, remember: bool = False) -> Iterator[tuple[Start, list[np.ndarray]]]:
        """Run windows in the order given; those that are remembered are not run, and forgotten once they were given.

        Args:
            starts: each window's first voxel, as in the plan.
            remember: keep the outputs for the next time.

        Yields:
            Each window's start, and its heatmap (1, z, y, x) and offsets (c, z, y, x), if there are any; not to be
            changed.
        """
        fresh = [start for start in starts if start not in self._remembered]
        self._planned += len(fresh)
        outputs = self._outputs(fresh)
        for start in starts:
            blocks = self._remembered.pop(start, None)
            if blocks is None:
                _, blocks = next(outputs)
            if remember:
                self._remember(start, blocks)
            yield start, blocks

    def slabs(self, keep: np.ndarray, *, remember: bool = False) -> Iterator[Slab]:
        """What the windows in ``keep`` say together; see ``window_slabs``, and ``run`` for ``remember``."""
        blend, were_known = _Blend(self._plan), bool(self._remembered)
        starts = sorted(self._plan.starts_in(keep), key=lambda start: start[0])
        for start, blocks in self.run(starts, remember=remember):
            yield from blend.complete_before(start[0])
            blend.add(start, blocks)
        if were_known:
            self._has_done(0)  # the last of them was blended, maybe long after the last was run
        yield from blend.complete_before(self._plan.shape_zyx[0])

    def _outputs(self, starts: list[Start]) -> Iterator[tuple[Start, list[np.ndarray]]]:
        picks = [self._session.output_names.index(name) for name in self._names]
        for chunk, block in _batches(self._image, self._plan, starts, self._batch, self._intensity):
            outputs = self._session(block)
            checked = [_checked(outputs[pick], name, block) for pick, name in zip(picks, self._names, strict=True)]
            self._has_done(len(chunk))
            for i, start in enumerate(chunk):
                yield start, [output[i] for output in checked]

    def _has_done(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._planned)

    def _remember(self, start: Start, blocks: list[np.ndarray]) -> None:
        size = sum(block.nbytes for block in blocks)
        if (len(self._remembered) + 1) * size <= self._most_bytes:
            # The caller of a session owns what it gave; a part of a batch would keep all of it.
            self._remembered[start] = blocks if self._batch == 1 else [block.copy() for block in blocks]


class _Blend:
    """Sums of weighted outputs, and of the weights, over the planes that the windows of one height see."""

    def __init__(self, plan: WindowPlan) -> None:
        self._profiles = importance_profiles(plan.window_zyx)
        self._first = 0
        self._shape = (min(plan.window_zyx[0], plan.shape_zyx[0]), *plan.shape_zyx[1:])
        self._weight = np.zeros(self._shape, np.float32)
        self._totals: list[np.ndarray] = []

    def add(self, start: tuple[int, int, int], blocks: list[np.ndarray]) -> None:
        """Add one window's outputs, each (c, z, y, x); planes before it are to be completed first."""
        if not self._totals:
            self._totals = [np.zeros((block.shape[0], *self._shape), np.float32) for block in blocks]
        here = (start[0] - self._first, *start[1:])
        depth, height, width = (len(profile) for profile in self._profiles)
        run_slabs(lambda first, last: self._add_planes(here, blocks, first, last), depth, voxels_each=height * width)

    def _add_planes(self, here: Start, blocks: list[np.ndarray], first: int, last: int) -> None:
        """Add the planes ``first`` to ``last`` of a window that begins ``here``."""
        from runtime.kernels.windows import add_weight, add_window

        add_weight(self._profiles, here, self._weight, first, last)
        for total, block in zip(self._totals, blocks, strict=True):
            add_window(block, self._profiles, here, total, first, last)

    def complete_before(self, plane: int) -> Iterator[Slab]:
        """What is known of the planes before this one, to which no window is added any more."""
        from runtime.kernels.windows import divide_by_weight

        count = min(plane - self._first, self._shape[0])
        if count > 0 and self._totals:
            channels = [channel for total in self._totals for channel in total]
            for channel in channels:
                divide_by_weight(channel[None, :count], self._weight[:count])
            offsets = self._totals[1] if len(self._totals) > 1 else np.zeros((0, *self._shape), np.float32)
            yield Slab(self._first, self._totals[0][0, :count], offsets[:, :count])
            for volume in (self._weight, *channels):
                _drop_planes(volume, count)
        self._first = max(self._first, plane)


def _drop_planes(volume: np.ndarray, count: int) -> None:
    """Move the planes from ``count`` on to the beginning, plane by plane, and fill up with 0."""
    for z in range(len(volume)):
        volume[z] = volume[z + count] if z + count < len(volume) else 0


def _axis_starts(size: int, window: int, overlap: float) -> list[int]:
    if size <= window:
        return [-((window - size) // 2)]
    step = max(1, math.floor(window * (1 - overlap) + 1e-9))
    intervals = math.ceil((size - window) / step)
    return [i * (size - window) // intervals for i in range(intervals + 1)]


def _batches(
    image: np.ndarray,
    plan: WindowPlan,
    starts: list[Start],
    batch: int,
    intensity: IntensityWindow | None,
) -> Iterator[tuple[list[Start], np.ndarray]]:
    """Starts of the windows of each batch and their voxels (n, 1, z, y, x); the array is used again for the next."""
    block = np.empty((min(batch, max(1, len(starts))), 1, *plan.window_zyx), np.float32)
    for first in range(0, len(starts), batch):
        chunk = starts[first : first + batch]
        for voxels, start in zip(block[:, 0], chunk, strict=False):
            seen = plan.inside(start)
            here = tuple(slice(part.start - s, part.stop - s) for part, s in zip(seen, start, strict=True))
            if voxels[here].size < voxels.size:
                voxels.fill(AIR)
            voxels[here] = image[seen] if intensity is None else normalise(image[seen], intensity)
        yield chunk, block[: len(chunk)]


def _checked(output: np.ndarray, name: str, block: np.ndarray) -> np.ndarray:
    """The output, once it is found to fit the batch it was made from and to be finite."""
    n, _, *window = block.shape
    fits = output.ndim == 5 and output.shape[0] == n and list(output.shape[2:]) == window
    if not fits or output.dtype != np.float32 or (name == "heatmap" and output.shape[1] != 1):
        raise EngineError(f"The network's {name} is {output.dtype} {output.shape} for an image {block.shape}.")
    if not np.isfinite(output).all():
        raise EngineError(f"The network's {name} holds NaN or infinity: try another engine or precision fp32.")
    return output
