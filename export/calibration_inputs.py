"""What networks are fed when they are calibrated: windows and crops of phantoms, or of a user's scans."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from export.phantom_inputs import crop_images, level_images, window_images
from runtime.bundle import Bundle
from runtime.engines.base import Session
from runtime.engines.parity import processor_session
from runtime.errors import InputError
from runtime.pipeline import Pipeline
from runtime.readers import read_scan
from train.config import FracSegNetRun, LevelNetRun, LocNetRun, Run


def phantom_images(run: Run, input_zyx: tuple[int, int, int], count: int) -> list[np.ndarray]:
    """Inputs (1, 1, z, y, x) float32 of phantoms that training doesn't draw, of the size that the network is run at."""
    if isinstance(run, LocNetRun):
        return window_images(run, input_zyx, count)
    if isinstance(run, LevelNetRun):
        return level_images(run, count)
    assert isinstance(run, FracSegNetRun)
    return crop_images(run, count)


def scan_images(bundle: Bundle, scans: Iterable[Path], count: int) -> dict[str, list[np.ndarray]]:
    """What the bundle's networks are fed while they analyse scans, FP32 on the processor.

    Returns:
        By network file ``count`` inputs (1, 1, z, y, x) float32, drawn evenly from all that there were; fewer are an
        error.

    Raises:
        InputError: a scan can't be read, or they hold too few windows or vertebrae.
    """
    files = [network.file for network in bundle.spec.networks]
    with ExitStack() as stack:
        recorders = [
            _Recorder(stack.enter_context(processor_session(bundle.path_of(file))), 8 * count) for file in files
        ]
        levelnet = recorders[2] if len(recorders) > 2 else None
        pipeline = stack.enter_context(Pipeline(bundle, recorders[0], recorders[1], levelnet, ExitStack()))
        for scan in scans:
            pipeline.analyse(read_scan(scan))
    taken = {file: recorder.evenly(count) for file, recorder in zip(files, recorders, strict=True)}
    for file, images in taken.items():
        if len(images) < count:
            raise InputError(
                f"The scans give {file} {len(images)} inputs, and calibration needs {count}: add scans with vertebrae, "
                "or lower --samples."
            )
    return taken


class _Recorder:
    """A session that keeps what it is fed: at most ``most`` images, and every second of them from then on."""

    def __init__(self, session: Session, most: int) -> None:
        self.info, self.output_names = session.info, session.output_names
        self._session, self._most, self._every, self._seen = session, most, 1, 0
        self._kept: list[np.ndarray] = []

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, ...]:
        """See Session."""
        for one in image:
            if self._seen % self._every == 0:
                self._kept.append(one[None].copy())
            self._seen += 1
            if len(self._kept) > self._most:
                self._kept, self._every = self._kept[::2], 2 * self._every
        return self._session(image)

    def evenly(self, count: int) -> list[np.ndarray]:
        """``count`` of the kept images, shuffled in the same way every time, or all where there are fewer."""
        order = np.random.default_rng(0).permutation(len(self._kept))[:count]
        return [self._kept[i] for i in order]

    def close(self) -> None:
        """Nothing to free: the recorded session has its owner."""

    def __enter__(self) -> _Recorder:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
