"""The node itself: its parts, their threads, their start and their end."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from runtime.errors import InputError
from runtime.locks import HAS_POSIX_LOCKS, try_lock
from runtime.node.archive import Archive
from runtime.node.audit import AUDIT_FILE, Audit
from runtime.node.completeness import Completeness
from runtime.node.config import Config, FolderPeer
from runtime.node.database import QUEUE_FILE, Database
from runtime.node.dead_letters import DeadLetters, Strays
from runtime.node.delivery import Delivery
from runtime.node.health import HealthServer
from runtime.node.identity import Hasher, Redactor, open_hasher
from runtime.node.loops import FULL, Loop, Periodic, is_full
from runtime.node.outbox import Outbox, PullList
from runtime.node.processor import Opener
from runtime.node.pull import Puller, Reconciler
from runtime.node.queue import Queue
from runtime.node.receiver import Receiver
from runtime.node.retention import Retention
from runtime.node.store import Store
from runtime.node.watch import FolderWatch
from runtime.node.worker import Worker

logger = logging.getLogger(__name__)

LOCK_FILE = "node.lock"
_STOP_S = 10.0
_PAUSE_S = 0.5


def make_data_folder(data: Path) -> None:
    """Make the data folder, for this user only.

    Raises:
        InputError: it can't be made.
    """
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise InputError(f"The data folder {data} can't be made ({error.strerror}); correct node.data.") from error
    if not os.access(data, os.W_OK | os.X_OK):
        raise InputError(f"Nothing can be written to the data folder {data}; give it to this user.")


class Node:
    """A node from ``start`` to ``stop``; or use it in ``with``.

    The processor is opened first: a node without its networks takes nothing in.
    """

    def __init__(self, config: Config, opener: Opener, *, hasher: Hasher, redact: Redactor) -> None:
        """Open all parts.

        Raises:
            InputError: the data folder or a port can't be used, or another node uses them.
            BundleError, EngineError: the processor can't be opened.
        """
        self.config, self._resources, self._loops = config, ExitStack(), []
        with ExitStack() as stack:
            with _starting_in(config.data):
                stack.enter_context(_alone(config.data / LOCK_FILE))
                database = Database(config.data / QUEUE_FILE)
                stack.callback(database.close)
                self.audit = Audit(config.data / AUDIT_FILE)
                self.queue, self.outbox, self.pulls = Queue(database, hasher), Outbox(database), PullList(database)
                self.store = Store(config.data, config.storage, self.queue, redact, self.audit)
            self.processor = stack.enter_context(opener(config.analyse))
            self.receiver = Receiver(
                config.receive,
                config.dicom_peers(config.receive.accept),
                self.store,
                on_commitment=self._on_commitment,
            )
            self._loops = self._make_loops(redact)
            port = config.health_port
            self._health = HealthServer(config.health_bind, port, self.health) if port else None
            self._resources = stack.pop_all()
        self._started_s = time.time()

    def _make_loops(self, redact: Redactor) -> list[Loop]:
        config, title = self.config, self.config.receive.ae_title
        archives = {p.name: Archive(p, title) for p in config.peers if not isinstance(p, FolderPeer)}
        self.reconciler = Reconciler(config.reconcile, self.queue, self.pulls, archives, self.audit)
        self.completeness = Completeness(
            config.complete,
            self.queue,
            [archives[name] for name in config.complete.ask],
            self.audit,
            fetch=self.reconciler.fetch,
            is_fetched=self.pulls.plans,
        )
        self.worker = Worker(
            config.analyse, self.queue, self.store, self.processor, redact, self.audit, destinations=config.deliver.to
        )
        self.deliveries = [
            Delivery(config.deliver, config.peer(name), title, config.data, self.outbox, redact, self.audit)
            for name in config.deliver.to
        ]
        strays = Strays(config.deliver.to, self.outbox, DeadLetters(config.data, self.outbox, redact, self.audit))
        puller = Puller(self.pulls, archives, self.queue, redact, self.audit, take=self._take)
        pause_s = min(_PAUSE_S, config.complete.idle_s / 4)
        senders = [
            Loop(f"delivery to {name}", delivery.step, pause_s=_PAUSE_S)
            for name, delivery in zip(config.deliver.to, self.deliveries, strict=True)
        ]
        self._worker_loop = Loop("worker", self._work(senders), pause_s=_PAUSE_S)
        loops = [
            Loop("completeness", self._complete(self._worker_loop), pause_s=pause_s),
            self._worker_loop,
            *senders,
            Loop("fetching", puller.step, pause_s=_PAUSE_S),
            Loop("strays", Periodic(strays.step, every_s=60), pause_s=5),
            Loop("retention", Periodic(Retention(config.storage, self.queue, self.store).step, every_s=60), pause_s=5),
        ]
        if config.reconcile.ask:
            every_s = config.reconcile.every_s
            loops.append(Loop("reconciliation", Periodic(self.reconciler.step, every_s=every_s), pause_s=_PAUSE_S))
        self.watch = None if config.watch is None else FolderWatch(config.watch, self._take)
        if self.watch is not None:
            loops.append(Loop("folder", self.watch.step, pause_s=_PAUSE_S))
        return loops

    def _take(self, encoded: bytes, peer: str) -> int:
        return self.receiver.take(encoded, peer=peer)

    def _complete(self, worker: Loop) -> Callable[[], bool]:
        def step() -> bool:
            if self.reconciler.has_asked and self.completeness.step():
                worker.wake()
            return False

        return step

    def _work(self, senders: list[Loop]) -> Callable[[], bool]:
        def step() -> bool:
            worked = self.worker.step()
            if worked:
                for sender in senders:
                    sender.wake()
            return worked

        return step

    def _on_commitment(self, transaction_uid: str, stored: Sequence[str], failed: Sequence[str]) -> None:
        refused = self.outbox.commitment(transaction_uid, stored, failed)
        logger.info("a commitment was answered: %d objects kept, %d not", len(stored), len(failed))
        for result in refused:
            self.audit.write("not committed", study=result.study, peer=result.destination)

    def start(self) -> None:
        """Mend what an earlier end left half done, then begin to listen and to work.

        Raises:
            InputError: the port can't be had, or nothing can be written to the data folder.
        """
        with _starting_in(self.config.data):
            entered, gone = self.store.mend()
            again, dead = self.queue.recover(self.config.analyse.attempts)
            self.audit.write("start", detail=f"{entered} images entered, {gone} lost, {len(again)} analyses again")
            for key in dead:
                self.audit.write("dead", study=key, detail="the process died while it was analysed")
        if entered or gone or again or dead:
            logger.info(
                "after the last end: %d images entered, %d lost; %d studies run again, %d given up",
                entered, gone, len(again), len(dead),
            )  # fmt: skip
        self.receiver.start()
        if self._health is not None:
            self._health.start()
        for loop in self._loops:
            loop.start()

    def stop(self) -> None:
        """Stop listening, end the threads, close the processor; what still runs is done again at the next start.

        An analysis that is cut off so counts as no attempt, unless it ran for so long that it may hang.
        """
        self.receiver.stop()
        if self._health is not None:
            self._health.stop()
        deadline_s = time.monotonic() + _STOP_S
        for loop in self._loops:
            if not loop.stop(max(0.1, deadline_s - time.monotonic())):
                logger.warning("%s did not end in time; what it was at is done again at the next start", loop.name)
        if self._worker_loop.alive:
            self._put_back()
        if not any(loop.alive for loop in self._loops):
            try:
                self.audit.write("stop")
            except OSError as error:
                logger.error("the end could not be noted: %s", FULL if is_full(error) else error.strerror)
            self._resources.close()

    def _put_back(self) -> None:
        try:
            for key in self.queue.put_back():
                logger.info("study %s: its analysis is cut off, and counts as no attempt", key)
                self.audit.write("analysis cut off", study=key)
            for study in self.queue.running():
                logger.warning("study %s: its analysis is cut off after long, may hang, and counts", study.key)
                self.audit.write("analysis cut off", study=study.key, detail="after long, which counts")
        except (OSError, sqlite3.Error) as error:
            logger.error("an analysis that is cut off can't be noted: %s", FULL if is_full(error) else error)

    def health(self) -> Mapping[str, Any]:
        """How the node is: ``status`` is ``"ok"`` or ``"degraded"``, ``problems`` says why."""
        problems = [f"{loop.name} has ended" for loop in self._loops if not loop.alive]
        problems += [loop.last_error for loop in self._loops if loop.last_error]
        watch = [] if self.watch is None else [self.watch.trouble]
        problems += [trouble for trouble in (self.reconciler.trouble, *watch) if trouble]
        used_bytes = self.store.used_bytes()
        if used_bytes > 0.95 * self.config.storage.quota_bytes:
            problems.append("the quota is nearly used up")
        errors = [self.worker.last_error, *(delivery.last_error for delivery in self.deliveries)]
        return {
            "status": "degraded" if problems else "ok",
            "problems": problems,
            "engine": self.processor.engine,
            "studies": dict(self.queue.counts()),
            "to_fetch": len(self.pulls.waiting()),
            "last_error": next((error for error in errors if error), ""),
            "used_mib": used_bytes >> 20,
            "up_s": round(time.time() - self._started_s),
        }

    def __enter__(self) -> Node:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


@contextmanager
def _starting_in(data: Path) -> Iterator[None]:
    """Say in one line why the node can't start in its data folder.

    Raises:
        InputError: that line, in place of the system's or sqlite's error.
    """
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        reason = FULL if is_full(error) else str(error)
        raise InputError(f"The node can't start in its data folder {data}: {reason}.") from error


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock of a data folder."""
    if not HAS_POSIX_LOCKS:
        raise InputError("The node needs a system with POSIX file locks, such as Linux; run it there.")
    with path.open("a+b") as stream:
        if not try_lock(stream.fileno()):
            raise InputError(f"Another node uses {path.parent}; give each its own node.data.")
        yield


def open_identity(data: Path) -> tuple[Hasher, Redactor]:
    """The data folder's hasher, and the redactor that goes with it."""
    make_data_folder(data)
    hasher = open_hasher(data)
    return hasher, Redactor(hasher)
