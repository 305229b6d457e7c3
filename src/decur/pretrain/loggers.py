"""Loggers of Lightning that a run's values go to, and a person's own callbacks, by name."""

from __future__ import annotations

import logging
import os
import socket
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import loggers
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from decur.errors import ConfigError, WriteError, did_you_mean, reason_of
from decur.registry import find_object
from decur.runs import RunFolder, plain_writing

log = logging.getLogger(__name__)

# Lightning's loggers, and the package that each needs, by the name that `--trainer.logger` takes.
LOGGERS = ("tensorboard", "csv", "wandb", "mlflow", "trackio")


def make_loggers(names: str | Sequence[str] | None, run: RunFolder) -> list[Logger]:
    """Return the loggers that a run's values go to, besides `metrics.csv`.

    Args:
        names: of `LOGGERS`; None for TensorBoard.
        run: the run's folder, where they write and which names the run to them.

    Raises:
        ConfigError: for another name, or if the logger's package is not installed.
    """
    wanted = ["tensorboard"] if names is None else [names] if isinstance(names, str) else names
    made = []
    for name in dict.fromkeys(wanted):
        if name not in LOGGERS:
            hint = did_you_mean(name, LOGGERS, f"choose from {', '.join(LOGGERS)}")
            raise ConfigError(f"trainer.logger: no logger {name!r}; {hint}")
        try:
            made.append(_make_logger(name, run))
        except ImportError as error:
            raise ConfigError(
                f"trainer.logger: {name} is not installed; pip install {name}"
            ) from error
    return made


def _make_logger(name: str, run: RunFolder) -> Logger:
    folder, project = run.path, "decur"
    if name == "csv":
        return loggers.CSVLogger(folder, name="", version="csv")
    if name == "wandb":
        return loggers.WandbLogger(name=folder.name, project=project, save_dir=folder)
    if name == "mlflow":
        return loggers.MLFlowLogger(project, folder.name, save_dir=str(folder / "mlruns"))
    if name == "trackio":
        return TrackioLogger(project, folder.name)
    return EventLog(folder / "tensorboard")


class TrackioLogger(Logger):
    """Send values to trackio, for which Lightning has no logger.

    Args:
        project: where trackio shows the run.
        run: the run's name there.
    """

    def __init__(self, project: str, run: str) -> None:
        super().__init__()
        self.trackio: Any = import_module("trackio")
        self.project, self.run = project, run
        self._begun = False

    @property
    def name(self) -> str:
        """The project."""
        return self.project

    @property
    def version(self) -> str:
        """The run."""
        return self.run

    def log_hyperparams(self, *unused: Any, **also_unused: Any) -> None:
        """Send nothing: the run's configuration lies in its folder."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send values, and begin the run with the first of them."""
        if not self._begun:
            self.trackio.init(project=self.project, name=self.run, resume="allow")
            self._begun = True
        self.trackio.log({**metrics, "step": step})

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the run."""
        if self._begun:
            self.trackio.finish()


def make_callbacks(specs: Sequence[Mapping[str, Any]] | None) -> list[Callback]:
    """Return a person's own callbacks of Lightning.

    Args:
        specs: for each its class and arguments, `{class_path: ..., init_args: {...}}`.

    Raises:
        ConfigError: if a class is not there, is no callback, or refuses its arguments.
    """
    made = []
    for spec in specs or []:
        path = spec.get("class_path")
        if not isinstance(path, str) or set(spec) - {"class_path", "init_args"}:
            raise ConfigError(
                "trainer.callbacks: each is {class_path: package.Class, init_args: {...}}, "
                f"not {dict(spec)!r}"
            )
        kind = find_object(path, "trainer.callbacks")
        if not (isinstance(kind, type) and issubclass(kind, Callback)):
            raise ConfigError(f"trainer.callbacks: {path} is no callback of Lightning")
        try:
            made.append(kind(**(spec.get("init_args") or {})))
        except (TypeError, ValueError, MisconfigurationException) as error:
            raise ConfigError(f"trainer.callbacks: {path}: {error}") from error
    return made


@contextmanager
def reporting_callbacks(own: Sequence[Callback]) -> Iterator[None]:
    """Say which of a person's callbacks an error came up in: it is that person's to mend.

    Raises:
        ConfigError: naming the callback; whatever came up elsewhere is raised as it is.
    """
    try:
        yield
    except Exception as error:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            found = frame.f_locals.get("self")
            if any(found is each for each in own):
                raise ConfigError(
                    f"trainer.callbacks: {type(found).__name__}: {reason_of(error)}"
                ) from error
        raise


class EventLog(Logger):
    """Write metrics as TensorBoard's events.

    TensorBoard's own writer has a thread, which a full disk or a lost folder kills, with a
    traceback, and for which the training then waits. Events are written at once here; those that
    cannot be are left out, which the log says once.

    Args:
        folder: where the file of events is made.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self._records: Any = None
        self._failed = False

    @property
    def name(self) -> str:
        """Return the logger's name, which Lightning asks for."""
        return "tensorboard"

    @property
    def version(self) -> str:
        """Return a version, which Lightning asks for: a run has one."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, *values: Any, **options: Any) -> None:
        """Write nothing: `config.yaml` holds all settings."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write numbers of a step."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=k, simple_value=float(x)) for k, x in metrics.items()]
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the file."""
        if self._records is not None:
            with suppress(OSError):
                self._records.close()
            self._records = None

    def _write(self, event: Any) -> None:
        if self._failed:
            return
        try:
            with plain_writing(self.folder):
                if self._records is None:
                    self._records = self._open()
                self._records.write(event.SerializeToString())
                self._records.flush()
        except WriteError as error:
            self._failed = True
            log.warning("%s; TensorBoard's events are left out from here on", error)

    def _open(self) -> Any:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        records = RecordWriter((self.folder / name).open("ab"))
        first = Event(wall_time=time.time(), file_version="brain.Event:2")
        records.write(first.SerializeToString())
        return records
