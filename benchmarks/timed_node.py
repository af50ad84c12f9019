"""The node's command line, with the seconds of its networks in its log: what ``benchmarks.node`` starts."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import runtime.pipeline
from benchmarks.stage_clock import TimedSession
from runtime.device.session import offers_device_tensors
from runtime.engines.base import Session
from runtime.node.commands import main
from runtime.node.config import Analyse
from runtime.node.processor import Processor, open_pipeline

NETWORKS = "networks: "
"""How the line begins that says how long a study's networks took."""
_logger = logging.getLogger("runtime.benchmark")
"""Lines of other names than the software's own are withheld by the node."""


class _OwnedSession(TimedSession):
    """A timed session that its owner closes."""

    def close(self) -> None:
        self._session.close()


class _TimedProcessor:
    """Says after each study how long the sessions took; fulfils Processor."""

    def __init__(self, processor: Processor, sessions: Sequence[TimedSession]) -> None:
        self._processor, self._sessions = processor, sessions

    @property
    def engine(self) -> str:
        return self._processor.engine

    def __call__(self, series_files: Sequence[Path], out_dir: Path) -> Sequence[Path]:
        before_s = self._spent_s()
        made = self._processor(series_files, out_dir)
        if self._sessions:
            _logger.info("%s%.3f", NETWORKS, self._spent_s() - before_s)
        return made

    def _spent_s(self) -> float:
        return sum(session.seconds for session in self._sessions)


@contextmanager
def open_timed(settings: Analyse) -> Iterator[Processor]:
    """As ``open_pipeline``; sessions that keep their tensors on a GPU are not timed."""
    opened: list[TimedSession] = []
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
