"""The command: what it refuses, how it starts, how it ends, and what is left when it is killed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from runtime.errors import InputError
from runtime.serve.commands import main
from runtime.serve.options import TOKEN_VARIABLE, build_parser, options_of
from runtime.serve.server import check_tls
from runtime.serve.token import given_token, new_token
from runtime.serve.work_folder import work_folder
from tests.runtime.node.certificates import make_authority, make_certificate
from tests.runtime.serve.servers import ROOT, ServerProcess

LONG = "0123456789abcdef"
POSIX = pytest.mark.skipif(os.name != "posix", reason="needs POSIX file locks, modes and signals")
UNIT = ROOT / "deploy" / "vertscan-serve.service"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--bind", "0.0.0.0"], "--tls-server-cert"),
        (["--bind", "0.0.0.0", "--plain-http"], "--allow-host"),
        (["--bind", "192.0.2.1", "--plain-http"], "token of your own"),
        (["--bind", "example.org"], "IP address"),
        (["--port", "70000"], "65535"),
        (["--tls-server-cert", "x.pem"], "go together"),
        (["--tls-server-cert", "none.pem", "--tls-server-key", "none.key"], "can't be used"),
        (["--allow-path", "/no/such/folder"], "name a folder"),
        (["--allow-origin", "*"], "scheme"),
        (["--allow-origin", "https://a.example/path"], "scheme"),
        (["--allow-host", "*.example"], "host name"),
        (["--max-upload-gib", "0"], "greater than 0"),
        (["--keep-hours", "nan"], "greater than 0"),
        (["--url", "grpc://x:1"], "--engine triton"),
        (["--bundle", "/no/such/bundle"], "bundle"),
        (["--token-file", "/no/such/token"], "--token-file"),
    ],
)
def test_what_can_not_be_is_refused_in_one_line(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert main([*arguments, "--work-dir", str(tmp_path), *([] if "--port" in arguments else ["--port", "0"])]) in (
        2,
        3,
    )
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_is_taken_is_said_before_anything_is_loaded(capsys, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--port", str(port), "--work-dir", str(tmp_path)]) == 2
    assert f"127.0.0.1:{port} can't be listened on" in capsys.readouterr().err


def test_by_default_it_is_for_this_machine_only():
    options = options_of(build_parser().parse_args([]))
    assert options.listen.address == "127.0.0.1"
    assert set(options.listen.hosts) == {"127.0.0.1", "localhost", "[::1]"}
    assert (options.listen.origins, options.roots) == ((), ())


@POSIX
def test_tokens(tmp_path):
    file = tmp_path / "token"
    file.write_text(f"{LONG}\n")
    file.chmod(0o640)
    environment = {TOKEN_VARIABLE: LONG[::-1], "HOME": "x"}
    assert given_token(file, environment) == LONG
    assert environment == {"HOME": "x"}  # what this process starts does not inherit it
    assert given_token(None, {TOKEN_VARIABLE: LONG}) == LONG
    assert given_token(None, {}) is None
    file.chmod(0o644)
    with pytest.raises(InputError, match="every user"):
        given_token(file, {})
    for wrong in ("", "short", "x" * 15, "a space in the midst of it", "ümlaut" * 5):
        with pytest.raises(InputError):
            given_token(None, {TOKEN_VARIABLE: wrong})
    token, made = new_token(_folder(tmp_path))
    assert made.read_text().strip() == token
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    assert len(token) >= 32


def _folder(tmp_path: Path) -> Path:
    folder = tmp_path / "made"
    folder.mkdir()
    return folder


@POSIX
def test_a_work_folder_is_for_this_user_and_goes_and_only_dead_ones_are_removed(tmp_path):
    with work_folder(tmp_path) as alive:
        assert stat.S_IMODE(alive.stat().st_mode) == 0o700
        (alive / "jobs").mkdir()
        shutil.copytree(alive, tmp_path / "vertscan-serve-dead")
        (tmp_path / "vertscan-serve-nolock").mkdir()
        (tmp_path / "other").mkdir()
        with work_folder(tmp_path) as second:
            assert {path.name for path in tmp_path.iterdir()} == {
                alive.name,
                second.name,
                "vertscan-serve-nolock",
                "other",
            }
        assert (alive / "jobs").is_dir()
    assert {path.name for path in tmp_path.iterdir()} == {"vertscan-serve-nolock", "other"}


@POSIX
def test_a_server_that_is_killed_leaves_nothing_that_the_next_one_shows(ball_bundle, scans, tmp_path):
    work, log = tmp_path / "work", tmp_path / "log.txt"
    killed = ServerProcess(ball_bundle, work, log)
    with killed.http as http:
        files = [("file", ("zwetschke.nii.gz", (scans / "two.nii.gz").read_bytes()))]
        jobs = [http.post("/v1/jobs/upload", files=files).json()["id"] for _ in range(3)]
    assert killed.end(signal.SIGKILL) == -signal.SIGKILL
    (leftover,) = work.iterdir()
    assert list((leftover / "jobs").iterdir())
    again = ServerProcess(ball_bundle, work, log)
    assert not leftover.exists()
    assert again.token != killed.token
    with again.http as http:
        assert http.get("/v1/jobs").json() == {"jobs": []}
        assert http.get(f"/v1/jobs/{jobs[0]}/findings").status_code == 404
        assert stat.S_IMODE(again.token_file.stat().st_mode) == 0o600
    out = tmp_path / "out"
    client = [sys.executable, ROOT / "docs" / "examples" / "serve_client.py", again.url, again.token_file, out]
    done = subprocess.run([*client, *sorted((scans / "series").iterdir())], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name for path in out.iterdir()} == {"findings.json", "vertebrae.nii.gz", "overview.png", "seg.dcm"}
    failed = subprocess.run([*client, scans / "broken.nii.gz"], capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: broken.nii.gz ")
    assert failed.stderr.count("\n") == 1
    with again.http as http, http.stream("POST", "/v1/jobs/upload", files=files) as answer:
        job = answer.read() and answer.json()["id"]
        with http.stream("GET", f"/v1/jobs/{job}/events") as events:
            lines = events.iter_lines()
            assert next(lines).startswith("event: ")
            again.send(signal.SIGINT)
            assert [line for line in lines if line.startswith("event: ")][-1] in ("event: cancelled", "event: done")
    assert again.end() == 0
    assert list(work.iterdir()) == []
    said = log.read_text()
    assert "Traceback" not in said
    assert said.splitlines()[-1].endswith(" INFO ended")
    assert "zwetschke" not in said


@POSIX
def test_it_serves_tls(serve, tmp_path):
    authority = make_authority(tmp_path / "tls", "authority")
    made = make_certificate(authority, "server")
    options = ("--tls-server-cert", made["certificate"], "--tls-server-key", made["key"])
    check_tls(Path(made["certificate"]), Path(made["key"]))
    running = serve(*options)
    assert running.url.startswith("https://127.0.0.1:")
    context = ssl.create_default_context(cafile=made["ca"])
    with httpx.Client(base_url=running.url, verify=context, trust_env=False) as http:
        assert http.get("/health").json() == {"status": "ok"}
        assert http.get("/v1/info").status_code == 401
    with pytest.raises(httpx.ConnectError):
        running.http.get("/health")  # nobody vouches for the certificate
    with pytest.raises(InputError, match="PEM"):
        check_tls(Path(made["certificate"]), authority.with_suffix(".key"))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_the_systemd_unit_is_sound(tmp_path):
    unit = tmp_path / UNIT.name
    text = UNIT.read_text().replace("/opt/vertscan/bin/vertscan-serve", "/bin/true").replace("=vertscan\n", "=root\n")
    unit.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", unit],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    command = next(line for line in UNIT.read_text().splitlines() if line.startswith("ExecStart="))
    arguments = command.split()[1:]
    assert build_parser().parse_args(arguments).token_file is not None
