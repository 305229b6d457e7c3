"""A command in a process of its own, which may be killed."""

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import multiprocessing


class Apart:
    """A function at work as a command is: in a process group of its own, its words in files.

    Args:
        folder: for the files.
        work: of a module, what to call.
        arguments: for it.
    """

    def __init__(self, folder: Path, work: Callable[..., object], *arguments: object):
        folder.mkdir()
        self._files = (folder / "out.txt", folder / "error.txt")
        self.process = multiprocessing.get_context("forkserver").Process(
            target=_work,
            args=(self._files, torch.get_num_threads(), dict(os.environ), work, arguments),
        )
        self.process.start()

    def end(self, seconds: float = 120) -> tuple[int | None, str, str]:
        """Wait for it: its exit code (-n of signal n, None if it does not end), output, errors."""
        self.process.join(seconds)
        out, error = (file.read_text() for file in self._files)
        return self.process.exitcode, out, error


def _work(files, threads, environment, work, arguments):
    os.setsid()
    for stream, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), stream)
    os.environ.clear()  # the server has that of its start
    os.environ.update(environment)
    torch.set_num_threads(threads)  # sums of others round otherwise
    work(*arguments)
