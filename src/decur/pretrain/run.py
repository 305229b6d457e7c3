"""A whole pretraining run: from a data set and an objective to a folder with encoders in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from decur import plotting
from decur.data import LoaderSettings, PairedDataset
from decur.data.selection import select
from decur.encoders import EncoderSettings, save_encoder
from decur.objectives import Objective
from decur.pretrain import figures
from decur.pretrain.callbacks import (
    BadSamples,
    EpochLog,
    ProgressBar,
    tensorboard,
)
from decur.pretrain.compiling import Compile
from decur.pretrain.data import EpochBatches, PairedData
from decur.pretrain.distributed import (
    Sharded,
    SyncBatchNorms,
    gather,
    reporting_lost_processes,
)
from decur.pretrain.module import Pretrainer
from decur.pretrain.optim import build_optimizer, describe_groups
from decur.pretrain.reporting import finish_report
from decur.pretrain.settings import (
    CheckpointSettings,
    MonitorSettings,
    OptimizerSettings,
    ProjectorSettings,
    ViewSettings,
)
from decur.pretrain.state import AtomicCheckpointIO, TrainingState, open_run
from decur.pretrain.trainer import (
    limited,
    make_engine,
    quiet_lightning,
    refuse_accumulation,
    refuse_endless,
    seed_everything,
)
from decur.runs import RunFolder


@dataclass(frozen=True)
class Pretrained:
    """What a run leaves: its folder, and the model in memory."""

    folder: RunFolder
    model: Pretrainer


def pretrain(
    data: PairedDataset,
    objective: Objective,
    run: str = "runs/pretrain",
    modalities: Sequence[str] | None = None,
    encoder: EncoderSettings = EncoderSettings(),  # noqa: B008
    projector: ProjectorSettings = ProjectorSettings(),  # noqa: B008
    views: ViewSettings = ViewSettings(),  # noqa: B008
    optimizer: OptimizerSettings = OptimizerSettings(),  # noqa: B008
    loader: LoaderSettings = LoaderSettings(),  # noqa: B008
    monitor: MonitorSettings = MonitorSettings(),  # noqa: B008
    checkpoint: CheckpointSettings = CheckpointSettings(),  # noqa: B008
    seed: int = 0,
    channels_last: bool = True,
    compile: Compile = "auto",
    trainer: dict[str, Any] | None = None,
    config: str | None = None,
    anew: bool = False,
) -> Pretrained:
    """Pretrain an encoder for each sensor, and leave a run folder.

    A folder that holds an unfinished run is gone on with, to exactly the result of an uninterrupted
    run, if the configuration is the same, which `decur pretrain` makes sure of.

    Args:
        data: the unlabelled pairs.
        objective: the method.
        run: folder to write.
        modalities: sensors to train on; None for all of the data.
        encoder: backbones.
        projector: projectors.
        views: augmented views.
        optimizer: optimiser and schedule.
        loader: batches and workers.
        monitor: what is watched.
        checkpoint: how often the state is saved.
        seed: of weights, order, views and dropout.
        channels_last: keep pictures with their channels innermost, which ConvNets like.
        compile: run encoders and projectors through torch.compile; auto: in long runs on one GPU,
            where it pays.
        trainer: options of Lightning's Trainer.
        config: the complete configuration as YAML, kept as `config.yaml`.
        anew: do not look for an unfinished run: the folder's is being deleted.

    Returns:
        The run's folder, which holds everything, and the trained model.

    Raises:
        ConfigError: if the configuration cannot be run, or the folder holds another run.
        DataError: if too much of the data cannot be read.
        DivergedError: if training went wrong numerically.
    """
    folder = RunFolder(Path(run))
    console = Console(soft_wrap=True)
    quiet_lightning()
    options = {key: value for key, value in (trainer or {}).items() if value is not None}
    options = {"max_epochs": 100, "log_every_n_steps": 50, **options}
    if options.get("strategy") == "fsdp":
        options["strategy"] = Sharded()
    refuse_endless(options)
    refuse_accumulation(options, objective)
    data = select(data, modalities)
    paired = PairedData(data, loader, seed)
    EpochBatches(len(data), loader.batch_size, seed)  # refuses what cannot be filled, at once
    steps = _take_max_steps(options, paired)
    resume = open_run(folder, config, anew)
    seed_everything(seed)
    make = partial(
        Pretrainer,
        data.modalities,
        objective,
        encoder,
        projector,
        views,
        optimizer,
        batch_size=loader.batch_size,
        seed=seed,
        channels_last=channels_last,
        compile=compile,
        monitor_batches=monitor.batches,
        max_steps=steps,
    )
    model = make()
    log = EpochLog(folder, monitor, console, options["log_every_n_steps"])
    state = TrainingState(folder, checkpoint)
    engine = make_engine(
        options,
        logger=tensorboard(folder),
        callbacks=[
            BadSamples(folder, loader.max_bad, len(data)),
            log,
            ProgressBar(log, console),
            state,
        ],
        plugins=[AtomicCheckpointIO(), SyncBatchNorms()],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    if engine.is_global_zero:
        _introduce(console, folder, data, model, paired, resume)
    try:
        with reporting_lost_processes(engine):
            engine.fit(model, paired, ckpt_path=resume, weights_only=True)
    finally:  # Lightning does not where training ends in an error
        state.release_signals()
    if model.is_sharded:
        model = gather(model, make())
    if engine.is_global_zero:
        for name in model.modalities:
            save_encoder(model.encoder(name), folder.encoder(name))
        finish_report(folder, data, model)
        console.print(f"encoders  {folder.path / 'encoders'}", highlight=False)
        console.print(f"report    {folder.report}", highlight=False)
    return Pretrained(folder, model)


def _take_max_steps(options: dict[str, Any], paired: PairedData) -> int | None:
    """Take `max_steps` out of the options, and leave the epochs that it needs."""
    batches = limited(paired.steps_per_epoch, options.get("limit_train_batches"))
    steps = options.pop("max_steps", -1)
    if steps < 0:
        return None
    needed = math.ceil(steps * (options.get("accumulate_grad_batches") or 1) / batches)
    epochs = options["max_epochs"]
    options["max_epochs"] = needed if epochs < 0 else min(epochs, needed)
    return steps if needed == options["max_epochs"] else None


def _introduce(
    console: Console,
    folder: RunFolder,
    data: PairedDataset,
    model: Pretrainer,
    paired: PairedData,
    resume: Path | None,
) -> None:
    def say(what: str, text: str) -> None:
        console.print(f"{what:<12}{text}", highlight=False)

    say("run", str(folder.path))
    say("data", data.describe())
    for name in model.modalities:
        encoder = model.encoder(name)
        millions = sum(p.numel() for p in encoder.parameters()) / 1e6
        say("encoder", f"{name}: {encoder.name}, {millions:.1f} M parameters")
    objective, settings = model.objective, model.optimizer_settings
    parts = ", ".join(f"{part} {s.stop - s.start}" for part, s in objective.parts.items())
    say("objective", f"{type(objective).__name__}, {objective.dim} dimensions: {parts}")
    groups = describe_groups(build_optimizer(model, settings, model.batch_size))
    say("optimizer", f"{settings.name}, {groups}")
    if resume is not None:
        say("resuming", str(resume))
    if plotting.available():
        batch = figures.first_batch(paired.fixed_batches(6, batch_size=6))
        plotting.save(figures.contact_sheet(model, batch), folder.figures / "views.png")
        say("look at", f"{folder.figures / 'views.png'}  (what the network sees)")
