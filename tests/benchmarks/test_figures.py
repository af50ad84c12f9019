"""Figures, documents and their comparison: what moved is marked, and noise isn't."""

import json

import numpy as np
import pytest

from benchmarks.comparison import compare, comparison_text, load
from benchmarks.figures import Figure, in_turns, ratio, ratios_to, repeated
from benchmarks.report import Report, Table, timing_table
from runtime.errors import InputError


def document(*figures: Figure, ratios: tuple[Figure, ...] = (), settings: dict | None = None) -> dict:
    report = Report(figures, (), settings or {"threads": 2}, ratios)
    return {"schema_version": 1, "command": "kernels", **report.as_json()}


def drawn(seed: int, *, around: float, runs: int = 7, name: str = "ours") -> Figure:
    samples = np.random.default_rng(seed).normal(around, 0.05 * around, runs)
    return Figure("read", name, "s", tuple(samples.tolist()))


def test_a_real_shift_is_marked_and_noise_is_not() -> None:
    verdicts = {0.5: [], 1.0: [], 2.0: []}
    for seed in range(200):
        old = document(drawn(seed, around=1.0))
        for times, found in verdicts.items():
            (change,) = compare(old, document(drawn(1000 + seed, around=times))).changes
            found.append(change.verdict)
    assert set(verdicts[0.5]) == {"better"}
    assert set(verdicts[2.0]) == {"worse"}
    assert verdicts[1.0].count("same") >= 198


def test_a_shift_within_the_noise_of_either_run_is_none() -> None:
    still, restless = Figure("read", "ours", "s", (1.0, 1.0, 1.0)), Figure("read", "ours", "s", (1.0, 1.5, 2.0))
    for old, new in ((still, restless), (restless, still)):
        assert compare(document(old), document(new)).moved == ()


def test_more_can_be_better() -> None:
    old = document(ratios=(Figure("read", "peer / ours", "x", (2.0, 2.1, 2.0), more_is_better=True),))
    new = document(ratios=(Figure("read", "peer / ours", "x", (4.0, 4.1, 4.0), more_is_better=True),))
    assert [change.verdict for change in compare(old, new).changes] == ["better"]
    assert [change.verdict for change in compare(new, old).changes] == ["worse"]


def test_one_run_each_tells_nothing_unless_the_figure_is_exact() -> None:
    single = [document(Figure("read", "ours", "s", (value,))) for value in (1.0, 9.0)]
    assert compare(*single).changes[0].verdict == "unknown"
    exact = [document(Figure("Dice", "ours", "", (v,), exact=True, more_is_better=True)) for v in (0.9999, 0.9998)]
    assert compare(*exact).changes[0].verdict == "worse"
    assert compare(exact[0], exact[0]).changes[0].verdict == "same"


def test_other_settings_are_told_and_nothing_is_judged() -> None:
    old = document(drawn(0, around=1.0), settings={"threads": 2})
    found = compare(old, document(drawn(1, around=9.0), settings={"threads": 4}))
    assert found.other_settings == ("threads: 2 -> 4",)
    assert found.moved == ()


def test_what_only_one_run_has_is_told(tmp_path) -> None:
    found = compare(document(drawn(0, around=1.0, name="a")), document(drawn(0, around=1.0, name="b")))
    assert (found.only_old, found.only_new) == (("read/a",), ("read/b",))
    assert "only in the old run: read/a" in comparison_text(found, tmp_path)


def test_documents_of_other_commands_are_not_compared() -> None:
    one = document(drawn(0, around=1.0))
    with pytest.raises(InputError, match="startup"):
        compare(one, {**one, "command": "startup"})


def test_documents_are_read_alone_or_from_a_kept_output(tmp_path) -> None:
    one = document(drawn(0, around=1.0))
    for text in (json.dumps(one), f"tables\n{{}}\n\n{json.dumps(one)}\n", json.dumps(one, indent=1)):
        path = tmp_path / "old.json"
        path.write_text(text, encoding="utf-8")
        assert load(path) == one
    for text in ("", "{}", '{"schema_version": 2, "figures": {}}'):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=r"old\.json"):
            load(path)


def test_statistics() -> None:
    figure = Figure("read", "ours", "s", tuple(range(1, 102)))
    assert (figure.median, figure.percentile(90), figure.percentile(99), figure.noise) == (51, 91, 100, 80)
    with pytest.raises(ValueError, match="never measured"):
        Figure("read", "ours", "s", ())


def test_turns_are_taken_and_warm_ups_not_counted() -> None:
    calls: list[str] = []
    figures = in_turns("g", {name: lambda name=name: calls.append(name) for name in "ab"}, 3)
    assert calls == ["a", "b", *"ababab"]
    assert [(figure.key, len(figure.samples)) for figure in figures] == [("g/a", 3), ("g/b", 3)]
    assert len(repeated(lambda: calls.append("c"), 2, warmups=4)) == 2
    assert calls.count("c") == 6


def test_ratios_are_taken_run_by_run() -> None:
    slow, fast = Figure("g", "slow", "s", (4.0, 40.0)), Figure("g", "fast", "s", (1.0, 10.0))
    assert ratio("g", "r", slow, fast).samples == (4.0, 4.0)
    (only,) = ratios_to("fast", [slow, fast, Figure("other", "slow", "s", (1.0,))])
    assert (only.key, only.median) == ("g/slow / fast", 4.0)


def test_tables_line_up() -> None:
    lines = Table("title", ("", "ms"), (("a", "1"), ("longer", "100"))).text().splitlines()
    assert lines[0] == "title"
    assert {len(line) for line in lines[1:]} == {len("longer  100")}
    text = timing_table(
        "t", [Figure("g", "ours", "s", (0.001,)), Figure("g", "peer", "s", (0.003,))], base="ours"
    ).text()
    assert text.splitlines()[-1].split()[-1] == "3"
