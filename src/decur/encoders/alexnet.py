"""AlexNet from torchvision, which other papers use on Bimodal Trifeature; timm has none."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models import alexnet  # type: ignore[import-untyped]

from decur.encoders.base import ENCODERS, Encoder
from decur.errors import ConfigError

SMALLEST = 63  # pixels, below which nothing is left for the last pooling


@ENCODERS.register("alexnet")
class AlexNetEncoder(Encoder):
    """The convolutions of AlexNet (Krizhevsky 2014, in torchvision's form), pooled to a vector.

    Feature maps are those before each of the three max poolings and after the last.

    Args:
        bands: number of input bands.
    """

    def __init__(self, bands: int) -> None:
        super().__init__()
        self.name, self.options = "alexnet", {}
        self.channels, self.strides, self.dim = [64, 192, 256, 256], [4, 8, 16, 32], 256
        self.features: nn.Sequential = alexnet(weights=None).features
        first = self.features[0]
        self.features[0] = nn.Conv2d(
            bands, first.out_channels, first.kernel_size, first.stride, first.padding
        )

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Return feature maps: (B, channels[i], about H / strides[i], about W / strides[i])."""
        if min(x.shape[-2:]) < SMALLEST:
            raise ConfigError(
                f"encoder 'alexnet': takes pictures of {SMALLEST} px or more, these have "
                f"{x.shape[-2]} x {x.shape[-1]}; raise views.size or take another encoder"
            )
        maps = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                maps.append(x)
            x = layer(x)
        return [*maps, x]

    def forward(self, x: Tensor) -> Tensor:
        """Return the pooled vector: (B, C, H, W) in [0, 1] to (B, D)."""
        return self.forward_features(x)[-1].mean((2, 3))
