"""Groups of parameters: which rate and which decay each gets in a training on labels."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from decur.encoders import AdaptedEncoder, Encoder, ProjectedEncoder
from decur.encoders.timm_models import TimmEncoder
from decur.errors import ConfigError
from decur.transfer.settings import FitSettings

_STAGE = re.compile(r"(?:patch_embed|block|norm)(\d)\.")  # of a Mix Transformer


def parameter_groups(model: nn.Module, settings: FitSettings) -> list[dict[str, Any]]:
    """Return the trained parameters of a model in groups of one learning rate and one decay.

    Args:
        model: its encoders, wherever they are, are told from the rest, which is the head.
        settings: complete ones.

    Returns:
        Groups as an optimiser of torch takes them; a single one where all are treated alike.

    Raises:
        ConfigError: for a decay by layers of an encoder whose layers are not known.
    """
    assert settings.lr is not None and settings.weight_decay is not None
    factors = _encoder_factors(model, settings.layer_decay)
    rate_of_head = settings.lr if settings.head_lr is None else settings.head_lr
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        factor = factors.get(id(parameter))
        rate = rate_of_head if factor is None else settings.lr * factor
        spared = not settings.decay_biases and parameter.ndim < 2
        groups.setdefault((rate, 0.0 if spared else settings.weight_decay), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]


def _encoder_factors(model: nn.Module, decay: float) -> dict[int, float]:
    """Return the factor of the rate of each parameter of an encoder, by its id."""
    factors: dict[int, float] = {}
    for module in model.modules():
        if isinstance(module, Encoder) and not isinstance(
            module, AdaptedEncoder | ProjectedEncoder
        ):
            depths = _depths(module) if decay != 1 else {}
            last = max(depths.values(), default=0)
            for name, parameter in module.named_parameters():
                factors[id(parameter)] = decay ** (1 + last - depths[name]) if depths else 1.0
    return factors


def _depths(encoder: Encoder) -> dict[str, int]:
    """Return the number of the layer of each parameter, from the picture on."""
    names = [name for name, _ in encoder.named_parameters()]
    if isinstance(encoder, TimmEncoder):
        from timm.models import group_parameters

        matcher = encoder.backbone.group_matcher(coarse=False)
        found: dict[str, int] = group_parameters(encoder.backbone, matcher, reverse=True)
        return {name: found[name.removeprefix("backbone.")] for name in names}
    stages = {name: match for name in names if (match := _STAGE.match(name))}
    if len(stages) < len(names):
        raise ConfigError(
            f"fit.layer_decay: the layers of encoder {encoder.name!r} are not known; leave it out"
        )
    return {name: int(match[1]) for name, match in stages.items()}
