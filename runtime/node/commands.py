"""The command line ``python -m runtime.node``.

Exit status: 0 done, 2 usage, configuration or input refused, 3 bundle or engine, 4 out of memory, 5 a peer does not
answer (``check``), 130 interrupted, 1 a defect of this software.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from runtime.console import say, status_after
from runtime.errors import InputError
from runtime.node.check import check
from runtime.node.config import Config, load_config
from runtime.node.database import QUEUE_FILE, Database, queue_errors
from runtime.node.identity import Hasher, Redactor
from runtime.node.logs import log_to_stderr
from runtime.node.outbox import Outbox, PullList
from runtime.node.peer_errors import PeerError
from runtime.node.processor import Opener, open_pipeline
from runtime.node.queue import Queue
from runtime.node.records import READY, RUNNING
from runtime.node.service import Node, open_identity
from runtime.node.status import summary, table
from runtime.node.store import IMAGES, RESULTS, remove_files

logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """The options of ``python -m runtime.node``."""
    parser = argparse.ArgumentParser(
        prog="vertscan-node",
        description="Stands beside a PACS: takes CT studies in, analyses them, sends the results back.",
        epilog="Exit status: 0 done, 2 usage, configuration or input refused, 3 bundle or engine, 4 out of memory, "
        "5 a peer does not answer, 130 interrupted.",
    )
    parser.add_argument("--config", metavar="FILE", type=Path, help="the node's settings, TOML (docs/node.md)")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("run", help="run until SIGTERM or Ctrl-C (default)")
    commands.add_parser("check", help="check the settings and echo every peer")
    status = commands.add_parser("status", help="print the queue; a node may be running")
    status.add_argument("--json", action="store_true", help="as JSON, all studies")
    pull = commands.add_parser("pull", help="have the node fetch studies")
    pull.add_argument("--from", dest="peer", metavar="PEER", required=True, help="the peer to fetch them from")
    pull.add_argument("--list", metavar="FILE", type=Path, help="a text file with one Study Instance UID per line")
    pull.add_argument("studies", metavar="STUDY_UID", nargs="*")
    retry = commands.add_parser("retry", help="give studies that are dead another chance")
    retry.add_argument("studies", metavar="STUDY", nargs="*", help="keys as status prints them (default: all)")
    forget = commands.add_parser(
        "forget", aliases=["cancel"], help="fetch studies no more, and take them out of the queue with their files"
    )
    forget.add_argument("studies", metavar="STUDY", nargs="+", help="keys as status prints them")
    find = commands.add_parser("key", help="print the key that logs and status name a study by")
    find.add_argument("study", metavar="STUDY_UID")
    module = commands.add_parser("module", help="one task by mercure's convention; needs no --config")
    module.add_argument("--in", dest="in_dir", metavar="DIR", type=Path, help="default: $MERCURE_IN_DIR")
    module.add_argument("--out", dest="out_dir", metavar="DIR", type=Path, help="default: $MERCURE_OUT_DIR")
    return parser


def main(argv: Sequence[str] | None = None, *, opener: Opener = open_pipeline) -> int:
    """Run the command line and return its exit status; argparse itself exits with 2 on wrong usage.

    Args:
        opener: opens what analyses the studies.
    """
    parser = build_parser()
    arguments = parser.parse_args(argv)
    try:
        return _run(arguments, opener)
    except (KeyboardInterrupt, Exception) as error:  # noqa: BLE001  users get a message, never a trace
        return status_after(
            error,
            interrupted="interrupted",
            out_of_memory="out of memory; close other programs or allow more memory",
        )


def _run(arguments: argparse.Namespace, opener: Opener) -> int:
    if arguments.command == "module":
        return _module(arguments, opener)
    if arguments.config is None:
        raise InputError("The node's settings are missing; name them with --config node.toml.")
    config = load_config(arguments.config)
    if arguments.command == "check":
        return _check(config)
    hasher, redact = open_identity(config.data)
    match arguments.command:
        case "key":
            say(hasher.short(arguments.study))
        case "status" | "pull" | "retry" | "forget" | "cancel":
            return _with_queue(arguments, config, hasher)
        case _:
            return run_node(config, opener, hasher, redact)
    return 0


def _check(config: Config) -> int:
    status = 0
    for finding in check(config):
        say(f"{'ok    ' if finding.works else 'FAILED'}  {finding.what}: {finding.seen}")
        if not finding.works:
            status = PeerError.exit_status if finding.what.startswith("peer") else status or InputError.exit_status
    return status


def _with_queue(arguments: argparse.Namespace, config: Config, hasher: Hasher) -> int:
    path = config.data / QUEUE_FILE
    database = Database(path)
    try:
        with queue_errors(path):
            _do_with_queue(arguments, config, database, Queue(database, hasher))
    finally:
        database.close()
    return 0


def _do_with_queue(arguments: argparse.Namespace, config: Config, database: Database, queue: Queue) -> None:
    pulls = PullList(database)
    if arguments.command == "status":
        said = summary(queue, Outbox(database), pulls)
        say(json.dumps(said, indent=1) if arguments.json else table(said))
    elif arguments.command == "retry":
        keys = arguments.studies or [study.key for study in queue.studies() if study.state == "dead"]
        for key in keys:
            say(f"{key}: {queue.retry(key) or 'is unknown or not dead'}")
    elif arguments.command == "pull":
        _pull(arguments, config, pulls)
    else:
        for key in arguments.studies:
            say(f"{key}: {_forget(key, config, queue, pulls)}")


def _forget(key: str, config: Config, queue: Queue, pulls: PullList) -> str:
    """Take a study off the list of what is fetched and out of the queue; what was done."""
    cancelled = pulls.cancel(key, queue.hasher)
    state = queue.forget(key, lambda: remove_files(config.data, key, IMAGES, RESULTS))
    said = ["is fetched no more"] if cancelled else []
    if state in (RUNNING, READY):
        said.append(f"is {state} and stays; forget it when that is done")
    elif state is not None:
        said.append(f"was {state} and is forgotten; images that come again are new")
    return ", ".join(said) or "is unknown"


def _pull(arguments: argparse.Namespace, config: Config, pulls: PullList) -> None:
    if arguments.peer not in {peer.name for peer in config.peers}:
        raise InputError(f"There is no peer {arguments.peer!r} in the configuration; correct --from.")
    studies = list(arguments.studies)
    if arguments.list is not None:
        try:
            lines = arguments.list.read_text(encoding="ascii").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{arguments.list} can't be read; it must hold one UID per line.") from error
        studies += [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    wrong = [uid for uid in studies if not uid.replace(".", "").isdigit() or len(uid) > 64]
    if wrong or not studies:
        raise InputError(f"Name studies by their Study Instance UID; {len(wrong)} of {len(studies)} are no UID.")
    added = sum(pulls.add(uid, arguments.peer) for uid in studies)
    others = ", the others are planned already" if added < len(studies) else ""
    say(f"{added} of {len(studies)} studies will be fetched from {arguments.peer}{others}")


def run_node(config: Config, opener: Opener, hasher: Hasher, redact: Redactor) -> int:
    """Run until SIGTERM or Ctrl-C."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with log_to_stderr(redact, config.log_level):
        with Node(config, opener, hasher=hasher, redact=redact) as node:
            logger.info("ready: %s", node.processor.engine)
            ended.wait()
            logger.info("ending: what runs now is done again at the next start")
        logger.info("ended")
    return 0


def _module(arguments: argparse.Namespace, opener: Opener) -> int:
    from runtime.node.module import IN_VARIABLE, OUT_VARIABLE, run_module

    folders = []
    for given, variable in ((arguments.in_dir, IN_VARIABLE), (arguments.out_dir, OUT_VARIABLE)):
        folder = given or os.environ.get(variable)
        if not folder:
            raise InputError(f"The environment has no {variable}; mercure sets it, or name the folder.")
        folders.append(Path(folder))
    with tempfile.TemporaryDirectory() as scratch:
        _, redact = open_identity(Path(scratch))
    with log_to_stderr(redact, "info"):
        return run_module(folders[0], folders[1], opener, redact)
