"""Strict reading of frozen dataclasses from JSON: what is unknown, missing or of another type is refused."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from runtime.errors import BundleError

T = TypeVar("T")

MAY_BE_MISSING = {"json": "may be missing"}
"""Metadata of a field whose key a JSON object may lack; it then has the field's default."""
MAY_BE_NULL = {"json": "may be missing or null"}
"""And whose value may be null as well, which means the default too."""


def parse_json(text: str, *, source: str) -> Any:
    """The value of a JSON text, without the liberties Python's reader takes.

    Raises:
        BundleError: it is no JSON, a key stands twice in one object, or a number is NaN or infinite.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise BundleError(f"{source} has the key {key!r} twice in one object.")
            found[key] = value
        return found

    def refuse(constant: str) -> float:
        raise BundleError(f"{source} holds {constant}, which is no JSON number.")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except (json.JSONDecodeError, RecursionError) as error:
        raise BundleError(f"{source} is not valid JSON: {error}.") from error


def to_json(value: Any) -> str:
    """A dataclass as indented JSON text in field order, ending in a newline.

    Raises:
        BundleError: a value in it has no JSON form, such as NaN or an array.
    """
    try:
        return json.dumps(dataclasses.asdict(value), indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    except (TypeError, ValueError) as error:
        raise BundleError(f"{type(value).__name__} cannot be written as JSON: {error}.") from error


def from_json(kind: type[T], data: Any, *, at: str) -> T:
    """An instance of the dataclass ``kind`` from a JSON object that has exactly its fields.

    Defaults of fields don't count, but of those with the metadata ``MAY_BE_MISSING`` or ``MAY_BE_NULL``.

    Args:
        kind: a dataclass of str, bool, int, float, tuples, string-keyed mappings, other such dataclasses, or one or
            None.
        data: what ``parse_json`` returned.
        at: where this object stands, for messages: ``"bundle.json"``, ``"bundle.json: locnet"``.

    Raises:
        BundleError: a key is missing or unknown, or a value has another type.
    """
    if not isinstance(data, Mapping):
        raise BundleError(f"{at} should be an object; met {_shown(data)}.")
    hints = get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    defaulted = [name for name, field in fields.items() if _has_its_default(field, data)]
    missing = [name for name in fields if name not in data and name not in defaulted]
    unknown = [name for name in data if name not in fields]
    if missing:
        raise BundleError(f"{at} lacks {', '.join(missing)}.")
    if unknown:
        raise BundleError(f"{at} has unknown keys: {', '.join(unknown)}; known are {', '.join(fields)}.")
    given = [name for name in fields if name not in defaulted]
    return kind(**{name: _value(hints[name], data[name], f"{at}: {name}") for name in given})


def _has_its_default(field: dataclasses.Field[Any], data: Mapping[str, Any]) -> bool:
    if field.name not in data:
        return field.metadata in (MAY_BE_MISSING, MAY_BE_NULL)
    return data[field.name] is None and field.metadata == MAY_BE_NULL


def _value(hint: Any, data: Any, at: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_json(hint, data, at=at)
    if get_origin(hint) is tuple:
        return _tuple(get_args(hint), data, at)
    if get_origin(hint) is Mapping:
        return _mapping(get_args(hint)[1], data, at)
    if get_origin(hint) is UnionType:
        (one,) = (kind for kind in get_args(hint) if kind is not NoneType)
        return None if data is None else _value(one, data, at)
    return data if hint is Any else _scalar(hint, data, at)


def _tuple(items: tuple[Any, ...], data: Any, at: str) -> tuple[Any, ...]:
    if not isinstance(data, list):
        raise BundleError(f"{at} should be a list; met {_shown(data)}.")
    kinds = [items[0]] * len(data) if items[-1] is Ellipsis else list(items)
    if len(kinds) != len(data):
        raise BundleError(f"{at} should hold {len(kinds)} values; met {len(data)}.")
    return tuple(_value(kind, item, f"{at}[{i}]") for i, (kind, item) in enumerate(zip(kinds, data, strict=True)))


def _mapping(item: Any, data: Any, at: str) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise BundleError(f"{at} should be an object; met {_shown(data)}.")
    return {key: _value(item, value, f"{at}[{key}]") for key, value in data.items()}


def _scalar(kind: type, data: Any, at: str) -> Any:
    is_right_kind = isinstance(data, (int, float)) if kind is float else isinstance(data, kind)
    if not is_right_kind or isinstance(data, bool) != (kind is bool):
        raise BundleError(f"{at} should be {_NAMES[kind]}; met {_shown(data)}.")
    if kind is not float:
        return data
    try:
        number = float(data)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise BundleError(f"{at} should be a finite number; met {_shown(data)}.")
    return number


_NAMES: dict[type, str] = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}


def _shown(data: Any) -> str:
    text = json.dumps(data, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
