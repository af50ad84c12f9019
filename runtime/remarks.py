"""Of the findings' warnings those for which a page for people has room: of many series not read, the first."""

from __future__ import annotations

from collections.abc import Sequence

NOT_READ = "Not read: "
"""How every warning begins that says why a series was not read."""
MOST_SERIES = 8
"""Series whose reason a page tells; findings, structured report and log tell them all."""


def on_a_page(warnings: Sequence[str]) -> list[str]:
    """The warnings in their order; in place of the reasons beyond ``MOST_SERIES``, how many they are and who tells."""
    reasons = [place for place, text in enumerate(warnings) if text.startswith(NOT_READ)]
    beyond = reasons[MOST_SERIES:]
    if not beyond:
        return list(warnings)
    more = (
        f"{len(beyond)} more series were not read; findings.json, the structured report and "
        "`python -m runtime.series PATH` say why of each."
    )
    return [more if place == beyond[0] else text for place, text in enumerate(warnings) if place not in set(beyond[1:])]
