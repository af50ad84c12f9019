"""The node's command line, with the seconds of its networks in its log: what ``benchmarks.node`` starts."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import runtime.pipeline
from export.timed_session import TimedSession
from runtime.device.session import offers_device_tensors
from runtime.engines.base import Session, release_memory
from runtime.node.commands import main
from runtime.node.config import Analyse
from runtime.node.processor import Processor, open_pipeline

NETWORKS, PROCESSOR = "networks: ", "processor: "
"""How the lines begin that say how long a study's networks took, and the processor's seconds without them."""
_logger = logging.getLogger("runtime.benchmark")
"""Lines of other names than the software's own are withheld by the node."""


class _OwnedSession(TimedSession):
    """A timed session that its owner closes; counts the processor's seconds, too, which other work doesn't lengthen."""

    processor_s = 0.0

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, ...]:
        start_s = time.process_time()
        outputs = super().__call__(image)
        self.processor_s += time.process_time() - start_s
        return outputs

    def release_memory(self) -> None:
        release_memory(self._session)

    def close(self) -> None:
        self._session.close()


class _TimedProcessor:
    """Says after each study how long the sessions took; fulfils Processor."""

    def __init__(self, processor: Processor, sessions: Sequence[_OwnedSession]) -> None:
        self._processor, self._sessions = processor, sessions

    @property
    def engine(self) -> str:
        return self._processor.engine

    def __call__(self, series_files: Sequence[Path], out_dir: Path) -> Sequence[Path]:
        networks_s, rest_s = self._networks_s(), self._rest_s()
        made = self._processor(series_files, out_dir)
        if self._sessions:
            _logger.info("%s%.3f", NETWORKS, self._networks_s() - networks_s)
        _logger.info("%s%.3f", PROCESSOR, self._rest_s() - rest_s)
        return made

    def rest(self) -> None:
        self._processor.rest()

    def _networks_s(self) -> float:
        return sum(session.seconds for session in self._sessions)

    def _rest_s(self) -> float:
        """Processor seconds of this process outside the networks, all threads."""
        return time.process_time() - sum(session.processor_s for session in self._sessions)


@contextmanager
def open_timed(settings: Analyse) -> Iterator[Processor]:
    """As ``open_pipeline``; sessions that keep their tensors on a GPU are not timed."""
    opened: list[_OwnedSession] = []
    original = runtime.pipeline.open_session

    def open_session(*args: Any, **options: Any) -> Session:
        session = original(*args, **options)
        if offers_device_tensors(session):
            return session
        opened.append(_OwnedSession(session))
        return opened[-1]

    runtime.pipeline.open_session = open_session
    try:
        with open_pipeline(settings) as processor:
            yield _TimedProcessor(processor, opened)
    finally:
        runtime.pipeline.open_session = original


if __name__ == "__main__":
    sys.exit(main(opener=open_timed))
