"""A minimal client of vertscan-serve that needs nothing but Python.

    python serve_client.py http://127.0.0.1:8417 TOKEN_FILE OUT_DIR SCAN [SCAN ...]

One SCAN is a NIfTI file, a zip of a DICOM series or a DICOM file; several are the files of one DICOM series.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


class ServerError(Exception):
    """The server refused a request; the message is its own."""


class Client:
    """Talks to one server.

    Args:
        url: such as ``http://127.0.0.1:8417``.
        token: the server's.
    """

    def __init__(self, url: str, token: str) -> None:
        self._url, self._headers = url.rstrip("/"), {"Authorization": f"Bearer {token}"}
        # Proxies of the environment are for the outside world.
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    def request(self, method: str, path: str, *, data: Any = None, headers: dict[str, str] | None = None) -> Any:
        """The answer, to be read from; raises ServerError for one that is refused."""
        request = urllib.request.Request(
            self._url + path, data=data, headers={**self._headers, **(headers or {})}, method=method
        )
        try:
            return self._open(request)
        except urllib.error.HTTPError as error:
            with error:
                body = error.read()
            try:
                detail = json.loads(body)["detail"]
            except (ValueError, KeyError):
                detail = body.decode("utf-8", "replace")
            raise ServerError(f"{error.code}: {detail}") from None

    def json(self, method: str, path: str, body: Any = None) -> Any:
        """What a route answers, from JSON."""
        data = None if body is None else json.dumps(body).encode()
        headers = {} if body is None else {"Content-Type": "application/json"}
        with self.request(method, path, data=data, headers=headers) as answer:
            return json.load(answer)

    def upload(self, scans: Sequence[Path], **fields: str) -> dict[str, Any]:
        """Submit files, which are streamed from disk; the job."""
        boundary = uuid.uuid4().hex
        pieces = _form(scans, fields, boundary)
        length = sum(len(piece) if isinstance(piece, bytes) else piece.stat().st_size for piece in pieces)
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}", "Content-Length": str(length)}
        with self.request("POST", "/v1/jobs/upload", data=_bytes_of(pieces), headers=headers) as answer:
            return json.load(answer)

    def submit_path(self, path: str, **options: Any) -> dict[str, Any]:
        """Submit a scan that lies where the server may read it; the job."""
        return self.json("POST", "/v1/jobs/path", {"path": path, **options})

    def follow(self, job_id: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """The job's events, each with its name and data, until it has ended."""
        name = ""
        with self.request("GET", f"/v1/jobs/{job_id}/events") as stream:
            for line in stream:
                key, _, value = line.decode("utf-8").rstrip("\n").partition(": ")
                if key == "event":
                    name = value
                elif key == "data":
                    yield name, json.loads(value)

    def save(self, job: dict[str, Any], folder: Path) -> list[Path]:
        """Save all results of a done job."""
        folder.mkdir(parents=True, exist_ok=True)
        saved = []
        for result, path in job["results"].items():
            with self.request("GET", path) as answer:
                file = folder / (answer.headers.get_filename() or result)
                file.write_bytes(answer.read())
            saved.append(file)
        return saved


def _form(scans: Sequence[Path], fields: dict[str, str], boundary: str) -> list[bytes | Path]:
    """The pieces of a multipart form; files as paths."""
    pieces: list[bytes | Path] = []
    for name, value in fields.items():
        pieces.append(f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode())
    for scan in scans:
        quoted = scan.name.replace('"', "%22")
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{quoted}"\r\n'
        pieces += [f"{head}Content-Type: application/octet-stream\r\n\r\n".encode(), scan, b"\r\n"]
    return [*pieces, f"--{boundary}--\r\n".encode()]


def _bytes_of(pieces: Sequence[bytes | Path]) -> Iterator[bytes]:
    for piece in pieces:
        if isinstance(piece, bytes):
            yield piece
        else:
            with piece.open("rb") as stream:
                while block := stream.read(2**20):
                    yield block


def main(argv: Sequence[str]) -> int:
    """Run a scan through a server and save its results."""
    if len(argv) < 4:
        print(__doc__, file=sys.stderr)
        return 2
    url, token_file, out = argv[0], Path(argv[1]), Path(argv[2])
    client = Client(url, token_file.read_text(encoding="ascii").strip())
    try:
        print(client.json("GET", "/v1/info")["notice"])
        job = client.upload([Path(scan) for scan in argv[3:]])
        for name, now in client.follow(job["id"]):
            job, progress = now, now.get("progress", {})
            print(f"{name}: {progress.get('stage') or 'waiting'}, {progress.get('fraction', 0):.0%}")
    except (ServerError, OSError, http.client.HTTPException) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if job.get("state") != "done":
        print(f"error: {(job.get('error') or {}).get('message') or job.get('state', 'removed')}", file=sys.stderr)
        return 1
    print(*client.save(job, out), sep=os.linesep)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
