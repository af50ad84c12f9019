"""Stored values to HU, and slices read ahead of their turn."""

from __future__ import annotations

import hashlib
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import InputError
from runtime.readers.dicom_files import SourceFile, folder_files
from runtime.readers.dicom_frames import Frame
from runtime.readers.dicom_headers import read_headers
from runtime.readers.dicom_pixels import PADDING_HU, SliceReader, to_hu
from tests.runtime.dicom.series import COUNT, write_series


def frame(slope=1.0, intercept=0.0, padding=None):
    return Frame("f", 0, (0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1), 1, 4, slope, intercept, padding, "", True, "", None)


@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from(["<u2", "<i2", "u1", "<i4"]),
    values=st.lists(st.integers(-40_000, 70_000), min_size=4, max_size=4),
    slope=st.sampled_from([1.0, 2.0, 0.5]),
    intercept=st.one_of(st.integers(-70_000, 70_000).map(float), st.sampled_from([-1024.0, -32768.0, 0.25])),
    pads=st.booleans(),
)
def test_hu_are_the_values_times_slope_plus_intercept(kind, values, slope, intercept, pads):
    limits = np.iinfo(kind)
    stored = np.clip(values, limits.min, limits.max).astype(kind)[None]
    padding = (float(stored[0, 0]),) * 2 if pads else None
    expected = stored.astype(np.float64) * slope + intercept
    expected[stored == stored[0, 0]] = PADDING_HU if pads else expected[0, 0]
    before = stored.copy()
    np.testing.assert_array_equal(to_hu(stored, frame(slope, intercept, padding)).astype(np.float64), expected)
    np.testing.assert_array_equal(stored, before)


class _Watched(SourceFile):
    """A file that notes which thread reads it when."""

    def __init__(self, name, file, notes):
        self._name, self._file, self._notes = name, file, notes

    @property
    def size(self):
        return self._file.size

    def head(self, count):
        return self._file.head(count)

    def read(self):
        self._notes.append((self._name, threading.get_ident()))
        return self._file.read()


@pytest.fixture
def series(tmp_path):
    """Reader of a series, its frames in order, its folder, and notes on what was read."""
    folder = write_series(tmp_path / "scan")
    found, notes = folder_files(folder), []
    images = {image.source: image for image in read_headers(found).images}
    files = {name: _Watched(name, file, notes) for name, file in found.files.items()}
    frames = [images[name].frames[0] for name in sorted(images)]
    return SliceReader(files, images), frames, folder, notes


def test_slices_read_ahead_are_those_read_one_by_one(series):
    reader, frames, folder, notes = series
    alone = reader.without_memory()
    expected = [alone.hu(one) for one in frames]
    notes.clear()
    got = list(reader.in_turn(frames))
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert reader.sha256() == alone.sha256()
    assert sorted(name for name, _ in notes) == sorted(one.source for one in frames)  # each once
    assert {thread for _, thread in notes}.isdisjoint({threading.get_ident()})
    hashes = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir())
    assert reader.sha256() == hashlib.sha256("".join(hashes).encode()).hexdigest()


def test_no_more_than_a_few_slices_are_read_before_their_turn(series):
    reader, frames, _, notes = series
    slices = reader.in_turn(frames)
    next(slices)
    slices.close()  # waits for what was begun
    assert len(notes) < COUNT // 2


def test_a_damaged_slice_is_told_in_its_turn(series):
    reader, frames, folder, _ = series
    (folder / frames[5].source).write_bytes((folder / frames[5].source).read_bytes()[:-400])
    slices = reader.in_turn(frames)
    for _ in range(5):
        next(slices)
    with pytest.raises(InputError, match=frames[5].source):
        next(slices)
    np.testing.assert_array_equal(reader.hu(frames[6]), reader.without_memory().hu(frames[6]))
