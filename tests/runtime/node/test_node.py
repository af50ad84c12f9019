"""A whole node, with a sender and an archive in this process: what comes in, what goes out, and how often."""

from __future__ import annotations

import errno
import time

import pytest
from pydicom import dcmread

from runtime.errors import InputError
from runtime.node.audit import Audit
from runtime.node.peer_errors import PeerError
from tests.runtime.node.fake_processor import FakeProcessor
from tests.runtime.node.nodes import config_of, running_node
from tests.runtime.node.peers import Archive, running, send, wait_until
from tests.runtime.node.studies import capture, make_study


@pytest.fixture
def archive():
    with running(Archive()) as archive:
        yield archive


@pytest.fixture
def processor(tmp_path):
    return FakeProcessor(tmp_path / "notes")


def known(archive, folder, **choices):
    """A study of which the archive says how many images it has, so that no pause in sending is taken for the end."""
    study = make_study(folder, **choices)
    archive.counts[study.series_uid] = archive.counts.get(study.series_uid, 0) + len(study.files)
    return study


def counting(tmp_path, archive, **changes):
    """Settings of a node that asks the archive for counts."""
    return config_of(tmp_path, archive.port, **{"complete": {"ask": ["archive"]}, **changes})


def key_of(node, study):
    return node.queue.hasher.short(study.uid)


def state_of(node, study):
    found = node.queue.study(key_of(node, study))
    return None if found is None else found.state


def wait_for(node, study, state):
    wait_until(lambda: state_of(node, study) == state, what=f"the study to be {state}")


def nothing_happens(node, study):
    """The study's last state stays for longer than it takes to notice that it is idle."""
    before = node.queue.study(key_of(node, study))
    end_s = time.monotonic() + 2 * node.config.complete.idle_s + 0.5
    while time.monotonic() < end_s:
        assert node.queue.study(key_of(node, study)) == before
        time.sleep(0.05)


def test_a_study_that_comes_in_goes_out_as_results_once(tmp_path, archive, processor):
    study = known(archive, tmp_path / "study")
    with running_node(counting(tmp_path, archive), processor) as node:
        assert send(study.files, node.receiver.port) == [0] * 6
        wait_for(node, study, "delivered")
        assert processor.runs == [6]
        assert {result.StudyInstanceUID for result in archive.received} == {study.uid}
        assert len(archive.uids) == len(set(archive.uids)) == 2


def test_the_same_study_again_and_results_that_come_back_cause_nothing(tmp_path, archive, processor):
    study = known(archive, tmp_path / "study")
    with running_node(counting(tmp_path, archive), processor) as node:
        send(study.files, node.receiver.port)
        wait_for(node, study, "delivered")
        assert send(study.files, node.receiver.port) == [0] * 6
        assert send(archive.received, node.receiver.port) == [0, 0]
        nothing_happens(node, study)
    assert processor.runs == [6]
    assert len(archive.uids) == 2


def test_results_of_another_node_that_come_first_cause_no_run(tmp_path, archive, processor):
    study = known(archive, tmp_path / "study", slices=1)
    with running_node(counting(tmp_path, archive), processor) as node:
        foreign = capture(study.uid, "2.25.77", manufacturer="vertscan")
        assert send([foreign], node.receiver.port) == [0]
        assert state_of(node, study) is None


def test_a_capture_of_somebody_else_is_kept_but_causes_no_run_by_itself(tmp_path, archive, processor):
    study = known(archive, tmp_path / "study")
    with running_node(counting(tmp_path, archive), processor) as node:
        assert send([capture(study.uid, "2.25.78", manufacturer="Others")], node.receiver.port) == [0]
        wait_for(node, study, "ignored")
        send(study.files, node.receiver.port)
        wait_for(node, study, "delivered")
        assert processor.runs == [7]
        send([capture(study.uid, "2.25.79", manufacturer="Others")], node.receiver.port)
        nothing_happens(node, study)


def test_late_slices_cause_one_run_more(tmp_path, archive, processor):
    study = known(archive, tmp_path / "study", slices=5)
    with running_node(counting(tmp_path, archive), processor) as node:
        send(study.files, node.receiver.port)
        wait_for(node, study, "delivered")
        late = known(archive, tmp_path / "study", slices=3, first=5, study_uid=study.uid, series_uid=study.series_uid)
        send(late.files, node.receiver.port)
        wait_until(lambda: len(processor.runs) == 2)
        wait_for(node, study, "delivered")
        nothing_happens(node, study)
    assert processor.runs == [5, 8]
    assert len(set(archive.uids)) == 4


def test_slices_that_come_during_the_analysis_withdraw_its_results(tmp_path, archive, processor):
    study = known(archive, tmp_path / "study", slices=5)
    (processor.notes / "hold").touch()
    with running_node(counting(tmp_path, archive), processor) as node:
        send(study.files, node.receiver.port)
        wait_until((processor.notes / "held").exists)
        late = known(archive, tmp_path / "study", slices=1, first=5, study_uid=study.uid, series_uid=study.series_uid)
        send(late.files, node.receiver.port)
        (processor.notes / "hold").unlink()
        wait_for(node, study, "delivered")
    assert processor.runs == [5, 6]
    assert len(archive.uids) == 2


def test_it_waits_for_the_count_that_the_archive_has(tmp_path, archive, processor):
    study = known(archive, tmp_path / "study", slices=6)
    with running_node(counting(tmp_path, archive), processor) as node:
        send(study.files[:4], node.receiver.port)
        wait_until(lambda: archive.finds >= 3, what="three counts")
        assert state_of(node, study) == "received"
        assert "4 of 6" in node.queue.study(key_of(node, study)).reason
        send(study.files[4:], node.receiver.port)
        wait_for(node, study, "delivered")
    assert processor.runs == [6]


def test_it_waits_while_nobody_can_say_the_count_and_then_gives_up(tmp_path, archive, processor):
    study = known(archive, tmp_path / "study")
    archive.stop()
    config = config_of(tmp_path, archive.port, complete={"ask": ["archive"], "give_up_s": 2})
    with running_node(config, processor) as node:
        send(study.files, node.receiver.port)
        wait_for(node, study, "dead")
        assert "can't be checked" in node.queue.study(key_of(node, study)).reason
        archive.start()
        assert node.queue.retry(key_of(node, study)) == "received"
        wait_for(node, study, "delivered")
    assert processor.runs == [6]


def test_it_runs_on_idle_time_where_no_archive_knows_the_study(tmp_path, archive, processor):
    study = make_study(tmp_path / "study")
    with running_node(config_of(tmp_path, archive.port, complete={"ask": ["archive"]}), processor) as node:
        send(study.files, node.receiver.port)
        wait_for(node, study, "delivered")
    assert archive.finds >= 1


def test_images_that_cant_be_analysed_are_given_up_at_once(tmp_path, archive, processor):
    study = known(archive, tmp_path / "study")
    processor.error = InputError(f"slice of {study.series_uid} is missing")
    with running_node(counting(tmp_path, archive), processor) as node:
        send(study.files, node.receiver.port)
        wait_for(node, study, "dead")
        reason = node.queue.study(key_of(node, study)).reason
        assert "is missing" in reason
        assert study.series_uid not in reason
    assert processor.runs == [6]


def test_after_a_start_the_patients_of_studies_that_wait_are_left_out_of_reasons_and_logs(
    tmp_path, archive, processor, caplog
):
    study = known(archive, tmp_path / "study", slices=2)
    other = dcmread(study.files[1])
    other.PatientName = "Hollerbusch^Kunigunde"  # one image is of somebody else
    other.save_as(study.files[1])
    with running_node(config_of(tmp_path, archive.port, complete={"idle_s": 3600}), processor) as node:
        assert send(study.files, node.receiver.port) == [0, 0]
    names = [dcmread(path).PatientName for path in study.files]
    processor.error = InputError(f"the names {names[0]} and {names[1]} differ")
    with running_node(counting(tmp_path, archive), processor) as node:
        wait_for(node, study, "dead")
        assert node.queue.study(key_of(node, study)).reason == "the names [withheld] and [withheld] differ"
    with running_node(counting(tmp_path, archive), processor) as node:
        runs = len(processor.runs)
        node.queue.retry(key_of(node, study))
        wait_until(lambda: len(processor.runs) > runs)
        wait_for(node, study, "dead")
        assert node.queue.study(key_of(node, study)).reason == "the names [withheld] and [withheld] differ"
    assert not any(word in caplog.text for word in (*study.words, "Hollerbusch", "Kunigunde"))


@pytest.fixture
def cut_off(tmp_path, archive, processor, monkeypatch):
    """A node that was stopped in mid-analysis, its configuration, of one attempt, and the study."""
    monkeypatch.setattr("runtime.node.service._STOP_S", 0.2)
    study, config = known(archive, tmp_path / "study"), counting(tmp_path, archive, analyse={"attempts": 1})
    (processor.notes / "hold").touch()
    with running_node(config, processor) as node:
        send(study.files, node.receiver.port)
        wait_until((processor.notes / "held").exists)
    return node, config, study


def end_what_is_held(node, processor):
    """The thread of a stopped node ends as its process would, without results."""
    processor.error = PeerError("cut off")
    (processor.notes / "hold").unlink()
    assert node._worker_loop.stop(30)
    node._resources.close()


def test_an_ordinary_stop_is_no_attempt_of_the_study_that_it_cuts_off(cut_off, processor):
    node, config, study = cut_off
    put_back = node.queue.study(key_of(node, study))
    assert (put_back.state, put_back.attempts) == ("queued", 0)
    end_what_is_held(node, processor)
    processor.error = None
    with running_node(config, processor) as node:
        wait_for(node, study, "delivered")
    assert processor.runs == [6, 6]


@pytest.fixture
def all_run_for_long(monkeypatch):
    monkeypatch.setattr("runtime.node.queue.GIVEN_BACK_S", 0.0)


def test_an_ordinary_stop_of_what_ran_for_long_counts_so_that_what_hangs_is_given_up(
    all_run_for_long, cut_off, processor
):
    node, config, study = cut_off
    cut = node.queue.study(key_of(node, study))
    assert (cut.state, cut.attempts) == ("running", 1)
    assert "after long, which counts" in (config.data / "audit.jsonl").read_text()
    assert node.queue.recover(1) == ([], [cut.key])
    end_what_is_held(node, processor)


def test_a_disk_that_is_full_at_the_start_is_said_in_one_line(tmp_path, archive, processor, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Audit, "write", full)
    with pytest.raises(InputError, match="the disk is full"), running_node(counting(tmp_path, archive), processor):
        pass


def test_what_may_pass_is_tried_again_until_the_attempts_are_used_up(tmp_path, archive, processor):
    study = known(archive, tmp_path / "study")
    processor.error = PeerError("the GPU is busy")
    with running_node(counting(tmp_path, archive), processor) as node:
        send(study.files, node.receiver.port)
        wait_for(node, study, "dead")
        assert len(processor.runs) == node.config.analyse.attempts
        assert node.health()["last_error"] == "the GPU is busy"
        processor.error = None
        node.queue.retry(key_of(node, study))
        wait_for(node, study, "delivered")


def test_a_defect_of_the_analysis_stops_one_study_not_the_node(tmp_path, archive, processor):
    first, second = known(archive, tmp_path / "first"), known(archive, tmp_path / "second")
    processor.error = ZeroDivisionError("boom")
    with running_node(counting(tmp_path, archive), processor) as node:
        send(first.files, node.receiver.port)
        wait_for(node, first, "dead")
        processor.error = None
        send(second.files, node.receiver.port)
        wait_for(node, second, "delivered")
        assert node.health()["status"] == "ok"


def test_results_go_to_every_destination(tmp_path, archive, processor):
    study = known(archive, tmp_path / "study")
    config = counting(
        tmp_path,
        archive,
        deliver={"to": ["archive", "out"]},
        folder=[{"name": "out", "path": str(tmp_path / "out")}],
    )
    with running_node(config, processor) as node:
        send(study.files, node.receiver.port)
        wait_for(node, study, "delivered")
        assert sorted(p.name for p in (tmp_path / "out" / key_of(node, study)).iterdir()) == ["pdf.dcm", "sc.dcm"]
    assert len(archive.uids) == 2


def test_two_nodes_cant_share_a_data_folder(tmp_path, archive, processor):
    config = counting(tmp_path, archive)
    with (
        running_node(config, processor),
        pytest.raises(InputError, match="Another node uses"),
        running_node(config, processor),
    ):
        pass
