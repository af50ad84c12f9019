"""Handing out scans, over workers that are made up: each scan ends once, whatever its workers do."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.cohort.dispatch import Died, Dispatcher, Finished, Ready, WorkerInfo
from runtime.cohort.errors import ClusterError
from runtime.cohort.work import DONE, ENGINE, FAILED, INPUT, LOST, MEMORY, TIME, Outcome, Task


class MadeUpCrew:
    """Workers on ``nodes`` that do with each run of a scan what ``deeds`` says of it, in an order drawn by ``seed``.

    A run whose deed is ``TIME`` hangs. Each event takes ``seconds``; where only what hangs is left, an hour goes by.
    """

    def __init__(self, deeds, *, nodes=2, seed=0, dies_at_start=0, seconds=0.0):
        self._deeds, self._nodes, self._random = deeds, nodes, random.Random(seed)
        self._dies_at_start, self._seconds, self.now_s = dies_at_start, seconds, 0.0
        self._pending, self.alive, self.runs, self.hired = {}, set(), [], 0

    def hire(self):
        self.hired += 1
        self._pending[self.hired] = None
        return self.hired

    def give(self, worker, task):
        assert worker in self.alive
        assert worker not in self._pending, "it has a scan already"
        assert task.number not in {other.number for other in self._pending.values() if other}, "another one runs it"
        self._pending[worker] = task
        self.runs.append((task.number, worker % self._nodes))

    def dismiss(self, worker):
        if task := self._pending.pop(worker, None):
            self._deeds[task.number].pop(0)
        self.alive.remove(worker)

    def _hangs(self, worker):
        task = self._pending[worker]
        return task is not None and self._deeds.get(task.number, [])[:1] == [TIME]

    def wait(self, timeout_s):
        assert self._pending, "nothing to wait for"
        may_end = [worker for worker in sorted(self._pending) if not self._hangs(worker)]
        self.now_s += self._seconds if may_end else 3600
        if not may_end:
            return []
        worker = self._random.choice(may_end)
        task = self._pending.pop(worker)
        if task is None:
            if self._dies_at_start:
                self._dies_at_start -= 1
                return [Died(worker, "no reason")]
            self.alive.add(worker)
            return [Ready(worker, WorkerInfo("host", str(worker % self._nodes), worker, "engine"))]
        deeds = self._deeds.get(task.number, [])
        deed = deeds.pop(0) if deeds else DONE
        if deed == LOST:
            self.alive.remove(worker)
            return [Died(worker, "killed")]
        if deed == DONE:
            return [Finished(worker, Outcome(task.number, DONE, 1.0, findings="{}"))]
        return [Finished(worker, Outcome(task.number, FAILED, 1.0, kind=deed, reason=deed, may_pass=deed != INPUT))]


class Noting:
    def __init__(self):
        self.attempts, self.deaths = [], 0

    def ended(self, attempt):
        self.attempts.append(attempt)

    def joined(self, info):
        pass

    def died(self, reason):
        self.deaths += 1

    def tick(self, ready):
        assert ready >= 0

    def last(self):
        """How each scan ended."""
        ends = [attempt.outcome for attempt in self.attempts if attempt.is_last]
        assert max(Counter(outcome.number for outcome in ends).values(), default=1) == 1
        return {outcome.number: outcome.kind or outcome.status for outcome in ends}


def run(crew, count, *, workers=3, retries=2, time_limit_s=60.0):
    noting = Noting()
    dispatcher = Dispatcher(
        crew, noting, workers=workers, retries=retries, time_limit_s=time_limit_s, clock=lambda: crew.now_s
    )
    dispatcher.run([Task(n, None, None) for n in range(count)])
    return noting


DEEDS = st.dictionaries(
    st.integers(0, 11), st.lists(st.sampled_from([LOST, ENGINE, MEMORY, INPUT, TIME, DONE]), min_size=1, max_size=5)
)


@settings(deadline=None)
@given(DEEDS, st.integers(0, 2), st.integers(1, 4), st.integers(1, 3), st.integers(0, 999), st.integers(0, 4))
def test_every_scan_ends_once_and_is_run_as_often_as_it_must(deeds, retries, workers, nodes, seed, dies_at_start):
    expected_runs, expected_ends = {}, {}
    for number in range(12):
        deed, runs = DONE, 0
        for deed in [*deeds.get(number, []), DONE]:
            runs += 1
            if deed in (DONE, INPUT, TIME) or runs > retries:
                break
        expected_runs[number], expected_ends[number] = runs, deed
    crew = MadeUpCrew({n: list(d) for n, d in deeds.items()}, nodes=nodes, seed=seed, dies_at_start=dies_at_start)
    noting = run(crew, 12, workers=workers, retries=retries)
    assert Counter(number for number, _ in crew.runs) == expected_runs
    assert noting.last() == expected_ends
    assert len(noting.attempts) == sum(expected_runs.values())
    assert noting.deaths == dies_at_start


def test_a_scan_is_tried_again_on_another_node_where_there_is_one():
    crew = MadeUpCrew({0: [MEMORY, MEMORY]}, nodes=2)
    run(crew, 12, workers=2)
    where = [node for number, node in crew.runs if number == 0]
    assert where[0] != where[1]
    assert len(where) == 3


def test_scans_are_begun_in_the_order_of_the_list_and_again_at_the_end():
    crew = MadeUpCrew({1: [LOST]})
    run(crew, 6, workers=1)
    assert [number for number, _ in crew.runs] == [0, 1, 2, 3, 4, 5, 1]


def test_a_slow_scan_holds_up_nobody():
    class SlowFirst(MadeUpCrew):
        def wait(self, timeout_s):
            slow = [worker for worker, task in self._pending.items() if task is not None and task.number == 0]
            kept = {worker: self._pending.pop(worker) for worker in slow if len(self._pending) > 1}
            try:
                return super().wait(timeout_s)
            finally:
                self._pending |= kept

    crew = SlowFirst({})
    noting = run(crew, 9, workers=2)
    assert noting.attempts[-1].outcome.number == 0


def test_a_scan_that_hangs_is_given_up_with_the_reason_and_its_worker_is_ended():
    crew = MadeUpCrew({0: [TIME]})
    noting = run(crew, 3, workers=1)
    assert [attempt.outcome.number for attempt in noting.attempts] == [0, 1, 2]
    late = noting.attempts[0].outcome
    assert (late.kind, late.seconds, late.may_pass) == (TIME, 3600, False)
    assert late.reason.startswith("it was not done after 60 s, so its worker was ended")
    assert crew.alive == {2}


@pytest.mark.parametrize("time_limit_s", [50.0, None])
def test_the_time_of_each_scan_counts_from_its_own_start(time_limit_s):
    noting = run(MadeUpCrew({}, seconds=40.0), 9, workers=1, time_limit_s=time_limit_s)
    assert set(noting.last().values()) == {DONE}


def test_workers_that_all_die_as_they_start_end_the_run():
    with pytest.raises(ClusterError, match="5 workers in a row died as they started: no reason"):
        run(MadeUpCrew({}, dies_at_start=99), 3)


def test_no_more_workers_are_asked_for_than_there_are_scans():
    crew = MadeUpCrew({})
    run(crew, 2, workers=50)
    assert crew.hired == 2
