"""What is written into a bundle of the precisions in which it was verified."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from export.parity_report import Outcome
from export.verified import FEWEST_SCANS, record
from export.verify import main
from runtime.bundle import open_bundle, write_bundle
from runtime.engines.base import Preflight
from runtime.engines.parity import Parity
from runtime.errors import InputError

GOOD = Parity(centres=10, masks=10, voxels_shared=9990, voxels_of_both=19990, smallest_dice=0.99, grades=10, levels=10)
LOST = replace(GOOD, centres_lost=1)


@pytest.fixture
def here(bundle, tmp_path):
    """A bundle of its own, in a folder."""
    return write_bundle(bundle.spec, {name: bundle.path_of(name) for name in bundle.spec.files}, tmp_path / "bundle")


def outcome(precision, parity, *, scans=FEWEST_SCANS, device="CPU", engine="openvino", only_to_compare=False):
    offered = () if only_to_compare else (precision,)
    preflight = Preflight(True, "ok", "1", device, ("fp32", *offered), () if offered else (precision,))
    module = SimpleNamespace(preflight=lambda *, device: preflight)
    choice = SimpleNamespace(name=engine, precision=precision, device=0, module=module)
    return Outcome(choice, "1", device, scans=[(f"scan {i}", parity) for i in range(scans)])


def test_what_passed_on_the_processor_is_recorded_with_its_figures_and_what_did_not_is_taken_out(here):
    on_gpu = outcome("fp16", GOOD, device="NVIDIA X")
    met = record(here, [outcome("fp32", LOST), outcome("bf16", GOOD), outcome("int8", GOOD), on_gpu], given=4)
    assert list(met.spec.verified) == ["bf16"]
    figures = open_bundle(here.folder).spec.verified["bf16"]["openvino 1"]
    assert (figures["scans"], figures["centres"], figures["centres_lost"]) == (50, 500, 0)
    assert figures["dice"] == pytest.approx(2 * 9990 / 19990, abs=1e-6)
    assert record(met, [outcome("bf16", LOST)], given=4).spec.verified == {}


def test_one_engine_that_does_not_pass_is_enough_and_comparisons_alone_count_for_nothing(here):
    both = [outcome("bf16", LOST), outcome("bf16", GOOD, engine="another")]
    assert record(here, both, given=1).spec.verified == {}
    with pytest.raises(InputError, match="Nothing here can be recorded"):
        record(here, [outcome("bf16", GOOD, only_to_compare=True)], given=1)
    both = [outcome("bf16", replace(GOOD, centre_shift_mm=0.7)), outcome("bf16", GOOD, engine="another")]
    figures = record(open_bundle(here.folder), both, given=1).spec.verified["bf16"]
    assert {engine: one["centre_shift_mm"] for engine, one in figures.items()} == {"openvino 1": 0.7, "another 1": 0.0}


def test_nothing_but_that_is_changed(here):
    (here.folder / "notes.txt").write_text("kept")
    (here.folder / "bundle.json").chmod(0o644)
    after = record(here, [outcome("bf16", GOOD)], given=1).spec
    assert replace(after, verified={}) == here.spec
    assert (here.folder / "notes.txt").read_text() == "kept"
    assert (here.folder / "bundle.json").stat().st_mode & 0o777 == 0o644, "others read it too"


def test_an_engine_that_could_not_be_opened_is_named_and_nothing_recorded(here):
    refused = replace(
        outcome("bf16", GOOD, scans=0, engine="broken"), with_itself=Parity(failed="not opened: no memory")
    )
    with pytest.raises(InputError, match="broken in bf16: not opened: no memory"):
        record(here, [outcome("bf16", GOOD), refused], given=1)
    assert open_bundle(here.folder).spec.verified == {}


def test_too_little_and_zips_and_other_bundles_are_refused_and_change_nothing(here, tmp_path):
    before = (here.folder / "bundle.json").read_bytes()
    few, enough = outcome("bf16", GOOD, scans=FEWEST_SCANS - 1), outcome("bf16", GOOD)
    for outcomes, given, said in (
        ([], 1, "Nothing here"),
        ([outcome("fp32", GOOD)], 1, "Nothing here"),
        ([few], 1, "recorded from 50 scans on"),
        ([enough], 0, "a real one among them"),
    ):
        with pytest.raises(InputError, match=said):
            record(here, outcomes, given=given)
    with pytest.raises(InputError, match="no folder"):
        record(replace(here, folder=tmp_path / "bundle.zip"), [enough], given=1)
    with pytest.raises(InputError, match="was changed while"):
        record(replace(here, sha256="0" * 64), [enough], given=1)
    assert (here.folder / "bundle.json").read_bytes() == before


def test_the_command_refuses_before_it_compares_what_would_be_too_little(here, capsys):
    """Comparing takes long: that it was for nothing should be said at once."""
    assert main(["--bundle", str(here.folder), "--phantoms", "3", "--record", "--engine", "onnxruntime"]) == 2
    assert "Nothing here can be recorded" in capsys.readouterr().err
    assert main(["--bundle", str(here.folder), "--phantoms", "3", "--record", "--precision", "fp32"]) == 2
    assert "Nothing here can be recorded" in capsys.readouterr().err
