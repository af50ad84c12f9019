import logging
import os

import numpy as np
import openvino
import pytest

from runtime.engines import openvino_cache, openvino_cpu
from runtime.engines.openvino_cache import compiled_network, key_of
from tests.runtime.engine_conformance import images, reference, write_network

OPTIONS = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}


@pytest.fixture
def network(tmp_path):
    path = tmp_path / "tiny.onnx"
    write_network(path)
    return path


def opened(network, folder, read=openvino_cpu._read_onnx, **options):
    return compiled_network(openvino.Core(), network, {**OPTIONS, **options}, folder=folder, version="1", read=read)


def answer(compiled):
    request = compiled.create_infer_request()
    request.infer({0: images(1)})
    return np.array(request.get_output_tensor(0).data)


def not_read(_):
    raise AssertionError("the ONNX file should not be read again")


def test_the_second_time_the_network_comes_from_the_cache_and_says_the_same(network, tmp_path):
    first = answer(opened(network, tmp_path / "cache"))
    np.testing.assert_array_equal(answer(opened(network, tmp_path / "cache", not_read)), first)
    np.testing.assert_allclose(first, reference(images(1))[0], atol=1e-5)
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize("place", [0, 40, 0.5, -1], ids=["hash", "header", "middle", "end"])
@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_a_damaged_file_is_never_used(network, tmp_path, caplog, place, damage):
    good = answer(opened(network, tmp_path / "cache"))
    (blob,) = (tmp_path / "cache").iterdir()
    content = bytearray(blob.read_bytes())
    at = int(len(content) * place) if isinstance(place, float) else place % len(content)
    if damage == "flip":
        content[at] ^= 0x10
    else:
        del content[at:]
    blob.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(answer(opened(network, tmp_path / "cache")), good)
    assert "is damaged" in caplog.text
    np.testing.assert_array_equal(answer(opened(network, tmp_path / "cache", not_read)), good)


def test_what_the_library_cannot_load_any_more_is_made_anew(network, tmp_path, caplog):
    good = answer(opened(network, tmp_path / "cache"))
    (blob,) = (tmp_path / "cache").iterdir()
    openvino_cache._write_checked(blob, b"of a library that is gone")
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(answer(opened(network, tmp_path / "cache")), good)
    assert "made anew" in caplog.text


def test_the_key_is_of_network_library_processor_and_options(network, tmp_path):
    keys = {key_of(network, version=v, processor=p, options=o) for v in "12" for p in "ab" for o in ({}, {"a": 1})}
    assert len(keys) == 8
    before = key_of(network, version="1", processor="a", options={})
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(network.read_bytes())
    assert key_of(copy, version="1", processor="a", options={}) == before
    network.write_bytes(network.read_bytes() + b"\0")
    assert key_of(network, version="1", processor="a", options={}) != before


def test_a_full_disk_costs_the_cache_alone(network, tmp_path, caplog, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with caplog.at_level(logging.WARNING):
        answer(opened(network, tmp_path / "cache"))
    assert "not cached" in caplog.text
    assert list((tmp_path / "cache").iterdir()) == []
