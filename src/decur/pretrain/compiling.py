"""Encoders and projectors through `torch.compile`, where that makes a run shorter."""

from __future__ import annotations

import logging
from collections.abc import Container
from typing import Any

import torch
from torch import Tensor, nn

from decur.data.sample import Batch
from decur.encoders.attention.cross import is_crossing

log = logging.getLogger(__name__)

Modules = dict[str, nn.Module]

# Compiling two ResNets takes minutes. Where it saves a tenth of a step that takes a tenth of a
# second, a run is shorter after some thousands of steps.
PAYS_AFTER = 10_000


def pays(device: torch.device, steps: int) -> bool:
    """Return whether compiling makes a run on one device shorter.

    It does not on a CPU, whose libraries are faster than generated code, nor for few steps.

    Args:
        device: that trains.
        steps: of the whole run, also where it goes on: the answer must not change.
    """
    return device.type == "cuda" and steps >= PAYS_AFTER


class Networks:
    """Encoders and projectors as a training step calls them: compiled, or as they are.

    Each is compiled for one shape. The modules of the model are not changed, so that nothing is
    compiled for calls outside the training step, such as those of monitors. If the first
    compilation fails, forward or backward, all networks run without it, and a warning says so.
    Encoders that attend to each other run stage by stage together, and are never compiled.

    Args:
        encoders: `{modality: encoder}`.
        projectors: `{modality: projector}`.
        compiled: whether to compile, when first called.
    """

    def __init__(self, encoders: nn.ModuleDict, projectors: nn.ModuleDict, compiled: bool) -> None:
        self.failed = False
        self.unproven = compiled  # until a step has gone through, its backward pass included
        self._plain = (dict(encoders.items()), dict(projectors.items()))
        self._compiled = self._plain
        if compiled:
            log.info("compiling encoders and projectors: the first step takes minutes")
            self._compiled = (self._compile(self._plain[0]), self._compile(self._plain[1]))

    def of(self, partial: Container[str]) -> tuple[Modules, Modules]:
        """Return encoders and projectors for one step.

        Args:
            partial: modalities that only some of the samples have. Their networks run without
                compilation: compiled for each number of samples, a step would depend on the
                numbers that came before, and a run that goes on would end differently.
        """
        encoders, projectors = (
            {name: (plain if name in partial else compiled)[name] for name in plain}
            for plain, compiled in zip(self._plain, self._compiled, strict=True)
        )
        return encoders, projectors

    def give_up(self, error: Exception) -> None:
        """Run all networks without compilation from now on, and say why in one line."""
        self.failed, self.unproven = True, False
        reason = " ".join(str(error).split())[:200]
        log.warning("compile: failed, the run goes on without it (%s)", reason)

    def _compile(self, modules: Modules) -> Modules:
        return {
            name: module if is_crossing(module) else _Compiled(module, self)
            for name, module in modules.items()
        }


class _Compiled(nn.Module):
    """A compiled network; it is no part of the model, whose keys of the state dict stay."""

    def __init__(self, module: nn.Module, group: Networks) -> None:
        super().__init__()
        self.plain, self.group = module, group
        self.runs = False  # whether the compiled network has run once
        self.compiled: Any = torch.compile(module, dynamic=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor
        if self.group.failed:
            y = self.plain(x)
            return y
        try:
            y = self.compiled(x)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a compiler fails in many ways
            if self.runs:
                raise
            self.group.give_up(error)
            y = self.plain(x)
            return y
        self.runs = True
        return y


class StepStart:
    """What a training step changes before its backward pass, kept so that it can be done again.

    Args:
        model: about to do the step.
        batch: of the step.
        batch_idx: number of the batch in the epoch.
    """

    def __init__(self, model: nn.Module, batch: Batch, batch_idx: int) -> None:
        self.batch, self.batch_idx = batch, batch_idx
        self._buffers = [(b, b.clone()) for b in model.buffers()]
        self._gradients = [
            (p, None if p.grad is None else p.grad.clone()) for p in model.parameters()
        ]

    def restore(self) -> None:
        """Put batch statistics and gradients back; random numbers are a function of the step."""
        for buffer, kept in self._buffers:
            buffer.copy_(kept)
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
