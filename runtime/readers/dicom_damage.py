"""How damage of DICOM files shows, and what is said of it."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from runtime.errors import InputError


def damage() -> tuple[type[Exception], ...]:
    """What pydicom raises for a damaged file; RuntimeError (and NotImplementedError) for pixels it cannot decode."""
    from pydicom.errors import BytesLengthException, InvalidDicomError

    usual = (EOFError, ValueError, LookupError, AttributeError, TypeError, RuntimeError, ArithmeticError)
    return (*usual, struct.error, zlib.error, BytesLengthException, InvalidDicomError)


def damaged(source: str, error: Exception, what_to_do: str = "Copy or export the series again") -> InputError:
    """The error to raise for a file that can't be decoded."""
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return InputError(f"The DICOM file {source} can't be decoded ({reason}). {what_to_do}.")


@contextmanager
def quiet() -> Iterator[None]:
    """Without pydicom's warnings on attributes that are not used here, or are checked here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
