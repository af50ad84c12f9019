"""Who may speak to the node, and what it does with what it is sent."""

from __future__ import annotations

import socket

import pytest
from pydicom import dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import MRImageStorage, RLELossless, generate_uid
from pynetdicom import AE, AllStoragePresentationContexts, build_context
from pynetdicom._globals import ALL_TRANSFER_SYNTAXES

from runtime.errors import InputError
from runtime.node.audit import broken_lines
from runtime.node.config import DicomPeer, Tls
from runtime.node.receiver import address_of, networks_of
from runtime.node.tls import client_context
from tests.runtime.node.certificates import make_authority, make_certificate
from tests.runtime.node.fake_processor import FakeProcessor
from tests.runtime.node.nodes import config_of, running_node
from tests.runtime.node.peers import NODE, SENDER, echo, free_port, send, wait_until
from tests.runtime.node.studies import ct_slice, make_study

SLOW = {"idle_s": 3600}


@pytest.fixture
def start(tmp_path):
    """Start a node that only receives."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def start(**changes):
            config = config_of(tmp_path, free_port(), **{"complete": SLOW, **changes})
            return stack.enter_context(running_node(config, FakeProcessor(tmp_path / "notes")))

        yield start


def test_listed_callers_are_answered_and_others_rejected(start):
    node = start()
    assert echo(node.receiver.port)
    assert not echo(node.receiver.port, calling="STRANGER")
    assert not echo(node.receiver.port, called="WRONG")


def test_a_known_title_from_anothers_address_is_refused(start):
    node = start(dicom=[{"name": "far", "ae_title": "FAR", "host": "10.9.8.7", "port": 1}],
                 receive={"accept": ["sender", "far"]})  # fmt: skip
    assert echo(node.receiver.port)
    assert not echo(node.receiver.port, calling="FAR")


def test_connections_from_addresses_of_nobody_are_closed(start):
    node = start(dicom=[{"name": "far", "ae_title": "FAR", "host": "127.0.0.1", "port": 1, "senders": ["10.9.0.0/16"]}],
                 receive={"accept": ["far"]})  # fmt: skip
    with socket.create_connection(("127.0.0.1", node.receiver.port), timeout=10) as connection:
        assert connection.recv(1) == b""


def test_ipv4_callers_are_known_where_it_listens_on_all_ipv6_addresses(start):
    far = {"name": "far", "ae_title": "FAR", "host": "10.9.8.7", "port": 1}
    try:
        node = start(dicom=[far], receive={"accept": ["sender", "far"], "bind": "::"})
    except InputError as error:
        pytest.skip(f"this machine has no IPv6: {error}")
    assert echo(node.receiver.port)
    assert not echo(node.receiver.port, calling="FAR")


@pytest.mark.parametrize(
    ("caller", "address"),
    [
        ("10.0.0.7", "10.0.0.7"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("fe80::1%eth0", "fe80::1"),
        ("2001:db8::7", "2001:db8::7"),
    ],
)
def test_a_callers_address_is_its_own_whichever_way_it_came(caller, address):
    assert str(address_of(caller)) == address


@pytest.mark.parametrize(
    ("sender", "inside", "outside"),
    [
        ("::ffff:10.0.0.7", "10.0.0.7", "10.0.0.8"),
        ("::ffff:10.0.0.0/104", "10.255.0.7", "11.0.0.7"),
        ("10.0.0.0/8", "10.255.0.7", "11.0.0.7"),
        ("2001:db8::/64", "2001:db8::7", "2001:db9::7"),
        ("::/0", "2001:db8::7", "10.0.0.7"),
    ],
)
def test_a_sender_is_known_whichever_way_its_address_is_written(sender, inside, outside):
    for senders, host in (((sender,), "10.1.1.1"), ((), sender)):
        if not senders and "/" in sender:
            continue
        (networks,) = networks_of([DicomPeer("far", "FAR", host, 1, senders, "move", "off", None, 30.0)]).values()
        for way in ("{}", "::ffff:{}") if "." in inside else ("{}",):
            assert any(address_of(way.format(inside)) in network for network in networks)
        assert not any(address_of(outside) in network for network in networks)


def test_it_listens_on_the_loopback_interface_unless_told_otherwise(start):
    node = start()
    assert node.receiver._server.server_address[0] == "127.0.0.1"


def test_every_storage_class_is_accepted_in_every_transfer_syntax(start):
    node = start()
    classes = [context.abstract_syntax for context in AllStoragePresentationContexts]
    for syntaxes in (ALL_TRANSFER_SYNTAXES[:20], ALL_TRANSFER_SYNTAXES[20:]):
        contexts = [build_context(classes[0], syntax) for syntax in syntaxes]
        contexts += [build_context(uid, syntaxes[0]) for uid in classes[1:100]]
        association = AE(ae_title=SENDER).associate("127.0.0.1", node.receiver.port, ae_title=NODE, contexts=contexts)
        assert association.is_established
        assert len(association.accepted_contexts) == len(contexts)
        association.release()


def test_an_image_is_kept_byte_for_byte_under_names_that_say_nothing(start, tmp_path):
    node = start()
    study = make_study(tmp_path / "study", slices=2)
    send(study.files, node.receiver.port)
    kept = node.store.files(node.queue.hasher.short(study.uid))
    assert [dcmread(path).PixelData for path in kept] == [
        dcmread(path).PixelData for path in sorted(study.files, key=lambda p: dcmread(p).SOPInstanceUID)
    ]
    names = "".join(str(path) for path in (node.config.data / "images").rglob("*"))
    assert not any(word in names for word in study.words)


def test_a_compressed_image_is_kept_as_it_was_sent(start):
    node = start()
    image = ct_slice("2.25.1", "2.25.2", 0)
    image.compress(RLELossless, generate_instance_uid=False)
    assert send([image], node.receiver.port) == [0]
    kept = dcmread(node.store.files(node.queue.hasher.short("2.25.1"))[0])
    assert kept.file_meta.TransferSyntaxUID == RLELossless
    assert kept.PixelData == image.PixelData


def test_what_is_of_no_use_is_taken_and_not_kept(start):
    node = start(complete={"idle_s": 0.2})
    image = ct_slice("2.25.1", "2.25.2", 0)
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = MRImageStorage
    assert send([image], node.receiver.port) == [0]
    (study,) = wait_until(node.queue.studies)  # so that status names it
    assert node.store.files(study.key) == []
    wait_until(lambda: node.queue.study(study.key).state == "ignored")
    assert node.queue.study(study.key).reason == "no CT image"


def test_each_series_that_is_of_no_use_is_told_of_once(start, caplog):
    node = start()
    images = [ct_slice("2.25.1", f"2.25.{series}", z) for series in (2, 3) for z in range(3)]
    for image in images:
        image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = MRImageStorage
        image.Modality, image.SeriesNumber = "MR", int(image.SeriesInstanceUID[-1])
    with caplog.at_level("INFO", "runtime.node"):
        assert send(images, node.receiver.port) == [0] * 6
    said = [record.getMessage() for record in caplog.records if "Not read" in record.getMessage()]
    key = node.queue.hasher.short("2.25.1")
    assert said == [f"study {key}: Not read: series {n}: MR Image (MR) is no CT image" for n in (2, 3)]


def test_an_object_without_its_uids_is_refused(start):
    node = start()
    image = ct_slice("2.25.1", "2.25.2", 0)
    del image.SeriesInstanceUID
    assert send([image], node.receiver.port) == [0xC000]


def test_a_full_quota_refuses_for_lack_of_resources_and_says_so(start, tmp_path):
    node = start(storage={"quota_gib": 0.001})
    images = [ct_slice("2.25.1", "2.25.2", z, size=512) for z in range(3)]
    assert send(images, node.receiver.port) == [0, 0, 0xA700]
    assert node.health()["status"] == "degraded" or node.store.used_bytes() < 2**20


def test_the_audit_log_of_a_run_is_whole(start, tmp_path):
    node = start()
    send([ct_slice("2.25.1", "2.25.2", 0)], node.receiver.port)
    assert broken_lines(node.config.data / "audit.jsonl") == []


def test_with_tls_both_sides_show_certificates_and_plaintext_is_refused(start, tmp_path):
    authority, other = make_authority(tmp_path / "pki", "authority"), make_authority(tmp_path / "other", "other")
    ours, theirs = make_certificate(authority, "node"), make_certificate(authority, "sender")
    strange = {**make_certificate(other, "stranger"), "ca": str(authority)}
    node = start(receive={"tls": ours})

    def tls_of(fields):
        return client_context(Tls(**fields)), "127.0.0.1"

    with socket.create_connection(("127.0.0.1", node.receiver.port)):  # says nothing, and keeps nobody waiting
        assert echo(node.receiver.port, tls=tls_of(theirs))
    assert not echo(node.receiver.port)
    assert not echo(node.receiver.port, tls=tls_of(strange))
    assert send([ct_slice("2.25.1", generate_uid(), 0)], node.receiver.port, tls=tls_of(theirs)) == [0]


def test_a_name_for_a_file_is_taken_only_when_the_file_is_whole(start, tmp_path, monkeypatch):
    """While an image is written its final name isn't there."""
    import os

    node = start()
    seen = []
    replace = os.replace

    def watched(source, target):
        seen.append((source.exists(), target.exists(), source.suffix))
        replace(source, target)

    monkeypatch.setattr("runtime.node.store.os.replace", watched)
    send([ct_slice("2.25.1", "2.25.2", 0)], node.receiver.port)
    assert seen == [(True, False, ".part")]


def test_meta_information_is_written_by_the_node(start):
    node = start()
    send([ct_slice("2.25.1", "2.25.2", 0)], node.receiver.port)
    kept = dcmread(node.store.files(node.queue.hasher.short("2.25.1"))[0])
    assert isinstance(kept.file_meta, FileMetaDataset)
    assert kept.file_meta.MediaStorageSOPInstanceUID == kept.SOPInstanceUID
