"""What an analysis is: from a run and samples to arrays, from arrays to figures and findings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from decur import plotting
from decur.charts import Chart
from decur.errors import ConfigError, install, require
from decur.plotting import Figure
from decur.registry import Registry
from decur.terminal import Watch as Watch
from decur.verdicts import Verdict

T = TypeVar("T")
Arrays = dict[str, NDArray[Any]]  # kept as .npz: numbers and text, nothing that is pickled
SEEN = "seen"  # key in the arrays: whether the run, or each of several, was trained on the samples


def unwatched(steps: Iterable[T], n: int) -> Iterator[T]:
    """Give the steps without a progress bar."""
    return iter(steps)


class DoesNotApply(Exception):
    """Why an analysis has nothing to say of a checkpoint or its data, in one sentence."""


@dataclass(frozen=True)
class Analysis:
    """One section of the report.

    Args:
        name: of its files, and on the command line.
        title: its heading.
        about: what the figures show and how to read them, in two or three sentences.
        arrays: `(checkpoint, loader, *, watch=unwatched, **options) -> Arrays`; raises
            `DoesNotApply`. Its further arguments are the analysis's options on the command line.
        settings: a dataclass of the options, where there are many; `arrays` then takes one as
            `settings` in place of further arguments.
        plots: `{name: function}`, each from these arrays to a figure; it may raise `DoesNotApply`.
            The first paragraph of its docstring is the caption.
        findings: from these arrays to what came out, as HTML made by `decur.report`.
        charts: `{name of a plot: function}`, each from these arrays to what takes the figure's
            place where scripts run, as `decur.charts` makes it, or None. Figures of lines and bars
            have theirs without it.
        several: whether `arrays` takes `beside`, more checkpoints that saw the same data.
        order: sections are sorted by it.
        needs: packages beyond those that any run has.
    """

    name: str
    title: str
    about: str
    arrays: Callable[..., Arrays]
    plots: Mapping[str, Callable[[Arrays], Figure]]
    findings: Callable[[Arrays], str]
    charts: Mapping[str, Callable[[Arrays], Chart | None]] = field(default_factory=dict)
    several: bool = False
    order: int = 50
    needs: tuple[str, ...] = ()
    settings: type[Any] | None = None

    @property
    def options(self) -> list[str]:
        """Names of its options: fields of `settings`, else arguments that `arrays` alone takes."""
        if self.settings is not None:
            return [option.name for option in fields(self.settings)]
        every = ("watch", "beside")
        return [
            name
            for name in list(inspect.signature(self.arrays).parameters)[2:]
            if name not in every
        ]

    def compute(
        self, checkpoint: Any, loader: Any, *, options: Mapping[str, Any], **others: Any
    ) -> Arrays:
        """Return the arrays.

        Args:
            checkpoint: the run.
            loader: the samples.
            options: by name; those that are left out have their defaults.
            others: `watch`, and `beside` where the analysis takes several runs.

        Raises:
            ConfigError: for a value that an option cannot have.
            DoesNotApply: if there is nothing to say.
        """
        if self.settings is not None:
            return self.arrays(checkpoint, loader, settings=self.settings(**options), **others)
        return self.arrays(checkpoint, loader, **options, **others)


ANALYSES: Registry[Analysis] = Registry("analysis", "decur.explain")


def register(analysis: Analysis) -> Analysis:
    """Make an analysis part of the report."""
    return ANALYSES.register(analysis.name)(analysis)


def analyses(
    only: Sequence[str] | None = None, options: Mapping[str, Mapping[str, Any]] | None = None
) -> list[Analysis]:
    """Return analyses in the order of the report.

    Args:
        only: their names; None for all.
        options: `{analysis: {option: value}}`, which must exist.

    Raises:
        ConfigError: if an analysis does not exist, or has no such option.
    """
    for name, given in (options or {}).items():
        known = ANALYSES.get(name, "options").options
        for key in given:
            there = f"it has {', '.join(known)}" if known else "it has none"
            require(key in known, f"options.{name}.{key}: {name} takes no such option; {there}")
    only = [only] if isinstance(only, str) else only
    names = ANALYSES.names() if only is None else dict.fromkeys(only)
    return sorted((ANALYSES.get(name, "only") for name in names), key=lambda found: found.order)


def check_packages(chosen: Sequence[Analysis], redraw: bool) -> None:
    """See that the packages that analyses need are installed.

    Args:
        chosen: the analyses.
        redraw: whether nothing is computed, only drawn.

    Raises:
        ConfigError: naming one that is missing.
    """
    for analysis in chosen:
        missing = [] if plotting.available() else ["matplotlib"]
        missing += [name for name in analysis.needs if not redraw and find_spec(name) is None]
        if missing:
            raise ConfigError(f"{analysis.name} needs {missing[0]}: {install('explain')}")


def check_option(option: str, value: float, least: float, most: float = np.inf) -> None:
    """Refuse a number that an analysis can do nothing with.

    Args:
        option: "ANALYSIS.OPTION".
        value: its value.
        least: the smallest that is allowed.
        most: the largest.

    Raises:
        ConfigError: if it is out of range.
    """
    allowed = f"at least {least}" if most == np.inf else f"from {least} to {most}"
    require(least <= value <= most, f"options.{option}: {allowed}, is {value}")


def seen_in_training(arrays: Arrays, run: int = 0) -> Verdict:
    """Return whether a run was trained on the samples; NO where the arrays do not say.

    Args:
        arrays: of any analysis; `explain` adds to them what is known.
        run: its number, where several stand side by side; UNTOLD where arrays tell of fewer.
    """
    if SEEN not in arrays:
        return Verdict.NO
    known = np.atleast_1d(arrays[SEEN])
    return Verdict(str(known[run])) if run < len(known) else Verdict.UNTOLD


def text(*values: str) -> NDArray[np.str_]:
    """Return names as an array that is kept without pickling."""
    return np.array(values, dtype=np.str_)
