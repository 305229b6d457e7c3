"""Which block tells which factor? Three sensors, factors of all, of each pair and of each alone.

    python benchmarks/blocks.py                        # one seed, under three minutes on two cores
    python benchmarks/blocks.py --seeds 0 1 2 --epochs 12

On `LinearGaussianFactors` with sensors x, y and z, DeCUR with a block of dimensions for all three
and one for each pair is trained beside DeCUR with one common block, of the share that each two
sensors share. Each number is the share of the variance of a factor (R2, in percent) that a ridge on
the dimensions of a part of the embedding tells of pairs that were not trained on: the mean over the
sensors that see the factor, and over seeds. A factor's own part should come first.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from decur.data import LinearGaussianFactors, LoaderSettings
from decur.encoders import EncoderSettings
from decur.features import FeatureModel, SampleLoader, compute_features
from decur.objectives import DeCUR
from decur.pretrain import OptimizerSettings, ProjectorSettings, ViewSettings, pretrain
from decur.pretrain.settings import MonitorSettings
from decur.probes import Halves, predicted, standardised

SENSORS = ("x", "y", "z")
UNSEEN = 1_000_000  # index of the first pair that is probed on: far from any that is trained on
ALL, PAIR, ALONE = 16, 16, 16  # factors
OWN = {"shared": "x+y+z", "shared_xy": "x+y", "shared_xz": "x+z", "shared_yz": "y+z"}


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


def told(objective: DeCUR, samples: int, epochs: int, seed: int) -> dict[tuple[str, str], float]:
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
    found: dict[tuple[str, str], float] = {}
    for factor, target in data.targets.items():
        y = np.stack([each[factor] for each in drawn]).astype(np.float64)  # (N, d)
        for part, dims in objective.parts.items():
            scores = []
            for sensor in target.modalities or SENSORS:
                z = standardised(seen.embeddings[sensor][:, dims]).astype(np.float64)  # (N, k)
                x = Halves(z[:half], z[half:])
                scores.append(float(predicted(x, Halves(y[:half], y[half:]))[0]))
            found[factor, part] = 100 * float(np.mean(scores))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    for name, objective in objectives().items():
        runs = [told(objective, arguments.samples, arguments.epochs, s) for s in arguments.seeds]
        parts = list(objective.parts)
        table = Table("factor", *parts, "its own part first by", title=f"DeCUR, {name}")
        for factor in dict.fromkeys(factor for factor, _ in runs[0]):
            means = {part: float(np.mean([run[factor, part] for run in runs])) for part in parts}
            own = OWN.get(factor, "unique")
            others = [value for part, value in means.items() if part != own]
            ahead = f"{means[own] - max(others):+.0f}" if own in means else "has none"
            table.add_row(factor, *(f"{value:.0f}" for value in means.values()), ahead)
        Console().print(table)


if __name__ == "__main__":
    main()
