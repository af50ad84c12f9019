"""Engines against torch on whole scans: right ones pass, wrong ones are found out, and the command says so."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from export import parity_on_scans, timed_session
from export import verify as command
from export.parity_on_scans import Networks, compare_on_scan, opened, prepare, said_together
from export.verify import candidates, main, phantoms, reference_networks
from runtime.bundle import open_bundle
from runtime.engines import open_session, select_engine
from runtime.engines.parity import LIMITS, Parity, faults, probe_images, processor_session, short_gate
from runtime.errors import EngineError, OutOfMemoryError
from runtime.localise import Centre
from runtime.looks import looks_together
from runtime.precision_plan import PrecisionPlan
from runtime.volume import Grid, Volume
from tests.remembering import Remembering


@pytest.fixture(scope="module")
def drawn():
    """A scan with a few drawn vertebrae, that the default networks find."""
    spec = open_bundle(None).spec.locnet
    image = probe_images(spec)[0][0, 0]
    hu = spec.intensity.low_hu + image * (spec.intensity.high_hu - spec.intensity.low_hu)
    return Volume(hu.astype(np.int16), Grid(hu.shape, np.diag([*[spec.spacing_mm] * 3, 1.0])), "drawn")


@pytest.fixture
def small(monkeypatch):
    """A scan in which the tiny networks, which know nothing, are taken to have found one vertebra."""
    found = (Centre((30.0, 30.0, 36.0), 0.9, 1.0),)
    monkeypatch.setattr(parity_on_scans, "centres_of", lambda *maps_and_spec: found)
    hu = np.random.default_rng(1).normal(100, 200, (24, 20, 20)).astype(np.int16)
    return Volume(hu, Grid(hu.shape, np.diag([3.0, 3.0, 3.0, 1.0])), "small")


@pytest.fixture
def prepared(bundle, small):
    return prepare(bundle.spec, small, reference_networks(bundle))


class Broken:
    """A session that fails, or whose outputs are made wrong."""

    def __init__(self, session, change=None):
        self.session, self.change = session, change
        self.info, self.output_names = session.info, session.output_names

    def __call__(self, image):
        if self.change is None:
            raise EngineError("The engine gave up.")
        return tuple(self.change(output) for output in self.session(image))


class SecondWrong(Broken):
    """Every other run's outputs are made wrong."""

    def __init__(self, session):
        super().__init__(session, lambda output: output if self.runs % 2 else output * 1.5)
        self.runs = 0

    def __call__(self, image):
        self.runs += 1
        return super().__call__(image)


def test_vertebrae_are_compared_where_there_are_some(drawn):
    bundle = open_bundle(None)
    right = reference_networks(bundle)
    right = Networks(Remembering(right.locnet), Remembering(right.fracsegnet), Remembering(right.levelnet))
    found, _ = compare_on_scan(bundle.spec, prepare(bundle.spec, drawn, right), right)
    assert found.centres >= 3
    assert found.masks >= 3


def test_the_reference_is_what_it_is(bundle, prepared):
    found, _ = compare_on_scan(bundle.spec, prepared, reference_networks(bundle))
    assert faults(found, LIMITS["fp32"]) == ()
    assert (found.heatmap, found.offsets, found.mask, found.grade, found.level) == (0, 0, 0, 0, 0)
    assert found.grades == found.levels == 1
    assert found.dice == found.smallest_dice == 1.0


def test_a_wrong_or_failing_engine_is_found_out(bundle, prepared):
    right = reference_networks(bundle)
    grown = Networks(right.locnet, Broken(right.fracsegnet, lambda output: output * 1.5), right.levelnet)
    found, _ = compare_on_scan(bundle.spec, prepared, grown)
    assert found.dice < LIMITS["fp16"].dice
    dead = Networks(right.locnet, right.fracsegnet, Broken(right.levelnet))
    found, _ = compare_on_scan(bundle.spec, prepared, dead)
    assert faults(found, LIMITS["bf16"]) == ("small: The engine gave up",)


class Ticking:
    """A session whose calls last as long as the clock is told: the first 1000 s, the others 1 s."""

    def __init__(self, session, now_s):
        self.session, self.now_s, self.calls = session, now_s, 0
        self.info, self.output_names = session.info, session.output_names

    def __call__(self, image):
        self.now_s[0] += 1.0 if self.calls else 1000.0
        self.calls += 1
        return self.session(image)


def test_seconds_are_those_of_the_networks_calls_after_one_of_each(bundle, small, monkeypatch):
    """On both sides: neither votes and crops nor what first calls compile is counted."""
    now_s = [0.0]

    def lasting(work, seconds):
        def done(*arguments):
            now_s[0] += seconds
            return work(*arguments)

        return done

    def ticking():
        networks = reference_networks(bundle)
        return Networks(*(Ticking(one, now_s) for one in (networks.locnet, networks.fracsegnet, networks.levelnet)))

    monkeypatch.setattr(timed_session, "time", SimpleNamespace(perf_counter=lambda: now_s[0]))
    for name in ("centres_of", "extract_crops"):
        monkeypatch.setattr(parity_on_scans, name, lasting(getattr(parity_on_scans, name), 1e6))
    reference, engine = ticking(), ticking()
    monkeypatch.setattr(command, "reference_networks", lambda bundle: reference)
    monkeypatch.setattr(command, "compare_with_itself", lambda *arguments: Parity())
    choice = select_engine("openvino", precision="fp32")
    (outcome,) = command.verify(bundle, [(choice, engine)], iter([small]))
    for networks, met in ((reference, outcome.reference_seconds), (engine, outcome.seconds)):
        calls = [one.calls for one in (networks.locnet, networks.fracsegnet, networks.levelnet)]
        assert min(calls) >= 2
        assert met == sum(calls) - len(calls)


@pytest.mark.parametrize("interleaved", [False, True])
def test_both_looks_are_put_together_as_the_pipeline_does(interleaved):
    """An engine that is wrong in one look alone is as wrong as what its user gets."""
    spec = replace(open_bundle(None).spec.fracsegnet, mirrored=True, interleaved=interleaved)
    rng = np.random.default_rng(3)
    grid = spec.grid_around((3.0, -4.0, 5.0))
    masks = rng.random((2, len(spec.mask_channels), *spec.crop_zyx), np.float32)
    masks *= np.linspace(-0.2, 1.0, spec.crop_zyx[0], dtype=np.float32).clip(0)[:, None, None]
    grades = rng.dirichlet(np.ones(4), 2).astype(np.float32)
    said = tuple({"mask": mask[None], "grade": grade[None]} for mask, grade in zip(masks, grades, strict=True))
    together = said_together(said, spec)
    np.testing.assert_allclose(together["grade"][0], grades.mean(axis=0), rtol=1e-6)
    expected, finer = looks_together(masks[0], masks[1], grid, spec)
    first = np.rint(grid.to_index_zyx(finer.to_ras_mm([0, 0, 0])) * (2 if interleaved else 1)).astype(int)
    block = tuple(slice(a, a + n) for a, n in zip(first, finer.shape_zyx, strict=True))
    inner = (slice(None), slice(None), *[slice(2, -2)] * 2)  # the pipeline ends trimmed masks at their block's edge
    np.testing.assert_allclose(
        together["mask"][(0, slice(None), *block)][inner][:, 2:-2], expected[inner][:, 2:-2], atol=1e-6
    )


def test_an_error_in_the_second_look_alone_is_found_out(bundle, small):
    twice = replace(bundle.spec, fracsegnet=replace(bundle.spec.fracsegnet, mirrored=True))
    right = reference_networks(bundle)
    broken = Networks(right.locnet, SecondWrong(right.fracsegnet), right.levelnet)
    found, _ = compare_on_scan(twice, prepare(twice, small, right), broken)
    assert found.dice < LIMITS["fp16"].dice


def test_an_empty_scan_is_compared_too(bundle):
    right = reference_networks(bundle)
    found, _ = compare_on_scan(bundle.spec, prepare(bundle.spec, air(), right), right)
    assert (found.centres, found.masks, found.levels) == (0, 0, 0)
    assert faults(found, LIMITS["fp32"]) == ()


def test_the_command_compares_all_that_is_here(monkeypatch, bundle, small, tmp_path, capsys):
    monkeypatch.setattr(command, "phantoms", lambda count: iter([small]))
    out = tmp_path / "parity.json"
    options = ["--bundle", str(bundle.folder), "--phantoms", "1", "--threads", "1", "-o", str(out)]
    assert main([*options, "--precision", "fp32"]) == 0
    said = json.loads(out.read_text())
    assert {("openvino", "fp32"), ("onnxruntime", "fp32")} <= {(e["name"], e["precision"]) for e in said["engines"]}
    assert all(one["passes"] and one["worst"]["grades"] == 1 for one in said["engines"])
    assert said["bundle"]["sha256"] == bundle.sha256
    assert [path.name for path in tmp_path.iterdir()] == ["parity.json"]
    assert "onnxruntime fp32 on CPU: within the limits" in capsys.readouterr().out
    main([*options, "--engine", "onnxruntime", "--precision", "fp16"])
    (fp16,) = json.loads(out.read_text())["engines"]
    assert 1e-5 < fp16["worst"]["mask"] < 1e-2, "rounding shows, so FP16 was really used"


def test_what_was_found_so_far_is_kept_when_a_later_scan_cannot_be_read(monkeypatch, bundle, small, tmp_path, capsys):
    monkeypatch.setattr(command, "phantoms", lambda count: iter([small]))
    out = tmp_path / "parity.json"
    chosen = ["--engine", "openvino", "--precision", "fp32"]
    options = ["--bundle", str(bundle.folder), *chosen, "--phantoms", "1", "-o", str(out)]
    assert main([*options, str(tmp_path / "none.nii.gz")]) == 2
    (engine,) = json.loads(out.read_text())["engines"]
    assert [scan["scan"] for scan in engine["scans"]] == ["small"]
    said = capsys.readouterr().err
    assert "1: small; all within the limits" in said
    assert "none.nii.gz" in said


def test_the_command_ends_with_1_past_the_limits(monkeypatch, bundle, small, capsys):
    monkeypatch.setattr(command, "phantoms", lambda count: iter([small]))

    def broken(bundle, choice, *, threads=None):
        right = reference_networks(bundle)
        wrong = Broken(right.levelnet, lambda output: np.roll(output, 1, axis=1))
        return _Context(Networks(right.locnet, right.fracsegnet, wrong))

    monkeypatch.setattr(command, "opened", broken)
    chosen = ["--engine", "openvino", "--precision", "fp32"]
    assert main(["--bundle", str(bundle.folder), "--phantoms", "1", *chosen]) == 1
    assert "levels changed" in capsys.readouterr().out


def failing_to_open(monkeypatch, name, error):
    real = command.opened

    def maybe(bundle, choice, *, threads=None):
        if choice.name == name:
            raise error
        return real(bundle, choice, threads=threads)

    monkeypatch.setattr(command, "opened", maybe)


@pytest.mark.parametrize("kind", [EngineError, OutOfMemoryError])
def test_an_engine_that_cannot_be_opened_is_a_finding_beside_the_others(
    monkeypatch, bundle, small, tmp_path, capsys, kind
):
    monkeypatch.setattr(command, "phantoms", lambda count: iter([small]))
    failing_to_open(monkeypatch, "openvino", kind("The gate refuses it."))
    out = tmp_path / "parity.json"
    options = ["--bundle", str(bundle.folder), "--phantoms", "1", "--precision", "fp32", "-o", str(out)]
    assert main(options) == 1
    said = capsys.readouterr()
    assert "openvino fp32: not opened: The gate refuses it\n" in said.out
    assert "onnxruntime fp32 on CPU: within the limits" in said.out
    assert "past the limits: openvino fp32" in said.err
    engines = {one["name"]: one for one in json.loads(out.read_text())["engines"]}
    assert engines["openvino"]["faults"] == ["not opened: The gate refuses it"]
    assert engines["onnxruntime"]["passes"]


def test_where_no_engine_can_be_opened_that_is_told_and_no_scan_is_read(monkeypatch, bundle, tmp_path, capsys):
    failing_to_open(monkeypatch, "openvino", EngineError("The gate refuses it."))
    out = tmp_path / "parity.json"
    options = ["--bundle", str(bundle.folder), "--phantoms", "9999", "--engine", "openvino", "-o", str(out)]
    assert main([*options, "--precision", "fp32"]) == 1
    assert "not opened: The gate refuses it" in capsys.readouterr().out
    assert not json.loads(out.read_text())["engines"][0]["passes"]


def air(name="air"):
    return Volume(np.full((30, 30, 30), -1000, np.int16), Grid((30, 30, 30), np.diag([3.0, 3.0, 3.0, 1.0])), name)


class Unsteady(Broken):
    """Each run says something else."""

    def __init__(self, session):
        super().__init__(session, lambda output: output + np.float32(1e-3) * self.runs)
        self.runs = 0

    def __call__(self, image):
        self.runs += 1
        return super().__call__(image)


@pytest.mark.parametrize("name", ["locnet", "fracsegnet", "levelnet"])
def test_each_network_is_compared_with_itself_on_the_first_scan_that_has_something_for_it(bundle, small, name):
    right = reference_networks(bundle)
    unsteady = replace(right, **{name: Unsteady(getattr(right, name))})
    choice = select_engine("openvino", precision="fp32")
    (outcome,) = command.verify(bundle, [(choice, unsteady)], iter([air(), small]))
    assert outcome.with_itself.repeat > 1e-4
    assert outcome.with_itself.failed == ""


def test_what_could_not_be_compared_with_itself_is_a_fault(bundle, monkeypatch, small):
    choice, right = select_engine("openvino", precision="fp32"), reference_networks(bundle)
    (outcome,) = command.verify(bundle, [(choice, right)], iter([air()]))
    said = "so batches and repetitions were not compared"
    assert outcome.faults == (f"no scan has anything for fracsegnet, levelnet, locnet, {said}",)
    monkeypatch.setattr(parity_on_scans, "centres_of", lambda *maps_and_spec: ())
    (outcome,) = command.verify(bundle, [(choice, right)], iter([air(), small]))
    assert outcome.faults == (f"no scan has anything for fracsegnet, levelnet, {said}",)


class _Context:
    def __init__(self, value):
        self.value = value

    def __enter__(self):
        return self.value

    def __exit__(self, *exc_info):
        pass


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--phantoms", "0"], 2, "nothing to compare on"),
        (["--phantoms", "0", "none.nii.gz", "--engine", "openvino"], 2, "none.nii.gz"),
        (["--engine", "tensorflow"], 3, "no engine 'tensorflow'"),
        (["--engine", "onnxruntime", "--precision", "int4"], 3, "No engine can run here in int4"),
        (["--bundle", "nowhere"], 3, "nowhere"),
    ],
)
def test_what_cannot_be_compared_is_said(options, status, said, capsys):
    assert main(options) == status
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_candidates_are_those_named_or_all_that_are_here():
    spec = open_bundle(None).spec
    assert [(c.name, c.precision) for c in candidates(spec, "onnxruntime", "fp16")] == [("onnxruntime", "fp16")]
    every = {(c.name, c.precision) for c in candidates(spec, None, None)}
    assert ("onnxruntime", "fp16") in every
    assert every >= {(c.name, c.precision) for c in candidates(spec, "openvino", None)}
    assert {p for _, p in ((c.name, c.precision) for c in candidates(spec, None, "fp32"))} == {"fp32"}


def test_int8_is_compared_where_the_bundle_offers_it_and_otherwise_refused_with_the_reason():
    spec = open_bundle(None).spec
    offered = replace(spec, precision={n.file: PrecisionPlan(int8_ranges={"x": 1.0}) for n in spec.networks})
    assert ("onnxruntime", "int8") in {(c.name, c.precision) for c in candidates(offered, None, None)}
    assert [c.precision for c in candidates(offered, "onnxruntime", "int8")] == ["int8"]
    failed = {**offered.precision, "levelnet.onnx": PrecisionPlan(gates={"int8": {"dice": 0.9}})}
    without = replace(spec, precision=failed)
    assert "int8" not in {c.precision for c in candidates(without, None, None)}
    with pytest.raises(EngineError, match=r"int8 \(levelnet\.onnx: it did not pass its accuracy gate \(dice 0\.9\)\)"):
        candidates(without, None, "int8")


def test_int8_is_computed_in_int8(tmp_path):
    bundle = open_bundle(None)
    if bundle.spec.why_not_in("int8"):
        pytest.skip("the default bundle does not offer it")
    onnx = bundle.path_of(bundle.spec.levelnet.file)
    image = probe_images(bundle.spec.levelnet)[0]
    (choice,) = candidates(bundle.spec, "onnxruntime", "int8")
    with processor_session(onnx) as right, open_session(choice, onnx) as session:
        assert session.info.precision == "int8"
        assert short_gate(onnx, session, precision="int8").levels > 0
        assert np.abs(session(image)[0] - right(image)[0]).max() > 1e-5


def test_the_short_gate_with_torch_as_reference(bundle):
    onnx, torch_s = bundle.path_of(bundle.spec.levelnet.file), reference_networks(bundle).levelnet
    with processor_session(onnx) as session:
        assert short_gate(onnx, session, precision="fp32", reference=torch_s).levels > 0
        wrong = Broken(session, lambda output: np.roll(output, 1, axis=1))
        with pytest.raises(EngineError, match="levels changed"):
            short_gate(onnx, wrong, precision="bf16", reference=torch_s)


def test_sessions_are_closed_in_the_end(bundle):
    with opened(bundle, select_engine("openvino"), threads=1) as networks:
        level = networks.levelnet
    with pytest.raises(EngineError, match="closed"):
        level(np.zeros((1, 1, *bundle.spec.levelnet.crop_zyx), np.float32))


def test_phantoms_are_the_same_each_time_and_differ():
    one, other = list(phantoms(2)), list(phantoms(1))
    np.testing.assert_array_equal(one[0].array, other[0].array)
    assert one[0].name == other[0].name != one[1].name
