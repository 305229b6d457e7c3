"""Does `objective.common: auto` find the share? Linear-Gaussian factors, of which it is known.

    python benchmarks/share.py                      # one seed, about four minutes on two cores
    python benchmarks/share.py --seeds 0 1 2

Of 100 factors of each of two sensors 10, 25, 50, 75 and 90 are shared. An MLP with 128 dimensions
is trained with all dimensions common, as long as a run of so many epochs would; then directions
are counted on pairs that it was not trained on. The training that follows is not measured here.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import lightning as L
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from decur.data import LinearGaussianFactors, LoaderSettings
from decur.objectives import DeCUR
from decur.objectives.decur import SHARE
from decur.pretrain import OptimizerSettings, Pretrainer, ProjectorSettings, ViewSettings
from decur.pretrain.data import PairedData
from decur.pretrain.directions import Counted
from decur.pretrain.share import CountShare, counting_epochs, hold_out, tell_share
from decur.pretrain.trainer import quiet_lightning
from decur.runs import RunFolder

FACTORS, WIDTH, BATCH = 100, 128, 256
SHARED = (10, 25, 50, 75, 90)


def found(shared: int, arguments: argparse.Namespace, seed: int, console: Console) -> float:
    """Return the share that is counted, in percent."""
    data = LinearGaussianFactors(
        arguments.samples, shared, unique_dims=FACTORS - shared, dim=FACTORS, seed=seed
    )
    torch.manual_seed(seed)
    model = Pretrainer(
        data.modalities,
        DeCUR(WIDTH, common="auto"),
        encoder="mlp",
        projector=ProjectorSettings(width=WIDTH, layers=1),
        views=ViewSettings(
            size=1,  # one of 16 pixels: a measurement of its own, as in the recipe "gaussian"
            augment={"all": {"crop_scale": [1 / 16, 1 / 16], "crop_ratio": [1.0, 1.0]}},
        ),
        optimizer=OptimizerSettings("adamw", lr=0.001),
        seed=seed,
    )
    model.log_to = None
    paired = PairedData(data, LoaderSettings(batch_size=BATCH, workers=0), seed=seed)
    fewer = hold_out(paired)
    with tempfile.TemporaryDirectory() as folder:
        L.Trainer(
            accelerator="cpu",
            max_epochs=counting_epochs(arguments.epochs, fewer.steps_per_epoch),
            callbacks=[CountShare(RunFolder(Path(folder)))],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=Path(folder),
        ).fit(model, fewer)
        counted = Counted.read(RunFolder(Path(folder)))
    assert counted is not None and isinstance(model.objective, DeCUR)
    tell_share(counted, model.objective, console)
    share = counted.share()
    return 100 * (SHARE if share is None else share)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=20, help="of the run, which are not trained")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--verbose", action="store_true", help="print what is counted")
    arguments = parser.parse_args()
    quiet_lightning()
    console, started = Console(soft_wrap=True, quiet=not arguments.verbose), time.monotonic()
    table = Table("true share", *(f"found, seed {seed}" for seed in arguments.seeds), "mean error")
    errors = []
    for shared in SHARED:
        shares = [found(shared, arguments, seed, console) for seed in arguments.seeds]
        missed = [abs(share - 100 * shared / FACTORS) for share in shares]
        errors += missed
        cells = (f"{share:.0f} %" for share in shares)
        table.add_row(f"{100 * shared / FACTORS:.0f} %", *cells, f"{np.mean(missed):.0f}")
    Console().print(table)
    epochs = counting_epochs(arguments.epochs, int(0.9 * arguments.samples) // BATCH)
    print(
        f"mean error {np.mean(errors):.1f} points; {arguments.samples} pairs, counted after "
        f"{epochs} epochs, of a run of {arguments.epochs}; {time.monotonic() - started:.0f} s"
    )


if __name__ == "__main__":
    main()
