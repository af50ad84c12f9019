"""Types of command line arguments, for argparse: each takes the text and refuses what it can't mean in one sentence."""

from __future__ import annotations

import math
from argparse import ArgumentTypeError


def whole_from_zero(text: str) -> int:
    """A whole number, 0 or more."""
    if not text.isdecimal():
        raise ArgumentTypeError(f"should be a whole number from 0 on, met {text}")
    return int(text)


def whole_from_one(text: str) -> int:
    """A whole number, 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"should be a whole number from 1 on, met {text}")
    return int(text)


def above_zero(text: str) -> float:
    """A number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 < value < math.inf:
        raise ArgumentTypeError(f"should be a number above 0, met {text}")
    return value
