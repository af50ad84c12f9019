"""How much disk a distribution and all that it needs take, as they are installed here."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

MIB = 2**20


def closure(roots: Iterable[str]) -> dict[str, metadata.Distribution]:
    """The distributions and what they need, by canonical name; extras count where a requirement names them.

    What a requirement names and is not installed is left out.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found: dict[str, metadata.Distribution] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    to_do: list[tuple[str, frozenset[str]]] = [(canonicalize_name(name), frozenset()) for name in roots]
    while to_do:
        name, extras = to_do.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        found[name] = distribution
        for text in distribution.requires or ():
            requirement = Requirement(text)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                to_do.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return found


def installed_mib(distribution: metadata.Distribution) -> float:
    """The size of a distribution's files that are there, compiled caches included; 0 where it has no list of them."""
    paths = {Path(str(distribution.locate_file(file))) for file in distribution.files or ()}
    return sum(path.stat().st_size for path in paths if path.is_file()) / MIB


def folder_mib(folder: Path) -> float:
    """The size of all files in a folder, without compiled caches."""
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return sum(path.stat().st_size for path in files) / MIB
