"""Every kernel is typed and translated for a GPU, without one: the simulator runs Python and would let much through."""

import importlib
import re
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.skipif(
    find_spec("numba_cuda") is None or find_spec("nvidia") is None, reason="needs numba-cuda[cu13]"
)
OLDEST = (7, 5)


def arguments():
    """The types of each kernel's arguments, as ``runtime.device`` calls it: C-contiguous arrays and numbers."""
    from numba import types

    def array(kind, dimensions, layout="C"):
        return types.Array(kind, dimensions, layout)

    f, d, i, short = types.float32, types.float64, types.int64, types.int16
    places = (array(d, 2), array(d, 1), array(d, 1))
    profiles = (array(f, 1),) * 3
    return {
        "lists.count_above": [(array(f, 1), f, i, array(i, 1))],
        "lists.list_above": [(array(f, 1), f, i, array(i, 1), array(i, 1), array(i, 1))],
        "lists.number": [(array(i, 1),)],
        "lists.sort_step": [(array(i, 1), i, i)],
        "lists.take": [(array(i, 1),) * 3],
        "sampling.average": [(array(kind, 3), array(i, 2), array(f, 2), array(f, 3)) for kind in (short, f)],
        "sampling.sample": [
            (array(kind, 3, layout), *places, f, array(f, 3)) for kind in (short, f) for layout in ("C", "A")
        ],
        "voting.find_roots": [(array(i, 1),) * 3],
        "voting.gather": [(array(f, 3), array(f, 3), array(i, 2), d, i, array(d, 2), array(d, 1), array(d, 1))],
        "voting.join_plateaus": [(array(f, 3), array(i, 1), array(i, 1))],
        "voting.mark_peaks": [(array(f, 3), array(i, 1), d, i, array(f, 1))],
        "voting.sum_votes": [(array(i, 1), array(f, 1), array(i, 1), array(f, 1))],
        "voting.vote_keys": [(array(f, 4), array(i, 1), array(i, 1))],
        "windows.add_weight": [(*profiles, i, i, i, array(f, 3))],
        "windows.add_window": [(array(f, 5), i, *profiles, i, i, i, array(f, 4))],
        "windows.divide_by_weight": [(array(f, 2), array(f, 1))],
        "windows.fill": [(array(kind, 1), kind) for kind in (f, i)],
        "windows.gather_windows": [(array(f, 3), array(i, 2), i, f, f, f, array(f, 5))],
        "windows.mark_not_finite": [(array(f, 1), array(i, 1), i)],
        "windows.mark_reaching": [(array(f, 3), array(i, 2), i, i, i, f, array(i, 1))],
    }


@pytest.fixture(scope="module", autouse=True)
def _gpu():
    """Functions that kernels call are compiled for the current GPU; let there be one for that."""
    from numba.cuda import dispatcher

    patch = pytest.MonkeyPatch()
    patch.setattr(dispatcher, "get_current_device", lambda: SimpleNamespace(compute_capability=OLDEST))
    yield
    patch.undo()


def kernels():
    found = {}
    for name in ("lists", "sampling", "voting", "windows"):
        module = importlib.import_module(f"runtime.device.kernels.{name}")
        for attribute, value in vars(module).items():
            if getattr(value, "py_func", None) and not attribute.startswith("_") and "product" not in attribute:
                found[f"{name}.{attribute}"] = value
    return found


def test_no_kernel_is_left_out():
    assert sorted(kernels()) == sorted(arguments())


@pytest.mark.parametrize("name", sorted(arguments()) if find_spec("numba") else [])
def test_a_kernel_compiles_and_rounds_products_as_a_processor_does(name):
    from numba import cuda, void

    for types in arguments()[name]:
        ptx, _ = cuda.compile(kernels()[name].py_func, void(*types), cc=OLDEST, device=False, abi="numba", output="ptx")
        assert ".visible .entry" in ptx
        # A joined product and sum rounds once; a bare mul is one that the assembler may still join to a sum.
        assert re.findall(r"\bfma\.\S+|\bmul\.f(?:32|64)", ptx) == []


def test_the_check_of_products_sees_what_it_looks_for():
    from numba import cuda, float32, types, void

    def joined(values, factor):
        i = cuda.grid(1)
        values[i] = values[i] * factor + values[i]

    array = types.Array(float32, 1, "C")
    ptx, _ = cuda.compile(joined, void(array, float32), cc=OLDEST, device=False, abi="numba", output="ptx")
    assert re.findall(r"\bfma\.\S+", ptx)
