"""The one worker: takes complete studies from the queue, has them analysed, puts the results in place."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from runtime.disk import flush_folder, flush_with_files
from runtime.errors import InputError, VertscanError
from runtime.node.audit import Audit
from runtime.node.config import Analyse
from runtime.node.identity import Redactor
from runtime.node.logs import about_study
from runtime.node.loops import log_defect
from runtime.node.processor import Processor
from runtime.node.queue import Queue
from runtime.node.records import DEAD, ResultFile, Study
from runtime.node.store import RESULTS, WORK, Store

logger = logging.getLogger(__name__)

_REST_AFTER_S = 3.0
"""Without a study the processor rests: by then results are mostly on their way, which is not to be held up."""
_TAGS = ("SOPInstanceUID", "SOPClassUID", "StudyInstanceUID")


class Worker:
    """Analyses one study after the other with a processor that stays open."""

    def __init__(
        self,
        settings: Analyse,
        queue: Queue,
        store: Store,
        processor: Processor,
        redact: Redactor,
        audit: Audit,
        *,
        destinations: Sequence[str],
    ) -> None:
        self._settings, self._queue, self._store = settings, queue, store
        self._processor, self._redact, self._audit = processor, redact, audit
        self._destinations = destinations
        self.last_error = ""
        self._rests_at_s: float | None = None
        self._started_s = time.time()

    def step(self) -> bool:
        """Analyse the study that waits longest; whether there was one. The processor rests where none came.

        A study that is RUNNING now is one whose end could not be written to the queue, such as on a full disk.
        """
        for stranded in self._queue.running():
            self._failed(stranded, "what became of its analysis could not be noted", retry=True)
        study = self._queue.claim()
        if study is None:
            self._rest()
            return False
        try:
            self._run(study)
        finally:
            self._rests_at_s = time.monotonic() + _REST_AFTER_S
        return True

    def _rest(self) -> None:
        """Let the processor rest, once after the last of several studies."""
        if self._rests_at_s is not None and time.monotonic() >= self._rests_at_s:
            self._rests_at_s = None
            try:
                self._processor.rest()
            except VertscanError as error:
                logger.warning("memory was not given back: %s", error)

    def _run(self, study: Study) -> None:
        images = f"{study.taken} images, attempt {study.attempts}"
        start_s = time.perf_counter()
        try:
            if lost := self._store.lose_missing(study.key):
                self._lost(study, lost)
                return
            logger.info("study %s: analysis begins, %s", study.key, images)
            self._audit.write("analysis begins", study=study.key, detail=images)
            results = self._analyse(study)
        except InputError as error:
            self._failed(study, str(error), retry=False)
        except VertscanError as error:
            self._failed(study, str(error), retry=True)
        except MemoryError:
            self._failed(study, "out of memory", retry=True)
        except Exception:  # noqa: BLE001  a defect met by one study must not keep the others waiting
            self._failed(study, log_defect(f"study {study.key}"), retry=True)
        else:
            self._done(study, results, time.perf_counter() - start_s)

    def _analyse(self, study: Study) -> list[ResultFile]:
        """Results of a study, checked and under their final names."""
        self._store.recall(study.key)
        files = self._store.files(study.key)
        work = self._store.data / WORK / study.key
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            with about_study(study.key):
                made = self._processor(files, work)
            return self._put(study, work, made)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _put(self, study: Study, work: Path, made: Sequence[Path]) -> list[ResultFile]:
        """Move results to a folder named after what they are; a second run of the same takes the same place.

        They are on the disk itself when it returns: the queue, which says so next, is at once.
        """
        headers = [(path, _header_of(path, study)) for path in sorted(made)]
        if not headers:
            raise InputError("the analysis made no result")
        uids = "\n".join(sorted(uid for _, (uid, _) in headers))
        folder = self._store.data / RESULTS / study.key / hashlib.sha256(uids.encode("ascii")).hexdigest()[:12]
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        results = []
        for path, (sop_uid, sop_class) in headers:
            target = folder / path.name
            os.replace(path, target)
            name = str(target.relative_to(self._store.data))
            results.append(ResultFile(sop_uid, sop_class, name, target.stat().st_size))
        flush_with_files(folder)
        flush_folder(folder.parent)
        flush_folder(folder.parent.parent)
        return results

    def _done(self, study: Study, results: Sequence[ResultFile], took_s: float) -> None:
        if self._queue.finish(study.key, results, self._destinations):
            logger.info("study %s: %d results after %.1f s", study.key, len(results), took_s)
            self._audit.write("results ready", study=study.key, detail=f"{len(results)} objects")
        else:
            logger.info("study %s: images came during its analysis; it runs again", study.key)
            self._audit.write("results withdrawn", study=study.key, detail="images came during the analysis")

    def _lost(self, study: Study, images: int) -> None:
        """The reader of a series would take what is left of it for all of it."""
        self.last_error = f"{images} image(s) are on the disk no more"
        logger.error("study %s is not analysed and waits: %s and must come again", study.key, self.last_error)
        self._audit.write("images lost", study=study.key, detail=f"{images} images")

    def _failed(self, study: Study, reason: str, *, retry: bool) -> None:
        reason = self._redact(reason)
        again = retry and study.attempts < self._settings.attempts
        wait_s = self._settings.retry_s * 2 ** (study.attempts - 1) if again else None
        state = self._queue.fail(study.key, reason, retry_s=wait_s)
        self.last_error = reason
        logger.error("study %s failed and is %s: %s", study.key, state, reason)
        self._audit.write("dead" if state == DEAD else "analysis failed", study=study.key, detail=reason)


def _header_of(path: Path, study: Study) -> tuple[str, str]:
    """SOP instance UID and class of a result, which must belong to the study."""
    try:
        header = dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))
    except (InvalidDicomError, OSError) as error:
        raise VertscanError(f"the analysis left {path.name}, which is no DICOM file") from error
    if header.get("StudyInstanceUID") != study.uid:
        raise VertscanError(f"the analysis left {path.name}, which is of another study; it is not sent")
    return str(header.SOPInstanceUID), str(header.SOPClassUID)
