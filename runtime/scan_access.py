"""Networks on parts of one scan, wherever its voxels lie: in the host's memory here, on a GPU in ``runtime.device``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from runtime.bundle import IntensityWindow, LocNetSpec
from runtime.crops import extract_crops
from runtime.engines.base import Session
from runtime.intensity import normalise
from runtime.localise import Located, locate
from runtime.resample import resample
from runtime.volume import Grid, Volume

Outputs = tuple[np.ndarray, ...]
"""A network's outputs in the order of the session's ``output_names``, float32, on the host."""


class ImageAccess(Protocol):
    """A scan on another grid."""

    def locate(
        self,
        spec: LocNetSpec,
        session: Session,
        *,
        progress: Callable[[int, int], None] | None = None,
        exhaustive: bool = False,
    ) -> Located:
        """Find the centres of the vertebrae; see ``runtime.localise.locate``."""
        ...

    def run_windows(
        self,
        session: Session,
        starts_zyx: npt.NDArray[np.intp],
        shape_zyx: tuple[int, int, int],
        intensity: IntensityWindow,
    ) -> Outputs:
        """Run a network on the windows of ``shape_zyx`` voxels that begin at ``starts_zyx`` (n, 3) and lie inside."""
        ...


class ScanAccess(Protocol):
    """A scan that networks can be run on."""

    def image_on(self, grid: Grid) -> ImageAccess:
        """The scan on another grid, as ``runtime.resample.resample`` gives it."""
        ...

    def run_crops(
        self, session: Session, grids: Sequence[Grid], intensity: IntensityWindow, *, batch: int | None = None
    ) -> Outputs:
        """Run a network on the crops that ``runtime.crops.extract_crops`` gives, normalised.

        ``batch`` of them, at most, go through it at once; None for as many as it takes.
        """
        ...


ScanOpener = Callable[[Volume], AbstractContextManager[ScanAccess]]
"""Gives a context in which a scan can be reached."""


@dataclass(frozen=True, eq=False)
class ImageOnHost:
    """A scan on another grid, in the host's memory."""

    hu: np.ndarray
    grid: Grid

    def locate(
        self,
        spec: LocNetSpec,
        session: Session,
        *,
        progress: Callable[[int, int], None] | None = None,
        exhaustive: bool = False,
    ) -> Located:
        """See ``ImageAccess``."""
        return locate(self.hu, self.grid, spec, session, progress=progress, exhaustive=exhaustive)

    def run_windows(
        self,
        session: Session,
        starts_zyx: npt.NDArray[np.intp],
        shape_zyx: tuple[int, int, int],
        intensity: IntensityWindow,
    ) -> Outputs:
        """See ``ImageAccess``."""
        ends = starts_zyx + np.array(shape_zyx)
        blocks = [
            self.hu[tuple(slice(a, b) for a, b in zip(start, end, strict=True))]
            for start, end in zip(starts_zyx.tolist(), ends.tolist(), strict=True)
        ]
        return session(normalise(np.stack(blocks)[:, None], intensity))


@dataclass(frozen=True, eq=False)
class ScanOnHost:
    """A scan in the host's memory."""

    volume: Volume

    def image_on(self, grid: Grid) -> ImageOnHost:
        """See ``ScanAccess``."""
        return ImageOnHost(resample(self.volume, grid), grid)

    def run_crops(
        self, session: Session, grids: Sequence[Grid], intensity: IntensityWindow, *, batch: int | None = None
    ) -> Outputs:
        """See ``ScanAccess``."""
        images = normalise(extract_crops(self.volume, grids)[:, None], intensity)
        at_once = batch or len(images)
        parts = [session(images[first : first + at_once]) for first in range(0, len(images), at_once)]
        return parts[0] if len(parts) == 1 else tuple(map(np.concatenate, zip(*parts, strict=True)))


def scan_opener(sessions: Sequence[Session], resources: ExitStack) -> ScanOpener:
    """How a pipeline's scans are brought to where its engine wants them: onto the GPU if all sessions take them there.

    Args:
        sessions: of one engine and device.
        resources: owns what stays open between scans.

    Raises:
        EngineError: the GPU's driver refuses.
    """
    from runtime.device.session import offers_device_tensors

    devices = [session.device for session in sessions if offers_device_tensors(session)]
    if len(devices) < len(sessions):
        return lambda volume: nullcontext(ScanOnHost(volume))
    from runtime.device.scan import DevicePath

    return resources.enter_context(DevicePath(devices[0])).scan
