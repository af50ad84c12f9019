"""Who may use the server, what it refuses, and that what it refuses leaves nothing."""

from __future__ import annotations

import gzip
import http.client
import os
import socket
import struct
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from runtime.serve.options import JobLimits
from runtime.serve.unpacked import check_unpacked
from runtime.serve.uploads import safe_name
from tests.runtime.node.studies import PATIENT_WORDS
from tests.runtime.serve.servers import TOKEN, WAIT_S, Gated

SMALL = JobLimits(max_upload_bytes=100_000, max_unpacked_bytes=10**8, max_files=5, min_free_bytes=0, max_queued=2)


@pytest.fixture
def running(serve):
    return serve()


def nothing_comes_of(running):
    """No job, and after a moment no file."""
    assert running.http.get("/v1/jobs").json() == {"jobs": []}
    deadline_s = time.monotonic() + WAIT_S
    while (folders := list((running.folder / "jobs").glob("*"))) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert folders == []


def routes(running):
    document = running.http.get("/openapi.json").json()
    for path, methods in document["paths"].items():
        for method in methods:
            yield method.upper(), path.replace("{id}", "0" * 32).replace("{kind}", "seg")


def test_every_route_but_health_needs_the_token(running):
    there = [*routes(running), ("GET", "/openapi.json"), ("GET", "/no/such/route"), ("GET", "//health"), ("PUT", "/")]
    assert len(there) > 12
    wrong = ["", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", f"Bearer{TOKEN}", "Bearer", TOKEN]
    with httpx.Client(base_url=running.url, trust_env=False) as stranger:
        for method, path in there:
            for shown in wrong:
                answer = stranger.request(method, path, headers={"Authorization": shown} if shown else {})
                if path == "/health":
                    assert answer.json() == {"status": "ok"}
                else:
                    assert (answer.status_code, path) == (401, path)
                    assert answer.headers["www-authenticate"] == "Bearer"
        twice = [("Authorization", f"Bearer {TOKEN}"), ("Authorization", "Bearer other")]
        assert stranger.get("/v1/info", headers=twice).status_code == 401
        assert stranger.get("/v1/info", headers={"Authorization": f"bearer {TOKEN}"}).status_code == 200
        assert stranger.get(f"/v1/info?token={TOKEN}").status_code == 401


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8417", "127.0.0.1.evil.example", "localhost.evil", ""])
def test_another_name_for_the_server_is_refused(running, host):
    assert running.http.get("/v1/info", headers={"Host": host}).status_code == 400
    assert running.http.get("/health", headers={"Host": host}).status_code == 400


def test_its_own_names_are_served(serve):
    running = serve("--allow-host", "Viewer.local")
    for host in ("127.0.0.1", "localhost:80", "[::1]:80", "viewer.local:1"):
        assert running.http.get("/v1/info", headers={"Host": host}).status_code == 200


def test_web_pages_are_let_in_by_name_only(serve):
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    closed, opened = serve(), serve("--allow-origin", "https://viewer.example")
    for running, origin, allowed in (
        (closed, "https://viewer.example", False),
        (opened, "https://viewer.example", True),
        (opened, "https://viewer.example.evil", False),
        (opened, "null", False),
    ):
        with httpx.Client(base_url=running.url, trust_env=False) as browser:
            preflight = browser.options("/v1/jobs/upload", headers={"Origin": origin, **ask})
        answer = running.http.get("/v1/info", headers={"Origin": origin})
        expected = origin if allowed else None
        assert answer.headers.get("access-control-allow-origin") == expected
        assert preflight.headers.get("access-control-allow-origin") == expected
        assert (preflight.status_code == 200) is allowed


def test_paths_are_not_taken_unless_folders_are_named(running, scans):
    answer = running.http.post("/v1/jobs/path", json={"path": str(scans / "two.nii.gz")})
    assert answer.status_code == 403
    assert "--allow-path" in answer.json()["detail"]


@pytest.mark.skipif(os.name != "posix", reason="links need rights elsewhere")
def test_only_what_lies_below_the_folders_is_read_links_followed(serve, scans, tmp_path):
    root, outside = tmp_path / "root", tmp_path / "root-outside"
    for folder in (root, outside, root / "series", root / "disc"):
        folder.mkdir()
    secret = outside / "secret.nii.gz"
    secret.write_bytes((scans / "two.nii.gz").read_bytes())
    (root / "link.nii.gz").symlink_to(secret)
    (root / "folder").symlink_to(outside)
    (root / "series" / "1.dcm").symlink_to(secret)
    (root / "disc" / "DICOMDIR").write_bytes(b"")
    (root / "disc" / "below").symlink_to(outside)
    (root / "ring.nii").symlink_to("ring.nii")
    for folder in ("linked", "beside"):
        (root / folder).mkdir()
    (root / "linked" / "on").symlink_to(root / "beside")
    (root / "beside" / "1.dcm").symlink_to(secret)
    inside = root / "inside.nii.gz"
    inside.symlink_to(root / "real.nii.gz")
    (root / "real.nii.gz").write_bytes(secret.read_bytes())
    running = serve("--allow-path", root)
    said = set()
    for path in (
        secret,
        outside,
        root / ".." / "root-outside" / "secret.nii.gz",
        root / "link.nii.gz",
        root / "folder" / "secret.nii.gz",
        root / "series",
        root / "disc" / "DICOMDIR",
        root / "ring.nii",
        root / "linked",
        root / "none.nii",
        outside / "none.nii",
        Path("/etc/passwd"),
    ):
        answer = running.http.post("/v1/jobs/path", json={"path": str(path)})
        assert (answer.status_code, str(path)) == (403, str(path))
        said.add(answer.text)
    assert len(said) == 1  # it tells nobody what is there
    for path in ("root/real.nii.gz", "./real.nii.gz", "", "\0", str(root / "real.nii.gz\0")):
        assert running.http.post("/v1/jobs/path", json={"path": path}).status_code in (400, 422)
    assert running.http.post("/v1/jobs/path", json={"path": str(root / "x"), "more": 1}).status_code == 422
    nothing_comes_of(running)
    answer = running.http.post("/v1/jobs/path", json={"path": str(inside)})
    assert answer.status_code == 202
    running.http.delete(f"/v1/jobs/{answer.json()['id']}")


@pytest.mark.skipif(os.name != "posix", reason="links need rights elsewhere")
def test_a_scan_that_becomes_a_link_while_it_waits_is_not_read(serve, scans, pipeline, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    scan = root / "scan.nii.gz"
    scan.write_bytes((scans / "two.nii.gz").read_bytes())
    gated = Gated(pipeline)
    running = serve("--allow-path", root, over=gated)
    first = running.http.post("/v1/jobs/path", json={"path": str(scan)}).json()["id"]
    assert gated.reached.wait(60)
    second = running.http.post("/v1/jobs/path", json={"path": str(scan)}).json()["id"]
    scan.unlink()
    scan.symlink_to(scans / "two.nii.gz")
    running.http.delete(f"/v1/jobs/{first}")
    gated.open.set()
    job = running.ended(second)
    assert (job["state"], job["error"]["kind"]) == ("failed", "input")


@pytest.mark.parametrize("name", ["x.mhd", "x.mha", "x.NRRD"])
def test_formats_whose_headers_name_other_files_are_not_taken(serve, name, tmp_path):
    (tmp_path / name).write_bytes(b"ElementDataFile = /etc/passwd")
    running = serve("--allow-path", tmp_path)
    assert running.upload(tmp_path / name).status_code == 415
    assert running.http.post("/v1/jobs/path", json={"path": str(tmp_path / name)}).status_code == 415
    nothing_comes_of(running)


@pytest.mark.parametrize("says_length", [True, False])
def test_an_upload_that_is_too_large_is_refused_and_leaves_nothing(serve, says_length):
    running = serve(limits=SMALL)
    body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x.nii"\r\n\r\n' + b"x" * 3_000_000
    pieces = (body[n : n + 50_000] for n in range(0, len(body), 50_000))
    answer = running.http.post(
        "/v1/jobs/upload",
        content=body if says_length else pieces,
        headers={"Content-Type": "multipart/form-data; boundary=b"},
    )
    assert answer.status_code == 413
    assert "100000 are taken" in answer.json()["detail"]
    nothing_comes_of(running)


def test_more_files_than_allowed_are_refused_and_leave_nothing(serve):
    running = serve(limits=SMALL)
    files = [("file", (f"{n}.dcm", b"x")) for n in range(6)]
    answer = running.http.post("/v1/jobs/upload", files=files)
    assert answer.status_code == 413
    nothing_comes_of(running)


def test_a_client_that_goes_away_leaves_nothing(running):
    where = urlsplit(running.url)
    with socket.create_connection((where.hostname, where.port)) as stream:
        head = (
            f"POST /v1/jobs/upload HTTP/1.1\r\nHost: {where.netloc}\r\nAuthorization: Bearer {TOKEN}\r\n"
            "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 5000000\r\n\r\n"
            '--b\r\nContent-Disposition: form-data; name="file"; filename="x.nii"\r\n\r\n'
        )
        stream.sendall(head.encode() + b"x" * 2_000_000)
        deadline_s = time.monotonic() + WAIT_S
        while not running.left() and time.monotonic() < deadline_s:
            time.sleep(0.02)
        assert running.left()
    nothing_comes_of(running)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"no form", 400),
        (b'--b\r\nContent-Disposition: form-data; name="file"; filename="x.nii"\r\n\r\ncut off', 400),
        (b"--b--\r\n", 422),
        (b'--b\r\nContent-Disposition: form-data; name="file"; filename=""\r\n\r\n\r\n--b--\r\n', 422),
        (b'--b\r\nContent-Disposition: form-data; name="nonsense"\r\n\r\n1\r\n--b--\r\n', 422),
        (b'--b\r\nContent-Disposition: form-data; name="dicom"\r\n\r\nseg,xyz\r\n--b--\r\n', 422),
        (b'--b\r\nContent-Disposition: form-data; name="series_uid"\r\n\r\n1.2/3\r\n--b--\r\n', 422),
        (b'--b\r\nContent-Disposition: form-data; name="name"\r\n\r\n' + b"x" * 5000 + b"\r\n--b--\r\n", 413),
    ],
)
def test_a_damaged_form_is_told_in_one_line_and_leaves_nothing(running, body, status):
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = running.http.post("/v1/jobs/upload", content=body, headers=kind)
    assert (answer.status_code, list(answer.json())) == (status, ["detail"])
    assert "\n" not in answer.json()["detail"]
    nothing_comes_of(running)


def test_what_is_no_form_is_refused(running):
    for headers in ({"Content-Type": "application/json"}, {"Content-Type": "multipart/form-data"}, {}):
        assert running.http.post("/v1/jobs/upload", content=b"{}", headers=headers).status_code == 415
    kind, piece = {"Content-Type": "application/json"}, b"x" * 10**5
    for content in (b'{"path": "' + piece + b'"}', (b'{"path": "', piece, b'"}')):
        big = running.http.post("/v1/jobs/path", content=content, headers=kind)
        assert (big.status_code, list(big.json())) == (413, ["detail"])
    assert running.http.post("/v1/jobs/path", content=b'{"path": "', headers=kind).status_code == 422
    nothing_comes_of(running)


def test_several_scans_in_one_job_are_refused(running, scans):
    answer = running.upload(scans / "two.nii.gz", scans / "three.nii")
    assert answer.status_code == 422
    assert "one scan per job" in answer.json()["detail"]
    nothing_comes_of(running)


def test_names_of_files_lead_nowhere_else(serve, scans, pipeline):
    gated = Gated(pipeline)
    running = serve(over=gated)
    data = (scans / "two.nii.gz").read_bytes()
    names = [
        "../../../evil.nii.gz",
        "/etc/evil.nii.gz",
        "C:\\x\\evil.nii.gz",
        "..",
        ".hidden.nii.gz",
        "é" * 300 + ".nii",
    ]
    for name in names:
        assert running.http.post("/v1/jobs/upload", files=[("file", (name, data))]).status_code == 202
    left = running.left()
    assert len(left) == len(names)
    assert {path.parent.parent.name for path in left} == {"input"}
    assert sorted(path.name for path in left if "evil" in path.name) == ["evil.nii.gz"] * 3
    running.service.jobs.close()
    gated.open.set()


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("a/b\\c.nii.gz", "c.nii.gz"),
        ("...", "upload"),
        ("a\nb;c|d.dcm", "a_b_c_d.dcm"),
        ("Müller, Jörg (2).nii", "Müller, Jörg (2).nii"),
        ("", "upload"),
    ],
)
def test_safe_names(given, kept):
    assert safe_name(given) == kept


def nifti(path: Path, shape=(4, 4, 4), bits=16) -> Path:
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *shape, 1, 1, 1, 1)
    struct.pack_into("<h", header, 72, bits)
    path.write_bytes(gzip.compress(bytes(header)) if path.suffix == ".gz" else bytes(header))
    return path


def bomb(path: Path, members=3, size=40_000_000) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for n in range(members):
            with archive.open(f"{n}.dcm", "w") as member:
                member.write(bytes(size))
    return path


def in_two_members(path: Path) -> Path:
    """The same content, of which a member of its own holds the first byte: decoders join them."""
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content[:1]) + gzip.compress(content[1:]))
    return path


def with_a_long_name(path: Path) -> Path:
    """The same content, behind a name of 100,000 letters in the gzip header."""
    packed = path.read_bytes()
    path.write_bytes(packed[:3] + b"\x08" + packed[4:10] + b"n" * 100_000 + b"\0" + packed[10:])
    return path


def test_a_directory_of_many_members_is_seen_whatever_the_comment_says(tmp_path):
    for comment in (b"PK\6\6" + bytes(60), b"PK\5\6" + bytes(40)):
        path = tmp_path / "x.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for n in range(300):
                archive.writestr(f"{n}.dcm", b"")
            archive.comment = comment
        with pytest.raises(Exception, match="too many members"):
            check_unpacked(path, replace(SMALL, max_files=5))


def test_bombs_are_refused_before_they_are_unpacked(serve, tmp_path):
    running = serve("--allow-path", tmp_path, limits=JobLimits(max_unpacked_bytes=10**8, max_files=5, min_free_bytes=0))
    for path in (
        nifti(tmp_path / "big.nii.gz", (4000, 4000, 4000)),
        nifti(tmp_path / "big.nii", (500, 500, 500), 64),
        bomb(tmp_path / "bomb.zip"),
        bomb(tmp_path / "many.zip", members=6, size=1),
        in_two_members(nifti(tmp_path / "two-members.nii.gz", (4000, 4000, 4000))),
        with_a_long_name(nifti(tmp_path / "long-name.nii.gz", (4000, 4000, 4000))),
    ):
        assert path.stat().st_size < 10**6
        answer = running.upload(path)
        assert answer.status_code == 413, answer.text
        assert running.http.post("/v1/jobs/path", json={"path": str(path)}).status_code == 413
    nothing_comes_of(running)


def test_what_is_damaged_is_left_to_its_reader(tmp_path):
    whole = bomb(tmp_path / "whole.zip", members=2, size=10).read_bytes()
    for n, data in enumerate((b"", b"PK", whole[:-5], whole[:30], b"\x1f\x8b", gzip.compress(b"x")[:-4])):
        for ending in ("zip", "nii", "nii.gz"):
            path = tmp_path / f"{n}.{ending}"
            path.write_bytes(data)
            check_unpacked(path, SMALL)
    check_unpacked(nifti(tmp_path / "small.nii.gz"), SMALL)


def test_a_zip_whose_directory_is_huge_is_refused_without_reading_it(tmp_path):
    path = tmp_path / "x.zip"
    path.write_bytes(b"x" * 100 + b"PK\5\6" + struct.pack("<4H2IH", 0, 0, 65535, 65535, 2**31, 0, 0))
    with pytest.raises(Exception, match="too many members"):
        check_unpacked(path, SMALL)


def test_a_full_queue_is_said_and_refused_uploads_give_their_place_back(serve, scans, pipeline):
    gated = Gated(pipeline)
    running = serve(over=gated, limits=SMALL)
    small = ("file", ("x.nii", b"x"))
    first = running.http.post("/v1/jobs/upload", files=[("file", ("two.nii.gz", gated_scan(scans)))])
    assert first.status_code == 202
    assert gated.reached.wait(60)
    for _ in range(5):
        assert running.http.post("/v1/jobs/upload", files=[("file", ("x.mha", b"x"))]).status_code == 415
    waiting = [running.http.post("/v1/jobs/upload", files=[small]) for _ in range(2)]
    assert [answer.status_code for answer in waiting] == [202, 202]
    assert [answer.json()["position"] for answer in waiting] == [1, 2]
    full = running.http.post("/v1/jobs/upload", files=[small])
    assert full.status_code == 503
    assert int(full.headers["retry-after"]) > 0
    running.http.delete(f"/v1/jobs/{waiting[0].json()['id']}")
    assert running.http.post("/v1/jobs/upload", files=[small]).status_code == 202
    gated.open.set()


def gated_scan(scans):
    data = (scans / "two.nii.gz").read_bytes()
    assert len(data) < SMALL.max_upload_bytes
    return data


def test_a_disk_without_room_is_said(serve):
    running = serve(limits=JobLimits(min_free_bytes=2**60))
    answer = running.http.post("/v1/jobs/upload", files=[("file", ("x.nii", b"x"))])
    assert answer.status_code == 507
    nothing_comes_of(running)


def test_no_patient_data_is_in_the_log(serve, scans, tmp_path, capsys, caplog):
    from runtime.serve.logs import log_to_stderr

    with log_to_stderr(quiet=False):
        running = serve()
        files = sorted((scans / "series").iterdir())
        named = tmp_path / "Zwetschkenbaum.nii.gz"
        named.write_bytes(b"no scan")
        assert running.ended(running.submitted(*files, name="Leopoldine"))["state"] == "done"
        assert running.ended(running.submitted(named))["state"] == "failed"
        running.http.post("/v1/jobs/path", json={"path": "/data/Zwetschkenbaum"})
        assert running.ended(running.submitted(*files[:1], series_uid="1.2.3"))["state"] == "failed"
    log = capsys.readouterr().err
    assert log.count("is done after") == 1
    assert log.count("is failed (input)") == 2
    assert not [word for word in (*PATIENT_WORDS, "1.2.3", str(tmp_path)) if word in log]


def test_a_connection_that_speaks_no_http_is_survived(running):
    where = urlsplit(running.url)
    with socket.create_connection((where.hostname, where.port)) as stream:
        stream.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert b"400" in stream.recv(1000)
    connection = http.client.HTTPConnection(where.hostname, where.port)
    connection.request("GET", "/health")
    assert connection.getresponse().read() == b'{"status":"ok"}'
    connection.close()
