"""A network as a TensorRT or TensorRT-RTX engine, ready to run: the two libraries share one Python API."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from runtime.device.stream import DeviceArray, Stream
from runtime.engines.base import EngineInfo
from runtime.engines.checks import check_image, check_signature
from runtime.engines.held_interrupts import held_interrupts
from runtime.engines.trt_context import Context, Recording
from runtime.engines.trt_library import failed, new_log
from runtime.engines.trt_runtime_cache import RuntimeCache
from runtime.errors import EngineError

_PROFILE = 0
"""The engines of this software have one optimisation profile."""


class TensorRtSession:
    """An engine with what it needs to run and the arrays it reads and writes; fulfils ``DeviceSession``.

    Batches of the size that first comes again are recorded as a CUDA graph: full batches, while a scan's windows are
    run. TensorRT-RTX is told to do that by itself.

    Args:
        library: the module ``tensorrt`` or ``tensorrt_rtx``.
        engine: content of the engine file, which was checked before.
        stream: the GPU; owned by the session from now on.
        info: what to report.
        model: the network's name, for messages.
        device: GPU number of the stream.
        runtime_cache: where TensorRT-RTX keeps the kernels that it compiles on this GPU; None for TensorRT.
        host_code: whether the engine may run code for the host that it carries; it was vouched for.

    Raises:
        EngineError: the library can't load the engine, or it isn't one of this software's.
        OutOfMemoryError: the GPU's memory is full.
    """

    def __init__(
        self, library: Any, engine: bytes, stream: Stream, *, info: EngineInfo, model: str, device: int = 0,
        runtime_cache: Path | None = None, host_code: bool = False,
    ) -> None:  # fmt: skip
        self.info, self.device, self._model = info, device, model
        self._library, self._stream = library, stream
        self._lock = threading.Lock()
        self._is_closed = False
        self._cache: RuntimeCache | None = None
        self._recording: Recording | None = None
        self._last_count = 0
        with ExitStack() as undo:
            undo.callback(self.close)
            with stream.active(), held_interrupts():
                self._load(engine, runtime_cache, host_code)
            undo.pop_all()

    def _load(self, engine: bytes, runtime_cache: Path | None, host_code: bool) -> None:
        trt = self._library
        self._log = new_log(trt)
        self._runtime = trt.Runtime(self._log)
        if host_code:
            self._runtime.engine_host_code_allowed = True
        self._engine = self._runtime.deserialize_cuda_engine(engine)
        if self._engine is None:
            raise failed(f"{self.info.name} cannot load the engine of {self._model}", self._log)
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        inputs = [name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        check_signature(Path(self._model), inputs=len(inputs), outputs=len(names) - len(inputs))
        self._check_types(names)
        self._input = inputs[0]
        self.output_names: tuple[str, ...] = tuple(name for name in names if name not in inputs)
        low, _, high = (tuple(int(n) for n in dims) for dims in self._profile())
        if low[0] != 1:
            raise EngineError(f"The engine of {self._model} takes batches from {low[0]}, not from 1; build it again.")
        self.max_batch = high[0]
        self._declared = [None, *(a if a == b else None for a, b in zip(low[1:], high[1:], strict=True))]
        if runtime_cache is not None:
            self._cache = RuntimeCache(trt, self._engine, runtime_cache)
        self._context = self._new_context()
        self._context.set_shape(self._input, high)
        self._arrays = {name: self._new_array(name) for name in names}
        self._context.bind(self._addresses())

    def _profile(self) -> list[Any]:
        """Smallest, best and largest shape of the input."""
        fixed = tuple(self._engine.get_tensor_shape(self._input))
        return [fixed] * 3 if -1 not in fixed else self._engine.get_tensor_profile_shape(self._input, _PROFILE)

    def _check_types(self, names: list[str]) -> None:
        trt = self._library
        for name in names:
            met = self._engine.get_tensor_dtype(name)
            if met != trt.DataType.FLOAT:
                raise EngineError(f"{name} of {self._model}'s engine is {met}, not FLOAT; build it again.")
            if self._engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
                raise EngineError(f"{name} of {self._model}'s engine lies in the host's memory; build it again.")

    def _new_context(self) -> Context:
        arguments = () if self._cache is None else (self._cache.config,)
        return Context(self._engine.create_execution_context(*arguments), self._log, self._model)

    def _new_array(self, name: str) -> DeviceArray:
        """Memory for a tensor at the largest batch, for which the context knows all shapes."""
        shape = self._context.shape_of(name)
        if min(shape) < 1 or shape[0] != self.max_batch:
            raise EngineError(f"{name} of {self._model}'s engine is {shape} for a batch of {self.max_batch}.")
        return self._stream.empty(shape, np.float32)

    def _addresses(self) -> dict[str, int]:
        return {name: self._stream.address(array) for name, array in self._arrays.items()}

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, ...]:
        """Run the network; see ``runtime.engines.base.Session``. Calls of several threads wait for each other."""
        with self._lock:
            self._check_open()
            check_image(image, self._declared, model=self._model)
            with self._stream.active():
                parts = [self._run_part(image[i : i + self.max_batch]) for i in range(0, len(image), self.max_batch)]
        return parts[0] if len(parts) == 1 else tuple(np.concatenate(pieces) for pieces in zip(*parts, strict=True))

    def _run_part(self, image: np.ndarray) -> tuple[np.ndarray, ...]:
        self._stream.copy_in(self.device_input(len(image)), image)
        return tuple(self._stream.download(output) for output in self.enqueue(len(image), self._stream))

    def device_input(self, count: int) -> DeviceArray:
        """Where the next batch goes; see ``runtime.device.session.DeviceSession``."""
        self._check_open()
        if not 1 <= count <= self.max_batch:
            raise EngineError(f"{self._model} takes batches of 1 to {self.max_batch} on the GPU; met {count}.")
        return self._arrays[self._input][:count]

    def enqueue(self, count: int, stream: Stream) -> tuple[DeviceArray, ...]:
        """Run the network on its input; see ``runtime.device.session.DeviceSession``."""
        shape = tuple(int(n) for n in self.device_input(count).shape)
        recording = self._recording_for(count, shape)
        if recording is not None:
            recording.run(stream)
        else:
            self._context.set_shape(self._input, shape)
            self._context.run(stream)
        return tuple(self._arrays[name][:count] for name in self.output_names)

    def _recording_for(self, count: int, shape: tuple[int, ...]) -> Recording | None:
        """The recording, if it is of this batch size; begun when a size comes twice in a row."""
        if self.info.name != "tensorrt":
            return None
        comes_again, self._last_count = count == self._last_count, count
        if self._recording is None and comes_again:
            # A context of its own: what is recorded must not see its context used for other shapes.
            context = self._new_context()
            context.set_shape(self._input, shape)
            context.bind(self._addresses())
            self._recording = Recording(context, count)
        return self._recording if self._recording is not None and self._recording.count == count else None

    def close(self) -> None:
        """Free the engine and its memory, and keep what TensorRT-RTX compiled; closing twice is fine."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            with self._stream, self._stream.active():
                try:
                    self._stream.synchronise()
                    if self._recording is not None:
                        self._recording.close()
                    if self._cache is not None:
                        self._cache.save()
                finally:
                    # The library wants what was made from another thing freed before that.
                    for name in ("_recording", "_arrays", "_context", "_cache", "_engine", "_runtime"):
                        self.__dict__.pop(name, None)

    def __enter__(self) -> TensorRtSession:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineError(f"The session of {self._model} is closed.")
