"""Objects that are no CT images: nothing of them is kept, but the log says once of each series why it isn't read."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from io import BytesIO

from pydicom import dcmread
from pydicom.dataset import Dataset

from runtime.readers.dicom_damage import damage, quiet
from runtime.readers.dicom_headers import other_file, text_of
from runtime.remarks import NOT_READ

logger = logging.getLogger(__name__)

_TAGS = ("SOPClassUID", "Modality", "SeriesInstanceUID", "SeriesNumber")
_MOST_SERIES = 10_000
"""Remembered, so that the log tells of a series once and not of every object."""


class LeftAside:
    """Tells of series in which there is nothing to analyse; may be used from several threads."""

    def __init__(self) -> None:
        self._told: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._lock = threading.Lock()

    def tell_of(self, encoded: bytes, about: str) -> None:
        """Log why the series of an object, a whole DICOM file, isn't read; see ``tell_of_header``."""
        try:
            with quiet():
                header = dcmread(BytesIO(encoded), stop_before_pixels=True, specific_tags=list(_TAGS))
        except damage():
            logger.info("%s%sa series whose header can't be read", about, NOT_READ)
        else:
            self.tell_of_header(header, about)

    def tell_of_header(self, header: Dataset, about: str) -> None:
        """Log why the series isn't read, unless that was said before.

        Args:
            header: of an object that is no CT image.
            about: how the line begins, such as with the study's key.
        """
        with quiet():
            other = other_file(header, "", text_of(header, "SeriesInstanceUID"))
        if self._is_new((other.series_uid, other.class_name)):
            number = f"series {other.series_number}" if other.series_number else "a series without number"
            logger.info("%s%s%s: %s (%s) is no CT image", about, NOT_READ, number, other.class_name, other.kind)

    def _is_new(self, series: tuple[str, str]) -> bool:
        with self._lock:
            if series in self._told:
                return False
            self._told[series] = None
            if len(self._told) > _MOST_SERIES:
                self._told.popitem(last=False)
            return True
