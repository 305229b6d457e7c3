"""One of each kind that can be added, in a file outside the package; see test_own_modules."""

from typing import ClassVar

import numpy as np
import torch
from torch import nn

from decur import Modality, plotting
from decur.data import DATASETS, PairedDataset, Target
from decur.encoders import ENCODERS, Encoder
from decur.encoders.attention import ATTENTIONS
from decur.explain.base import Analysis, register
from decur.objectives import OBJECTIVES, Objective
from decur.transfer.tasks import TASKS, Task


@DATASETS.register("Waves")
class Waves(PairedDataset):
    """Waves and their mirror images; how far they are shifted is the label, an angle."""

    def __init__(self, samples: int = 32) -> None:
        self.modalities = {
            name: Modality(
                name=name, bands=("height",), scaling="range", value_range=(-2, 2), size=(16, 16)
            )
            for name in ("left", "right")
        }
        self.ids = [f"{index:03d}" for index in range(samples)]
        self.present = {name: np.ones(samples, dtype=bool) for name in self.modalities}
        self.targets = {"shift": Target("angle")}

    def read(self, index):
        shift = torch.tensor(index % 8 * torch.pi / 4)
        wave = torch.sin(torch.linspace(0, 4 * torch.pi, 16) + shift).expand(1, 16, 16)
        images = {"left": wave.clone(), "right": wave.flip(2) + 0.01 * index}
        images = {name: images[name] for name in self.sensors_of(index)}
        return {"id": self.ids[index], "images": images, "target": {"shift": shift}}


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


@TASKS.register("angle")
class Angle(Task):
    """An angle in radians, learned as the direction of a vector; told in degrees."""

    measures: ClassVar = {"cosine": "mean cosine of the error"}
    main = "cosine"
    scales: ClassVar = {"cosine": "plain"}
    outputs = 2

    def loss(self, output, labels):
        true = torch.stack([labels.cos(), labels.sin()], 1)  # (B, 2)
        return (output - true).square().mean()

    def metrics(self, kept):
        return {"cosine": float(np.cos(_angle(kept["output"].T) - kept["truth"]).mean())}

    def trivial(self, kept):
        return {**kept, "output": np.tile([1.0, 0.0], (len(kept["truth"]), 1))}

    def by_class(self, kept):
        return {}

    def columns(self, answer):
        return [("degrees", float(np.degrees(_angle(answer[:, 0, 0]))))]

    def draw(self, kept):
        figure, axis = plotting.single(width=4, height=4)
        axis.plot(kept["truth"], _angle(kept["output"].T), ".")
        return figure


def _angle(vector):
    return np.arctan2(vector[1], vector[0])


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
