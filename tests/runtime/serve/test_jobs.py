"""The table of jobs: order, time, and what is left of whom."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from runtime.progress import NoProgress
from runtime.serve.job_progress import SHARES, JobProgress, StoppedError
from runtime.serve.jobs import Jobs
from runtime.serve.models import JobError, JobOptions, State
from runtime.serve.options import JobLimits
from runtime.serve.refusal import RefusedRequestError

LIMITS = JobLimits(max_queued=3, keep_s=100.0, keep_jobs=2)


class Clock:
    now_s = 1000.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def jobs(tmp_path, clock):
    return Jobs(tmp_path, LIMITS, clock=clock)


def submit(jobs):
    with jobs.reserve() as place:
        (place.folder / "scan.nii").write_bytes(b"x")
        return jobs.submit(place, place.folder / "scan.nii", JobOptions())


def run(jobs):
    job = jobs.claim()
    return jobs.finish(job.id, ("findings.json",), ())


def folders(tmp_path: Path):
    return {path.name for path in tmp_path.iterdir()}


def test_jobs_run_in_the_order_in_which_they_came(jobs):
    submitted = [submit(jobs).id for _ in range(3)]
    assert [jobs.position(job) for job in jobs.all()] == [0, 1, 2]
    assert [run(jobs).id for _ in range(3)][-2:] == submitted[-2:]
    assert len(set(submitted)) == 3


def test_a_place_without_a_job_is_given_back_with_its_folder(jobs, tmp_path):
    def fail_half_way():
        with jobs.reserve() as place:
            (place.folder / "half").write_bytes(b"x")
            raise ZeroDivisionError

    for _ in range(5):
        with pytest.raises(ZeroDivisionError):
            fail_half_way()
    with jobs.reserve(), jobs.reserve(), jobs.reserve(), pytest.raises(RefusedRequestError), jobs.reserve():
        pass
    assert folders(tmp_path) == set()
    assert [submit(jobs).state for _ in range(3)] == [State.QUEUED] * 3
    with pytest.raises(RefusedRequestError) as refused, jobs.reserve():
        pass
    assert (refused.value.status, refused.value.retry_after_s is not None) == (503, True)


def test_ended_jobs_go_when_their_time_is_over_and_others_stay(jobs, clock, tmp_path):
    submit(jobs)
    old = run(jobs)
    clock.now_s += 99.0
    young = submit(jobs)
    run(jobs)
    waits = submit(jobs)
    assert jobs.expires_s(jobs.get(old.id)) == clock.now_s + 1.0
    clock.now_s += 1.0
    assert [job.id for job in jobs.all()] == [young.id, waits.id]
    assert folders(tmp_path) == {young.id, waits.id}
    with pytest.raises(RefusedRequestError) as refused:
        jobs.get(old.id)
    assert refused.value.status == 404
    clock.now_s += 1e6
    assert [job.id for job in jobs.all()] == [waits.id]


def test_of_too_many_ended_jobs_the_oldest_go(jobs, tmp_path):
    ended = []
    for _ in range(4):
        submit(jobs)
        ended.append(run(jobs).id)
    assert [job.id for job in jobs.all()] == ended[-2:]
    assert folders(tmp_path) == set(ended[-2:])


def test_failed_and_cancelled_jobs_keep_no_files(jobs, tmp_path):
    for _ in range(3):
        submit(jobs)
    failed = jobs.fail(jobs.claim().id, JobError(kind="input", exit_status=2, message="no"))
    running = jobs.claim()
    assert jobs.cancel(running.id).cancel_requested
    assert jobs.finish(running.id, ("findings.json",), ()).state is State.CANCELLED  # it was too late to stop
    waits = jobs.cancel(jobs.all()[-1].id)
    assert (failed.state, waits.state, folders(tmp_path)) == (State.FAILED, State.CANCELLED, set())


def test_closing_cancels_what_waits_and_ends_the_worker(jobs):
    first, second = submit(jobs), submit(jobs)
    jobs.claim()
    jobs.close()
    assert jobs.get(first.id).cancel_requested
    assert jobs.get(second.id).state is State.CANCELLED
    assert jobs.claim() is None
    with pytest.raises(RefusedRequestError), jobs.reserve():
        pass


def test_watchers_hear_of_their_job_and_of_places_in_the_queue(jobs):
    first, second = submit(jobs), submit(jobs)
    heard = []
    with jobs.watched(second.id, lambda: heard.append(jobs.position(second))):
        jobs.claim()
        jobs.advance(first.id, first.progress)  # nobody else's business
        jobs.finish(first.id, (), ())
        jobs.claim()
    jobs.finish(second.id, (), ())
    assert heard == [1, 0, None]


def test_progress_never_goes_back_whatever_the_stages(jobs):
    told = []
    progress = JobProgress(lambda one: told.append(one) or True)
    for stage in ("read", "locate", "resample", "unheard of", "segment", "locate", "write"):
        progress.stage(stage)
        for done in (0, 1, 3, 2):
            progress.step(done, 3)
        progress.step(0, 0)
    fractions = [one.fraction for one in told]
    assert fractions == sorted(fractions)
    assert 0 <= fractions[0] < fractions[-1] <= 1
    assert sum(SHARES.values()) == pytest.approx(1.0)
    assert set(dir(NoProgress())) <= set(dir(progress))


def test_progress_stops_a_job_that_is_cancelled():
    answers = iter([True, False])
    progress = JobProgress(lambda _: next(answers))
    progress.stage("locate")
    with pytest.raises(StoppedError):
        progress.step(1, 2)


def test_records_never_change(jobs):
    job = submit(jobs)
    run(jobs)
    assert job.state is State.QUEUED
    assert replace(job, state=State.DONE) != job
