"""A whole pretraining run: from a data set and an objective to a folder with encoders in it."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from decur import plotting
from decur.data.base import PairedDataset, require_data
from decur.data.selection import evenly_spaced
from decur.data.units import check_units
from decur.encoders.files import save_encoder
from decur.encoders.own import encoder_settings
from decur.errors import ConfigError, DecurError
from decur.layers import override
from decur.memory import require_memory_for_batch
from decur.objectives import DeCUR
from decur.objectives.base import Objective
from decur.pretrain.batchnorm import SyncBatchNorms
from decur.pretrain.callbacks import BadSamples, EpochLog, ProgressBar
from decur.pretrain.configuration import configuration_of, refuse_another_run
from decur.pretrain.data import EpochBatches, PairedData, seen_data
from decur.pretrain.distributed import gather
from decur.pretrain.figures import save_contact_sheet, write_report
from decur.pretrain.loggers import make_callbacks, make_loggers
from decur.pretrain.module import Pretrainer
from decur.pretrain.optim import build_optimizer, describe_groups
from decur.pretrain.outcome import Outcome, describe_new_length
from decur.pretrain.settings import PretrainSettings, TrainerSettings
from decur.pretrain.share import (
    CountShare,
    count_share,
    counting_batches,
    hold_out,
    take_counted,
    tell_share,
    wants_share,
)
from decur.pretrain.state import AtomicCheckpointIO, TrainingState, open_run
from decur.pretrain.trainer import (
    OWN,
    fit,
    limited,
    make_trainer,
    quiet_lightning,
    refuse_accumulation,
    refuse_endless,
    seed_everything,
    take_max_steps,
)
from decur.runs import RunFolder
from decur.terminal import tell_result

log = logging.getLogger(__name__)

_LOOKED_AT = 2000  # samples whose files tell changed data: to look at all of a large set takes long


@dataclass(frozen=True)
class Pretrained:
    """What a run leaves: its folder, and the model in memory.

    Whatever takes the folder of a run takes this in its place: `transfer(data, encoders=run)`.
    """

    folder: RunFolder
    model: Pretrainer

    def __fspath__(self) -> str:
        return str(self.folder.path)

    def __repr__(self) -> str:
        sensors, path = ", ".join(self.model.modalities), self.folder.path
        return f"<encoders of {sensors} in {path / 'encoders'}; {path / 'report.html'}>"


def pretrain(
    data: PairedDataset,
    objective: Objective,
    *,
    settings: PretrainSettings | None = None,
    config: str | None = None,
    anew: bool = False,
    **options: Any,
) -> Pretrained:
    """Pretrain an encoder for each sensor, and leave a run folder.

    A folder that holds an unfinished run is gone on with, to the result of an uninterrupted run (on
    a CPU exactly, on a GPU to rounding), if the configuration is the same.

    Args:
        data: the unlabelled pairs.
        objective: the method.
        settings: all other settings; None for the defaults.
        config: the complete configuration as YAML, kept as `config.yaml`; None: that of the
            arguments, as far as a file can tell them.
        anew: do not look for an unfinished run: the folder's is being deleted.
        options: fields of `PretrainSettings` by name, in place of those of `settings`;
            groups such as `trainer` and `views` may also be dictionaries, and `encoder` a name, a
            function of the modality, or a name, network or function for each modality.

    Returns:
        The run's folder, which holds everything, and the trained model.

    Raises:
        ConfigError: if the configuration cannot be run, or the folder holds another run.
        DataError: if too much of the data cannot be read.
        DivergedError: if training went wrong numerically.
    """
    require_data(data, "pretrain")
    if not isinstance(objective, Objective):
        raise ConfigError(f"pretrain: {objective!r} is no objective; give decur.DeCUR(dim=...)")
    if "encoder" in options:
        options["encoder"] = encoder_settings(options["encoder"])
    settings = override(settings or PretrainSettings(), options, "pretrain")
    folder = RunFolder(Path(settings.run))
    with folder.owned():
        if config is None:
            config = configuration_of(data, objective, settings)
            config = ("" if anew else refuse_another_run(folder, config)) + config
        return _pretrain(data, objective, settings, config, anew)


def _pretrain(
    data: PairedDataset,
    objective: Objective,
    settings: PretrainSettings,
    config: str,
    anew: bool,
) -> Pretrained:
    """Pretrain in a folder that this process owns; arguments as those of `pretrain`."""
    folder, console = RunFolder(Path(settings.run)), Console(soft_wrap=True)
    quiet_lightning()
    options = _trainer_options(settings.trainer, objective)
    data = seen_data(data, settings)
    paired, fewer = _pair(data, objective, settings)
    max_steps = take_max_steps(options, paired.steps_per_epoch)
    limited(paired.steps_per_epoch, options.get("limit_train_batches"))
    if fewer is not None:
        counting_batches(fewer, options.get("limit_train_batches"))
    own_callbacks = make_callbacks(settings.trainer.callbacks)
    length = "" if anew else _new_length(folder, options["max_epochs"])
    checkpoint = open_run(folder, config, anew)
    make = partial(_seeded_model, data, objective)
    model = make(settings, max_steps)
    # what is being deleted must not be looked at
    counted = None if anew else take_counted(folder, model, checkpoint)
    outcome = Outcome(folder, data)
    state = TrainingState(folder, settings.checkpoint, data=_look_at(data))
    epoch_log = EpochLog(folder, settings.monitor, console, options["log_every_n_steps"])
    trainer = make_trainer(
        options,
        logger=make_loggers(settings.trainer.logger, folder),
        callbacks=[
            BadSamples(folder, settings.loader.max_bad, len(data)),
            *([CountShare(folder)] if wants_share(objective) else []),
            epoch_log,
            ProgressBar(epoch_log, console),
            *own_callbacks,
            outcome,
            state,  # last, so that nothing is saved that the others refuse
        ],
        plugins=[AtomicCheckpointIO(outcome.keep_encoders), SyncBatchNorms()],
        float32_matmul=settings.float32_matmul,
        **OWN,
    )
    if trainer.is_global_zero:
        _introduce(console, folder, paired, model, checkpoint)
        _tell_fold_and_length(console, settings, length)
    if fewer is not None and checkpoint is None:
        if counted is None:
            counted = count_share(folder, fewer, make, settings, options, console, state.data)
            model = make(settings, max_steps)
        elif counted.data not in (None, state.data) and trainer.is_global_zero:
            log.warning(
                "the data has changed since %s was written: its share is kept. --overwrite counts "
                "anew",
                folder.counted,
            )
        if trainer.is_global_zero:
            tell_share(counted, objective, console)
            shutil.rmtree(folder.counting.checkpoints, ignore_errors=True)
    fit(trainer, model, paired, checkpoint, state, own_callbacks)
    if model.is_sharded:
        model = gather(model, make(settings, max_steps))
    if trainer.is_global_zero:
        _leave(folder, model, data)
    return Pretrained(folder, model)


def _seeded_model(
    data: PairedDataset,
    objective: Objective,
    settings: PretrainSettings,
    max_steps: int | None = None,
) -> Pretrainer:
    """Make a model of the run's seed, and leave random numbers as they are before training."""
    seed_everything(settings.seed)
    return make_model(data, objective, settings, max_steps)


def _pair(
    data: PairedDataset, objective: Objective, settings: PretrainSettings
) -> tuple[PairedData, PairedData | None]:
    """Return the pairs to train on, and those that count the share first, if it is to be counted.

    What cannot be trained on is refused before anything is written.

    Raises:
        ConfigError: if the objective does not take these sensors, or a batch cannot be filled or
            does not fit into memory.
    """
    paired = PairedData(data, settings.loader, seed=settings.seed, pairing=settings.pairing)
    objective.check_modalities(list(data.modalities))
    fewer = hold_out(paired) if wants_share(objective) else None
    EpochBatches(paired.samples, settings.loader.batch_size, settings.seed)
    require_memory_for_batch(
        data.modalities.values(),
        settings.loader.batch_size // settings.trainer.num_nodes,
        settings.views.size,
        copies=2,
        key="views.size",
    )
    return paired, fewer


def _look_at(data: PairedDataset) -> str:
    """Return a digest by which files that have changed are noticed, of all samples or of many."""
    return data.file_digest(evenly_spaced(len(data), _LOOKED_AT).tolist())


def _leave(folder: RunFolder, model: Pretrainer, data: PairedDataset) -> None:
    """Write the encoders and the report, and say where they are."""
    objective = model.objective.about()
    for name in model.modalities:
        save_encoder(model.encoder(name), folder.encoder(name), objective=objective)
    write_report(folder, data, objective=objective)
    tell_result("encoders  ", folder.path / "encoders")
    tell_result("report    ", folder.report)


def _new_length(folder: RunFolder, epochs: int) -> str:
    """Return how the run of a folder goes on where it is to be of another length than it was.

    Raises:
        ConfigError: if it has trained longer already.
    """
    for path in folder.saved_checkpoints():
        try:
            return describe_new_length(path, epochs)
        except DecurError:
            raise
        except Exception:  # of a damaged file, which is told of when it is opened
            continue
    return ""


def _trainer_options(settings: TrainerSettings, objective: Objective) -> dict[str, Any]:
    """Return the options of Lightning's Trainer, and refuse those that cannot be run."""
    options = {key: value for key, value in settings.as_dict().items() if value is not None}
    for key in ("logger", "callbacks"):  # made from their names once the run's folder is there
        options.pop(key, None)
    options = {"max_epochs": 100, "log_every_n_steps": 50, **options}
    refuse_endless(options)
    refuse_accumulation(options, objective)
    return options


def make_model(
    data: PairedDataset,
    objective: Objective,
    settings: PretrainSettings,
    max_steps: int | None = None,
) -> Pretrainer:
    """Make the model that a run with these settings trains, and measurements measure."""
    model = Pretrainer(
        data.modalities,
        objective,
        encoder=settings.encoder,
        projector=settings.projector,
        views=settings.views,
        optimizer=settings.optimizer,
        batch_size=settings.loader.batch_size,
        seed=settings.seed,
        channels_last=settings.channels_last,
        compile=settings.compile,
        monitor_batches=settings.monitor.batches,
        max_steps=max_steps,
    )
    model.log_to = "callbacks" if settings.trainer.callbacks else None
    return model


def _tell_fold_and_length(console: Console, settings: PretrainSettings, length: str) -> None:
    """Print which fold is left out, and how the run goes on where its length has changed."""
    if settings.without_fold is not None:
        fold = f"fold {settings.without_fold} of {settings.folds}"
        words = f"--folds_of all --folds {settings.folds} --fold {settings.without_fold}"
        words += f" --fold_seed {settings.fold_seed}" if settings.fold_seed else ""
        tested = f"`decur transfer {words}`"
        console.print(f"{'left out':<12}{fold}, on which {tested} tests", highlight=False)
    if length:
        console.print(f"{'length':<12}{length}", highlight=False)


def _introduce(
    console: Console,
    folder: RunFolder,
    paired: PairedData,
    model: Pretrainer,
    resume: Path | None,
) -> None:
    """Print what will be trained on what, and draw what the network will see."""

    def say(what: str, text: str) -> None:
        console.print(f"{what:<12}{text}", highlight=False)

    say("run", str(folder.path))
    say("data", paired.dataset.describe())
    check_units(paired.dataset)
    for name in model.modalities:
        encoder = model.encoder(name)
        millions = sum(p.numel() for p in encoder.parameters()) / 1e6
        say("encoder", f"{name}: {encoder.name}, {millions:.1f} M parameters")
    objective, settings = model.objective, model.optimizer_settings
    parts = ", ".join(f"{part} {s.stop - s.start}" for part, s in objective.parts.items())
    if isinstance(objective, DeCUR) and objective.counts_share and not objective.is_counted:
        # a sharded checkpoint, which is not looked into
        known = "the share that the checkpoint holds is common"
        parts = "all common until the share is counted" if resume is None else known
    say("objective", f"{type(objective).__name__}, {objective.dim} dimensions: {parts}")
    groups = describe_groups(build_optimizer(model, settings, model.batch_size))
    say("optimizer", f"{settings.name}, {groups}")
    if resume is not None:
        say("resuming", str(resume))
    if plotting.available():
        path = save_contact_sheet(folder, model, paired)
        say("look at", f"{path}  (what the network sees)")
