"""Every engine and precision of this machine's GPU: parity on the default bundle, memory, and the device path."""

import gc
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from runtime.bundle import open_bundle
from runtime.engines import engine_module, open_session, preflights, select_engine
from runtime.engines.parity import LIMITS, short_gate
from runtime.engines.trt_build import BuildOptions, engine_file
from runtime.engines.trt_cache import read_sidecar
from runtime.engines.trt_gate import gate_for
from runtime.pipeline import Pipeline
from runtime.scan_access import ScanOnHost
from tests.gpu.conftest import GPU, engines_on_gpu

REPEATS = 3


@pytest.fixture(scope="module")
def phantom():
    """A phantom's spine, 260 x 180 x 160 mm, of a seed that neither training nor evaluation draws."""
    from export.verify import phantoms

    return next(phantoms(1))


@pytest.fixture(scope="module")
def expected(phantom):
    """What the processor finds in it, in FP32, by whichever engine runs on it here."""
    name = next(
        (
            name
            for name in ("openvino", "onnxruntime")
            if (found := preflights()[name]).available and found.device == "CPU"
        ),
        None,
    )
    if name is None:
        pytest.skip("no engine of this machine runs on the processor; pip install openvino")
    with Pipeline.open(engine=name, precision="fp32") as pipeline:
        return pipeline.analyse(phantom)


def networks():
    bundle = open_bundle()
    return [pytest.param(bundle.path_of(network.file), id=Path(network.file).stem) for network in bundle.spec.networks]


@pytest.mark.parametrize("network", networks())
@pytest.mark.parametrize(("name", "precision"), engines_on_gpu())
def test_an_engine_says_what_the_processor_says(name, precision, network):
    with open_session(select_engine(name, precision=precision), network) as session:
        short_gate(network, session, precision=precision)


@pytest.mark.parametrize("network", networks())
def test_an_engine_that_was_built_without_the_gpu_is_taken_and_judged_on_it(network, tmp_path):
    found = engine_module("tensorrt-rtx").preflight()
    if not found.available:
        pytest.skip(found.reason)
    usual = {"precision": "fp16", "library": "tensorrt-rtx", "folder": tmp_path}
    path = engine_file(network, **usual, options=BuildOptions(targets=(str(GPU.sm),)))
    assert read_sidecar(path).build.gpu == ""
    gate = gate_for(network, precision="fp16", library="tensorrt-rtx")
    assert engine_file(network, **usual, gate=gate) == path
    assert GPU.name in " ".join(read_sidecar(path).gates)


def agree(found, expected, limits):
    ours, theirs = found.findings.vertebrae, expected.findings.vertebrae
    assert len(ours) == len(theirs) >= 2
    for one, other in zip(ours, theirs, strict=True):
        assert np.linalg.norm(np.subtract(one.centre_ras_mm, other.centre_ras_mm)) < limits.centre_shift_mm
        assert (one.level, one.grade) == (other.level, other.grade) or limits.changed
    a, b = found.labels > 0, expected.labels > 0
    assert 2 * (a & b).sum() / (a.sum() + b.sum()) > limits.dice


@pytest.mark.parametrize(("name", "precision"), engines_on_gpu())
def test_a_whole_scan_has_the_processors_findings_every_time(name, precision, phantom, expected):
    with Pipeline.open(engine=name, precision=precision) as pipeline:
        runs = [pipeline.analyse(phantom) for _ in range(REPEATS)]
    for run in runs:
        agree(run, expected, LIMITS[precision])
        assert run.findings.vertebrae == runs[0].findings.vertebrae
        np.testing.assert_array_equal(run.labels, runs[0].labels)


@pytest.mark.parametrize(("name", "precision"), engines_on_gpu("tensorrt", "tensorrt-rtx"))
def test_the_device_path_says_what_the_same_engine_says_by_way_of_the_host(name, precision, phantom, monkeypatch):
    with Pipeline.open(engine=name, precision=precision) as pipeline:
        there = pipeline.analyse(phantom)
    by_host = lambda sessions, resources: lambda volume: nullcontext(ScanOnHost(volume))  # noqa: E731
    monkeypatch.setattr("runtime.pipeline.scan_opener", by_host)
    with Pipeline.open(engine=name, precision=precision) as pipeline:
        here = pipeline.analyse(phantom)
    agree(there, here, LIMITS[precision])


@pytest.mark.parametrize(("name", "precision"), engines_on_gpu("tensorrt", "tensorrt-rtx"))
def test_memory_comes_back_when_a_scan_is_done_and_when_the_pipeline_is_closed(name, precision, phantom):
    from numba import cuda

    def free_bytes():
        gc.collect()
        with cuda.gpus[0]:
            cuda.current_context().deallocations.clear()
            return cuda.current_context().get_memory_info().free

    with Pipeline.open(engine=name, precision=precision) as warm_up:
        warm_up.analyse(phantom)
    before = free_bytes()
    with Pipeline.open(engine=name, precision=precision) as pipeline:
        pipeline.analyse(phantom)
        opened = free_bytes()
        for _ in range(REPEATS):
            pipeline.analyse(phantom)
        assert free_bytes() >= opened - 2**22
    assert free_bytes() >= before - 2**26
