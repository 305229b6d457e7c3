"""What can go wrong through no fault of the code: each ends in one clear line and an exit code."""

import difflib
import signal
from collections.abc import Iterable


class DecurError(Exception):
    """A problem a person can mend. The message names the file or key, and the remedy."""

    exit_code = 2


class ConfigError(DecurError):
    """A configuration that cannot be run: unknown key, wrong type, value out of range."""


class DataError(DecurError):
    """A data set that cannot be used as a whole: missing root, no pairs, wrong bands."""


class BadSampleError(DataError):
    """One file of a data set that cannot be used; the rest still can.

    Args:
        path: the file.
        reason: what is wrong with it.
    """

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = str(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.path, self.reason)  # so that it survives a worker process


class ProcessLostError(DecurError):
    """One of several processes that died or cannot be reached: the others end, too."""

    exit_code = 4


class DivergedError(DecurError):
    """Training that went wrong numerically: a non-finite loss or collapsed embeddings."""

    exit_code = 3


class Interrupted(Exception):  # no error: the run was asked to stop, and saved itself
    """A run that was told to stop by a signal, after it has saved its state.

    Args:
        number: the signal's.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


def require(condition: bool, message: str) -> None:
    """Raise `ConfigError` with `message` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """Return the hint behind a name that is not there.

    Args:
        name: what was given.
        known: the names that there are.
        otherwise: the hint where none of them is near.
    """
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]}?" if close else otherwise
