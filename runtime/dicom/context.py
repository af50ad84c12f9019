"""What all DICOM results of one run have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from highdicom.content import AlgorithmIdentificationSequence
from pydicom.sr.codedict import codes

from runtime.dicom import KINDS
from runtime.dicom.headers import text_of
from runtime.dicom.source import SourceImages
from runtime.dicom.uids import ResultUids
from runtime.findings import Findings, Vertebra
from runtime.heights import HeightEnds
from runtime.version import software_version

MANUFACTURER = "vertscan"
TITLES: Mapping[str, str] = {
    "seg": "Vertebrae, segmentation",
    "sr": "Vertebrae, measurements",
    "sc": "Vertebrae, overview picture",
    "pdf": "Vertebrae, report",
}
NOT_CLINICAL = "NOT FOR CLINICAL USE"
LONGEST_LO = 64


@dataclass(frozen=True, eq=False)
class ResultContext:
    """One run: what was found in which images by what.

    Args:
        findings: of the scan.
        notice: what must be said of the bundle, ``""`` for one that is fit for clinical use.
        height_ends: end points of the measured heights of each vertebra, or None.
        images: that were read.
        uids: of the results.
    """

    findings: Findings
    notice: str
    height_ends: tuple[HeightEnds | None, ...]
    images: SourceImages
    uids: ResultUids

    def series_number(self, kind: str) -> int:
        """Such as 90042 for the structured report (2) of series 4: behind the scanner's, told by their source's."""
        try:
            source = int(float(text_of(self.images.first, "SeriesNumber") or 0))
        except (ValueError, OverflowError):
            source = 0
        return 90000 + 10 * (abs(source) % 1000) + 1 + KINDS.index(kind)

    def series_description(self, kind: str) -> str:
        """What viewers list the result as."""
        return f"{TITLES[kind]} - {NOT_CLINICAL}" if self.notice else TITLES[kind]

    def instance_keywords(self, kind: str, variant: str = "") -> dict[str, Any]:
        """What highdicom wants to know of every instance: its UIDs, numbers, and what made it."""
        return {
            "series_instance_uid": self.uids.series(kind, variant),
            "sop_instance_uid": self.uids.instance(kind, variant),
            "series_number": self.series_number(kind),
            "instance_number": 1,
            "series_description": self.series_description(kind),
            "manufacturer": MANUFACTURER,
            "manufacturer_model_name": plain(self.findings.bundle.name)[:LONGEST_LO],
            "software_versions": [f"vertscan {software_version()}", f"bundle {self.bundle_label}"[:LONGEST_LO]],
            "device_serial_number": self.findings.bundle.sha256[:16],
        }

    @property
    def bundle_label(self) -> str:
        """Name and version of the bundle."""
        return plain(f"{self.findings.bundle.name} {self.findings.bundle.version}")

    @property
    def derivation(self) -> str:
        """How a picture or document came about, in one sentence or two."""
        return f"Drawn by vertscan from what bundle {self.bundle_label} found. {self.notice}".rstrip()

    def algorithm(self) -> AlgorithmIdentificationSequence:
        """What made the result: the bundle with its version, and the engine."""
        engine, bundle = self.findings.engine, self.findings.bundle
        made_by = plain(f"{engine.name} {engine.version} {engine.precision}")
        parameters = {"bundle_sha256": bundle.sha256, "engine": made_by}
        if self.notice:
            parameters["notice"] = self.notice
        return AlgorithmIdentificationSequence(
            name=plain(bundle.name)[:LONGEST_LO],
            version=plain(bundle.version)[:LONGEST_LO],
            family=codes.DCM.ArtificialIntelligence,
            source=MANUFACTURER,
            parameters=parameters,
        )


def plain(text: str) -> str:
    """Text of ASCII characters alone, which every character set of a source can hold."""
    return text.encode("ascii", "replace").decode("ascii")


def vertebra_name(vertebra: Vertebra) -> str:
    """Such as ``"L1"``, or ``"Vertebra 5"`` where the level isn't known."""
    return vertebra.level or f"Vertebra {vertebra.index}"


def tracking_identifier(vertebra: Vertebra) -> str:
    """Such as ``"vertebra 5 (L1)"``."""
    return f"vertebra {vertebra.index}" + (f" ({vertebra.level})" if vertebra.level else "")
