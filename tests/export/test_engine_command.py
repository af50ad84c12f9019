"""``python -m export.engine``: build, list, prune."""

import hashlib
import json
from dataclasses import replace
from importlib.util import find_spec

import pytest

from export import engine
from export.engine import build_parser, main
from runtime.bundle import open_bundle
from runtime.engines.trt_key import EngineBuild
from runtime.errors import EngineError
from tests.runtime.test_trt_cache import KEY, install

needs_rtx = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "engines"


def command(bundle, folder, *options):
    fixed = ["--engine", "tensorrt-rtx", "--targets", "86", "120"]
    return ["build", "--bundle", str(bundle.folder), "-o", str(folder), *fixed, *options]


@needs_rtx
def test_build_list_and_prune(bundle, folder, capsys):
    assert main(command(bundle, folder, "--batch", "3", "--no-gate")) == 0
    said = capsys.readouterr().out
    assert said.count("fp16, batch 1..3, tensorrt-rtx") == 3
    assert said.count("for SM 86, 120;") == 3
    assert main(["list", "-o", str(folder), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {one["key"]["network"] for one in listed} == {"locnet.onnx", "fracsegnet.onnx", "levelnet.onnx"}
    assert {one["stale"] for one in listed} == {""}
    harmed = next(folder.glob("levelnet*.engine"))
    harmed.write_bytes(b"")
    assert main(["list", "-o", str(folder)]) == 0
    assert f"{harmed}: damaged:" in capsys.readouterr().out
    assert main(["prune", "-o", str(folder), "--bundle", str(bundle.folder)]) == 0
    assert "2 files removed" in capsys.readouterr().out
    assert main(["prune", "-o", str(folder)]) == 0
    assert "0 files removed" in capsys.readouterr().out
    assert main(["prune", "-o", str(folder), "--all"]) == 0
    assert "4 files removed" in capsys.readouterr().out
    assert main(["list", "-o", str(folder)]) == 0
    assert "no engines in" in capsys.readouterr().out


@needs_rtx
def test_engines_of_other_bundles_go_when_asked(bundle, folder, capsys):
    assert main(command(bundle, folder, "--no-gate", "--network", "levelnet")) == 0
    assert main(["prune", "-o", str(folder), "--bundle", str(bundle.folder)]) == 0
    assert "0 files removed" in capsys.readouterr().out
    sidecar = next(folder.glob("*.json"))
    data = json.loads(sidecar.read_text())
    data["key"]["onnx_sha256"] = "0" * 64
    sidecar.write_text(json.dumps(data))
    assert main(["prune", "-o", str(folder), "--bundle", str(bundle.folder)]) == 0
    assert "2 files removed" in capsys.readouterr().out


@needs_rtx
def test_what_the_gate_refuses_is_not_installed(bundle, folder, monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise EngineError("mask Dice 0.9, limit 0.999")

    monkeypatch.setattr("runtime.engines.parity.short_gate", refuse)
    assert main(command(bundle, folder, "--network", "levelnet")) == 3
    assert capsys.readouterr().err == "error: mask Dice 0.9, limit 0.999\n"
    assert list(folder.glob("*.engine")) == []


@needs_rtx
def test_the_gate_judges_the_rounded_graph_against_the_file(bundle, folder, capsys):
    assert main(command(bundle, folder, "--network", "levelnet.onnx")) == 0
    assert "gate: passed by the typed graph" in capsys.readouterr().out


@needs_rtx
def test_an_engine_that_was_built_without_its_gate_is_gated_when_that_is_wanted(bundle, folder, capsys, monkeypatch):
    only = ("--network", "levelnet")
    assert main(command(bundle, folder, *only, "--no-gate")) == 0
    assert "gate: not asked" in capsys.readouterr().out
    monkeypatch.setattr("runtime.engines.trt_build.build_serialized", None)
    assert main(command(bundle, folder, *only)) == 0
    assert "gate: passed by the typed graph" in capsys.readouterr().out


def test_a_folder_that_is_not_there_is_told_from_one_that_cannot_be_read(tmp_path, capsys):
    assert main(["list", "-o", str(tmp_path / "none")]) == 0
    assert "which is not there yet" in capsys.readouterr().out
    (tmp_path / "file").write_text("")
    assert main(["list", "-o", str(tmp_path / "file")]) == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert "cannot be read (Not a directory)" in said.err


def test_what_carries_code_for_the_host_is_trusted_by_name_and_hash(bundle, tmp_path, capsys):
    key = replace(KEY, network="levelnet.onnx", onnx_sha256=bundle.spec.files["levelnet.onnx"])
    build = EngineBuild(("89",), "NVIDIA L4 SM 89", "580", version_compatible=True)
    good, plain = install(tmp_path, b"code", key, build), install(tmp_path, b"plain", key)
    other = install(tmp_path, b"other", KEY, build)
    out = tmp_path / "trusting"
    fixed = ["--bundle", str(bundle.folder), "-o", str(out)]
    for path, said in ((plain, "carries no code for the host"), (other, "another locnet.onnx than this bundle's")):
        assert main(["trust", str(path), *fixed]) == 2
        assert said in capsys.readouterr().err
    assert not out.exists()
    assert main(["trust", str(good), *fixed]) == 0
    assert "trusts 1 engines" in capsys.readouterr().out
    written = open_bundle(out).spec
    assert written.trusted_engines == {good.name: hashlib.sha256(b"code").hexdigest()}
    assert replace(written, trusted_engines={}) == bundle.spec
    good.write_bytes(b"CODE")
    assert main(["trust", str(good), *fixed]) == 3


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--network", "none"], 2, r"no network none.onnx; it has locnet.onnx"),
        (["--bundle", "nowhere"], 3, "no bundle at nowhere"),
        (["--targets", "90"], 3, "not for SM 90"),
        (["--targets", "75", "--precision", "fp32"], 3, "fp16 or int8 on Turing (SM 75), not in fp32"),
    ],
)
@needs_rtx
def test_what_cannot_be_built_is_said_in_one_line(bundle, folder, options, status, said, capsys):
    assert main(command(bundle, folder, "--no-gate", *options)) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert said in err
    assert err.count("\n") == 1


def test_an_interrupt_is_told(bundle, folder, monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "engine_file", interrupt)
    assert main(command(bundle, folder, "--no-gate")) == 130
    assert "interrupted" in capsys.readouterr().err


def test_without_a_library_both_are_named(bundle, folder, monkeypatch, capsys):
    monkeypatch.setattr(engine, "find_spec", lambda name: None)
    assert main(["build", "--bundle", str(bundle.folder), "-o", str(folder)]) == 3
    assert "None of tensorrt, tensorrt-rtx is installed" in capsys.readouterr().err


def test_usage_is_checked():
    for wrong in (["build", "--batch", "0"], ["build", "--precision", "fp8"], ["sell"], []):
        with pytest.raises(SystemExit, match="2"):
            build_parser().parse_args(wrong)
