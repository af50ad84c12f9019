"""The fitted constants of the combined grade, in a file and in a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from runtime.bundle import Bundle, write_bundle
from runtime.bundle_json import from_json, parse_json
from runtime.errors import BundleError, InputError
from runtime.grading import GradingSpec
from train.evaluation.plain import write_json


def write_grading(path: Path, grading: GradingSpec, made: Mapping[str, Any]) -> None:
    """Keep the constants and where they come from in a JSON file."""
    write_json(path, {"grading": asdict(grading), "made": made})


def read_grading(path: Path) -> tuple[GradingSpec, dict[str, Any]]:
    """What ``write_grading`` wrote. Raises InputError when it is anything else."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"), source=str(path))
        return from_json(GradingSpec, content["grading"], at="grading"), dict(content["made"])
    except (OSError, UnicodeDecodeError, KeyError, TypeError, BundleError) as error:
        raise InputError(f"{path} is not what train.fit_grades writes ({error}).") from error


def with_grading(bundle: Bundle, folder: Path, grading: GradingSpec, made: Mapping[str, Any] | None) -> Bundle:
    """The bundle with these constants, written to ``folder``, which may be its own; ``made`` tells their origin."""
    spec = replace(bundle.spec, grading=grading)
    if made is not None:
        spec = replace(spec, training={**spec.training, "grading": dict(made)})
    return write_bundle(spec, {name: bundle.path_of(name) for name in spec.files}, folder)
