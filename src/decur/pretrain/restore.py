"""Open a run from its folder, whether or not it has ended."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from decur.config import Parser
from decur.encoders import Encoder, Projector, load_encoder
from decur.encoders.stored import refuse_non_finite
from decur.errors import ConfigError, DataError, reason_of
from decur.objectives import Objective
from decur.pretrain.settings import ProjectorSettings
from decur.runs import RunFolder


@dataclass(frozen=True)
class Restored:
    """The networks that a run has trained, on the CPU and in eval mode.

    Args:
        encoders: `{modality: encoder}`, each with its `modality`.
        projectors: `{modality: projector}`.
        objective: with its own learned weights; its `parts` say which dimensions are common.
    """

    encoders: dict[str, Encoder]
    projectors: dict[str, Projector]
    objective: Objective


def restore(folder: str | Path) -> Restored:
    """Open a run: its encoder files, its configuration and the checkpoint they are of.

    The data set need not be there. No object is unpickled.

    Args:
        folder: of a run of `decur pretrain`.

    Raises:
        DataError: if the folder lacks one of the three, if they do not belong together, or if the
            objective cannot be made, such as when its class cannot be imported.
    """
    run = RunFolder(Path(folder))
    encoders = {file.stem: load_encoder(file) for file in run.saved_encoders()}
    if not encoders:
        raise DataError(
            f"{run.path}: holds no encoders/*.safetensors; give a finished run's folder"
        )
    settings, spec = _configuration(run)
    checkpoint, state = _state_of(run, encoders)
    projectors = {name: settings.build(encoder.dim) for name, encoder in encoders.items()}
    for name, projector in projectors.items():
        _load(projector, state, f"projectors.{name}.", checkpoint)
    try:
        objective = _objective(spec, next(iter(projectors.values())).dim)
    except ConfigError as error:
        raise DataError(f"{run.config}: {error}") from error
    _load(objective, state, "objective.", checkpoint)
    return Restored(encoders, projectors, objective)


def _state_of(run: RunFolder, encoders: Mapping[str, Encoder]) -> tuple[Path, Mapping[str, Tensor]]:
    """Return the checkpoint that some encoders are of, and its weights.

    A run that was killed may have saved one more state than encoder files.
    """
    newest = run.newest_checkpoint()
    if newest is None:
        raise DataError(
            f"{run.checkpoints}: holds no checkpoint, and only there are the projectors; keep the "
            "last checkpoint of a run"
        )
    older = [path for path in run.saved_checkpoints() if path.name < newest.name]
    wrong = ""
    for path in (newest, *older):
        # mapped: the optimiser's state, most of the file, is never read
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
        others = [
            name
            for name, encoder in encoders.items()
            if not _same(encoder.state_dict(), _under(state, f"encoders.{name}."))
        ]
        if not others:
            return path, state
        wrong = wrong or others[0]
    raise DataError(
        f"{run.encoder(wrong)}: holds other weights than {newest.name}; write those with `decur "
        f"pretrain --finish --run {run.path}`, or let the run go on with `--resume --run "
        f"{run.path}`"
    )


def _configuration(run: RunFolder) -> tuple[ProjectorSettings, Mapping[str, Any]]:
    """Return the projector's settings, and the objective's class and arguments."""
    values = run.configuration(used=("projector", "objective"))
    try:
        return ProjectorSettings(**values["projector"]), dict(values["objective"])
    except (KeyError, TypeError, ValueError) as error:
        reason = reason_of(error)
        raise DataError(f"{run.config}: not the configuration of a run ({reason})") from error


def _objective(spec: Mapping[str, Any], dim: int) -> Objective:
    """Make an objective; the configuration names its width only as the projector's."""
    parser = Parser("decur")
    parser.add_subclass_arguments(Objective, "objective")
    whole = {**spec, "init_args": {**spec.get("init_args", {}), "dim": dim}}
    settings = parser.parse(["--objective", json.dumps(whole)])
    objective: Objective = parser.instantiate(settings).objective
    return objective


def _under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors of one module of a model."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _same(state: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Return whether two states hold the same weights."""
    return state.keys() == other.keys() and all(
        value.shape == other[key].shape and torch.equal(value, other[key].to(value.dtype))
        for key, value in state.items()
    )


def _load(module: nn.Module, state: Mapping[str, Tensor], prefix: str, path: Path) -> None:
    """Load the weights of one module of a model; `path` of its checkpoint is for the message."""
    weights = _under(state, prefix)
    refuse_non_finite({prefix + name: x for name, x in weights.items()}, path)
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{path}: does not fit the run's config.yaml ({reason})") from error
    module.eval()
