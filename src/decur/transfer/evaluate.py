"""Results of a test part: metrics, how sure they are, and what is written of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from decur import plotting, report
from decur.errors import enumerated
from decur.objectives.blocks import PREFIX
from decur.runs import RunFolder, atomic, write_json, write_text
from decur.terminal import tell_result
from decur.transfer.intervals import Intervals, measure_intervals
from decur.transfer.settings import TransferSettings
from decur.transfer.sources import baseline
from decur.transfer.splits import Parts
from decur.transfer.tasks import Kept, Task

log = logging.getLogger(__name__)

FEW_UNITS = 20  # units, below which an interval is roughly right and wide


def score_test_part(
    parts: Parts, kept: Kept, settings: TransferSettings, never_shown: Collection[str] = ()
) -> dict[str, Any]:
    """Measure the test part: the first entries of `results.json`.

    Args:
        parts: what was trained on and tested on.
        kept: what the task keeps of the test part.
        settings: whether there are intervals, and their seed.
        never_shown: classes that no labelled sample of the data shows.

    Returns:
        "target", "kind", "metrics" with their intervals and floors (the metric of the best guess
        that is the same for every sample), "intervals" and "warnings" in words, and "by_class".
    """
    task = parts.task
    found = Intervals(about="no intervals were asked for (bootstrap is 0).")
    if settings.bootstrap > 0:
        groups = parts.groups(parts.test)
        found = measure_intervals(task, kept, groups, settings.seed, never_shown)
    floors = task.floors(kept)
    metrics: dict[str, dict[str, Any]] = {}
    for name, value in task.metrics(kept).items():
        metrics[name] = {"value": value}
        if name in found.limits:
            metrics[name]["interval"] = list(found.limits[name])
        if name in floors:
            metrics[name]["floor"] = floors[name]
    warnings = [*_absent_in_one(parts), *doubts(task, kept, metrics)]
    if found.limits and found.units < FEW_UNITS:
        unit = "groups" if parts.groups(parts.test) is not None else "samples"
        warnings.append(
            f"the intervals are over {found.units} {unit}; below {FEW_UNITS} they are wide, and "
            "hold the truth in roughly 95 % of cases"
        )
    for line in warnings:
        log.warning(line)
    return {
        "target": task.name,
        "kind": task.kind,
        "metrics": metrics,
        "intervals": found.about,
        "warnings": warnings,
        "by_class": task.by_class(kept),
    }


def _absent_in_one(parts: Parts) -> list[str]:
    """Return a sentence for each sensor that all samples to train on or to test on lack."""
    counts = {"train": len(parts.train), "test": len(parts.test)}
    found = []
    for name, absent in parts.absent.items():
        for here, there in (("train", "test"), ("test", "train")):
            if absent[here] == counts[here] and absent[there] < counts[there]:
                found.append(
                    f"{name} is absent in all {counts[here]} samples to {here} on, and in "
                    f"{absent[there]} of {counts[there]} to {there} on: it tells nothing here"
                )
    return found


def doubts(task: Task, kept: Kept, metrics: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return what keeps results from being read as success, a sentence each.

    Args:
        task: what was learned.
        kept: of the test part.
        metrics: `{metric: {"value", "interval", "floor"}}`, the latter two where there are any.
    """
    found = []
    if len(guessed := task.guesses(kept)) == 1 and task.shows(kept).any(axis=0).sum() > 1:
        only = task.classes[min(guessed)]
        found.append(f"the model predicts {only!r} everywhere, and tells nothing of the label")
    main = metrics.get(task.main, {})
    value, floor, limits = main.get("value"), main.get("floor"), main.get("interval")
    if value is None or math.isnan(value):
        found.append(f"{task.main} is undefined on this test part")
    elif task.main == "R2" and value < 0:
        found.append(
            f"R2 is {value:.3g}: the predictions are worse than the test part's mean, the same for "
            "every sample"
        )
    elif floor is not None and value <= floor:
        found.append(f"{task.main} {value:.3g} is not above {floor:.3g}, that of a constant guess")
    elif floor is not None and limits and limits[0] <= floor:
        found.append(
            f"the interval of {task.main} holds {floor:.3g}, that of a constant guess: on this "
            "test part the model cannot be told from it"
        )
    return found


def describe_transfer(
    parts: Parts, settings: TransferSettings, modalities: Sequence[str], strength: float | None
) -> dict[str, Any]:
    """Describe how a result came about: the further entries of `results.json`.

    Args:
        parts: what was trained on and tested on.
        settings: with a complete `fit`.
        modalities: the sensors that were used.
        strength: the regularisation that was chosen; None where none was.
    """
    task, groups = parts.task, parts.groups(parts.test)
    probed = settings.freeze and not task.dense
    return {
        "encoders": settings.sources,
        "modalities": list(modalities),
        "absent": parts.absent,
        "representation": settings.representation,
        "freeze": settings.freeze,
        "model": _model_in_words(settings, task),
        "regularisation": strength,
        "fit": None if probed and settings.probe != "sgd" else settings.fit.plain(),
        "label_fraction": settings.label_fraction,
        "train": len(parts.train),
        "test": len(parts.test),
        "test_scales": list(settings.test_scales),
        "test_flip": settings.test_flip,
        "test_window": settings.test_window,
        "groups": len(set(groups)) if groups else None,
    }


def _model_in_words(settings: TransferSettings, task: Task) -> str:
    if task.dense:
        return settings.head.upper()
    if not settings.freeze:
        return "late fusion, linear head"
    given = settings.representation
    dimensions = f" on the {given.removeprefix(PREFIX)} dimensions"
    what = {"features": "", "embedding": " on the embedding"}.get(given, dimensions)
    return f"linear head ({settings.probe}){what}"


def write_results(folder: RunFolder, results: dict[str, Any]) -> Path:
    """Write `results.json`, whole; a value that is not finite becomes null."""
    return write_json(folder.path / "results.json", _finite(results))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_predictions(folder: RunFolder, ids: Sequence[str], kept: Kept) -> Path:
    """Write `predictions.npz`: `ids`, and what the task keeps, one row each."""
    path = folder.path / "predictions.npz"
    with atomic(path) as temporary, temporary.open("wb") as stream:
        arrays: dict[str, Any] = {"ids": np.array(ids), **kept}
        np.savez_compressed(stream, **arrays)
    return path


def write_ids(path: Path, ids: Sequence[str]) -> Path:
    """Write one id a line."""
    write_text(path, "".join(f"{id_}\n" for id_ in ids))
    return path


def write_transfer_report(
    folder: RunFolder,
    results: dict[str, Any],
    task: Task,
    kept: Kept,
    examples: Path | None = None,
) -> None:
    """Draw the picture and write the section of `report.html`.

    Args:
        folder: of the run.
        results: as they stand in `results.json`.
        task: what was learned.
        kept: of the test part.
        examples: a picture of samples, where there is one.
    """
    rows = [
        (
            name,
            value["value"],
            value.get("floor", ""),
            *value.get("interval", ("", "")),
        )
        for name, value in results["metrics"].items()
    ]
    body = [
        report.table(("metric", "value", "floor", "low", "high"), rows),
        *(
            report.note(f"{name}: {task.measures[name]}")
            for name, *_ in rows
            if name in task.measures
        ),
        report.paragraph(
            "floor: what the best guess gives that is the same for every sample. low and high: "
            f"{results['intervals']}"
        ),
        *(report.paragraph(f"Warning: {line}.") for line in results["warnings"]),
    ]
    if results["by_class"]:
        names = list(next(iter(results["by_class"].values())))
        body.append(
            report.table(
                ("class", *names),
                [(name, *row.values()) for name, row in results["by_class"].items()],
            )
        )
    if plotting.available():
        path = plotting.save(task.draw(kept), folder.figures / "transfer.png")
        body.append(report.figure(path, f"{task.name} on the test part."))
        if (bars := task.draw_classes(kept)) is not None:
            path = plotting.save(bars, folder.figures / "transfer-classes.png")
            body.append(report.figure(path, "Score of each class, as in the table above."))
        if examples is not None:
            about = "The best, the median and the worst sample of the test part by IoU, with ids."
            body.append(report.figure(examples, about))
    else:
        body.append(report.paragraph(plotting.MISSING))
    if folder.config.is_file():
        body.append(report.details("Configuration", folder.config.read_text()))
    report.add_section(folder, 0, name="summary", title="", body=_summary(folder, results, task))
    report.add_section(
        folder, 30, name="transfer", title=f"Transfer: {task.name}", body="\n".join(body)
    )


def _summary(folder: RunFolder, results: dict[str, Any], task: Task) -> str:
    """Write the first screen: what was tried, three scores beside their floors, what to do next."""
    said, numbers = sentence(results), []
    for name, value in list(results["metrics"].items())[:3]:
        floor = f"{value['floor']:.3g} by a constant guess" if "floor" in value else ""
        limits = "95 %: {:.3g} to {:.3g}".format(*value["interval"]) if "interval" in value else ""
        numbers.append((name, f"{value['value']:.3g}", "; ".join(filter(None, (floor, limits)))))
    then, untrained = [], baseline(results["encoders"])
    whole = results.get("representation", "features") == "features"  # others need a projector
    if folder.config.is_file() and untrained and whole:
        then = [
            f"decur transfer --config {folder.config} --encoders {untrained} "
            f"--run {folder.path}-random   # the same, untrained"
        ]
    return report.summary(f"{task.name}: {said}.", numbers, then=then)


def sentence(results: dict[str, Any]) -> str:
    """Describe what was done in one sentence."""
    how = "frozen" if results["freeze"] else "fine-tuned"
    sensors, validation = enumerated(results["modalities"]), results.get("validation")
    held = f" and {validation['samples']} to validate on" if validation else ""
    return (
        f"{how} encoders of {sensors} from {', '.join(results['encoders'])}, "
        f"{results['model']}; {results['train']} samples to train on{held} "
        f"({100 * results['label_fraction']:g} % of the labels), {results['test']} to test on"
    )


def print_results(console: Console, folder: RunFolder, results: dict[str, Any]) -> None:
    """Print the metrics, and where the rest is."""
    console.print(f"transfer  {sentence(results)}", highlight=False)
    for name, value in results["metrics"].items():
        interval = value.get("interval")
        limits = f"   95 % {interval[0]:.4f} to {interval[1]:.4f}" if interval else ""
        floor = f"   floor {value['floor']:.4f}" if "floor" in value else ""
        console.print(f"{name:<18}{value['value']:.4f}{limits}{floor}", highlight=False)
    given = ["interval" in value for value in results["metrics"].values()]
    if any(given) and not all(given):  # the reason
        console.print(f"intervals {results['intervals']}", highlight=False, markup=False)
    tell_result("results   ", folder.path / "results.json")
    tell_result("report    ", folder.report)


def intervals(
    task: Task, kept: Kept, resamples: int, seed: int = 0, groups: Sequence[str] | None = None
) -> dict[str, tuple[float, float]]:
    """Return the 95 % intervals that `measure_intervals` finds, as version 0.1 is asked for them.

    Args:
        task: whose metrics.
        kept: what it keeps of the test part.
        resamples: 0 for no intervals; any other number asks for them.
        seed: of the order of samples, where several are left out together.
        groups: of the test samples, or None.

    Returns:
        `{metric: (low, high)}`, empty where there are too few groups or samples.
    """
    return measure_intervals(task, kept, groups, seed).limits if resamples > 0 else {}
