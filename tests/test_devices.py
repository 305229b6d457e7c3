"""What a GPU would refuse or wait for, found without one.

On a stand-in for a GPU tensors have a shape, a type and a device, but no values: mixing them with
the CPU's is refused as on a GPU, and asking for a value, which makes a GPU's program wait, cannot
be answered. Everything forward and the optimiser run there; backward needs a real one (`pytest -m
gpu`).
"""

import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from decur.data import Collate, SyntheticScenes, Target
from decur.embed.model import EmbeddingModel
from decur.encoders import build_encoder
from decur.modality import PRESETS
from decur.objectives import list_objectives
from decur.pretrain import EncoderSettings, Pretrainer, ViewSettings
from decur.pretrain.optim import build_optimizer
from decur.pretrain.settings import OptimizerSettings, ProjectorSettings
from decur.transfer.augment import Averaging
from decur.transfer.fit import Trainee
from decur.transfer.heads import CMX, FCN, LateFusion
from decur.transfer.settings import FitSettings
from decur.transfer.tasks import make_task

GPU = torch.device("cuda:0")
SAMPLES, SIZE = 8, 64
OBJECTIVES = list_objectives()
WAITS = (DataDependentOutputException, DynamicOutputShapeException)


class StandIn(TorchFunctionMode):
    """Whatever touches a GPU happens without values; what is on the CPU is as ever."""

    def __init__(self) -> None:
        super().__init__()
        self.values = FakeTensorMode(allow_non_fake_inputs=True)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") == "pin_memory":
            return args[0]
        if any(_is_there(value) for value in tree_leaves((args, kwargs))):
            with self.values:
                return func(*args, **kwargs)
        return func(*args, **kwargs)

    def take(self, module):
        """Move a module there."""
        for part in module.modules():
            for name, parameter in part.named_parameters(recurse=False):
                moved = torch.nn.Parameter(self.like(parameter), parameter.requires_grad)
                setattr(part, name, moved)
            for name, buffer in part.named_buffers(recurse=False):
                setattr(part, name, self.like(buffer))
            if hasattr(part, "_device"):
                part._device = GPU  # as Lightning sets it
        return module

    def like(self, tensor):
        with self.values:
            return torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device=GPU
            )


def _is_there(value) -> bool:
    return isinstance(value, FakeTensor) or (
        isinstance(value, torch.device) and value.type == "cuda"
    )


@pytest.fixture
def gpu(monkeypatch):
    class Event:
        def record(self, stream):
            pass

        def query(self):
            return False

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "CUDA is not available")  # what autocast says
        yield StandIn()


def scenes(sensors=("optical", "sar")):
    return SyntheticScenes(samples=SAMPLES, size=SIZE, modalities=list(sensors))


def batch_of(data, absent):
    batch = Collate(data.modalities, data.targets)([data[i] for i in range(SAMPLES)])
    batch["present"]["sar"] = torch.arange(SAMPLES) >= absent
    return batch


def test_the_stand_in_finds_what_a_gpu_would_refuse_or_wait_for(gpu):
    with gpu:
        there, here = torch.zeros(3, device=GPU), torch.ones(3)
        assert (there + 1).device == GPU and (here + 1).tolist() == [2, 2, 2]
        with pytest.raises(RuntimeError, match="two different devices"):
            there + here
        for wait in (lambda: there.sum().item(), lambda: there.tolist(), lambda: there[there > 0]):
            with pytest.raises(WAITS):
                wait()


STEPS = [
    *((name, {}, ("optical", "sar"), 3) for name in OBJECTIVES),
    *(("decur", {}, ("optical", "sar"), absent) for absent in (0, SAMPLES)),
    ("decur", {}, ("optical", "sar", "elevation"), 3),
    *(
        ("decur", {"name": "resnet10t", "attention": name}, ("optical", "sar"), 3)
        for name in ("rda", "cbam", "cross_da")
    ),
    *(("decur", {"name": name}, ("optical", "sar"), 3) for name in ("test_vit", "mit_b0")),
]


@pytest.mark.parametrize(("objective", "encoder", "sensors", "absent"), STEPS)
def test_a_step_of_pretraining_stays_on_the_gpu_and_waits_for_nothing(
    objective, encoder, sensors, absent, gpu
):
    data = scenes(sensors)
    model = Pretrainer(
        data.modalities,
        OBJECTIVES[objective](dim=32),
        encoder=EncoderSettings(**{"name": "test_resnet", **encoder}),
        projector=ProjectorSettings(32),
        views=ViewSettings(size=SIZE),
        monitor_batches=1,
    )
    gpu.take(model)
    with gpu:
        optimizer = build_optimizer(model, OptimizerSettings("lars"), SAMPLES)
        batch = model.transfer_batch_to_device(batch_of(data, absent), GPU, 0)
        model.on_train_batch_start(batch, 0)
        assert model.training_step(batch, 0).device == GPU
        for parameter in model.parameters():
            parameter.grad = gpu.like(parameter)
        optimizer.step()


LABELS = {
    "class": torch.zeros(SAMPLES, dtype=torch.long),
    "multilabel": torch.zeros(SAMPLES, 3),
    "scalar": torch.zeros(SAMPLES),
    "mask": torch.zeros(SAMPLES, SIZE, SIZE, dtype=torch.long),
}


MODELS = {
    LateFusion: ("test_resnet", {}),
    FCN: ("resnet10t", {}),
    CMX: ("mit_b0", {"scales": (0.5, 1.5), "piece": (48, 48)}),
}


@pytest.mark.parametrize(
    ("kind", "model", "absent", "freeze"),
    [
        *(("multilabel", LateFusion, absent, False) for absent in (0, 3, SAMPLES - 1, SAMPLES)),
        *((kind, LateFusion, 3, True) for kind in ("class", "multilabel", "scalar")),
        *(("mask", FCN, 3, freeze) for freeze in (False, True)),
        ("mask", CMX, 0, False),  # it needs both sensors
    ],
)
def test_a_step_of_transfer_stays_on_the_gpu_and_waits_for_nothing(
    kind, model, absent, freeze, gpu
):
    encoder, fit = MODELS[model]
    data = scenes()
    task = make_task("label", Target(kind, () if kind == "scalar" else ("a", "b", "c")))
    encoders = {name: build_encoder(encoder, m) for name, m in data.modalities.items()}
    trainee = Trainee(
        model(encoders, task.outputs),
        task,
        FitSettings(**fit).complete(kind, freeze),
        10,
        data.modalities,
    )
    if freeze:
        trainee.model.freeze()
    gpu.take(trainee)
    with gpu:
        labelled = {**batch_of(data, absent), "target": {"label": LABELS[kind]}}
        batch = trainee.transfer_batch_to_device(labelled, GPU, 0)
        assert trainee.train().training_step(batch, 0).device == GPU
        images, present = trainee._pictures(batch), batch["present"]
        with torch.no_grad():
            output = trainee.eval()._output(images, present, batch["target"]["label"])
            assert output.device == GPU
            if kind == "mask":
                averaging, size = Averaging((0.75, 1.0), flip=True), (SIZE, SIZE)
                assert averaging.output(trainee.model, images, present, size).device == GPU


@pytest.mark.parametrize(("absent", "size"), [(3, None), (3, 32), (SAMPLES, None)])
def test_embedding_stays_on_the_gpu_and_waits_for_nothing(absent, size, gpu):
    data = scenes()
    encoders = {name: build_encoder("test_resnet", m) for name, m in data.modalities.items()}
    model = gpu.take(EmbeddingModel(encoders, data.modalities, {}, size))
    with gpu, torch.no_grad():
        batch = model.transfer_batch_to_device(batch_of(data, absent), GPU, 0)
        found = model.predict_step(batch, 0)
    assert set(found) == ({"optical"} if absent == SAMPLES else {"optical", "sar"})
    assert {c["features"].device for c in found.values()} == {GPU}


@pytest.mark.parametrize("preset", PRESETS)
def test_scaling_stays_on_the_gpu_and_waits_for_nothing(preset, gpu):
    modality = PRESETS[preset]
    with gpu:
        raw = torch.zeros(2, modality.channels, 8, 8, dtype=torch.int16).to(GPU)
        assert modality.scale(raw).device == GPU
