"""What is wrong with a comparison as a person wrote it, before any of it runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from decur.compare.settings import Changes, encoder_name
from decur.errors import ConfigError
from decur.transfer.tasks.base import known_metrics

if TYPE_CHECKING:
    from decur.compare.plan import Plan

# Keys that a cell's own values override, and where to say it instead.
_OWN = {
    "run": "the folder of all is the comparison's run",
    "seed": "give the comparison's seeds",
}
_OWN_TRANSFER = _OWN | {
    "encoders": "give methods.NAME.encoders, with pretrain: null",
    "label_fraction": "give label_fractions, of the comparison or of the task",
    "modalities": "give modalities, of the comparison or of the task",
}


def check(plan: Plan) -> None:
    """Refuse what no cell can be made of.

    Raises:
        ConfigError: naming the key and the remedy.
    """
    for key in ("methods", "tasks", "seeds"):
        if not getattr(plan, key):
            raise ConfigError(f"{key}: is empty; name one at least")
    _check_own_keys(plan)
    _check_backbones(plan)
    for seed in plan.seeds:
        if seed < 0:
            raise ConfigError(f"seeds: must not be negative, {seed} is")
        if plan.seeds.count(seed) > 1:
            raise ConfigError(f"seeds: {seed} is there twice; name each once")
    if bool(plan.along) != (plan.axis is not None):
        raise ConfigError(
            "along: goes with methods.NAME.at: name the axis here, and there each method's "
            "place on it"
        )
    _refuse_unknown("against", [plan.against] if plan.against is not None else None, plan.methods)
    for name, task in plan.tasks.items():
        _refuse_unknown(f"tasks.{name}.methods", task.methods, plan.methods)
        _refuse_unknown(f"tasks.{name}.metric", [*filter(None, task.metrics)], known_metrics())
        if not plan.fractions(name):
            raise ConfigError("label_fractions: is empty; name one at least, as [1.0]")
        for fraction in plan.fractions(name):
            if not 0 < fraction <= 1:
                raise ConfigError(
                    f"tasks.{name}: label_fractions are shares in (0, 1], not {fraction:g}"
                )
    for name, method in plan.methods.items():
        _refuse_unknown(f"methods.{name}.tasks", method.tasks, plan.tasks)
        if method.apart and not plan.sensors():
            raise ConfigError(
                f"methods.{name}.apart: name the sensors in modalities, as in [[s1], [s2]]"
            )


def _check_own_keys(plan: Plan) -> None:
    """Refuse keys that every cell has of its own: they would be overridden in silence."""
    for written, own in ((_of_pretraining(plan), _OWN), (_of_transfer(plan), _OWN_TRANSFER)):
        for where, changes in written:
            if not isinstance(changes, dict):
                raise ConfigError(
                    f"{where}: must be a mapping of keys; leave it out if it has none"
                )
            for key, right in own.items():
                if key in changes:
                    raise ConfigError(f"{where}.{key}: each cell has its own; {right}")


def _of_pretraining(plan: Plan) -> Iterator[tuple[str, Changes]]:
    """The changes of pretraining that a person writes, by the key that they stand under."""
    yield "pretrain", plan.pretrain
    for name, changes in (plan.backbones or {}).items():
        yield f"backbones.{name}", changes
    for name, method in plan.methods.items():
        if method.pretrain is not None:
            yield f"methods.{name}.pretrain", method.pretrain


def _of_transfer(plan: Plan) -> Iterator[tuple[str, Changes]]:
    """The changes of transfer that a person writes, by the key that they stand under."""
    yield "transfer", plan.transfer
    for name, method in plan.methods.items():
        yield f"methods.{name}.transfer", method.transfer
    for name, task in plan.tasks.items():
        yield f"tasks.{name}.transfer", task.transfer


def _check_backbones(plan: Plan) -> None:
    """Refuse an encoder that the backbones would override, as against one of a recipe below."""
    if plan.backbones is None:
        return
    if not plan.backbones:
        raise ConfigError("backbones: is empty; name one at least, or leave it out")
    # a method's own pretraining overrides backbones
    for where, below in [("pretrain", plan.pretrain), *_of_transfer(plan)]:
        wanted = encoder_name([below])
        for name, changes in plan.backbones.items():
            other = encoder_name([changes])
            if wanted and other and other != wanted:
                raise ConfigError(
                    f"{where}.encoder.name: is {wanted!r}, and {other!r} in backbones ({name}); "
                    f"give --backbones '[{wanted}]', or leave one of them out"
                )


def _refuse_unknown(key: str, names: Sequence[str] | None, known: Iterable[str]) -> None:
    for name in names or ():
        if name not in known:
            raise ConfigError(f"{key}: there is no {name!r}; choose from {', '.join(known)}")
