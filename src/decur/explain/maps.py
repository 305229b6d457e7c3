"""An encoder cut at a feature map: what saliency is asked about, and what comes after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from decur.data import Batch
from decur.encoders import Encoder, MLPEncoder, ProjectedEncoder, TimmEncoder
from decur.encoders.attention import encode
from decur.encoders.attention.cross import is_crossing
from decur.explain.base import DoesNotApply
from decur.explain.model import Checkpoint

LAST = -1


@dataclass(frozen=True)
class Cut:
    """A feature map of some pictures, and the encoder after it.

    Args:
        values: (n, C, h, w).
        head: from such a map of the same pictures to the encoder's vector, (n, D).
    """

    values: Tensor
    head: Callable[[Tensor], Tensor]


@torch.no_grad()
def cuts(checkpoint: Checkpoint, batch: Batch, stage: int = LAST) -> dict[str, Cut]:
    """A feature map of each sensor's encoder, and the rest of the encoder.

    The last map of a ViT is of the patches' tokens that enter its last block: those that leave it
    no longer reach the vector where that is the class token.

    Args:
        checkpoint: whose encoders.
        batch: samples; of each sensor, those that have it.
        stage: which map; -1 is the last, -2 the one before it. Others than the last cost more, as
            the encoder is run anew.

    Returns:
        `{modality: Cut}`, without sensors that no sample has.

    Raises:
        DoesNotApply: if an encoder has no such map, or none with places.
    """
    present = {name: batch["present"][name] for name in checkpoint.modalities}
    images = {name: checkpoint.pictures(batch, name) for name, has in present.items() if has.any()}
    found = {}
    for name, x in images.items():
        encoder = checkpoint.encoder(name)
        if is_crossing(encoder):

            def run(name: str = name) -> Tensor:
                return encode(checkpoint.encoders, images, present)[name]

            found[name] = _replaced(encoder, run, stage)
        else:
            found[name] = _cut(encoder, x, stage)
    return found


def _cut(encoder: Encoder, x: Tensor, stage: int) -> Cut:
    if isinstance(encoder, MLPEncoder):
        raise DoesNotApply("The encoder mlp takes the mean over all places: no place stands out.")
    if isinstance(encoder, ProjectedEncoder):
        inner = _cut(encoder.encoder, x, stage)
        return Cut(inner.values, lambda m: encoder.projector(inner.head(m))[:, encoder.part])
    if stage != LAST:
        return _replaced(encoder, lambda: encoder(x), stage)
    if not isinstance(encoder, TimmEncoder):
        return _pooled(encoder, x)
    return _headless(encoder, x)


def _pooled(encoder: Encoder, x: Tensor) -> Cut:
    values = encoder.forward_features(x)[-1]
    if not torch.allclose(values[:1].mean((2, 3)), encoder(x[:1]), atol=1e-4, rtol=1e-3):
        raise DoesNotApply(f"The vector of {encoder.name} is not the mean of its last map.")
    return Cut(values, lambda m: m.mean((2, 3)))


def _headless(encoder: TimmEncoder, x: Tensor) -> Cut:
    """At what timm's head takes, or before the last of a ViT's blocks."""
    backbone = encoder.backbone
    blocks: Any = getattr(backbone, "blocks", None)
    seen: list[tuple[Any, ...]] = []
    if isinstance(blocks, nn.Sequential | nn.ModuleList) and len(blocks):
        hook = blocks[-1].register_forward_hook(
            lambda _, given, named, made: seen.append((*given, named, made)), with_kwargs=True
        )
        features = backbone.forward_features(x)
        hook.remove()
    else:
        features = backbone.forward_features(x)
    if features.ndim == 4:
        back, forth = _orders(backbone)
        return Cut(features.permute(back), lambda m: backbone.forward_head(m.permute(forth)))
    if len(seen) != 1 or not hasattr(backbone, "norm"):
        raise DoesNotApply(f"{encoder.name} has no last map that could be told from its layers.")
    tokens, *given, named, made = seen[0]
    prefix = getattr(backbone, "num_prefix_tokens", 0)
    height, width = (side // encoder.strides[-1] for side in x.shape[-2:])
    if tokens.shape[1] != prefix + height * width or not backbone.norm(made).equal(features):
        raise DoesNotApply(f"{encoder.name} has no last map that could be told from its layers.")

    def head(values: Tensor) -> Tensor:
        patches = values.flatten(2).transpose(1, 2)  # (n, h w, C)
        left = blocks[-1](torch.cat([tokens[:, :prefix], patches], 1), *given, **named)
        return backbone.forward_head(backbone.norm(left))

    return Cut(tokens[:, prefix:].transpose(1, 2).unflatten(2, (height, width)), head)


def _replaced(encoder: Encoder, run: Callable[[], Tensor], stage: int) -> Cut:
    """At the end of a stage: the rest is the whole encoder, with the map put in there."""
    if not isinstance(encoder, TimmEncoder) or not -len(encoder.indices) <= stage < 0:
        raise DoesNotApply(f"{encoder.name} has no stage {stage} that could be cut at.")
    backbone = encoder.backbone
    module = backbone.get_submodule(backbone.feature_info[encoder.indices[stage]]["module"])
    if isinstance(module, nn.Sequential):  # encoders that attend to each other run its layers
        module = module[-1]
    seen: list[Any] = []
    hook = module.register_forward_hook(lambda _, given, made: seen.append(made))
    run()
    hook.remove()
    if len(seen) != 1 or not isinstance(seen[0], Tensor) or seen[0].ndim != 4:
        raise DoesNotApply(f"{encoder.name} gives no map at stage {stage}.")
    back, forth = _orders(backbone)

    def head(values: Tensor) -> Tensor:
        hook = module.register_forward_hook(lambda *_: values.permute(forth))
        try:
            return run()
        finally:
            hook.remove()

    return Cut(seen[0].permute(back), head)


def _orders(backbone: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """From the order of a timm model's maps to (n, C, h, w), and back."""
    if getattr(backbone, "output_fmt", "NCHW") == "NHWC":
        return (0, 3, 1, 2), (0, 2, 3, 1)
    return (0, 1, 2, 3), (0, 1, 2, 3)
