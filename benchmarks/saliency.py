"""Does saliency lie where it must? On scenes whose clouds and soils are known.

decur pretrain --config demo --run runs/scenes
python benchmarks/saliency.py runs/scenes

decur pretrain --config demo --data.noise true --run runs/noise
python benchmarks/saliency.py runs/noise        # with a band that tells nothing

Pointing game: the share of pictures whose largest saliency lies in the mask, and the share of the
saliency that does, beside the mask's share of the picture, which is what chance gives. The optical
sensor alone sees clouds, radar alone soil moisture (on soils): unique dimensions should look there.
What the sensors share is the ground, so common optical dimensions should look between the clouds.
Of a score's sign: "turned" is the same run with all dimensions multiplied by -1, which the
objective does not tell from the run itself.
"""

from __future__ import annotations

import argparse
import copy
import time
from typing import Literal

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from decur.data import LoaderSettings, SyntheticScenes
from decur.data.generated.scenes import NOISE, SOILS
from decur.explain import Checkpoint, SampleLoader, encoded
from decur.explain.attribution import Pixels
from decur.explain.model import Score
from decur.explain.saliency import saliency_maps
from decur.explain.spatial import spatial
from decur.explain.spectral import SpectralSettings, spectral
from decur.pretrain.restore import restore

UNSEEN = 1_000_000  # index of the first scene: far from any that is trained on
PLAIN = (0.05, 0.95)  # share of a picture that a mask must have, for there to be something to hit


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="folder of a run on SyntheticScenes, optical and sar")
    parser.add_argument("--scenes", type=int, default=400)
    parser.add_argument("--size", type=int, default=64, help="height and width of the scenes")
    parser.add_argument("--samples", type=int, default=64, help="scenes of the spectral part")
    arguments = parser.parse_args()
    trained_on = restore(arguments.run).encoders["optical"].modality
    data = SyntheticScenes(
        arguments.scenes,
        arguments.size,
        modalities=["optical", "sar"],
        start=UNSEEN,
        noise=trained_on is not None and NOISE in trained_on.bands,
    )
    checkpoint = Checkpoint.open(arguments.run, data.modalities)
    loader = SampleLoader(data, settings=LoaderSettings(workers=0))
    console = Console(width=140)
    pointing(console, checkpoint, loader, data)
    overlaps(console, checkpoint, loader)
    convergence(console, checkpoint, loader.some(arguments.samples))
    bands_of(console, checkpoint, loader.some(arguments.samples))


def pointing(
    console: Console, checkpoint: Checkpoint, loader: SampleLoader, data: SyntheticScenes
) -> None:
    """Hits of the masks, by score, sign and feature map."""
    clouds = torch.stack([data.clouds(i) for i in loader.indices])
    cover = torch.stack([data[i]["target"]["mask"] for i in loader.indices])
    masks = {
        ("optical", "unique"): ("clouds", clouds),
        ("optical", "common"): ("between clouds", ~clouds),
        ("sar", "unique"): ("soils", torch.isin(cover, torch.tensor(SOILS))),
    }
    table = Table(title="Pointing game", title_justify="left")
    for column in ("sensor", "part", "mask", "score", "map"):
        table.add_column(column)
    for column in ("empty", "pictures", "hit", "mass", "area", "another scene"):
        table.add_column(column, justify="right")
    for stage in (-1, -2):
        ways: list[tuple[Score, bool]] = [("mean", False), ("mean", True), ("energy", False)]
        for score, turned in ways:
            maps = all_maps(checkpoint, loader, score, stage, turned)
            for (name, part), (what, mask) in masks.items():
                row = hits(maps[name, part], mask)
                label = f"{score}, turned" if turned else score
                table.add_row(name, part, what, label, str(stage), *row)
    console.print(table)


def all_maps(
    checkpoint: Checkpoint, loader: SampleLoader, score: Score, stage: int, turned: bool
) -> dict[tuple[str, str], Tensor]:
    """Maps of all samples: `{(modality, part): (N, H, W)}`."""
    whole = encoded(checkpoint, loader)
    statistics = {name: whole.statistics(name) for name in checkpoint.modalities}
    if turned:
        checkpoint = copy.deepcopy(checkpoint)
        for name in checkpoint.modalities:
            list(checkpoint.projector(name).parameters())[-1].neg_()  # of its last layer
        statistics = {name: (-mean, std) for name, (mean, std) in statistics.items()}
    found: dict[tuple[str, str], list[Tensor]] = {}
    for batch in loader:
        maps = saliency_maps(checkpoint, batch, statistics=statistics, score=score, stage=stage)
        for name, parts in maps.items():
            for part, values in parts.items():
                found.setdefault((name, part), []).append(values)
    return {key: torch.cat(values) for key, values in found.items()}


def hits(maps: Tensor, mask: Tensor) -> list[str]:
    """Share of empty maps, pictures that count, hits, mass, and what both are by chance.

    Chance is the mask's area for a map that looks anywhere, and the hits of another scene's mask
    for one that looks at the centre whatever is there.
    """
    area = mask.float().mean((1, 2))
    empty = maps.amax((1, 2)) <= 0
    use = (area > PLAIN[0]) & (area < PLAIN[1]) & ~empty
    maps, mask, area = maps[use].flatten(1), mask[use].flatten(1), area[use]
    hit = mask.gather(1, maps.argmax(1, keepdim=True)).float().mean()
    other = mask.roll(len(mask) // 2, 0).gather(1, maps.argmax(1, keepdim=True)).float().mean()
    mass = ((maps * mask).sum(1) / maps.sum(1)).mean()
    return [f"{empty.float().mean():.2f}", str(len(maps))] + [
        f"{float(value):.2f}" for value in (hit, mass, area.mean(), other)
    ]


def overlaps(console: Console, checkpoint: Checkpoint, loader: SampleLoader) -> None:
    """How far the maps of the two sensors overlap, beside another scene's."""
    table = Table(title="Overlap of optical and sar", title_justify="left")
    for column in ("score", "map", "part", "pictures", "overlap", "another scene", "seconds"):
        table.add_column(column)
    ways: list[tuple[Score, int]] = [("mean", -1), ("mean", -2), ("energy", -1), ("energy", -2)]
    for score, stage in ways:
        started = time.perf_counter()
        arrays = spatial(checkpoint, loader, score=score, stage=stage)
        seconds = time.perf_counter() - started
        for part in checkpoint.parts:
            same, other = (arrays[f"optical-sar/{part}/{kind}"] for kind in ("overlap", "other"))
            means = (f"{np.nanmean(values):.3f}" for values in (same, other))
            count = f"{np.isfinite(same).sum()} of {len(same)}"
            table.add_row(score, str(stage), part, count, *means, f"{seconds:.1f}")
    console.print(table)


def convergence(console: Console, checkpoint: Checkpoint, loader: SampleLoader) -> None:
    """How far the shares of bands are from those of 48 steps, beside how pictures differ."""
    table = Table(title="Shares of bands against those of 48 steps", title_justify="left")
    for column in ("sensor", "part", "steps", "a picture, rms", "the mean, most", "spread"):
        table.add_column(column)
    fine = spectral(checkpoint, loader, settings=SpectralSettings(steps=48))
    for steps in (4, 8, 16):
        arrays = spectral(checkpoint, loader, settings=SpectralSettings(steps=steps))
        for name in checkpoint.modalities:
            for part in checkpoint.parts:
                true = fine[f"{name}/{part}/importance"]  # (n, C)
                missed = arrays[f"{name}/{part}/importance"] - true
                values = (missed**2).mean() ** 0.5, abs(missed.mean(0)).max(), true.std(0).mean()
                table.add_row(name, part, str(steps), *(f"{value:.3f}" for value in values))
    console.print(table)


def bands_of(console: Console, checkpoint: Checkpoint, loader: SampleLoader) -> None:
    """Importance of the optical bands, and how it converges with the steps."""
    checkpoint.modalities.pop("sar")
    bands = checkpoint.modalities["optical"].bands
    table = Table(title=f"Importance of bands, {len(loader.indices)} scenes", title_justify="left")
    for column in ("score", "pixels", "start", "steps", "part", *bands, "error", "seconds"):
        table.add_column(column)
    rules: tuple[Pixels, ...] = ("absolute", "net")
    choices: list[tuple[Score, Pixels, float | Literal["other"], int]]
    choices = [("mean", pixels, 0.0, steps) for pixels in rules for steps in (8, 16)]
    choices += [("mean", "net", 0.0, 48), ("mean", "net", "other", 16)]
    choices += [("energy", pixels, 0.0, 16) for pixels in rules]
    choices += [("energy", "net", "other", 16)]
    for score, pixels, start, steps in choices:
        started = time.perf_counter()
        arrays = spectral(
            checkpoint,
            loader,
            settings=SpectralSettings(steps=steps, score=score, pixels=pixels, baseline=start),
        )
        seconds = time.perf_counter() - started
        for part in checkpoint.parts:
            means = arrays[f"optical/{part}/importance"].mean(0)
            table.add_row(
                *(score, pixels, str(start), str(steps), part),
                *(f"{mean:.3f}" for mean in means),
                f"{arrays[f'optical/{part}/error']:.0%}",
                f"{seconds:.1f}",
            )
    scores: tuple[Score, ...] = ("mean", "energy")
    for score in scores:
        arrays = spectral(checkpoint, loader, settings=SpectralSettings(steps=1, score=score))
        for part in checkpoint.parts:
            means = arrays[f"optical/{part}/exchanged"].mean(0)
            table.add_row(score, "", "", "exchanged", part, *(f"{mean:.3f}" for mean in means))
    console.print(table)


if __name__ == "__main__":
    main()
