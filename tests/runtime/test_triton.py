"""The engine triton against a stand-in server that speaks Triton's protocol; see triton_stand_in.py."""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("tritonclient.grpc", reason="needs the extra triton")

import grpc
from google.protobuf import text_format

from export.triton import Serving, model_config, write_repository
from runtime import infer
from runtime.bundle import open_bundle, sha256_of, write_bundle
from runtime.engines import EngineChoice, engine_module, open_session, preflights, select_engine, triton
from runtime.engines.triton import TritonEngine, choose
from runtime.engines.triton_models import NETWORK_SHA256, ServedNetwork, served_networks
from runtime.engines.triton_server import TritonServer
from runtime.errors import EngineError, InputError
from runtime.pipeline import Pipeline
from runtime.typed_graph import typed_graph
from tests.runtime.engine_conformance import (
    CHANNELS,
    SIZE,
    Conformance,
    images,
    in_two_threads,
    reference,
    write_network,
)
from tests.runtime.triton_stand_in import VERSION, StandIn, serving

RESULTS = {"findings.json", "vertebrae.nii.gz", "overview.png"}
MAX_BATCH = 2


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("network") / "tiny.onnx"
    write_network(path)
    return path


@pytest.fixture(scope="module")
def tiny(tiny_file):
    """The network of the conformance suite as a server offers it."""
    space = (SIZE, SIZE, SIZE)
    outputs = MappingProxyType({"heatmap": (1, *space), "offsets": (CHANNELS, *space)})
    return ServedNetwork(tiny_file.name, sha256_of(tiny_file), (1, *space), outputs)


@pytest.fixture(scope="module")
def repository(tiny_file, tiny, tmp_path_factory):
    """The tiny network's repository; its server takes fewer at once than the suite sends."""
    folder = tmp_path_factory.mktemp("repository")
    shutil.copyfile(tiny_file, write_tiny(folder, tiny, "fp32"))
    return folder


def write_tiny(repository, tiny, precision):
    """Write the tiny network's configuration; gives the path at which its graph is to be put."""
    bundle = SimpleNamespace(sha256="0" * 64, spec=SimpleNamespace(name="tiny", version="1"))
    config = model_config(tiny, bundle, Serving(precision=precision, max_batch=MAX_BATCH))
    folder = repository / tiny.model_name(precision)
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(text_format.MessageToString(config))
    return folder / "1" / "model.onnx"


@pytest.fixture(scope="module")
def stand_in(repository):
    return StandIn(repository)


@pytest.fixture(scope="module")
def address(stand_in):
    with serving(stand_in) as address:
        yield address


@pytest.fixture
def tiny_choice(address, tiny):
    return EngineChoice(TritonEngine(TritonServer(f"grpc://{address}"), [tiny]), "triton", "fp32", 0, "for the test")


@pytest.fixture
def session(tiny_choice, tiny_file):
    with open_session(tiny_choice, tiny_file) as opened:
        yield opened


@pytest.fixture
def server(address):
    return TritonServer(f"grpc://{address}")


@pytest.fixture
def hurry(monkeypatch):
    """Pauses before another try are short."""
    monkeypatch.setattr(triton, "_PAUSES_S", (0.05, 0.1, 0.1))


class TestConformance(Conformance):
    """The suite of every engine, over the stand-in."""

    @pytest.fixture
    def network(self, tiny_file):
        return tiny_file

    @pytest.fixture
    def choice(self, tiny_choice):
        return tiny_choice

    def test_info_says_what_runs_where_and_why(self, session, choice):
        info = session.info
        assert (info.name, info.version, info.precision) == ("triton", VERSION, "fp32")
        assert re.fullmatch(r"127\.0\.0\.1:\d+ \(AUTO\)", info.device)
        assert info.reason == choice.reason == "for the test"


def test_no_batch_is_larger_than_the_server_takes(session, stand_in):
    stand_in.batches.clear()
    image = images(5)
    for output, expected in zip(session(image), reference(image), strict=True):
        np.testing.assert_allclose(output, expected, atol=1e-5)
    assert stand_in.batches == [2, 2, 1]


def test_fp16_is_taken_where_it_is_all_that_is_served_and_told(tiny, tiny_file, tmp_path):
    model = write_tiny(tmp_path, tiny, "fp16")
    model.write_bytes(typed_graph(tiny_file, "fp16"))
    with serving(StandIn(tmp_path)) as address:
        engine = TritonEngine(TritonServer(f"grpc://{address}"), [tiny])
        assert engine.preflight().precisions == ("fp16",)
        with engine.open_session(tiny_file, precision="auto", device=0, threads=None, reason="x") as session:
            assert session.info.precision == "fp16"
            for output, expected in zip(session(images(2)), reference(images(2)), strict=True):
                assert 1e-6 < np.abs(output - expected).max() < 5e-3
        with pytest.raises(EngineError, match="computes in fp16, not in fp32"):
            engine.open_session(tiny_file, precision="fp32", device=0, threads=None, reason="x")


# When the server falters.


def test_a_server_that_is_away_for_a_moment_is_asked_again(session, stand_in, hurry, caplog):
    stand_in.failing = [(grpc.StatusCode.UNAVAILABLE, "Server is stopping")] * 2
    with caplog.at_level(logging.WARNING):
        outputs = session(images(1))
    np.testing.assert_allclose(outputs[0], reference(images(1))[0], atol=1e-5)
    assert [record.getMessage().count("Server is stopping") for record in caplog.records] == [1, 1]


def test_a_server_that_stays_away_is_an_error(session, stand_in, hurry):
    stand_in.failing = [(grpc.StatusCode.UNAVAILABLE, "Server is stopping")] * 10
    with pytest.raises(EngineError, match=r"stopped answering in the middle of tiny\.onnx .*stopping; asked 4 times"):
        session(images(1))
    assert len(stand_in.failing) == 6
    stand_in.failing = []


@pytest.mark.parametrize("status", [grpc.StatusCode.INTERNAL, grpc.StatusCode.RESOURCE_EXHAUSTED])
def test_what_another_try_would_not_mend_is_not_tried_again(session, stand_in, status):
    stand_in.failing = [(status, "CUDA out of memory\nand more")] * 2
    with pytest.raises(EngineError, match=r"refused in the middle of tiny\.onnx \(CUDA out of memory\)\.$"):
        session(images(1))
    assert len(stand_in.failing) == 1
    stand_in.failing = []


def test_a_server_that_is_too_slow_is_an_error(server, stand_in, tiny, tiny_file):
    stand_in.before_infer = lambda number: time.sleep(1)
    engine = TritonEngine(replace(server, timeout_s=0.2), [tiny])
    try:
        with engine.open_session(tiny_file, precision="auto", device=0, threads=None, reason="x") as session:
            start_s = time.perf_counter()
            with pytest.raises(EngineError, match="took longer than it may"):
                session(images(1))
            assert time.perf_counter() - start_s < 0.9
    finally:
        stand_in.before_infer = lambda number: None


def change_shape(response):
    response.outputs[0].shape[:] = [1, 1, SIZE, SIZE, SIZE + 1]


def change_type(response):
    response.outputs[1].datatype = "INT32"


def drop_output(response):
    del response.outputs[1]


@pytest.mark.parametrize("distort", [change_shape, change_type, drop_output])
def test_an_answer_of_another_kind_is_an_error(session, stand_in, distort):
    stand_in.distort = distort
    try:
        with pytest.raises(EngineError, match=r"gave .* as (heatmap|offsets) of tiny\.onnx; float32 \(1, [13], 8"):
            session(images(1))
    finally:
        stand_in.distort = lambda response: None


# What is found out before anything is run.


def test_the_preflight_says_what_is_served(server, tiny, stand_in):
    stand_in.batches.clear()
    found = TritonEngine(server, [tiny]).preflight()
    assert found.available
    assert found.precisions == ("fp32",)
    assert VERSION in found.reason
    assert stand_in.batches == []


def why_not(server, tiny, **changes):
    found = TritonEngine(server, [replace(tiny, **changes)]).preflight()
    assert not found.available
    assert found.precisions == ()
    return found.reason


def test_no_server_is_told_at_once(tiny):
    start_s = time.perf_counter()
    assert "no Triton server answers at grpc://127.0.0.1:9" in why_not(TritonServer("grpc://127.0.0.1:9"), tiny)
    assert time.perf_counter() - start_s < 5


def test_something_that_is_no_triton_is_told(tiny):
    plain = grpc.server(ThreadPoolExecutor(1))
    port = plain.add_insecure_port("127.0.0.1:0")
    plain.start()
    try:
        assert "refused" in why_not(TritonServer(f"grpc://127.0.0.1:{port}"), tiny)
    finally:
        plain.stop(None).wait(10)


def test_a_server_that_is_not_live_is_refused(server, tiny, stand_in, monkeypatch):
    monkeypatch.setattr(stand_in, "is_live", False)
    assert "not live" in why_not(server, tiny)


def test_another_bundle_is_told_with_what_is_there(server, tiny, stand_in, monkeypatch):
    reason = why_not(server, tiny, sha256="f" * 64)
    assert "serves another bundle" in reason
    assert tiny.model_name("fp32") in reason
    assert "vertscan_tiny_ffffffffffff_fp32" in reason
    monkeypatch.setattr(stand_in, "index_is_open", False)
    assert "has no model vertscan_tiny_ffffffffffff_fp32" in why_not(server, tiny, sha256="f" * 64)


def test_a_model_of_another_name_only_is_missed(server, tiny):
    assert "has no model vertscan_other_" in why_not(server, tiny, file="other.onnx")


def test_a_model_that_is_not_ready_is_told_with_the_servers_reason(server, tiny, stand_in, monkeypatch):
    model = stand_in.models[tiny.model_name("fp32")]
    monkeypatch.setattr(model, "session", None)
    monkeypatch.setattr(model, "reason", "out of memory")
    assert "is not ready (out of memory)" in why_not(server, tiny)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c.parameters[NETWORK_SHA256].__setattr__("string_value", "e" * 64), "its SHA-256 is"),
        (lambda c: c.parameters.clear(), "the server tells nothing"),
        (lambda c: c.parameters["vertscan_precision"].__setattr__("string_value", "fp16"), "precision should be fp32"),
        (lambda c: c.__setattr__("max_batch_size", 0), "max_batch_size"),
        (lambda c: c.input[0].__setattr__("name", "IMAGE"), "its input should be image FP32 (1, 8, 8, 8)"),
        (lambda c: c.input[0].dims.__setitem__(1, 9), "the server tells image FP32 (1, 9, 8, 8)"),
        (lambda c: c.output[0].__setattr__("data_type", 10), "the server tells heatmap FP16"),
        (lambda c: c.output.pop(), "its output should be"),
    ],
    ids=["hash", "no-parameters", "precision", "batch", "input-name", "input-shape", "output-type", "output-gone"],
)
def test_a_model_that_is_not_the_bundles_is_refused(server, tiny, stand_in, tiny_file, change, told):
    model = stand_in.models[tiny.model_name("fp32")]
    kept = type(model.config)()
    kept.CopyFrom(model.config)
    change(model.config)
    try:
        reason = why_not(server, tiny)
        assert told in reason
        assert "is not this bundle's tiny.onnx" in reason
        with pytest.raises(EngineError, match="is not this bundle's"):
            TritonEngine(server, [tiny]).open_session(tiny_file, precision="fp32", device=0, threads=None, reason="x")
    finally:
        model.config.CopyFrom(kept)


def test_a_gpu_number_is_refused(server, tiny, tiny_file):
    assert "device 3" in TritonEngine(server, [tiny]).preflight(device=3).reason
    with pytest.raises(EngineError, match="device 3"):
        TritonEngine(server, [tiny]).open_session(tiny_file, precision="fp32", device=3, threads=None, reason="x")


def test_it_is_never_chosen_by_itself_and_says_what_it_needs():
    assert not preflights()["triton"].available
    assert select_engine().name != "triton"
    assert "triton" not in select_engine().reason
    with pytest.raises(EngineError, match="--url"):
        select_engine("triton")
    with pytest.raises(EngineError, match="--url"):
        engine_module("triton").open_session(Path("x"), precision="auto", device=0, threads=None, reason="x")


def test_a_library_that_is_not_installed_is_named_with_its_package(monkeypatch, server, tiny):
    monkeypatch.setattr(triton, "find_spec", lambda asked: None)
    assert "pip install" in triton.preflight().reason
    assert "pip install" in why_not(server, tiny)


# The address.


@pytest.mark.parametrize(
    ("url", "host", "tls", "here"),
    [
        ("grpc://localhost:8001", "localhost:8001", False, True),
        ("grpcs://gpu.example", "gpu.example:8001", True, False),
        ("grpc://127.3.0.1:1", "127.3.0.1:1", False, True),
        ("grpc://[::1]:9000", "[::1]:9000", False, True),
        ("grpcs://10.0.0.7:8001", "10.0.0.7:8001", True, False),
    ],
)
def test_addresses(url, host, tls, here):
    server = TritonServer(url)
    assert (server.host, server.uses_tls, server.is_this_machine) == (host, tls, here)


@pytest.mark.parametrize(
    "url",
    [
        *("", "gpu:8001", "http://gpu:8000", "grpc://", "grpc://gpu:x", "grpc://gpu:99999", "grpc://gpu:0"),
        *("grpc://:8001", "grpc://me:secret@gpu:8001", "grpc://gpu:8001/models", "grpc://gpu:8001?x=1", "grpc://g#x"),
    ],
)
def test_what_is_no_address_is_refused_with_an_example(url):
    with pytest.raises(InputError, match="grpc://HOST:8001"):
        TritonServer(url)


def test_tls_files_need_tls_and_each_other_and_to_be_there(tmp_path):
    there = tmp_path / "ca.pem"
    there.write_text("x")
    with pytest.raises(InputError, match="grpcs://gpu:8001"):
        TritonServer("grpc://gpu:8001", ca_file=there)
    with pytest.raises(InputError, match="go together"):
        TritonServer("grpcs://gpu:8001", certificate_file=there)
    with pytest.raises(InputError, match="no certificate or key at"):
        TritonServer("grpcs://gpu:8001", ca_file=tmp_path / "none.pem")
    with pytest.raises(InputError, match="positive"):
        TritonServer("grpc://gpu:8001", timeout_s=0)


def make_certificate(folder, name):
    """A certificate that signs itself, for 127.0.0.1, and its key."""
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    kind = ("-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-addext", "subjectAltName=IP:127.0.0.1")
    command = ["openssl", "req", *kind, "-subj", f"/CN={name}", "-keyout", key, "-out", certificate]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes certificates with openssl")
def test_tls_both_ways(stand_in, tiny, tiny_file, tmp_path, capfd):
    ours, ours_key = make_certificate(tmp_path, "server")
    client, client_key = make_certificate(tmp_path, "client")
    credentials = grpc.ssl_server_credentials(
        [(ours_key.read_bytes(), ours.read_bytes())], client.read_bytes(), require_client_auth=True
    )
    with serving(stand_in, credentials) as address:
        good = TritonServer(f"grpcs://{address}", ours, client, client_key)
        engine = TritonEngine(good, [tiny])
        with engine.open_session(tiny_file, precision="fp32", device=0, threads=None, reason="x") as session:
            np.testing.assert_allclose(session(images(1))[0], reference(images(1))[0], atol=1e-5)
        capfd.readouterr()
        for bad in (
            TritonServer(f"grpc://{address}"),
            TritonServer(f"grpcs://{address}"),
            TritonServer(f"grpcs://{address}", ours),
            TritonServer(f"grpcs://{address}", client, client, client_key),
        ):
            assert "no Triton server answers" in TritonEngine(bad, [tiny]).preflight().reason


# Whole scans.


@pytest.fixture(scope="module")
def balls(level_bundle, tmp_path_factory):
    """A bundle of three networks and its repository."""
    folder = tmp_path_factory.mktemp("models") / "repository"
    write_repository(open_bundle(level_bundle), folder, Serving(max_batch=3))
    return level_bundle, folder


@pytest.fixture(scope="module")
def ball_stand_in(balls):
    return StandIn(balls[1])


@pytest.fixture(scope="module")
def ball_address(ball_stand_in):
    with serving(ball_stand_in) as address:
        yield address


@pytest.fixture
def work(tmp_path, monkeypatch, level_scan, save):
    """An empty working directory with a scan beside it."""
    save(level_scan(["T11", "T12", "L1", "L2"]).volume, tmp_path / "scan.nii.gz")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "scan.nii.gz"


def command(scan, bundle, address, *more):
    options = ("--bundle", str(bundle), "--engine", "triton", "--url", f"grpc://{address}")
    return [str(scan), *options, *more]


def same_but_for_the_run(one, two):
    """Whether two result folders hold the same findings, but for engine, times and memory, and the same masks."""
    texts = [json.loads((folder / "findings.json").read_text()) for folder in (one, two)]
    masks = [np.asarray(nib.load(folder / "vertebrae.nii.gz").dataobj) for folder in (one, two)]
    for text in texts:
        for key in ("engine", "timings_s", "peak_memory_mb"):
            del text[key]
    return texts[0] == texts[1] and np.array_equal(*masks)


def test_a_whole_scan_gives_what_onnxruntime_gives_here(balls, ball_address, ball_stand_in, work, capsys):
    assert infer.main(command(work, balls[0], ball_address, "-o", "there")) == 0
    assert infer.main([str(work), "--bundle", str(balls[0]), "--engine", "onnxruntime", "-o", "here"]) == 0
    capsys.readouterr()
    assert {path.name for path in Path("there").iterdir()} == RESULTS
    assert same_but_for_the_run(Path("there"), Path("here"))
    findings = json.loads(Path("there/findings.json").read_text())
    assert [v["level"] for v in findings["vertebrae"]] == ["T11", "T12", "L1", "L2"]
    assert findings["engine"] == {
        "name": "triton",
        "version": VERSION,
        "precision": "fp32",
        "device": f"{ball_address} (AUTO)",
        "reason": "asked for by name",
    }
    assert max(ball_stand_in.batches) == 3


@pytest.mark.parametrize("file", ["locnet.onnx", "fracsegnet.onnx", "levelnet.onnx"])
def test_a_model_file_that_was_exchanged_under_its_configuration_is_refused(balls, tmp_path, file):
    """The configuration, digest and all, is the bundle's, and so are all names and shapes."""
    onnx = pytest.importorskip("onnx")
    bundle = open_bundle(balls[0])
    repository = tmp_path / "models"
    shutil.copytree(balls[1], repository)
    (network,) = (one for one in served_networks(bundle) if one.file == file)
    path = repository / network.model_name("fp32") / "1" / "model.onnx"
    model = onnx.load(path)
    for weight in model.graph.initializer:
        if weight.name in ("level", "logits", "codes"):
            values = onnx.numpy_helper.to_array(weight)
            changed = np.float32(values * 0.7 if weight.name != "logits" else values[::-1])
            weight.CopyFrom(onnx.numpy_helper.from_array(changed, weight.name))
    onnx.save(model, path)
    with serving(StandIn(repository)) as address:
        server = TritonServer(f"grpc://{address}")
        assert TritonEngine(server, served_networks(bundle)).preflight().available, "by its configuration it is right"
        with pytest.raises(
            EngineError, match=rf"set up for this bundle's {file} .*and what it runs says something else"
        ):
            Pipeline.open(bundle.folder, engine="triton", server=server)
    with serving(StandIn(balls[1])) as address:
        Pipeline.open(bundle.folder, engine="triton", server=TritonServer(f"grpc://{address}")).close()


def test_two_clients_at_once(balls, ball_address, ball_stand_in, level_scan):
    scans = {name: level_scan([name, "L1", "L2"]).volume for name in ("T11", "T12")}
    told = {}

    def client(name):
        with Pipeline.open(balls[0], engine="triton", server=TritonServer(f"grpc://{ball_address}")) as pipeline:
            told[name] = [pipeline.analyse(scans[name]) for _ in range(2)]

    assert in_two_threads(lambda: client("T11"), lambda: client("T12")) == []
    with Pipeline.open(balls[0], engine="onnxruntime") as pipeline:
        for name, analyses in told.items():
            alone = pipeline.analyse(scans[name])
            for analysis in analyses:
                assert analysis.findings.vertebrae == alone.findings.vertebrae
                np.testing.assert_array_equal(analysis.labels, alone.labels)


def test_another_bundle_on_the_server_is_status_3_and_writes_nothing(ball_bundle, ball_address, address, work, capsys):
    # The two networks of ball_bundle are those of the three: they are served.
    assert infer.main(command(work, ball_bundle, ball_address, "--no-overview", "--quiet")) == 0
    assert infer.main(command(work, ball_bundle, address, "-o", "new")) == 3
    err = capsys.readouterr().err
    assert "has no model vertscan_locnet_" in err
    assert len(err.splitlines()) == 1
    assert not Path("new").exists()


def test_a_bundle_of_the_same_networks_is_served_too_and_one_of_others_is_not(ball_bundle, ball_address, tmp_path):
    balls = open_bundle(ball_bundle)
    spec = replace(balls.spec, locnet=replace(balls.spec.locnet, min_confidence=0.3))
    same = write_bundle(spec, {name: balls.path_of(name) for name in balls.spec.files}, tmp_path / "same")
    shutil.copytree(ball_bundle, tmp_path / "changed")
    onnx = pytest.importorskip("onnx")
    model = onnx.load(tmp_path / "changed" / "locnet.onnx")
    model.doc_string = "trained once more"
    onnx.save(model, tmp_path / "changed" / "locnet.onnx")
    files = {name: tmp_path / "changed" / name for name in balls.spec.files}
    other = write_bundle(balls.spec, files, tmp_path / "other")
    server = TritonServer(f"grpc://{ball_address}")
    with Pipeline.open(same.folder, engine="triton", server=server) as pipeline:
        assert pipeline.engine_info.name == "triton"
    with pytest.raises(EngineError, match="serves another bundle"):
        Pipeline.open(other.folder, engine="triton", server=server)


def test_no_server_is_status_3(balls, work, capsys):
    assert infer.main(command(work, balls[0], "127.0.0.1:9")) == 3
    assert "error: The engine triton cannot be used: no Triton server answers" in capsys.readouterr().err
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--engine", "triton"], "--url"),
        (["--url", "grpc://gpu:8001"], "--url is for --engine triton"),
        (["--engine", "openvino", "--tls-ca", "x"], "--tls-ca is for --engine triton; met --engine openvino"),
        (["--engine", "triton", "--url", "gpu"], "grpc://HOST:8001"),
        (["--engine", "triton", "--url", "grpc://gpu:8001", "--server-timeout", "-1"], "positive"),
    ],
)
def test_options_that_do_not_go_together_are_status_2(work, capsys, options, told):
    assert infer.main([str(work), *options]) == 2
    assert told in capsys.readouterr().err


def test_a_precision_that_is_not_served_is_refused(balls, ball_address, work, capsys):
    assert infer.main(command(work, balls[0], ball_address, "--precision", "fp16")) == 3
    assert "computes in fp32, not in fp16" in capsys.readouterr().err


def test_unencrypted_voxels_to_elsewhere_are_warned_of(balls, ball_address, caplog, monkeypatch):
    bundle, server = open_bundle(balls[0]), TritonServer(f"grpc://{ball_address}")
    choose(server, bundle)
    assert "unencrypted" not in caplog.text
    monkeypatch.setattr(TritonServer, "is_this_machine", False)
    choose(server, bundle)
    assert "unencrypted" in caplog.text


def test_a_server_for_another_engine_is_refused(balls, ball_address):
    with pytest.raises(InputError, match="engine triton only, met auto"):
        Pipeline.open(balls[0], server=TritonServer(f"grpc://{ball_address}"))


@pytest.mark.parametrize("served", [0, 4, 9])
def test_a_server_killed_in_mid_run_is_status_3_and_leaves_nothing(balls, work, capsys, hurry, served):
    script = Path(__file__).parent / "triton_stand_in.py"
    arguments = [sys.executable, str(script), str(balls[1]), "--die-after", str(served)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        try:
            address = process.stdout.readline().strip()
            assert infer.main(command(work, balls[0], address)) == 3
            assert process.wait(10) == -9
        finally:
            process.kill()
    assert "stopped answering in the middle of" in capsys.readouterr().err
    assert list(Path().iterdir()) == []


def test_the_networks_are_told_as_the_files_have_them(balls):
    onnx = pytest.importorskip("onnx")
    for bundle in (open_bundle(balls[0]), open_bundle()):
        for network in served_networks(bundle):
            graph = onnx.load(bundle.path_of(network.file)).graph
            shapes = {
                value.name: [d.dim_value or None for d in value.type.tensor_type.shape.dim][1:]
                for value in (*graph.input, *graph.output)
            }
            expected = {"image": network.image_shape, **network.outputs}
            assert list(shapes) == list(expected)
            for name, shape in shapes.items():
                assert len(shape) == len(expected[name])
                assert all(met in (None, want) for met, want in zip(shape, expected[name], strict=True))
