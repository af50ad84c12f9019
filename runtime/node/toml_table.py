"""A table of a TOML file, read field by field; every wrong field is said, not only the first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


class Table:
    """Takes fields out of a TOML table and collects what is wrong with them in ``errors``.

    Args:
        values: the table as ``tomllib`` gives it.
        where: its name, for messages.
        errors: shared by all tables of a file; one line per wrong field.
        folder: relative paths in the file are relative to this.
    """

    def __init__(self, values: Mapping[str, Any], *, where: str, errors: list[str], folder: Path) -> None:
        self._values = dict(values)
        self.where, self.errors, self._folder = where, errors, folder

    def wrong(self, field: str, what: str) -> None:
        """Note that a field is wrong."""
        self.errors.append(f"{self.where}.{field}: {what}" if self.where else f"{field}: {what}")

    def _take(self, field: str, kinds: tuple[type, ...], name: str, default: Any) -> Any:
        if field not in self._values:
            if default is _REQUIRED:
                self.wrong(field, f"is missing; give {name}")
            return default
        value = self._values.pop(field)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            self.wrong(field, f"must be {name}; met {value!r}")
            return default
        return value

    def text(self, field: str, default: str | None = None) -> str:
        """A text that is not empty; required where there is no default."""
        value = self._take(field, (str,), "a text", _REQUIRED if default is None else default)
        if value is _REQUIRED:
            return ""
        if not value.strip() and value != default:
            self.wrong(field, "is empty")
        return str(value)

    def choice(self, field: str, choices: Sequence[str], default: str) -> str:
        """One of some texts."""
        value = self.text(field, default)
        if value not in choices:
            self.wrong(field, f"must be one of {', '.join(choices)}; met {value!r}")
            return default
        return value

    def flag(self, field: str, default: bool) -> bool:
        """True or false."""
        return bool(self._take(field, (bool,), "true or false", default))

    def whole(self, field: str, default: int | None, *, least: int, most: int) -> int:
        """A whole number; required where there is no default."""
        value = self._take(field, (int,), f"a whole number from {least} to {most}", _or_required(default))
        return int(self._within(field, value, least, most))

    def number(self, field: str, default: float, *, least: float, most: float) -> float:
        """A number."""
        value = self._take(field, (int, float), f"a number from {least:g} to {most:g}", default)
        return float(self._within(field, value, least, most))

    def _within(self, field: str, value: Any, least: float, most: float) -> float:
        if value is _REQUIRED:
            return least
        if not least <= value <= most:
            self.wrong(field, f"must be from {least:g} to {most:g}; met {value!r}")
            return least
        return float(value)

    def texts(self, field: str, default: Sequence[str] = ()) -> tuple[str, ...]:
        """A list of texts."""
        value = self._take(field, (list,), "a list of texts", list(default))
        if not all(isinstance(item, str) and item for item in value):
            self.wrong(field, f"must be a list of texts; met {value!r}")
            return tuple(default)
        return tuple(value)

    def path(self, field: str, *, required: bool = False, file: bool = False) -> Path | None:
        """A path, or None where it is not given; ``file``: it must be a file that is there."""
        value = self._take(field, (str,), "a path", _REQUIRED if required else None)
        if value is None or value is _REQUIRED:
            return None
        try:
            path = self._folder / Path(value).expanduser()
        except RuntimeError as error:  # such as ~name/..., where there is no such user
            self.wrong(field, f"is {value}, which says nothing here ({error}); give a whole path")
            return None
        if not value.strip():
            self.wrong(field, "is empty; give a path")
        elif file:
            self._must_be_file(field, path)
        return path

    def _must_be_file(self, field: str, path: Path) -> None:
        try:
            if not path.is_file():
                self.wrong(field, f"there is no file {path}")
        except OSError as error:
            self.wrong(field, f"{path} can't be looked at ({error.strerror}); let this user enter its folder")

    def table(self, field: str) -> Table:
        """A table in this one; empty where it is not given."""
        value = self._take(field, (dict,), "a table", {})
        return self._inner(value, field)

    def optional_table(self, field: str) -> Table | None:
        """A table in this one, or None where it is not given."""
        return self.table(field) if field in self._values else None

    def tables(self, field: str, read: Callable[[Table], Any]) -> tuple[Any, ...]:
        """Every table of a list of tables, read by ``read``."""
        value = self._take(field, (list,), f"a list of tables ([[{field}]])", [])
        inner = [self._inner(item, f"{field}[{n}]") for n, item in enumerate(value) if isinstance(item, dict)]
        if len(inner) < len(value):
            self.wrong(field, f"must be a list of tables ([[{field}]])")
        return tuple(read(table) for table in inner)

    def _inner(self, values: Mapping[str, Any], field: str) -> Table:
        where = f"{self.where}.{field}" if self.where else field
        return Table(values, where=where, errors=self.errors, folder=self._folder)

    def end(self) -> None:
        """Note every field that nobody took: a name misspelt."""
        for field in self._values:
            self.wrong(field, "is no setting of this table; check its spelling")


class _Required:
    """Stands for a default that isn't there."""


_REQUIRED = _Required()


def _or_required(default: Any) -> Any:
    return _REQUIRED if default is None else default
