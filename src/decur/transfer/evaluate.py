"""Results of a test part: metrics, how sure they are, and what is written of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from decur import plotting, report
from decur.runs import RunFolder, atomic, write_json, write_text
from decur.transfer.settings import TransferSettings
from decur.transfer.splits import Parts
from decur.transfer.tasks import Kept, Task

log = logging.getLogger(__name__)


def intervals(
    task: Task, kept: Kept, resamples: int, seed: int = 0, groups: Sequence[str] | None = None
) -> dict[str, tuple[float, float]]:
    """Return bootstrap 95 % intervals (percentiles) of a task's metrics.

    Args:
        task: whose metrics.
        kept: what it keeps of the test part.
        resamples: how often the test part is drawn anew, with replacement; 0 for no intervals.
        seed: of the draws.
        groups: of the test samples, or None. Whole groups are drawn, since samples of one group
            are not independent.

    Returns:
        `{metric: (low, high)}`; NaN where a metric could never be measured. Empty for a single
        sample or group, which is the same in every draw.
    """
    if resamples < 1:
        return {}
    measured = {key: kept[key] for key in task.measured}
    count = len(next(iter(measured.values())))
    units = [np.array([row]) for row in range(count)]
    if groups is not None:
        names = np.array(groups)
        units = [np.flatnonzero(names == name) for name in np.unique(names)]
    if len(units) < 2:
        unit = "sample" if groups is None else "group"
        log.warning("the test part is a single %s, so its metrics have no interval", unit)
        return {}
    rng = np.random.default_rng(seed)
    found: dict[str, list[float]] = {}
    for _ in range(resamples):
        rows = np.concatenate([units[i] for i in rng.integers(0, len(units), len(units))])
        for name, value in task.metrics({k: v[rows] for k, v in measured.items()}).items():
            found.setdefault(name, []).append(value)
    limits = {}
    for name, values in found.items():
        there = np.array(values)[~np.isnan(values)]
        low, high = np.percentile(there, (2.5, 97.5)) if len(there) else (np.nan, np.nan)
        limits[name] = (float(low), float(high))
    return limits


def measure(parts: Parts, kept: Kept, settings: TransferSettings) -> dict[str, Any]:
    """Measure the test part: the first entries of `results.json`.

    Args:
        parts: what was trained on and tested on.
        kept: what the task keeps of the test part.
        settings: number of resamples, and their seed.

    Returns:
        "target", "kind", "metrics" with their intervals, and "by_class".
    """
    task = parts.task
    limits = intervals(task, kept, settings.bootstrap, settings.seed, parts.groups(parts.test))
    return {
        "target": task.name,
        "kind": task.kind,
        "metrics": {
            name: {"value": value, **({"interval": list(limits[name])} if limits else {})}
            for name, value in task.metrics(kept).items()
        },
        "by_class": task.by_class(kept),
    }


def describe(
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
        "groups": len(set(groups)) if groups else None,
    }


def _model_in_words(settings: TransferSettings, task: Task) -> str:
    if task.dense:
        return settings.head.upper()
    if not settings.freeze:
        return "late fusion, linear head"
    what = {
        "features": "",
        "embedding": " on the embedding",
        "common": " on the common dimensions",
        "unique": " on the unique dimensions",
    }
    return f"linear head ({settings.probe}){what[settings.representation]}"


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


def write_report(folder: RunFolder, results: dict[str, Any], task: Task, kept: Kept) -> None:
    """Draw the picture and write the section of `report.html`.

    Args:
        folder: of the run.
        results: as they stand in `results.json`.
        task: what was learned.
        kept: of the test part.
    """
    rows = [
        (name, value["value"], *value.get("interval", ("", "")), task.measures.get(name, ""))
        for name, value in results["metrics"].items()
    ]
    body = [
        report.paragraph(sentence(results)),
        report.table(("metric", "value", "low", "high", "what it is"), rows),
    ]
    if results["metrics"] and "interval" in next(iter(results["metrics"].values())):
        unit = "groups" if results["groups"] else "samples"
        body.append(
            report.paragraph(f"low and high: bootstrap 95 % interval over the test part's {unit}.")
        )
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
    else:
        body.append(report.paragraph(plotting.MISSING))
    if folder.config.is_file():
        body.append(report.details("Configuration", folder.config.read_text()))
    report.add_section(folder, 30, "transfer", f"Transfer: {task.name}", "\n".join(body))


def sentence(results: dict[str, Any]) -> str:
    """Describe what was done in one sentence."""
    how = "frozen" if results["freeze"] else "fine-tuned"
    sensors = " and ".join(results["modalities"])
    return (
        f"{how} encoders of {sensors} from {', '.join(results['encoders'])}, "
        f"{results['model']}; {results['train']} samples to train on "
        f"({100 * results['label_fraction']:g} % of the labels), {results['test']} to test on"
    )


def print_results(console: Console, folder: RunFolder, results: dict[str, Any]) -> None:
    """Print the metrics, and where the rest is."""
    console.print(f"transfer  {sentence(results)}", highlight=False)
    for name, value in results["metrics"].items():
        interval = value.get("interval")
        limits = f"   95 % {interval[0]:.4f} to {interval[1]:.4f}" if interval else ""
        console.print(f"{name:<18}{value['value']:.4f}{limits}", highlight=False)
    console.print(f"results   {folder.path / 'results.json'}", highlight=False)
    console.print(f"report    {folder.report}", highlight=False)
