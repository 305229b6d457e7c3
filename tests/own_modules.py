"""One of each kind that can be added, in a file outside the package; see test_own_modules."""

import numpy as np
import torch
from torch import nn

from decur import Modality, plotting
from decur.data import DATASETS, PairedDataset, Target
from decur.encoders import ENCODERS, Encoder
from decur.encoders.attention import ATTENTIONS
from decur.explain.base import Analysis, register
from decur.objectives import OBJECTIVES, Objective
from decur.transfer.tasks import TASKS
from decur.transfer.tasks.regression import Regression


@DATASETS.register("Waves")
class Waves(PairedDataset):
    """Waves and their mirror images; their number is the label."""

    def __init__(self, samples: int = 32) -> None:
        self.modalities = {
            name: Modality(
                name=name, bands=("height",), scaling="range", value_range=(-2, 2), size=(16, 16)
            )
            for name in ("left", "right")
        }
        self.ids = [f"{index:03d}" for index in range(samples)]
        self.present = {name: np.ones(samples, dtype=bool) for name in self.modalities}
        self.targets = {"waves": Target("count")}

    def read(self, index):
        count = index % 8
        wave = torch.sin(torch.linspace(0, 2 * torch.pi * count, 16)).expand(1, 16, 16)
        images = {"left": wave.clone(), "right": wave.flip(2) + 0.01 * index}
        images = {name: images[name] for name in self.sensors_of(index)}
        return {"id": self.ids[index], "images": images, "target": {"waves": torch.tensor(count)}}


@OBJECTIVES.register("Distance")
class Distance(Objective):
    """The squared distance between the first two modalities, kept from collapse by nothing."""

    def __init__(self, dim: int = 8, weight: float = 1.0) -> None:
        super().__init__(dim)
        self.weight = weight

    def terms(self, batch):
        one, other = batch.names[:2]
        samples = batch.samples(one, other)
        a, b = (batch.take((name, 0), samples) for name in (one, other))
        return {f"distance/{one}-{other}": self.weight * (a - b).square().mean()}


class Blocks(Encoder):
    """The means of 4 x 4 blocks, weighted."""

    def __init__(self, bands: int, *, width: int = 8) -> None:
        super().__init__()
        self.channels, self.strides, self.dim = [width], [4], width
        self.layer = nn.Conv2d(bands, width, 4, 4)

    def forward_features(self, x):
        return [self.layer(x)]

    def forward(self, x):
        return self.layer(x).mean((2, 3))


ENCODERS.register("blocks")(Blocks)


def blocks_of_six(bands: int) -> Encoder:
    """Not registered: named where it is used, as own_modules:blocks_of_six."""
    return Blocks(bands, width=6)


@ATTENTIONS.register("gate")
def gate(stage):
    """A gate on each channel."""
    return nn.Sequential(nn.Conv2d(stage.channels, stage.channels, 1), nn.Sigmoid())


@ATTENTIONS.register("moved")
class Moved(nn.Module):
    """Adds what lies one place further, or two where the geometry is centred."""

    def __init__(self, stage, geometry="dat") -> None:
        super().__init__()
        self.steps = 2 if geometry == "centred" else 1

    def forward(self, x):
        return x + x.roll(self.steps, 3)


@TASKS.register("count")
class Count(Regression):
    """A whole number, learned as a scalar."""

    def __init__(self, name, target) -> None:
        super().__init__(name, Target("scalar", target.classes, target.modalities))


def _norms(checkpoint, loader, *, watch=None, scale: float = 1.0):
    return {"norms": np.full(3, scale)}


def _draw(arrays):
    """Three bars."""
    figure, ((axis,),) = plotting.subplots(1, 1, width=4)
    axis.bar(range(3), arrays["norms"])
    return figure


register(
    Analysis(
        name="norms",
        title="Norms",
        about="How long vectors are.",
        arrays=_norms,
        plots={"bars": _draw},
        findings=lambda arrays: f"<p>the norm is {arrays['norms'][0]:g}</p>",
    )
)
