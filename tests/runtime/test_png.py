from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from runtime.png import write_png


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (301, 203)])
@pytest.mark.parametrize("kind", ["noise", "flat", "ramp"])
def test_what_is_written_is_read_back_pixel_by_pixel(tmp_path, size, kind):
    width, height = size
    pixels = np.zeros((height, width, 3), np.uint8)
    if kind == "noise":
        pixels[:] = np.random.default_rng(3).integers(0, 256, pixels.shape)
    elif kind == "ramp":
        pixels[:] = (np.arange(height)[:, None, None] * 7 + np.arange(width)[None, :, None] * 3) % 256
    write_png(tmp_path / "a.png", Image.fromarray(pixels))
    with Image.open(tmp_path / "a.png") as checked:
        checked.verify()  # every chunk's checksum
    with Image.open(tmp_path / "a.png") as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", size)
        np.testing.assert_array_equal(np.asarray(picture), pixels)


def test_other_modes_become_rgb(tmp_path):
    write_png(tmp_path / "a.png", Image.new("L", (5, 4), 77))
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == "RGB"
        assert (np.asarray(picture) == 77).all()


def test_a_picture_that_can_not_be_written_raises_what_the_system_says(tmp_path):
    with pytest.raises(OSError, match="missing"):
        write_png(tmp_path / "missing" / "a.png", Image.new("RGB", (2, 2)))
