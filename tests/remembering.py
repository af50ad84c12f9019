"""Sessions that run each image once: networks of full size take a test's time."""

from __future__ import annotations

import numpy as np


class Remembering:
    """A session before which images that differ by no more than ``slack`` in any voxel are the same one."""

    def __init__(self, session, *, slack: float = 0.0) -> None:
        self.session, self.info, self.output_names = session, session.info, session.output_names
        self.slack = slack
        self.answers: list[tuple[np.ndarray, tuple[np.ndarray, ...]]] = []

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, ...]:
        answer = next((answer for known, answer in self.answers if self._same(known, image)), None)
        if answer is None:
            answer = tuple(output.copy() for output in self.session(image))
            self.answers.append((image.copy(), answer))
        return tuple(output.copy() for output in answer)

    def _same(self, one: np.ndarray, other: np.ndarray) -> bool:
        """A few voxels are looked at before all of them."""
        parts = (..., slice(None, None, 16)), (...,)
        return one.shape == other.shape and all(np.abs(one[p] - other[p]).max() <= self.slack for p in parts)

    def close(self) -> None:
        self.session.close()

    def __enter__(self) -> Remembering:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
