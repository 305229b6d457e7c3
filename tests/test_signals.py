"""Signals end a command as they should, and where none can be taken nothing fails."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from decur.data.loader import reporting_lost_workers
from decur.errors import DataError, WorkerLostError
from decur.pretrain.state import TrainingState
from decur.runs import RunFolder, writing
from decur.signals import ignore_signals, interruptible, refuse_pipes, running_command

# A process that a shell starts in the background ignores Ctrl-C, and so do its own.
_COMMAND = """
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from decur.signals import interruptible, running_command
with running_command(), interruptible():
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:  # something that takes long to end
        os.kill(os.getpid(), signal.SIGINT)
    print("still there")
"""


def test_ctrl_c_twice_ends_at_once():
    done = subprocess.run([sys.executable, "-c", _COMMAND], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted\n")


def test_ctrl_c_once_is_an_interrupt():
    before = signal.default_int_handler
    outside = signal.signal(signal.SIGINT, before)
    with pytest.raises(KeyboardInterrupt), interruptible() as asked:
        os.kill(os.getpid(), signal.SIGINT)
    assert asked == [signal.SIGINT] and signal.signal(signal.SIGINT, outside) is before


# Python ignores what a destructor raises, and what is raised while it forks a reader.
_TOLD_IN_A_DESTRUCTOR = """
import os, signal, sys, tempfile, time
import decur.command_recipes
from decur.cli import main

class Busy:
    def __del__(self):
        os.kill(os.getpid(), signal.Signals[sys.argv[1]])

def command(arguments):
    print(tempfile.mkdtemp(), flush=True)
    Busy()
    time.sleep(20)

decur.command_recipes.main = command
main(["recipes"])
"""


def _listening():
    """Take back what a shell, or nohup, lets the tests ignore."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="signals of Unix")
@pytest.mark.parametrize(
    ("name", "told"),
    [("SIGTERM", "stopped by SIGTERM"), ("SIGHUP", "stopped by SIGHUP"), ("SIGINT", "interrupted")],
)
def test_a_command_that_is_told_to_stop_tidies_up_and_says_so_once(name, told):
    done = subprocess.run(
        [sys.executable, "-c", _TOLD_IN_A_DESTRUCTOR, name],
        capture_output=True,
        text=True,
        preexec_fn=_listening,
        timeout=15,
    )
    assert (done.returncode, done.stderr) == (128 + signal.Signals[name], f"error: {told}\n")
    assert done.stdout and not Path(done.stdout.strip()).exists()


def test_the_same_order_from_two_sides_is_one():
    before = signal.getsignal(signal.SIGTERM)
    with interruptible() as asked:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            os.kill(os.getpid(), signal.SIGTERM)  # as `timeout` does
    assert asked == [signal.SIGTERM] and signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("ignored", [False, True])
def test_a_lost_terminal_is_a_signal_to_save_but_under_nohup(tmp_path, ignored):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    state = TrainingState(RunFolder(tmp_path))
    try:
        state.on_fit_start(None, None)
        os.kill(os.getpid(), signal.SIGHUP)
        assert state.received == (None if ignored else signal.SIGHUP)
    finally:
        state.release_signals()
        signal.signal(signal.SIGHUP, before)


def test_outside_the_main_thread_no_signal_is_taken(tmp_path):
    state, failed = TrainingState(RunFolder(tmp_path)), []

    def train():
        try:
            state.on_fit_start(None, None)
            state.on_train_start(MagicMock(), None)
            state.release_signals()
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert not failed


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
def test_a_command_reads_no_pipe_in_place_of_a_file(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    refuse_pipes()
    with running_command(), pytest.raises(OSError, match="it is a pipe, not a file"):
        (tmp_path / "a.json").read_text()
    with running_command():  # who writes to a pipe knows what it does
        os.close(os.open(tmp_path / "a.json", os.O_RDWR))


def stubborn():
    ignore_signals(0)
    time.sleep(60)


def test_a_command_waits_for_no_reader_that_ignores_signals():
    with running_command():
        child = multiprocessing.Process(target=stubborn, daemon=True)
        child.start()
    child.join(5)
    assert child.exitcode == -signal.SIGKILL


def test_what_torch_says_of_dying_processes_is_not_heard_when_they_are_killed():
    def fails(number, frame):
        raise RuntimeError("DataLoader worker is killed by signal: Killed.")

    before = signal.signal(signal.SIGCHLD, fails)
    try:
        with running_command():
            child = multiprocessing.Process(target=stubborn, daemon=True)
            child.start()
        assert child.exitcode == -signal.SIGKILL
        assert signal.getsignal(signal.SIGCHLD) is fails
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_killed_reader_is_told_in_one_line():
    said = "DataLoader worker (pid 12) is killed by signal: Killed. "
    with (
        pytest.raises(DataError, match=r"was killed .Killed.*lower loader\.workers"),
        reporting_lost_workers(),
    ):
        raise RuntimeError(said)
    with (
        pytest.raises(WorkerLostError, match="a process that reads samples ended"),
        reporting_lost_workers(),
        writing(Path("out")),
    ):
        raise ConnectionResetError(104, "Connection reset by peer")
    assert WorkerLostError.exit_code == 1
    with pytest.raises(RuntimeError, match="shapes"), reporting_lost_workers():
        raise RuntimeError("shapes differ")
