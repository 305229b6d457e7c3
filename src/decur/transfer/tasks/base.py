"""A label as something to learn; the registry of its kinds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from decur import probes, scores
from decur.data.sample import Target
from decur.errors import ConfigError, DataError
from decur.plotting import plain, single
from decur.registry import Registry
from decur.transfer.settings import FitDefaults

if TYPE_CHECKING:
    from decur.plotting import Figure

Array = NDArray[Any]
Kept = dict[str, Array]  # what is kept of test samples, one row each
TASKS: Registry[type[Task]] = Registry("kind of label", "decur.transfer.tasks")
MOST_CLASSES = 1024  # of masks, which have a number of each class for each pixel
LETTERS = 26  # of a class on a picture
_HEADS = {"ridge": probes.fit_ridge, "logistic": probes.fit_logistic}


class Task(ABC):
    """One label of a data set as something to learn.

    Labels come in two forms: as in a batch, and, one row a sample of the whole data set, as they
    are collected before the training: the same, but for masks the pixels of each class.

    A subclass registers itself under the kind of target that it is for: `@TASKS.register("class")`.

    Attributes:
        measures: what each metric is, by its name.
        main: the metric that a validation part chooses by; higher is better.
        dense: whether there is an output for each pixel.
        says: what a prediction is: one of the classes ("class"), yes or no to each of them
            ("flags"), or "numbers".
        fit_defaults: what training takes where nothing is said, the paper's where it has the kind.
        probes: the heads on frozen vectors that this kind takes.
        usual_probe: the one of them that `--probe auto` takes.
        solved_as: the kind that `decur.probes` and `decur.scores` take the labels for, "class",
            "multilabel" or "scalar"; None: no probe is solved for them, heads are only trained.
        measured: what of `Kept` the metrics are computed from.
        scales: of metrics that are no shares in [0, 1], what they are: "explained" (an R2),
            "positive" (an error) or "plain"; their intervals are found on that scale.
        averages: of metrics that are means over classes, the score in `by_class` that they average.

    Args:
        name: of the label in the data.
        target: what it is.
    """

    measures: ClassVar[Mapping[str, str]]
    main: ClassVar[str]
    dense: ClassVar[bool] = False
    says: ClassVar[Literal["class", "flags", "numbers"]] = "numbers"
    fit_defaults: ClassVar[FitDefaults] = FitDefaults()
    probes: ClassVar[tuple[str, ...]] = ("sgd",)
    usual_probe: ClassVar[Literal["ridge", "logistic", "sgd"]] = "sgd"
    solved_as: ClassVar[str | None] = None
    measured: ClassVar[tuple[str, ...]] = ("output", "truth")
    scales: ClassVar[Mapping[str, str]] = {}
    averages: ClassVar[Mapping[str, str]] = {}

    def __init__(self, name: str, target: Target) -> None:
        self.name, self.target = name, target

    @property
    def kind(self) -> str:
        """Kind of the target, which the task is registered under."""
        return self.target.kind

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; none for a scalar."""
        return self.target.classes

    @property
    def outputs(self) -> int:
        """Length of the model's output."""
        return len(self.target.classes)

    @property
    def known_as(self) -> Target:
        """The target as `decur.probes` and `decur.scores` know it."""
        return replace(self.target, kind=self.solved_as or self.kind)

    @property
    def has_weights(self) -> bool:
        """Whether the loss can weigh classes, see `weigh`."""
        return type(self).weigh is not Task.weigh

    def strata(self, labels: Array) -> Array | None:
        """Return the class of each sample by (N, ...) labels; None where it has no single one."""
        return labels if self.says == "class" and not self.dense else None

    def known(self, labels: Array) -> NDArray[np.bool_]:
        """Tell which samples of the (N, ...) collected labels are labelled: (N,)."""
        return scores.known(labels, self.known_as)

    def missing_classes(self, labels: Array) -> list[str]:
        """Return the classes that no sample of (N, ...) collected, known labels shows."""
        return []

    def prepare(self, labels: Array) -> None:  # noqa: B027
        """Take what the loss needs from the (N, ...) collected labels of the training part."""

    def weigh(self, labels: Array) -> None:
        """Let the loss weigh classes by the inverse of how often the training part shows them.

        Args:
            labels: (N, ...) collected labels of the training part.

        Raises:
            ConfigError: for a kind of label that has no such weights.
        """
        raise ConfigError(f"fit.class_weights: a {self.kind} has no weights; leave it out")

    @abstractmethod
    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a batch: (B, outputs, ...) and labels as in a batch to a scalar."""

    def in_units(self, kept: Kept) -> Kept:
        """Return in the label's units what is kept of a head before `finish`."""
        return kept

    def finish(self, head: nn.Module) -> None:  # noqa: B027
        """Make a head that was trained by `loss` give its output in the label's units."""

    def fit_head(
        self, probe: str, x: Array, *, labels: Array, groups: Array | None, seed: int
    ) -> tuple[nn.Linear, float]:
        """Fit a linear head on vectors of the training part, as `decur.probes` does.

        Args:
            probe: "ridge" or "logistic".
            x: (N, D) vectors.
            labels: (N, ...) known labels.
            groups: (N,) that a validation part must not split, if any.
            seed: of the validation part.

        Returns:
            The head, and the regularisation that was chosen.

        Raises:
            ConfigError: if the probes do not know this kind of label.
        """
        if self.solved_as is None:
            raise ConfigError(
                f"probe: {probe} cannot learn {self.name!r}, a {self.kind}; set solved_as in "
                f"{type(self).__name__}, or take sgd"
            )
        return _HEADS[probe](x, labels, self.known_as, groups, seed)

    def keep(self, output: Tensor, labels: Tensor, *, samples: int = 1) -> Kept:
        """Return what is kept of test samples, one row each.

        Args:
            output: (B, outputs, ...) of the model.
            labels: (B, ...) as in a batch.
            samples: how many the whole test part has; what would be too much is left out.
        """
        return {"output": output.float().cpu().numpy(), "truth": labels.cpu().numpy()}

    @abstractmethod
    def metrics(self, kept: Kept) -> dict[str, float]:
        """Return the metrics over all given samples; NaN where there is nothing to measure."""

    def trivial(self, kept: Kept) -> Kept | None:
        """Return what would be kept of the best guess that is the same for every sample.

        Its metrics are the floor that stands beside those of a model. None where a kind of label
        does not say.
        """
        return None

    def floors(self, kept: Kept) -> dict[str, float]:
        """Return what each metric is for the best guess that is the same for every sample.

        That is one guess for all metrics, `trivial`, unless another is better for some of them.
        """
        trivial = self.trivial(kept)
        return {} if trivial is None else self.metrics(trivial)

    def guesses(self, kept: Kept) -> set[int]:
        """Return the classes that are predicted somewhere; empty where a model predicts none."""
        return set()

    def shows(self, kept: Kept) -> NDArray[np.bool_]:
        """Tell which classes each sample shows, by what is `measured`: (N, C)."""
        return np.zeros((len(kept[self.measured[0]]), len(self.classes)), bool)

    @abstractmethod
    def by_class(self, kept: Kept) -> dict[str, dict[str, float]]:
        """Return `{class: {metric: value}}`; empty for scalars."""

    # -- what `decur predict` tells of new pictures ------------------------------------------------

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the numbers that `answers` gives."""
        if len(self.classes) == self.outputs:
            return self.classes
        several = tuple(f"{self.name}/{number}" for number in range(self.outputs))
        return several if self.outputs > 1 else (self.name,)

    def answers(self, output: Tensor, *, least_squares: bool = False) -> Tensor:
        """Return a model's output as numbers that may be averaged over windows, as probabilities.

        Args:
            output: (B, outputs, ...) of a model whose head `finish` has seen.
            least_squares: whether the head was solved by ridge, for +1 and -1 where there are
                classes.

        Returns:
            (B, len(bands), ...).
        """
        return output

    def columns(self, answer: Array) -> list[tuple[str, Any]]:
        """Return the name and the value of each column that a table of predictions has.

        Args:
            answer: (len(bands), H, W) of one sample, H and W 1 unless `dense`.
        """
        return [(name, float(each[0, 0])) for name, each in zip(self.bands, answer, strict=True)]

    def words(self, answer: Array, *, least_squares: bool = False) -> str:
        """Return what was predicted for a sample, as it stands on its picture.

        Args:
            answer: as `columns` takes it.
            least_squares: as `answers` takes it.
        """
        return ", ".join(f"{number:.4g}" for number in answer[:, 0, 0])

    # -- pictures ----------------------------------------------------------------------------------

    @abstractmethod
    def draw(self, kept: Kept) -> Figure:
        """Draw the result; needs matplotlib."""

    def draw_classes(self, kept: Kept) -> Figure | None:
        """Draw the first score of each class; None without classes, or where `draw` does it."""
        scores = {name: next(iter(row.items())) for name, row in self.by_class(kept).items()}
        if not scores:
            return None
        (metric, _), *_ = scores.values()
        return draw_bars({name: value for name, (_, value) in scores.items()}, metric)


def make_task(name: str, target: Target) -> Task:
    """Return the task of a label.

    Args:
        name: of the label in the data.
        target: what it is.

    Raises:
        DataError: for a kind that nothing has registered: a data file may name any.
    """
    if not TASKS.is_known(target.kind):
        known = ", ".join(TASKS.names())
        raise DataError(
            f"label {name!r}: is of the kind {target.kind!r}, and known are {known}; copy the data "
            "anew, or name the module that registers it in DECUR_IMPORT"
        )
    return TASKS.get(target.kind)(name, target)


def balanced(counts: Array) -> Array:
    """Return the weight of each class, 1 on average over samples; 0 for one that none shows.

    Args:
        counts: (C,) samples or pixels of each class.
    """
    there = counts > 0
    weights = counts.sum() / np.maximum(there.sum() * counts, 1)
    return np.where(there, weights, 0).astype(np.float32)


def choose_task(targets: Mapping[str, Target], name: str | None) -> Task:
    """Return the task of the label that is wanted.

    Args:
        targets: labels of the data.
        name: of the label; None where there is only one.

    Raises:
        DataError: if there is no label at all, or masks have too many classes.
        ConfigError: if there is no such label, or several and none is named.
    """
    there = ", ".join(f"{name} ({target.kind})" for name, target in targets.items())
    if not there:
        raise DataError(
            "target: the data has no labels; add labels.csv or mask/ to its folder, or fill a "
            "column of the labels.csv that is there"
        )
    if name is None:
        if len(targets) > 1:
            raise ConfigError(f"target: the data has several labels, choose from {there}")
        name = next(iter(targets))
    if name not in targets:
        raise ConfigError(f"target: the data has no label {name!r}; choose from {there}")
    task, count = make_task(name, targets[name]), len(targets[name].classes)
    if task.dense and count > MOST_CLASSES:
        raise DataError(
            f"target: {name!r} has {count:,} classes, and up to {MOST_CLASSES:,} are learned; list "
            "those that its masks hold in classes.txt, a line `name, value` for each, or name what "
            "is unknown in --data.mask_nodata"
        )
    return task


def known_metrics() -> dict[str, str]:
    """Return what each metric of any task is, by its name."""
    return {
        metric: about
        for kind in TASKS.names()
        for metric, about in TASKS.get(kind).measures.items()
    }


def draw_confusion(matrix: Array, classes: tuple[str, ...]) -> Figure:
    """Draw a confusion matrix, each row (true class) as shares of it.

    Args:
        matrix: (C, C) counts, true class by predicted class.
        classes: their names.
    """
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = min(12.0, 2.5 + 0.5 * len(classes))
    figure, axis = single(width=side + 0.8, height=side)
    picture = axis.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    ticks = range(len(classes))
    names = [plain(name) for name in classes]
    axis.set_xticks(ticks, names, rotation=45, ha="right")
    axis.set_yticks(ticks, names)
    axis.set(xlabel="predicted", ylabel="true")
    if len(classes) <= 20:
        for row in ticks:
            for column in ticks:
                share = shares[row, column]
                colour = "white" if share > 0.5 else "#0B1F33"  # on the colour of its cell
                axis.text(
                    column, row, f"{share:.2f}", ha="center", va="center", color=colour, fontsize=7
                )
    figure.colorbar(picture, ax=axis, label="share of the true class")
    return figure


def draw_bars(values: dict[str, float], label: str) -> Figure:
    """Draw a bar for each class; NaN is left empty."""
    figure, axis = single(width=7, height=max(2.0, 0.6 + 0.3 * len(values)))
    names = list(values)[::-1]
    shown = [plain(name) for name in names]
    axis.barh(shown, np.nan_to_num([values[name] for name in names]))
    axis.set(xlim=(0, 1), xlabel=label)
    axis.grid(axis="x", alpha=0.3)
    return figure
