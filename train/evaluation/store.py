"""One small JSON file per evaluated scan, so that an evaluation can be interrupted, resumed and shared out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from runtime.bundle import BundleSpec
from runtime.bundle_json import to_json
from runtime.errors import InputError
from train.evaluation.plain import from_plain, write_json
from train.evaluation.records import ScanRecord
from train.evaluation.run import Extras
from train.evaluation.truth import ScanItem, fingerprint_digest

RECORD_FORMAT = 3
"""Changes with the fields of a record, so that a folder of older ones is evaluated anew."""


class ScanStore:
    """The records of one evaluation under ``folder/scans``, or in memory where ``folder`` is None.

    A file's name carries a digest of the bundle's networks and settings, the engine, what else was asked for and the
    scan itself: a file with another digest is of another evaluation and left alone.
    """

    def __init__(self, folder: Path | None, spec: BundleSpec, *, engine: str, extras: Extras) -> None:
        self.folder = folder
        self._memory: dict[str, ScanRecord] = {}
        bare = replace(spec, accuracy={}, training={}, verified={}, intended_use="")
        self._settings = fingerprint_digest(to_json(bare), engine, to_json(extras), f"records {RECORD_FORMAT}")

    def path_of(self, item: ScanItem) -> Path | None:
        """Where a scan's record belongs."""
        digest = fingerprint_digest(self._settings, item.fingerprint)
        return None if self.folder is None else self.folder / "scans" / f"{item.name}.{digest}.json"

    def get(self, item: ScanItem) -> ScanRecord | None:
        """The record of a scan, or None when it is still to be evaluated. Raises InputError for a broken file."""
        path = self.path_of(item)
        if path is None:
            return self._memory.get(item.name)
        try:
            return from_plain(ScanRecord, json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise InputError(f"{path} is no record of this software ({error}); delete it and start again.") from error

    def put(self, item: ScanItem, record: ScanRecord) -> None:
        """Keep a record."""
        path = self.path_of(item)
        if path is None:
            self._memory[item.name] = record
        else:
            write_json(path, record)

    def done(self, items: Sequence[ScanItem]) -> list[ScanRecord]:
        """The records that there are, in the order of the items."""
        return [record for item in items if (record := self.get(item)) is not None]
