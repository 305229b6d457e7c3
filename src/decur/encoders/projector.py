"""The projector: from an encoder's vector to the embedding that the objective sees."""

from __future__ import annotations

from torch import nn

from decur.errors import ConfigError


class Projector(nn.Sequential):
    """MLP of DeCUR's appendix B.1: Linear-BatchNorm-ReLU but for the last layer, a plain Linear.

    Takes (B, D), gives (B, K). No biases: the batch normalisation that follows each layer (the
    last one's is part of the objective) takes them out again.

    Args:
        in_dim: length D of the encoder's vector.
        width: K, of every layer; 8192 in the paper.
        layers: 3 in the paper; 0 leaves the encoder's vector as it is (Fig. 3b), and K = D.

    Raises:
        ConfigError: for a negative number of layers or a width below 1.
    """

    def __init__(self, in_dim: int, width: int = 8192, layers: int = 3) -> None:
        if layers < 0 or width < 1:
            raise ConfigError(
                f"projector: layers must be 0 or more and width 1 or more, are {layers} and {width}"
            )
        widths = [in_dim] + [width] * layers
        modules: list[nn.Module] = []
        for i in range(layers):
            modules.append(nn.Linear(widths[i], widths[i + 1], bias=False))
            if i < layers - 1:
                modules += [nn.BatchNorm1d(width), nn.ReLU(inplace=True)]
        super().__init__(*modules)
        self.dim = widths[-1]
