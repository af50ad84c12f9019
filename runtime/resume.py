"""Whether a scan's results are there already, so that an interrupted run can go on where it stopped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.dicom import BINARY, LABELMAP, LABELMAP_RLE, SEG
from runtime.errors import InputError
from runtime.findings import Findings, from_json
from runtime.output import DICOM_FILES, FINDINGS_FILE, MASK_FILE, OVERVIEW_FILE, Outputs
from runtime.readers.dicom_damage import damage, quiet
from runtime.readers.itk_files import sha256_of

if TYPE_CHECKING:
    from runtime.pipeline import Pipeline, PreparedScan
    from runtime.readers.options import ReadOptions

_AUTO = "auto"
_HASHED_WHOLE = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd")
"""Endings of scans whose hash is that of their files, so that it is known without reading the scan."""


@dataclass(frozen=True)
class Named:
    """What the user named of a run: results that were made otherwise are made again. The rest may differ.

    Gaps in DICOM series are not among it: results made without accepting any are of a series that has none.

    Args:
        engine: by name, or ``"auto"`` where none was named.
        precision: by name, or ``"auto"`` where none was named.
        exhaustive: whether that was asked for.
    """

    engine: str
    precision: str
    exhaustive: bool

    def allows(self, findings: Findings) -> bool:
        """Whether findings were made as named; those that don't say whether they are exhaustive are not."""
        settings, engine = findings.settings, findings.engine
        return (
            self.engine in (_AUTO, engine.name)
            and self.precision in (_AUTO, engine.precision)
            and (not self.exhaustive or (settings is not None and settings.exhaustive))
        )


@dataclass(frozen=True)
class DoneBefore:
    """Results that an earlier run left complete."""

    findings: Findings


def prepare_unless_done(
    pipeline: Pipeline, scan: Path, folder: Path, *, outputs: Outputs, named: Named, reading: ReadOptions
) -> PreparedScan | DoneBefore:
    """The scan read and ready for the networks, or what an earlier run left of this very scan in ``folder``.

    Raises:
        InputError: the scan, or the results there, can't be read.
        OutOfMemoryError: the scan does not fit in the memory there is.
    """
    try:
        before = finished_findings(folder, bundle_sha256=pipeline.bundle_sha256, outputs=outputs, named=named)
    except OSError as error:
        raise InputError(
            f"The results in {folder} can't be read ({error.strerror or error}); name another folder with -o."
        ) from error
    if before is not None:
        try:
            sha256 = hash_of_file(scan)
        except (OSError, InputError):  # reading it tells what is wrong
            sha256 = None
        if sha256 == before.scan.sha256:
            return DoneBefore(before)
    prepared = pipeline.prepare(scan, reading=reading)
    if before is not None and prepared.volume.sha256 == before.scan.sha256:
        return DoneBefore(before)
    return prepared


def finished_findings(folder: Path, *, bundle_sha256: str, outputs: Outputs, named: Named) -> Findings | None:
    """The findings in a result folder that is complete and was made by this bundle as named; None where it isn't.

    Whether they are of the same scan is for its hash to say: see ``hash_of_file``.

    Args:
        folder: of the results.
        bundle_sha256: of the bundle's ``bundle.json``.
        outputs: what belongs to complete results; a segmentation does where there is a vertebra.
        named: how they must have been made.

    Raises:
        OSError: the folder is there and can't be read.
    """
    needed = [FINDINGS_FILE, MASK_FILE, *([OVERVIEW_FILE] if outputs.overview else [])]
    if not all(_has_content(folder / name) for name in needed):
        return None
    try:
        findings = from_json((folder / FINDINGS_FILE).read_text(encoding="utf-8"))
    except (InputError, UnicodeDecodeError):  # of another version, or damaged: made anew
        return None
    kinds = [kind for kind in outputs.dicom if kind != SEG or findings.vertebrae]
    is_complete = all(_has_content(folder / DICOM_FILES[kind]) for kind in kinds)
    if not is_complete or findings.bundle.sha256 != bundle_sha256 or not named.allows(findings):
        return None
    if SEG in kinds and outputs.seg_type not in (None, _seg_type_of(folder / DICOM_FILES[SEG])):
        return None
    return findings


def _seg_type_of(file: Path) -> str | None:
    """How a segmentation is encoded, one of ``runtime.dicom.SEG_TYPES``; None for a damaged file.

    Raises:
        OSError: it can't be read.
    """
    from pydicom import dcmread
    from pydicom.uid import RLELossless

    try:
        with quiet():
            header = dcmread(file, stop_before_pixels=True, specific_tags=["SegmentationType"])
            if header.SegmentationType == BINARY:
                return BINARY
            return LABELMAP_RLE if header.file_meta.TransferSyntaxUID == RLELossless else LABELMAP
    except damage():
        return None


def _has_content(file: Path) -> bool:
    """Whether it is there and not empty, as a power cut leaves files that were not yet on the disk.

    Raises:
        OSError: that can't be told.
    """
    return file.is_file() and file.stat().st_size > 0


def hash_of_file(scan: Path) -> str | None:
    """The hash that reading the scan would give, where it is known without; None where it isn't.

    Raises:
        InputError: it can't be told which files the scan consists of.
        OSError: a file can't be read.
    """
    if not scan.is_file() or not scan.name.lower().endswith(_HASHED_WHOLE):
        return None
    return sha256_of(scan)
