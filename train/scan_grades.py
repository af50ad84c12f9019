"""Whose grades are whose: which scan of a data set each entry of a list of grades belongs to."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence

from train.verse import Case, annotated_labels

Grades = Mapping[int, int]
"""VerSe label -> grade."""

log = logging.getLogger(__name__)
_SERIES = re.compile(r"(?P<subject>sub-[^_]+)_series(?P<number>\d+)")
_SPLIT = re.compile(r"_split-(?P<series>[a-z0-9]+)")


def match_grades(cases: Sequence[Case], grades: Mapping[str, Grades]) -> dict[str, Grades]:
    """The grades of every scan that has some, by the scan's name; warns of grades and scans that are left over.

    A scan has the grades under its own name. Lists differ in how they name the scans of a patient who has several,
    ``sub-verse401_split-verse201`` and ``sub-verse401_split-verse253``:

    - By number, ``sub-verse401_series0`` and ``..._series1``. A series belongs to a scan in which all of its graded
      vertebrae are annotated, see ``_series_of``.
    - By the names that the scans had in the original layout of VerSe 2019, ``sub-verse201`` and ``sub-verse253``. They
      are looked up only if the list names none of its scans by number nor this patient, no scan here is of a patient
      of that name, and all graded vertebrae are annotated: elsewhere the name is another patient's.

    Args:
        cases: all scans of the data set, whatever their split.
        grades: name -> VerSe label -> grade, as ``train.verse.find_grades`` returns them.

    Raises:
        InputError: a centroid file or mask that is needed to tell scans apart cannot be read.
    """
    own = {case.name: case.name for case in cases if case.name in grades}
    entry_of = own | _by_number(cases, grades) | _by_original_name(cases, grades)
    _warn_of_the_rest(cases, grades, entry_of)
    return {scan: grades[entry] for scan, entry in entry_of.items()}


def _by_number(cases: Sequence[Case], grades: Mapping[str, Grades]) -> dict[str, str]:
    """Name of a scan -> its entry, of patients whose series are numbered."""
    numbered: dict[str, dict[int, str]] = {}
    for entry in grades:
        if (match := _SERIES.fullmatch(entry)) is not None:
            numbered.setdefault(match["subject"], {})[int(match["number"])] = entry
    entry_of: dict[str, str] = {}
    for subject, series in numbered.items():
        unnamed = [case for case in cases if case.subject == subject and case.name not in grades]
        entry_of |= _series_of(unnamed, series, grades)
    return entry_of


def _series_of(cases: Sequence[Case], series: Mapping[int, str], grades: Mapping[str, Grades]) -> dict[str, str]:
    """Name of a scan -> its entry, for one patient.

    A series that fits one scan alone is that scan's, unless another series fits it alone too; then the same is asked of
    those that remain. What still fits several scans goes by the order of the scans' names, if there are as many series
    as scans and neither the series settled so far nor the annotated labels contradict that order; else it has no scan.
    """
    labels = {case.name: annotated_labels(case) for case in cases}
    fitting = {
        entry: {name for name, annotated in labels.items() if grades[entry].keys() <= annotated}
        for entry in series.values()
    }
    settled: dict[str, str] = {}
    while True:
        scans_of = {entry: fitting[entry] - settled.keys() for entry in fitting if entry not in settled.values()}
        alone = [scans for scans in scans_of.values() if len(scans) == 1]
        certain = {next(iter(s)): entry for entry, s in scans_of.items() if len(s) == 1 and alone.count(s) == 1}
        if not certain:
            break
        settled |= certain
    if sorted(series) != list(range(len(cases))):
        return settled
    in_order = {name: series[number] for number, name in enumerate(sorted(labels))}
    agrees = all(in_order[name] == entry for name, entry in settled.items())
    fits = all(name in fitting[entry] for name, entry in in_order.items())
    return in_order if agrees and fits else settled


def _by_original_name(cases: Sequence[Case], grades: Mapping[str, Grades]) -> dict[str, str]:
    """Name of a scan -> the entry under its name in VerSe 2019's original layout."""
    if any(_SERIES.fullmatch(entry) for entry in grades):
        return {}
    subjects = {case.subject for case in cases}
    entry_of: dict[str, str] = {}
    for case in cases:
        match = _SPLIT.search(case.name)
        if match is None or case.name in grades or case.subject in grades:
            continue
        entry = f"sub-{match['series']}"
        if entry in grades and entry not in subjects and grades[entry].keys() <= annotated_labels(case):
            entry_of[case.name] = entry
    return entry_of


def _warn_of_the_rest(cases: Sequence[Case], grades: Mapping[str, Grades], entry_of: Mapping[str, str]) -> None:
    """Log how many grades belong to no scan, and how many scans have none; nothing where there is no list."""
    if not grades:
        return
    lost = [entry for entry in grades if entry not in entry_of.values()]
    if lost:
        log.warning(
            "%d of %d grades belong to no scan here (those of %s); check that the scans are named as in the list",
            sum(len(grades[entry]) for entry in lost),
            sum(map(len, grades.values())),
            _some(lost),
        )
    ungraded = [case.name for case in cases if case.name not in entry_of]
    if ungraded:
        log.warning("%d of %d scans have no grades (%s)", len(ungraded), len(cases), _some(ungraded))


def _some(names: Sequence[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
