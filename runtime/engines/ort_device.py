"""onnxruntime on a GPU with its tensors bound to arrays of ``runtime.device``: a scan then stays on the GPU."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np

from runtime.device.stream import DeviceArray, Stream
from runtime.engines.base import EngineInfo
from runtime.engines.cuda_probe import cuda_of_toolkit, find_gpu
from runtime.engines.failures import failure
from runtime.engines.ort_gpu import OnnxRuntimeGpuSession
from runtime.engines.ort_library import first_line, library_errors
from runtime.errors import EngineError


def why_not_on_device(device: int) -> str:
    """Why the device path can't be used on GPU number ``device``, or the empty text when it can."""
    if find_spec("numba_cuda") is None:
        return "numba-cuda is not installed; install it with: pip install 'vertscan[gpu]'"
    gpu, toolkit = find_gpu(device), cuda_of_toolkit()
    if gpu is not None and toolkit and gpu.cuda[0] < toolkit:
        return f"numba-cuda's compiler is for CUDA {toolkit}, and the driver {gpu.driver} runs CUDA {gpu.cuda[0]}"
    return ""


class OnnxRuntimeDeviceSession(OnnxRuntimeGpuSession):
    """As its base, and fulfils ``runtime.device.session.DeviceSession``.

    The library computes on a stream of its own, so ``enqueue`` waits for what was enqueued before it and until the
    network is done. Its CUDA graphs are captured on the session's arrays, which never move.

    Args:
        session: onnxruntime's, on the CUDA provider, of a network of fixed size.
        library: the module ``onnxruntime``.
        info: what it is.
        model: name of its file, for messages.
        device: GPU number.
        graphs: whether the session was opened to capture CUDA graphs.
        most: images that can be run at once.
        stream: where the arrays are made; owned by the session from now on.
    """

    def __init__(
        self, session: Any, library: Any, info: EngineInfo, model: str,
        *, device: int, graphs: bool, most: int, stream: Stream,
    ) -> None:  # fmt: skip
        super().__init__(session, library, info, model, device=device, graphs=graphs, most=most)
        self.device, self.max_batch = device, most
        self._stream = stream
        try:
            with stream.active():
                self._image = self._array(self._input.shape)
                self._outputs = tuple(self._array(output.shape) for output in session.get_outputs())
        except BaseException:
            stream.close()
            raise

    def _array(self, shape: list[Any]) -> DeviceArray:
        return self._stream.empty((self.max_batch, *shape[1:]), np.float32)

    def device_input(self, count: int) -> DeviceArray:
        """Where the next batch goes; see ``runtime.device.session.DeviceSession``."""
        if self._session is None:
            raise EngineError(f"The session of {self._model} is closed.")
        if not 1 <= count <= self.max_batch:
            raise EngineError(f"{self._model} takes batches of 1 to {self.max_batch} on the GPU; met {count}.")
        return self._image[:count]

    def enqueue(self, count: int, stream: Stream) -> tuple[DeviceArray, ...]:
        """Run the network on its input; see ``runtime.device.session.DeviceSession``."""
        image = self.device_input(count)
        stream.synchronise()
        bound = self._bound.get(image.shape) or self._bind(image.shape)
        try:
            self._session.run_with_iobinding(bound.binding, bound.options)
        except library_errors() as error:
            said = f"onnxruntime failed on {self._model}, {image.shape}, on {self.info.device}: {first_line(error)}."
            raise failure(said, library_said=str(error)) from error
        return tuple(output[:count] for output in self._outputs)

    def _run(self, image: np.ndarray) -> tuple[np.ndarray, ...]:
        with self._stream.active():
            self._stream.copy_in(self.device_input(len(image)), image)
            return tuple(self._stream.download(output) for output in self.enqueue(len(image), self._stream))

    def _bind_buffers(self, shape: tuple[int, ...], binding: Any) -> tuple[Any, tuple[Any, ...]]:
        """The session's own arrays, by their addresses; nothing to copy to or from."""
        binding.bind_input(self._input.name, "cuda", self._device, np.float32, shape, self._stream.address(self._image))
        for name, array in zip(self.output_names, self._outputs, strict=True):
            size = (shape[0], *array.shape[1:])
            binding.bind_output(name, "cuda", self._device, np.float32, size, self._stream.address(array))
        return None, ()

    def close(self) -> None:
        """Free the network, then its arrays."""
        if self._session is None:
            return
        super().close()
        with self._stream, self._stream.active():
            del self._image, self._outputs
