"""The image and the units keep what is compiled over restarts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[1] / "deploy"
CACHES = ("XDG_CACHE_HOME", "NUMBA_CACHE_DIR")


def instructions() -> list[tuple[str, str]]:
    """Of the Containerfile, in their order, each with all of its lines."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Containerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in text.splitlines() if line.strip()]


def test_the_image_caches_on_a_volume_and_fills_it_before_it_is_one() -> None:
    found = instructions()
    kinds = [kind for kind, _ in found]
    set_at, volume_at = kinds.index("ENV"), kinds.index("VOLUME")
    variables = dict(pair.split("=") for pair in found[set_at][1].split())
    volumes = found[volume_at][1].split()
    for name in CACHES:
        assert any(Path(variables[name]).is_relative_to(volume) for volume in volumes), name
    (fills_at,) = [i for i, (kind, text) in enumerate(found) if kind == "RUN" and "warm_up(" in text]
    assert set_at < kinds.index("USER") < fills_at < volume_at  # what is written to a volume's place later is lost


@pytest.mark.parametrize("unit", ["vertscan-node.service", "vertscan-serve.service"])
def test_the_units_cache_in_their_cache_folder(unit: str) -> None:
    settings = re.findall(r"^(\w+)=(.*)$", (DEPLOY / unit).read_text(), flags=re.MULTILINE)
    (folder,) = [Path("/var/cache") / value for name, value in settings if name == "CacheDirectory"]
    variables = dict(pair.split("=") for name, value in settings if name == "Environment" for pair in value.split())
    for name in CACHES:
        assert Path(variables[name]).is_relative_to(folder), name
