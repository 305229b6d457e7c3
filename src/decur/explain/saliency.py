"""Grad-CAM of an encoder: the places of a picture that raise a score of its embedding.

The encoder is cut at a feature map: the score is a function of the map, by way of the layers that
follow it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from decur.explain.base import DoesNotApply
from decur.explain.model import Checkpoint, Score

if TYPE_CHECKING:
    from decur.data import Batch
    from decur.encoders import Encoder, TimmEncoder

LAST = -1  # stage of an encoder
SaliencyStage = int | Literal["conv2"]  # a stage, or the last layer of that name, as in Algorithm 2

Statistics = Mapping[str, tuple[Tensor, Tensor]]
Maps = dict[str, dict[str, Tensor]]


def saliency_maps(
    checkpoint: Checkpoint,
    batch: Batch,
    *,
    statistics: Statistics | None = None,
    score: Score = "mean",
    stage: SaliencyStage = LAST,
) -> Maps:
    """Compute Grad-CAM of each part of each sensor's embedding (Algorithm 2, `gradcam_vis`).

    Args:
        checkpoint: the run.
        batch: samples; each sensor's maps are of the samples that have it.
        statistics: `{modality: Features.statistics(modality)}`, by which embeddings are
            standardised; None for those of the batch: then a map depends on the batch's other
            samples.
        score: which number of a part, see `Checkpoint.scores`.
        stage: which feature map; -1 is that of the last stage, "conv2" that of the last layer of
            this name in a ResNet (`last_conv2` of Algorithm 2).

    Returns:
        `{modality: {part: (n, H, W)}}`, not negative, of the size of `checkpoint.pictures`,
        float32 on the CPU; without sensors that no sample of the batch has. All 0 where nothing
        in a picture raises the score.

    Raises:
        DoesNotApply: if an encoder has no such map, or none with places.
    """
    from captum.attr import LayerAttribution, LayerGradCam

    found: Maps = {}
    for name, cut in cuts(checkpoint, batch, stage).items():
        size = tuple(batch["images"][name].shape[-2:])
        size = size if checkpoint.size is None else (checkpoint.size,) * 2
        scores = _Scores(checkpoint, name, cut, (statistics or {}).get(name), score)
        cam = LayerGradCam(scores, scores.entry)
        values = cut.values.detach().requires_grad_()  # (n, C, h, w)
        found[name] = {}
        for number, part in enumerate(checkpoint.parts):
            coarse = cam.attribute(values, target=number, relu_attributions=True)  # (n, 1, h, w)
            maps = LayerAttribution.interpolate(coarse.detach(), size, "bilinear")
            found[name][part] = maps[:, 0].float().cpu()  # (n, H, W)
    return found


@dataclass(frozen=True)
class Cut:
    """A feature map of some pictures, and the layers of the encoder that follow it.

    Args:
        values: the map (n, C, h, w).
        head: function from such a map of the same pictures to the encoder's vector (n, D).
    """

    values: Tensor
    head: Callable[[Tensor], Tensor]


class _Scores(nn.Module):
    """From a feature map to one number for each part, with an `entry` that captum hooks."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        modality: str,
        cut: Cut,
        statistics: tuple[Tensor, Tensor] | None,
        score: Score,
    ) -> None:
        super().__init__()
        self.entry = nn.Identity()
        self._head, self._scores = cut.head, checkpoint.scores
        self._modality, self._statistics, self._score = modality, statistics, score

    def forward(self, values: Tensor) -> Tensor:
        """Return the scores (n, parts) of maps (n, C, h, w)."""
        vector = self._head(self.entry(values))  # (n, D)
        return self._scores(self._modality, vector, statistics=self._statistics, kind=self._score)


@torch.no_grad()
def cuts(checkpoint: Checkpoint, batch: Batch, stage: SaliencyStage = LAST) -> dict[str, Cut]:
    """Return a feature map of each sensor's encoder, and the layers that follow it.

    The last map of a ViT holds the tokens of patches that enter its last block: those that leave
    it no longer reach the vector where the class token is the vector.

    Args:
        checkpoint: the run.
        batch: samples; each sensor's map is of the samples that have it.
        stage: which map, as `saliency_maps` takes it; -2 is the one before the last. Maps before
            the last cost more, as the encoder runs anew.

    Returns:
        `{modality: Cut}`, without sensors that no sample has.

    Raises:
        DoesNotApply: if an encoder has no such map, or none with places.
    """
    from decur.encoders.attention import encode
    from decur.encoders.attention.cross import is_crossing

    present = {name: batch["present"][name] for name in checkpoint.modalities}
    images = {name: checkpoint.pictures(batch, name) for name, has in present.items() if has.any()}
    found = {}
    for name, x in images.items():
        encoder = checkpoint.encoder(name)
        if is_crossing(encoder):

            def run(name: str = name) -> Tensor:
                return encode(checkpoint.encoders, images, present=present)[name]

            found[name] = _cut_at_stage(encoder, run, stage)
        else:
            found[name] = _cut(encoder, x, stage)
    return found


def _cut(encoder: Encoder, x: Tensor, stage: SaliencyStage) -> Cut:
    from decur.encoders import MLPEncoder, ProjectedEncoder, TimmEncoder

    if isinstance(encoder, MLPEncoder):
        raise DoesNotApply("The encoder mlp takes the mean over all places: no place stands out.")
    if isinstance(encoder, ProjectedEncoder):
        inner = _cut(encoder.encoder, x, stage)
        return Cut(inner.values, lambda m: encoder.projector(inner.head(m))[:, encoder.part])
    if stage != LAST:
        return _cut_at_stage(encoder, lambda: encoder(x), stage)
    if not isinstance(encoder, TimmEncoder):
        return _cut_before_mean(encoder, x)
    return _cut_before_head(encoder, x)


def _cut_before_mean(encoder: Encoder, x: Tensor) -> Cut:
    """Cut an encoder whose vector is the mean of its last map."""
    # A GPU may round otherwise in a batch of another size: one picture is compared with itself.
    one, values = encoder.forward_features(x[:1])[-1], encoder.forward_features(x)[-1]
    if not torch.allclose(one.mean((2, 3)), encoder(x[:1]), atol=1e-4, rtol=1e-3):
        raise DoesNotApply(f"The vector of {encoder.name} is not the mean of its last map.")
    return Cut(values, lambda m: m.mean((2, 3)))


def _cut_before_head(encoder: TimmEncoder, x: Tensor) -> Cut:
    """Cut a timm model at the map that its head takes, or before the last block of a ViT."""
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
        vector: Tensor = backbone.forward_head(backbone.norm(left))
        return vector

    return Cut(tokens[:, prefix:].transpose(1, 2).unflatten(2, (height, width)), head)


def _cut_at_stage(encoder: Encoder, run: Callable[[], Tensor], stage: SaliencyStage) -> Cut:
    """Cut after a stage or a layer: the head is the whole encoder, with the map replaced there."""
    from decur.encoders import TimmEncoder

    if not isinstance(encoder, TimmEncoder):
        raise DoesNotApply(f"{encoder.name} has no stage {stage} that could be cut at.")
    backbone = encoder.backbone
    if isinstance(stage, str):
        layers = [m for name, m in backbone.named_modules() if name.rpartition(".")[2] == stage]
        if not layers:
            raise DoesNotApply(f"{encoder.name} has no layer {stage}, as a ResNet has.")
        module = layers[-1]
    elif -len(encoder.indices) <= stage < 0:
        module = backbone.get_submodule(backbone.feature_info[encoder.indices[stage]]["module"])
        if isinstance(module, nn.Sequential):  # encoders that attend to each other run its layers
            module = module[-1]
    else:
        raise DoesNotApply(f"{encoder.name} has no stage {stage} that could be cut at.")
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
    """Return the order of axes from a timm model's maps to (n, C, h, w), and back."""
    if getattr(backbone, "output_fmt", "NCHW") == "NHWC":
        return (0, 3, 1, 2), (0, 2, 3, 1)
    return (0, 1, 2, 3), (0, 1, 2, 3)
