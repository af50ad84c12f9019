"""Running a network over a volume on the GPU, window by window; the twin of ``runtime.windows``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from runtime.bundle import IntensityWindow
from runtime.device.session import DeviceSession
from runtime.device.stream import DeviceArray, Stream
from runtime.errors import EngineError
from runtime.windows import AIR, WindowPlan, importance_profiles


def windows_reaching(hu: DeviceArray, plan: WindowPlan, threshold_hu: float, on: Stream) -> npt.NDArray[np.bool_]:
    """As ``runtime.windows.windows_reaching``, for (z, y, x) float32 HU on the GPU."""
    from runtime.device.kernels.windows import mark_reaching

    starts = np.array(plan.starts_zyx, np.int64)
    reaches = on.zeros((len(starts),), np.int64)
    items = len(starts) * int(np.prod(plan.window_zyx))
    on.launch(mark_reaching, items, hu, on.upload(starts), *plan.window_zyx, np.float32(threshold_hu), reaches)
    return on.download(reaches).astype(bool)


def gather_windows(
    hu: DeviceArray, starts: DeviceArray, first: int, intensity: IntensityWindow, out: DeviceArray, on: Stream
) -> None:
    """Fill a batch with windows of an image, normalised as ``runtime.intensity.normalise`` does; outside it is air.

    Args:
        hu: (z, y, x) float32.
        starts: (m, 3) int64, the windows' first voxels, z, y, x; may be negative.
        first: which of them goes first.
        intensity: what becomes 0 and 1.
        out: (n, 1, z, y, x) float32, filled with windows ``first`` to ``first + n``.
        on: the GPU.
    """
    from runtime.device.kernels.windows import gather_windows as kernel

    scale = np.float32(1.0 / (intensity.high_hu - intensity.low_hu))
    on.launch(kernel, out.size, hu, starts, first, np.float32(intensity.low_hu), scale, np.float32(AIR), out)


def sliding_windows(
    hu: DeviceArray,
    plan: WindowPlan,
    session: DeviceSession,
    intensity: IntensityWindow,
    on: Stream,
    *,
    keep: npt.NDArray[np.bool_] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[DeviceArray, DeviceArray | None]:
    """Run a localisation network over a volume; see ``runtime.windows.sliding_windows``.

    Args:
        hu: (z, y, x) float32 HU.
        plan: the windows.
        session: a network with an output ``heatmap`` and perhaps ``offsets``.
        intensity: normalisation.
        on: the GPU.
        keep: which of the plan's windows to run; None for all.
        progress: called with the number of windows done and to do, after each batch.

    Returns:
        The heatmap (z, y, x) and the offsets (c, z, y, x) or None, float32, on the GPU.

    Raises:
        EngineError: the network fails, has no heatmap, an output has another shape, or holds NaN or infinity.
    """
    names = [name for name in ("heatmap", "offsets") if name in session.output_names]
    if "heatmap" not in names:
        raise EngineError(f"A localisation network has an output heatmap; met {', '.join(session.output_names)}.")
    picks = [session.output_names.index(name) for name in names]
    starts = [start for i, start in enumerate(plan.starts_zyx) if keep is None or keep[i]]
    places = on.upload(np.array(starts, np.int64).reshape(-1, 3))
    blend = _Blend(plan, names, on)
    for first in range(0, len(starts), session.max_batch):
        chunk = starts[first : first + session.max_batch]
        block = session.device_input(len(chunk))
        if tuple(block.shape[2:]) != plan.window_zyx:
            raise EngineError(f"The network's windows are {tuple(block.shape[2:])}, not {plan.window_zyx}.")
        gather_windows(hu, places, first, intensity, block, on)
        outputs = session.enqueue(len(chunk), on)
        blend.add(chunk, [outputs[pick] for pick in picks])
        if progress is not None:
            on.synchronise()
            progress(first + len(chunk), len(starts))
    return blend.result()


class _Blend:
    """Sums of weighted outputs, and of the weights, on the GPU."""

    def __init__(self, plan: WindowPlan, names: Sequence[str], on: Stream) -> None:
        self._plan, self._names, self._on = plan, names, on
        self._profiles = [on.upload(profile) for profile in importance_profiles(plan.window_zyx)]
        self._weight = on.zeros(plan.shape_zyx, np.float32)
        self._not_finite = on.zeros((len(names),), np.int64)
        self._totals: list[DeviceArray] = []

    def add(self, chunk: Sequence[tuple[int, int, int]], blocks: Sequence[DeviceArray]) -> None:
        """Add the outputs (n, c, z, y, x) of a batch of windows, one window after the other."""
        from runtime.device.kernels.windows import add_weight, add_window, mark_not_finite

        for place, (name, block) in enumerate(zip(self._names, blocks, strict=True)):
            self._check(name, block, len(chunk))
            self._on.launch(mark_not_finite, block.size, block.ravel(), self._not_finite, place)
        if not self._totals:
            shapes = [(int(block.shape[1]), *self._plan.shape_zyx) for block in blocks]
            self._totals = [self._on.zeros(shape, np.float32) for shape in shapes]
        voxels = int(np.prod(self._plan.window_zyx))
        for n, start in enumerate(chunk):
            self._on.launch(add_weight, voxels, *self._profiles, *start, self._weight)
            for total, block in zip(self._totals, blocks, strict=True):
                self._on.launch(add_window, voxels, block, n, *self._profiles, *start, total)

    def result(self) -> tuple[DeviceArray, DeviceArray | None]:
        """The heatmap and the offsets; to be asked once."""
        from runtime.device.kernels.windows import divide_by_weight

        for name, bad in zip(self._names, self._on.download(self._not_finite), strict=True):
            if bad:
                raise EngineError(f"The network's {name} holds NaN or infinity: try another engine or precision fp32.")
        if not self._totals:
            return self._weight, None
        for total in self._totals:
            flat = total.reshape(total.shape[0], self._weight.size)
            self._on.launch(divide_by_weight, self._weight.size, flat, self._weight.ravel())
        return self._totals[0].reshape(*self._plan.shape_zyx), self._totals[1] if len(self._totals) > 1 else None

    def _check(self, name: str, block: DeviceArray, count: int) -> None:
        n, channels, *window = block.shape
        fits = n == count and tuple(window) == self._plan.window_zyx and (name != "heatmap" or channels == 1)
        if not fits:
            raise EngineError(f"The network's {name} is {tuple(block.shape)} for {count} of {self._plan.window_zyx}.")
