"""A whole pretraining run: from a data set and an objective to a folder with encoders in it."""

from __future__ import annotations

import logging
import math
import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.console import Console

from decur import report
from decur.checkpoint import RunFolder, save_encoder
from decur.config import flatten
from decur.data import PairedDataset
from decur.data.selection import select
from decur.errors import ConfigError
from decur.objectives import Objective
from decur.pretrain import figures
from decur.pretrain.batchnorm import SyncBatchNorms
from decur.pretrain.callbacks import (
    BadSamples,
    EpochLog,
    ProgressBar,
    read_metrics,
    tensorboard,
)
from decur.pretrain.compiling import Compile
from decur.pretrain.loading import EpochBatches, PairedData
from decur.pretrain.module import Pretrainer
from decur.pretrain.optim import build_optimizer, describe_groups
from decur.pretrain.processes import reporting_lost_processes
from decur.pretrain.saving import AtomicCheckpointIO, SaveState, newest_checkpoint
from decur.pretrain.settings import (
    CheckpointSettings,
    EncoderSettings,
    LoaderSettings,
    MonitorSettings,
    OptimizerSettings,
    ProjectorSettings,
    ViewSettings,
)
from decur.pretrain.sharding import Sharded, gather

# Of Lightning's Trainer: what a run decides itself, and what has no meaning without validation.
FIXED = {
    *("logger", "callbacks", "default_root_dir", "plugins", "use_distributed_sampler"),
    *(
        "enable_checkpointing",
        "enable_progress_bar",
        "enable_model_summary",
        "enable_autolog_hparams",
    ),
    *("num_sanity_val_steps", "reload_dataloaders_every_n_epochs", "model_registry", "barebones"),
    *("limit_val_batches", "limit_test_batches", "limit_predict_batches", "val_check_interval"),
    *("check_val_every_n_epoch", "fast_dev_run", "overfit_batches", "min_epochs", "min_steps"),
    *("inference_mode", "sync_batchnorm"),
}


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
) -> Pretrained:
    """Pretrain an encoder for each sensor, and leave a run folder.

    A folder that holds an unfinished run of the same configuration is gone on with, to exactly the
    result of an uninterrupted run.

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
    _refuse_accumulation(options, objective)
    data = select(data, modalities)
    paired = PairedData(data, loader, seed)
    steps = _take_max_steps(options, paired)
    resume = _open(folder, config)
    L.seed_everything(seed, verbose=False)
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
    saving = SaveState(folder, checkpoint)
    engine = _engine(
        options,
        logger=tensorboard(folder),
        callbacks=[
            BadSamples(folder, loader.max_bad, len(data)),
            log,
            ProgressBar(log, console),
            saving,
        ],
        plugins=[AtomicCheckpointIO(), SyncBatchNorms()],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    EpochBatches(len(data), loader.batch_size, seed)  # refuses what cannot be filled, at once
    if engine.is_global_zero:
        _introduce(console, folder, data, model, paired, resume)
    try:
        with reporting_lost_processes(engine):
            engine.fit(model, paired, ckpt_path=resume, weights_only=True)
    finally:  # Lightning does not where training ends in an error
        saving.teardown(engine, model, "fit")
    if model.is_sharded:
        model = gather(model, make())
    if engine.is_global_zero:
        for name in model.modalities:
            save_encoder(model.encoder(name), folder.encoder(name))
        finish_report(folder, data, model)
        console.print(f"encoders  {folder.path / 'encoders'}", highlight=False)
        console.print(f"report    {folder.report}", highlight=False)
    return Pretrained(folder, model)


def _engine(options: dict[str, Any], **fixed: Any) -> L.Trainer:
    """Lightning's Trainer; what it refuses is a wrong configuration."""
    try:
        return L.Trainer(**options, **fixed)
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(f"trainer: {error}; see --trainer.* in --help") from error


def _open(folder: RunFolder, config: str | None) -> Path | None:
    """Make the folder; find what to go on from."""
    if folder.path.exists() and not folder.path.is_dir():
        raise ConfigError(f"--run {folder.path}: is a file, not a folder")
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--run {folder.path}: cannot be made ({error.strerror})") from error
    resume = newest_checkpoint(folder)
    if resume is not None and config is not None and folder.config.is_file():
        from decur.pretrain.command import complete  # which knows every key's default

        for key, before, now in _changes(complete(folder.config), config):
            raise ConfigError(
                f"{folder.path} holds a run with {key} {before!r}, not {now!r}; choose another "
                "folder with --run, or start this one anew with --overwrite"
            )
    if getattr(rank_zero_only, "rank", 0) == 0:
        ours = folder.config.is_file() or folder.checkpoints.is_dir()
        if not ours and any(folder.path.iterdir()):
            raise ConfigError(
                f"--run {folder.path}: is not empty and holds no run; choose another folder"
            )
        if resume is None:  # what a start that came to nothing left would be mixed in
            for old in (folder.metrics, folder.bad_samples):
                old.unlink(missing_ok=True)
            shutil.rmtree(folder.path / "tensorboard", ignore_errors=True)
        if config is not None:
            folder.config.write_text(config)
    return resume


# What may differ when a run goes on, since it does not change the result.
_FREE = (
    *("run", "loader.workers", "checkpoint.", "encoder.checkpointing"),
    *("trainer.devices", "trainer.num_nodes", "trainer.strategy"),
)


def _changes(before: str, now: str) -> Iterator[tuple[str, object, object]]:
    """Keys whose values differ between two configurations, and matter."""
    old, new = flatten(yaml.safe_load(before)), flatten(yaml.safe_load(now))
    for key in sorted(set(old) | set(new)):
        if old.get(key) != new.get(key) and not key.startswith(_FREE):
            yield key, old.get(key), new.get(key)


def _take_max_steps(options: dict[str, Any], paired: PairedData) -> int | None:
    """Take `max_steps` out of the options, and leave the epochs that it needs."""
    steps = options.pop("max_steps", -1)
    if steps < 0:
        return None
    limit, batches = options.get("limit_train_batches", 1.0), paired.steps_per_epoch
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    needed = math.ceil(steps * (options.get("accumulate_grad_batches") or 1) / max(1, batches))
    epochs = options["max_epochs"]
    options["max_epochs"] = needed if epochs < 0 else min(epochs, needed)
    return steps if needed == options["max_epochs"] else None


def _refuse_accumulation(options: dict[str, Any], objective: Objective) -> None:
    steps = options.get("accumulate_grad_batches") or 1
    if steps > 1 and objective.needs_whole_batch:
        raise ConfigError(
            f"trainer.accumulate_grad_batches: refused for {type(objective).__name__}, because "
            f"{objective.needs_whole_batch}; raise loader.batch_size or use more devices"
        )


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
    if figures.available():
        batch = figures.first_batch(paired.fixed_batches(6, batch_size=6))
        figures.save(figures.contact_sheet(model, batch), folder.figures / "views.png")
        say("look at", f"{folder.figures / 'views.png'}  (what the network sees)")


def finish_report(folder: RunFolder, data: PairedDataset, model: Pretrainer) -> None:
    """Draw the figures of a run and write its section of the report.

    Args:
        folder: the run's.
        data: what was trained on.
        model: what was trained.
    """
    rows = read_metrics(folder)
    if not rows:
        return
    body = [report.paragraph(data.describe()), _last_values(rows)]
    if figures.available():
        views = folder.figures / "views.png"
        if views.is_file():
            body.append(
                report.figure(views, "Samples, each with the two views that training sees.")
            )
        for name, picture, caption in (
            ("diagonals", figures.diagonals(rows), _DIAGONALS),
            ("loss", figures.loss_terms(rows), "Loss terms, each divided by its dimensions."),
            ("ranks", figures.rank_curves(rows), _RANKS),
            ("probes", figures.probe_curves(rows), _PROBES),
        ):
            if picture is not None:
                path = figures.save(picture, folder.figures / f"{name}.png")
                body.append(report.figure(path, caption))
    else:
        body.append(report.paragraph("No pictures: pip install 'decur[explain]' for matplotlib."))
    if folder.config.is_file():
        body.append(report.details("Configuration", folder.config.read_text()))
    report.add_section(folder, 10, "pretrain", "Pretraining", "\n".join(body))


_DIAGONALS = (
    "Mean diagonal of the cross-correlation matrix between sensors. Common dimensions should rise "
    "towards 1, unique ones stay near 0; dotted: between two views of one sensor."
)
_RANKS = "Effective rank: how many dimensions are in use. A fall towards 1 is a collapse."
_PROBES = (
    "Linear probe of frozen features, half of the monitored samples against the other half: "
    "accuracy, mean average precision or R2."
)


def _last_values(rows: list[dict[str, float]]) -> str:
    wanted = ("loss", "diagonal/", "offdiag_rms/", "rank/", "pairs_per_second")
    first, last = rows[0], rows[-1]
    names = [key for key in last if key.startswith(wanted)]
    return report.table(
        ("", "first epoch", f"epoch {last['epoch']:.0f}"),
        [(name, first.get(name, float("nan")), last[name]) for name in names],
    )


def quiet_lightning() -> None:
    """Silence what Lightning says that a person cannot act on."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # but for why it kills this process: another one has died
    logging.getLogger("lightning.fabric.strategies.launchers").setLevel(logging.INFO)
    for text in (
        ".*does not have many workers.*",
        ".*overridden `transfer_batch_to_device`.*",
        ".*not resumable.*",
        ".*`isinstance\\(treespec.*",
        ".*The number of training batches.*",
        ".*lr_scheduler.step.*",
    ):
        warnings.filterwarnings("ignore", text)
