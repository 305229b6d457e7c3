"""The settings of a pretraining run, besides its data and its objective; each field is a key.

Nothing here imports Lightning or timm, so that `decur pretrain --help` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from decur.data.loader import LoaderSettings
from decur.encoders.settings import EncoderSettings
from decur.errors import EPOCHS, PIXELS, RATES, SEEDS, STEPS, ConfigError, check_ranges

if TYPE_CHECKING:
    from collections.abc import Mapping

    from decur.encoders.projector import Projector
    from decur.modality import Modality
    from decur.views import Views

Compile = bool | Literal["auto"]
_TIME = ("days", "hours", "minutes", "seconds")  # parts of DD:HH:MM:SS


@dataclass
class ProjectorSettings:
    """The projector, one for each modality.

    Args:
        width: Width of every layer and of the embedding (K in the paper).
        layers: Number of layers, 3 in the paper; with 0 the embedding is the encoder's vector.
        hidden: Width of all layers but the last; null: the same.
        last_norm: Batch-normalise the embedding, as the authors' code does for SimCLR and CLIP.
    """

    width: int = 8192
    layers: int = 3
    hidden: int | None = None
    last_norm: bool = False

    def __post_init__(self) -> None:
        check_ranges(self, "projector.", width=(1, 131_072), layers=(0, 64), hidden=(1, 131_072))

    def build(self, in_dim: int) -> Projector:
        """Return the projector of an encoder whose vectors have `in_dim` numbers."""
        from decur.encoders.projector import Projector

        return Projector(
            in_dim,
            self.width,
            layers=self.layers,
            hidden=self.hidden,
            last_norm=self.last_norm,
        )


@dataclass
class ViewSettings:
    """The two augmented views of each modality.

    Args:
        size: Height and width of a view in pixels.
        shared_geometry: Give all modalities of a sample the same crop and flips.
        augment: Changes to the augmentation recipes, as `{modality or all: {parameter: value}}`.
        recipes: Augmentation recipes: those of the "paper", or those of version "0.1", which
            dropped bands of optical pictures and pulled contrast to the mean over all bands.
        levels: Number of values that pictures are rounded to first, 256 for the 8 bits of the
            paper.
        together: Send both views of a sensor through its networks at once, each normalised by its
            own batch statistics: half the calls and half the exchanges between processes. Faster
            only where calls are what takes the time, as with small batches on a fast GPU.
    """

    size: int = 224
    shared_geometry: bool = False
    augment: dict[str, dict[str, Any]] = field(default_factory=dict)
    recipes: Literal["paper", "0.1"] = "paper"
    levels: int | None = None
    together: bool = False

    def __post_init__(self) -> None:
        check_ranges(self, "views.", size=PIXELS)

    def build(self, modalities: Mapping[str, Modality], *, channels_last: bool) -> Views:
        """Return what makes the views of some sensors."""
        from decur.views import Views

        return Views(
            modalities,
            self.size,
            shared_geometry=self.shared_geometry,
            overrides=self.augment,
            recipes=self.recipes,
            levels=self.levels,
            channels_last=channels_last,
        )


@dataclass
class OptimizerSettings:
    """The optimiser and its schedule (DeCUR, appendix B.1).

    Args:
        name: Optimiser: "lars" for ConvNets, "adamw" for transformers.
        lr: Learning rate of the weights; by default 0.2 for LARS and 1e-4 for AdamW.
        lr_bias: Learning rate of biases and normalisation parameters, which have no LARS adaptation
            and no decay; None: 0.0048 for LARS, `lr` for AdamW.
        weight_decay: Weight decay; None: 1e-6 for LARS, 0.01 for AdamW.
        momentum: Momentum of LARS.
        warmup_epochs: Epochs in which the learning rates rise linearly; 0 in the paper.
        scale_lr: Multiply the learning rates by batch size / 256.
    """

    name: Literal["lars", "adamw"] = "lars"
    lr: float | None = None
    lr_bias: float | None = None
    weight_decay: float | None = None
    momentum: float = 0.9
    warmup_epochs: float = 0.0
    scale_lr: bool = False

    def __post_init__(self) -> None:
        rates = dict.fromkeys(("lr", "lr_bias", "weight_decay"), RATES)
        check_ranges(self, "optimizer.", **rates, momentum=(0, 1), warmup_epochs=(0, EPOCHS[1]))

    def rates(self) -> tuple[float, float, float]:
        """Return the learning rates of weights and of the rest, and the weight decay."""
        lr, lr_bias, decay = _RATES[self.name]
        lr = lr if self.lr is None else self.lr
        lr_bias = lr_bias or lr  # AdamW adapts each parameter itself: one rate for all
        lr_bias = lr_bias if self.lr_bias is None else self.lr_bias
        return lr, lr_bias, decay if self.weight_decay is None else self.weight_decay


_RATES = {"lars": (0.2, 0.0048, 1e-6), "adamw": (1e-4, None, 0.01)}  # DeCUR, appendix B.1


@dataclass
class MonitorSettings:
    """Monitors: what is measured while training.

    Args:
        every_epochs: Number of epochs between two measurements of ranks and probes; 0: never.
        samples: Number of samples, without augmentation, that ranks and probes are computed on.
        batches: Number of batches of each epoch that the correlations are computed on.
        min_rank: Effective rank of an encoder's features below which a run counts as collapsed.
    """

    every_epochs: int = 1
    samples: int = 512
    batches: int = 16
    min_rank: float = 1.5

    def __post_init__(self) -> None:
        often = {"every_epochs": (0, EPOCHS[1]), "batches": (1, 1_000_000)}
        check_ranges(self, "monitor.", samples=(1, 1_000_000), min_rank=(0, 1_000_000), **often)


@dataclass
class CheckpointSettings:
    """When the state of training is saved, besides at the end of each epoch.

    Args:
        every_minutes: Minutes between checkpoints within an epoch.
        keep: Number of checkpoints that are kept; a run whose last one is damaged goes on from the
            one before.
    """

    every_minutes: float = 15.0
    keep: int = 2

    def __post_init__(self) -> None:
        check_ranges(self, "checkpoint.", keep=(1, 1_000_000), every_minutes=(0, 1_000_000))


# What Lightning's Trainer takes as `precision`.
Precision = Literal[
    64,
    32,
    16,
    "transformer-engine",
    "transformer-engine-float16",
    "16-true",
    "16-mixed",
    "bf16-true",
    "bf16-mixed",
    "32-true",
    "64-true",
    "64",
    "32",
    "16",
    "bf16",
]


@dataclass
class TrainerSettings:
    """Options of Lightning's Trainer, with its names and defaults, but for `max_epochs`.

    The other options of the Trainer are decided by `decur pretrain`, or have no meaning without
    validation.

    Args:
        accelerator: Kind of device: "cpu", "gpu", "tpu", "mps" or "auto".
        strategy: Way in which several processes train together, such as "ddp"; "fsdp" divides the
            weights among them.
        devices: Number of devices, a list of their indices, -1 for all, or "auto".
        num_nodes: Number of machines.
        precision: Precision of the arithmetic, such as "bf16-mixed"; null is "32-true".
        max_epochs: Epochs after which training ends; -1 where `max_steps` alone says.
        max_steps: Optimiser steps after which training ends; -1 for no such limit.
        max_time: Time after which training ends, as DD:HH:MM:SS or `{hours: 12}`.
        limit_train_batches: Part of each epoch to train on: a number of batches, or a share as a
            decimal such as 0.1.
        log_every_n_steps: Number of steps between two losses that TensorBoard gets; null is 50.
        accumulate_grad_batches: Number of batches whose gradients are added up before an optimiser
            step.
        gradient_clip_val: Value that gradients are clipped at; null for no clipping.
        gradient_clip_algorithm: Kind of clipping: "norm" or "value"; null is "norm".
        deterministic: Use deterministic algorithms, or warn ("warn") where there is none.
        benchmark: Let cuDNN choose its fastest algorithms.
        logger: Loggers that get the values besides `metrics.csv`: "tensorboard", "csv", "wandb",
            "mlflow", "trackio", or several as a list; null is "tensorboard".
        callbacks: Callbacks of your own, as a list of `{class_path:
            lightning.pytorch.callbacks.EarlyStopping, init_args: {monitor: loss}}`.
        profiler: Profiler: "simple", "advanced", "pytorch" or "xla".
        detect_anomaly: Let autograd look for NaN, which is slow.
    """

    accelerator: str = "auto"
    strategy: str = "auto"
    devices: list[int] | str | int = "auto"
    num_nodes: int = 1
    precision: Precision | None = None
    max_epochs: int | None = 100
    max_steps: int = -1
    max_time: str | dict[str, int] | None = None
    limit_train_batches: int | float | None = None
    log_every_n_steps: int | None = None
    accumulate_grad_batches: int = 1
    gradient_clip_val: int | float | None = None
    gradient_clip_algorithm: str | None = None
    deterministic: bool | Literal["warn"] | None = None
    benchmark: bool | None = None
    logger: list[str] | str | None = None
    callbacks: list[dict[str, Any]] | None = None
    profiler: str | None = None
    detect_anomaly: bool = False

    def __post_init__(self) -> None:
        if self.max_epochs != -1:  # where `max_steps` alone says
            check_ranges(self, "trainer.", max_epochs=EPOCHS)
        if self.max_steps != -1:
            check_ranges(self, "trainer.", max_steps=STEPS)
        if isinstance(self.devices, int) and self.devices != -1:  # -1: all that there are
            check_ranges(self, "trainer.", devices=(1, 1024))
        if self.max_time is not None:
            _refuse_no_time(self.max_time)
        check_ranges(
            self,
            "trainer.",
            accumulate_grad_batches=(1, 1_000_000),
            num_nodes=(1, 100_000),
            limit_train_batches=(0, STEPS[1]),
            log_every_n_steps=(0, STEPS[1]),
            gradient_clip_val=(0, float("inf")),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return all options by name."""
        return {option.name: getattr(self, option.name) for option in fields(self)}


def _refuse_no_time(given: str | dict[str, int]) -> None:
    """Refuse a time that is none, or is over at once; `DD:HH:MM:SS` or keywords of a timedelta."""
    try:
        parts = given
        if isinstance(parts, str):
            parts = dict(zip(_TIME, map(int, parts.split(":")), strict=True))
        length = timedelta(**parts)
    except (TypeError, ValueError, OverflowError):
        length = timedelta(0)
    if length <= timedelta(0):
        raise ConfigError(
            f"trainer.max_time: {given!r} is no time; give DD:HH:MM:SS, as 00:12:00:00, or "
            "{hours: 12}"
        )


@dataclass
class PretrainSettings:
    """All settings of a pretraining run, besides its data and its objective.

    Args:
        run: Folder to write.
        modalities: Sensors to train on; None for all of the data.
        encoder: Backbones.
        projector: Projectors.
        views: Augmented views.
        optimizer: Optimiser and schedule.
        loader: Batches and workers.
        pairing: Which pictures make a pair: "fixed" keeps the pictures of a sample together;
            "group": in each epoch each sensor's picture is that of a sample of the same group drawn
            anew, as another season of the place in SSL4EO-S12.
        without_fold: Fold of the data that is never seen, from 0, all groups of it: that on which
            `decur transfer --folds_of all --fold` tests with the same `folds` and `fold_seed`.
            None: all of the data is seen.
        folds: Number of parts that `without_fold` splits the data into.
        fold_seed: Seed of the folds, where the data names no groups.
        monitor: Ranks, probes and correlations that are measured while training.
        checkpoint: Times at which the state is saved.
        seed: Seed of the initial weights, the order of the samples, the views and dropout.
        channels_last: Keep pictures with their channels innermost, which ConvNets like.
        compile: Run encoders and projectors through torch.compile; auto: in long runs on one GPU,
            where it pays.
        float32_matmul: Precision in which a GPU multiplies float32 matrices, of layers and of the
            loss: "high" rounds factors to TF32, many times as fast; "highest" does not round.
        trainer: Options of Lightning's Trainer.
    """

    run: str = "runs/pretrain"
    modalities: list[str] | None = None
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    projector: ProjectorSettings = field(default_factory=ProjectorSettings)
    views: ViewSettings = field(default_factory=ViewSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    loader: LoaderSettings = field(default_factory=LoaderSettings)
    pairing: Literal["fixed", "group"] = "fixed"
    without_fold: int | None = None
    folds: int = 5
    fold_seed: int = 0
    monitor: MonitorSettings = field(default_factory=MonitorSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    seed: int = 0
    channels_last: bool = True
    compile: Compile = "auto"
    float32_matmul: Literal["highest", "high"] = "high"
    trainer: TrainerSettings = field(default_factory=TrainerSettings)

    def __post_init__(self) -> None:
        check_ranges(self, folds=(2, 10_000), fold_seed=SEEDS)
        check_ranges(self, without_fold=(0, self.folds - 1))
