"""Calibration: ranges are those of the numbers, what FP16 can't hold stays FP32, and INT8 that fails isn't offered."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export import calibrate as calibration
from export import calibration_inputs, ranges
from export.calibrate import Samples, calibrate, main
from export.calibration_inputs import scan_images
from export.parity_on_scans import compare_on_scan, opened, prepare
from export.ranges import Range, clip_range, int8_inputs, keep_fp32, low_tensors, measure, rounding_error
from export.verify import phantoms, reference_networks
from runtime.bundle import open_bundle
from runtime.engines import select_engine
from runtime.engines.parity import LIMITS, faults, joined
from runtime.errors import EngineError, InputError
from runtime.precision_plan import PrecisionPlan
from runtime.typed_graph import load_graph, serialise, typed_graph, typed_model
from tests.runtime.naive_graph import scaled
from tests.runtime.test_typed_graph import image_of, run, small_network


@pytest.fixture
def images():
    return [image_of(seed) for seed in range(4)]


# Ranges.


def test_every_tensor_that_is_fp16_is_measured_and_no_other():
    model = small_network()
    typed = typed_model(model, "fp16")
    types = {v.name: v.type.tensor_type.elem_type for v in (*typed.graph.value_info, *typed.graph.output)}
    types.update({w.name: w.data_type for w in typed.graph.initializer})
    held = {name.removesuffix(".fp16") for name, kind in types.items() if kind == onnx.TensorProto.FLOAT16}
    assert low_tensors(model) == held
    assert "conv2" not in low_tensors(model)
    assert {"w2", "p1", "a1"} & low_tensors(model, ["conv2"]) == {"a1"}, "the skip still reads it in FP16"


def test_the_largest_values_are_those_of_the_network(images, monkeypatch):
    model = small_network()
    opened_up = onnx.ModelProto()
    opened_up.CopyFrom(model)
    names = ("c1", "a2", "u")
    opened_up.graph.output.extend(onnx.helper.make_tensor_value_info(n, 1, None) for n in names)
    right = {n: max(np.abs(run(opened_up, i)[2 + k]).max() for i in images) for k, n in enumerate(names)}
    together = measure(model, low_tensors(model), images)
    monkeypatch.setattr(ranges, "CHUNK_BYTES", 1)
    one_by_one = measure(model, low_tensors(model), images)
    for name in names:
        assert together[name].largest == one_by_one[name].largest == pytest.approx(right[name], rel=1e-6)
    weights = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
    assert together["w1"].largest == np.abs(weights["w1"]).max()
    assert together["image"].largest == max(i.max() for i in images)


@pytest.mark.parametrize(
    ("value", "fits"),
    [(0.0, True), (1.0, True), (8000.0, True), (8200.0, False), (7e4, False), (np.inf, False), (np.nan, False),
     (1e-3, True), (1e-4, False), (1e-9, False)],
)  # fmt: skip
def test_what_fits_fp16_has_a_margin_at_both_ends(value, fits):
    met = Range()
    met.add(np.full(100, value, np.float32) * np.linspace(0.9, 1.0, 100, dtype=np.float32))
    assert met.fits_fp16 == fits


def test_rounding_error_is_that_of_half_precision():
    values = np.random.default_rng(0).uniform(0.5, 2.0, 10_000).astype(np.float32)
    assert 1e-4 < rounding_error(values) < 2**-11
    assert rounding_error(values * np.float32(1e-7)) > 0.02
    assert rounding_error(np.zeros(3, np.float32)) == 0


def test_a_few_outliers_do_not_take_the_steps_from_the_rest():
    values = np.abs(np.random.default_rng(0).normal(0, 1, 50_000)).astype(np.float32)
    assert 2.5 < clip_range(values) <= values.max()
    outlier = np.concatenate([values, [30.0]]).astype(np.float32)
    assert 2.5 < clip_range(outlier) < 30
    assert clip_range(np.zeros(5, np.float32)) == 1.0


# Plans.


def test_what_overflows_is_kept_in_fp32_and_then_the_graph_says_what_fp32_says(images, tmp_path):
    model = small_network(scale=3e4)
    path = tmp_path / "small.onnx"
    onnx.save(model, path)
    kept = keep_fp32(model, measure(model, low_tensors(model), images))
    assert kept == ("conv1",)
    plan = PrecisionPlan(fp16_keep_fp32=kept)
    from runtime.rounded_graph import rounded_graph

    right = run(model, images[0])[1]
    assert np.abs(run(rounded_graph(typed_graph(path, "fp16", plan=plan)), images[0])[1] - right).max() < 0.02
    assert not np.isfinite(run(rounded_graph(typed_graph(path, "fp16")), images[0])[1]).all()
    assert keep_fp32(small_network(), measure(small_network(), low_tensors(small_network()), images)) == ()


def test_int8_leaves_the_image_the_answer_and_the_way_up_alone():
    assert int8_inputs(small_network(), ()) == ("p1",)
    assert int8_inputs(small_network(), ("conv2",)) == ()


def test_a_plan_tells_what_was_met_and_int8_that_fails_is_not_in_it(bundle, monkeypatch):
    path, spec = bundle.path_of("locnet.onnx"), bundle.spec.locnet
    shape = (1, 1, *spec.window_zyx)
    inputs = [np.random.default_rng(i).uniform(0, 1, shape).astype(np.float32) for i in range(5)]
    plan = calibrate(path, spec, inputs, Samples(3, 2, "noise"))
    assert (plan.source, plan.samples) == ("noise", 3)
    assert 0 < plan.fp16_largest < 65504 / 8
    assert plan.fp16_largest_at in low_tensors(load_graph(path))
    assert set(plan.gates) == {"fp16", "bf16", "int8"}
    assert plan.gates["fp16"]["heatmap"] < plan.gates["bf16"]["heatmap"]
    monkeypatch.setattr(
        calibration, "faults", lambda found, limits: ("too far off",) if limits is LIMITS["int8"] else ()
    )
    failed = calibrate(path, spec, inputs, Samples(3, 2, "noise"))
    assert failed == replace(plan, int8_ranges={}, gates=failed.gates)
    with pytest.raises(EngineError, match="did not pass its accuracy gate"):
        typed_graph(path, "int8", plan=failed)


def test_exported_bundles_carry_their_plans(bundle):
    assert set(bundle.spec.precision) == {"locnet.onnx", "fracsegnet.onnx", "levelnet.onnx"}
    for file, plan in bundle.spec.precision.items():
        assert plan.samples > 0
        onnx.checker.check_model(onnx.load_from_string(typed_graph(bundle.path_of(file), "fp16")), full_check=True)
    raw = json.loads((bundle.folder / "bundle.json").read_text())
    assert raw["precision"]["locnet.onnx"]["source"] == "inputs of phantoms"


# The command.


def test_a_bundle_is_calibrated_anew(bundle, tmp_path, capsys):
    out = tmp_path / "calibrated"
    assert main(["--bundle", str(bundle.folder), "--samples", "2", "--gate-samples", "1", "-o", str(out)]) == 0
    said = capsys.readouterr().out
    fresh = open_bundle(out)
    assert fresh.spec.files == bundle.spec.files
    assert fresh.spec == replace(bundle.spec, precision=fresh.spec.precision)
    for file, plan in fresh.spec.precision.items():
        assert plan.samples == 2
        assert f"{file}: 2 inputs of phantoms" in said
    assert main(["--bundle", str(bundle.folder), "--samples", "0", "-o", str(out)]) == 2
    assert "needs samples" in capsys.readouterr().err


def test_scans_give_the_inputs_that_the_pipeline_feeds(bundle, monkeypatch, tmp_path):
    fed = []

    class FakePipeline:
        def __init__(self, bundle, locnet, fracsegnet, levelnet, resources):
            self.sessions = locnet, fracsegnet, levelnet

        def analyse(self, scan):
            for session in self.sessions:
                for n in (1, 2):
                    image = np.random.default_rng(len(fed)).uniform(0, 1, (n, 1, *_size(session, bundle)))
                    fed.append(image.astype(np.float32))
                    session(fed[-1])

        def __enter__(self):
            return self

        def __exit__(self, *exc):
            pass

    monkeypatch.setattr(calibration_inputs, "Pipeline", FakePipeline)
    monkeypatch.setattr(calibration_inputs, "read_scan", lambda path: path)
    taken = scan_images(bundle, [tmp_path / "a", tmp_path / "b"], 4)
    given = {one.tobytes() for batch in fed for one in batch}
    for images in taken.values():
        assert len({image.tobytes() for image in images}) == 4
        assert all(image.tobytes() in given and image.shape[:2] == (1, 1) for image in images)
    with pytest.raises(InputError, match=r"locnet\.onnx 6 inputs, and calibration needs 7"):
        scan_images(bundle, [tmp_path / "a", tmp_path / "b"], 7)


def _size(session, bundle):
    shapes = {spec.file: getattr(spec, "window_zyx", None) or spec.crop_zyx for spec in bundle.spec.networks}
    outputs = {"heatmap": "locnet.onnx", "mask": "fracsegnet.onnx", "level": "levelnet.onnx"}
    return shapes[outputs[session.output_names[0]]]


def test_a_recorder_forgets_evenly():
    class Session:
        info, output_names = None, ()

        def __call__(self, image):
            return ()

    recorder = calibration_inputs._Recorder(Session(), 8)
    for i in range(1000):
        recorder(np.full((1, 1, 1, 1, 1), i, np.float32))
    kept = sorted(int(image[0, 0, 0, 0, 0]) for image in recorder.evenly(100))
    assert 4 <= len(kept) <= 8
    assert len(set(np.diff(kept))) == 1
    assert kept[0] < 256
    assert kept[-1] > 744


# FP16 against torch.


@pytest.mark.slow
def test_fp16_finds_on_phantoms_what_torch_finds():
    """The limits are those of ``fp16``: shift below 0.5 mm, Dice above 0.999, no grade changed, nothing infinite."""
    bundle = open_bundle()
    reference = reference_networks(bundle)
    choice = select_engine("onnxruntime", precision="fp16", verification=True)
    with opened(bundle, choice) as networks:
        prepared = (prepare(bundle.spec, scan, reference) for scan in phantoms(2))
        found = joined([compare_on_scan(bundle.spec, one, networks)[0] for one in prepared])
    assert faults(found, LIMITS["fp16"]) == ()
    assert found.centres > 4
    assert found.masks > 4
    assert (found.grades, found.grades_changed, found.not_finite) == (found.centres, 0, 0)
    assert 0 < found.centre_shift_mm < 0.5
    assert 0.999 < found.dice < 1
    assert (LIMITS["fp16"].centre_shift_mm, LIMITS["fp16"].dice, LIMITS["fp16"].changed) == (0.5, 0.999, 0)


def test_a_network_built_to_overflow_is_calibrated_around_it(bundle, tmp_path):
    """One weight times 1e5, which a normalisation takes out again: FP16 can't hold it, so it isn't asked to."""
    model = scaled(load_graph(bundle.path_of("locnet.onnx")), "unet.encoder.0.0.weight", 1e6)
    path, spec = tmp_path / "locnet.onnx", bundle.spec.locnet
    path.write_bytes(serialise(model))
    inputs = [np.random.default_rng(i).uniform(0, 1, (1, 1, *spec.window_zyx)).astype(np.float32) for i in range(4)]
    plan = calibrate(path, spec, inputs, Samples(2, 2))
    first = next(node.name for node in model.graph.node if node.op_type == "Conv")
    assert first in plan.fp16_keep_fp32
    assert plan.gates["fp16"]["not_finite"] == 0
    assert plan.gates["fp16"]["heatmap"] < 0.02
    with pytest.raises(EngineError, match="more than FP16's"):
        typed_graph(path, "fp16")
