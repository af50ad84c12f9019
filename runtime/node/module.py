"""Folder in, folder out: one task by mercure's module convention, without network and queue.

Mercure starts a module's container with ``MERCURE_IN_DIR`` and ``MERCURE_OUT_DIR``. The first holds the images and
``task.json``, whose ``process.settings`` are the module's; the module writes objects and ``result.json`` to the second,
and ends with 0. In ``result.json``, ``__mercure_notification`` is what mercure shows to people, ``studies`` what
became of each study, and ``error`` why there was none to analyse, or null.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import traceback
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runtime.console import DEFECT
from runtime.engines import ENGINES, PRECISIONS
from runtime.errors import InputError, OutOfMemoryError, VertscanError
from runtime.node.config import OUTPUTS, Analyse
from runtime.node.identity import Redactor
from runtime.node.left_aside import LeftAside
from runtime.node.own import is_own
from runtime.node.processor import Opener, Processor
from runtime.node.store import KEPT_CLASSES, secrets_of
from runtime.readers.dicom_damage import damage, damaged, quiet
from runtime.readers.dicom_files import DICOMDIR, single_file, walk_once
from runtime.readers.dicom_headers import header_of

logger = logging.getLogger(__name__)

IN_VARIABLE, OUT_VARIABLE = "MERCURE_IN_DIR", "MERCURE_OUT_DIR"
TASK_FILE, RESULT_FILE = "task.json", "result.json"
DEFAULTS = Analyse(
    bundle=None,
    engine="auto",
    precision="auto",
    device=0,
    exhaustive=False,
    outputs=OUTPUTS,
    attempts=1,
    retry_s=0.0,
)
_PART = ".part"
"""How a file is called until it is whole."""
_SETTINGS = {"outputs", "engine", "precision", "device", "exhaustive", "bundle"}


@dataclass(frozen=True)
class Outcome:
    """Of one study: names of the objects, or why there are none."""

    results: tuple[str, ...]
    error: str


@dataclass(frozen=True)
class _Failure:
    """Why something failed, in a line that can be shown, and the exit status for it; 0 and ``""`` where nothing did."""

    status: int = 0
    reason: str = ""


def run_module(in_dir: Path, out_dir: Path, opener: Opener, redact: Redactor) -> int:
    """Analyse every study in a folder; what fails is logged and said in ``result.json``, whatever it is.

    Returns:
        0, or the exit status of what failed: of the whole task, else of the first study.

    Raises:
        InputError: the folder for results can't be written.
    """
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(out_dir, error) from error
    studies: list[tuple[Outcome, int]] = []
    engine, failure = "", _Failure()
    try:
        settings = task_settings(in_dir / TASK_FILE)
        files_of_studies = list(_studies(in_dir, redact).values())
        with opener(settings) as processor:
            engine = processor.engine
            for number, files in enumerate(files_of_studies, start=1):
                prefix = f"study{number}-" if len(files_of_studies) > 1 else ""
                name = f"study {number} of {len(files_of_studies)}"
                studies.append(_of_study(processor, files, out_dir, prefix, name, redact))
    except Exception as error:  # noqa: BLE001  mercure shows result.json to people; a trace it does not
        failure = _failed("the task", error, redact)
    _write_result(out_dir, [outcome for outcome, _ in studies], engine, failure.reason)
    return failure.status or next((status for _, status in studies if status), 0)


def _of_study(
    processor: Processor, files: list[Path], out_dir: Path, prefix: str, name: str, redact: Redactor
) -> tuple[Outcome, int]:
    """What became of a study, and the exit status for it."""
    try:
        return Outcome(_analyse(processor, files, out_dir, prefix), ""), 0
    except Exception as error:  # noqa: BLE001  a defect met by one study must not cost the others their results
        failure = _failed(name, error, redact)
        return Outcome((), failure.reason), failure.status


def _failed(what: str, error: Exception, redact: Redactor) -> _Failure:
    """Log a failure; a defect of this software with its trace."""
    if isinstance(error, VertscanError):
        failure = _Failure(error.exit_status, redact(str(error)))
    elif isinstance(error, MemoryError):
        failure = _Failure(OutOfMemoryError.exit_status, "out of memory; let the module have more, or send less")
    else:
        logger.error("%s met a defect:\n%s", what, traceback.format_exc())
        failure = _Failure(DEFECT, redact(f"a defect of this software ({type(error).__name__}: {error})"))
    logger.error("%s failed: %s", what, failure.reason)
    return failure


def _unwritable(folder: Path, error: OSError) -> InputError:
    return InputError(
        f"{folder} can't be written ({error.strerror or error}); correct {OUT_VARIABLE}, its rights, or free some disk "
        "space."
    )


def task_settings(path: Path) -> Analyse:
    """The settings in ``task.json``: outputs, engine, precision, device, exhaustive, bundle in ``process.settings``.

    Raises:
        InputError: the file can't be read, or a setting is wrong.
    """
    if not path.is_file():
        return DEFAULTS
    try:
        task = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read ({error}); it must be mercure's task as JSON.") from error
    process = task.get("process") if isinstance(task, dict) else None
    if isinstance(process, list):
        process = process[0] if process else None
    settings = process.get("settings") or {} if isinstance(process, dict) else process or {}
    if not isinstance(settings, dict):
        raise InputError(f"process.settings in {path} must be an object; met {settings!r}.")
    known = {key: value for key, value in settings.items() if key in _SETTINGS}
    if unknown := sorted(set(settings) - _SETTINGS):
        logger.warning("settings that are not this module's were left aside: %s", ", ".join(unknown))
    return _checked(known, path)


def _checked(settings: Mapping[str, Any], path: Path) -> Analyse:
    outputs = settings.get("outputs", list(OUTPUTS))
    outputs = outputs.split(",") if isinstance(outputs, str) else outputs
    if not isinstance(outputs, list) or not outputs or any(output not in OUTPUTS for output in outputs):
        raise InputError(f"outputs in {path} must be of {', '.join(OUTPUTS)}; met {outputs!r}.")
    for field, allowed in (("engine", ENGINES), ("precision", PRECISIONS)):
        if settings.get(field, "auto") not in ("auto", *allowed):
            raise InputError(f"{field} in {path} must be auto or of {', '.join(allowed)}; met {settings[field]!r}.")
    device = settings.get("device", 0)
    if not isinstance(device, int) or isinstance(device, bool) or device < 0:
        raise InputError(f"device in {path} must be a whole number; met {device!r}.")
    exhaustive = settings.get("exhaustive", False)
    if not isinstance(exhaustive, bool):
        raise InputError(f"exhaustive in {path} must be true or false; met {exhaustive!r}.")
    bundle = settings.get("bundle")
    return replace(
        DEFAULTS,
        outputs=tuple(outputs),
        engine=settings.get("engine", "auto"),
        precision=settings.get("precision", "auto"),
        device=device,
        exhaustive=exhaustive,
        bundle=None if bundle is None else Path(str(bundle)),
    )


def _studies(folder: Path, redact: Redactor) -> Mapping[str, list[Path]]:
    """Images of each study; results of ours that are among them are left aside.

    Raises:
        InputError: the folder can't be read, a file is damaged, or there is no image.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}; correct {IN_VARIABLE}.")
    studies: dict[str, list[Path]] = defaultdict(list)
    others = LeftAside()
    for path in _files(folder):
        study = _study_of(path, others, redact)
        if study is not None:
            studies[study].append(path)
    if not studies:
        raise InputError(f"There is no CT image in {folder}; check the rule that sends studies to this module.")
    return studies


def _files(folder: Path) -> list[Path]:
    try:
        walked = [Path(below) / name for below, _, names in walk_once(folder, onerror=_raise) for name in names]
        return sorted(path for path in walked if path.is_file() and path.name not in (TASK_FILE, RESULT_FILE, DICOMDIR))
    except OSError as error:
        raise _unreadable(error.filename or folder, error) from error


def _study_of(path: Path, others: LeftAside, redact: Redactor) -> str | None:
    """The study that an image is of; None for what is none. Any study might miss a damaged file, so none is run then.

    Raises:
        InputError: the file is damaged or can't be read.
    """
    try:
        header = header_of(path.name, single_file(path).files[path.name])
        if header is None:
            logger.warning("a file that is no DICOM file was left aside")
            return None
        with quiet():
            redact.remember(secrets_of(header))
            sop_class, study = str(header.get("SOPClassUID", "")), str(header.get("StudyInstanceUID") or "")
            own = is_own(header)
    except damage() as error:
        raise damaged(path.name, error) from error
    except OSError as error:
        raise _unreadable(path, error) from error
    if own or sop_class not in KEPT_CLASSES:
        if not own:
            others.tell_of_header(header, "")
        return None
    if not study:
        raise damaged(path.name, EOFError("its header ends early, or names no study"))
    return study


def _unreadable(path: Path | str, error: OSError) -> InputError:
    return InputError(f"{path} can't be read ({error.strerror or error}); give this user read access.")


def _raise(error: OSError) -> None:
    raise error


def _analyse(processor: Processor, files: list[Path], out_dir: Path, prefix: str) -> tuple[str, ...]:
    """Names of a study's objects in the folder for results: all of them are there, or none.

    Raises:
        InputError: the images can't be analysed, or the folder can't be written.
        VertscanError: the analysis failed.
    """
    with tempfile.TemporaryDirectory() as work:
        made = processor(files, Path(work))
        names = tuple(f"{prefix}{path.name}" for path in made)
        try:
            for path, name in zip(made, names, strict=True):
                shutil.move(path, out_dir / f"{name}{_PART}")
            for name in names:
                os.replace(out_dir / f"{name}{_PART}", out_dir / name)
        except OSError as error:
            for name in names:
                (out_dir / name).unlink(missing_ok=True)
                (out_dir / f"{name}{_PART}").unlink(missing_ok=True)
            raise _unwritable(out_dir, error) from error
    return names


def _write_result(out_dir: Path, outcomes: list[Outcome], engine: str, error: str) -> None:
    """Write ``result.json``, whole or not at all."""
    failed = [outcome.error for outcome in outcomes if outcome.error]
    said = [f"{len(outcomes) - len(failed)} of {len(outcomes)} studies analysed"] if outcomes else []
    reasons = [*failed, *([error] if error else [])]
    result = {
        "engine": engine or None,
        "studies": [{"results": list(o.results), "error": o.error or None} for o in outcomes],
        "error": error or None,
        "__mercure_notification": {"text": "; ".join([*said, *reasons]), "requested": bool(reasons)},
    }
    part = out_dir / f"{RESULT_FILE}{_PART}"
    try:
        part.write_text(json.dumps(result, indent=1) + "\n", encoding="ascii")
        os.replace(part, out_dir / RESULT_FILE)
    except OSError as refused:
        part.unlink(missing_ok=True)
        raise _unwritable(out_dir, refused) from refused
