"""A cohort on a real Ray cluster of two nodes: workers and drivers are killed, nothing is lost or done twice."""

from __future__ import annotations

import csv
import json
import os
import signal
from collections import Counter

import pytest

pytest.importorskip("ray", reason="needs the extra cluster")
pytest.importorskip("pyarrow", reason="needs the extra cluster")
if os.name != "posix":
    pytest.skip("sends POSIX signals", allow_module_level=True)

import pyarrow.parquet as pq

from benchmarks.local_cluster import two_nodes
from runtime.infer import main as infer
from tests.runtime.cohort.clusters import Driver, wait_for

SCANS = {f"s{number}": 1 + number % 3 for number in range(8)}
"""Name and number of balls."""


@pytest.fixture(scope="module")
def address():
    with two_nodes() as address:
        yield address


class Cohort:
    """Scans, their list, and drivers that run them."""

    def __init__(self, folder, bundle, address):
        self.folder, self.output, self.log = folder, folder / "out", folder / "log"
        self._options = ["scans.csv", "-o", "out", "--bundle", bundle, "--engine", "openvino", "--precision", "fp32"]
        self._options += ["--address", address, "--no-overview", "--retries", "1"]

    def list(self, names):
        lines = ["id,scan,age", *(f"p-{name},{name}.nii.gz,{50 + i}" for i, name in enumerate(names))]
        (self.folder / "scans.csv").write_text("\n".join(lines) + "\n")

    def start(self, *more):
        return Driver(self.folder, *self._options, *more)

    def mark(self, name, what):
        return self.folder / f"{name}.{what}"

    @property
    def runs(self):
        """How often the networks were run on each scan."""
        return Counter(self.log.read_text().split()) if self.log.exists() else Counter()

    def done(self):
        return {path.parent.name.removesuffix(".vertebrae") for path in self.output.glob("*.vertebrae/findings.json")}

    def table(self, name):
        return pq.read_table(self.output / f"{name}.parquet").to_pylist()

    def scratch(self):
        return [path.name for path in self.output.rglob(".*") if path.name != ".cohort.lock"]

    def kill_worker_on(self, name, driver):
        """SIGKILL for the worker that reads a scan which is held, when it has begun to."""
        wait_for(self.mark(name, "pid").exists, f"run of {name}", driver)
        wait_for(lambda: self.mark(name, "pid").read_text(), "pid", driver)
        os.kill(int(self.mark(name, "pid").read_text()), signal.SIGKILL)


@pytest.fixture
def cohort(tmp_path, ball_bundle, ball_scan, save, address):
    made = Cohort(tmp_path, ball_bundle, address)
    for name, balls in SCANS.items():
        save(ball_scan(balls).volume, tmp_path / f"{name}.nii.gz")
    made.list(SCANS)
    return made


def told(err):
    """The lines but those that a busy machine adds."""
    busy = ("an earlier run is still ending; waiting for it", "warning: no worker is ready yet")
    return [line for line in err.splitlines() if not line.startswith(busy)]


def without_timings(path):
    findings = json.loads(path.read_text())
    del findings["timings_s"], findings["peak_memory_mb"]
    return json.dumps(findings)


def test_a_killed_worker_costs_one_scan_and_bad_scans_are_listed_with_reasons(cohort, tmp_path, ball_bundle):
    (tmp_path / "broken.nii.gz").write_bytes(b"no scan at all")
    (tmp_path / "poison.nii.gz").write_bytes((tmp_path / "s0.nii.gz").read_bytes())
    names = ["s7", "poison", "s0", "s1", "broken", "s2", "s3", "s4", "s5", "s6"]
    cohort.list(names)
    cohort.mark("poison", "kills").touch()
    cohort.mark("s3", "hold").touch()
    driver = cohort.start()
    cohort.kill_worker_on("s3", driver)
    cohort.mark("s3", "hold").unlink()
    status, out, err = driver.ended()

    assert status == 5, err  # of the first that failed
    assert out.splitlines()[0].startswith("8 scans done, 2 failed")
    assert "Traceback" not in err
    assert "raylet" not in err
    assert all(line.startswith("warning: ") for line in err.splitlines()), err
    assert cohort.done() == set(SCANS)
    assert cohort.runs == dict.fromkeys(SCANS, 1)  # nothing lost, nothing done twice
    assert cohort.scratch() == []

    with (cohort.output / "failed.csv").open(newline="") as file:
        failed = {row["id"]: row for row in csv.DictReader(file)}
    assert list(failed) == ["p-poison", "p-broken"]
    assert failed["p-poison"] | {"node": "", "host": ""} == {
        "id": "p-poison", "scan": "poison.nii.gz", "age": "51", "failure": "worker lost", "runs": "2", "node": "",
        "host": "", "reason": "the worker died (it was killed, ran out of memory or crashed) (2 times)",
    }  # fmt: skip
    assert failed["p-broken"]["failure"] == "input"
    assert failed["p-broken"]["runs"] == "1"
    assert "broken.nii.gz" in failed["p-broken"]["reason"]

    scans = cohort.table("scans")
    assert [row["id"] for row in scans] == [f"p-{name}" for name in names]
    assert {row["id"]: row["runs"] for row in scans if row["runs"] != 1} == {"p-poison": 2, "p-s3": 2}
    assert len({row["node"] for row in scans if row["status"] == "done"}) == 2  # both nodes worked
    expected = [(f"p-{name}", number) for name in names if name in SCANS for number in range(1, SCANS[name] + 1)]
    assert [(row["id"], row["vertebra"]) for row in cohort.table("vertebrae")] == expected
    assert {row["age"] for row in cohort.table("vertebrae") if row["id"] == "p-s3"} == {"56"}

    one_by_one = [tmp_path / f"{name}.nii.gz" for name in SCANS]
    options = ["--bundle", str(ball_bundle), "--engine", "openvino", "--precision", "fp32", "--no-overview"]
    assert infer([*map(str, one_by_one), "-o", str(tmp_path / "alone"), *options]) == 0
    for name in SCANS:
        alone, together = tmp_path / "alone" / f"{name}.vertebrae", cohort.output / f"{name}.vertebrae"
        assert sorted(path.name for path in alone.iterdir()) == sorted(path.name for path in together.iterdir())
        assert without_timings(alone / "findings.json") == without_timings(together / "findings.json")
        assert (alone / "vertebrae.nii.gz").read_bytes() == (together / "vertebrae.nii.gz").read_bytes()

    # either goes on where the other stopped
    cohort.mark("poison", "kills").unlink()
    (tmp_path / "broken.nii.gz").unlink()
    (tmp_path / "broken.nii.gz").write_bytes((tmp_path / "s1.nii.gz").read_bytes())
    before = cohort.runs
    assert infer([str(tmp_path / "poison.nii.gz"), "-o", str(cohort.output / "poison.vertebrae"), *options]) == 0
    status, out, err = cohort.start().ended()
    assert (status, told(err)) == (0, [])
    assert out.splitlines()[0] == "1 scans done, 9 were done before, 0 failed"
    assert cohort.runs - before == {"broken": 1}
    assert {row["status"] for row in cohort.table("scans")} == {"done"}
    assert {row["id"]: row["runs"] for row in cohort.table("scans")}["p-s3"] == 2
    assert (cohort.output / "failed.csv").read_text().count("\n") == 1


def test_a_killed_driver_and_an_interrupted_one_lose_nothing_and_nothing_is_done_twice(cohort):
    held = [cohort.mark(name, "hold") for name in ("s4", "s5")]
    for hold in held:
        hold.touch()
    driver = cohort.start()
    wait_for(lambda: all(hold.with_suffix(".pid").exists() for hold in held), "both workers held", driver)
    assert cohort.done() == {"s0", "s1", "s2", "s3"}
    driver.kill()
    driver.communicate()
    cohort.mark("s5", "hold").unlink()
    second = cohort.start()  # at once: the first one's worker may still be about
    wait_for(lambda: cohort.done() >= set(SCANS) - {"s4"}, "the others done", second)
    second.send_signal(signal.SIGINT)
    status, out, err = second.ended()
    assert (status, out) == (130, "")
    assert told(err) == ["error: interrupted; what is done is kept, and the same command goes on from there"]
    statuses = {row["id"]: row["status"] for row in cohort.table("scans")}
    assert statuses == {f"p-{name}": "waiting" if name == "s4" else "done" for name in SCANS}
    assert cohort.scratch() == []
    held[0].unlink()
    status, out, err = cohort.start().ended()
    assert (status, told(err)) == (0, [])
    assert out.splitlines()[0] == "1 scans done, 7 were done before, 0 failed"
    assert cohort.runs == dict.fromkeys(SCANS, 1)


def is_there(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_scan_that_hangs_is_given_up_and_its_process_ended(cohort):
    cohort.list(["s0", "s1"])
    cohort.mark("s0", "hangs").touch()
    status, _, err = cohort.start("--workers", "1", "--time-limit", "8").ended()
    assert status == 5, err
    assert "Traceback" not in err
    hung = int(cohort.mark("s0", "pid").read_text())
    wait_for(lambda: not is_there(hung), "end of the process")
    with (cohort.output / "failed.csv").open(newline="") as file:
        failed = next(csv.DictReader(file))
    assert (failed["id"], failed["failure"], failed["runs"]) == ("p-s0", "time limit", "1")
    assert failed["reason"].startswith("it was not done after 8 s, so its worker was ended; ")
    assert cohort.mark("s1", "pid").exists()  # the run went on; a slow machine may have taken too long for this one too
    assert cohort.scratch() == []

    cohort.mark("s0", "hangs").unlink()
    status, _, err = cohort.start().ended()
    assert status == 0, err
    assert cohort.done() == {"s0", "s1"}
