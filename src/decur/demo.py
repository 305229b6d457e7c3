"""`decur demo`: the whole way on generated scenes, where the truth is known."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pkgutil import resolve_name

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from decur import report
from decur.data import SyntheticScenes
from decur.errors import ConfigError
from decur.pretrain import PairedData, Pretrainer
from decur.pretrain.command_pretrain import build_parser, parse
from decur.pretrain.command_pretrain import main as pretrain
from decur.pretrain.monitors import encode
from decur.probes import METRICS, quick_probe

SAMPLES = 1500  # half train a probe, half test it
_ABOUT = (
    "Pretrain on generated optical and radar scenes, probe the encoders on scenes that they have "
    "not seen, and write a report. Every option of `decur pretrain` changes the recipe `demo`."
)
UNSEEN = 1_000_000  # how far the first scene that is probed is from the first trained on


def main(arguments: Sequence[str]) -> None:
    """Run `decur demo ARGUMENTS`: pretrain by the recipe `demo`, probe, report.

    Args:
        arguments: any option of `decur pretrain`.

    Raises:
        DecurError: for whatever a person can mend.
    """
    if {"-h", "--help"} & set(arguments):
        build_parser("decur demo", _ABOUT).print_help()
        return
    started = time.monotonic()
    console = Console(soft_wrap=True)
    arguments = ["--config", "demo", *arguments]
    spec = parse(arguments)[1].data
    if resolve_name(spec.class_path) is not SyntheticScenes:
        raise ConfigError(
            "--data: the demo probes SyntheticScenes; use `decur pretrain` for others"
        )
    trained = pretrain(arguments)
    folder, model = trained.folder, trained.model
    console.print(f"\nprobing {SAMPLES} scenes that were not trained on")
    made_of = spec.init_args.as_dict()
    changes = {"samples": SAMPLES, "start": made_of["start"] + UNSEEN}
    scenes = SyntheticScenes(**{**made_of, **changes, "modalities": list(model.modalities)})
    data = PairedData(scenes)
    features = _feature_scores(model, data)
    parts = _part_scores(model, data)
    sections = []
    for title, head, rows, reading in (
        (
            "What the encoders know (linear probe of frozen features)",
            ("factor", "sees it", "encoder of", "random weights", "pretrained"),
            features,
            "Random weights are the same network before training: a factor that is a plain matter "
            "of colour or brightness is easily read from them, too.",
        ),
        (
            "Where they keep it (linear probe of the projector's dimensions)",
            ("factor", "sees it", "sensor", *model.objective.parts),
            parts,
            "Common dimensions should carry what both sensors see, unique ones what only this "
            "sensor sees.",
        ),
    ):
        _print(console, title, head, rows)
        sections += [report.paragraph(title), report.table(head, rows), report.paragraph(reading)]
    text = (
        f"{SAMPLES} generated scenes that were not trained on, half to fit and half to test. "
        "Scores: " + ", ".join(f"{kind} {metric}" for kind, metric in METRICS.items()) + "."
    )
    body = "\n".join([report.paragraph(text), *sections])
    report.add_section(folder, 20, "demo", "What the encoders have learned", body)
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    console.print(f"\ndone in {minutes} min {seconds} s", highlight=False)
    console.print(f"report    {folder.report.resolve()}", highlight=False)
    for name in model.modalities:
        console.print(f"encoder   {folder.encoder(name).resolve()}", highlight=False)


def _feature_scores(model: Pretrainer, data: PairedData) -> list[tuple[object, ...]]:
    """Rows (factor, sensors that see it, encoder, random, pretrained)."""
    torch.manual_seed(model.seed)
    fresh = Pretrainer(
        model.modalities,
        model.objective,
        encoder={name: model.encoder(name).name for name in model.modalities},
        views=model.view_settings,
    )
    rows: list[tuple[object, ...]] = []
    before, after = (encode(m, data, SAMPLES) for m in (fresh, model))
    for name, labels in after.labels.items():
        target = data.dataset.targets[name]
        scores = [quick_probe(encoded.features, labels, target) for encoded in (before, after)]
        for key in scores[1]:
            if key.endswith("/linear"):
                seen = ", ".join(target.modalities) or "all"
                rows.append((name, seen, key[:-7], scores[0][key], scores[1][key]))
    return rows


def _part_scores(model: Pretrainer, data: PairedData) -> list[tuple[object, ...]]:
    """Rows (factor, sensors that see it, sensor, score of each part of the embedding)."""
    encoded = encode(model, data, SAMPLES)
    rows: list[tuple[object, ...]] = []
    for name, labels in encoded.labels.items():
        target = data.dataset.targets[name]
        for sensor, z in encoded.embeddings.items():
            scores = [
                quick_probe({sensor: z[:, part]}, labels, target).get(f"{sensor}/linear", np.nan)
                for part in model.objective.parts.values()
            ]
            rows.append((name, ", ".join(target.modalities) or "all", sensor, *scores))
    return rows


def _print(
    console: Console, title: str, head: Sequence[str], rows: Sequence[Sequence[object]]
) -> None:
    table = Table(title=title, title_justify="left")
    for column in head:
        table.add_column(column)
    for row in rows:
        table.add_row(*(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row))
    console.print(table)
