"""What a transfer leaves in its folder: numbers, predictions, a picture, a page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from decur import plotting, report
from decur.runs import RunFolder, atomic, write_json
from decur.transfer.tasks import Kept, Task

SIGNS = {
    "accuracy": "share of samples that are right",
    "macro_F1": "F1 averaged over classes",
    "mAP_micro": "average precision over all decisions",
    "mAP_macro": "average precision averaged over classes",
    "R2": "share of the variance that is explained",
    "MAE": "mean absolute error in the label's units",
    "mIoU": "intersection over union averaged over classes",
    "overall_accuracy": "share of pixels that are right",
}


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
    with atomic(path) as temporary:
        temporary.write_text("".join(f"{id_}\n" for id_ in ids))
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
        (name, value["value"], *value.get("interval", ("", "")), SIGNS.get(name, ""))
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
        body.append(report.paragraph("No pictures: pip install 'decur[explain]' for matplotlib."))
    if folder.config.is_file():
        body.append(report.details("Configuration", folder.config.read_text()))
    report.add_section(folder, 30, "transfer", f"Transfer: {task.name}", "\n".join(body))


def sentence(results: dict[str, Any]) -> str:
    """What was done, in one sentence."""
    how = "frozen" if results["freeze"] else "fine-tuned"
    sensors = " and ".join(results["modalities"])
    return (
        f"{how} encoders of {sensors} from {', '.join(results['encoders'])}, "
        f"{results['model']}; {results['train']} samples to train on "
        f"({100 * results['label_fraction']:g} % of the labels), {results['test']} to test on"
    )
