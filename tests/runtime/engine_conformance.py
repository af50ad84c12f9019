"""What every engine must do, whatever it runs on: one suite, for the engines that are here and for fakes of the others.

A test module makes it its own by a subclass whose name starts with ``Test`` and which defines the fixture ``choice``.
"""

import contextlib
import os
import threading

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime.engines import open_session
from runtime.engines.base import release_memory
from runtime.engines.cuda_probe import gpu_name
from runtime.errors import EngineError

TOLERANCE = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 0.05, "int8": 0.1}
CHANNELS, SIZE = 3, 8


def weights(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "w": rng.normal(0, 0.3, (CHANNELS, 1, 3, 3, 3)).astype(np.float32),
        "b": rng.normal(0, 0.3, CHANNELS).astype(np.float32),
        "scale": rng.uniform(0.5, 1.5, CHANNELS).astype(np.float32),
        "shift": rng.normal(0, 0.3, CHANNELS).astype(np.float32),
        "head": rng.normal(0, 1, (1, CHANNELS, 1, 1, 1)).astype(np.float32),
    }


def write_network(path):
    """A convolution, an instance normalisation, and two outputs: a sigmoid and what it was made from."""
    nodes = [
        helper.make_node("Conv", ["image", "w", "b"], ["c"], pads=[1] * 6),
        helper.make_node("InstanceNormalization", ["c", "scale", "shift"], ["offsets"], epsilon=1e-5),
        helper.make_node("Conv", ["offsets", "head"], ["h"]),
        helper.make_node("Sigmoid", ["h"], ["heatmap"]),
    ]
    space = [SIZE] * 3
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, *space])],
        [
            helper.make_tensor_value_info("heatmap", TensorProto.FLOAT, ["n", 1, *space]),
            helper.make_tensor_value_info("offsets", TensorProto.FLOAT, ["n", CHANNELS, *space]),
        ],
        [numpy_helper.from_array(value, name) for name, value in weights().items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def reference(image):
    """The same network in NumPy, float64."""
    w = {name: value.astype(np.float64) for name, value in weights().items()}
    padded = np.pad(image.astype(np.float64), [(0, 0), (0, 0), (1, 1), (1, 1), (1, 1)])
    patches = np.lib.stride_tricks.sliding_window_view(padded[:, 0], (3, 3, 3), axis=(1, 2, 3))
    conv = np.einsum("nzyxabc,kabc->nkzyx", patches, w["w"][:, 0]) + w["b"][:, None, None, None]
    mean, var = conv.mean((2, 3, 4), keepdims=True), conv.var((2, 3, 4), keepdims=True)
    normed = (conv - mean) / np.sqrt(var + 1e-5) * w["scale"][:, None, None, None] + w["shift"][:, None, None, None]
    head = np.einsum("nkzyx,k->nzyx", normed, w["head"][0, :, 0, 0, 0])[:, None]
    return 1 / (1 + np.exp(-head)), normed


def images(n, seed=1):
    return np.random.default_rng(seed).uniform(-1, 1, (n, 1, SIZE, SIZE, SIZE)).astype(np.float32)


def redirect_caches(monkeypatch, folder):
    """Let the user's cache lie in ``folder``."""
    for variable in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.setenv(variable, str(folder / "cache"))


def bound_threads():
    """The threads of this process that may run on fewer cores than its first."""
    bound = set()
    for thread in map(int, os.listdir("/proc/self/task")):
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            if os.sched_getaffinity(thread) < os.sched_getaffinity(os.getpid()):
                bound.add(thread)
    return bound


class Conformance:
    """The suite; see the module."""

    @pytest.fixture(autouse=True)
    def _cache(self, monkeypatch, tmp_path):
        """What engines cache goes to the test's own folder."""
        redirect_caches(monkeypatch, tmp_path)

    @pytest.fixture
    def network(self, tmp_path):
        path = tmp_path / "tiny.onnx"
        write_network(path)
        return path

    @pytest.fixture
    def choice(self):
        raise NotImplementedError("a subclass says which engine is tested")

    @pytest.fixture
    def session(self, choice, network):
        with open_session(choice, network, threads=1) as opened:
            yield opened

    def test_outputs_are_those_of_the_network(self, session):
        image = images(2)
        outputs = session(image)
        assert session.output_names == ("heatmap", "offsets")
        for output, expected in zip(outputs, reference(image), strict=True):
            assert output.dtype == np.float32
            assert output.shape == expected.shape
            np.testing.assert_allclose(output, expected, atol=TOLERANCE[session.info.precision])

    def test_the_precision_is_told_truly(self, session, choice):
        assert session.info.name == choice.name
        assert session.info.precision == choice.precision
        error = max(np.abs(o - r).max() for o, r in zip(session(images(4)), reference(images(4)), strict=True))
        # Fewer bits round coarser: a result more exact than they allow would betray that they weren't used.
        bounds = {"fp32": (0.0, 1e-5), "fp16": (1e-4, 5e-3), "bf16": (1e-3, 0.05), "int8": (5e-3, 0.1)}
        least, most = bounds[session.info.precision]
        assert least <= error < most

    def test_info_says_what_runs_where_and_why(self, session, choice):
        assert session.info.version
        assert session.info.device == "CPU" or gpu_name(0)
        assert session.info.reason == choice.reason != ""

    def test_a_batch_equals_singles(self, session):
        image = images(5)
        together = session(image)
        for i in range(5):
            for whole, single in zip(together, session(image[i : i + 1].copy()), strict=True):
                np.testing.assert_allclose(whole[i : i + 1], single, atol=TOLERANCE[session.info.precision] / 10)

    def test_running_again_gives_the_same_bits_and_leaves_earlier_results_alone(self, session):
        image, other = images(2), images(2, seed=9)
        before = image.copy()
        first = session(image)
        kept = [output.copy() for output in first]
        session(other)
        for output, copy, again in zip(first, kept, session(image), strict=True):
            np.testing.assert_array_equal(output, copy)
            np.testing.assert_array_equal(output, again)
            assert output.flags.writeable
        np.testing.assert_array_equal(image, before)

    def test_a_session_that_gave_back_its_memory_gives_the_same_bits(self, session):
        image = images(2)
        release_memory(session)  # also before it ever ran
        before = session(image)
        kept = [output.copy() for output in before]
        release_memory(session)
        release_memory(session)
        for output, copy, after in zip(before, kept, session(image), strict=True):
            np.testing.assert_array_equal(output, copy)
            np.testing.assert_array_equal(after, copy)

    def test_a_closed_session_may_be_told_to_give_back_memory(self, choice, network):
        session = open_session(choice, network)
        session.close()
        release_memory(session)
        with pytest.raises(EngineError, match="closed"):
            session(images(1))

    @pytest.mark.parametrize(
        "image",
        [
            np.zeros((1, 1, SIZE, SIZE, SIZE + 1), np.float32),
            np.zeros((1, 2, SIZE, SIZE, SIZE), np.float32),
            np.zeros((1, SIZE, SIZE, SIZE), np.float32),
            np.zeros((0, 1, SIZE, SIZE, SIZE), np.float32),
            np.zeros((1, 1, SIZE, SIZE, SIZE), np.float64),
            np.zeros((1, 1, SIZE, SIZE, 2 * SIZE), np.float32)[..., ::2],
        ],
        ids=["size", "channels", "axes", "empty", "dtype", "layout"],
    )
    def test_another_input_is_refused(self, session, image):
        with pytest.raises(EngineError, match=r"tiny\.onnx takes"):
            session(image)

    def test_nan_comes_through(self, session):
        image = images(2)
        image[1, 0, 4, 4, 4] = np.nan
        heatmap, offsets = session(image)
        assert np.isnan(heatmap[1]).any()
        assert np.isnan(offsets[1]).any()
        assert np.isfinite(heatmap[0]).all()

    def test_closing_twice_is_fine_and_a_closed_session_says_so(self, choice, network):
        session = open_session(choice, network)
        session.close()
        session.close()
        with pytest.raises(EngineError, match="closed"):
            session(images(1))

    @pytest.mark.parametrize("content", [b"", b"not a network", b"\x08\x09" * 50], ids=["empty", "text", "bytes"])
    def test_a_damaged_network_is_an_engine_error(self, choice, tmp_path, content, capfd):
        path = tmp_path / "damaged.onnx"
        path.write_bytes(content)
        with pytest.raises(EngineError, match=r"damaged\.onnx"):
            open_session(choice, path)
        assert capfd.readouterr() == ("", "")

    def test_a_truncated_network_is_an_engine_error(self, choice, network, tmp_path, capfd):
        path = tmp_path / "cut.onnx"
        path.write_bytes(network.read_bytes()[:300])
        with pytest.raises(EngineError, match=r"cut\.onnx"):
            open_session(choice, path)
        assert capfd.readouterr() == ("", "")

    def test_a_missing_network_is_an_engine_error(self, choice, tmp_path):
        with pytest.raises(EngineError, match=r"no network at .*none\.onnx"):
            open_session(choice, tmp_path / "none.onnx")

    def test_opening_and_running_prints_nothing(self, choice, network, capfd):
        with open_session(choice, network) as session:
            session(images(1))
        assert capfd.readouterr() == ("", "")

    def test_the_order_of_windows_does_not_matter(self, session):
        image = images(4)
        order = [2, 0, 3, 1]
        for as_is, turned in zip(session(image), session(image[order]), strict=True):
            np.testing.assert_allclose(turned, as_is[order], atol=TOLERANCE[session.info.precision] / 10)

    def test_the_same_window_four_times_in_one_batch_gives_four_equal_results(self, session):
        image = images(1)
        single = session(image)
        for four, one in zip(session(np.repeat(image, 4, axis=0)), single, strict=True):
            for i in range(1, 4):
                np.testing.assert_array_equal(four[i], four[0])
            np.testing.assert_allclose(four[:1], one, atol=TOLERANCE[session.info.precision] / 10)

    def test_batches_of_every_size_run_in_any_order(self, session):
        whole = images(9)
        expected = reference(whole)
        for n in (3, 1, 9, 2, 7, 4, 5, 6, 8, 1, 3):
            for output, right in zip(session(whole[:n].copy()), expected, strict=True):
                np.testing.assert_allclose(output, right[:n], atol=TOLERANCE[session.info.precision])

    @pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not tell where threads may run")
    def test_no_thread_is_bound_to_a_core(self, choice, network):
        """Else two processes, such as two workers of a cohort, bind theirs to the same one and leave the other idle."""
        if len(os.sched_getaffinity(0)) == 1:
            pytest.skip("this process has one core")
        before, bound = bound_threads(), set()
        with open_session(choice, network, threads=1) as opened:
            runs = threading.Thread(target=lambda: [opened(images(8)) for _ in range(100)])
            runs.start()
            while runs.is_alive():
                bound |= bound_threads()
        assert bound <= before

    def test_two_threads_with_a_session_each_do_not_disturb_each_other(self, choice, network):
        with open_session(choice, network, threads=1) as one, open_session(choice, network, threads=1) as other:
            wrong = in_two_threads(
                lambda: repeatedly_right(one, images(2, seed=3)), lambda: repeatedly_right(other, images(3, seed=4))
            )
        assert wrong == []

    def test_two_threads_may_take_turns_with_one_session(self, session):
        turn = threading.Lock()

        def work(seed):
            for _ in range(5):
                with turn:
                    repeatedly_right(session, images(2, seed=seed), times=1)

        assert in_two_threads(lambda: work(5), lambda: work(6)) == []


def repeatedly_right(session, image, times=8):
    """Run an image again and again; an AssertionError when a result is wrong."""
    expected = reference(image)
    for _ in range(times):
        for output, right in zip(session(image), expected, strict=True):
            np.testing.assert_allclose(output, right, atol=TOLERANCE[session.info.precision])


def in_two_threads(*works):
    """Run them at the same time; the errors that they ended with."""
    errors = []

    def kept(work):
        try:
            work()
        except BaseException as error:  # noqa: BLE001  a thread's errors are lost otherwise
            errors.append(error)

    threads = [threading.Thread(target=kept, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors
