"""A tiny case of each benchmark runs and ends in one JSON document."""

import json
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from benchmarks import latency
from benchmarks.__main__ import main
from benchmarks.contenders import TORCH_AMP, Contender, TorchVariant
from runtime.engines.base import EngineInfo
from runtime.errors import EngineError


@pytest.mark.parametrize(
    ("arguments", "figure"),
    [
        (["kernels", "--shape", "60,24,24", "--repeats", "2"], "votes_and_peaks_over_one_pass"),
        (["memory", "--shape", "200,128,128"], "peak_memory_gib"),
        (["startup", "--repeats", "1"], "median_s"),
    ],
)
def test_a_tiny_case_of_each(capsys, arguments, figure) -> None:
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])[figure] > 0


def test_latency_of_all_that_is_here_on_tiny_networks(bundle, capsys) -> None:
    options = ["latency", "--bundle", str(bundle.folder), "--repeats", "1", "--threads", "1", "--shape", "20,16,16"]
    assert main([*options, "--engine", "openvino", "--engine", "onnxruntime", "--engine", "tensorrt"]) == 0
    lines = capsys.readouterr().out.splitlines()
    said = json.loads(lines[-1])
    met = {(row["name"], row["precision"]): row for row in said["contenders"]}
    assert {("torch eager", "fp32"), ("openvino", "fp32"), ("onnxruntime", "fp32")} <= set(met)
    for (name, precision), row in met.items():
        assert "failed" not in row, row
        assert row["window_ms_batch_1"] > 0
        assert row["window_ms_batch_4"] > 0
        assert row["crop_ms_batch_1"] > 0
        assert row["scan_s"] > 0
        assert (row["parity"]["mask"] == 0) == (name == "torch eager"), "others round otherwise"
        assert precision != "fp32" or row["parity_faults"] == []
    peer = met["torch eager", "fp32"]
    for row in met.values():
        ratio = peer["window_ms_batch_1"] / row["window_ms_batch_1"]
        assert row["window_speed_over_peer"] == pytest.approx(ratio, abs=1e-3)
    assert said["gflop_per_window"] > 0
    reasons = {one["name"]: one["why"] for one in said["not_here"]}
    assert all(reasons.values())
    assert ("tensorrt", "fp32") in met or "tensorrt" in reasons
    assert any(line.startswith("openvino") for line in lines)


def test_a_contender_that_fails_is_told_and_the_others_go_on(bundle) -> None:
    @contextmanager
    def failing():
        raise EngineError("No memory.\nat line 1")
        yield

    row = latency.measured(Contender("bad", "fp16", failing), bundle, None, 1, 0)
    assert row["failed"] == "No memory."


def test_torch_in_half_precision_is_called_as_a_session_is() -> None:
    network = torch.nn.Conv3d(1, 2, 3, padding=1).to(memory_format=torch.channels_last_3d).eval()
    info = EngineInfo(TORCH_AMP, torch.__version__, "fp16", "CPU", "test")
    image = np.random.default_rng(0).uniform(0, 1, (2, 1, 6, 6, 6)).astype(np.float32)
    wrapped = torch.nn.Module()
    wrapped.forward = lambda x: (network(x),)
    with TorchVariant(wrapped, info, ("heatmap",), device=torch.device("cpu"), half=True) as session:
        (met,) = session(image)
        assert session.on_device(image).is_contiguous(memory_format=torch.channels_last_3d)
    with torch.inference_mode():
        right = network(torch.from_numpy(image)).numpy()
    assert met.dtype == np.float32
    assert 0 < np.abs(met - right).max() < 5e-3, "computed in FP16"
    with pytest.raises(EngineError, match="closed"):
        session(image)


@pytest.mark.parametrize("options", [["--repeats", "0"], ["--threads", "x"]])
def test_bad_options_are_refused(options, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["latency", *options])
    assert ended.value.code == 2
    assert "whole number from 1 on" in capsys.readouterr().err


def test_an_unknown_engine_is_refused(capsys) -> None:
    assert main(["latency", "--engine", "abacus"]) == 3
    assert "no engine 'abacus'" in capsys.readouterr().err
