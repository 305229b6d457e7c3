"""Runs small enough for tests: seconds, the whole way from the command line to the encoders."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from decur.cli import main

TINY = [
    "--config=demo",
    "--data.samples=48",
    "--data.size=32",
    "--projector.width=32",
    "--views.size=24",
    "--loader.batch_size=16",
    "--loader.workers=0",
    "--monitor.samples=24",
    "--monitor.every_epochs=2",  # a third of such a run
    "--trainer.max_epochs=2",
]


@pytest.fixture
def tiny_arguments():
    """What makes a run of the demo take a second."""
    return TINY


@pytest.fixture
def tiny(tmp_path):
    """Run `decur pretrain` in this process on a tiny data set; returns the run's folder."""

    def run(*arguments: str, name: str = "run") -> Path:
        folder = tmp_path / name
        main(["pretrain", *TINY, f"--run={folder}", *arguments])
        return folder

    return run


@pytest.fixture(scope="session")
def kept():
    """Folders of runs that several tests begin with."""
    return {}


@pytest.fixture
def ready(tiny, kept, tmp_path, tmp_path_factory):
    """The folder of a tiny run, made by the first test that wants it; each test gets a copy."""

    def get(*arguments: str, name: str = "run") -> Path:
        if arguments not in kept:
            made = tmp_path_factory.mktemp("kept") / "run"
            kept[arguments] = shutil.move(tiny(*arguments, name="first"), made)
        return Path(shutil.copytree(kept[arguments], tmp_path / name))

    return get


@pytest.fixture
def tiny_process(tmp_path):
    """Start `decur pretrain` on a tiny data set in a process of its own."""

    def start(*arguments: str, name: str = "run") -> tuple[subprocess.Popen[str], Path]:
        folder = tmp_path / name
        command = [sys.executable, "-m", "decur.cli", "pretrain", *TINY, f"--run={folder}"]
        process = subprocess.Popen(
            [*command, *arguments],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        return process, folder

    return start


@pytest.fixture
def refused(capsys):
    """Run a command that must be refused: exit code and the one line that says why."""

    def run(*arguments: str, code: int = 2) -> str:
        with pytest.raises(SystemExit) as stopped:
            main(list(arguments))
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        assert stopped.value.code == code
        assert len(lines) == 1
        return lines[0]

    return run
