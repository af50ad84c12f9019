"""A tiny case of each benchmark runs, says what it should, and ends in one JSON document of the schema."""

import json
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import numpy as np
import pytest
import torch

import benchmarks
from benchmarks import __main__ as command
from benchmarks import accuracy, latency, memory, plots, scaling, startup
from benchmarks.__main__ import main
from benchmarks.contenders import HALF, TORCH_COMPILED, TORCH_EAGER, Contender, TorchVariant, contenders
from benchmarks.figures import Figure
from benchmarks.peer_pipeline import PeerRun
from benchmarks.report import Report
from benchmarks.scans import enlarged_scan, phantom_scan, save
from benchmarks.stage_clock import NETWORK_STAGES, StagedRun
from benchmarks.stages import agreement
from runtime.bundle import write_bundle
from runtime.cache import user_cache_folder
from runtime.engines.base import EngineInfo
from runtime.engines.parity import Parity
from runtime.errors import EngineError, InputError
from runtime.readers import read_scan
from train.processor import processor_has_bf16

SCHEMA = json.loads((Path(benchmarks.__file__).parent / "report.schema.json").read_text(encoding="utf-8"))
TINY = ["--repeats", "2", "--threads", "1", "--matrix", "0"]


def document_of(capsys, *arguments: str) -> dict:
    """What a command says in its last line, checked by the schema."""
    assert main([*arguments]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    jsonschema.validate(document, SCHEMA)
    return document


def test_kernels_with_ceiling_and_plot(bundle, capsys, tmp_path) -> None:
    out, plot = tmp_path / "k.json", tmp_path / "k.png"
    options = ["--bundle", str(bundle.folder), "--repeats", "2", "--threads", "1", "--matrix", "64"]
    found = document_of(capsys, "kernels", *options, "--shape", "40,30,30", "-o", str(out), "--plot", str(plot))
    assert found == json.loads(out.read_text(encoding="utf-8"))
    assert plot.read_bytes().startswith(b"\x89PNG")
    groups = {"votes and peaks", "read", "resample", "blend windows", "paste", "write"}
    assert {key.split("/")[0] for key in found["figures"]} == groups
    assert all(found["figures"][f"{group}/ours"]["runs"] == 2 for group in groups)
    assert all(figure["median"] > 0 for figure in (found["figures"] | found["ratios"]).values())
    assert found["ceiling"]["gflop_per_s"]["fp32"] > 0
    assert set(found["ceiling"]["networks"]) == {"locnet", "fracsegnet", "levelnet"}


def test_one_group_of_kernels_and_an_unknown_one(bundle, capsys) -> None:
    options = [*TINY, "--bundle", str(bundle.folder), "--shape", "40,30,30", "--only"]
    found = document_of(capsys, "kernels", *options, "votes and peaks")
    assert {key.split("/")[0] for key in found["figures"]} == {"votes and peaks"}
    assert main(["kernels", *options, "juggling"]) == 2
    assert "no group 'juggling'" in capsys.readouterr().err


def test_stages_of_a_file(bundle, capsys, tmp_path) -> None:
    scan = save(phantom_scan((30, 20, 20), spacing_mm=6.0), tmp_path / "scan.nii.gz")
    plot = tmp_path / "stages.svg"
    options = ["--repeats", "1", "--threads", "1", "--matrix", "64", "--bundle", str(bundle.folder)]
    found = document_of(capsys, "stages", *options, "--engines", "openvino", "--scan", str(scan), "--plot", str(plot))
    figures = found["figures"]
    ours, peer = "scan.nii.gz: openvino fp32", "scan.nii.gz: MONAI, torch eager fp32"
    assert figures[f"{ours}/windows: network"]["median"] > 0
    assert figures[f"{ours}/overview"]["median"] > 0
    for title in (ours, peer):
        kept = {"total", "networks", "one window", "share of all but the networks"}
        stages = {
            k: f["median"] for k, f in figures.items() if k.startswith(f"{title}/") and k.split("/")[-1] not in kept
        }
        assert sum(stages.values()) == pytest.approx(figures[f"{title}/total"]["median"], abs=2e-3)
        network_s = sum(stages.get(f"{title}/{stage}", 0) for stage in NETWORK_STAGES)
        share = 1 - network_s / figures[f"{title}/total"]["median"]
        assert figures[f"{title}/share of all but the networks"]["median"] == pytest.approx(share, abs=1e-3)
    halves = [f"MONAI, {HALF['cpu'].name} bf16"] if processor_has_bf16() else []
    told = {"exhaustive": True, "peers": ["MONAI, torch eager fp32", *halves]}
    assert told.items() <= found["settings"].items()
    assert found["settings"]["shapes_zyx"] == [[30, 20, 20]]
    inputs = found["details"]["scan.nii.gz"]["inputs"]
    assert inputs["openvino fp32"]["locnet"] == inputs["MONAI, torch eager fp32"]["locnet"] > 0, "the same windows"
    over = figures[f"{peer}/networks"]["median"] / figures[f"{ours}/networks"]["median"]
    told = found["ratios"]["scan.nii.gz: networks/MONAI, torch eager fp32 / openvino fp32"]["median"]
    assert told == pytest.approx(over, rel=1e-3)
    beside = found["details"]["scan.nii.gz"]["beside_torch"]
    assert set(beside) == {title for title in inputs if not title.startswith("MONAI")}
    assert "svg" in plot.read_text(encoding="utf-8")


def test_peers_can_run_other_networks(bundle, capsys, tmp_path) -> None:
    """Such as those that ours were distilled from; here the same ones with more overlap, so on more windows."""
    scan = save(phantom_scan((30, 20, 20), spacing_mm=6.0), tmp_path / "scan.nii.gz")
    spec = replace(bundle.spec, version="9", locnet=replace(bundle.spec.locnet, overlap=0.75))
    others = write_bundle(spec, {name: bundle.path_of(name) for name in spec.files}, tmp_path / "others")
    options = ["--repeats", "1", "--threads", "1", "--matrix", "64", "--bundle", str(bundle.folder)]
    options += ["--engines", "openvino", "--scan", str(scan), "--peers-bundle", str(others.folder)]
    found = document_of(capsys, "stages", *options)
    assert found["settings"]["peers_bundle"] == others.sha256
    inputs = found["details"]["scan.nii.gz"]["inputs"]
    assert inputs["MONAI, torch eager fp32"]["locnet"] > inputs["openvino fp32"]["locnet"] > 0
    with pytest.raises(SystemExit):
        main(["stages", *options, "--no-peers"])


def test_peers_who_find_the_same_are_told_from_those_who_do_not() -> None:
    """By twins of our own run: the same, moved by less and more than half a voxel, graded otherwise, with less mask."""
    labels = np.zeros((4, 6, 6), np.uint8)
    labels[1:3, 1:5, 1:3] = 1
    vertebrae = [
        SimpleNamespace(centre_ras_mm=(0.0, 0.0, z), network=SimpleNamespace(grade=grade))
        for z, grade in ((0.0, 2), (30.0, 0))
    ]
    ours = StagedRun({}, {}, SimpleNamespace(vertebrae=vertebrae), labels)  # type: ignore[arg-type]
    centres, grades = np.array([(0.0, 0.0, 30.0), (0.0, 0.0, 0.0)]), np.array([0, 2])

    def met(**changed: np.ndarray) -> dict[str, float]:
        return agreement(ours, replace(PeerRun({}, {}, centres, grades, labels), **changed), within_mm=0.4)

    assert met() == {"centres_as_ours": 2, "graded": 2, "grades_as_ours": 2, "dice": 1.0}
    assert met(centres_ras_mm=centres + 0.2)["centres_as_ours"] == 2
    assert met(centres_ras_mm=centres + np.array([[0, 0.5, 0], [0, 0, 0]]))["centres_as_ours"] == 1
    assert met(grades=np.array([0, 3]))["grades_as_ours"] == 1
    assert met(labels=np.where(np.arange(6) < 2, labels, 0))["dice"] == pytest.approx(2 / 3, abs=1e-5)
    nobody = met(centres_ras_mm=np.zeros((0, 3)), grades=np.zeros(0, int))
    assert (nobody["centres_as_ours"], nobody["graded"]) == (0, 0)


def test_latency_of_all_that_is_here_on_tiny_networks(bundle, capsys, tmp_path) -> None:
    plot = tmp_path / "latency.png"
    options = ["latency", "--bundle", str(bundle.folder), "--repeats", "1", "--threads", "1", "--shape", "20,16,16"]
    options += ["--spacing", "2", "--no-compile", "--matrix", "64", "--plot", str(plot)]
    found = document_of(capsys, *options, "--engines", "openvino", "onnxruntime", "tensorrt")
    assert found["settings"]["shapes_zyx"] == [[20, 16, 16]], "a scan of as many mm has the same name"
    contenders, figures = found["details"]["contenders"], found["figures"]
    assert {"torch eager fp32", "openvino fp32", "onnxruntime fp32"} <= set(contenders)
    for title, said in contenders.items():
        assert said["failed"] == "", said
        for group in ("one window, batch 1", "one window, batch 4", "one crop", "whole scan phantom-40x32x32"):
            assert figures[f"{group}/{title}"]["median"] > 0
        assert (said["parity"]["mask"] == 0) == (title == "torch eager fp32"), "others round otherwise"
        assert not title.endswith("fp32") or said["parity_faults"] == []
    ratio = found["ratios"]["one crop/torch eager fp32 / openvino fp32"]["median"]
    beside_s = contenders["openvino fp32"]["torch_eager_fp32_beside_s"]["one crop"]
    assert ratio == pytest.approx(beside_s / figures["one crop/openvino fp32"]["median"], rel=1e-3)
    assert 0.05 < beside_s / figures["one crop/torch eager fp32"]["median"] < 20, "the same network on the same crop"
    reasons = {one["name"]: one["why"] for one in found["missing"]}
    assert "tensorrt fp32" in contenders or "tensorrt" in reasons
    assert reasons[TORCH_COMPILED] == "left out by --no-compile"
    assert plot.stat().st_size > 0


def test_what_was_measured_is_kept_when_a_later_contender_takes_too_long(bundle, monkeypatch, tmp_path, capsys) -> None:
    """What is in the file then is the document of those before."""
    run, met = latency.measured, []

    def impatient(one: Contender, *rest: object) -> object:
        if len(met) == 2:
            raise KeyboardInterrupt
        met.append(one.title)
        return run(one, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(latency, "measured", impatient)
    out = tmp_path / "latency.json"
    options = [*TINY, "--bundle", str(bundle.folder), "--no-compile", "--no-scan", "-o", str(out)]
    assert main(["latency", *options, "--engines", "openvino", "onnxruntime", "--precisions", "fp32"]) == 130
    kept = json.loads(out.read_text(encoding="utf-8"))
    jsonschema.validate(kept, SCHEMA)
    there, _ = contenders(bundle, engines=["openvino", "onnxruntime"], precisions=["fp32"], compiled=False)
    assert list(kept["details"]["contenders"]) == met == [one.title for one in there[:2]]
    assert met[0] == "torch eager fp32"


def test_engines_take_part_in_the_precisions_that_are_named(bundle) -> None:
    there, _ = contenders(bundle, engines=["openvino", "onnxruntime"], precisions=["fp32"], compiled=False)
    titles = [one.title for one in there if not one.name.startswith("torch")]
    assert titles == ["openvino fp32", "onnxruntime fp32"]


def test_torch_in_half_precision_is_a_peer_only_where_it_is_not_emulated(bundle, monkeypatch) -> None:
    half = HALF["cpu"].name
    for has_it in (False, True):
        monkeypatch.setattr("benchmarks.contenders.processor_has_bf16", lambda has_it=has_it: has_it)
        there, missing = contenders(bundle, engines=["openvino"], device=99, compiled=False)
        assert (half in [one.name for one in there]) == has_it
        assert ("only emulates it" in " ".join(one.why for one in missing if one.name == half)) == (not has_it)


def test_compiled_torch_is_a_peer_where_there_is_a_compiler(bundle, monkeypatch) -> None:
    """In FP32 everywhere, in half precision where that is a peer."""
    monkeypatch.setattr("benchmarks.contenders.processor_has_bf16", lambda: True)
    names = [TORCH_EAGER, HALF["cpu"].name, HALF["cpu"].compiled_name, TORCH_COMPILED]
    for compiler in ("/usr/bin/g++", None):
        monkeypatch.setattr("benchmarks.contenders.shutil.which", lambda name, compiler=compiler: compiler)
        there, missing = contenders(bundle, engines=["openvino"], precisions=["fp32"], device=99)
        assert [one.name for one in there] == (names if compiler else names[:2])
        why = [one.why for one in missing if one.name != "openvino"]
        assert why == ([] if compiler else 2 * ["there is no C++ compiler"])


def test_accuracy_says_what_is_exact(bundle, capsys) -> None:
    options = ["--phantoms", "1", "--engines", "openvino", "--bundle", str(bundle.folder)]
    found = document_of(capsys, "accuracy", *TINY, *options)
    assert found["details"]["openvino fp32"]["faults"] == []
    if processor_has_bf16():
        half = f"{HALF['cpu'].name} bf16"
        assert found["details"][half]["heatmap"] > found["details"]["openvino fp32"]["heatmap"], "computed in BF16"
    assert not found["figures"]["networks per scan/openvino fp32"]["exact"]
    assert "mask Dice/openvino fp32" not in found["figures"], "these networks find no centres: nothing was compared"


def test_accuracy_of_what_was_compared() -> None:
    found = accuracy.Found(Contender("fast", "bf16", nullcontext))
    found.parities = [
        Parity(centres=3, centre_shift_mm=0.2, masks=2, voxels_shared=45, voxels_of_both=100, smallest_dice=0.8),
        Parity(centres=1, centre_shift_mm=0.4, grades=4, grades_changed=1, grade=0.3),
    ]
    found.seconds = [1.0, 2.0]
    figures = {figure.key: figure for figure in accuracy.figures_of(found)}
    assert figures["mask Dice/fast bf16"].median == pytest.approx(0.9)
    assert figures["smallest mask Dice/fast bf16"].median == 0.8
    assert figures["largest centre shift/fast bf16"].median == 0.4
    assert figures["grade agreement/fast bf16"].median == 0.75
    assert "level agreement/fast bf16" not in figures
    assert all(figure.exact == (figure.unit != "s") for figure in figures.values())


def test_accuracy_of_nothing_is_refused(capsys) -> None:
    assert main(["accuracy", "--phantoms", "0", "--matrix", "0"]) == 2
    assert "nothing to compare on" in capsys.readouterr().err


def test_scaling_finds_what_the_cost_grows_with(bundle, capsys, tmp_path, monkeypatch) -> None:
    """Of a process that takes 0.01 s and a window for each millimetre of spine, and 2 MiB for each thousand voxels; in
    the exhaustive pass a window for each thousand voxels."""

    def process(scan: Path, *, exhaustive: bool, **options) -> dict:
        z, y, x = read_scan(scan).array.shape
        windows = {"run": z * y * x / 1000 if exhaustive else z - 1, "planned": 0, "scouted": 0 if exhaustive else 1}
        centres = [(0.0, 0.0, 3.0 * i) for i in range(z // 3)]
        first, second = (
            {"stages_s": {"total": s}, "vertebrae": z // 3, "centres_ras_mm": centres, "windows": windows}
            for s in (99.0, 0.01 * z)
        )
        return {"runs": [first, second], "peak_memory_mib": 2e-3 * z * y * x}

    monkeypatch.setattr(scaling, "in_fresh_process", process)
    plot = tmp_path / "scaling.png"
    options = [*TINY, "--bundle", str(bundle.folder), "--scale", "0.1", "--plot", str(plot)]
    found = document_of(capsys, "scaling", *options)
    assert len({tuple(row["shape_zyx"]) for row in found["details"]["sizes"]}) == 9, "one size is in both series"
    slopes = found["details"]["slopes"]
    assert slopes["spine grows"]["s_per_litre"] == pytest.approx(0.01 / (40 * 40 * 1e-6), rel=1e-6)
    assert slopes["field of view grows"]["s_per_litre"] == pytest.approx(0, abs=1e-6)
    assert slopes["spine grows"]["windows_per_litre"] == pytest.approx(1 / (40 * 40 * 1e-6), rel=1e-6)
    assert slopes["field of view grows"]["windows_per_litre"] == pytest.approx(0, abs=1e-6)
    assert all(slope["exhaustive_windows_per_litre"] == pytest.approx(1000) for slope in slopes.values())
    assert {row["centres_changed"] for row in found["details"]["sizes"]} == {0}
    assert all(slope["mib_per_litre"] == pytest.approx(2000) for slope in slopes.values())
    assert plot.stat().st_size > 0


def test_centres_that_moved_or_went_are_counted() -> None:
    every = [(0.0, 0.0, 0.0), (0.0, 0.0, 30.0), (0.0, 0.0, 60.0)]
    assert scaling.centres_changed([(1.0, 1.0, 0.0), *every[1:]], every) == 0
    assert scaling.centres_changed([(2.0, 0.0, 0.0), *every[1:]], every) == 2, "one lost, one added"
    assert scaling.centres_changed(every[:2], every) == 1
    assert scaling.centres_changed([], every) == 3
    assert scaling.spine_mm(every) == 60.0


STUBS = """
import os, sys, time, types
time.sleep(0.5)

def module(name, **holds):
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(holds)

class Opened:
    spec = types.SimpleNamespace(locnet=types.SimpleNamespace(window_zyx=(4, 4, 4), spacing_mm=3.0))
    def __enter__(self): return self
    def __exit__(self, *exc_info): pass
    def analyse(self, volume, progress): progress.step(1, 1)

class Pipeline:
    @staticmethod
    def open(bundle, *, engine, threads, exhaustive):
        used = [bundle, engine, threads, *(os.environ[name] for name in THREADS)]
        assert used == ["a bundle", "abacus", 3, "3", "3"], used
        return Opened()

THREADS = ("NUMBA_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
module("runtime")
module("runtime.pipeline", Pipeline=Pipeline)
module("runtime.progress", NoProgress=object)
module("runtime.volume", Grid=lambda *a: None, Volume=lambda *a: None)
"""


def test_a_process_is_timed_from_its_start_and_on_the_threads_asked_for(monkeypatch, tmp_path) -> None:
    """By stubs of what the process imports, in an interpreter that takes half a second to start."""
    (tmp_path / "sitecustomize.py").write_text(STUBS, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    figures = startup._first_windows(1, bundle=Path("a bundle"), engine="abacus", threads=3)
    assert len(figures) == 4
    assert all(0.5 < figure.median < 600 for figure in figures)


def test_caches_of_every_system_are_emptied(monkeypatch, tmp_path) -> None:
    for name, folder in startup._empty_caches(tmp_path).items():
        monkeypatch.setenv(name, folder)
    for system in ("linux", "darwin", "win32"):
        monkeypatch.setattr(sys, "platform", system)
        assert tmp_path in user_cache_folder("engines").parents


@pytest.mark.slow
def test_startup_and_sizes(bundle, capsys, monkeypatch, tmp_path) -> None:
    kept = {name: code for name, code in startup.IMPORTS.items() if "monai" not in name}
    monkeypatch.setattr(startup, "IMPORTS", kept)  # it takes seconds
    emptied = startup._empty_caches(tmp_path)
    assert {Path(folder).parent for folder in emptied.values()} == {tmp_path}
    del emptied["NUMBA_CACHE_DIR"]  # kernels are compiled for half a minute
    monkeypatch.setattr(startup, "_empty_caches", lambda folder: emptied)
    options = ["--repeats", "1", "--threads", "1", "--matrix", "0", "--bundle", str(bundle.folder)]
    found = document_of(capsys, "startup", *options, "--engines", "openvino", "--shape", "20,16,16")
    figures = found["figures"]
    assert figures["import/python alone"]["median"] < figures["import/import torch"]["median"]
    assert (
        figures["start to: open/nothing cached"]["median"] < figures["start to: first window/nothing cached"]["median"]
    )
    assert figures["whole scan/second of a process"]["median"] > 0
    sizes = found["details"]["installed_mib"]
    assert "torch" not in sizes["runtime"], "the runtime needs no torch"
    assert {"numpy", "openvino"} <= set(sizes["runtime"])
    assert found["ratios"]["installed/torch's / the runtime's"]["median"] > 0


def test_memory_of_a_small_scan(bundle, capsys) -> None:
    options = ["--repeats", "1", "--threads", "1", "--matrix", "0", "--bundle", str(bundle.folder)]
    found = document_of(capsys, "memory", *options, "--engines", "openvino", "--shape", "60,40,40")
    assert 50 < found["figures"]["large.nii.gz/peak memory"]["median"] < 2000
    assert found["figures"]["large.nii.gz/total"]["median"] > 0


def test_memory_of_other_engines_is_not_judged(bundle, capsys, monkeypatch, tmp_path) -> None:
    engine = "openvino fp32"

    def process(scan: Path, **options) -> dict:
        run = {"stages_s": {"total": 1.0}, "vertebrae": 3}
        return {"runs": [run], "peak_memory_mib": 100.0 + 100 * engine.endswith("int8"), "engine": engine}

    monkeypatch.setattr(memory, "in_fresh_process", process)
    old = tmp_path / "old.json"
    options = [*TINY, "--bundle", str(bundle.folder), "--shape", "8,8,8"]
    document_of(capsys, "memory", *options, "-o", str(old))
    assert document_of(capsys, "memory", *options, "--compare", str(old))["compared"]["other_settings"] == []
    engine = "openvino int8"
    found = document_of(capsys, "memory", *options, "--compare", str(old))["compared"]
    assert found["other_settings"] == ["engines: ['openvino fp32'] -> ['openvino int8']"]
    assert {change["verdict"] for change in found["changes"]} == {"unknown"}


def test_figures_of_another_gpu_are_not_judged(bundle, capsys, monkeypatch, tmp_path) -> None:
    names = ["old GPU", "new GPU"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number=0: names[number])
    report = Report((Figure("Dice", "ours", "", (1.0,), exact=True),), (), {})
    monkeypatch.setitem(command.COMMANDS, "accuracy", (lambda frame: report, 1, ""))
    old = tmp_path / "old.json"
    options = ["accuracy", *TINY, "--bundle", str(bundle.folder)]
    document_of(capsys, *options, "-o", str(old))
    found = document_of(capsys, *options, "--device", "1", "--compare", str(old))
    assert found["compared"]["other_settings"] == ["gpu: old GPU -> new GPU"]
    assert found["machine"]["gpu"] == "new GPU"


def test_a_measured_process_that_fails_is_told(capsys, tmp_path) -> None:
    scan = tmp_path / "scan.nii.gz"
    scan.write_bytes(b"no scan")
    assert main(["memory", *TINY, "--scan", str(scan)]) == 1
    assert "scan.nii.gz" in capsys.readouterr().err


def test_a_contender_that_fails_is_told_and_the_others_go_on(bundle) -> None:
    @contextmanager
    def failing():
        raise EngineError("No memory.\nat line 1")
        yield

    met = latency.measured(Contender("bad", "fp16", failing), SimpleNamespace(), bundle, [], 1, 0)
    assert met.failed == "No memory."
    assert met.figures == ()


def test_torch_in_half_precision_is_called_as_a_session_is() -> None:
    half = HALF["cpu"]
    network = torch.nn.Conv3d(1, 2, 3, padding=1).eval()
    image = np.random.default_rng(0).uniform(0, 1, (2, 1, 6, 6, 6)).astype(np.float32)
    with torch.inference_mode():
        right = network(torch.from_numpy(image)).numpy()
    network = network.to(dtype=half.weights, memory_format=torch.channels_last_3d)
    wrapped = torch.nn.Module()
    wrapped.forward = lambda x: (network(x),)
    info = EngineInfo(half.name, torch.__version__, half.precision, "CPU", "test")
    with TorchVariant(wrapped, info, ("heatmap",), device=torch.device("cpu"), half=half) as session:
        (met,) = session(image)
        assert session.on_device(image).is_contiguous(memory_format=torch.channels_last_3d)
    assert met.dtype == np.float32
    assert 0 < np.abs(met - right).max() < 5e-2, "computed in BF16"
    with pytest.raises(EngineError, match="closed"):
        session(image)


def test_enlarged_scans_lie_where_the_coarse_one_does() -> None:
    coarse, fine = enlarged_scan((10, 8, 6), spacing_mm=3.2), enlarged_scan((40, 32, 24), spacing_mm=0.8)
    np.testing.assert_array_equal(fine.array[2::4, 2::4, 2::4], coarse.array)
    np.testing.assert_allclose(fine.grid.to_ras_mm([1.5, 1.5, 1.5]), coarse.grid.to_ras_mm([0, 0, 0]), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--repeats", "0"], "whole number from 1 on"),
        (["--threads", "x"], "whole number from 1 on"),
        (["--shape", "3,4"], "three numbers of voxels"),
    ],
)
def test_bad_options_are_refused(options, said, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["latency", *options])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_what_could_not_be_told_in_the_end_is_refused_at_once(capsys, tmp_path) -> None:
    assert main(["latency", "--engines", "abacus"]) == 3
    assert "no engine 'abacus'" in capsys.readouterr().err
    assert main(["kernels", "--plot", str(tmp_path / "plot.abacus")]) == 2
    assert "plot.abacus" in capsys.readouterr().err
    assert main(["kernels", "--compare", str(tmp_path / "no.json")]) == 2
    assert "no.json" in capsys.readouterr().err


def test_files_that_can_not_be_written_are_told_before_anything_is_measured(monkeypatch, capsys, tmp_path) -> None:
    def measured(frame: object) -> None:
        raise AssertionError("measured first")

    monkeypatch.setitem(command.COMMANDS, "kernels", (measured, 1, ""))
    for option, name in (("-o", "no/such/k.json"), ("--plot", "no/such/k.png"), ("-o", "folder")):
        (tmp_path / "folder").mkdir(exist_ok=True)
        assert main(["kernels", *TINY, option, str(tmp_path / name)]) == 2
        assert f"{tmp_path / name} can't be written" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["folder"], "nothing is left behind"


def test_two_scans_of_one_name_are_refused_before_measuring(capsys) -> None:
    """One's figures would take the place of the other's."""
    assert main(["memory", *TINY, "--scan", "a/ct.nii.gz", "b/ct.nii.gz", "c.nii.gz"]) == 2
    assert "ct.nii.gz is there twice" in capsys.readouterr().err


def test_what_was_measured_is_printed_though_it_can_not_be_written(bundle, monkeypatch, capsys, tmp_path) -> None:
    """The disk filled up meanwhile, or the plot can't be drawn."""
    report = Report((Figure("read", "ours", "s", (1.0,)),), (), {})
    monkeypatch.setitem(command.COMMANDS, "kernels", (lambda frame: report, 1, ""))

    def failing(*arguments: object) -> None:
        raise InputError("The disk is full.")

    options = ["kernels", *TINY, "--bundle", str(bundle.folder)]
    monkeypatch.setattr(command, "_write", failing)
    assert main([*options, "-o", str(tmp_path / "k.json")]) == 2
    said = capsys.readouterr()
    assert "read/ours" in json.loads(said.out.splitlines()[-1])["figures"]
    assert "The disk is full." in said.err
    monkeypatch.setattr(plots, "draw", failing)
    assert main([*options, "--plot", str(tmp_path / "k.png")]) == 2
    assert "read/ours" in json.loads(capsys.readouterr().out.splitlines()[-1])["figures"]


def test_a_document_is_compared_with_what_its_file_held_before(bundle, monkeypatch, capsys, tmp_path) -> None:
    """Also where the command writes over it while it measures; and one of another command is refused at once."""
    path = tmp_path / "k.json"

    def of(value: float) -> Report:
        return Report((Figure("Dice", "ours", "", (value,), exact=True, more_is_better=True),), (), {})

    def measured(frame: command.Frame) -> Report:
        frame.keep(of(0.5))
        return of(0.5)

    options = [*TINY, "--bundle", str(bundle.folder)]
    monkeypatch.setitem(command.COMMANDS, "kernels", (lambda frame: of(1.0), 1, ""))
    document_of(capsys, "kernels", *options, "-o", str(path))
    monkeypatch.setitem(command.COMMANDS, "kernels", (measured, 1, ""))
    found = document_of(capsys, "kernels", *options, "-o", str(path), "--compare", str(path))
    assert [(change["old"], change["new"]) for change in found["compared"]["changes"]] == [(1.0, 0.5)]
    monkeypatch.setitem(command.COMMANDS, "latency", (lambda frame: pytest.fail("measured first"), 1, ""))
    assert main(["latency", *options, "--compare", str(path)]) == 2
    assert "can't be compared with one of kernels" in capsys.readouterr().err
