"""A session that knows how long its network took."""

from __future__ import annotations

import time

import numpy as np

from runtime.engines.base import Session


class TimedSession:
    """A session that keeps the seconds spent in it and the number of its windows; fulfils Session.

    Args:
        session: the network; it stays its owner's to close.
    """

    def __init__(self, session: Session) -> None:
        self.info, self.output_names = session.info, session.output_names
        self.seconds, self.windows = 0.0, 0
        self._session = session

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, ...]:
        """See Session. A call that fails counts too."""
        start_s = time.perf_counter()
        try:
            return self._session(image)
        finally:
            self.seconds += time.perf_counter() - start_s
            self.windows += len(image)

    def close(self) -> None:
        """Left to the session's owner."""

    def __enter__(self) -> TimedSession:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
