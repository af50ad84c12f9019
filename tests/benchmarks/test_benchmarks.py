"""A tiny case of each benchmark runs and ends in one JSON document."""

import json

import pytest

from benchmarks.__main__ import main


@pytest.mark.parametrize(
    ("arguments", "figure"),
    [
        (["kernels", "--shape", "60,24,24", "--repeats", "2"], "votes_and_peaks_over_one_pass"),
        (["memory", "--shape", "200,128,128"], "peak_memory_gib"),
        (["startup", "--repeats", "1"], "median_s"),
    ],
)
def test_a_tiny_case_of_each(capsys, arguments, figure) -> None:
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])[figure] > 0
