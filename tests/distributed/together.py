"""Pretraining on one process and on several, with samples that lack what others have."""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from torch import multiprocessing

from decur import Modality
from decur.data import LoaderSettings, PairedDataset
from decur.encoders import EncoderSettings
from decur.errors import BadSampleError
from decur.objectives import list_objectives
from decur.pretrain import Pretrainer
from decur.pretrain.batchnorm import SyncBatchNorms
from decur.pretrain.data import PairedData
from decur.pretrain.distributed import gather
from decur.pretrain.settings import OptimizerSettings, ProjectorSettings, ViewSettings
from decur.pretrain.trainer import quiet_lightning

SIZE, BATCH, PER_EPOCH = 32, 16, 6
DIM = 24
STEPS = 2 * PER_EPOCH
SAMPLES = PER_EPOCH * BATCH + 5  # the last batch is not whole
ENCODERS = {
    "resnet": EncoderSettings("resnet10t", options={"channels": [8, 8, 16, 16], "stem_width": 8}),
    "vit": EncoderSettings(
        "vit_tiny_patch16_224",
        options={"depth": 2, "embed_dim": 24, "num_heads": 3, "patch_size": 8, "img_size": SIZE},
    ),
}
# LARS by default: AdamW makes whole steps of gradients that are zero but for rounding.
OPTIMIZERS = {
    "lars": OptimizerSettings("lars", lr=0.2, lr_bias=2e-4),
    "adamw": OptimizerSettings("adamw", lr=1e-3),
}


@dataclass(frozen=True)
class Case:
    """What is trained, and which places of each batch lack something."""

    objective: str
    encoder: str
    without_radar: frozenset[int] = frozenset()  # places in every other batch
    unreadable: frozenset[int] = frozenset()  # places in every third batch
    optimizer: str = "lars"

    @property
    def name(self):
        holes = "-holes" if self.without_radar or self.unreadable else ""
        return f"{self.objective}-{self.encoder}-{self.optimizer}{holes}"


class Places(PairedDataset):
    """Optical and radar pictures of the same places, some of them missing, in a fixed order."""

    def __init__(self, case):
        self.modalities = {
            name: Modality(name, bands, value_range=(-3, 3), scaling="range", size=(SIZE, SIZE))
            for name, bands in (("optical", ("r", "g", "b")), ("radar", ("vv", "vh")))
        }
        rng = np.random.default_rng(0)
        shared = rng.normal(size=(SAMPLES, 1, 4, 4)).repeat(SIZE // 4, 2).repeat(SIZE // 4, 3)
        self.pictures = {
            name: (shared + rng.normal(size=(SAMPLES, m.channels, SIZE, SIZE))).astype(np.float32)
            for name, m in self.modalities.items()
        }
        self.ids = [f"{i:04d}" for i in range(SAMPLES)]
        step, place = np.divmod(np.arange(SAMPLES), BATCH)
        lacking = np.isin(place, list(case.without_radar)) & (step % 2 == 1)
        self.unreadable = np.isin(place, list(case.unreadable)) & (step % 3 == 2)
        self.present = {"optical": np.ones(SAMPLES, bool), "radar": ~lacking}
        self.targets = {}

    def read(self, index):
        if self.unreadable[index]:
            raise BadSampleError(self.ids[index], "made so")
        return {
            "id": self.ids[index],
            "images": {
                name: torch.from_numpy(pictures[index])
                for name, pictures in self.pictures.items()
                if self.present[name][index]
            },
        }

    def order(self, rng):
        return np.arange(SAMPLES)


class Losses(Callback):
    """The loss of each step."""

    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.values.append(float(outputs["loss"]))


def build(case):
    torch.manual_seed(0)
    data = Places(case)
    model = Pretrainer(
        data.modalities,
        list_objectives()[case.objective](dim=DIM),
        encoder=ENCODERS[case.encoder],
        projector=ProjectorSettings(DIM),
        views=ViewSettings(24 if case.encoder == "resnet" else SIZE),
        optimizer=OPTIMIZERS[case.optimizer],
        batch_size=BATCH,
        monitor_batches=0,
    )
    return model, PairedData(data, LoaderSettings(BATCH, workers=0))


def train(case, world=1, double=False, more=(), **options):
    """Losses of all steps, and the weights after them."""
    model, data = build(case)
    model = model.double() if double else model
    losses = Losses()
    given = {
        "strategy": "ddp" if world > 1 else "auto",
        "precision": "64-true",
        "max_epochs": STEPS // PER_EPOCH,
        "enable_checkpointing": False,
        **options,
    }
    trainer = L.Trainer(
        accelerator="cpu",
        devices=world,
        callbacks=[losses, *more],
        plugins=[SyncBatchNorms()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **given,
    )
    trainer.fit(model, data)
    if model.is_sharded:
        model = gather(model, build(case)[0])
    return losses.values, {k: v.double() for k, v in model.state_dict().items()}


def silence():
    quiet_lightning()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)


def _work(rank, world, folder, cases, function):
    silence()
    os.environ |= {
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "0",
        "LOCAL_RANK": str(rank),
        "NODE_RANK": "0",
        "WORLD_SIZE": str(world),
    }
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world
    )
    for case in cases:
        found = function(case, world)
        if rank == 0:
            torch.save(found, Path(folder) / f"{case.name}.pt")
    dist.destroy_process_group()


def start(world, folder, cases, function=train):
    """Train all cases on several processes, which leave what `function` gives in a folder."""
    folder.mkdir(parents=True)
    return multiprocessing.start_processes(
        _work,
        (world, str(folder), cases, function),
        nprocs=world,
        join=False,
        start_method="forkserver",
    )


def finish(context, seconds=120):
    """Wait for the processes; the error of the first that fails."""
    while not context.join(seconds):
        pass
