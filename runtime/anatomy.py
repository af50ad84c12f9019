"""The spine's levels: their names and order, what can lie below what, and how far apart their centres usually are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

NOT_A_VERTEBRA = "none"
LEVELS: tuple[str, ...] = (
    *(f"C{i}" for i in range(1, 8)),
    *(f"T{i}" for i in range(1, 14)),
    *(f"L{i}" for i in range(1, 7)),
)
"""From cranial to caudal; T13 and L6 are variants that few people have."""
LEVEL_NAMES: tuple[str, ...] = (NOT_A_VERTEBRA, *LEVELS)
"""What the outputs of a LevelNet mean, in their order."""

NO_T12, HAS_T13, HAS_L6 = 0.03, 0.03, 0.06
"""How often the last rib is at the 11th or 13th thoracic vertebra, and how often there are six lumbar ones. Published
figures go from 1 to 10 %, by population and by who counts."""

_USUAL_STEPS_MM = (
    *(15.0, 17.5, 17.5, 17.5, 17.5, 18.0),  # C1 to C7
    *(19.0, 20.0, 20.5, 21.0, 21.5, 22.0, 23.0, 24.0, 25.0, 26.0, 27.5, 29.0),  # C7 to T12
    *(31.0, 33.5, 35.5, 37.0, 37.0),  # T12 to L5
)
"""Between the centres of neighbours in adults: body height and disc, rounded from published morphometry."""


@dataclass(frozen=True)
class Step:
    """A level and one that can be its next below.

    Args:
        upper: name of the upper level.
        lower: name of the lower one.
        prior: share of people in whom it is, among those who have the upper one.
        length_mm: usual distance of their centres in an adult.
    """

    upper: str
    lower: str
    prior: float
    length_mm: float


@dataclass(frozen=True)
class Route:
    """A way down from one level to another.

    Args:
        prior: share of people who have exactly this way.
        steps: 1 for neighbours; each further one is a vertebra between them.
        length_mm: usual distance of the two centres in an adult.
    """

    prior: float
    steps: int
    length_mm: float


def _all_steps() -> tuple[Step, ...]:
    usual = tuple(name for name in LEVELS if name not in ("T13", "L6"))
    shares = {"T11": 1.0 - NO_T12, "T12": 1.0 - HAS_T13}
    below = zip(usual[:-1], usual[1:], _USUAL_STEPS_MM, strict=True)
    return (
        *(Step(upper, lower, shares.get(upper, 1.0), length_mm) for upper, lower, length_mm in below),
        Step("T11", "L1", NO_T12, 30.0),
        Step("T12", "T13", HAS_T13, 30.0),
        Step("T13", "L1", 1.0, 31.5),
        Step("L5", "L6", HAS_L6, 36.0),
    )


def is_cervical(level: str | None) -> bool:
    """Whether it is known that a level is one of the neck."""
    return level is not None and level.startswith("C")


STEPS: tuple[Step, ...] = _all_steps()
"""Every pair of levels that can be neighbours: the usual ones, and those of the variants."""

PRESENCE: dict[str, float] = {"T12": 1.0 - NO_T12, "T13": (1.0 - NO_T12) * HAS_T13, "L6": HAS_L6}
"""Share of people who have a level, where it isn't 1. (A missing L5 can't be told from a scan that ends above it.)"""


@cache
def routes(upper: str, lower: str) -> tuple[Route, ...]:
    """Every way down from one level to another one; ``()`` where the second doesn't lie below the first."""
    found: list[Route] = []
    for step in STEPS:
        if step.upper != upper:
            continue
        if step.lower == lower:
            found.append(Route(step.prior, 1, step.length_mm))
        for rest in routes(step.lower, lower):
            found.append(Route(step.prior * rest.prior, 1 + rest.steps, step.length_mm + rest.length_mm))
    return tuple(found)
