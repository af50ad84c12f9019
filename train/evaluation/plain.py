"""Records as JSON and back: plain values only, None for what is not a number."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from runtime.errors import InputError

T = TypeVar("T")
DECIMALS = 4


def number(value: Any) -> float | None:
    """A float to four decimals, or None for nan and None."""
    return None if value is None or math.isnan(value) else round(float(value), DECIMALS)


def to_plain(value: Any) -> Any:
    """Dataclasses, mappings, sequences and numbers as JSON values: floats rounded, nan as None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    return number(value)


def write_json(path: Path, value: Any) -> None:
    """``to_plain(value)`` in ``path``: whole or not at all, on one line when it is a single record."""
    write_text(path, json.dumps(to_plain(value), indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """``text`` in ``path``, whole or not at all. Raises InputError when it can't be written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); name another place.") from error


def from_plain(kind: type[T], value: Any) -> T:
    """The dataclass ``kind`` from what ``to_plain`` made of one. Raises ValueError when it isn't that."""
    hints = get_type_hints(kind)
    if not isinstance(value, dict) or set(value) != set(hints):
        raise ValueError(f"no {kind.__name__}: {str(value)[:80]}")
    return kind(**{name: _read(hint, value[name]) for name, hint in hints.items()})


def _read(hint: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_plain(hint, value)
    arguments = get_args(hint)
    if get_origin(hint) is types.UnionType:
        return None if value is None else _read(arguments[0], value)
    if get_origin(hint) is tuple and isinstance(value, list):
        return tuple(_read(arguments[0], item) for item in value)
    if hint is float and type(value) in (int, float):
        return float(value)
    if type(value) is not hint:
        raise ValueError(f"{value!r} is no {hint}")
    return value
