"""What can go wrong through no fault of the code: each ends in one clear line and an exit code."""

import difflib
import signal
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

LONGEST_NAME = 100  # characters: with an ending it still fits into the name of a file


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


class WriteError(DecurError):
    """A file that could not be written, such as on a full disk; the message says how to go on."""


class RunLostError(DecurError):
    """The folder that a command writes to was deleted, unmounted or made read-only meanwhile."""

    exit_code = 1


class WorkerLostError(DataError):
    """A process that read samples for a command died, mostly for want of memory."""

    exit_code = 1


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


# Ranges of numbers that several settings have. Their ends are far beyond what anybody trains.
PIXELS = (1, 16_384)  # a side
EPOCHS = (1, 1_000_000)
STEPS = (1, 1_000_000_000)
RATES = (0.0, 1e38)  # rates of learning and of decay: what float32 holds
SEEDS = (0, 2**32 - 1)  # what numpy takes
WORKERS = (0, 1024)  # processes or threads that read
SHARE = (0.0, 1.0)


def check_ranges(settings: object, where: str = "", **ranges: tuple[float, float]) -> None:
    """Refuse settings with a number outside its range; None, which leaves one open, passes.

    Args:
        settings: what has the numbers as attributes.
        where: what the keys begin with, for messages: "fit.".
        **ranges: for each attribute the smallest and the largest number that is taken.

    Raises:
        ConfigError: naming the key and the range; for NaN, too.
    """
    for key, (low, high) in ranges.items():
        value = getattr(settings, key)
        is_number = isinstance(value, int | float)
        if value is not None and not (is_number and low <= value <= high):
            least, most, given = map(_as_text, (low, high, value))
            raise ConfigError(f"{where}{key}: must be from {least} to {most}, is {given}")


def _as_text(value: object) -> str:
    """Return a number as a message shows it; what is none as Python does."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else repr(value)


def printable(text: str) -> str:
    """Return a text of lines without control characters, with which a name steers a terminal."""
    return "".join(
        "\ufffd" if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" else c for c in text
    )


def listed(names: Sequence[str], most: int = 10) -> str:
    """Return the first names in a line, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def plain_name(name: str, what: str) -> str:
    """Return a name that may become part of a file's name, an option or a module, unchanged.

    Args:
        name: of a sensor, a target, a picture, ...
        what: what has the name, for the message: "modality 'a/b'".

    Raises:
        ConfigError: for a name that is empty, begins with a dash or a blank, ends with a blank, is
            longer than 100 characters, or holds a separator of paths, a dot, a control character,
            or what some file systems do not take.
    """
    wrong = next((c for c in name if c in '/\\.:*?"<>|' or unicodedata.category(c)[0] == "C"), "")
    reasons = {
        "is empty": not name,
        "begins or ends with a blank": name != name.strip(),
        "begins with a dash": name.startswith("-"),
        f"is longer than {LONGEST_NAME} characters": len(name) > LONGEST_NAME,
        "holds a dot": wrong == ".",
        f"holds {wrong!r}": bool(wrong),
    }
    for reason, holds in reasons.items():
        if holds:
            raise ConfigError(f"{what}: {reason}, and names become names of files; rename it")
    return name


@contextmanager
def reading(path: object, remedy: str, what: str = "cannot be read") -> Iterator[None]:
    """Turn whatever goes wrong while a file is opened, parsed and looked at into one line.

    Libraries raise dozens of kinds of errors for damaged files, so that every exception counts as
    the file's fault; keep the block free of anything else.

    Args:
        path: the file.
        remedy: what to do about it.
        what: what is wrong with the file.

    Raises:
        DataError: naming the file, the reason and the remedy. A `DecurError` is raised as it is.
    """
    try:
        yield
    except DecurError:
        raise
    except Exception as error:
        raise DataError(f"{path}: {what} ({reason_of(error)}); {remedy}") from error


def install(extra: str) -> str:
    """Return the command that installs one of the extras in pyproject.toml."""
    return f"pip install 'decur[{extra}]'"


@contextmanager
def needing(what: str, extra: str, kind: type[DecurError] = ConfigError) -> Iterator[None]:
    """Say what installs the optional packages that a block imports, where one is missing.

    Args:
        what: needs them, for the message: "reading a.h5".
        extra: of pyproject.toml, which installs them.
        kind: of the error.

    Raises:
        DecurError: of this kind, naming the package and the command that installs it.
    """
    try:
        yield
    except ImportError as error:
        name = (error.name or "a package").partition(".")[0]
        raise kind(f"{what} needs {name}: {install(extra)}") from error


def lacks_memory(error: BaseException) -> bool:
    """Return whether an exception says that memory, of the machine or of a GPU, does not suffice.

    PyTorch has a class of its own for GPUs, and none for the machine.
    """
    out = type(error).__name__ == "OutOfMemoryError"
    return isinstance(error, MemoryError) or out or "can't allocate memory" in str(error)


def reason_of(error: BaseException) -> str:
    """Return what an exception says, in one short line that a person understands."""
    if lacks_memory(error):
        return "more memory than there is would be needed"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, KeyError):
        return f"{error} is missing"
    while error.__cause__ is not None and "See previous exception" in str(error):  # of rasterio
        error = error.__cause__
    text = getattr(error, "strerror", None) or " ".join(str(error).split())
    return text[:200] or type(error).__name__


def enumerated(names: Iterable[str]) -> str:
    """Return names as they stand in a sentence: "s1", "s1 and s2", "s1, s2 and dem"."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """Return the hint behind a name that is not there.

    Args:
        name: what was given.
        known: the names that there are.
        otherwise: the hint where none of them is near.
    """
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]}?" if close else otherwise
