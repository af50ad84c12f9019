"""What users would otherwise pick: libraries from PyPI, the extra ``bench``. One that is absent is told, not hidden."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.util import find_spec

PEERS = {
    "monai": "monai",
    "scikit-image": "skimage",
    "scipy": "scipy",
    "matplotlib": "matplotlib",
    "torch": "torch",
    "packaging": "packaging",
}
"""Distributions on PyPI, and the modules by which they are found."""
INSTALL = 'pip install "vertscan[bench]"'


@dataclass(frozen=True)
class Missing:
    """Who could not take part, why, and the command that helps (``""`` where none does)."""

    name: str
    why: str
    install: str = ""

    def text(self) -> str:
        """One line."""
        return f"not measured: {self.name}: {self.why}{f'; {self.install}' if self.install else ''}"

    def as_json(self) -> dict[str, str]:
        """Plain values."""
        return asdict(self)


def absent(*names: str) -> tuple[Missing, ...]:
    """Those of the peers (keys of ``PEERS``) that are not installed."""
    return tuple(Missing(name, "not installed", INSTALL) for name in names if find_spec(PEERS[name]) is None)
