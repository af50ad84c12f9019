"""Who is who without saying it: keyed hashes for names in logs and on disk, and what is left out of logs."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

from runtime.errors import InputError

KEY_FILE = "hash.key"
KEY_BYTES = 32
_UID = re.compile(r"(?<![\w.])(?=[\d.]{12})[0-2](?:\.\d+)+")
_SHORTEST_SECRET = 3
_MOST_SECRETS = 4000


class Hasher:
    """Keyed hashes: the same value gives the same hash on this node, and nobody without the key can test a guess."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def short(self, value: str) -> str:
        """16 hexadecimal digits: names a study in logs, in ``status`` and on disk."""
        return self._digest(value)[:16]

    def long(self, value: str) -> str:
        """32 hexadecimal digits: a file name."""
        return self._digest(value)[:32]

    def _digest(self, value: str) -> str:
        return hmac.new(self._key, value.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()


def open_hasher(data: Path) -> Hasher:
    """The hasher of a data folder; its key is made at the first time, readable by this user only.

    Raises:
        InputError: the key can't be written or is damaged.
    """
    path = data / KEY_FILE
    try:
        if not path.exists():
            fresh = data / f"{KEY_FILE}.{os.getpid()}"
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
                stream.write(secrets.token_bytes(KEY_BYTES))
            os.replace(fresh, path)
        key = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} can't be used ({error.strerror}); give this user the folder {data}.") from error
    if len(key) != KEY_BYTES:
        raise InputError(f"{path} has {len(key)} bytes, not {KEY_BYTES}; restore it, or move {data} away.")
    return Hasher(key)


class Redactor:
    """Takes UIDs, and values told to it, out of texts that are to be logged or shown.

    It remembers the last few thousand values: those of the studies at work.
    """

    def __init__(self, hasher: Hasher) -> None:
        self._hasher = hasher
        self._secrets: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def remember(self, values: Iterable[str]) -> None:
        """Leave these values (names, IDs, accession numbers) out from now on; very short ones are no secret."""
        with self._lock:
            for value in values:
                text = value.strip()
                if len(text) >= _SHORTEST_SECRET:
                    self._secrets[text] = None
                    self._secrets.move_to_end(text)
            while len(self._secrets) > _MOST_SECRETS:
                self._secrets.popitem(last=False)

    def __call__(self, text: str) -> str:
        """The text with ``[uid HASH]`` and ``[withheld]`` where it held such values."""
        text = _UID.sub(lambda match: f"[uid {self._hasher.short(match[0])}]", text)
        with self._lock:
            known = sorted(self._secrets, key=len, reverse=True)
        for value in known:
            text = text.replace(value, "[withheld]")
        return text
