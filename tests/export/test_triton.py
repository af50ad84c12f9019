"""Model repositories: every configuration by Triton's own schema, whole or not at all, and served."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("tritonclient.grpc", reason="needs the extra triton")

from google.protobuf import text_format
from onnx import TensorProto
from tritonclient.grpc import model_config_pb2

from export import triton
from export.triton import MARKER, Serving, main, preferred_batches, write_repository
from runtime.bundle import open_bundle, sha256_of
from runtime.crops import crop_grid
from runtime.engines.triton_models import served_networks
from runtime.engines.triton_server import TritonServer
from runtime.engines.trt_cache import install_engine
from runtime.engines.trt_key import FORMAT, EngineBuild, EngineKey, Sidecar
from runtime.errors import EngineError, InputError
from runtime.pipeline import Pipeline
from tests.runtime.triton_stand_in import StandIn, serving
from train.phantom import render, sample_anatomy, sample_appearance


@pytest.fixture(scope="module")
def bundle():
    return open_bundle()


@pytest.fixture(scope="module")
def repository(bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "models"
    names = write_repository(bundle, folder, Serving(max_batch=4))
    assert {path.name for path in folder.iterdir()} == {*names, MARKER}
    return folder


def configs(repository):
    """Every model's configuration, as Triton's own schema reads it: an unknown or mistyped field raises."""
    for path in sorted(repository.glob("*/config.pbtxt")):
        yield path.parent, text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())


def left(folder):
    return {path.name for path in folder.iterdir()}


def test_the_configurations_are_tritons_and_say_what_the_networks_take_and_give(bundle, repository):
    found = dict(configs(repository))
    networks = served_networks(bundle)
    assert {path.name for path in found} == {network.model_name("fp32") for network in networks}
    assert len(networks) == 3
    for network in networks:
        folder = repository / network.model_name("fp32")
        config = found[folder]
        assert config.name == folder.name
        assert (config.backend, config.default_model_filename) == ("onnxruntime", "model.onnx")
        assert [(t.name, t.data_type, tuple(t.dims)) for t in config.input] == [
            ("image", model_config_pb2.TYPE_FP32, network.image_shape)
        ]
        assert {t.name: tuple(t.dims) for t in config.output} == dict(network.outputs)
        assert {t.data_type for t in config.output} == {model_config_pb2.TYPE_FP32}
        assert config.parameters["vertscan_network_sha256"].string_value == bundle.spec.files[network.file]
        assert config.parameters["vertscan_bundle_sha256"].string_value == bundle.sha256
        assert sha256_of(folder / "1" / "model.onnx") == bundle.spec.files[network.file]
        assert [path.name for path in folder.iterdir() if path.is_dir()] == ["1"]


def test_batching_instances_warm_up_and_versions_are_set(repository):
    for _, config in configs(repository):
        assert config.max_batch_size == 4
        assert list(config.dynamic_batching.preferred_batch_size) == [2, 4]
        assert config.dynamic_batching.max_queue_delay_microseconds == 1000
        (group,) = config.instance_group
        assert (group.count, group.kind) == (1, model_config_pb2.ModelInstanceGroup.KIND_AUTO)
        assert list(config.version_policy.specific.versions) == [1]
        assert [warmup.batch_size for warmup in config.model_warmup] == [1, 2, 4]
        for warmup in config.model_warmup:
            ((name, given),) = warmup.inputs.items()
            assert (name, tuple(given.dims)) == (config.input[0].name, tuple(config.input[0].dims))
            assert given.zero_data
            assert given.data_type == model_config_pb2.TYPE_FP32
        (cuda,) = config.optimization.execution_accelerators.gpu_execution_accelerator
        assert (cuda.name, dict(cuda.parameters)) == ("cuda", {"use_tf32": "0"})


@pytest.mark.parametrize(("most", "expected"), [(1, [1]), (2, [1, 2]), (3, [1, 3]), (8, [4, 8])])
def test_preferred_batches(most, expected):
    assert preferred_batches(most) == expected


def test_options_reach_the_configurations(tmp_path, capsys):
    out = tmp_path / "new" / "models"
    options = ["--max-batch", "2", "--queue-delay-us", "0", "--instances", "3", "--kind", "cpu"]
    assert main(["-o", str(out), *options]) == 0
    told = capsys.readouterr().out
    for path, config in configs(out):
        assert path.name in told
        assert config.max_batch_size == 2
        assert config.dynamic_batching.max_queue_delay_microseconds == 0
        assert config.instance_group[0].count == 3
        assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_CPU
        assert not config.optimization.execution_accelerators.gpu_execution_accelerator
    assert json.loads((out / MARKER).read_text())["precision"] == "fp32"
    assert left(tmp_path / "new") == {"models"}


@pytest.mark.parametrize(
    "options",
    [
        ["--max-batch", "0"],
        ["--instances", "0"],
        ["--queue-delay-us", "-1"],
        ["--backend", "tensorrt", "--kind", "cpu"],
        ["--plan", "x.engine"],
        ["--backend", "tensorrt"],
    ],
)
def test_options_that_make_no_sense_are_status_2_and_write_nothing(tmp_path, capsys, options):
    assert main(["-o", str(tmp_path / "models"), *options]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert left(tmp_path) == set()


def test_a_missing_bundle_is_status_3(tmp_path, capsys):
    assert main(["-o", str(tmp_path / "models"), "--bundle", str(tmp_path / "none")]) == 3
    assert "no bundle" in capsys.readouterr().err
    assert left(tmp_path) == set()


def test_fp16_is_in_the_graph_and_inputs_and_outputs_stay_fp32(bundle, tmp_path):
    write_repository(bundle, tmp_path / "models", Serving(precision="fp16", max_batch=1))
    for network in served_networks(bundle):
        folder = tmp_path / "models" / network.model_name("fp16")
        graph = onnx.load(folder / "1" / "model.onnx").graph
        assert {tensor.data_type for tensor in graph.initializer} >= {TensorProto.FLOAT16}
        for value in (*graph.input, *graph.output):
            assert value.type.tensor_type.elem_type == TensorProto.FLOAT
        config = dict(configs(tmp_path / "models"))[folder]
        assert config.parameters["vertscan_precision"].string_value == "fp16"
        assert config.parameters["vertscan_network_sha256"].string_value == network.sha256


def test_the_command_needs_no_torch():
    code = "import sys, export.triton; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# Whole or not at all.


def test_a_repository_is_replaced_and_a_folder_with_anything_else_is_not(bundle, tmp_path):
    out = tmp_path / "models"
    write_repository(bundle, out, Serving(max_batch=2))
    write_repository(bundle, out, Serving(max_batch=3))
    assert {config.max_batch_size for _, config in configs(out)} == {3}
    (out / "somebody_elses_model").mkdir()
    before = left(out)
    with pytest.raises(InputError, match=r"holds other files \(somebody_elses_model\)"):
        write_repository(bundle, out, Serving(max_batch=4))
    assert left(out) == before
    assert left(tmp_path) == {"models"}
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="can't be used"):
        write_repository(bundle, tmp_path / "file", Serving())


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("at", ["_write_model", "_marker", "rename"])
def test_a_write_that_fails_leaves_what_was_there(bundle, tmp_path, monkeypatch, there, at):
    out = tmp_path / "models"
    if there:
        write_repository(bundle, out, Serving(max_batch=2))

    def full(*_):
        raise OSError(28, "No space left on device")

    if at == "rename":
        real = Path.rename
        monkeypatch.setattr(Path, "rename", lambda self, to: full() if self.name == "new" else real(self, to))
    else:
        monkeypatch.setattr(triton, at, full)
    with pytest.raises(InputError, match="No space left on device"):
        write_repository(bundle, out, Serving(max_batch=3))
    assert left(tmp_path) == ({"models"} if there else set())
    if there:
        assert {config.max_batch_size for _, config in configs(out)} == {2}


# TensorRT's plans.


def install_plan(folder, network, gates=("NVIDIA L4 SM 89, driver 580",), **changes):
    """A file that stands for an engine of a network, with the record that the builder writes."""
    key = EngineKey(
        network=network.file,
        onnx_sha256=network.sha256,
        precision="fp16",
        conversion="0",
        max_batch=4,
        library="tensorrt",
        library_version="10.13.0",
    )
    build = EngineBuild(("89",), "NVIDIA L4", "580")
    key = replace(key, **changes)
    content = f"plan of {network.file}".encode()
    path = folder / f"{network.file}.engine"
    digest = hashlib.sha256(content).hexdigest()
    install_engine(content, path, Sidecar(FORMAT, key, build, digest, len(content), gates, "2026-01-01T00:00:00", 1.0))
    return path


TENSORRT = Serving(precision="fp16", backend="tensorrt", max_batch=4, kind="gpu")


def test_plans_are_known_by_what_they_were_built_from(bundle, tmp_path):
    networks = served_networks(bundle)
    plans = tuple(install_plan(tmp_path / "cache", network) for network in reversed(networks))
    write_repository(bundle, tmp_path / "models", replace(TENSORRT, plans=plans))
    for network in networks:
        folder = tmp_path / "models" / network.model_name("fp16")
        assert (folder / "1" / "model.plan").read_text() == f"plan of {network.file}"
        config = dict(configs(tmp_path / "models"))[folder]
        assert (config.backend, config.platform) == ("tensorrt", "tensorrt_plan")
        assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
        assert not config.optimization.execution_accelerators.gpu_execution_accelerator
    told = json.loads((tmp_path / "models" / MARKER).read_text())
    assert told["plans"]["locnet.onnx"]["build"]["gpu"] == "NVIDIA L4"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"onnx_sha256": "0" * 64}, "another locnet.onnx than this bundle's"),
        ({"library": "tensorrt-rtx"}, "tensorrt-rtx, which Triton does not run"),
        ({"precision": "fp32"}, "fp32, not in fp16"),
        ({"max_batch": 3}, "batches up to 3, not 4"),
        ({"gates": ()}, "its parity gate was not asked"),
    ],
)
def test_plans_of_something_else_are_refused(bundle, tmp_path, changes, told):
    locnet, *others = served_networks(bundle)
    plans = (install_plan(tmp_path, locnet, **changes), *(install_plan(tmp_path, network) for network in others))
    with pytest.raises(InputError, match=told):
        write_repository(bundle, tmp_path / "models", replace(TENSORRT, plans=plans))
    assert not (tmp_path / "models").exists()


def test_missing_damaged_and_unrecorded_plans_are_refused(bundle, tmp_path):
    plans = tuple(install_plan(tmp_path, network) for network in served_networks(bundle))
    with pytest.raises(InputError, match=r"needs a plan for levelnet\.onnx"):
        write_repository(bundle, tmp_path / "models", replace(TENSORRT, plans=plans[:2]))
    plans[0].write_text(plans[0].read_text().upper())
    with pytest.raises(EngineError, match="damaged or changed"):
        write_repository(bundle, tmp_path / "models", replace(TENSORRT, plans=plans))
    plans[0].with_suffix(".json").unlink()
    with pytest.raises(EngineError, match="not an engine of this software"):
        write_repository(bundle, tmp_path / "models", replace(TENSORRT, plans=plans))
    assert not (tmp_path / "models").exists()


# Served.


def piece_of_spine():
    """100 x 120 x 120 mm of a phantom, which are few windows."""
    anatomy = sample_anatomy(2**31 + 2**20)
    middle = anatomy.centre_ras_mm(anatomy.vertebrae[len(anatomy.vertebrae) // 2])
    rng = np.random.default_rng(0)
    return render(
        anatomy, crop_grid(middle, spacing_mm=2.5, shape_zyx=(40, 48, 48)), sample_appearance(rng), rng
    ).volume


def test_a_phantom_on_the_shipped_bundle_gives_what_onnxruntime_gives_here(bundle, tmp_path):
    write_repository(bundle, tmp_path / "models", Serving(max_batch=1))
    scan = piece_of_spine()
    with Pipeline.open(engine="onnxruntime", threads=1) as pipeline:
        here = pipeline.analyse(scan)
    with serving(StandIn(tmp_path / "models")) as address:
        server = TritonServer(f"grpc://{address}")
        with Pipeline.open(engine="triton", server=server) as pipeline:
            there = pipeline.analyse(scan)
    assert len(here.findings.vertebrae) >= 2
    # The same library, alone with each image, on one thread: not a bit may change on the way.
    assert there.findings.vertebrae == here.findings.vertebrae
    np.testing.assert_array_equal(there.labels, here.labels)
