"""How commands end that meet a full disk, a lock, want of memory or want of rights: in one line, with what to do."""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("pynetdicom", reason="the extra 'node' is not installed")

from runtime.errors import InputError
from runtime.node import database
from runtime.node.commands import main
from runtime.node.database import QUEUE_FILE, Database, queue_errors
from runtime.node.service import LOCK_FILE
from tests.runtime.node.certificates import make_authority, make_certificate
from tests.runtime.node.fake_processor import FakeProcessor, opener_of
from tests.runtime.node.nodes import config_of

resource = pytest.importorskip("resource", reason="the node needs a POSIX system")


@pytest.fixture
def config(tmp_path):
    """Settings whose data folder has an identity and a queue."""
    config = config_of(tmp_path, 104)
    assert main(["--config", str(tmp_path / "node.toml"), "status"]) == 0
    return config


@pytest.fixture
def command(tmp_path, capsys):
    """Runs a command; its status, and its lines on stderr."""

    def run(*arguments, **choices):
        capsys.readouterr()
        status = main(["--config", str(tmp_path / "node.toml"), *arguments], **choices)
        return status, capsys.readouterr().err.splitlines()

    return run


PULL = ("pull", "--from", "archive", "1.2.3")


@contextmanager
def nothing_can_be_written():
    """No file may be longer than it is, which sqlite takes for a fault of the disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_status_writes_nothing_beside_a_node_whose_disk_takes_nothing(config, command):
    node = Database(config.data / QUEUE_FILE)
    with nothing_can_be_written():
        assert main(["--config", str(config.data.parent / "node.toml"), "status"]) == 0
    with node.transaction():  # nor does it wait for one that writes
        assert command("status") == (0, [])
    node.close()


def test_a_disk_that_takes_nothing_is_no_reason_to_move_the_queue_away(config, command):
    node = Database(config.data / QUEUE_FILE)
    with nothing_can_be_written():
        status, (line,) = command(*PULL)
    node.close()
    assert status == 2
    assert "(disk I/O error): its disk is full or faulty" in line
    assert "restore" not in line


def test_a_full_disk_is_said_in_one_line_by_commands_too(config, command, monkeypatch):
    connect = sqlite3.connect

    def full(*arguments, **choices):
        connection = connect(*arguments, **choices)
        connection.execute("PRAGMA max_page_count=1")  # as many as there are: sqlite calls that a full disk as well
        return connection

    monkeypatch.setattr(sqlite3, "connect", full)
    status, (line,) = command("pull", "--from", "archive", *(f"1.2.{n}" for n in range(999)))
    assert status == 2
    assert line == f"error: The queue {config.data / QUEUE_FILE} can't be used: the disk is full; free some."


def test_a_queue_that_is_held_by_another_process_is_said_to_be(config, command, monkeypatch):
    monkeypatch.setattr(database, "_BUSY_S", 0.05)
    node = Database(config.data / QUEUE_FILE)
    with node.transaction():
        status, (line,) = command(*PULL)
    node.close()
    assert status == 2
    assert "can't be used: another process held it for more than 0.05 s; try again" in line
    assert command(*PULL) == (0, [])


def test_a_queue_that_is_damaged_is_to_be_restored(config, command):
    (config.data / QUEUE_FILE).write_bytes(b"no database at all, but long enough to be taken for one" * 99)
    status, (line,) = command("status")
    assert (status, line.endswith("(file is not a database); restore it or move it away.")) == (2, True)


@pytest.mark.parametrize(
    ("error", "damaged"),
    [
        (sqlite3.DatabaseError("database disk image is malformed"), True),
        (sqlite3.ProgrammingError("Cannot operate on a closed database."), False),
    ],
)
def test_errors_without_a_code_are_told_apart_by_their_kind(tmp_path, error, damaged):
    with pytest.raises(InputError if damaged else sqlite3.ProgrammingError) as caught, queue_errors(tmp_path):
        raise error
    assert ("restore it or move it away" in str(caught.value)) == damaged


def test_a_defect_of_ours_is_no_reason_to_move_the_queue_away(config, command):
    node = Database(config.data / QUEUE_FILE)
    with node.transaction() as db:
        db.execute("ALTER TABLE pull RENAME COLUMN next_s TO other_s")
    node.close()
    status, (line,) = command(*PULL)
    assert status == 1
    assert line.startswith("error: internal error: OperationalError: ")
    assert "other_s" not in line
    assert "next_s" in line
    assert "move it away" not in line


def raising(error):
    @contextmanager
    def opener(settings):
        raise error
        yield

    return opener


def test_want_of_memory_while_the_networks_are_loaded_has_its_own_status(config, command):
    status, lines = command("run", opener=raising(MemoryError()))
    assert (status, lines[-1]) == (4, "error: out of memory; close other programs or allow more memory")
    assert "Traceback" not in "".join(lines)


def test_a_defect_is_said_in_one_line(config, command):
    status, lines = command("run", opener=raising(ZeroDivisionError("boom")))
    assert (status, lines) == (1, ["error: internal error: ZeroDivisionError: boom. Please report it."])


@pytest.mark.parametrize("name", [LOCK_FILE, "audit.jsonl"])
def test_a_file_of_the_data_folder_that_cant_be_opened_is_named(config, command, tmp_path, name):
    (config.data / name).unlink(missing_ok=True)
    (config.data / name).mkdir()
    status, (line,) = command("run", opener=opener_of(FakeProcessor(tmp_path / "notes")))
    assert status == 2
    assert f"The node can't start in its data folder {config.data}: [Errno 21] Is a directory" in line
    assert name in line


def test_files_in_a_folder_that_this_user_may_not_enter_are_named(tmp_path, command, monkeypatch):
    files = make_certificate(make_authority(tmp_path / "pki", "authority"), "node")
    config_of(tmp_path, 104, receive={"tls": files})
    is_file = Path.is_file

    def refused(path):
        if path == Path(files["key"]):
            raise PermissionError(13, "Permission denied")
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", refused)
    for name in ("check", "status", "run"):
        status, lines = command(name)
        assert status == 2
        assert lines[-1].strip() == (
            f"receive.tls.key: {files['key']} can't be looked at (Permission denied); let this user enter its folder"
        )


def test_check_says_of_a_data_folder_that_cant_be_entered_that_nothing_can_be_written(tmp_path, monkeypatch, capsys):
    config_of(tmp_path, 104)
    exists = Path.exists

    def refused(path, **choices):
        if path.name == "data":
            raise PermissionError(13, "Permission denied")
        return exists(path, **choices)

    monkeypatch.setattr(Path, "exists", refused)
    monkeypatch.setattr("runtime.node.check.os.access", lambda path, mode: path != tmp_path)
    main(["--config", str(tmp_path / "node.toml"), "check"])
    assert f"FAILED  node.data: nothing can be written to {tmp_path}" in capsys.readouterr().out
