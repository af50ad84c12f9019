"""Received images on the disk, and the one door through which they come in, whoever brings them."""

from __future__ import annotations

import logging
import os
import shutil
import stat
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    SecondaryCaptureImageStorage,
)

from runtime.errors import InputError, VertscanError
from runtime.node.audit import Audit
from runtime.node.config import Storage
from runtime.node.identity import Redactor
from runtime.node.own import is_own
from runtime.node.queue import Queue
from runtime.node.records import ImageRecord
from runtime.readers.dicom_damage import damage

logger = logging.getLogger(__name__)

CT_CLASSES = frozenset({CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage})
KEPT_CLASSES = CT_CLASSES | {SecondaryCaptureImageStorage}
"""Secondary captures are kept beside the CT images, so that the choice of a series can say why they weren't it."""

IMAGES, RESULTS, WORK, DEAD_LETTERS = "images", "results", "work", "dead-letters"
_TEMPORARY = ".part"
_RESULTS_COUNTED_S = 5.0
_UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_TAGS = (
    *_UIDS,
    "Modality",
    "Manufacturer",
    "ManufacturerModelName",
    "PatientName",
    "PatientID",
    "AccessionNumber",
    "SpecificCharacterSet",
)


class DiskFullError(VertscanError):
    """The quota is used up, or the disk is."""


@dataclass(frozen=True)
class Taken:
    """What became of an object: ``"new"``, ``"known"``, ``"own"`` (our result) or ``"other"`` (of no use here)."""

    outcome: str
    study: str


@dataclass(frozen=True)
class _Header:
    """What is to be known of an object; ``secrets`` must not be logged."""

    sop_class: str
    sop_uid: str
    study_uid: str
    series_uid: str
    modality: str
    is_own: bool
    secrets: Sequence[str]


class Store:
    """Files under the data folder: ``images/STUDY/SERIES/IMAGE.dcm``, all by keyed hashes."""

    def __init__(self, data: Path, settings: Storage, queue: Queue, redact: Redactor, audit: Audit) -> None:
        self.data, self._settings, self._queue = data, settings, queue
        self._redact, self._audit = redact, audit
        self._results = 0, float("-inf")  # their bytes, and when they were counted
        self._begun_here: set[str] = set()  # studies of which the first image came since the start
        for name in (IMAGES, RESULTS, WORK, DEAD_LETTERS):
            (data / name).mkdir(parents=True, exist_ok=True, mode=0o700)

    def take(self, encoded: bytes, *, peer: str) -> Taken:
        """Keep an object (a whole DICOM file) if it is of use: on the disk first, then in the queue.

        Raises:
            InputError: it is no DICOM object, or lacks one of its UIDs.
            DiskFullError: there is no room.
        """
        header = _header_of(encoded)
        self._redact.remember(header.secrets)
        study = self._queue.hasher.short(header.study_uid)
        outcome = self._outcome(header)
        if outcome == "new":
            self._check_room(len(encoded))
            path = self._path_of(header)
            self._write(path, encoded)
            outcome = self._record(header, path, len(encoded))
        elif outcome == "own":
            self._audit.write("own result came back", study=study, peer=peer)
        elif outcome == "other":
            self._note_other(header)
        return Taken(outcome, study)

    def _outcome(self, header: _Header) -> str:
        """See ``Taken``."""
        if header.is_own or self._queue.is_result(header.sop_uid):
            return "own"
        if header.sop_class not in KEPT_CLASSES:
            return "other"
        return "known" if self._queue.knows_image(header.sop_uid) else "new"

    def _record(self, header: _Header, path: Path, size_bytes: int) -> str:
        """Enter an image that lies on the disk: ``"new"``, or ``"known"`` if another thread was quicker."""
        study = self._queue.hasher.short(header.study_uid)
        if self._queue.study(study) is None:
            self._begun_here.add(study)
        new = self._queue.add_image(
            ImageRecord(
                study_uid=header.study_uid,
                series_uid=header.series_uid,
                sop_uid=header.sop_uid,
                path=str(path.relative_to(self.data)),
                size_bytes=size_bytes,
                is_ct=header.sop_class in CT_CLASSES,
            )
        )
        return "new" if new else "known"

    def _note_other(self, header: _Header) -> None:
        """Note what is not kept: of a CT series so that counts agree, else so that ``status`` names the study."""
        if header.modality != "CT":
            self._queue.mention(header.study_uid)
        elif not self._queue.knows_image(header.sop_uid):
            ids = (header.study_uid, header.series_uid, header.sop_uid)
            self._queue.add_image(ImageRecord(*ids, path="", size_bytes=0, is_ct=False))

    def _path_of(self, header: _Header) -> Path:
        hasher = self._queue.hasher
        folder = self.data / IMAGES / hasher.short(header.study_uid) / hasher.short(header.series_uid)
        return folder / f"{hasher.long(header.sop_uid)}.dcm"

    def _write(self, path: Path, encoded: bytes) -> None:
        """Write under a temporary name, then rename: what has its own name is whole."""
        temporary = path.with_name(f"{path.stem}.{uuid.uuid4().hex}{_TEMPORARY}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as stream:
                stream.write(encoded)
                if self._settings.fsync:
                    stream.flush()
                    os.fsync(stream.fileno())
            os.replace(temporary, path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise DiskFullError(f"an image can't be written ({error.strerror}); free some disk space") from error

    def _check_room(self, size_bytes: int) -> None:
        used_bytes = self.used_bytes()
        if used_bytes + size_bytes > self._settings.quota_bytes:
            raise DiskFullError(f"the quota is used up ({used_bytes >> 20} MiB); raise storage.quota_gib")
        free_bytes = shutil.disk_usage(self.data).free
        if free_bytes - size_bytes < self._settings.min_free_bytes:
            raise DiskFullError(f"the disk has only {free_bytes >> 20} MiB left; free some, or lower min_free_gib")

    def used_bytes(self) -> int:
        """How much images take, and results, of which the last few seconds' may not be counted yet."""
        now_s = time.monotonic()
        if now_s - self._results[1] > _RESULTS_COUNTED_S:
            rows = self._queue.database.rows(
                "SELECT COALESCE(SUM(bytes), 0) FROM (SELECT DISTINCT path, bytes FROM result WHERE path != '')"
            )
            self._results = int(rows[0][0]), now_s
        return int(self._queue.database.rows("SELECT bytes FROM kept")[0][0]) + self._results[0]

    def files(self, study: str) -> list[Path]:
        """The study's images on the disk."""
        return [self.data / row["path"] for row in self._queue.images(study)]

    def lose_missing(self, study: str) -> int:
        """Note which of a study's images are on the disk no more, so that it waits for them; how many there are.

        Raises:
            VertscanError: nobody can tell now, such as while a mount is gone: nothing is noted.
        """
        folder = self.data / IMAGES
        try:
            if not folder.is_dir():
                raise VertscanError(f"the folder of images, {folder}, is not there; see to its disk or mount")
            gone = [row["sop_uid"] for row in self._queue.images(study) if _is_gone(self.data / row["path"])]
        except OSError as error:
            raise VertscanError(f"images in {folder} can't be looked at ({error.strerror}); see to its disk") from error
        self._queue.lose(gone)
        return len(gone)

    def recall(self, study: str) -> None:
        """Have what must not be logged of a study be left out again: after a start, nothing of it is known.

        Of a study that came since the start as a whole, one image of each series is looked at, else every one.
        """
        rows = self._queue.images(study)
        for row in {row["series_uid"]: row for row in rows}.values() if study in self._begun_here else rows:
            with suppress(InputError, OSError):
                self._redact.remember(_header_of(self.data / row["path"]).secrets)

    def mend(self) -> tuple[int, int]:
        """After a start: enter images that are on the disk but not in the queue, and note those that are gone.

        Half-written files go. Returns how many were entered and how many are gone.

        Raises:
            OSError: the files can't be looked at.
        """
        rows = self._queue.database.rows("SELECT path, sop_uid FROM image WHERE path != ''")
        known = {row["path"]: row["sop_uid"] for row in rows}
        entered = 0
        for path in sorted((self.data / IMAGES).rglob("*")):
            if path.name.endswith(_TEMPORARY):
                path.unlink()
            elif path.is_file() and str(path.relative_to(self.data)) not in known:
                entered += self._enter(path)
        gone = [sop_uid for name, sop_uid in known.items() if _is_gone(self.data / name)]
        self._queue.lose(gone)
        return entered, len(gone)

    def _enter(self, path: Path) -> int:
        """Enter a file that was renamed just before the process died, where it lies: it has its room already."""
        try:
            header = _header_of(path)
        except InputError as error:
            logger.warning("a file in the data folder was removed: %s", error)
            path.unlink()
            return 0
        except OSError as error:
            logger.warning("a file in the data folder can't be read (%s); it stays where it is", error.strerror)
            return 0
        self._redact.remember(header.secrets)
        if self._outcome(header) != "new":
            path.unlink()
            return 0
        place = self._path_of(header)
        if place != path:
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, place)
        return int(self._record(header, place, place.stat().st_size) == "new")


def _is_gone(path: Path) -> bool:
    """Whether there is no such file.

    Raises:
        OSError: nobody can tell, such as while a file server doesn't answer; ``is_file`` may call that gone.
    """
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return True


def _header_of(source: bytes | Path) -> _Header:
    """Read the header of a whole file.

    Raises:
        InputError: it is no DICOM object, or lacks one of its UIDs.
        OSError: the file can't be read.
    """
    try:
        file = BytesIO(source) if isinstance(source, bytes) else source
        header = dcmread(file, stop_before_pixels=True, specific_tags=list(_TAGS))
        uids = {field: header.get(field) for field in _UIDS}
        modality, own, secrets = str(header.get("Modality", "")), is_own(header), secrets_of(header)
    except damage() as error:
        raise InputError(f"an object is no DICOM file that can be read ({type(error).__name__})") from error
    for field, uid in uids.items():
        if not isinstance(uid, str) or not uid.strip():
            raise InputError(f"an object has {'several values in' if uid else 'no'} {field}")
    sop_class, sop_uid, study_uid, series_uid = (str(uid) for uid in uids.values())
    return _Header(sop_class, sop_uid, study_uid, series_uid, modality, own, secrets)


def remove_files(data: Path, study: str, *kinds: str) -> None:
    """Remove a study's files of these kinds (``IMAGES``, ``RESULTS``) from the data folder."""
    for kind in kinds:
        shutil.rmtree(data / kind / study, ignore_errors=True)


def secrets_of(header: Dataset) -> list[str]:
    """What of a header must not be logged: the patient's name, whole and in parts, ID and accession number."""
    name = str(header.get("PatientName", ""))
    parts = [part for part in name.replace("^", " ").replace("=", " ").split() if len(part) > 2]
    return [
        name,
        name.replace("^", " "),
        *parts,
        str(header.get("PatientID", "")),
        str(header.get("AccessionNumber", "")),
    ]
