"""The demonstration: pretraining on generated scenes, where it is known what each sensor sees."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from decur import report
from decur.data import SyntheticScenes, Target
from decur.features import Features
from decur.pretrain import PairedData, Pretrainer
from decur.pretrain.command_pretrain import start
from decur.pretrain.monitors import encode_samples
from decur.probes import quick_answers, quick_probe
from decur.scores import METRICS, chance, known, score
from decur.terminal import make_table
from decur.transfer.intervals import interval
from decur.verdicts import Interval, Verdict, any_of

SAMPLES = 1500  # scenes that are probed; half fit a probe, half test it
UNSEEN = 1_000_000  # distance between the first scene trained on and the first that is probed
_SCENES = (
    "All sensors see the cover of the land; only optical pictures show clouds, only radar the "
    "moisture of soils, only heights the relief."
)
_STRUCTURE = (
    "All sensors see which way strips of fields run (layout). In bands of its own, which the "
    "pictures of views leave out, each sees strips that no other sees: optical streets of clouds, "
    "radar rows of tillage, heights ridges. All of them are faint, under grain."
)
_PAIRS = (
    " Further bands show what two sensors see and the third does not: orchards optics and radar, "
    "terraces optics and heights, ditches radar and heights."
)
_KNOW = "What the encoders know (linear probe of frozen features)"
_ABOUT_KNOW = (
    "Before training is the same network with its first weights: what it has above chance was not "
    "learned. By chance is the score of one guess for all scenes, such as the most frequent "
    "class. These are scores of one run: another seed may find other factors, and a difference of "
    "a few hundredths may point the other way."
)
_KEEP = "Where they keep it (linear probe of the projector's dimensions)"
_ABOUT_KEEP = (
    "Common dimensions should carry what both sensors see, unique ones what only this sensor sees. "
)
# Of each factor and sensor: what a probe of each part answers, and the truth; None: too few labels.
Answers = dict[tuple[str, str], dict[str, tuple[NDArray[Any], NDArray[Any]] | None]]
BLOCKS = 50  # parts of the test scenes that are left out in turn, for intervals


def demo(arguments: Sequence[str], scenes: Mapping[str, Any]) -> None:
    """Pretrain, probe the encoders on scenes that they have not seen, print and report the scores.

    Args:
        arguments: for `decur pretrain`.
        scenes: options of the `SyntheticScenes` that these train on.

    Raises:
        DecurError: for whatever a person can mend.
    """
    started = time.monotonic()
    console = Console(soft_wrap=True)
    trained = start(arguments)
    if getattr(rank_zero_only, "rank", 0):  # of several processes the first one probes and speaks
        return
    folder, model = trained.folder, trained.model
    about_scenes = _STRUCTURE if scenes["structure"] else _SCENES
    about_scenes += _PAIRS if scenes["pair_factors"] else ""
    console.print(f"\nprobing {SAMPLES} scenes that were not trained on. {about_scenes}")
    unseen = {"samples": SAMPLES, "start": scenes["start"] + UNSEEN}
    data = PairedData(SyntheticScenes(**{**scenes, **unseen, "modalities": list(model.modalities)}))
    before, after = (encode_samples(m, data, SAMPLES) for m in (_untrained(model), model))
    know_head = ("factor", "sees it", "encoder of", "by chance", "before training", "pretrained")
    keep_head = ("factor", "sees it", "sensor", "by chance", *model.objective.parts)
    kinds = ", ".join(f"{kind} {metric}" for kind, metric in METRICS.items())
    body = [
        report.paragraph(
            f"{SAMPLES} generated scenes that were not trained on, half to fit and half to test. "
            f"Scores: {kinds}."
        ),
        report.paragraph(about_scenes),
    ]
    answers = _part_answers(after, data, model.objective.parts)
    kept = _part_scores(after, data, answers)
    about_keep = _ABOUT_KEEP + split_shown(_told(data, answers))
    for title, head, rows, about in (
        (_KNOW, know_head, _feature_scores(before, after, data), _ABOUT_KNOW),
        (_KEEP, keep_head, kept, about_keep),
    ):
        console.print(_table(title, head, rows))
        body += [report.paragraph(title), report.table(head, rows), report.paragraph(about)]
    report.add_section(
        folder, 20, name="demo", title="What the encoders have learned", body="\n".join(body)
    )
    console.print(about_keep, highlight=False)
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    console.print(f"\ndone in {minutes} min {seconds} s", highlight=False)
    console.print(f"report    {folder.report.resolve()}", highlight=False)
    for name in model.modalities:
        console.print(f"encoder   {folder.encoder(name).resolve()}", highlight=False)


def _untrained(model: Pretrainer) -> Pretrainer:
    """Return the same networks as before their training."""
    torch.manual_seed(model.seed)
    return Pretrainer(
        model.modalities,
        model.objective,
        encoder=model.encoder_settings,
        projector=model.projector_settings,
        views=model.view_settings,
    )


def _feature_scores(
    before: Features, after: Features, data: PairedData
) -> list[tuple[object, ...]]:
    """Return rows (factor, sensors that see it, encoder, scores by chance, before, after)."""
    rows: list[tuple[object, ...]] = []
    for name, labels in after.labels.items():
        target = data.dataset.targets[name]
        scores = [quick_probe(encoded.features, labels, target) for encoded in (before, after)]
        for key in scores[1]:
            if key.endswith("/linear"):
                seen = ", ".join(target.modalities) or "all"
                encoder = key.removesuffix("/linear")
                by_chance = _by_chance(labels, target)
                rows.append((name, seen, encoder, by_chance, scores[0][key], scores[1][key]))
    return rows


def _part_answers(found: Features, data: PairedData, parts: Mapping[str, slice]) -> Answers:
    """Probe each part of each sensor's embedding for each factor, on the same scenes."""
    answers: Answers = {}
    for name, labels in found.labels.items():
        target = data.dataset.targets[name]
        for sensor, z in found.embeddings.items():
            rows = ~np.isnan(z).any(axis=1) & known(labels, target)
            answers[name, sensor] = {
                part: quick_answers(z[rows, dims], labels[rows], target)
                for part, dims in parts.items()
            }
    return answers


def _part_scores(found: Features, data: PairedData, answers: Answers) -> list[tuple[object, ...]]:
    """Return rows (factor, sensors that see it, sensor, score by chance, score of each part)."""
    rows: list[tuple[object, ...]] = []
    for (name, sensor), of_parts in answers.items():
        target = data.dataset.targets[name]
        scores = [np.nan if x is None else score(*x, target) for x in of_parts.values()]
        seen = ", ".join(target.modalities) or "all"
        rows.append((name, seen, sensor, _by_chance(found.labels[name], target), *scores))
    return rows


@dataclass(frozen=True)
class Told:
    """How well the parts of a sensor's embedding tell a factor that the sensor sees.

    Args:
        factor: and its sensor, as "cover (sar)".
        common: by how much the score of the common part is above one guess for all scenes.
        unique: the same of the unique part.
        better: by how much the part that should carry the factor is above the other.
        scenes: how many tested both.
    """

    factor: str
    common: Interval
    unique: Interval
    better: Interval
    scenes: int


def _told(data: PairedData, answers: Answers) -> list[Told]:
    """Return of each factor and sensor that sees it what its common and its unique part tell.

    Both parts are probed on the same scenes, so that the interval is of the paired difference.
    """
    told = []
    for (name, sensor), of_parts in answers.items():
        target = data.dataset.targets[name]
        of_common, of_unique = of_parts.get("common"), of_parts.get("unique")
        # What several sensors see and others do not has no part that should carry it.
        has_part = target.modalities in ((), (sensor,))
        if of_common is None or of_unique is None or not has_part:
            continue
        (common, truth), (unique, _) = of_common, of_unique
        by_chance = chance(truth, target)
        expected, other = (unique, common) if target.modalities else (common, unique)
        told.append(
            Told(
                f"{name} ({sensor})",
                excess(common, None, truth, target) - by_chance,
                excess(unique, None, truth, target) - by_chance,
                excess(expected, other, truth, target),
                len(truth),
            )
        )
    return told


def excess(
    output: NDArray[Any], other: NDArray[Any] | None, truth: NDArray[Any], target: Target
) -> Interval:
    """Return the score of a head's output with its 95 % interval (jackknife, Student's t).

    Args:
        output: as `decur.scores.score` takes it.
        other: of another head for the same samples, whose score is taken off; None: nothing is.
        truth: the labels.
        target: what they mean.
    """
    block = np.arange(len(truth)) % BLOCKS  # the order is random, as it was split

    def measure(rows: NDArray[np.bool_]) -> float:
        less = 0.0 if other is None else score(other[rows], truth[rows], target)
        return score(output[rows], truth[rows], target) - less

    without = np.array([measure(block != left_out) for left_out in range(block.max() + 1)])
    value = measure(block >= 0)
    return Interval(value, *interval(value, without, "plain"))


def split_shown(told: Sequence[Told]) -> str:
    """Say whether the parts show the split, factor by factor, where their intervals bear it.

    Args:
        told: of each factor and sensor; none for a method without common and unique dimensions.

    Returns:
        Sentences; "" where nothing is told.
    """
    found: dict[str, list[str]] = {"yes": [], "no": [], "untold": [], "missing": []}
    for each in told:
        answer = "yes" if each.better.low > 0 else "no" if each.better.high < 0 else "untold"
        if any_of(each.common.above(), each.unique.above()) != Verdict.YES:
            answer = "missing"
        by = abs(each.better.value)
        found[answer].append(
            f"{each.factor} by {by:.2f}" if answer in ("yes", "no") else each.factor
        )
    lines = {
        "yes": "The part that should carry it tells it better: {}.",
        "no": "The other part tells it better: {}.",
        "untold": "It cannot be told where it is kept: {}.",
        "missing": "No part is sure to tell it better than one guess for all: {}.",
    }
    said = [lines[key].format(", ".join(names)) for key, names in found.items() if names]
    if said:
        scenes = min(each.scenes for each in told)
        said.append(
            f"Each follows from a 95 % interval over the {scenes} scenes that tested both parts, "
            "of one training: another seed may find other factors."
        )
    return " ".join(said)


def _by_chance(labels: NDArray[Any], target: Target) -> float:
    """Return the score of a guess that is the same for every scene."""
    return chance(labels[known(labels, target)], target)


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    cells = [
        [f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows
    ]
    return make_table(head, cells, title=title, words=("sees it", "encoder of", "sensor"))
