"""What TensorRT-RTX compiles on the GPU it meets, kept on disk: the first run of a process need not do it again."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from runtime.cache import write_whole

logger = logging.getLogger(__name__)


class RuntimeCache:
    """A runtime configuration whose kernels come from a file, where that is there and fits, and go back to it.

    The file is no more than a shortcut: one that is damaged or was made by another release is left unused, and one that
    can't be written costs the next process some time. The library checks what it reads.

    Args:
        library: the module ``tensorrt_rtx``.
        engine: what is configured.
        path: of the file.
    """

    def __init__(self, library: Any, engine: Any, path: Path) -> None:
        self._path = path
        self.config = engine.create_runtime_config()
        # Batches of one size run again and again: the library records them itself, once their kernels are compiled.
        self.config.cuda_graph_strategy = library.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self._cache = self.config.create_runtime_cache()
        self._kept = self._read()
        if self._kept and not self._cache.deserialize(self._kept):
            logger.info("the compiled kernels in %s are not for this GPU and release: they are made anew", path)
            self._cache.reset()
            self._kept = b""
        if not self.config.set_runtime_cache(self._cache):
            logger.info("TensorRT-RTX takes no runtime cache here: kernels are compiled by each process")

    def save(self) -> None:
        """Write the file if there is more in it now: whole, or not at all."""
        made = self._cache.serialize()
        content = b"" if made is None else bytes(made)
        if not content or content == self._kept:
            return
        try:
            write_whole(self._path, content)
        except OSError as error:
            logger.warning("compiled kernels are not kept: %s cannot be written (%s)", self._path, error.strerror)

    def _read(self) -> bytes:
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            logger.warning("compiled kernels are not used: %s cannot be read (%s)", self._path, error.strerror)
            return b""
