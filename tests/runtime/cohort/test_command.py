"""The command line of a cohort, as far as it gets without a cluster."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

pytest.importorskip("ray", reason="needs the extra cluster")

from ray.exceptions import ActorDiedError

from runtime.cohort.__main__ import main
from runtime.cohort.options import build_parser
from runtime.cohort.ray_crew import Share, death_reason, plan


@pytest.fixture
def run(tmp_path, ball_bundle, ball_scan, save, capsys):
    save(ball_scan(1).volume, tmp_path / "a.nii.gz")
    (tmp_path / "scans.csv").write_text("scan\na.nii.gz\n")

    def run(*more):
        arguments = [tmp_path / "scans.csv", "-o", tmp_path / "out", "--bundle", ball_bundle, *more]
        status = main([*map(str, arguments)])
        return status, *capsys.readouterr()

    return run


def test_a_cluster_that_is_not_there_is_one_line(run, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    status, out, err = run("--address", f"127.0.0.1:{port}")
    assert (status, out) == (2, "")
    assert err.startswith(f"error: Nothing answers at 127.0.0.1:{port} (")
    assert err.count("\n") == 1
    assert not list((tmp_path / "out").glob("*.parquet"))


@pytest.mark.parametrize("address", ["", "nowhere", "http://a:1", "ray://a", "a:99999", "a:b"])
def test_an_address_that_is_none_is_refused(run, address):
    status, _, err = run("--address", address)
    assert status == 2
    assert err == f"error: --address should be auto, HOST:PORT or ray://HOST:PORT; met {address or 'nothing'}.\n"


def test_a_bad_list_or_bundle_is_told_before_anything_is_made(run, tmp_path):
    assert run("--bundle", tmp_path / "none")[0] == 3
    (tmp_path / "scans.csv").write_text("scan\na.nii.gz\nb.nii.gz\n")
    status, _, err = run()
    assert status == 2
    assert err == f"error: {tmp_path / 'scans.csv'}: line 3: b.nii.gz: there is no such file or folder.\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "option",
    [["--retries", "-1"], ["--workers", "0"], ["--gpus-per-worker", "1.5"], ["--gpus-per-worker", "nan"],
     ["--gpus-per-worker", "-1"], ["--cpus-per-worker", "x"], ["--engine", "triton"]],
)  # fmt: skip
def test_options_out_of_range_are_wrong_usage(option, capsys):
    with pytest.raises(SystemExit) as caught:
        build_parser().parse_args(["x.csv", "-o", "out", *option])
    assert caught.value.code == 2
    assert f"argument {option[0]}" in capsys.readouterr().err


def cluster(monkeypatch, *nodes):
    """Nodes of (processors, GPUs); one of them is gone."""
    made = [{"Alive": True, "Resources": {"CPU": float(c)} | ({"GPU": float(g)} if g else {})} for c, g in nodes]
    monkeypatch.setattr("ray.nodes", lambda: [*made, {"Alive": False, "Resources": {}}])


@pytest.mark.parametrize(
    ("nodes", "asked", "workers", "share"),
    [
        ([(16, 0), (8, 0)], {}, 6, Share(4, 0.0)),
        ([(16, 0), (2, 0)], {}, 9, Share(2, 0.0)),
        ([(16, 0), (2, 0)], {"cpus": 8}, 2, Share(8, 0.0)),
        ([(16, 4), (64, 2), (32, 0)], {}, 6, Share(4, 1.0)),
        ([(8, 4)], {}, 4, Share(2, 1.0)),
        ([(8, 4)], {"gpus": 0.5}, 8, Share(1, 0.5)),
        ([(8, 4)], {"gpus": 0.1}, 8, Share(1, 0.1)),
        ([(8, 4)], {"gpus": 2.0}, 2, Share(4, 2.0)),
        ([(8, 4), (8, 0)], {"gpus": 0.0}, 4, Share(4, 0.0)),
        ([(16, 0)], {"workers": 3}, 3, Share(4, 0.0)),
        ([(4, 0)], {"workers": 99}, 1, Share(4, 0.0)),
    ],
)
def test_a_worker_for_each_gpu_or_share_of_processors(monkeypatch, nodes, asked, workers, share):
    cluster(monkeypatch, *nodes)
    planned = plan(**{"workers": None, "cpus": None, "gpus": None, **asked})
    assert (planned.workers, planned.share) == (workers, share)


def test_more_than_any_node_has_is_refused_with_what_there_is(monkeypatch):
    from runtime.errors import InputError

    cluster(monkeypatch, (4, 0), (8, 1))
    with pytest.raises(InputError, match=r"16 CPUs and 0 GPUs .* 4 CPUs and 0 GPUs; 8 CPUs and 1 GPUs"):
        plan(workers=None, cpus=16, gpus=0.0)


def test_what_ray_says_of_a_death_is_said_in_one_line():
    for error in (ActorDiedError(), RuntimeError("its node has died"), RuntimeError("a\nb\nkilled")):
        assert "\n" not in death_reason(error)
    assert death_reason(RuntimeError("The actor died because its node has died.")) == "the worker's node was lost"


@pytest.mark.parametrize("module", ["ray", "pyarrow"])
def test_without_the_extra_it_is_named(module, tmp_path):
    code = f"import sys; sys.modules[{module!r}] = None\nfrom runtime.cohort.__main__ import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "x.csv", "-o", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: this command needs the package {module}; install it with: pip install 'vertscan[cluster]'\n"
    )
