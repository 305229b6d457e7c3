"""Optimisers, their parameter groups and their schedule (DeCUR, appendix B.1)."""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.optim.lars import Lars
from torch import nn

from decur.pretrain.settings import OptimizerSettings

_FUSED = ("cpu", "cuda", "mps", "xpu")  # devices that torch 2.6 has fused optimisers for


def parameter_groups(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the weights, and the parameters exempt from LARS adaptation and weight decay.

    Exempt are biases, parameters of normalisations, learned scales, and what an encoder itself
    names (`no_weight_decay` of timm's transformers: position embedding, class token).
    """
    named_exempt = {
        f"{prefix}.{name}".lstrip(".")
        for prefix, child in module.named_modules()
        if callable(getattr(child, "no_weight_decay", None))
        for name in child.no_weight_decay()
    }
    weights: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            plain = parameter.ndim <= 1 or name in named_exempt
            (exempt if plain else weights).append(parameter)
    return weights, exempt


def build_optimizer(
    module: nn.Module, settings: OptimizerSettings, batch_size: int, fuse: bool = True
) -> torch.optim.Optimizer:
    """Return LARS or AdamW over the two groups of `parameter_groups`.

    AdamW runs as one fused kernel where torch has one for the device. On GPUs timm's
    LARS takes all parameters at once; on CPUs one by one, so that each stays in the caches.

    Args:
        module: whose parameters are trained.
        settings: names and rates.
        batch_size: over all processes; scales the rates with `settings.scale_lr`.
        fuse: whether AdamW may be fused. Lightning refuses to clip gradients in mixed precision
            for fused optimisers.
    """
    scale = batch_size / 256 if settings.scale_lr else 1.0
    lr, lr_bias, decay = settings.rates()
    weights, exempt = parameter_groups(module)
    groups: list[dict[str, Any]] = [
        {"params": weights, "lr": lr * scale, "weight_decay": decay},
        {"params": exempt, "lr": lr_bias * scale, "weight_decay": 0.0},
    ]
    optimizer: torch.optim.Optimizer
    if settings.name == "lars":
        # timm's LARS adapts where there is weight decay, and else only where it is told to
        groups[0]["always_adapt"] = True
        optimizer = Lars(groups, momentum=settings.momentum)
    else:  # None leaves the choice to torch, which never fuses by itself
        fused = True if fuse and can_fuse(weights + exempt) else None
        optimizer = torch.optim.AdamW(groups, fused=fused)
    optimizer.register_load_state_dict_pre_hook(_keep_kernels)
    return optimizer


def _keep_kernels(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Keep this optimiser's choice of kernels: a state may be of another device or strategy."""
    groups = [
        {**saved, **{key: own[key] for key in ("foreach", "fused") if key in own}}
        for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=False)
    ]
    if len(groups) != len(state["param_groups"]):
        return state  # torch raises an error that says what does not fit
    return {**state, "param_groups": groups}


def can_fuse(parameters: list[nn.Parameter]) -> bool:
    """Return whether torch has a fused kernel for all parameters; without one it would raise."""
    return all(p.device.type in _FUSED and p.is_floating_point() for p in parameters)


def describe_groups(optimizer: torch.optim.Optimizer) -> str:
    """Return the number of parameters, the rate and the decay of each group, in one line."""
    names = ("weights", "biases and norms")
    return "; ".join(
        f"{name}: {sum(p.numel() for p in group['params']):,} at lr {group['lr']:g}, "
        f"decay {group['weight_decay']:g}"
        for name, group in zip(names, optimizer.param_groups, strict=True)
    )


def cosine_with_warmup(step: int, total: int, warmup: int) -> float:
    """Return the factor of the learning rate: a linear warm-up, then a half cosine to 0.

    Args:
        step: from 0.
        total: steps of the run.
        warmup: steps of the warm-up.
    """
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
