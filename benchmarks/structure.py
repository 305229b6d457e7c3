"""Does DeCUR split factors that a network with random weights hardly finds?

    python benchmarks/structure.py
    python benchmarks/structure.py --steps 200 --seeds
    python benchmarks/structure.py --steps 0 --seeds 0 1 2 --objective.common 0.5
    python benchmarks/structure.py --steps 200 --seeds --pairs

On `SyntheticScenes(structure=True)` of optics, radar and heights; `--pairs` adds the factors that
two of the three share. The first table says what a small network of one sensor tells of scenes that
it has not seen: with random weights and a linear probe (mean and standard deviation over networks),
after training on labels, and what the trained network tells of factors that only other sensors see,
beside a guess. The tables that follow are of DeCUR on optics and radar, by the recipe `structure`
and whatever options of `decur pretrain` are given: accuracy of linear probes of the features and of
both parts of the embedding, seed by seed, then as mean and standard deviation over seeds, with the
p-value of a paired t test of the difference of the parts, not corrected for the number of tests.
With each seed come the correlation of the common dimensions, epoch by epoch, the effective ranks of
features and embeddings, and how much of the features hangs on the bands that show a factor: the
share of their variance that changes where these bands are another scene's, with random weights and
after training. All in percent. Probes are fitted on one half of the scenes and tested on the other;
a guess is the class that is most frequent in the first.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from decur.data import SyntheticScenes
from decur.data.generated.structure import DIRECTIONS, LAYOUT, OWN, bands_of, seen_by
from decur.encoders import build_encoder
from decur.errors import ConfigError
from decur.pretrain import PairedData
from decur.pretrain.command_pretrain import parse, start
from decur.pretrain.metrics import read_metrics
from decur.pretrain.module import Pretrainer
from decur.pretrain.monitors import effective_ranks, encode_samples
from decur.probes import quick_probe
from decur.verdicts import paired_p
from floods import spread

SIZE, ENCODER = 48, "test_resnet"
TRAINED, PROBED, UNSEEN = 3000, 1500, 1_000_000
Pictures = dict[str, Tensor]
Labels = dict[str, Tensor]
Scores = dict[tuple[str, str], list[float]]  # of each factor and sensor


def scenes(count: int, start: int, sensors: list[str], pairs: bool) -> SyntheticScenes:
    return SyntheticScenes(
        count, SIZE, start=start, modalities=sensors, structure=True, pair_factors=pairs
    )


def read(count: int, start: int, pairs: bool) -> tuple[Pictures, Labels]:
    """Return pictures as encoders see them, and labels, both of all sensors."""
    data = scenes(count, start, list(OWN), pairs)
    samples = [data[i] for i in range(count)]
    images = {name: torch.stack([s["images"][name] for s in samples]) for name in data.modalities}
    labels = {name: torch.stack([s["target"][name] for s in samples]) for name in data.targets}
    return {name: data.modalities[name].scale(x) for name, x in images.items()}, labels


@torch.no_grad()
def features(network: nn.Module, images: Tensor) -> Tensor:
    network.eval()
    return torch.cat([network(batch) for batch in images.split(128)])


def changes(network: nn.Module, images: Tensor, bands: slice) -> float:
    """Return how much of the features' variance changes with some bands, in percent.

    Args:
        network: from pictures (N, C, H, W) to features (N, d).
        images: of many scenes.
        bands: those that each scene gets from the next one.
    """
    mixed = images.clone()
    mixed[:, bands] = images.roll(1, 0)[:, bands]
    own, other = features(network, images), features(network, mixed)  # (N, d)
    # twice the variance is what two scenes differ by
    return 100 * float((own - other).square().mean() / (2 * own.var(0, unbiased=False).mean()))


def probed(rows: Tensor, labels: Tensor) -> float:
    """Return the accuracy of a linear probe, in percent."""
    target = SyntheticScenes(1, 16, structure=True).targets[LAYOUT]
    found = quick_probe({"x": rows.numpy()}, labels.numpy(), target)
    return 100 * found["x/linear"]


def guessed(labels: Tensor) -> float:
    """Return the accuracy of one guess for all scenes, in percent."""
    return probed(torch.zeros(len(labels), 1), labels)


def trained_on(images: Tensor, labels: Tensor, steps: int, seed: int = 0) -> nn.Sequential:
    """Train a network of one sensor and its classifier on labels; flips are all that is varied.

    Args:
        images: (N, C, H, W) as encoders see them.
        labels: (N,) of one factor, or (N, F) of several at once.
        steps: of 64 pictures.
        seed: of the weights and of the order.
    """
    torch.manual_seed(seed)
    encoder = build_encoder(ENCODER, images.shape[1])
    answers = (len(DIRECTIONS), *labels.shape[1:])
    network = nn.Sequential(encoder, nn.LazyLinear(math.prod(answers)))
    network(images[:2])
    optimiser = torch.optim.AdamW(network.parameters(), 0.003)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.003, total_steps=steps)
    network.train()
    for _ in range(steps):
        chosen = torch.randint(len(images), (64,))
        flipped = [axis for axis in (-1, -2) if torch.rand(()) < 0.5]
        told = network(images[chosen].flip(flipped)).unflatten(1, answers)  # (B, 3) or (B, 3, F)
        loss = F.cross_entropy(told, labels[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return network


def told_by(
    sensors: list[str], networks: list[int], steps: int, pairs: bool
) -> list[tuple[str, ...]]:
    """Return rows (sensor, factor, guess, random, supervised, factors of others and a guess)."""
    images, labels = read(TRAINED, 0, pairs)
    unseen, truth = read(PROBED, UNSEEN, pairs)
    rows: list[tuple[str, ...]] = []
    for sensor in sensors:
        untrained = []
        for seed in networks:
            torch.manual_seed(seed)
            untrained.append(
                features(build_encoder(ENCODER, unseen[sensor].shape[1]), unseen[sensor])
            )
        seen = seen_by([sensor], pairs)
        others = [factor for factor in truth if factor not in seen]
        for factor in seen:
            random = [probed(vectors, truth[factor]) for vectors in untrained]
            network = trained_on(images[sensor], labels[factor], steps)
            right = features(network, unseen[sensor]).argmax(1) == truth[factor]
            vectors = features(network[0], unseen[sensor])
            told = {
                other: (probed(vectors, truth[other]), guessed(truth[other])) for other in others
            }
            rows.append(
                (
                    *(sensor, factor, f"{guessed(truth[factor]):.1f}", spread(np.array(random))),
                    f"{100 * right.float().mean():.1f}",
                    ", ".join(f"{name} {x:.1f} ({guess:.1f})" for name, (x, guess) in told.items()),
                )
            )
            print(*rows[-1], flush=True)
    return rows


def hangs_on(model: Pretrainer, seed: int, pairs: bool) -> Table:
    """Return how much the features of each sensor change with the bands of each factor."""
    table = Table("bands of", "sensor", "random", "trained", title="what features hang on")
    sensors = list(model.modalities)
    images, _ = read(PROBED, UNSEEN, pairs)
    for sensor in sensors:
        torch.manual_seed(seed)
        random = build_encoder(ENCODER, images[sensor].shape[1])
        factors = [
            name for name, by in seen_by(sensors, pairs).items() if sensor in (by or sensors)
        ]
        start = 0
        for factor, count in zip(
            factors, bands_of(len(factors), images[sensor].shape[1]), strict=True
        ):
            bands = slice(start, start := start + count)
            told = (changes(net, images[sensor], bands) for net in (random, model.encoder(sensor)))
            table.add_row(factor, sensor, *(f"{value:.1f}" for value in told))
    return table


def split(seed: int, options: list[str], pairs: bool) -> Scores:
    """Pretrain by the recipe; return the scores of a guess, of the features and of each part."""
    sensors = ["optical", "sar"]
    with tempfile.TemporaryDirectory() as folder:
        fixed = ["--run", str(Path(folder) / "run"), "--seed", str(seed)]
        fixed += ["--data.pair_factors", str(pairs).lower()]
        run = start(["--config", "structure", "--monitor.every_epochs", "0", *options, *fixed])
        by_epoch = read_metrics(run.folder)
    data = PairedData(scenes(PROBED, UNSEEN, sensors, pairs))
    found = encode_samples(run.model, data, PROBED)
    diagonal = [f"{row['diagonal/common/optical-sar']:.2f}" for row in by_epoch]
    print(f"seed {seed}, common diagonal by epoch:", *diagonal)
    print(*(f"{key} {rank:.1f}" for key, rank in effective_ranks(found).items()))
    Console().print(hangs_on(run.model, seed, pairs))
    scores: Scores = {}
    for factor in data.dataset.targets:
        for sensor, z in found.embeddings.items():
            labels = torch.from_numpy(found.labels[factor])
            parts = [torch.from_numpy(z[:, part]) for part in run.model.objective.parts.values()]
            vectors = (torch.from_numpy(found.features[sensor]), *parts)
            scores[factor, sensor] = [guessed(labels), *(probed(v, labels) for v in vectors)]
    return scores


def scores_table(title: str, by_seed: list[Scores]) -> Table:
    """Return the scores of some seeds, and how far the unique part is above the common one."""
    table = Table("factor", "sensor", "guess", "features", "common", "unique", title=title)
    table.add_column("unique - common")
    if is_tested := len(by_seed) > 1:
        table.add_column("p")
    for factor, sensor in by_seed[0]:
        guess, *parts = np.array([scores[factor, sensor] for scores in by_seed]).T  # (seeds,) each
        row = [factor, sensor, f"{guess[0]:.1f}", *map(spread, parts)]
        if len(parts) == 3:  # there may be no common or no unique dimensions
            above = parts[2] - parts[1]
            row.append(spread(above, sign=True))
            if is_tested:
                row.append(f"{paired_p(above):.2g}")
        table.add_row(*row)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sensors", nargs="+", default=list(OWN), choices=list(OWN))
    parser.add_argument("--networks", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--pairs", action="store_true", help="add factors of each two sensors")
    parser.add_argument("--steps", type=int, default=250, help="of training on labels; 0: none")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0], help="of DeCUR; none: none")
    arguments, options = parser.parse_known_args()
    try:  # before minutes of work
        given, settings = parse(["--config", "structure", *options])
        given.instantiate(settings)
    except ConfigError as error:
        parser.error(str(error))
    console = Console()
    if arguments.steps:
        table = Table("sensor", "factor", "guess", "random", "supervised", "of others (guess)")
        for row in told_by(arguments.sensors, arguments.networks, arguments.steps, arguments.pairs):
            table.add_row(*row)
        console.print(table)
    found: list[Scores] = []
    for seed in arguments.seeds:
        found.append(split(seed, options, arguments.pairs))
        console.print(scores_table(f"DeCUR, seed {seed}", found[-1:]))
    if len(found) > 1:
        console.print(scores_table(f"DeCUR, {len(found)} seeds", found))


if __name__ == "__main__":
    main()
