"""ONNX says what torch says, keeps its normalisations, and goes into a bundle that the runtime opens."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from export.__main__ import build_parser, levelnet_folder, main
from export.bundle import Choices, _check_of_these_networks, _scout_spec, make_bundle
from export.checkpoint import Trained, load_trained
from export.onnx_export import (
    ExportError,
    check_differences,
    check_nodes,
    compare,
    export_onnx,
    node_counts,
    random_images,
)
from export.reload import torch_levelnet, torch_locnet
from runtime.anatomy import LEVEL_NAMES
from runtime.bundle import open_bundle, sha256_of, write_bundle
from runtime.errors import BundleError, InputError
from tests.export.tiny import FRAC, LOC, trained
from train import networks
from train.config import Distillation
from train.evaluation.fit_grading import NEUTRAL
from train.networks import FracSegNet, LocNet
from train.stored_grading import with_grading
from train.weights import fitting, weights_to_start_from


def test_the_network_for_levels_says_what_torch_says(bundle, levelnet) -> None:
    spec = bundle.spec.levelnet
    assert (spec.spacing_mm, spec.crop_zyx, spec.min_confidence) == (4.0, (16, 8, 8), 0.6)
    assert spec.level_names == LEVEL_NAMES == networks.LEVEL_NAMES
    assert bundle.spec.training["levelnet"]["steps"] == 12
    images = [np.random.default_rng(n).uniform(0, 1, (n, 1, *spec.crop_zyx)).astype(np.float32) for n in (1, 2, 5)]
    session = onnxruntime.InferenceSession(bundle.path_of(spec.file), providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["level"]
    for again in (load_trained(levelnet), torch_levelnet(bundle)):
        check_differences(compare(again, bundle.path_of(spec.file), images))
    (level,) = session.run(None, {"image": images[2]})
    np.testing.assert_allclose(level.sum(axis=1), 1.0, atol=1e-5)
    assert np.ptp(level, axis=0).max() > 1e-4, "the image matters"


def test_bundles_of_versions_with_fewer_settings_of_the_loop_are_reloaded(bundle) -> None:
    training = json.loads(json.dumps(dict(bundle.spec.training)))
    del training["locnet"]["run"]["loop"]["start_from"]
    older = replace(bundle, spec=replace(bundle.spec, training=training))
    assert torch_locnet(older).run == LOC
    del training["locnet"]["run"]["spacing_mm"]
    with pytest.raises(BundleError, match="lacks spacing_mm"):
        torch_locnet(older)


def test_files_hold_no_paths_of_the_machine_they_were_made_on(bundle) -> None:
    for network in bundle.spec.networks:
        content = bundle.path_of(network.file).read_bytes()
        assert b"site-packages" not in content
        assert b"networks.py" not in content
        assert str(Path(__file__).parents[2]).encode() not in content


def test_networks_of_a_bundle_go_into_a_new_one_unchanged(bundle, runs, tmp_path) -> None:
    old, choices = bundle.folder, Choices(overlap=0.25, min_level_confidence=0.6)
    new = make_bundle(old, runs[1], tmp_path / "b", levelnet=old, name="tiny", version="2", choices=choices)
    for network in ("locnet", "levelnet"):
        weights, before = (weights_to_start_from(folder, network) for folder in (new.folder, old))
        assert weights.keys() == before.keys()
        assert all(torch.equal(weights[name], before[name]) for name in before)
        assert new.spec.training[network] == bundle.spec.training[network]
    two = {spec.file: bundle.path_of(spec.file) for spec in (bundle.spec.locnet, bundle.spec.fracsegnet)}
    plans = {file: plan for file, plan in bundle.spec.precision.items() if file in two}
    with_none = write_bundle(replace(bundle.spec, levelnet=None, precision=plans), two, tmp_path / "two")
    with pytest.raises(InputError, match="no LevelNet to take over"):
        make_bundle(*runs, tmp_path / "c", levelnet=with_none.folder, name="tiny", version="4", choices=choices)


def test_what_was_fitted_to_a_network_goes_with_it(bundle, runs, tmp_path) -> None:
    """The constants of the combined grade with FracSegNet; the word that it was verified with no network."""
    grading = replace(NEUTRAL, network_weight=0.5)
    verified = {"bf16": {"openvino 1": {"scans": 50}}}
    old = write_bundle(
        replace(bundle.spec, verified=verified), {n: bundle.path_of(n) for n in bundle.spec.files}, tmp_path / "old"
    )
    old = with_grading(old, tmp_path / "old", grading, {"scans": 4})
    choices = Choices(overlap=0.25, min_level_confidence=0.6)
    new = make_bundle(runs[0], old.folder, tmp_path / "new", name="tiny", version="2", choices=choices).spec
    assert (new.grading, new.training["grading"]) == (grading, {"scans": 4})
    assert not new.verified
    plain = make_bundle(old.folder, runs[1], tmp_path / "plain", name="tiny", version="2", choices=choices).spec
    assert plain.grading is None
    assert "grading" not in plain.training


@pytest.mark.parametrize("window", [(17, 16, 16), (16, 16, 20)])
def test_windows_that_the_network_cannot_take_are_refused(window, runs, tmp_path) -> None:
    with pytest.raises(InputError, match="must be multiples of 8 voxels"):
        make_bundle(*runs, tmp_path / "b", name="tiny", version="1", choices=Choices(window_zyx=window))
    assert not (tmp_path / "b").exists()


def test_training_starts_from_the_weights_of_a_bundle(bundle, runs, levelnet) -> None:
    for network, folder in zip(("locnet", "fracsegnet", "levelnet"), (*runs, levelnet), strict=True):
        met = weights_to_start_from(bundle.folder, network)
        best = weights_to_start_from(folder, network)
        torch.testing.assert_close(fitting(met, best, source="the bundle"), best, rtol=0, atol=0)
    with pytest.raises(InputError, match="another shape: they lack"):
        fitting(met, {"unheard.of": torch.zeros(1)}, source="the bundle")
    name = next(iter(best))
    with pytest.raises(InputError, match=f"another shape: {name} is"):
        fitting(met, {name: torch.zeros(1, 2, 3)}, source="the bundle")


def test_the_run_of_levels_is_the_named_one_or_the_default_where_it_is_trained(tmp_path: Path, monkeypatch) -> None:
    def chosen(*options: str) -> Path | None:
        return levelnet_folder(build_parser().parse_args(["-o", "out", *options]))

    monkeypatch.chdir(tmp_path)
    assert chosen() is None
    assert chosen("--levelnet", "mine") == Path("mine")
    (tmp_path / "runs" / "levelnet").mkdir(parents=True)
    (tmp_path / "runs" / "levelnet" / "best.ckpt").touch()
    assert chosen() == Path("runs/levelnet")
    assert chosen("--no-levelnet") is None
    with pytest.raises(SystemExit):
        chosen("--no-levelnet", "--levelnet", "mine")


@pytest.mark.parametrize("which", [0, 1])
def test_onnx_is_torch_at_every_batch_size(runs, bundle, which: int) -> None:
    network = load_trained(runs[which])
    path = bundle.path_of(("locnet.onnx", "fracsegnet.onnx")[which])
    rng = np.random.default_rng(1)
    images = [rng.uniform(-1, 1, (n, 1, *network.example_zyx)).astype(np.float32) for n in (1, 2, 5)]
    check_differences(compare(network, path, images))


def test_every_layer_is_one_node(bundle) -> None:
    counts = node_counts(onnx.load(bundle.path_of("locnet.onnx")))
    assert counts["InstanceNormalization"] == 14
    assert counts["ConvTranspose"] == 3
    assert counts["Conv"] == 15
    opset = onnx.load(bundle.path_of("locnet.onnx")).opset_import[0].version
    assert opset >= 20


def test_a_graph_without_its_normalisations_is_refused(runs, bundle) -> None:
    model = onnx.load(bundle.path_of("locnet.onnx"))
    with pytest.raises(ExportError, match="InstanceNorm3d"):
        check_nodes(model, torch.nn.Sequential(LocNet(LOC.network), torch.nn.InstanceNorm3d(1)))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    with pytest.raises(ExportError, match="dynamic"):
        check_nodes(model, LocNet(LOC.network))


def test_other_weights_are_noticed(runs, bundle) -> None:
    network = load_trained(runs[0])
    with torch.no_grad():
        network.network.head.weight.mul_(1.05)
    with pytest.raises(ExportError, match="differs from torch"):
        check_differences(compare(network, bundle.path_of("locnet.onnx"), random_images(network.example_zyx)))
    with pytest.raises(ExportError, match="nan"):
        check_differences({"heatmap": float("nan")})


def test_a_failed_export_leaves_nothing(runs, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("export.onnx_export.TOLERANCES", dict.fromkeys(("heatmap", "offsets"), -1.0))
    with pytest.raises(ExportError):
        export_onnx(load_trained(runs[0]), tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_bundle_holds_what_training_fixed(bundle) -> None:
    spec = open_bundle(bundle.folder).spec
    assert (spec.name, spec.version, spec.clinical) == ("tiny", "1.2.3", False)
    assert "not for clinical use" in spec.intended_use.lower()
    assert (spec.locnet.spacing_mm, spec.locnet.window_zyx, spec.locnet.overlap) == (3.0, (16, 16, 16), 0.25)
    assert spec.locnet.peak_separation_voxels == pytest.approx(10 / 3)
    assert spec.fracsegnet.mask_channels == ("vertebra", "body")
    assert spec.fracsegnet.has_heights
    assert spec.training["locnet"]["steps"] == 12
    assert spec.training["data"] == "synthetic phantoms only"
    assert spec.training["fracsegnet"]["run"]["loop"]["batch"] == 4


def test_networks_that_saw_real_scans_are_not_called_synthetic(tmp_path: Path, runs) -> None:
    run = replace(LOC, data=("/data/verse",))
    folder = trained(run, LocNet(run.network), tmp_path / "real")
    spec = make_bundle(folder, runs[1], tmp_path / "b", name="r", version="1", choices=Choices(), note="a note").spec
    assert "synthetic" not in spec.intended_use
    assert spec.training["data"] == "verse, phantoms"
    assert spec.levelnet is None
    assert "levelnet" not in spec.training
    assert spec.training["note"] == "a note"


@pytest.mark.parametrize("seen", [{"data_before": ("/data/verse",)}, {"distillation": Distillation(data=("verse",))}])
def test_networks_whose_weights_come_from_real_scans_are_not_called_synthetic(tmp_path: Path, runs, seen) -> None:
    """Though the run itself was on phantoms: what it began with, or its teacher, was not."""
    run = replace(LOC, **seen)
    folder = trained(run, LocNet(run.network), tmp_path / "taught")
    spec = make_bundle(folder, runs[1], tmp_path / "b", name="r", version="1", choices=Choices()).spec
    assert "synthetic" not in spec.intended_use
    assert sorted(spec.training["data"].split(", ")) == ["phantoms", "verse"]


@pytest.mark.parametrize("there", [True, False])
def test_networks_of_before_data_were_remembered_are_not_called_synthetic(tmp_path: Path, runs, there: bool) -> None:
    """Where what they began with is still there it is asked, else it is said not to be known."""
    start = tmp_path / "start"
    if there:
        trained(replace(LOC, data=("/data/verse",)), LocNet(LOC.network), start)
    folder = trained(replace(LOC, loop=replace(LOC.loop, start_from=str(start))), LocNet(LOC.network), tmp_path / "old")
    old = json.loads((folder / "config.json").read_text())
    del old["run"]["data_before"]
    (folder / "config.json").write_text(json.dumps(old))
    spec = make_bundle(folder, runs[1], tmp_path / "b", name="r", version="1", choices=Choices()).spec
    assert "synthetic" not in spec.intended_use
    seen = "verse" if there else f"unknown (started from {start})"
    assert sorted(spec.training["data"].split(", ")) == sorted(["phantoms", seen])


def test_deployed_outputs_are_probabilities_and_millimetres(bundle) -> None:
    session = onnxruntime.InferenceSession(bundle.path_of("fracsegnet.onnx"), providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == ["mask", "grade", "heights"]
    mask, grade, heights = session.run(None, {"image": np.zeros((2, 1, 16, 16, 16), np.float32)})
    assert mask.min() >= 0
    assert mask.max() <= 1
    np.testing.assert_allclose(grade.sum(axis=1), 1, atol=1e-5)
    assert heights.shape == (2, 6)
    assert ((heights[:, 3:] >= 0) & (heights[:, 3:] <= 1)).all()


def test_heatmap_only_networks_search_peaks_on_the_heatmap(tmp_path: Path, runs) -> None:
    run = replace(LOC, network=replace(LOC.network, variant="H"))
    folder = trained(run, LocNet(run.network), tmp_path / "h")
    spec = make_bundle(folder, runs[1], tmp_path / "b", name="h", version="1", choices=Choices()).spec
    assert (spec.locnet.variant, spec.locnet.peak_threshold) == ("H", 0.7)
    spec = make_bundle(folder, runs[1], tmp_path / "b", name="h", version="1", choices=Choices(peak_threshold=0.5)).spec
    assert spec.locnet.peak_threshold == 0.5


@pytest.mark.parametrize(
    ("spacing_mm", "asked_mm", "expected_mm"),
    [(3.0, None, 6.0), (4.0, None, 6.0), (1.0, None, None), (2.9, None, None), (6.0, None, None), (1.0, 6.0, 6.0),
     (3.0, 0.0, None)],
)  # fmt: skip
def test_a_first_look_is_for_networks_that_it_was_measured_with(spacing_mm, asked_mm, expected_mm) -> None:
    scout = _scout_spec(spacing_mm, Choices(scout_spacing_mm=asked_mm))
    assert (None if scout is None else scout.spacing_mm) == expected_mm


def test_the_command_line(runs, tmp_path: Path, capsys) -> None:
    paths = ["--locnet", str(runs[0]), "--fracsegnet", str(runs[1]), "--no-levelnet", "-o", str(tmp_path / "b")]
    assert main([*paths, "--set", "peak_threshold=2.5", "--set", "window_zyx=[32,16,16]"]) == 0
    assert open_bundle(tmp_path / "b").spec.locnet.peak_threshold == 2.5
    assert open_bundle(tmp_path / "b").spec.locnet.window_zyx == (32, 16, 16)
    assert main([*paths, "--set", "nothing=1"]) == 2
    assert "settings are" in capsys.readouterr().err
    assert main([*paths, "--clinical"]) == 2
    assert main(["--locnet", str(tmp_path), "-o", str(tmp_path / "c")]) == 2
    assert "best.ckpt" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_a_bundle_is_exported_again_with_what_was_found_of_its_networks(bundle, runs, levelnet, tmp_path: Path) -> None:
    digests = dict(bundle.spec.files)
    accuracy, made = {"scans": 2, "provenance": {"network_sha256": digests}}, {"network_sha256": digests}
    again = make_bundle(
        *runs, tmp_path / "b", levelnet=levelnet, name="x", version="1", choices=Choices(),
        accuracy=accuracy, grading=(NEUTRAL, made),
    ).spec  # fmt: skip
    assert (again.files, again.accuracy, again.grading) == (digests, accuracy, NEUTRAL)
    assert again.training["grading"] == made


def test_figures_and_constants_of_other_networks_are_refused(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("locnet.onnx", "fracsegnet.onnx")}
    for name, path in files.items():
        path.write_text(name)
    right = {name: sha256_of(path) for name, path in files.items()}
    other_locnet, other_fracsegnet = right | {"locnet.onnx": "0"}, right | {"fracsegnet.onnx": "0"}

    def check(evaluated: dict, fitted: dict) -> None:
        _check_of_these_networks(
            {"provenance": {"network_sha256": evaluated}}, (NEUTRAL, {"network_sha256": fitted}), files
        )

    check(right, right)
    check(right, other_locnet)
    check({}, {})
    _check_of_these_networks({"provenance": None}, None, files)
    for evaluated in (other_locnet, other_fracsegnet, right | {"levelnet.onnx": "0"}):
        (name,) = {name for name in evaluated if evaluated[name] != right.get(name)}
        with pytest.raises(InputError, match=rf"with other networks.*\({re.escape(name)}\)"):
            check(evaluated, right)
    with pytest.raises(InputError, match="another FracSegNet"):
        check(right, other_fracsegnet)


def test_what_cannot_be_exported_is_said_before_the_work(runs, tmp_path: Path, capsys, monkeypatch) -> None:
    fracnet = replace(FRAC, network=replace(FRAC.network, mask_channels=(), grade_head="pooled"))
    no_masks = trained(fracnet, FracSegNet(fracnet.network), tmp_path / "fracnet")
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("export.bundle.phantom_images", lambda *_: pytest.fail("images were drawn"))
    words = ["--locnet", str(runs[0]), "--no-levelnet"]
    for fracsegnet, out, status, says in (
        (no_masks, "b", 2, "holds a FracNet"),
        (runs[1], "file/b", 2, "cannot be written"),
        (runs[1], "fracnet", 3, "exists and is no bundle"),
    ):
        assert main([*words, "--fracsegnet", str(fracsegnet), "-o", str(tmp_path / out)]) == status
        assert says in capsys.readouterr().err


def test_a_graph_that_differs_is_said_without_a_trace(runs, tmp_path: Path, capsys, monkeypatch) -> None:
    def differ(*_):
        raise ExportError("heatmap differs from torch")

    monkeypatch.setattr("export.bundle._export", differ)
    words = ["--locnet", str(runs[0]), "--fracsegnet", str(runs[1]), "--no-levelnet", "-o", str(tmp_path / "b")]
    assert main(words) == 1
    assert "export: heatmap differs from torch" in capsys.readouterr().err


def test_networks_in_the_wrong_place_are_refused(runs, tmp_path: Path) -> None:
    def make(*folders: Path, levelnet: Path | None = None) -> None:
        make_bundle(*folders, tmp_path / "b", levelnet=levelnet, name="x", version="1", choices=Choices())

    with pytest.raises(InputError, match="must hold a LocNet"):
        make(runs[1], runs[0])
    with pytest.raises(InputError, match="must hold a FracSegNet; met LocNetRun"):
        make(runs[0], runs[0])
    with pytest.raises(InputError, match="must hold a LevelNet; met FracSegNetRun"):
        make(*runs, levelnet=runs[1])


def test_trained_networks_are_in_evaluation_mode(runs) -> None:
    network: Trained = load_trained(runs[1])
    assert not any(module.training for module in network.network.modules())
    image = torch.zeros(1, 1, 16, 16, 16)
    with torch.inference_mode():
        assert all(torch.equal(a, b) for a, b in zip(network.network(image), network.network(image), strict=True))
