"""The next piece of work begun while the one before it is still used: scans are read while networks run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
_POLL_S = 0.2


class Begun(Generic[Result]):
    """Work that runs on a thread of its own; the thread ends with the process, so it may leave nothing half-written.

    Args:
        work: what is to be done.
        beside_another: whether its result has to find room beside that of the one before.

    Attributes:
        following: the work begun after this one, whose result may take room already; None where there is none.
    """

    def __init__(self, work: Callable[[], Result], *, beside_another: bool) -> None:
        self.beside_another = beside_another
        self.following: Begun[Result] | None = None
        self._work = work
        self._results: list[Result] = []
        self._errors: list[BaseException] = []
        self._thread: threading.Thread | None = self._started()

    def _started(self) -> threading.Thread:
        thread = threading.Thread(target=self._run, daemon=True, name="read-ahead")
        thread.start()
        return thread

    def _run(self) -> None:
        try:
            self._results.append(self._work())
        except BaseException as error:  # noqa: BLE001  it is raised again where the result is asked for
            self._errors.append(error)

    def wait(self) -> None:
        """Until it is through, well or not; an interrupt ends the waiting on every system."""
        if self._thread is None:
            self._thread = self._started()
        while self._thread.is_alive():
            self._thread.join(_POLL_S)

    def take(self) -> Result:
        """Wait, and give the result away, to be asked for once; what the work raised is raised here.

        An error is given away as well: it holds all that the work had in its hands.
        """
        self.wait()
        if self._errors:
            raise self._errors.pop()
        return self._results.pop()

    def drop(self) -> None:
        """Wait, and let go of the result or the error to make room; the work is begun anew when it is waited for."""
        self.wait()
        self._results.clear()
        self._errors.clear()
        self._thread, self.beside_another = None, False


def one_ahead(
    work: Callable[[Item], Result], items: Sequence[Item], *, on_wait: Callable[[Item], None]
) -> Iterator[tuple[Item, Begun[Result]]]:
    """Each item with its work, which is through; the work of the next item has begun by then.

    Two results are there at a time at most: the one that the caller uses, and the next.

    Args:
        work: is called with each item in turn, on a thread of its own.
        items: in their order.
        on_wait: is called with an item before its work is waited for.
    """
    begun: list[Begun[Result]] = []
    for number, item in enumerate(items):
        current = begun.pop() if begun else Begun(partial(work, item), beside_another=False)
        on_wait(item)
        current.wait()
        if number + 1 < len(items):
            current.following = Begun(partial(work, items[number + 1]), beside_another=True)
            begun.append(current.following)
        yield item, current
