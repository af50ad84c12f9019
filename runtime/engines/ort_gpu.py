"""onnxruntime's CUDA and TensorRT providers: whether they can run, their settings, and a session bound to the GPU."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.engines.base import EngineInfo
from runtime.engines.checks import check_image
from runtime.engines.cuda_probe import Gpu, find_gpu, missing_libraries
from runtime.engines.failures import failure
from runtime.engines.ort_library import first_line, library_errors
from runtime.errors import EngineError

CUDA = "CUDAExecutionProvider"
MOST_BOUND = 4
"""Shapes whose buffers and CUDA graphs are kept; the pipeline uses fewer. Others run too, but are bound each time."""
_NO_GRAPH = "-1"
_OLDEST_GPU = {12: (5, 0), 13: (7, 5)}
"""Compute capability that each CUDA still compiles for; onnxruntime 1.31 is built with CUDA 13."""


def why_no_cuda(library: Any, device: int) -> str:
    """Why the CUDA provider can't run on GPU number ``device``, with what to do, or the empty text when it can.

    Everything is looked for here, because a session for which something is missing prints long errors and then runs on
    the processor.
    """
    if CUDA not in library.get_available_providers():
        return "this build has no CUDA; for an NVIDIA GPU: pip uninstall onnxruntime, pip install onnxruntime-gpu"
    gpu = find_gpu(device)
    if gpu is None:
        return f"the NVIDIA driver offers no GPU {device}"
    major = cuda_major(library)
    return _why_too_old(gpu, major) or _why_libraries_missing(library, major)


def cuda_major(library: Any) -> int:
    """The CUDA that this build of onnxruntime needs."""
    return int(str(getattr(library, "cuda_version", "") or "12").split(".")[0])


def _why_too_old(gpu: Gpu, major: int) -> str:
    if gpu.cuda[0] < major:
        return (
            f"this build needs CUDA {major}, and the driver {gpu.driver} of {gpu.name} runs CUDA "
            f"{gpu.cuda[0]}.{gpu.cuda[1]} at most; install a newer driver"
        )
    oldest = _OLDEST_GPU.get(major, (0, 0))
    if gpu.compute_capability < oldest:
        return (
            f"{gpu.name} has compute capability {gpu.compute_capability[0]}.{gpu.compute_capability[1]}, and CUDA "
            f"{major} starts at {oldest[0]}.{oldest[1]}; use an onnxruntime-gpu that is built for an older CUDA"
        )
    return ""


def _why_libraries_missing(library: Any, major: int) -> str:
    if hasattr(library, "preload_dlls"):
        # Loads what pip's nvidia packages brought. It reports what it doesn't find on stdout, which isn't ours to use.
        with contextlib.redirect_stdout(io.StringIO()):
            library.preload_dlls()
    missing = missing_libraries(major)
    if not missing:
        return ""
    return f"missing libraries: {', '.join(missing)}; install them with: pip install onnxruntime-gpu[cuda,cudnn]"


def cuda_provider(device: int, *, graphs: bool) -> tuple[str, dict[str, str]]:
    """The CUDA provider with its settings.

    Args:
        device: GPU number.
        graphs: whether what runs with fixed shapes is captured as a CUDA graph and replayed.
    """
    return CUDA, {
        "device_id": str(device),
        # TF32 rounds like fp16: with it on, calling the result fp32 would not be true.
        "use_tf32": "0",
        "enable_cuda_graph": "1" if graphs else "0",
        # The default doubles what it holds each time, on a GPU that the workstation's viewer shares.
        "arena_extend_strategy": "kSameAsRequested",
    }


@dataclass(frozen=True, eq=False)
class _Bound:
    """The buffers of one input shape, on the GPU, and how they are run; no outputs where the library makes them."""

    image: Any
    outputs: tuple[Any, ...]
    binding: Any
    options: Any


class OnnxRuntimeGpuSession:
    """A network on a GPU: buffers stay there, and stay bound; fulfils ``runtime.engines.base.Session``.

    Args:
        session: onnxruntime's, on a GPU provider.
        library: the module ``onnxruntime``.
        info: what it is.
        model: name of its file, for messages.
        device: GPU number.
        graphs: whether the session was opened to capture CUDA graphs.
        most: images that can be run at once; larger batches are run in parts. None for any number.
    """

    def __init__(
        self, session: Any, library: Any, info: EngineInfo, model: str, *, device: int, graphs: bool, most: int | None
    ) -> None:
        self.info = info
        self.output_names: tuple[str, ...] = tuple(output.name for output in session.get_outputs())
        self._session, self._library, self._model = session, library, model
        self._device, self._graphs, self._most = device, graphs, most
        self._input = session.get_inputs()[0]
        self._declared = sizes(self._input.shape)
        self._fixed = shapes_are_fixed(session)
        self._bound: dict[tuple[int, ...], _Bound] = {}

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, ...]:
        """Run the network; see ``runtime.engines.base.Session``."""
        if self._session is None:
            raise EngineError(f"The session of {self._model} is closed.")
        check_image(image, self._declared, model=self._model)
        step = self._most or len(image)
        try:
            parts = [self._run(image[first : first + step]) for first in range(0, len(image), step)]
        except library_errors() as error:
            said = f"onnxruntime failed on {self._model}, {image.shape}, on {self.info.device}: {first_line(error)}."
            raise failure(said, library_said=str(error)) from error
        return parts[0] if len(parts) == 1 else tuple(np.concatenate(whole) for whole in zip(*parts, strict=True))

    def _run(self, image: np.ndarray) -> tuple[np.ndarray, ...]:
        bound = self._bound.get(image.shape)
        if bound is None:
            bound = self._bind(image.shape)
        bound.image.update_inplace(image)
        self._session.run_with_iobinding(bound.binding, bound.options)
        outputs = bound.outputs or bound.binding.get_outputs()
        return tuple(np.array(output.numpy(), dtype=np.float32) for output in outputs)

    def _bind(self, shape: tuple[int, ...]) -> _Bound:
        """Buffers for an input shape, and a graph of their own: a graph replays the addresses it was captured with."""
        kept = len(self._bound) < MOST_BOUND
        binding = self._session.io_binding()
        image, outputs = self._bind_buffers(shape, binding)
        options = self._library.RunOptions()
        if self._graphs:
            options.add_run_config_entry("gpu_graph_id", str(len(self._bound) + 1) if kept else _NO_GRAPH)
        bound = _Bound(image, outputs, binding, options)
        if kept:
            self._bound[shape] = bound
        return bound

    def _bind_buffers(self, shape: tuple[int, ...], binding: Any) -> tuple[Any, tuple[Any, ...]]:
        """New buffers for an input shape and its outputs, bound; no outputs where only a run tells their size."""
        image = self._buffer(shape)
        binding.bind_ortvalue_input(self._input.name, image)
        if not self._fixed:
            for name in self.output_names:
                binding.bind_output(name, "cuda", self._device)
            return image, ()
        outputs = tuple(self._buffer((shape[0], *o.shape[1:])) for o in self._session.get_outputs())
        for name, buffer in zip(self.output_names, outputs, strict=True):
            binding.bind_ortvalue_output(name, buffer)
        return image, outputs

    def _buffer(self, shape: Sequence[int]) -> Any:
        return self._library.OrtValue.ortvalue_from_shape_and_type(list(shape), np.float32, "cuda", self._device)

    def close(self) -> None:
        """Free the network and its buffers, these first: they are the session's."""
        self._bound.clear()
        self._session = None

    def __enter__(self) -> OnnxRuntimeGpuSession:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def sizes(shape: Sequence[int | str | None]) -> list[int | None]:
    """A declared shape as sizes, None for what is not fixed."""
    return [size if isinstance(size, int) else None for size in shape]


def shapes_are_fixed(session: Any) -> bool:
    """Whether everything but the number of images is fixed, so that buffers can be made before a run."""
    return all(None not in sizes(value.shape)[1:] for value in (*session.get_inputs(), *session.get_outputs()))
