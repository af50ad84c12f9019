"""One worker without a cluster: whom it works for, and what it says of a scan."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from runtime.bundle import open_bundle
from runtime.cohort.output_folder import COHORT_SCRATCH, OutputLock, close_output, open_output
from runtime.cohort.work import DEFECT, DONE, DONE_BEFORE, FAILED, INPUT, MEMORY, Orders, Task, Worker, open_pipeline
from runtime.errors import BundleError, InputError
from runtime.output import Outputs, replaced_whole
from runtime.version import software_version


@pytest.fixture
def orders(tmp_path, ball_bundle):
    return Orders(
        "run", tmp_path / "out", tmp_path, ball_bundle, open_bundle(ball_bundle).sha256, "openvino", "fp32", False, 1,
        Outputs(overview=False), False, software_version(),
    )  # fmt: skip


@pytest.fixture
def lock(tmp_path):
    lock = open_output(tmp_path / "out", "run", folders=[tmp_path / "out" / "a"], on_wait=lambda: None)
    yield lock
    close_output(lock, folders=[], wait_s=0)


@pytest.fixture
def task(tmp_path, ball_scan, save):
    return Task(3, save(ball_scan(2).volume, tmp_path / "a.nii.gz"), tmp_path / "out" / "a.vertebrae")


def test_a_scan_is_run_once_and_then_known_to_be_done(orders, lock, task):
    worker = Worker(orders)
    first = worker.run(task)
    assert (first.number, first.status, first.reason) == (3, DONE, "")
    written = (task.folder / "findings.json").read_text()
    assert json.loads(first.findings) == json.loads(written)
    second = worker.run(task)
    assert (second.status, second.findings) == (DONE_BEFORE, first.findings)
    assert (task.folder / "findings.json").read_text() == written


def test_a_scan_is_run_again_when_it_was_done_otherwise_than_named(orders, lock, task):
    assert Worker(orders).run(task).status == DONE
    exhaustive = Worker(replace(orders, exhaustive=True))
    assert [exhaustive.run(task).status for _ in range(2)] == [DONE, DONE_BEFORE]
    assert Worker(replace(orders, engine="auto", precision="auto")).run(task).status == DONE_BEFORE


def test_whether_a_failure_may_pass_is_told(orders, lock, task, tmp_path, monkeypatch):
    worker = Worker(orders)
    (tmp_path / "bad.nii.gz").write_bytes(b"no scan")
    bad = worker.run(replace(task, scan=tmp_path / "bad.nii.gz"))
    assert (bad.status, bad.kind, bad.may_pass) == (FAILED, INPUT, False)
    gone = worker.run(replace(task, scan=tmp_path / "gone.nii.gz"))
    assert (gone.kind, gone.may_pass) == (INPUT, True)  # another node may see it
    assert "can't see" in gone.reason
    for error, kind in ((MemoryError(), MEMORY), (ZeroDivisionError("x"), DEFECT)):
        monkeypatch.setattr(worker._pipeline, "prepare", _raising(error))
        outcome = worker.run(task)
        assert (outcome.status, outcome.kind, outcome.may_pass) == (FAILED, kind, True)
    assert not task.folder.exists()


def _raising(error):
    def prepare(*_, **__):
        raise error

    return prepare


def test_a_worker_on_a_node_that_is_set_up_otherwise_refuses(orders, lock, tmp_path):
    with pytest.raises(BundleError, match="give all nodes the same bundle"):
        Worker(replace(orders, bundle_sha256="0" * 64))
    with pytest.raises(InputError, match="storage that all nodes share"):
        Worker(replace(orders, run="another run"))
    with pytest.raises(InputError, match="storage that all nodes share"):
        Worker(replace(orders, output=tmp_path / "elsewhere"))
    with pytest.raises(InputError, match="doesn't see the folder of scans"):
        Worker(replace(orders, root=tmp_path / "elsewhere"))
    with pytest.raises(InputError, match=r"it has version .* of this software, the driver 99"):
        Worker(replace(orders, version="99"))


def test_a_worker_keeps_to_its_cores(orders, lock, monkeypatch):
    import numba
    import SimpleITK as sitk  # noqa: N813

    monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", 8)
    before, seen = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads(), []
    try:
        Worker(replace(orders, threads=1), lambda orders: seen.append(orders.threads) or open_pipeline(orders))
        assert (numba.config.NUMBA_NUM_THREADS, sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()) == (1, 1)
        assert seen == [1]
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def test_one_run_at_a_time_and_not_before_the_workers_of_the_last_are_gone(tmp_path, lock, monkeypatch):
    if not lock.works:
        pytest.skip("no locks here")
    monkeypatch.setattr("runtime.cohort.output_folder.WAIT_S", 0.3)
    output, waited = tmp_path / "out", []
    worker = OutputLock(output)
    assert worker.share()
    with pytest.raises(InputError, match="Another run of a cohort is writing to"):
        open_output(output, "other", folders=[], on_wait=lambda: waited.append(1))
    lock.close()
    with pytest.raises(InputError, match="Another run"):
        open_output(output, "other", folders=[], on_wait=lambda: waited.append(2))
    worker.close()
    close_output(open_output(output, "other", folders=[], on_wait=lambda: waited.append(3)), folders=[])
    assert waited == [1, 2]


def test_what_a_killed_worker_left_half_written_goes_and_nothing_else(tmp_path):
    output = tmp_path / "out"
    folder = output / "a.vertebrae"
    with replaced_whole(folder, scratch=COHORT_SCRATCH) as fresh:
        (fresh / "findings.json").write_text("{}")
        shutil.copytree(fresh.parent, tmp_path / "killed")
    for name in (f"{COHORT_SCRATCH}killed", ".vertscan-of-runtime-infer"):
        shutil.copytree(tmp_path / "killed", output / name)
    (folder / f"{COHORT_SCRATCH}killed").mkdir()
    close_output(open_output(output, "run", folders=[folder], on_wait=lambda: None), folders=[folder])
    left = {str(path.relative_to(output)) for path in output.rglob("*")}
    assert left == {
        ".cohort.lock", "a.vertebrae", "a.vertebrae/findings.json", ".vertscan-of-runtime-infer",
        ".vertscan-of-runtime-infer/lock", ".vertscan-of-runtime-infer/new",
        ".vertscan-of-runtime-infer/new/findings.json",
    }  # fmt: skip
