"""A cell of a comparison: one command with its configuration, and the files it leaves when done."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

DONE = "cell.json"  # in a cell's folder once it is finished
LOG = "log.txt"  # what the command printed
LOCK = "cell.lock"  # held by the process that works on the cell


@dataclass(frozen=True)
class Cell:
    """One command of a comparison.

    Args:
        command: of `decur`.
        folder: the run's; its name ends in a digest of the configuration.
        config: the whole configuration, YAML.
        needs: folders of the pretraining runs whose encoders it takes.
        method: its name.
        backbone: its name.
        seed: its seed.
        task: the task's name; empty for pretraining.
        modalities: the sensors; empty for all.
        label_fraction: share of the labels.
    """

    command: Literal["pretrain", "transfer"]
    folder: Path
    config: str
    needs: tuple[Path, ...]
    method: str
    backbone: str
    seed: int
    task: str = ""
    modalities: tuple[str, ...] = ()
    label_fraction: float = 1.0

    @property
    def label(self) -> str:
        """A line that names the cell for people."""
        parts = [self.task or "pretraining", self.method, self.backbone, "+".join(self.modalities)]
        if self.task:
            parts.append(f"{100 * self.label_fraction:g} %")
        return ", ".join([*filter(None, parts), f"seed {self.seed}"])


@dataclass(frozen=True)
class Axis:
    """A number in which methods differ; pictures show the scores along it.

    Args:
        name: what the number is, with its unit.
        at: `{method: number}` of the methods that have one.
    """

    name: str
    at: Mapping[str, float]


def is_done(cell: Cell) -> bool:
    """Whether the cell has been finished, by this comparison or an earlier one."""
    return (cell.folder / DONE).is_file()


def seconds(cell: Cell) -> float | None:
    """How long a finished cell took, without the time before an interruption; else None."""
    if not is_done(cell):
        return None
    return float(json.loads((cell.folder / DONE).read_text())["seconds"])


def read_scores(cell: Cell) -> dict[str, float | None]:
    """All metrics of a finished transfer; None for one that its test part does not define."""
    metrics = json.loads((cell.folder / "results.json").read_text())["metrics"]
    return {name: found["value"] for name, found in metrics.items()}
