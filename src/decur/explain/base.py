"""What an analysis is: a checkpoint and data to arrays, arrays to pictures and to a sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from decur.errors import ConfigError
from decur.plotting import Figure

T = TypeVar("T")
Arrays = dict[str, NDArray[Any]]  # kept as .npz: numbers and text, nothing that is pickled


class Watch(Protocol):
    """What shows how far an analysis is: gives `steps` one after another, of which there are n."""

    def __call__(self, steps: Iterable[T], n: int) -> Iterator[T]: ...  # noqa: D102


def unwatched(steps: Iterable[T], n: int) -> Iterator[T]:
    """No progress bar."""
    return iter(steps)


class DoesNotApply(Exception):
    """Why an analysis has nothing to say of a checkpoint or its data, in one sentence."""


@dataclass(frozen=True)
class Analysis:
    """One section of the report.

    Args:
        name: of its files, and on the command line.
        title: its heading.
        about: what the pictures show and how to read them, in two or three sentences.
        arrays: `(checkpoint, loader, watch=unwatched, **options) -> Arrays`; raises `DoesNotApply`.
        plots: `{name: function}`, each from these arrays to a picture; it may raise `DoesNotApply`.
        findings: from these arrays to what came out, as HTML made by `decur.report`.
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
    several: bool = False
    order: int = 50
    needs: tuple[str, ...] = ()


ANALYSES: dict[str, Analysis] = {}
SEEDS = 0, 2**32 - 1  # that scikit-learn takes


def register(analysis: Analysis) -> Analysis:
    """Make an analysis part of the report."""
    ANALYSES[analysis.name] = analysis
    return analysis


def check_option(option: str, value: float, least: float, most: float = np.inf) -> None:
    """Refuse a number that an analysis can do nothing with.

    Args:
        option: "ANALYSIS.OPTION".
        value: of it.
        least: the smallest that is allowed.
        most: the largest.

    Raises:
        ConfigError: if it is out of range.
    """
    if not least <= value <= most:
        allowed = f"at least {least}" if most == np.inf else f"from {least} to {most}"
        raise ConfigError(f"options.{option}: {allowed}, is {value}")


def text(*values: str) -> NDArray[np.str_]:
    """Names as an array that is kept without pickling."""
    return np.array(values, dtype=np.str_)
