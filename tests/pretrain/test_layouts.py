"""Pictures and maps keep their channels innermost, from the views to the last convolution."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from decur.data import Collate, SyntheticScenes
from decur.objectives import DeCUR
from decur.pretrain import EncoderSettings, Pretrainer, ViewSettings
from decur.pretrain.settings import ProjectorSettings

INNERMOST = {"memory_format": torch.channels_last}


class Layouts(TorchDispatchMode):
    """Count convolutions, forward and backward, by whether maps have their channels innermost."""

    def __init__(self):
        super().__init__()
        self.inner, self.others = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "convolution" in str(func):
            # (input, weight, ...), or (gradient of the output, input, weight, ...)
            maps = args[: 2 if "backward" in str(func) else 1]
            if all(x.is_contiguous(**INNERMOST) for x in maps):
                self.inner += 1
            else:
                self.others.append((str(func), [tuple(x.shape) for x in maps]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("encoder", "attention"), [("resnet10t", None), ("resnet10t", "rda"), ("mit_b0", None)]
)
def test_every_convolution_of_a_step_has_channels_innermost(encoder, attention):
    data = SyntheticScenes(samples=4, size=64, modalities=["optical", "sar"])
    model = Pretrainer(
        data.modalities,
        DeCUR(dim=8),
        encoder=EncoderSettings(encoder, attention=attention),
        projector=ProjectorSettings(8),
        views=ViewSettings(size=64),
    )
    batch = Collate(data.modalities, data.targets)([data[i] for i in range(4)])
    for pair in model.make_views(batch, 0).values():
        assert all(view.is_contiguous(**INNERMOST) for view in pair)
    with Layouts() as layouts:
        model.training_step(batch, 0).backward()
    assert layouts.inner > 20 and layouts.others == []
