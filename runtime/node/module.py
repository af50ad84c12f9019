"""Folder in, folder out: one task by mercure's module convention, without network and queue.

Mercure starts a module's container with ``MERCURE_IN_DIR`` and ``MERCURE_OUT_DIR``. The first holds the images and
``task.json``, whose ``process.settings`` are the module's; the module writes objects and ``result.json`` to the second,
and ends with 0. In ``result.json``, ``__mercure_notification`` is what mercure shows to people.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from runtime.engines import ENGINES, PRECISIONS
from runtime.errors import InputError, VertscanError
from runtime.node.config import OUTPUTS, Analyse
from runtime.node.identity import Redactor
from runtime.node.own import is_own
from runtime.node.processor import Opener, Processor
from runtime.node.store import KEPT_CLASSES, secrets_of
from runtime.readers.dicom_damage import damage

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
_SETTINGS = {"outputs", "engine", "precision", "device", "exhaustive", "bundle"}


@dataclass(frozen=True)
class Outcome:
    """Of one study: names of the objects, or why there are none."""

    results: tuple[str, ...]
    error: str


def run_module(in_dir: Path, out_dir: Path, opener: Opener, redact: Redactor) -> int:
    """Analyse every study in a folder; 0, or the exit status of the first study that failed.

    Raises:
        InputError: a folder or the task's settings can't be used, or there is no CT image.
        BundleError, EngineError: the processor can't be opened.
    """
    if not in_dir.is_dir():
        raise InputError(f"There is no folder {in_dir}; correct {IN_VARIABLE}.")
    out_dir.mkdir(parents=True, exist_ok=True)
    settings = task_settings(in_dir / TASK_FILE)
    studies = _studies(in_dir, redact)
    status, outcomes = 0, []
    with opener(settings) as processor:
        for number, files in enumerate(studies.values(), start=1):
            prefix = f"study{number}-" if len(studies) > 1 else ""
            try:
                outcomes.append(Outcome(_analyse(processor, files, out_dir, prefix), ""))
            except VertscanError as error:
                logger.error("study %d of %d failed: %s", number, len(studies), error)
                outcomes.append(Outcome((), redact(str(error))))
                status = status or error.exit_status
        _write_result(out_dir, outcomes, processor.engine)
    return status


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
    settings = (process or {}).get("settings") or {}
    if not isinstance(settings, dict):
        raise InputError(f"process.settings in {path} must be an object; met {settings!r}.")
    known = {key: value for key, value in settings.items() if key in _SETTINGS}
    if unknown := sorted(set(settings) - _SETTINGS):
        logger.warning("settings that are not this module's were left aside: %s", ", ".join(unknown))
    return _checked(known, path)


def _checked(settings: Mapping[str, Any], path: Path) -> Analyse:
    outputs = settings.get("outputs", list(OUTPUTS))
    outputs = outputs.split(",") if isinstance(outputs, str) else outputs
    if not isinstance(outputs, list) or not outputs or not set(outputs) <= set(OUTPUTS):
        raise InputError(f"outputs in {path} must be of {', '.join(OUTPUTS)}; met {outputs!r}.")
    for field, allowed in (("engine", ENGINES), ("precision", PRECISIONS)):
        if settings.get(field, "auto") not in ("auto", *allowed):
            raise InputError(f"{field} in {path} must be auto or of {', '.join(allowed)}; met {settings[field]!r}.")
    device = settings.get("device", 0)
    if not isinstance(device, int) or device < 0:
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
    """Images of each study; what is no DICOM, and results of ours, are left aside. Raises InputError."""
    studies: dict[str, list[Path]] = defaultdict(list)
    failures: tuple[type[Exception], ...] = (OSError, *damage())
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.name in (TASK_FILE, RESULT_FILE):
            continue
        try:
            header = dcmread(path, stop_before_pixels=True)
            sop_class, study = str(header.get("SOPClassUID", "")), str(header.get("StudyInstanceUID", ""))
            own, secrets = is_own(header), secrets_of(header)
        except InvalidDicomError:
            logger.warning("a file that is no DICOM file was left aside")
            continue
        except failures as error:
            raise InputError(
                f"A DICOM file in {folder} can't be read ({type(error).__name__}); have the study sent again."
            ) from error
        redact.remember(secrets)
        if sop_class in KEPT_CLASSES and not own:
            studies[study].append(path)
    if not studies:
        raise InputError(f"There is no CT image in {folder}; check the rule that sends studies to this module.")
    return studies


def _analyse(processor: Processor, files: list[Path], out_dir: Path, prefix: str) -> tuple[str, ...]:
    with tempfile.TemporaryDirectory() as work:
        made = processor(files, Path(work))
        names = tuple(f"{prefix}{path.name}" for path in made)
        for path, name in zip(made, names, strict=True):
            shutil.move(path, out_dir / name)
    return names


def _write_result(out_dir: Path, outcomes: list[Outcome], engine: str) -> None:
    failed = [outcome.error for outcome in outcomes if outcome.error]
    text = f"{len(outcomes) - len(failed)} of {len(outcomes)} studies analysed"
    result = {
        "engine": engine,
        "studies": [{"results": list(o.results), "error": o.error or None} for o in outcomes],
        "__mercure_notification": {"text": "; ".join([text, *failed]), "requested": bool(failed)},
    }
    (out_dir / RESULT_FILE).write_text(json.dumps(result, indent=1) + "\n", encoding="ascii")
