"""JPEG of 12 bits (extended, spectral selection, full progression), which pydicom does not decode: GDCM does."""

from __future__ import annotations

from typing import Any

import numpy as np

SYNTAXES = ("1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.53", "1.2.840.10008.1.2.4.55")


def decode(dataset: Any) -> np.ndarray:
    """(frames, rows, columns) uint16 or int16 stored values of a dataset in one of ``SYNTAXES``.

    Raises:
        ValueError: the encapsulation is damaged, or a frame does not decode to its size.
    """
    from pydicom.encaps import generate_frames

    frames = int(dataset.get("NumberOfFrames") or 1)
    shape = (int(dataset.Rows), int(dataset.Columns))
    kind = "<i2" if dataset.PixelRepresentation else "<u2"
    decoded = []
    for data in generate_frames(dataset.PixelData, number_of_frames=frames):
        values = np.frombuffer(_decode_frame(data, dataset), kind)
        if values.size != shape[0] * shape[1]:
            raise ValueError(f"a frame decodes to {values.size} pixels, {shape[0] * shape[1]} are due")
        decoded.append(values.reshape(shape))
    return np.stack(decoded)


def is_needed(dataset: Any) -> bool:
    """Whether pydicom can't decode the dataset's pixels and this module can."""
    syntax = str(dataset.file_meta.get("TransferSyntaxUID", "")) if hasattr(dataset, "file_meta") else ""
    bits = (dataset.get("BitsAllocated"), dataset.get("SamplesPerPixel", 1))
    return syntax in SYNTAXES and bits == (16, 1) and int(dataset.get("BitsStored", 0)) > 8


def _decode_frame(data: bytes, dataset: Any) -> bytes:
    import gdcm

    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(data)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((int(dataset.Columns), int(dataset.Rows), 1))
    image.SetDataElement(element)
    monochrome = gdcm.PhotometricInterpretation.GetPIType(str(dataset.PhotometricInterpretation))
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(monochrome))
    syntax = gdcm.TransferSyntax.GetTSType(str(dataset.file_meta.TransferSyntaxUID))
    image.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    stored = int(dataset.BitsStored)
    image.SetPixelFormat(gdcm.PixelFormat(1, 16, stored, stored - 1, int(dataset.PixelRepresentation)))
    buffer: bytes = image.GetBuffer().encode("utf-8", "surrogateescape")
    return buffer
