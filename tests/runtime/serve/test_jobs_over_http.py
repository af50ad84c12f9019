"""What a viewer gets over HTTP is what the command writes."""

from __future__ import annotations

import errno
import gzip
import io
import json
import threading
from datetime import datetime

import jsonschema
import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from runtime.errors import InputError
from runtime.findings import schema
from runtime.infer import main
from tests.runtime.serve.servers import Gated


@pytest.fixture
def command(ball_bundle, tmp_path):
    """Runs ``runtime.infer`` on a scan; its results' folder."""

    def run(scan, *options):
        folder = tmp_path / f"command-{scan.name}"
        arguments = [str(scan), "--bundle", str(ball_bundle), "--engine", "openvino", "--precision", "fp32"]
        assert main([*arguments, "-o", str(folder), *options]) == 0
        return folder

    return run


def same_whenever_run(findings):
    return {key: value for key, value in findings.items() if key not in ("timings_s", "peak_memory_mb")}


def labels_of(data):
    image = nib.Nifti1Image.from_bytes(data)
    return np.asarray(image.dataobj), image.affine


@pytest.mark.parametrize("name", ["two.nii.gz", "three.nii", "series.zip"])
def test_an_upload_gives_what_the_command_writes(serve, scans, command, name):
    running = serve()
    job = running.ended(running.submitted(scans / name))
    assert job["state"] == "done", job
    expected = command(scans / name, *(["--output", "seg"] if name == "series.zip" else []))
    findings = running.http.get(job["results"]["findings"])
    jsonschema.validate(findings.json(), schema())
    written = json.loads((expected / "findings.json").read_text())
    assert same_whenever_run(findings.json()) == same_whenever_run(written)
    assert len(written["vertebrae"]) > 1
    mask = running.http.get(job["results"]["mask"])
    labels, affine = labels_of(gzip.decompress(mask.content))
    theirs = nib.load(expected / "vertebrae.nii.gz")
    assert np.array_equal(labels, np.asarray(theirs.dataobj))
    assert np.array_equal(affine, theirs.affine)
    picture = running.http.get(job["results"]["overview"])
    with Image.open(io.BytesIO(picture.content)) as ours, Image.open(expected / "overview.png") as other:
        assert np.array_equal(np.asarray(ours), np.asarray(other))
    for answer in (findings, mask, picture):
        assert answer.headers["cache-control"] == "no-store"
    assert set(job["results"]) == {"findings", "mask", "overview", *(["seg"] if name == "series.zip" else [])}
    assert all(path.parent.name == "results" for path in running.left())  # of the upload nothing


def test_several_files_are_one_dicom_series_with_a_segmentation_on_it(serve, scans, command):
    running = serve()
    files = sorted((scans / "series").iterdir())
    job = running.ended(running.submitted(*files, name="series", dicom="seg,sr", overview="false"))
    assert set(job["results"]) == {"findings", "mask", "seg", "sr"}
    expected = command(scans / "series", "--output", "seg,sr", "--no-overview")
    written = json.loads((expected / "findings.json").read_text())
    assert same_whenever_run(running.http.get(job["results"]["findings"]).json()) == same_whenever_run(written)
    answer = running.http.get(job["results"]["seg"])
    assert answer.headers["content-type"] == "application/dicom"
    ours, theirs = dcmread(io.BytesIO(answer.content)), dcmread(expected / "seg.dcm")
    assert ours.SOPInstanceUID == theirs.SOPInstanceUID
    assert ours.PixelData == theirs.PixelData
    assert ours.ReferencedSeriesSequence[0].SeriesInstanceUID == dcmread(files[0]).SeriesInstanceUID


@pytest.mark.parametrize("name", ["two.nii.gz", "series"])
def test_a_path_gives_the_same_and_the_scan_stays(serve, scans, command, name):
    running = serve("--allow-path", scans)
    before = sorted((path, path.stat().st_mtime_ns) for path in scans.rglob("*"))
    answer = running.http.post("/v1/jobs/path", json={"path": str(scans / name), "dicom": []})
    assert answer.status_code == 202
    job = running.ended(answer.json()["id"])
    written = json.loads((command(scans / name) / "findings.json").read_text())
    assert same_whenever_run(running.http.get(job["results"]["findings"]).json()) == same_whenever_run(written)
    assert set(job["results"]) == {"findings", "mask", "overview"}
    running.http.delete(f"/v1/jobs/{job['id']}")
    assert sorted((path, path.stat().st_mtime_ns) for path in scans.rglob("*")) == before


def test_events_tell_a_progress_that_never_goes_back_and_end_with_the_job(serve, scans):
    running = serve()
    job = running.submitted(scans / "three.nii")
    events = list(running.events(job))
    names = [name for name, _ in events]
    assert names == [told["state"] for _, told in events]
    assert names[-1] == "done"
    assert names.index("done") == len(names) - 1
    assert set(names[:-1]) <= {"queued", "running"}
    fractions = [told["progress"]["fraction"] for _, told in events]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert events[-1][1] == running.http.get(f"/v1/jobs/{job}").json()
    again = list(running.events(job))  # after it has ended: how it ended
    assert again == [events[-1]]


def test_events_of_a_job_that_waits_tell_its_place(serve, scans, pipeline):
    gated = Gated(pipeline)
    running = serve(over=gated)
    first, second = running.submitted(scans / "two.nii.gz"), running.submitted(scans / "two.nii.gz")
    assert gated.reached.wait(60)
    events = running.events(second)
    name, told = next(events)
    assert (name, told["position"]) == ("queued", 1)
    gated.open.set()
    told = list(events)
    assert told[-1][0] == "done"
    assert [one["position"] for name, one in told if name != "queued"] == [None] * len(
        [name for name, _ in told if name != "queued"]
    )
    jobs = {job["id"]: job for job in running.http.get("/v1/jobs").json()["jobs"]}
    assert list(jobs) == [first, second]
    assert datetime.fromisoformat(jobs[first]["ended"]) <= datetime.fromisoformat(jobs[second]["started"])


def test_two_clients_at_once_each_get_their_own(serve, scans):
    running, found = serve(), {}

    def client(name):
        job = running.ended(running.submitted(scans / name))
        found[name] = running.http.get(job["results"]["findings"]).json()

    threads = [threading.Thread(target=client, args=(name,)) for name in ("two.nii.gz", "three.nii")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name: (f["scan"]["name"], len(f["vertebrae"])) for name, f in found.items()} == {
        "two.nii.gz": ("two", 2),
        "three.nii": ("three", 3),
    }


def test_a_bad_scan_fails_with_the_commands_own_line(serve, scans, ball_bundle, capsys, monkeypatch):
    running = serve()
    job = running.ended(running.submitted(scans / "broken.nii.gz"))
    monkeypatch.chdir(scans)
    assert job["state"] == "failed"
    assert job["error"]["kind"] == "input"
    assert job["error"]["exit_status"] == InputError.exit_status
    assert main(["broken.nii.gz", "--bundle", str(ball_bundle)]) == InputError.exit_status
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"error: broken.nii.gz: {job['error']['message']}"
    assert running.left() == []
    refused = running.http.get(f"/v1/jobs/{job['id']}/findings")
    assert refused.status_code == 409
    assert job["error"]["message"] in refused.json()["detail"]
    assert running.ended(running.submitted(scans / "two.nii.gz"))["state"] == "done"


def test_a_damaged_series_is_told_of_by_the_clients_names_not_the_servers(serve, tmp_path):
    running = serve()
    (tmp_path / "a.dcm").write_bytes(b"\0" * 200)
    (tmp_path / "b.dcm").write_bytes(b"\0" * 200)
    job = running.ended(running.submitted(tmp_path / "a.dcm", tmp_path / "b.dcm"))
    assert job["error"]["kind"] == "input"
    assert str(running.folder) not in job["error"]["message"]
    assert "\n" not in job["error"]["message"]


def test_dicom_results_of_a_scan_that_is_none_fail_when_asked_for(serve, scans):
    running = serve()
    job = running.ended(running.submitted(scans / "two.nii.gz", dicom="seg"))
    assert (job["state"], job["error"]["kind"]) == ("failed", "input")
    assert "not read from DICOM" in job["error"]["message"]


def test_a_series_that_allows_no_segmentation_is_done_without_and_says_why(serve, scans, tmp_path):
    for file in (scans / "series").iterdir():
        image = dcmread(file)
        del image.FrameOfReferenceUID
        image.save_as(tmp_path / file.name)
    running = serve()
    files = sorted(tmp_path.glob("*.dcm"))
    job = running.ended(running.submitted(*files))
    assert job["state"] == "done"
    assert set(job["results"]) == {"findings", "mask", "overview"}
    assert "Frame of Reference" in job["notes"][0]
    assert running.ended(running.submitted(*files, dicom="seg"))["state"] == "failed"


@pytest.mark.parametrize("writes", ["runtime.dicom.encode.dcmwrite", "isal.igzip.IGzipFile.write"])
def test_a_full_disk_is_the_servers_not_the_scans(serve, scans, monkeypatch, caplog, writes):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    running = serve()
    monkeypatch.setattr(writes, full)
    job = running.ended(running.submitted(*sorted((scans / "series").iterdir())))
    assert (job["state"], job["notes"]) == ("failed", [])
    assert (job["error"]["kind"], job["error"]["exit_status"]) == ("internal", 1)
    assert job["error"]["message"].startswith("The server can't write the results (No space left on device).")
    assert "-o" not in job["error"]["message"]
    assert "No space left on device" in caplog.text
    assert running.left() == []


def test_a_job_that_waits_and_one_that_runs_are_cancelled_and_leave_nothing(serve, scans, pipeline):
    gated = Gated(pipeline)
    running = serve(over=gated)
    runs, waits, stays = (running.submitted(scans / "two.nii.gz") for _ in range(3))
    assert gated.reached.wait(60)
    assert running.http.delete(f"/v1/jobs/{waits}").json()["state"] == "cancelled"
    asked = running.http.delete(f"/v1/jobs/{runs}").json()
    assert (asked["state"], asked["cancel_requested"]) == ("running", True)
    assert running.http.get(f"/v1/jobs/{runs}/findings").status_code == 409
    events = running.events(runs)
    assert next(events)[0] == "running"
    gated.open.set()
    assert list(events)[-1][0] == "cancelled"
    assert running.ended(stays)["state"] == "done"
    assert {path.relative_to(running.folder / "jobs").parts[0] for path in running.left()} == {stays}
    assert running.http.get(f"/v1/jobs/{waits}").json()["state"] == "cancelled"


def test_an_ended_job_is_forgotten_with_its_files(serve, scans):
    running = serve()
    job = running.submitted(scans / "two.nii.gz")
    running.ended(job)
    assert running.left()
    assert running.http.delete(f"/v1/jobs/{job}").json()["state"] == "done"
    assert running.left() == []
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/events"), ("GET", "/mask")):
        answer = running.http.request(method, f"/v1/jobs/{job}{path}")
        assert answer.status_code == 404
        assert answer.json().keys() == {"detail"}


def test_what_was_not_asked_for_is_not_there(serve, scans):
    running = serve()
    job = running.ended(running.submitted(scans / "two.nii.gz", overview="false"))
    assert "overview" not in job["results"]
    for path in ("overview", "dicom/seg"):
        answer = running.http.get(f"/v1/jobs/{job['id']}/{path}")
        assert answer.status_code == 404
        assert "findings, mask" in answer.json()["detail"]
    assert running.http.get(f"/v1/jobs/{job['id']}/dicom/findings").status_code == 422


def test_a_defect_is_told_without_what_it_quotes_and_keeps_nobody_waiting(serve, scans, pipeline, caplog):
    class Broken(Gated):
        def analyse(self, prepared, *, progress, reading=None):
            if prepared.volume.name == "three":
                raise ZeroDivisionError("Zwetschkenbaum")
            return pipeline.analyse(prepared, progress=progress)

    running = serve(over=Broken(pipeline))
    job = running.ended(running.submitted(scans / "three.nii"))
    assert (job["error"]["kind"], job["error"]["exit_status"]) == ("internal", 1)
    assert "ZeroDivisionError" in job["error"]["message"]
    assert "ZeroDivisionError at test_jobs_over_http.py" in caplog.text
    assert "Zwetschkenbaum" not in caplog.text + job["error"]["message"]
    assert running.left() == []
    assert running.ended(running.submitted(scans / "two.nii.gz"))["state"] == "done"
