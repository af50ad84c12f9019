"""A scan in a GPU's memory, and networks on parts of it; the twin of ``runtime.scan_access``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from runtime.bundle import IntensityWindow, LocNetSpec
from runtime.device.resample import resample
from runtime.device.session import DeviceSession, offers_device_tensors
from runtime.device.stream import DeviceArray, Stream
from runtime.device.voting import density_peaks, peak_support, refine_peaks, vote_map
from runtime.device.windows import gather_windows, sliding_windows, windows_reaching
from runtime.engines.base import Session
from runtime.errors import EngineError
from runtime.localise import Located, check_offsets, confident_centres
from runtime.scan_access import Outputs
from runtime.scout import WindowCount
from runtime.volume import Grid, Volume
from runtime.windows import plan_windows


class DevicePath:
    """The work of a pipeline on one GPU: one stream, which the pipeline's threads use in turns. Use it in ``with``.

    Args:
        device: GPU number of the pipeline's sessions.

    Raises:
        EngineError: the driver refuses.
    """

    def __init__(self, device: int) -> None:
        self._stream = Stream(device)
        self._lock = threading.Lock()

    @contextmanager
    def turn(self) -> Iterator[Stream]:
        """The stream, for this thread alone; all that was enqueued is done when it is left."""
        with self._lock, self._stream.active():
            yield self._stream

    @contextmanager
    def scan(self, volume: Volume) -> Iterator[ScanOnDevice]:
        """A scan that is brought onto the GPU when it is first used, and leaves it with the context."""
        scan = ScanOnDevice(self, volume)
        try:
            yield scan
        finally:
            with self.turn():
                scan.free()

    def close(self) -> None:
        """Give the stream up; closing twice is fine."""
        with self._lock:
            self._stream.close()

    def __enter__(self) -> DevicePath:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class ScanOnDevice:
    """A scan's voxels on a GPU; see ``ScanAccess``. ``DevicePath.scan`` makes and frees it.

    Its first use uploads it, and raises OutOfMemoryError where it does not fit.
    """

    def __init__(self, path: DevicePath, volume: Volume) -> None:
        self._path, self._volume = path, volume
        self._voxels: DeviceArray | None = None

    def image_on(self, grid: Grid) -> ImageOnDevice:
        """See ``ScanAccess``."""
        with self._path.turn() as on:
            return ImageOnDevice(self._path, resample(self._there(on), self._volume.grid, grid, on), grid)

    def _there(self, on: Stream) -> DeviceArray:
        if self._voxels is None:
            self._voxels = on.upload(self._volume.array)
        return self._voxels

    def run_crops(
        self, session: Session, grids: Sequence[Grid], intensity: IntensityWindow, *, batch: int | None = None
    ) -> Outputs:
        """See ``ScanAccess``."""

        def fill(block: DeviceArray, first: int, on: Stream) -> None:
            here = on.zeros((1, 3), np.int64)
            for i in range(block.shape[0]):
                crop = resample(self._there(on), self._volume.grid, grids[first + i], on)
                gather_windows(crop, here, 0, intensity, block[i : i + 1], on)

        return _run(self._path, session, len(grids), _one_shape(grids), fill, batch=batch)

    def free(self) -> None:
        """Let go of the voxels."""
        self._voxels = None


class ImageOnDevice:
    """A scan on another grid, on a GPU; see ``ImageAccess``."""

    def __init__(self, path: DevicePath, hu: DeviceArray, grid: Grid) -> None:
        self._path, self._hu, self._grid = path, hu, grid

    def locate(
        self,
        spec: LocNetSpec,
        session: Session,
        *,
        progress: Callable[[int, int], None] | None = None,
        exhaustive: bool = False,
    ) -> Located:
        """See ``ImageAccess``; nothing but the list of centres leaves the GPU.

        The pass is always exhaustive: here windows take milliseconds, and waiting for each to say where to go on would
        take what is saved.
        """
        network = _device_session(session)
        with self._path.turn() as on:
            plan = plan_windows(self._grid.shape_zyx, spec.window_zyx, spec.overlap)
            keep = windows_reaching(self._hu, plan, spec.skip_below_hu, on)
            count = WindowCount(int(np.count_nonzero(keep)), len(keep), 0)
            if not keep.any():
                return Located((), count)
            heatmap, offsets = sliding_windows(
                self._hu, plan, network, spec.intensity, on, keep=keep, progress=progress
            )
            check_offsets(spec, 0 if offsets is None else int(offsets.shape[0]))
            density = heatmap
            if offsets is not None and spec.variant == "F":
                density = vote_map(heatmap, offsets, on, threshold=spec.heatmap_threshold)
            separation = spec.peak_separation_voxels
            peaks = density_peaks(density, on, threshold=spec.peak_threshold, separation_voxels=separation)
            places = refine_peaks(density, peaks, on, radius_voxels=spec.refine_radius_voxels)
            confidences, votes = peak_support(density, heatmap, peaks, on, radius_voxels=separation)
        return Located(confident_centres(self._grid.to_ras_mm(places), confidences, votes, spec), count)

    def run_windows(
        self,
        session: Session,
        starts_zyx: npt.NDArray[np.intp],
        shape_zyx: tuple[int, int, int],
        intensity: IntensityWindow,
    ) -> Outputs:
        """See ``ImageAccess``."""

        def fill(block: DeviceArray, first: int, on: Stream) -> None:
            starts = on.upload(starts_zyx[first : first + block.shape[0]].astype(np.int64))
            gather_windows(self._hu, starts, 0, intensity, block, on)

        return _run(self._path, session, len(starts_zyx), shape_zyx, fill)


def _run(
    path: DevicePath,
    session: Session,
    count: int,
    shape_zyx: tuple[int, int, int],
    fill: Callable[[DeviceArray, int, Stream], None],
    *,
    batch: int | None = None,
) -> Outputs:
    """Run ``count`` images, which ``fill`` puts into the session's input; the outputs come back to the host."""
    network = _device_session(session)
    at_once = min(network.max_batch, batch or network.max_batch)
    parts = []
    with path.turn() as on:
        for first in range(0, count, at_once):
            block = network.device_input(min(at_once, count - first))
            if tuple(block.shape[2:]) != shape_zyx:
                raise EngineError(
                    f"The network's images are {tuple(block.shape[2:])}, not {shape_zyx} as its bundle says."
                )
            fill(block, first, on)
            parts.append([on.download(output) for output in network.enqueue(int(block.shape[0]), on)])
    return tuple(np.concatenate(pieces) for pieces in zip(*parts, strict=True))


def _device_session(session: Session) -> DeviceSession:
    if not offers_device_tensors(session):
        raise TypeError(f"{type(session).__name__} keeps no tensors on the GPU.")
    return session


def _one_shape(grids: Sequence[Grid]) -> tuple[int, int, int]:
    shapes = {grid.shape_zyx for grid in grids}
    if len(shapes) != 1:
        raise ValueError(f"Crops of one batch need one shape; met {sorted(shapes)}.")
    return shapes.pop()
