"""Run folders: the places of a run's files, and files that are written whole or not at all."""

from __future__ import annotations

import csv
import errno
import json
import logging
import os
import re
import shutil
import zipfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decur.bounded_yaml import parse_yaml, read_text
from decur.errors import ConfigError, DataError, WriteError
from decur.locks import LOCK, holding, refuse_lost
from decur.registry import refuse_foreign

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run, and the places of its files.

    Args:
        path: the folder, which is made when something is first written.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The complete configuration; running it again repeats the run."""
        return self.path / "config.yaml"

    def configuration(self, used: Collection[str] | None = None) -> dict[str, Any]:
        """Return the configuration that the run has kept, as it is written.

        Args:
            used: the keys that are made something of, which alone may name no foreign module; None
                for all. A run can be opened where the class of its data is not there.

        Raises:
            DataError: if there is none, or none that can be used; it says how to trust one that
                names modules other than decur's.
        """
        if not self.config.is_file():
            raise DataError(
                f"{self.config}: no such file; `decur pretrain` writes its configuration there"
            )
        try:
            values = parse_yaml(read_text(self.config), "its YAML")
            if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
                raise ConfigError("it is no mapping of keys to values")
        except ConfigError as error:
            raise DataError(f"{self.config}: not the configuration of a run ({error})") from error
        refuse_foreign({k: v for k, v in values.items() if used is None or k in used}, self.config)
        return values

    def refuse_pretraining(self) -> None:
        """Refuse to write another kind of run over a pretraining run.

        Raises:
            ConfigError: if one is there.
        """
        if self.checkpoints.exists() or (self.path / "encoders").exists():
            raise ConfigError(f"--run {self.path}: holds a pretraining run; choose another folder")

    @property
    def metrics(self) -> Path:
        """Metrics, one row an epoch."""
        return self.path / "metrics.csv"

    @property
    def checkpoints(self) -> Path:
        """States of the training, to resume from."""
        return self.path / "checkpoints"

    @property
    def counting(self) -> RunFolder:
        """Folder of the training that counts the share of common dimensions, before the run's."""
        return RunFolder(self.path / "counting")

    @property
    def counted(self) -> Path:
        """What that training has found."""
        return self.path / "share.json"

    def is_begun(self) -> bool:
        """Return whether there is something of a pretraining run to go on with."""
        saved = self.saved_checkpoints() or self.counting.saved_checkpoints()
        return bool(saved) or self.counted.is_file()

    @property
    def figures(self) -> Path:
        """Folder of pictures."""
        return self.path / "figures"

    @property
    def report(self) -> Path:
        """The report, one self-contained page."""
        return self.path / "report.html"

    @property
    def bad_samples(self) -> Path:
        """List of files that could not be read, and why."""
        return self.path / "bad_samples.csv"

    def list_bad(self, bad: Sequence[tuple[str, str]]) -> None:
        """Write the list of bad samples anew, and log it; no file where all could be read.

        Args:
            bad: file and reason of each.
        """
        self.bad_samples.unlink(missing_ok=True)
        if bad:
            with atomic(self.bad_samples) as temporary, temporary.open("w", newline="") as file:
                csv.writer(file).writerows([("file", "reason"), *bad])
            log.warning("%d samples cannot be read, see %s", len(bad), self.bad_samples)

    def encoder(self, modality: str) -> Path:
        """Return the file of the trained encoder of one sensor."""
        return self.path / "encoders" / f"{modality}.safetensors"

    def saved_encoders(self) -> list[Path]:
        """Return the files of encoders, by the name of their sensor."""
        return sorted((self.path / "encoders").glob("*.safetensors"))

    def saved_checkpoints(self) -> list[Path]:
        """Return the checkpoints from the newest to the oldest, by the step in their name."""
        return sorted(self.checkpoints.glob("step-*.ckpt"), reverse=True)

    def newest_checkpoint(self) -> Path | None:
        """Return the newest checkpoint that is whole; a damaged one is passed over, and logged.

        Every byte is read and compared with the file's checksums.

        Raises:
            DataError: if there are checkpoints and all are damaged.
        """
        saved = self.saved_checkpoints()
        for path in saved:
            if (reason := _damage(path)) is None:
                return path
            log.warning("%s is damaged (%s); going back to the one before", path, reason)
        if saved:
            raise DataError(
                f"{self.checkpoints}: none of the {len(saved)} checkpoints can be read; "
                "start anew with --overwrite"
            )
        return None

    @contextmanager
    def owned(self, key: str = "--run") -> Iterator[None]:
        """Own the folder while the block writes there, see `decur.locks.holding`.

        What killed commands have left half written is deleted before the block and after it.

        Args:
            key: the option that names the folder.

        Raises:
            ConfigError: if another command is writing there, or nothing can be written.
            RunLostError: if the folder was lost meanwhile.
        """
        parts = (
            *(self.checkpoints, self.path / "encoders", self.figures, self.path / "report"),
            *(self.counting.path, self.counting.checkpoints),
        )
        with holding(self.path, key) as is_owner:
            if is_owner:
                remove_leftovers(self.path, *parts)
            yield
            if is_owner:
                remove_leftovers(self.path, *parts)

    def entries(self) -> list[Path]:
        """Return what the folder holds, apart from the lock of the command that owns it."""
        return [path for path in self.path.iterdir() if path.name != LOCK]


def _damage(path: Path) -> str | None:
    """Return what is wrong with a checkpoint; None if nothing is.

    torch does not compare what it reads with the checksums of the zip file that it has written.
    """
    import torch

    try:
        with zipfile.ZipFile(path) as file:
            if (wrong := file.testzip()) is not None:
                return f"the checksum of {wrong} is wrong"
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # both raise many kinds for damaged files
        return " ".join(str(error).split())[:120] or type(error).__name__
    return None


def make_folder(path: Path, key: str) -> None:
    """Make the folder that an option names, where there is none yet.

    Args:
        path: of the folder.
        key: the option, such as "--run".

    Raises:
        ConfigError: naming the option, the folder and the reason.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{key} {path}: cannot be made ({error.strerror}); choose another"
        ) from error


@contextmanager
def writing(path: Path, key: str = "--out") -> Iterator[None]:
    """Turn the errors of a block that writes into one line.

    Args:
        path: the file or folder that is written.
        key: the option that names it.

    Raises:
        ConfigError: naming the option, the path and the reason.
    """
    try:
        yield
    except WriteError as error:
        raise ConfigError(f"{key} {error}") from error
    except Exception as error:
        if (reason := reason_not_written(error, path)) is None:
            raise
        raise ConfigError(f"{key} {path}: cannot be written ({reason}); choose another") from error


@contextmanager
def atomic(path: Path, size: int = 0) -> Iterator[Path]:
    """Write a file whole or not at all: yield a temporary name, and rename it at the end.

    Args:
        path: the final name; its folder is made.
        size: bytes that the file will take, as far as that is known before.

    Raises:
        WriteError: in place of what the system or a library says, naming the file, the reason and,
            where the disk is full, how much is missing.
        RunLostError: if the file is of a run whose folder was lost.
    """
    temporary = _unfinished(path)
    try:
        yield temporary_name(path)
        put_in_place(temporary, path)
    except Exception as error:
        with suppress(OSError):
            size = max(size, temporary.stat().st_size)
            temporary.unlink()  # before the free room is looked at
        if (told := _write_error(error, path, size)) is None:
            raise
        raise told from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def plain_writing(path: Path, size: int = 0) -> Iterator[None]:
    """Tell in one line why a block that writes to a file or folder failed; see `atomic`.

    Args:
        path: of the file or folder.
        size: bytes that are written, as far as that is known before.

    Raises:
        WriteError: as `atomic` does.
        RunLostError: if the file is of a run whose folder was lost.
    """
    refuse_lost(path)
    try:
        yield
    except Exception as error:
        if (told := _write_error(error, path, size)) is None:
            raise
        raise told from error


def _write_error(error: Exception, path: Path, needed: int) -> WriteError | None:
    """Return the `WriteError` that tells of an error of writing; None for another error."""
    if (reason := reason_not_written(error, path, needed)) is None:
        return None
    return WriteError(f"{path}: cannot be written ({reason}); {_remedy(reason)}")


def reason_not_written(error: BaseException, path: Path, needed: int = 0) -> str | None:
    """Return why a file could not be written; None for an error that is not of writing.

    Args:
        error: what the system or a library has said.
        path: of the file.
        needed: bytes that the file takes, at least.
    """
    if isinstance(error, ConnectionError):
        return None  # of a process or a server, and of no file
    text = " ".join(str(error).split())
    number = error.errno if isinstance(error, OSError) else None
    if type(error).__name__ == "SafetensorError" and (found := re.search(r"os error (\d+)", text)):
        number = int(found[1])
    # torch's zip writer does not tell what the system has told it
    torch_says = isinstance(error, RuntimeError) and "inline_container" in text
    free = _free_bytes(path)
    if torch_says and free is not None and free < max(needed, 1):
        number = errno.ENOSPC
    if number in (errno.ENOSPC, errno.EDQUOT):
        return os.strerror(number) + (f": {_missing(needed, free)}" if needed else "")
    if number is not None:
        return os.strerror(number)
    if isinstance(error, OSError) or torch_says or type(error).__name__ == "SafetensorError":
        return text[:160]
    return None


def _free_bytes(path: Path) -> int | None:
    """Return the free bytes of the disk where a file belongs; None where that cannot be told."""
    try:
        return shutil.disk_usage(path.parent).free
    except OSError:
        return None


def _missing(needed: int, free: int | None) -> str:
    """Return in words how much room is missing."""
    if free is None or needed <= free:
        return f"more than {needed / 1e6:.3g} MB are needed"
    return (
        f"{needed / 1e6:.3g} MB are needed and {free / 1e6:.3g} MB are free, "
        f"{(needed - free) / 1e6:.3g} MB too few"
    )


def _remedy(reason: str) -> str:
    if reason == os.strerror(errno.EFBIG):
        return "raise the limit of the size of files (ulimit -f) and give the same command again"
    if any(reason.startswith(os.strerror(n)) for n in (errno.ENOSPC, errno.EDQUOT)):
        return "make room and give the same command again"
    return "mend that, or choose another folder"


def temporary_name(path: Path) -> Path:
    """Return the name under which a file is written until it is whole; its folder is made.

    Raises:
        RunLostError: if the file is of a run whose folder was lost.
    """
    refuse_lost(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return _unfinished(path)


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def put_in_place(temporary: Path, path: Path) -> None:
    """Give a file that is written and closed its final name, once it has reached the disk."""
    with temporary.open("r+b") as file:  # Windows flushes no file that is open for reading only
        os.fsync(file.fileno())  # else a power cut can leave the new name on empty blocks
    if not temporary.stat().st_mode & 0o077:  # safetensors lets nobody else read its files
        mask = os.umask(0o077)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
    temporary.replace(path)


def remove_leftovers(*folders: Path, pattern: str = ".*.tmp") -> None:
    """Delete what commands that were killed have left half written.

    Args:
        folders: in which no other command may be writing at the time.
        pattern: of the names under which files are written until they are whole.
    """
    for folder in folders:
        for path in folder.glob(pattern):
            with suppress(OSError):
                path.unlink()


def write_text(path: Path, text: str) -> Path:
    """Write a text file (UTF-8), whole or not at all.

    Args:
        path: of the file; its folder is made.
        text: what it will hold.

    Returns:
        The path.
    """
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def write_json(path: Path, values: Any) -> Path:
    """Write values as JSON, whole or not at all.

    Args:
        path: of the file; its folder is made.
        values: anything that JSON can hold.

    Returns:
        The path.
    """
    return write_text(path, json.dumps(values, indent=2) + "\n")
