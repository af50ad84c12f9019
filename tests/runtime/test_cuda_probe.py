# ruff: noqa: N802  the driver names its functions so
"""The probe against a driver that answers as NVIDIA's does: numbers through pointers, 0 for success."""

import ctypes.util
from types import SimpleNamespace

import pytest

from runtime.engines import cuda_probe
from runtime.engines.cuda_probe import (
    Gpu,
    cuda_of_toolkit,
    driver_version,
    find_gpu,
    gpu_name,
    missing_libraries,
    not_loadable,
)

H200 = Gpu(1, "NVIDIA H200", (9, 0), 143_771, "580.65.06", (13, 0))


def number(pointer, value):
    pointer._obj.value = value
    return 0


class Driver:
    """``cuda`` and ``nvml`` of a machine with two GPUs, of which the second is an H200."""

    def __init__(self):
        self.open_nvml = 0

    def cuInit(self, flags):
        return 0

    def cuDeviceGet(self, handle, device):
        return number(handle, 40 + device.value) if device.value < 2 else 101

    def cuDeviceGetName(self, name, size, handle):
        assert (size.value, handle.value) == (256, 41)
        name.value = b"NVIDIA H200"
        return 0

    def cuDeviceGetAttribute(self, pointer, which, handle):
        return number(pointer, {75: 9, 76: 0}[which.value])

    def cuDeviceTotalMem_v2(self, pointer, handle):
        return number(pointer, 143_771 * 2**20)

    def cuDriverGetVersion(self, pointer):
        return number(pointer, 13_000)

    def nvmlInit_v2(self):
        self.open_nvml += 1
        return 0

    def nvmlSystemGetDriverVersion(self, text, size):
        text.value = b"580.65.06"
        return 0

    def nvmlShutdown(self):
        self.open_nvml -= 1
        return 0


@pytest.fixture
def driver(monkeypatch):
    there = Driver()
    monkeypatch.setattr(cuda_probe, "_library", lambda name: there)
    return there


def test_what_the_driver_says_is_told(driver):
    assert find_gpu(1) == H200
    assert gpu_name(1) == "NVIDIA H200"
    assert H200.sm == 90
    assert driver.open_nvml == 0, "NVML is closed again"


def test_a_gpu_that_is_not_there_is_none(driver):
    assert find_gpu(2) is None


def test_a_driver_that_does_not_start_is_none(driver, monkeypatch):
    monkeypatch.setattr(driver, "cuInit", lambda flags: 100, raising=False)
    assert find_gpu(1) is None


def test_without_nvml_the_version_is_unknown(driver, monkeypatch):
    monkeypatch.setattr(driver, "nvmlInit_v2", lambda: 9, raising=False)
    assert driver_version() == ""
    assert find_gpu(1).driver == ""


def test_without_a_driver_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(cuda_probe, "_library", lambda name: None)
    assert find_gpu(0) is None
    assert driver_version() == ""


def test_libraries_are_those_of_the_cuda_version(monkeypatch):
    there = SimpleNamespace()
    monkeypatch.setattr(cuda_probe, "_library", lambda name: there if "cud" in name else None)
    monkeypatch.setattr(cuda_probe, "_WINDOWS", False)
    assert missing_libraries(13) == ["libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10", "libcufft.so.12"]
    assert "libcufft.so.11" in missing_libraries(12)
    monkeypatch.setattr(cuda_probe, "_WINDOWS", True)
    assert missing_libraries(12) == ["cublasLt64_12.dll", "cublas64_12.dll", "cufft64_11.dll"]


def test_the_compilers_cuda_is_that_of_its_package(monkeypatch):
    monkeypatch.setattr(cuda_probe.metadata, "version", lambda name: {"cuda-toolkit": "13.2.0"}[name])
    assert cuda_of_toolkit() == 13

    def missing(name):
        raise cuda_probe.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(cuda_probe.metadata, "version", missing)
    assert cuda_of_toolkit() is None


def test_a_library_that_is_there_loads():
    with_c = ctypes.util.find_library("c")
    assert not_loadable(["no-such-library.so.9"]) == ["no-such-library.so.9"]
    assert with_c is None or not_loadable([with_c]) == []
