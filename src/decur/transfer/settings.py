"""What a transfer is to do, and how a model is trained on labels; what does not fit together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal, Protocol

from decur.data.loader import LoaderSettings
from decur.encoders.settings import EncoderSettings, MissingBands
from decur.errors import EPOCHS, PIXELS, RATES, SEEDS, STEPS, ConfigError, check_ranges, require
from decur.objectives.blocks import PREFIX
from decur.transfer.without_effect import Use, refuse_without_effect

Schedule = Literal["steps", "poly", "constant"]
Probe = Literal["ridge", "logistic", "sgd", "auto"]
Head = Literal["fcn", "cmx"]
Representation = str  # one of these, or "block:optical+sar"
RANDOM = "random"
RANDOM_AS = f"{RANDOM}:"  # before a run or file whose networks get fresh weights
REPRESENTATIONS = ("features", "embedding", "common", "unique")


@dataclass(frozen=True)
class FitDefaults:
    """What a kind of label has in place of what `FitSettings` leave open.

    Args:
        name: "sgd" or "adamw".
        lr: learning rate.
        weight_decay: of the weights.
        epochs: over the training part.
        schedule: "steps", "poly" or "constant".
        crop: smallest and largest area of a crop, as shares of the picture.
        frozen_lr: learning rate where the encoders stay as they are; None: `lr`.
    """

    name: Literal["sgd", "adamw"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.01
    epochs: int = 100
    schedule: Schedule = "steps"
    crop: tuple[float, float] = (0.8, 1.0)
    frozen_lr: float | None = None


class Label(Protocol):
    """What settings look at of a task, see `decur.transfer.tasks.Task`."""

    name: str
    fit_defaults: ClassVar[FitDefaults]
    usual_probe: ClassVar[Literal["ridge", "logistic", "sgd"]]
    probes: ClassVar[tuple[str, ...]]

    @property
    def kind(self) -> str: ...  # noqa: D102

    @property
    def dense(self) -> bool: ...  # noqa: D102

    @property
    def has_weights(self) -> bool: ...  # noqa: D102


# Rates where another optimiser is chosen than the paper's.
_OTHER: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.01, "weight_decay": 1e-5},  # the paper's FCN on RGB and depth
    "adamw": {"lr": 1e-4, "weight_decay": 0.01},
}


@dataclass
class FitSettings:
    """Optimiser, schedule and augmentation (DeCUR, appendix B.2); None: what the task has there.

    Classes and multilabels: SGD at 0.5 (frozen) or 0.05 (fine-tuned), no decay, 100 epochs, a
    tenth after 60 % and again after 80 % of them, crops of 0.8 to 1. Masks: AdamW at 1e-4, decay
    0.01, 30 epochs, constant, crops of 0.2 to 1. Scalars, which the paper has not: AdamW at 1e-3
    with the steps and crops of classes.

    Args:
        name: Optimiser: "sgd" or "adamw".
        lr: Learning rate.
        head_lr: Learning rate of the head, which is all but the encoders; None: `lr`.
        layer_decay: Factor of the learning rate of an encoder's last layer, of the one before it
            squared, and so on: below 1, early layers change less.
        weight_decay: Weight decay of the weights.
        decay_biases: Decay biases and normalisations, too; None: yes, but not with the head cmx,
            whose authors spare them.
        momentum: Momentum of SGD.
        epochs: Number of passes over the training part.
        steps: Number of optimiser steps, in place of epochs.
        schedule: Course of the learning rate: "steps", "poly" ((1 - done) ** 0.9, to 0) or
            "constant".
        milestones: Shares of the run after each of which "steps" divides the rate by 10.
        augment: Train on random resized crops and horizontal flips, the same for all sensors and
            the mask; None: where pictures are trained on anyway. With frozen encoders and the probe
            "sgd", true encodes the augmented pictures in each epoch (B.2), and false or None the
            pictures as they are, once; probes that are solved refuse true.
        standardise: Train the FCN of frozen encoders on maps whose channels have mean 0 and
            standard deviation 1 over the training part, so that one learning rate serves encoders
            whose maps differ in size, as those of fresh and of trained ones do; the model that is
            tested and saved takes the maps as they are. Needs `augment` false.
        crop: Smallest and largest area of a crop, as shares of the picture.
        scales: Factors, for masks and in place of `crop`: each picture is enlarged by one of them
            before a piece is cut out of it; what a shrunken one lacks is 0, its mask unknown (CMX).
        piece: Height and width of the piece that `scales` cuts out; None: the picture's own.
        warmup_epochs: Epochs in which the learning rate rises linearly to where the schedule goes
            on.
        class_weights: Weights of the classes: "balanced" weighs each by the inverse of how often
            the training part shows it; None: every sample, decision or pixel counts alike.
        patience: Number of epochs without a better score on the validation part, after which
            training stops; None: all epochs. The weights of the best epoch are kept in either case.

    Raises:
        ConfigError: for a number out of range.
    """

    name: Literal["sgd", "adamw"] | None = None
    lr: float | None = None
    head_lr: float | None = None
    layer_decay: float = 1.0
    weight_decay: float | None = None
    decay_biases: bool | None = None
    momentum: float = 0.9
    epochs: int | None = None
    steps: int | None = None
    schedule: Schedule | None = None
    milestones: tuple[float, ...] = (0.6, 0.8)
    augment: bool | None = None
    standardise: bool = False
    crop: tuple[float, float] | None = None
    scales: tuple[float, ...] = ()
    piece: tuple[int, int] | None = None
    warmup_epochs: float = 0.0
    class_weights: Literal["balanced"] | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        rates = dict.fromkeys(("lr", "head_lr", "weight_decay"), RATES)
        check_ranges(self, "fit.", **rates, momentum=(0, 1), epochs=EPOCHS, steps=STEPS)
        check_ranges(self, "fit.", warmup_epochs=(0, EPOCHS[1]), patience=EPOCHS)
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"fit.layer_decay: a factor in (0, 1], is {self.layer_decay:g}")
        if self.crop is not None and not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise ConfigError(f"fit.crop: needs 0 < low <= high <= 1, is {list(self.crop)}")
        if any(scale <= 0 for scale in self.scales):
            raise ConfigError(f"fit.scales: factors greater than 0, are {list(self.scales)}")
        if self.piece is not None and (min(self.piece) < 1 or not self.scales):
            raise ConfigError(
                f"fit.piece: height and width in pixels, with fit.scales, is {list(self.piece)}; "
                "set fit.scales, or leave it out"
            )

    def complete(self, task: Label, freeze: bool, *, head: str = "fcn") -> FitSettings:
        """Return a copy in which nothing is left open.

        Args:
            task: what is learned.
            freeze: whether the encoders stay as they are.
            head: of masks.

        Raises:
            ConfigError: for scales where there is no mask.
        """
        if self.scales and not task.dense:
            raise ConfigError(f"fit.scales: are for masks, not for a {task.kind}; take fit.crop")
        defaults = {**asdict(task.fit_defaults), "decay_biases": head != "cmx"}
        defaults["augment"] = not freeze or task.dense
        frozen_lr = defaults.pop("frozen_lr")
        if freeze and frozen_lr is not None:
            defaults["lr"] = frozen_lr
        if self.name is not None and self.name != defaults["name"]:  # rates of another optimiser
            defaults.update(_OTHER[self.name])
        return replace(self, **{k: v for k, v in defaults.items() if getattr(self, k) is None})

    def plain(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        return asdict(self)


@dataclass
class TransferSettings:
    """What a transfer is to do (paper, section 5 and B.2).

    Args:
        encoders: Folders of runs, encoder files, "timm:NAME" for timm's pretrained weights,
            "torchgeo:NAME" for torchgeo's, "hf-hub:USER/REPO", "random" for fresh weights, or
            "random:RUN" for fresh weights in the networks of a run.
        target: Label to learn; may be left out where the data has only one.
        modalities: Sensors to use; None for all of the data that there is an encoder for.
        freeze: Keep the encoders as they are, to the last bit; else fine-tune them.
        freeze_modalities: Sensors whose encoders stay as they are while others are fine-tuned.
        label_fraction: Share of the training part's labels that is used, drawn by `seed`.
        val_fraction: Share of the training part, after `label_fraction`, that is not trained on but
            chooses the best epoch of what trains in epochs: whole groups where there are groups. 0:
            the last epoch is kept. Never the test part. A validation part of its own (`val_split`,
            or `val_data` from Python) may be given instead.
        run: Folder to write.
        probe: Head on frozen vectors: "ridge" or, for classes, "logistic", the regularisation
            chosen on a validation part of the training part; or "sgd", the paper's. "auto" takes
            what fits the label, and says which: "logistic" for one class a sample, "ridge" for
            several classes and for numbers.
        head: Head that predicts masks: the paper's "fcn", or "cmx", which fuses two MiT encoders
            stage by stage.
        representation: Representation of frozen encoders that is probed: their "features", or with
            the projectors of their run, whose folder must be given, the "embedding", its "common"
            or "unique" dimensions, or those of a block, as "block:optical+sar". The model that is
            saved then holds the projectors as well.
        missing_bands: What is done about bands of an encoder that the data lacks: "empty" takes
            them as 0 in every scaled picture, as the authors insert B10, or as their mean where
            the encoder normalises pictures; the bands of the data are
            found by name.
        encoder: Architecture of fresh weights.
        fit: Training of heads and encoders; what is left open is the paper's.
        loader: Batches and workers.
        size: Height and width that pictures are resized to; None for their own.
        test_scales: Factors that a test picture is resized by: its mask is told from what the model
            gives at each of them, added as CMX does: exp(logits + mirrored logits).
        test_flip: Also test each of these versions mirrored.
        test_window: Height and width of windows, overlapping by a third, that a larger picture is
            tested in, and that a smaller one is padded to with the mean colour; None: whole.
        folds: Number of parts that the data is split into; groups stay whole.
        fold: Part that is tested on, counted from 0.
        fold_seed: Seed of the folds, where the data names no groups; None: `seed`, and 0 with
            `folds_of` "all". Runs that test on different folds of one partition need the same one,
            as the cells of a comparison have it.
        folds_of: Samples that the folds divide: the "labelled" ones, or "all" of the data, of which
            then the labelled ones train and test. The latter are the folds of `decur pretrain
            --without_fold`, whose encoders have never seen the pictures that test.
        bootstrap: Compute 95 % intervals, by the jackknife, unless this is 0. (Version 0.1 drew
            this many bootstrap samples.)
        seed: Seed of fresh weights, of folds where the data names no groups, of the labels drawn,
            of the order and of augmentation.
        cache: Folder for vectors and labels, which runs may share; None: in the run's folder.
        device: Device to run on; "auto" takes the GPU where there is one.
        precision: Precision of the arithmetic of training, as Lightning names it.
        keep_model: Write the trained model, encoders and head, as `model.safetensors`; False where
            hundreds of them would fill a disk.

    Raises:
        ConfigError: for a number out of range.
    """

    encoders: str | Sequence[str] = "random"
    target: str | None = None
    modalities: Sequence[str] | None = None
    freeze: bool = True
    freeze_modalities: Sequence[str] | None = None
    label_fraction: float = 1.0
    val_fraction: float = 0.0
    run: str = "runs/transfer"
    probe: Probe = "ridge"
    head: Head = "fcn"
    representation: Representation = "features"
    missing_bands: MissingBands = "refuse"
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    fit: FitSettings = field(default_factory=FitSettings)
    loader: LoaderSettings = field(default_factory=LoaderSettings)
    size: int | None = None
    test_scales: tuple[float, ...] = (1.0,)
    test_flip: bool = False
    test_window: tuple[int, int] | None = None
    folds: int = 5
    fold: int = 0
    fold_seed: int | None = None
    folds_of: Literal["labelled", "all"] = "labelled"
    bootstrap: int = 1000
    seed: int = 0
    cache: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    keep_model: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.label_fraction <= 1:
            raise ConfigError(f"label_fraction: a share in (0, 1], is {self.label_fraction:g}")
        if self.representation not in REPRESENTATIONS and "+" not in self.representation:
            plain = self.representation.removeprefix(PREFIX)
            remedy = (
                f"give --representation {plain}"
                if plain in REPRESENTATIONS
                else f"choose from {', '.join(REPRESENTATIONS)}, or block:NAME for a block such as "
                "optical+sar"
            )
            raise ConfigError(f"representation: {self.representation!r} is none; {remedy}")
        if not 0 <= self.val_fraction < 1:
            raise ConfigError(f"val_fraction: a share in [0, 1), is {self.val_fraction:g}")
        check_ranges(self, size=PIXELS, folds=(2, 10_000), bootstrap=(0, 1_000_000))
        check_ranges(self, seed=SEEDS, fold_seed=SEEDS)
        self.test_scales = tuple(self.test_scales)
        if not self.test_scales or any(scale <= 0 for scale in self.test_scales):
            raise ConfigError(
                f"test_scales: factors greater than 0, one at least, are {list(self.test_scales)}"
            )
        if self.test_window is not None:
            self.test_window = (self.test_window[0], self.test_window[1])
            if min(self.test_window) < 2:
                raise ConfigError(
                    f"test_window: height and width in pixels, is {list(self.test_window)}"
                )

    @property
    def sources(self) -> list[str]:
        """Where the encoders come from, as a list."""
        return encoder_sources(self.encoders)

    @property
    def augments_probe(self) -> bool:
        """Whether a linear layer on frozen encoders is trained on augmented pictures."""
        return self.freeze and self.probe == "sgd" and self.head == "fcn" and bool(self.fit.augment)

    @property
    def stores_maps(self) -> bool:
        """Whether a mask is learned from feature maps that are computed once."""
        fcn = self.freeze and self.head == "fcn"
        return fcn and self.fit.augment is False and not self.averages

    @property
    def averages(self) -> bool:
        """Whether the mask of a test picture is told from several versions of it, or windows."""
        return self.test_scales != (1.0,) or self.test_flip or self.test_window is not None

    def complete(
        self, task: Label, validated: bool = False, *, tested: bool = False
    ) -> TransferSettings:
        """Return a copy for a task, in which `fit` and the probe leave nothing open.

        Args:
            task: what is learned.
            validated: whether there is a validation part besides `val_fraction`.
            tested: whether there is a test part of its own, in place of a fold.

        Raises:
            ConfigError: if settings do not fit together; it names one.
        """
        chosen = replace(self, probe=task.usual_probe) if self.probe == "auto" else self
        chosen._refuse_mismatch(task)
        chosen = replace(chosen, fit=self.fit.complete(task, self.freeze, head=self.head))
        refuse_without_effect(Use(self, chosen, task, validated or self.val_fraction > 0, tested))
        return chosen

    def _refuse_mismatch(self, task: Label) -> None:
        kind = task.kind
        if self.freeze and self.probe not in task.probes:
            raise ConfigError(
                f"probe: {self.probe} is not for {task.name!r}; a {kind} takes "
                f"{' or '.join(task.probes)}, or auto"
            )
        if self.representation != "features" and (task.dense or not self.freeze):
            what = "a mask needs feature maps" if task.dense else "fine-tuning starts from encoders"
            raise ConfigError(
                f"representation: {self.representation} is for probes, and {what}; take features"
            )
        if self.head != "fcn" and not task.dense:
            raise ConfigError(
                f"head: {self.head} is for masks, and {task.name!r} is a {kind}; leave it out"
            )
        if self.averages and not task.dense:
            raise ConfigError(
                f"test_scales, test_flip: are for masks, and {task.name!r} is a {kind}; leave them "
                "out, and test_window"
            )


def is_fresh(source: str) -> bool:
    """Return whether encoders from a source have fresh weights."""
    return source == RANDOM or source.startswith(RANDOM_AS)


def encoder_sources(given: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    """Return the names of runs, files and weights that encoders come from.

    Args:
        given: one or several; what `decur.pretrain` has returned stands for the run's folder.

    Raises:
        ConfigError: if there is none, or it is something else, such as an encoder itself.
    """
    several = [given] if isinstance(given, str | os.PathLike) else given
    if not isinstance(several, Sequence) or not all(
        isinstance(source, str | os.PathLike) for source in several
    ):
        raise ConfigError(
            f"encoders: is {type(given).__name__}; give the folder of a run, encoder files, or the "
            "names of weights (save_encoder writes a file)"
        )
    require(bool(several), "encoders: is empty; give the folder of a run, or encoder files")
    return [os.fspath(source) for source in several]
