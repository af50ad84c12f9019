"""The token that clients must show."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import MutableMapping
from pathlib import Path

from runtime.errors import InputError
from runtime.serve.options import TOKEN_VARIABLE

SHORTEST = 16
TOKEN_FILE = "token"


def given_token(file: Path | None, environment: MutableMapping[str, str]) -> str | None:
    """The token from a file, or else from the environment, which then no longer holds it; None where neither has one.

    Raises:
        InputError: it can't be read, can be read by everybody, or is no token.
    """
    held = environment.pop(TOKEN_VARIABLE, None)
    if file is not None:
        return _checked(_read(file), str(file))
    return None if held is None else _checked(held, f"${TOKEN_VARIABLE}")


def _read(file: Path) -> str:
    try:
        with file.open(encoding="ascii") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            text = stream.read(4096)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it holds more than ASCII"
        raise InputError(f"--token-file {file} can't be read ({reason}); it must hold one token.") from error
    if os.name == "posix" and mode & (stat.S_IROTH | stat.S_IWOTH):
        raise InputError(f"--token-file {file} can be read by every user of this machine; chmod it to 0600.")
    return text.strip()


def _checked(token: str, where: str) -> str:
    if len(token) < SHORTEST or not all("!" <= c <= "~" for c in token):
        raise InputError(
            f"The token in {where} must have at least {SHORTEST} characters, all of them printable ASCII without "
            f"spaces; met {len(token)}. Make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    return token


def new_token(folder: Path) -> tuple[str, Path]:
    """A token made up, and the file in ``folder`` that it was written to, which only this user can read."""
    token, file = secrets.token_urlsafe(32), folder / TOKEN_FILE
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w", encoding="ascii") as stream:
        stream.write(token + "\n")
    return token, file
