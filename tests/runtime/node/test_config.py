"""Every wrong field of a configuration is named on a line of its own."""

from __future__ import annotations

import pytest

from runtime.errors import InputError
from runtime.node.config import DicomPeer, load_config
from tests.runtime.node.nodes import ROOT, config_of, settings, write_toml


def lines_of(tmp_path, text):
    path = tmp_path / "node.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_config(path)
    return str(caught.value).splitlines()


def test_the_example_is_a_valid_configuration():
    config = load_config(ROOT / "deploy" / "node.toml")
    assert config.receive.bind == "127.0.0.1"
    assert config.deliver.to


def test_what_is_not_given_has_a_default_and_relative_paths_begin_at_the_file(tmp_path):
    config = config_of(tmp_path, 104, node={"data": "there"})
    assert config.data == tmp_path / "there"
    assert config.receive.bind == "127.0.0.1"
    peer = config.peer("archive")
    assert isinstance(peer, DicomPeer)
    assert peer.commitment == "off"
    assert config.dicom_peers(config.receive.accept)[1] == peer


WRONG = {
    "node.data": ("node", {"data": 3}, "must be a path"),
    "node.ae_title": ("node", {"ae_title": "X" * 17}, "16 printable ASCII"),
    "node.colour": ("node", {"colour": "red"}, "no setting"),
    "receive.port": ("receive", {"port": 70000}, "from 0 to 65535; met 70000"),
    "receive.accept": ("receive", {"accept": ["ghost"]}, "no peer 'ghost'"),
    "complete.idle_s": ("complete", {"idle_s": True}, "must be a number"),
    "complete.ask": ("complete", {"ask": ["out"]}, "'out' is not a [[dicom]] or [[web]] peer"),
    "analyse.outputs": ("analyse", {"outputs": ["seg", "png"]}, "met 'png'"),
    "analyse.exhaustive": ("analyse", {"exhaustive": 1}, "must be true or false"),
    "analyse.engine": ("analyse", {"engine": "abacus"}, "must be one of auto"),
    "analyse.bundle": ("analyse", {"bundle": "~no-such-user/bundle"}, "says nothing here"),
    "analyse.attempts": ("analyse", {"attempts": 0}, "from 1 to 100; met 0"),
    "deliver.to": ("deliver", {"to": []}, "is empty"),
    "storage.fsync": ("storage", {"fsync": "yes"}, "true or false; met 'yes'"),
    "dicom[2].port": ("dicom", [{"name": "b", "ae_title": "B", "host": "h"}], "is missing"),
    "dicom[2].tls.ca": (
        "dicom",
        [{"name": "b", "ae_title": "B", "host": "h", "port": 1, "tls": {"certificate": "no", "key": "no", "ca": "no"}}],
        "there is no file",
    ),
    "web[0].url": ("web", [{"name": "w", "url": "ftp://x"}], "must begin with http"),
    "web[0].user": ("web", [{"name": "w", "url": "http://x", "user": "me"}], "password_file go together"),
    "sender": ("dicom", [{"name": "sender", "ae_title": "B", "host": "h", "port": 1}], "two peers"),
}


@pytest.mark.parametrize("field", WRONG)
def test_a_wrong_field_is_named_with_what_was_met(tmp_path, field):
    table, fields, said = WRONG[field]
    values = settings(tmp_path, 104, folder=[{"name": "out", "path": "out"}])
    values[table] = [*values.get(table, []), *fields] if isinstance(fields, list) else {**values[table], **fields}
    with pytest.raises(InputError) as caught:
        load_config(write_toml(tmp_path / "node.toml", values))
    wrong = [line.strip() for line in str(caught.value).splitlines()[1:]]
    assert any(line.startswith(f"{field}: ") and said in line for line in wrong), wrong


def test_all_wrong_fields_are_named_at_once(tmp_path):
    assert len(lines_of(tmp_path, '[receive]\nport = "x"\n[complete]\nidle_s = "y"\n[other]\n')) == 1 + 6


def test_a_file_that_is_no_toml_is_refused(tmp_path):
    assert "no TOML file" in lines_of(tmp_path, "= 3")[0]
    with pytest.raises(InputError, match="can't be read"):
        load_config(tmp_path / "none.toml")


def urls_said(tmp_path, url):
    values = settings(tmp_path, 104, web=[{"name": "w", "url": url}])
    try:
        load_config(write_toml(tmp_path / "node.toml", values))
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    "url",
    ["http://", "https:///dicom-web", "http://:8042/x", "http://host:port/x", "http://host:99999", "http://[::1/x",
     "http://host:0", "http://a host/x", "http://host/x?y=1", "http://host/x#y", "http://me:Geheimnis@host/x"],
)  # fmt: skip
def test_a_malformed_url_is_named_without_what_may_be_a_password(tmp_path, url):
    said = urls_said(tmp_path, url)
    assert "web[0].url: " in said
    assert "https://pacs.example" in said
    assert "Geheimnis" not in said


@pytest.mark.parametrize(
    "url", ["http://a", "https://a.b-c.example:8043/dicom-web/", "http://[::1]:8042/x", "http://10.0.0.7/"]
)
def test_a_good_url_is_one_that_a_client_can_be_made_of(tmp_path, url):
    client = pytest.importorskip("dicomweb_client.api", reason="the extra 'node' is not installed").DICOMwebClient
    assert urls_said(tmp_path, url) == ""
    client(url)
