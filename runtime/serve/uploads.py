"""Scans that come as ``multipart/form-data``: written to disk as they arrive, counted while they do."""

from __future__ import annotations

import asyncio
import errno
import shutil
import unicodedata
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from anyio import to_thread
from pydantic import ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from runtime.readers.dicom_files import DICOMDIR
from runtime.serve.jobs import INPUT
from runtime.serve.models import JobOptions
from runtime.serve.options import JobLimits
from runtime.serve.paths import refuse_headers_that_name_files
from runtime.serve.refusal import RefusedRequestError

SILENCE_S = 60.0
"""An upload of which nothing comes for so long is given up."""
_NAME = "name"
_SERIES = "series"
_MOST_FIELDS, _LONGEST_FIELD = 32, 4096
_LONGEST_NAME = 150
_FLUSH_BYTES = 2**20
_DRAIN_BYTES, _DRAIN_S = 2**28, 5.0
_IN_NAMES = " ._-()+,=@"
_VOLUMES = (".nii", ".nii.gz", ".zip")
_FULL = (errno.ENOSPC, errno.EDQUOT)


async def receive(request: Request, folder: Path, limits: JobLimits) -> tuple[Path, JobOptions]:
    """Write an upload's files below a job's folder; where the scan is, and what is wanted of it.

    One file is a scan under its own name. Several are the files of one DICOM series; a DICOMDIR among them is left out,
    since the folders that it names did not come with it.

    Raises:
        RefusedRequestError: it is too large, cut off, no form, or can't be a scan; or the disk is full.
        starlette.requests.ClientDisconnect: the client went away.
    """
    body = _in_time(request)
    try:
        _check_room(int(request.headers.get("content-length") or 0), folder, limits)
        form = _Form(_boundary(request), folder / INPUT / _SERIES, limits)
        await _parse(body, form, limits)
        return form.scan()
    except RefusedRequestError:
        await _drain(body)
        raise
    except FormParserError as error:
        raise RefusedRequestError(400, "The form is damaged or cut off; send it again.") from error
    except OSError as error:
        if error.errno in _FULL:
            raise RefusedRequestError(507, "The server's disk is full; try again later.") from error
        raise


async def _parse(body: AsyncIterator[bytes], form: _Form, limits: JobLimits) -> None:
    """Feed the form; its files are written by a thread, so that other requests are answered meanwhile."""
    size = checked = 0
    async for chunk in body:
        size += len(chunk)
        if size > limits.max_upload_bytes:
            raise _too_large(size, limits)
        form.feed(chunk)
        if form.pending_bytes >= _FLUSH_BYTES:
            await to_thread.run_sync(form.flush)
        if size - checked >= 64 * _FLUSH_BYTES:
            checked = size
            _check_room(0, form.folder.parent, limits)
    form.end()
    await to_thread.run_sync(form.flush)


def _boundary(request: Request) -> bytes:
    kind, parameters = parse_options_header(request.headers.get("content-type", ""))
    boundary = parameters.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not boundary:
        raise RefusedRequestError(415, "The body must be multipart/form-data, with the scan's files as parts.")
    return boundary


async def _in_time(request: Request) -> AsyncIterator[bytes]:
    """The body's pieces. Raises RefusedRequestError (408) when nothing comes for long."""
    stream = aiter(request.stream())
    while True:
        try:
            chunk = await asyncio.wait_for(anext(stream), SILENCE_S)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise RefusedRequestError(408, f"Nothing came for {SILENCE_S:.0f} s; send the scan again.") from None
        if chunk:
            yield chunk


async def _drain(body: AsyncIterator[bytes]) -> None:
    """Take what is still coming, for a while: a client that is cut off while it sends never sees the answer."""

    async def rest() -> None:
        left = _DRAIN_BYTES
        async for chunk in body:
            left -= len(chunk)
            if left < 0:
                return

    try:
        await asyncio.wait_for(rest(), _DRAIN_S)
    except (TimeoutError, RefusedRequestError):
        return


def _too_large(size: int, limits: JobLimits) -> RefusedRequestError:
    most = limits.max_upload_bytes
    return RefusedRequestError(413, f"The upload has {size} bytes or more; at most {most} are taken here.")


def _check_room(coming: int, folder: Path, limits: JobLimits) -> None:
    if coming > limits.max_upload_bytes:
        raise _too_large(coming, limits)
    free = shutil.disk_usage(folder).free
    if free - coming < limits.min_free_bytes:
        raise RefusedRequestError(
            507, f"The server's disk has {free} bytes free, too few for this upload; try again later.", retry_after_s=60
        )


class _Form:
    """Takes a form apart as it comes.

    Args:
        boundary: between parts.
        folder: to be made for the files.
        limits: how many there may be.
    """

    def __init__(self, boundary: bytes, folder: Path, limits: JobLimits) -> None:
        self.folder, self._limits = folder, limits
        self.fields: dict[str, list[str]] = {}
        self.files: list[Path] = []
        self.pending_bytes, self._pending = 0, list[tuple[Path, bytes]]()
        self._header, self._value, self._disposition = b"", b"", b""
        self._field = ""
        self._file: Path | None = None
        self._text, self._is_complete = bytearray(), False
        folder.mkdir(parents=True)
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_part_data": self._data,
                "on_part_end": self._part_end,
                "on_header_field": self._on_header,
                "on_header_value": self._on_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_end,
                "on_end": self._complete,
            },
        )

    def feed(self, chunk: bytes) -> None:
        """Parse what came."""
        self._parser.write(chunk)

    def end(self) -> None:
        """It is over. Raises FormParserError when the last part is not."""
        self._parser.finalize()
        if not self._is_complete:
            raise FormParserError("cut off")

    def flush(self) -> None:
        """Write what is pending."""
        pending, self._pending, self.pending_bytes = self._pending, [], 0
        parts: dict[Path, list[bytes]] = {}
        for path, data in pending:
            parts.setdefault(path, []).append(data)
        for path, pieces in parts.items():
            with path.open("ab") as stream:
                stream.writelines(pieces)

    def scan(self) -> tuple[Path, JobOptions]:
        """The scan and what is wanted of it.

        Raises:
            RefusedRequestError: there is none, there are several, or it can't be taken.
        """
        options = options_of_fields(self.fields)
        if not self.files:
            raise RefusedRequestError(422, "There is no file in the form; send the scan as a part with a file name.")
        for file in self.files:
            refuse_headers_that_name_files(file.name)
        if len(self.files) == 1:
            return self.files[0], options
        wrong = next((file.name for file in self.files if file.name.lower().endswith(_VOLUMES)), None)
        if wrong is not None:
            raise RefusedRequestError(
                422, f"{wrong} came with {len(self.files) - 1} other files; send one scan per job, or a DICOM series."
            )
        for file in self.files:
            if file.name.upper() == DICOMDIR:
                file.unlink()
        name = (self.fields.get(_NAME) or [""])[-1]
        return self.folder.rename(self.folder.with_name(safe_name(name))) if name else self.folder, options

    def _begin(self) -> None:
        self._disposition, self._file, self._field, self._text = b"", None, "", bytearray()

    def _on_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _headers_end(self) -> None:
        _, parameters = parse_options_header(self._disposition)
        name = parameters.get(b"filename")
        self._field = parameters.get(b"name", b"").decode("utf-8", "replace")
        if name:
            self._file = self._new_file(safe_name(name.decode("utf-8", "replace")))
        elif sum(map(len, self.fields.values())) >= _MOST_FIELDS:
            raise RefusedRequestError(413, f"The form has more than {_MOST_FIELDS} fields.")

    def _new_file(self, name: str) -> Path:
        """An empty file of this name; numbered where the name is taken."""
        if len(self.files) >= self._limits.max_files:
            raise RefusedRequestError(413, f"The upload has more than {self._limits.max_files} files.")
        path = self.folder / name
        try:
            path.touch(mode=0o600, exist_ok=False)
        except FileExistsError:
            path = self.folder / f"{len(self.files):06d}-{name}"
            path.touch(mode=0o600, exist_ok=False)
        self.files.append(path)
        return path

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._pending.append((self._file, data[start:end]))
            self.pending_bytes += end - start
            return
        self._text += data[start:end]
        if len(self._text) > _LONGEST_FIELD:
            raise RefusedRequestError(413, f"A field of the form has more than {_LONGEST_FIELD} bytes.")

    def _part_end(self) -> None:
        if self._file is None and (self._field or self._text):
            self.fields.setdefault(self._field, []).append(bytes(self._text).decode("utf-8", "replace"))

    def _complete(self) -> None:
        self._is_complete = True


def options_of_fields(fields: Mapping[str, list[str]]) -> JobOptions:
    """What a form's fields ask for; ``dicom`` may come several times, or with commas between.

    Raises:
        RefusedRequestError: a field is unknown or holds what it can't.
    """
    given: dict[str, Any] = {}
    for name, values in fields.items():
        if name == "dicom":
            given[name] = [part.strip() for value in values for part in value.split(",") if part.strip()]
        elif name != _NAME and values[-1]:
            given[name] = values[-1]
    try:
        return JobOptions.model_validate(given)
    except ValidationError as error:
        raise RefusedRequestError(422, described(error.errors())) from error


def described(errors: Any) -> str:
    """What a validation found, in one line and without the values, which may be anything."""
    parts = [f"{'.'.join(str(one) for one in error['loc'])}: {error['msg']}" for error in list(errors)[:5]]
    return " ".join("; ".join(parts).split())


def safe_name(text: str) -> str:
    """A file name of this machine from what a client calls a file: no folders, nothing odd, its ending kept."""
    name = unicodedata.normalize("NFC", text).replace("\\", "/").rpartition("/")[2]
    name = "".join(c if c.isalnum() or c in _IN_NAMES else "_" for c in name).strip(" .") or "upload"
    while len(name.encode("utf-8")) > _LONGEST_NAME:
        name = name[1:]
    return name.lstrip(" .") or "upload"
