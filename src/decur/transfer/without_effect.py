"""Settings of a transfer that would have no effect: refused, or warned of."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

from decur.errors import ConfigError

if TYPE_CHECKING:
    from decur.transfer.settings import Label, TransferSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Use:
    """What settings are used for.

    Args:
        given: settings as they are given.
        settings: the same, in which `fit` and the probe leave nothing open.
        task: what is learned.
        validated: whether there is a validation part.
        tested: whether there is a test part of its own.
    """

    given: TransferSettings
    settings: TransferSettings
    task: Label
    validated: bool
    tested: bool

    @property
    def solved(self) -> bool:
        """Whether the head is solved in closed form."""
        return self.settings.freeze and not self.task.dense and self.settings.probe != "sgd"


class _Rule(NamedTuple):
    """Settings that have no effect somewhere.

    Args:
        keys: fields that may be given, as "fit.lr"; none where something else is.
        where: whether they have no effect.
        said: the message, with {keys}, {probe}, {name} and {kind} of the label.
        refused: whether that is an error. It is none for what version 0.1 took, and for what the
            tasks of a comparison may share.
    """

    keys: tuple[str, ...]
    where: Callable[[Use], bool]
    said: str
    refused: bool = True


_FOR_STEPS = (  # fields of `fit`
    "name",
    "lr",
    "weight_decay",
    "decay_biases",
    "momentum",
    "epochs",
    "steps",
    "schedule",
    "milestones",
    "crop",
    "warmup_epochs",
)
_RULES = (
    _Rule(
        (),
        lambda use: use.solved and use.validated,
        "val_fraction, val_split: choose the best epoch, and the probe {probe} is solved without "
        "epochs; take --probe sgd, or --freeze false",
    ),
    _Rule(
        ("fit.class_weights",),
        lambda use: use.solved,
        "{keys}: is for what trains in steps, not for the probe {probe}; take --probe sgd, or "
        "--freeze false",
    ),
    _Rule(
        ("fit.augment",),
        lambda use: use.solved and bool(use.settings.fit.augment),
        "{keys}: is for what is trained on pictures, and the probe {probe} is solved on vectors "
        "that are computed once; take --probe sgd, or --freeze false",
    ),
    _Rule(
        ("fit.class_weights",),
        lambda use: not use.task.has_weights,
        "{keys}: {name!r} is a {kind}; leave it out",
    ),
    _Rule(
        ("fit.standardise",),
        lambda use: not (use.settings.stores_maps and use.task.dense),
        "{keys}: is for the maps of frozen encoders that an FCN is trained on; give it a mask, "
        "--freeze true, --fit.augment false and no test_scales, test_flip or test_window, or leave "
        "it out",
    ),
    _Rule(
        ("fit.patience",),
        lambda use: not use.validated,
        "{keys}: needs a validation part; give val_fraction",
    ),
    _Rule(
        ("fit.head_lr", "fit.layer_decay"),
        lambda use: use.settings.freeze,
        "{keys}: is for fine-tuning; give --freeze false",
    ),
    _Rule(
        ("freeze_modalities",),
        lambda use: use.settings.freeze and bool(use.settings.freeze_modalities),
        "{keys}: freeze is on, for all; give --freeze false",
    ),
    _Rule(
        tuple(f"fit.{key}" for key in _FOR_STEPS),
        lambda use: use.solved,
        "{keys}: without effect on the probe {probe}, which is solved in closed form; take --probe "
        "sgd, or --freeze false, or leave it out",
        refused=False,
    ),
    _Rule(
        ("fit.milestones",),
        lambda use: not use.solved and use.settings.fit.schedule != "steps",
        "{keys}: without effect, as the learning rate does not fall in steps; give --fit.schedule "
        "steps, or leave it out",
        refused=False,
    ),
    _Rule(
        ("fit.momentum",),
        lambda use: not use.solved and use.settings.fit.name != "sgd",
        "{keys}: without effect on AdamW; give --fit.name sgd, or leave it out",
        refused=False,
    ),
    _Rule(
        ("fit.crop", "fit.scales", "fit.piece"),
        lambda use: not use.solved and not use.settings.fit.augment,
        "{keys}: without effect, as pictures are not augmented; give --fit.augment true, or leave "
        "it out",
        refused=False,
    ),
    _Rule(
        ("folds", "fold", "fold_seed", "folds_of"),
        lambda use: use.tested,
        "{keys}: without effect beside test_split or test_data, which is tested on in place of a "
        "fold; leave out one or the other",
        refused=False,
    ),
    _Rule(
        ("probe",),
        lambda use: not use.settings.freeze and use.given.probe == "logistic",
        "{keys}: {probe} is for frozen encoders, and has no effect on fine-tuning; give --freeze "
        "true, or leave it out",
        refused=False,
    ),
    _Rule(
        ("probe",),
        lambda use: use.task.dense and use.given.probe == "sgd",
        "{keys}: {probe} is for vectors of whole pictures, and {name!r} is a {kind}, which has a "
        "head of its own; leave it out",
        refused=False,
    ),
)


def refuse_without_effect(use: Use) -> None:
    """Refuse what would not be done, so that no result says it was; warn of the rest in a line.

    Raises:
        ConfigError: naming the settings, and what to do.
    """
    settings, defaults = use.given, type(use.given)()
    for rule in _RULES:
        given = [key for key in rule.keys if attrgetter(key)(settings) != attrgetter(key)(defaults)]
        if (rule.keys and not given) or not rule.where(use):
            continue
        said = rule.said.format(
            keys=", ".join(given), probe=use.settings.probe, name=use.task.name, kind=use.task.kind
        )
        if rule.refused:
            raise ConfigError(said)
        log.warning(said)
