"""Which block tells which factor? Three sensors, factors of all, of each pair and of each alone.

    python benchmarks/blocks.py                        # one seed, under a minute on two cores
    python benchmarks/blocks.py --seeds 0 1 2 --epochs 12
    python benchmarks/blocks.py --scenes               # pictures, by the recipe `structure`
    python benchmarks/blocks.py --scenes --labels 600 --epochs 10

On `LinearGaussianFactors` with sensors x, y and z, DeCUR with a block of dimensions for all three
and one for each pair is trained beside DeCUR with one common block, of the share that each two
sensors share. Each number is the share of the variance of a factor (R2, in percent) that a ridge on
the dimensions of a part of the embedding tells of pairs that were not trained on: the mean over the
sensors that see the factor, and over seeds. A factor's own part should come first. What a sensor
shares with no other is in "alone": the unique dimensions and, where there are blocks, those that
leave the sensor out.

With `--scenes` the same is trained on `SyntheticScenes(structure=True, pair_factors=True)` of
optics, radar and heights, and each number is the accuracy of a linear probe, in percent, where a
guess has about a third. With `--labels STEPS` the encoders are first trained on labels, so that
they see all factors, and the table says what DeCUR puts where. Whatever options of `decur pretrain`
are given stand after those of the benchmark, and so replace them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Column, Table

from decur.agreement import Halves, predicted
from decur.data import LinearGaussianFactors, LoaderSettings
from decur.data.generated.structure import LAYOUT, PAIRS, seen_by
from decur.encoders import Encoder, EncoderSettings, save_encoder
from decur.features import FeatureModel, SampleLoader, compute_features
from decur.objectives import DeCUR, Objective
from decur.objectives.blocks import sensors_of
from decur.objectives.decur import SHARE
from decur.pretrain import (
    OptimizerSettings,
    PairedData,
    ProjectorSettings,
    ViewSettings,
    pretrain,
)
from decur.pretrain.command_pretrain import start
from decur.pretrain.monitors import encode_samples
from decur.pretrain.settings import MonitorSettings
from decur.scores import standardised
from structure import PROBED, TRAINED, UNSEEN, features, probed, read, scenes, trained_on

SENSORS = ("x", "y", "z")
OF_SCENES = ["optical", "sar", "elevation"]
ALL, PAIR, ALONE = 16, 16, 16  # factors
ALONE_COLUMN = "alone"
OWN = {"shared_xy": "x+y", "shared_xz": "x+z", "shared_yz": "y+z"}
OWN |= {factor: "+".join(pair) for pair, factor in PAIRS.items()}
Told = dict[tuple[str, str], float]  # of each factor and part


def factors(samples: int, seed: int, start: int = 0) -> LinearGaussianFactors:
    return LinearGaussianFactors(
        samples,
        ALL,
        unique_dims=ALONE,
        dim=ALL + 2 * PAIR + ALONE,
        seed=seed,
        start=start,
        sensors=SENSORS,
        pair_dims=PAIR,
    )


def objectives() -> dict[str, DeCUR]:
    width = ALL + 3 * PAIR + ALONE
    shares = {"x+y+z": ALL / width, **dict.fromkeys(("x+y", "x+z", "y+z"), PAIR / width)}
    return {
        "blocks": DeCUR(width, blocks=shares),
        "one common block": DeCUR(width, common=(ALL + PAIR) / (ALL + 2 * PAIR + ALONE)),
    }


def told(objective: DeCUR, samples: int, epochs: int, seed: int) -> Told:
    """Train; return R2 in percent by factor and part."""
    with tempfile.TemporaryDirectory() as folder:
        model = pretrain(
            factors(samples, seed),
            objective,
            run=str(Path(folder) / "run"),
            encoder=EncoderSettings("mlp"),
            projector=ProjectorSettings(width=objective.dim, layers=1),
            views=ViewSettings(
                size=1,  # one of 16 pixels: a measurement of its own, as in the recipe "gaussian"
                augment={"all": {"crop_scale": [1 / 16, 1 / 16], "crop_ratio": [1.0, 1.0]}},
            ),
            optimizer=OptimizerSettings("adamw", lr=0.001),
            loader=LoaderSettings(batch_size=256, workers=0),
            monitor=MonitorSettings(every_epochs=0),
            seed=seed,
            trainer={"max_epochs": epochs, "accelerator": "cpu"},
        ).model
    data = factors(3000, seed, UNSEEN)
    encoders = {name: model.encoder(name) for name in SENSORS}
    projectors = {name: model.projectors[name] for name in SENSORS}
    whole = FeatureModel(encoders, data.modalities, projectors=projectors, size=1)
    seen = compute_features(whole, SampleLoader(data, settings=LoaderSettings(256, workers=0)))
    drawn = [data.factors(row) for row in range(len(data))]
    half = len(data) // 2
    found: Told = {}
    for factor, target in data.targets.items():
        y = np.stack([each[factor] for each in drawn]).astype(np.float64)  # (N, d)
        scores: dict[str, list[float]] = {}
        for sensor in target.modalities or SENSORS:
            for part, dims in dimensions(objective, sensor).items():
                z = standardised(seen.embeddings[sensor][:, dims]).astype(np.float64)  # (N, k)
                x = Halves(z[:half], z[half:])
                told_of_it = predicted(x, Halves(y[:half], y[half:]))[0]
                scores.setdefault(part, []).append(100 * float(told_of_it))
        found |= {(factor, part): float(np.mean(values)) for part, values in scores.items()}
    return found


def options_of_scenes() -> dict[str, list[str]]:
    """Return options beside the recipe, which has a share of its own, that blocks replace."""
    shares = {"+".join(OF_SCENES): 0.25, **{"+".join(pair): 0.125 for pair in PAIRS}}
    blocks = ["--objective.common", str(SHARE), "--objective.blocks", json.dumps(shares)]
    return {"blocks": blocks, "one common block": ["--objective.common", "0.375"]}


def encoders_of_labels(folder: Path, steps: int, seed: int) -> list[str]:
    """Train an encoder of each sensor on labels of all factors that it sees; return options.

    What it tells of each factor, on scenes that it has not seen, is printed in percent.
    """
    images, labels = read(TRAINED, 0, pairs=True)
    unseen, truth = read(PROBED, UNSEEN, pairs=True)
    files = {}
    for sensor in OF_SCENES:
        known = [
            name for name, by in seen_by(OF_SCENES, True).items() if sensor in (by or [sensor])
        ]
        of_all = torch.stack([labels[name] for name in known], dim=1)  # (N, F)
        encoder = trained_on(images[sensor], of_all, steps, seed)[0]
        assert isinstance(encoder, Encoder)
        vectors = features(encoder, unseen[sensor])
        told = ", ".join(f"{name} {probed(vectors, truth[name]):.0f}" for name in known)
        print(f"seed {seed}, {sensor} after training on labels: {told}", flush=True)
        encoder.modality = scenes(1, 0, OF_SCENES, pairs=True).modalities[sensor]
        files[sensor] = str(save_encoder(encoder, folder / f"{sensor}.safetensors"))
    return ["--encoder.weights", json.dumps(files)]


def told_of_scenes(options: list[str], steps: int, samples: int, epochs: int, seed: int) -> Told:
    """Train by the recipe; return the accuracy in percent by factor and part.

    Args:
        options: of `decur pretrain`.
        steps: of a training of the encoders on labels, which comes first; 0: none.
        samples: number of scenes.
        epochs: of DeCUR.
        seed: of both trainings.
    """
    with tempfile.TemporaryDirectory() as folder:
        if steps:
            options = [*encoders_of_labels(Path(folder), steps, seed), *options]
        of_data = {"modalities": json.dumps(OF_SCENES), "pair_factors": "true", "samples": samples}
        model = start(
            [
                *("--config", "structure", "--run", str(Path(folder) / "run")),
                *(f"--data.{key}={value}" for key, value in of_data.items()),
                *("--monitor.every_epochs", "0", "--trainer.max_epochs", str(epochs)),
                *("--seed", str(seed), *options),
            ]
        ).model
    data = scenes(PROBED, UNSEEN, OF_SCENES, pairs=True)
    seen = encode_samples(model, PairedData(data), PROBED)
    found: Told = {}
    for factor, target in data.targets.items():
        labels = torch.from_numpy(seen.labels[factor])
        scores: dict[str, list[float]] = {}
        for sensor in target.modalities or OF_SCENES:
            for part, dims in dimensions(model.objective, sensor).items():
                z = torch.from_numpy(seen.embeddings[sensor][:, dims])
                scores.setdefault(part, []).append(probed(z, labels))
        found |= {(factor, part): float(np.mean(values)) for part, values in scores.items()}
    return found


def dimensions(objective: Objective, sensor: str) -> dict[str, NDArray[np.int64]]:
    """Return the dimensions of each part as one sensor has them."""
    alone: list[int] = []
    found = {}
    for part, dims in objective.parts.items():
        if part == "common" or sensor in sensors_of(part):
            found[part] = np.arange(dims.start, dims.stop)
        else:
            alone += range(dims.start, dims.stop)
    return found | {ALONE_COLUMN: np.array(alone)}


def first_by(values: NDArray[np.float64], own: int) -> float:
    """Return how far one of some values (parts,) is above the largest of the others."""
    return float(values[own] - np.delete(values, own).max())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenes", action="store_true", help="pictures, not linear mixtures")
    parser.add_argument(
        "--labels",
        type=int,
        default=0,
        metavar="STEPS",
        help="of pictures: train the encoders on labels of all factors first",
    )
    parser.add_argument("--samples", type=int, help="8000 by default, of scenes 2048")
    parser.add_argument("--epochs", type=int, help="5 by default, of scenes 40")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", choices=list(objectives()), help="one of the two ways")
    arguments, options = parser.parse_known_args()
    if (options or arguments.labels) and not arguments.scenes:
        parser.error(f"{options[0] if options else '--labels'} is for --scenes")
    samples, epochs = (2048, 40) if arguments.scenes else (8_000, 5)
    length = (arguments.samples or samples, arguments.epochs or epochs)
    ways: dict[str, Callable[[int], Told]]
    if arguments.scenes:
        ways = {
            name: partial(told_of_scenes, [*each, *options], arguments.labels, *length)
            for name, each in options_of_scenes().items()
        }
    else:
        ways = {name: partial(told, each, *length) for name, each in objectives().items()}
    for name in [arguments.only] if arguments.only else ways:
        train = ways[name]
        runs = [train(seed) for seed in arguments.seeds]
        parts = [part for part in dict.fromkeys(p for _, p in runs[0]) if part != ALONE_COLUMN]
        columns = [Column(part, overflow="fold") for part in parts]
        table = Table("factor", *columns, ALONE_COLUMN, "own part first by", title=f"DeCUR, {name}")
        if len(runs) > 1:
            table.add_column("by seed")
        for factor in dict.fromkeys(factor for factor, _ in runs[0]):
            own = parts[0] if factor in ("shared", LAYOUT) else OWN.get(factor, ALONE_COLUMN)
            found = [part for part in (*parts, ALONE_COLUMN) if (factor, part) in runs[0]]
            # (seeds, parts)
            values = np.array([[run[factor, part] for part in found] for run in runs])
            means = dict(zip(found, values.mean(0), strict=True))
            cells = [
                f"{means[part]:.0f}" if part in means else "" for part in (*parts, ALONE_COLUMN)
            ]
            ahead = ["has none"]
            if own in found:
                place = found.index(own)
                ahead = [f"{first_by(values.mean(0), place):+.0f}"]
                if len(runs) > 1:
                    ahead.append(", ".join(f"{first_by(each, place):+.1f}" for each in values))
            table.add_row(factor, *cells, *ahead)
        Console().print(table)


if __name__ == "__main__":
    main()
