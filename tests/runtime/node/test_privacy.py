"""Logs say nothing of patients; the audit log can't be changed unseen."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import InputError
from runtime.node.audit import Audit, broken_lines
from runtime.node.identity import KEY_FILE, Hasher, Redactor, open_hasher
from runtime.node.logs import RedactingFormatter, about_study

HASHER = Hasher(bytes(32))
UID = "1.2.826.0.1.3680043.8.498.12345"

uids = st.lists(st.integers(0, 10**9), min_size=5, max_size=12).map(lambda parts: "1." + ".".join(map(str, parts)))


@given(uids, st.sampled_from(["", " ", "(", "'", "/"]), st.sampled_from(["", " ", ".", ")", "'", "/", ","]))
def test_uids_are_left_out_wherever_they_stand(uid, before, after):
    text = f"series{before or ' '}{uid}{after} ends"
    if len(uid) >= 12:
        assert uid not in Redactor(HASHER)(text)
        assert HASHER.short(uid) in Redactor(HASHER)(text)


def test_addresses_and_versions_stay():
    text = "127.0.0.1:11112 answered 2025.2.0, 1.22.0 and 1.5 s"
    assert Redactor(HASHER)(text) == text


def test_values_that_were_told_are_left_out():
    redact = Redactor(HASHER)
    redact.remember(["Doe^Jane", "Jane", "", "x", " 4711 "])
    assert redact("Jane, Doe^Jane, x: 4711.") == "[withheld], [withheld], x: [withheld]."


def test_records_of_others_are_withheld_and_ours_redacted_with_their_traces():
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    redact = Redactor(HASHER)
    redact.remember(["Jane"])
    handler.setFormatter(RedactingFormatter(redact))
    try:
        raise ValueError(f"Jane {UID}")
    except ValueError:
        trace = sys.exc_info()
    for name in ("pydicom", "runtime.node.worker"):
        record = logging.LogRecord(name, logging.ERROR, "f", 1, "value %s of Jane", (UID,), trace)
        handler.handle(record)
    said = stream.getvalue()
    assert "pydicom: message withheld" in said
    assert said.count("[withheld]") == 3
    assert "Jane" not in said
    assert UID not in said
    assert "ValueError" in said


def test_what_is_logged_while_a_study_is_analysed_bears_its_key_once():
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(RedactingFormatter(Redactor(HASHER)))

    def log(name, text):
        handler.handle(logging.LogRecord(name, logging.INFO, "f", 1, text, (), None))

    with about_study("0123456789abcdef"):
        log("runtime.pipeline", "The slices are tilted.")
        log("pydicom", "a value")
        log("runtime.node.worker", "study 0123456789abcdef: 4 results")
    log("runtime.node", "afterwards")
    *about, after = stream.getvalue().splitlines()
    assert [line.count("study 0123456789abcdef") for line in about] == [1, 1, 1]
    assert "study" not in after


def test_a_hash_is_the_same_after_a_restart_and_another_elsewhere(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first = open_hasher(tmp_path / "a").short(UID)
    assert open_hasher(tmp_path / "a").short(UID) == first
    assert open_hasher(tmp_path / "b").short(UID) != first
    assert (tmp_path / "a" / KEY_FILE).stat().st_mode & 0o077 == 0
    (tmp_path / "a" / KEY_FILE).write_bytes(b"short")
    with pytest.raises(InputError, match="5 bytes"):
        open_hasher(tmp_path / "a")


def test_the_audit_log_goes_on_after_a_restart_and_shows_what_was_changed(tmp_path):
    path = tmp_path / "audit.jsonl"
    Audit(path).write("start")
    audit = Audit(path)
    audit.write("delivered", study="abc", peer="archive")
    audit.write("stop")
    assert broken_lines(path) == []
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == ["start", "delivered", "stop"]
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines).replace('"abc"', '"abd"'))
    assert broken_lines(path) == [2]
    path.write_text(lines[0] + lines[2])
    assert broken_lines(path) == [2]


def test_a_line_that_a_crash_cut_short_spoils_no_other(tmp_path):
    path = tmp_path / "audit.jsonl"
    Audit(path).write("start")
    with path.open("a") as stream:
        stream.write('{"at": "20')
    Audit(path).write("start")
    assert broken_lines(path) == [2]


@pytest.mark.parametrize("written", [0, 9, None], ids=["nothing", "a part", "all, not synced"])
@pytest.mark.parametrize("can_be_cut", [True, False])
def test_an_event_that_cant_be_written_breaks_no_chain(tmp_path, monkeypatch, written, can_be_cut):
    path = tmp_path / "audit.jsonl"
    audit = Audit(path)
    audit.write("start")
    before = path.read_bytes()
    write = os.write

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def some(descriptor, data):
        return write(descriptor, data[:written]) if data[:1] == b"{" else full()

    with monkeypatch.context() as patch:
        if written is None:
            patch.setattr(os, "fsync", full)
        else:
            patch.setattr(os, "write", some if written else full)
        if not can_be_cut:
            patch.setattr(os, "ftruncate", full)
        with pytest.raises(OSError, match="No space"):
            audit.write("lost", study="abc")
    if can_be_cut:
        assert path.read_bytes() == before
    audit.write("delivered", study="abc")
    audit.write("stop")
    whole = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    assert [entry["event"] for entry in whole][-2:] == ["delivered", "stop"]
    if can_be_cut or written == 0:
        assert broken_lines(path) == []
    else:  # the line that was cut short, or the one after one that was taken for lost
        assert len(broken_lines(path)) == 1
