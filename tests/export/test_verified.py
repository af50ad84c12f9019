"""What is written into a bundle of the precisions in which it was verified."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from export.parity_report import Outcome
from export.verified import FEWEST_SCANS, record
from export.verify import main
from runtime.bundle import open_bundle, write_bundle
from runtime.engines.parity import Parity
from runtime.errors import InputError

GOOD = Parity(centres=10, masks=10, voxels_shared=9990, voxels_of_both=19990, smallest_dice=0.99, grades=10, levels=10)
LOST = replace(GOOD, centres_lost=1)


@pytest.fixture
def folder(bundle, tmp_path):
    files = {name: bundle.path_of(name) for name in bundle.spec.files}
    return write_bundle(bundle.spec, files, tmp_path / "bundle").folder


def outcome(precision, parity, *, scans=FEWEST_SCANS, device="CPU"):
    choice = SimpleNamespace(name="openvino", precision=precision)
    return Outcome(choice, "1", device, scans=[(f"scan {i}", parity) for i in range(scans)])


def test_what_passed_on_the_processor_is_recorded_with_its_figures_and_what_did_not_is_taken_out(folder):
    met = record(folder, [outcome("fp32", LOST), outcome("bf16", GOOD), outcome("fp16", GOOD, device="NVIDIA X")])
    assert list(met.spec.verified) == ["bf16"]
    figures = open_bundle(folder).spec.verified["bf16"]
    assert (figures["scans"], figures["centres"], figures["centres_lost"]) == (50, 500, 0)
    assert figures["dice"] == pytest.approx(2 * 9990 / 19990, abs=1e-6)
    assert record(folder, [outcome("bf16", LOST)]).spec.verified == {}


def test_nothing_but_that_is_changed(folder):
    before = open_bundle(folder).spec
    after = record(folder, [outcome("bf16", GOOD)]).spec
    assert replace(after, verified={}) == before


def test_few_scans_and_zips_are_refused_and_change_nothing(folder, tmp_path):
    before = (folder / "bundle.json").read_bytes()
    for outcomes in ([], [outcome("bf16", GOOD, scans=FEWEST_SCANS - 1)], [outcome("fp32", GOOD)]):
        with pytest.raises(InputError, match="recorded from 50 scans on"):
            record(folder, outcomes)
    assert (folder / "bundle.json").read_bytes() == before
    with pytest.raises(InputError, match="no folder"):
        record(tmp_path / "bundle.zip", [outcome("bf16", GOOD)])


def test_the_command_refuses_before_it_compares_what_would_be_too_few(folder, capsys):
    """Comparing takes long: that it was for nothing should be said at once."""
    assert main(["--bundle", str(folder), "--phantoms", "3", "--record"]) == 2
    assert "recorded from 50 scans on" in capsys.readouterr().err
