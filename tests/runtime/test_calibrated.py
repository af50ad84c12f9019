from dataclasses import asdict, replace

import pytest

import runtime.engines as engines
from runtime.bundle import open_bundle
from runtime.engines import select_engine
from runtime.engines.base import Preflight
from runtime.engines.calibrated import passed_precisions
from runtime.engines.parity import Parity
from runtime.precision_plan import PrecisionPlan


def spec_with(**gates):
    """The default bundle's spec with the same gates for each network."""
    spec = open_bundle(None).spec
    return replace(spec, precision={network.file: PrecisionPlan(gates=gates) for network in spec.networks})


def figures(**worse):
    return {name: float(v) for name, v in asdict(replace(Parity(), **worse)).items() if name != "failed"}


def test_every_network_has_to_pass():
    assert passed_precisions(spec_with(bf16=figures(), fp16=figures())) == {"bf16", "fp16"}
    spec = spec_with(bf16=figures())
    for network in spec.networks:
        plans = {file: plan for file, plan in spec.precision.items() if file != network.file}
        assert passed_precisions(replace(spec, precision=plans)) == frozenset()
        bad = {**spec.precision, network.file: PrecisionPlan(gates={"bf16": figures(centres_lost=1)})}
        assert passed_precisions(replace(spec, precision=bad)) == frozenset()


def test_a_figure_that_is_missing_or_past_todays_limit_is_no_pass():
    for name in figures():
        assert passed_precisions(spec_with(bf16={k: v for k, v in figures().items() if k != name})) == frozenset()
    assert passed_precisions(spec_with(bf16=figures(grade=0.09))) == {"bf16"}
    assert passed_precisions(spec_with(bf16=figures(grade=0.11))) == frozenset()


def test_a_bundle_that_nobody_calibrated_has_passed_nothing():
    assert passed_precisions(replace(open_bundle(None).spec, precision={})) == frozenset()


class FakeModule:
    def __init__(self, device, precisions):
        self.found = Preflight(True, "ok", "1", device, precisions)

    def preflight(self, *, device=0):
        return self.found


@pytest.mark.parametrize(
    ("device", "precisions", "passed", "asked", "chosen"),
    [
        ("CPU", ("fp32", "bf16"), ("bf16",), "auto", "bf16"),
        ("CPU", ("fp32", "bf16"), (), "auto", "fp32"),
        ("CPU", ("fp32",), ("bf16",), "auto", "fp32"),
        ("CPU", ("fp32", "bf16"), ("bf16",), "fp32", "fp32"),
        ("NVIDIA X", ("fp16", "bf16"), ("bf16",), "auto", "fp16"),
    ],
)
def test_auto_means_bf16_where_processor_and_bundle_allow_it(monkeypatch, device, precisions, passed, asked, chosen):
    monkeypatch.setattr(engines, "ENGINES", {"a": ""})
    monkeypatch.setattr(engines, "engine_module", {"a": FakeModule(device, precisions)}.__getitem__)
    choice = select_engine(precision=asked, passed=passed)
    assert choice.precision == chosen
    assert ("passed its gate" in choice.reason) == (chosen == "bf16")
