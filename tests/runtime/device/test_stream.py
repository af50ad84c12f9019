"""What the boundary to the driver says when that fails."""

from importlib.util import find_spec

import pytest

from runtime.device.stream import Stream
from runtime.engines.cuda_probe import find_gpu
from runtime.errors import EngineError, OutOfMemoryError

pytestmark = pytest.mark.skipif(find_spec("numba_cuda") is None, reason="needs numba-cuda")


@pytest.fixture
def stream():
    """A stream on no GPU."""
    stream = object.__new__(Stream)
    stream._device, stream._stream = 3, None
    return stream


def failure(name):
    from numba.cuda.cudadrv.driver import CudaAPIError
    from numba.cuda.cudadrv.driver import binding as driver

    return CudaAPIError(getattr(driver.CUresult, name), f"Call to cuMemAlloc results in {name}")


def test_a_full_memory_is_one_sentence_with_what_helps(stream):
    told = stream._translated(failure("CUDA_ERROR_OUT_OF_MEMORY"))
    assert isinstance(told, OutOfMemoryError)
    assert str(told).startswith("The memory of GPU 3 is full (Call to cuMemAlloc results in CUDA_ERROR_OUT_OF_MEMORY):")
    assert "crop the scan" in str(told)


def test_any_other_failure_is_an_engine_error(stream):
    told = stream._translated(failure("CUDA_ERROR_ILLEGAL_ADDRESS"))
    assert type(told) is EngineError
    assert str(told) == "GPU 3 failed: Call to cuMemAlloc results in CUDA_ERROR_ILLEGAL_ADDRESS."


@pytest.mark.skipif(find_gpu(0) is not None, reason="there is a GPU")
def test_without_a_driver_a_stream_is_refused_in_one_line():
    with pytest.raises(EngineError) as caught:
        Stream(0)
    assert str(caught.value).count("\n") == 0
    assert str(caught.value).startswith("GPU 0 failed: ")
    assert "CUDA driver library cannot be found" in str(caught.value)
