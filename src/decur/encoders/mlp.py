"""A multilayer perceptron as an encoder, for measurements without a spatial layout."""

from __future__ import annotations

from torch import Tensor, nn

from decur.encoders.base import ENCODERS, Encoder
from decur.errors import ConfigError

_MOST_LAYERS = 512  # far more than anybody trains, and built in seconds


@ENCODERS.register("mlp")
class MLPEncoder(Encoder):
    """Linear-BatchNorm-ReLU layers on the mean over a picture's pixels.

    The feature maps are those of the same layers on each pixel by itself: stride 1, `width`
    channels. On pictures of one pixel both are the same.

    Args:
        bands: number of input bands.
        width: of every layer, and of the pooled vector.
        layers: from 1 to 512.

    Raises:
        ConfigError: if either is below 1, or there are too many layers.
    """

    def __init__(self, bands: int, *, width: int = 512, layers: int = 2) -> None:
        super().__init__()
        if not (isinstance(width, int) and isinstance(layers, int)):
            raise ConfigError(
                f"encoder 'mlp': its options are width and layers, whole numbers; they are "
                f"{width!r} and {layers!r}"
            )
        if width < 1 or layers < 1:
            raise ConfigError(
                f"encoder 'mlp': width and layers must be 1 or more, are {width} and {layers}"
            )
        if layers > _MOST_LAYERS:
            raise ConfigError(f"encoder 'mlp': layers: from 1 to {_MOST_LAYERS}, are {layers:,}")
        self.name = "mlp"
        self.options = {"width": width, "layers": layers}
        self.channels, self.strides, self.dim = [width] * layers, [1] * layers, width
        widths = [bands] + [width] * layers
        self.layers = nn.ModuleList(
            nn.Sequential(
                # a Linear layer on each pixel; no bias: the batch normalisation takes it out again
                nn.Conv2d(widths[i], width, kernel_size=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            )
            for i in range(layers)
        )

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Return feature maps, one a layer: (B, width, H, W)."""
        maps = []
        for layer in self.layers:
            x = layer(x)
            maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """Return the pooled vector: (B, C, H, W) in [0, 1] to (B, D)."""
        return self.forward_features(x.mean((2, 3), keepdim=True))[-1].flatten(1)
