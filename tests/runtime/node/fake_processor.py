"""Stands in for the pipeline: makes two small results of a study, always the same ones of the same images."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydicom import dcmread
from pydicom.uid import EncapsulatedPDFStorage, generate_uid

from runtime.errors import InputError
from runtime.node.config import Analyse
from tests.runtime.node.studies import capture

HELD, RUNS = "held", "runs"


class FakeProcessor:
    """Writes a secondary capture and an encapsulated PDF; notes every run, and fails or waits when told to.

    Args:
        notes: a folder for a line per run in ``runs``; where it holds ``hold``, a run says so in ``held`` and waits
            for ``hold`` to vanish; where it holds ``fail``, a run fails with its text; with ``strange``, it makes an
            object more, of a class that archives refuse.
    """

    engine = "fake engine"

    def __init__(self, notes: Path) -> None:
        self.notes, self.error, self.rests = notes, None, 0
        notes.mkdir(parents=True, exist_ok=True)

    def __call__(self, series_files: Sequence[Path], out_dir: Path) -> Sequence[Path]:
        with (self.notes / RUNS).open("a") as stream:
            stream.write(f"{len(series_files)}\n")
        while (self.notes / "hold").exists():
            (self.notes / HELD).touch()
            time.sleep(0.02)
        if self.error is not None:
            raise self.error
        if (self.notes / "fail").exists():
            raise InputError((self.notes / "fail").read_text())
        headers = [dcmread(path, stop_before_pixels=True) for path in series_files]
        study, uids = headers[0].StudyInstanceUID, sorted(header.SOPInstanceUID for header in headers)
        seed = hashlib.sha256("".join(uids).encode()).hexdigest()
        made = [self._capture(study, seed, out_dir), self._pdf(study, seed, out_dir)]
        return [*made, self._strange(out_dir)] if (self.notes / "strange").exists() else made

    def rest(self) -> None:
        self.rests += 1

    def _strange(self, out_dir: Path) -> Path:
        """An object of a class that no archive knows."""
        strange = dcmread(out_dir / "sc.dcm")
        strange.SOPClassUID = strange.file_meta.MediaStorageSOPClassUID = "1.2.826.0.1.3680043.10.511.99"
        strange.SOPInstanceUID = strange.file_meta.MediaStorageSOPInstanceUID = generate_uid(None)
        strange.save_as(out_dir / "strange.dcm", enforce_file_format=True)
        return out_dir / "strange.dcm"

    def _capture(self, study: str, seed: str, out_dir: Path) -> Path:
        sop_uid = generate_uid(entropy_srcs=[seed, "sc"])
        capture(study, sop_uid, manufacturer="vertscan").save_as(out_dir / "sc.dcm", enforce_file_format=True)
        return out_dir / "sc.dcm"

    def _pdf(self, study: str, seed: str, out_dir: Path) -> Path:
        pdf = capture(study, generate_uid(entropy_srcs=[seed, "pdf"]), manufacturer="vertscan")
        for keyword in ("Rows", "Columns", "PixelData", "BitsAllocated", "BitsStored", "HighBit", "SamplesPerPixel"):
            delattr(pdf, keyword)
        del pdf.PixelRepresentation, pdf.PhotometricInterpretation
        pdf.SOPClassUID = pdf.file_meta.MediaStorageSOPClassUID = EncapsulatedPDFStorage
        pdf.Modality, pdf.MIMETypeOfEncapsulatedDocument = "DOC", "application/pdf"
        pdf.EncapsulatedDocument, pdf.DocumentTitle, pdf.BurnedInAnnotation = b"%PDF-1.4 ", "t", "NO"
        pdf.save_as(out_dir / "pdf.dcm", enforce_file_format=True)
        return out_dir / "pdf.dcm"

    @property
    def runs(self) -> list[int]:
        """How many images each run was given."""
        path = self.notes / RUNS
        return [int(line) for line in path.read_text().split()] if path.exists() else []


def opener_of(processor: FakeProcessor):
    """What the node opens to get this processor."""

    @contextmanager
    def opener(settings: Analyse) -> Iterator[FakeProcessor]:
        yield processor

    return opener
