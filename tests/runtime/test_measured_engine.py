"""The choice between a processor's engines, with engines whose pace the tests set."""

import itertools
import json
import logging

import numpy as np
import pytest

from runtime.engines import measured, measured_choice, select_engine
from runtime.engines.base import Preflight
from runtime.errors import EngineError
from tests.runtime.engine_conformance import redirect_caches, write_network
from tests.runtime.test_engines import GPU, pretend

MACHINE = {"processor": "any", "cores": 2, "threads": None}


class Clock:
    """Time that passes when an engine runs, and only then; the processors' may pass otherwise than the clock's."""

    def __init__(self, monkeypatch):
        self.now = self.processor = 0.0
        monkeypatch.setattr(measured.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(measured.time, "process_time", lambda: self.processor)


class Engine:
    """A session whose runs take as long as it was told: the next of ``seconds``, and the last one ever after."""

    def __init__(self, clock, *seconds, processor=None, fails=False):
        self.clock, self.seconds, self.fails = clock, list(seconds), fails
        self.processor = processor
        self.opened, self.closed, self.ran = 0, 0, 0

    def open(self, model):
        assert model.is_file()
        self.opened += 1
        if self.fails:
            raise EngineError("it can't be loaded")
        return self

    def __call__(self, image):
        assert image.dtype == np.float32
        assert image.shape == (1, 1, 8, 8, 8)
        seconds = self.seconds[min(self.ran, len(self.seconds) - 1)]
        self.clock.now += seconds
        self.clock.processor += seconds if self.processor is None else self.processor
        self.ran += 1
        return (image,)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.closed += 1


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "tiny.onnx"
    write_network(path)
    return path


@pytest.fixture
def ask(tmp_path, model):
    def ask(machine=MACHINE, folder=tmp_path / "times", **engines):
        openers = {name: engine.open for name, engine in engines.items()}
        return measured.fastest(openers, {model: (8, 8, 8)}, machine=machine, folder=folder)

    return ask


@pytest.mark.parametrize(("seconds", "taken"), [(0.3, "b"), (0.6, "b"), (0.7, "a"), (1.0, "a"), (2.0, "a")])
def test_another_engine_is_taken_only_where_it_is_clearly_faster(clock, ask, seconds, taken):
    assert ask(a=Engine(clock, 1.0), b=Engine(clock, seconds)) == taken


@pytest.mark.parametrize(("clock_s", "processor_s", "taken"), [(0.5, 1.0, "a"), (1.0, 0.5, "a"), (0.5, 0.5, "b")])
def test_the_clock_and_the_processors_must_agree(clock, ask, clock_s, processor_s, taken):
    """Beside other work the clock says little; processors that spin are no use either."""
    assert ask(a=Engine(clock, 1.0), b=Engine(clock, clock_s, processor=processor_s)) == taken


def test_the_fastest_of_several_is_taken(clock, ask):
    assert ask(a=Engine(clock, 5.0), b=Engine(clock, 3.0), c=Engine(clock, 2.0), d=Engine(clock, 4.0)) == "c"


@pytest.mark.parametrize(("crop_s", "taken"), [(2.0, "a"), (0.5, "b")])
def test_all_networks_together_decide(clock, tmp_path, model, crop_s, taken):
    """An engine may be quick at windows and slow at crops."""
    crops = tmp_path / "crops.onnx"
    crops.write_bytes(model.read_bytes() + b" ")
    openers = {"a": Engine(clock, 1.0).open, "b": lambda of: Engine(clock, 0.5 if of == model else crop_s).open(of)}
    networks = {model: (8, 8, 8), crops: (8, 8, 8)}
    assert measured.fastest(openers, networks, machine=MACHINE, folder=tmp_path / "times") == taken


def test_the_first_run_and_a_disturbed_one_do_not_count(clock, ask):
    """Engines prepare themselves in their first run, and a machine may be busy for a moment."""
    assert ask(a=Engine(clock, 1.0), b=Engine(clock, 60.0, 0.5, 9.0, 0.5)) == "b"


def test_what_was_measured_is_remembered_and_sessions_are_closed(clock, ask):
    slow, quick = Engine(clock, 2.0), Engine(clock, 1.0)
    assert [ask(a=slow, b=quick) for _ in range(3)] == ["b", "b", "b"]
    assert (slow.opened, slow.closed, quick.opened, quick.closed) == (1, 1, 1, 1)


def test_another_network_machine_or_version_is_measured_anew(clock, ask, model):
    slow, quick = Engine(clock, 2.0), Engine(clock, 1.0)
    times = itertools.count(1)
    ask(a=slow, b=quick)
    assert slow.opened == next(times)
    ask(a=slow, b=quick, machine={**MACHINE, "cores": 3})
    assert slow.opened == next(times)
    ask(a=slow, c=quick)
    assert slow.opened == next(times)
    model.write_bytes(model.read_bytes() + b" ")
    ask(a=slow, b=quick)
    assert slow.opened == next(times)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"a": [1, 1], "z": [2, 2]}',
        '{"b": [1, 1]}',
        '{"a": [-1, 1]}',
        '{"a": 1.0}',
        '{"a": "xy"}',
        "\0",
    ],
)
def test_a_damaged_memory_is_measured_anew(clock, ask, tmp_path, content):
    slow, quick = Engine(clock, 2.0), Engine(clock, 1.0)
    ask(a=slow, b=quick)
    (place,) = (tmp_path / "times").iterdir()
    place.write_text(content)
    assert ask(a=slow, b=quick) == "b"
    assert slow.opened == 2
    assert json.loads(place.read_text()) == {"a": [2.0, 2.0], "b": [1.0, 1.0]}


def test_without_a_place_for_the_memory_every_start_measures(clock, ask, tmp_path):
    (tmp_path / "file").write_text("")
    slow, quick = Engine(clock, 2.0), Engine(clock, 1.0)
    assert [ask(a=slow, b=quick, folder=tmp_path / "file" / "x") for _ in range(2)] == ["b", "b"]
    assert quick.opened == 2


def test_an_engine_that_fails_is_left_out_and_the_first_one_says_why(clock, ask, caplog):
    with caplog.at_level(logging.INFO):
        assert ask(a=Engine(clock, 2.0), b=Engine(clock, fails=True), c=Engine(clock, 1.0)) == "c"
    assert "b is left out" in caplog.text
    with pytest.raises(EngineError, match="can't be loaded"):
        ask(first=Engine(clock, fails=True), c=Engine(clock, 1.0))


def test_a_single_engine_is_not_measured(clock, ask):
    only = Engine(clock, 1.0)
    assert ask(a=only) == "a"
    assert only.opened == 0


# Engines of the table.


def test_the_quicker_of_this_machine_s_engines_runs_and_says_why(monkeypatch, tmp_path, model):
    redirect_caches(monkeypatch, tmp_path)
    usual = select_engine()
    asked = []

    def last(openers, *args, **kwargs):
        for opener in openers.values():
            with opener(model) as session:
                asked.append((session.info.name, session.info.precision))
        return list(openers)[-1]

    monkeypatch.setattr(measured, "fastest", last)
    choice = measured_choice(usual, {model: (8, 8, 8)}, threads=1)
    assert asked[0][0] == usual.name
    assert {precision for _, precision in asked} == {usual.precision}
    assert choice.name == asked[-1][0]
    assert choice.name == usual.name or usual.name in choice.reason


def test_a_gpu_is_taken_without_measuring(monkeypatch, model):
    pretend(monkeypatch, a=Preflight(True, "ok", "1", "CPU", ("fp16",)), d=GPU)
    choice = select_engine()
    assert choice.name == "d"
    assert measured_choice(choice, {model: (8, 8, 8)}) is choice
