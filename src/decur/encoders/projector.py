"""The projector, from an encoder's vector to the embedding; and an encoder with one on top."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from decur.encoders.base import Encoder
from decur.errors import ConfigError
from decur.memory import require_memory

PROJECTED = "projected"  # the name of its architecture in encoder files


class Projector(nn.Sequential):
    """MLP of DeCUR's appendix B.1: Linear-BatchNorm-ReLU but for the last layer, a plain Linear.

    Takes (B, D), gives (B, K). No biases: the batch normalisation that follows each layer (the
    last one's is part of the objective) takes them out again.

    Args:
        in_dim: length D of the encoder's vector.
        width: K, of every layer; 8192 in the paper.
        layers: 3 in the paper; 0 leaves the encoder's vector as it is (Fig. 3b), and K = D.
        hidden: width of all layers but the last; None: K, as in the paper.
        last_norm: batch-normalise the embedding, with a scale and a shift, as the authors' code
            does for SimCLR and CLIP.

    Raises:
        ConfigError: for a negative number of layers, or a width below 1, or if the weights would
            take more memory than the machine has.
    """

    def __init__(
        self,
        in_dim: int,
        width: int = 8192,
        *,
        layers: int = 3,
        hidden: int | None = None,
        last_norm: bool = False,
    ) -> None:
        if layers < 0 or width < 1:
            raise ConfigError(
                f"projector: layers must be 0 or more and width 1 or more, are {layers} and {width}"
            )
        if hidden is not None and hidden < 1:
            raise ConfigError(f"projector.hidden: must be 1 or more, is {hidden}")
        if last_norm and not layers:
            raise ConfigError("projector.last_norm: there are no layers; set projector.layers")
        widths = [in_dim] + [hidden or width] * (layers - 1) + [width] * min(layers, 1)
        weights = sum(one * other for one, other in pairwise(widths))
        require_memory(
            weights * torch.get_default_dtype().itemsize,
            what=f"a projector of {layers} layers, {width:,} wide",
            remedy="lower projector.width or projector.layers",
        )
        modules: list[nn.Module] = []
        for i in range(layers):
            modules.append(nn.Linear(widths[i], widths[i + 1], bias=False))
            if i < layers - 1:
                modules += [nn.BatchNorm1d(widths[i + 1]), nn.ReLU(inplace=True)]
        if last_norm:
            modules.append(nn.BatchNorm1d(width))
        super().__init__(*modules)
        self.dim = widths[-1]
        # what makes it again, besides width and layers, where that is not the paper's
        self.options: dict[str, Any] = {} if hidden is None else {"hidden": hidden}
        self.options |= {"last_norm": True} if last_norm else {}


class ProjectedEncoder(Encoder):
    """An encoder whose vector is the embedding, or some dimensions of it.

    The feature maps stay those of the encoder inside.

    Args:
        encoder: what the projector was trained on; its sensor is taken over.
        projector: from its vector to the embedding, K wide.
        part: first dimension of the embedding that is given, and the one after the last; all by
            default.

    Attributes:
        block: name of the block of its run that these dimensions are, where they are one and it is
            known.
    """

    block: str = ""

    def __init__(
        self, encoder: Encoder, projector: Projector, *, part: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        self.encoder, self.projector = encoder, projector
        start, stop = part or (0, projector.dim)
        self.part = slice(start, stop)
        self.name = PROJECTED
        self.options = {
            "encoder": encoder.name,
            "options": encoder.options,
            "width": projector.dim,
            "layers": sum(isinstance(layer, nn.Linear) for layer in projector),
            **projector.options,
            "part": [start, stop],
        }
        self.channels, self.strides, self.dim = encoder.channels, encoder.strides, stop - start
        self.modality = encoder.modality

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Return feature maps of the encoder inside."""
        return self.encoder.forward_features(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the part of the embedding: (B, C, H, W) in [0, 1] to (B, stop - start)."""
        return self.project(self.encoder(x))

    def project(self, h: Tensor) -> Tensor:
        """Return the part of the embedding from the vector of the encoder inside, (B, D)."""
        embedding: Tensor = self.projector(h)[:, self.part]
        return embedding
