"""What a GPU would refuse or wait for, found without one.

On a stand-in for a GPU tensors have a shape, a type and a device, but no values: mixing them with
the CPU's is refused as on a GPU, and asking for a value, which makes a GPU's program wait, cannot
be answered. Everything forward and the optimiser run there; backward needs a real one: what is
marked so holds a step on it against the CPU's.
"""

import contextlib
import os
import subprocess
import sys
import warnings

import lightning as L
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.distributed.utils import _to_kwargs  # which DDP's forward begins with
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.data._utils.pin_memory import pin_memory

from decur import devices
from decur.data import Collate, LoaderSettings, SyntheticScenes, Target
from decur.embed import embed
from decur.embed.model import EmbeddingModel
from decur.encoders import build_encoder
from decur.encoders.attention.base import ATTENTIONS
from decur.features import SampleLoader
from decur.modality import PRESETS
from decur.objectives import list_objectives
from decur.predict.folder import predict_data
from decur.predict.reading import WindowBatch
from decur.pretrain import EncoderSettings, PairedData, Pretrainer, ViewSettings
from decur.pretrain.metrics import read_metrics
from decur.pretrain.optim import build_optimizer
from decur.pretrain.settings import OptimizerSettings, ProjectorSettings
from decur.pretrain.trainer import make_trainer
from decur.runs import RunFolder
from decur.transfer import transfer
from decur.transfer.augment import Averaging
from decur.transfer.heads import CMX, FCN, LateFusion
from decur.transfer.settings import FitSettings
from decur.transfer.tasks import make_task
from decur.transfer.trainee import Trainee

GPU = torch.device("cuda:0")
SAMPLES, SIZE = 8, 64
OBJECTIVES = list_objectives()
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class CopyWaits(Exception):
    """A copy between the CPU and a GPU that makes the program wait until all before it is done."""


WAITS = (DataDependentOutputException, DynamicOutputShapeException, CopyWaits)


class Values(FakeTensorMode):
    """Tensors without values; copies between devices must not be waited for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = super().__torch_dispatch__(func, types, args, kwargs)
        if func in COPIES and not _goes_on(func, args, kwargs or {}):
            source = args[1] if func is COPIES[1] else args[0]
            if "cpu" in (source.device.type, made.device.type) and source.device != made.device:
                raise CopyWaits(f"{source.device} to {made.device}: {tuple(source.shape)}")
        return made


def _goes_on(func, args, kwargs):
    return kwargs.get("non_blocking") or (func is COPIES[1] and len(args) > 2 and args[2])


class StandIn(TorchFunctionMode):
    """Whatever touches a GPU happens without values; what is on the CPU is as ever."""

    def __init__(self, computing, kept) -> None:
        super().__init__()
        self.computing = computing  # the stream of the model
        self.kept = kept  # tensors, and the stream that their memory is kept for
        self.values = Values(allow_non_fake_inputs=True)

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

    class Stream:
        def __init__(self, device):
            self.waits_for = []

        def wait_stream(self, other):
            self.waits_for.append(other)

    computing, kept = Stream(GPU), []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # asked of each operation
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computing)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda x, stream: kept.append((x, stream)))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "CUDA is not available")  # what autocast says
        yield StandIn(computing, kept)
    devices._copy_stream.cache_clear()


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
        for wait in (
            lambda: there.sum().item(),
            lambda: there.tolist(),
            lambda: there[there > 0],
            lambda: there.cpu(),
            lambda: here.to(GPU),
            lambda: there.copy_(here),
            lambda: torch.tensor(1.0, device=GPU),
        ):
            with pytest.raises(WAITS):
                wait()


def test_pictures_travel_as_bytes_on_a_stream_of_their_own(gpu):
    pictures = {"a": torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "b": torch.zeros(2, 1, 8, 8)}
    with gpu:
        for _ in range(2):
            sent = devices.send_batch(pictures, GPU)
        assert {name: (x.dtype, x.device) for name, x in sent.items()} == {
            "a": (torch.uint8, GPU),
            "b": (torch.float32, GPU),
        }
    # else the next pictures could be copied into memory that is still computed with
    assert [id(x) for x, _ in gpu.kept[-2:]] == [id(x) for x in sent.values()]
    assert all(stream is gpu.computing for _, stream in gpu.kept)
    copies = gpu.computing.waits_for
    assert len(copies) == 2 and copies[0] is copies[1] is not gpu.computing
    assert devices.send_batch(pictures, torch.device("cpu"))["a"] is pictures["a"]


def test_what_processes_read_is_copied_from_pinned_memory(monkeypatch):
    data, settings = scenes(), LoaderSettings(SAMPLES, workers=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    loaders = [
        PairedData(data, settings).train_dataloader(),
        SampleLoader(data, None, settings=settings),
    ]
    assert all(loader.pin_memory for loader in loaders)
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x, *given: pinned.append(id(x)) or x)
    images = batch_of(data, 0)["images"]
    windows = WindowBatch([(0, 0)], images, {}, torch.ones(1, 2, 2, dtype=torch.bool))
    for batch in (batch_of(data, 0), windows):
        found = pin_memory(batch)
        given = found.images if batch is windows else found["images"]
        assert {id(x) for x in given.values()} <= set(pinned)


STEPS = [
    *((name, {"name": "mlp"}, ("optical", "sar"), 3) for name in OBJECTIVES),
    ("decur", {"name": "mlp"}, ("optical", "sar"), 0),
    ("decur", {}, ("optical", "sar"), SAMPLES),
    ("decur", {"name": "mlp"}, ("optical", "sar", "elevation"), 3),
    ("decur", {"attention": "rda"}, ("optical", "sar"), 3),
    ("decur", {"name": "test_vit"}, ("optical", "sar"), 3),
    *(
        pytest.param("decur", options, ("optical", "sar"), 3, marks=pytest.mark.slow)
        for options in ({"attention": "cbam"}, {"attention": "cross_da"}, {"name": "mit_b0"})
    ),
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


def test_ddp_moves_pictures_alone_and_not_what_the_host_asks():
    """DDP of a GPU moves all tensors that it finds in what a step is given."""
    data = scenes()
    model = Pretrainer(
        data.modalities,
        OBJECTIVES["decur"](dim=8),
        encoder="mlp",
        projector=ProjectorSettings(8),
        views=ViewSettings(size=SIZE),
    )
    batch = model.transfer_batch_to_device(batch_of(data, 3), torch.device("cpu"), 0)
    ((moved, _),), _ = _to_kwargs((batch, 0), {}, torch.device("meta"), True)
    assert {x.device.type for x in moved["images"].values()} == {"meta"}
    assert {name: x.tolist() for name, x in moved["present"].items()} == {
        "optical": [True] * SAMPLES,
        "sar": [False] * 3 + [True] * (SAMPLES - 3),
    }
    assert moved["ids"] == batch["ids"]


LABELS = {
    "class": torch.zeros(SAMPLES, dtype=torch.long),
    "multilabel": torch.zeros(SAMPLES, 3),
    "scalar": torch.zeros(SAMPLES),
    "mask": torch.zeros(SAMPLES, SIZE, SIZE, dtype=torch.long),
}


MODELS = {
    LateFusion: ("test_resnet", {}),
    FCN: ("test_resnet", {}),
    CMX: ("mit_b0", {"scales": (0.5, 1.5), "piece": (48, 48)}),
}


@pytest.mark.parametrize(
    ("kind", "model", "absent", "freeze"),
    [
        *(("multilabel", LateFusion, absent, False) for absent in (0, 3, SAMPLES - 1, SAMPLES)),
        *((kind, LateFusion, 3, True) for kind in ("class", "multilabel", "scalar")),
        *(("mask", FCN, 3, freeze) for freeze in (False, True)),
        pytest.param("mask", CMX, 0, False, marks=pytest.mark.slow),  # it needs both sensors
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
        FitSettings(**fit).complete(task, freeze),
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
        raw = torch.zeros(2, modality.channels, 8, 8, dtype=torch.int16).to(GPU, non_blocking=True)
        assert modality.scale(raw).device == GPU


# -- on a GPU: `make gpu` runs these, and `--device cpu` tries them without one ----------------

THERE = torch.device(os.environ.get("DECUR_TEST_DEVICE", "cuda"))
PRECISIONS = {  # how far the loss may be from the CPU's in float32, and the gradients' cosine
    "32-true": (1e-4, 0.999),
    "16-mixed": (1e-2, 0.85),
    "bf16-mixed": (1e-2, 0.85),
    "bf16-true": (3e-2, 0.8),
}
PLAIN = ("decur", "test_resnet", None, "32-true", False)
ON_GPU = [
    *((name, *PLAIN[1:]) for name in OBJECTIVES),
    *(("decur", name, None, "32-true", False) for name in ("test_vit", "mit_b0", "alexnet", "mlp")),
    *(("decur", "resnet10t", name, "32-true", False) for name in ATTENTIONS.names()),
    *(("decur", "test_resnet", None, name, False) for name in PRECISIONS if name != "32-true"),
    ("decur", "test_resnet", None, "32-true", True),
    ("decur", "resnet10t", "rda", "bf16-mixed", True),
]


def first_steps(model, batch, precision, device, steps=1):
    """The losses of steps under Lightning, and the last gradients of each sensor's networks."""
    found = {"losses": []}

    class Keep(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            found["losses"].append(float(outputs["loss"]))

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            for name in pl_module.encoders:
                parts = (pl_module.encoders[name], pl_module.projectors[name])
                gradients = [p.grad.double().flatten() for part in parts for p in part.parameters()]
                found[name] = torch.cat(gradients).cpu()

    trainer = make_trainer(
        {"precision": precision, "max_steps": steps},
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=1,
        callbacks=[Keep()],
        float32_matmul="highest",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, torch.utils.data.DataLoader([batch] * steps, batch_size=None))
    return found


@pytest.mark.gpu
@pytest.mark.parametrize(("objective", "encoder", "attention", "precision", "compiled"), ON_GPU)
def test_a_step_equals_that_on_a_cpu(
    objective, encoder, attention, precision, compiled, monkeypatch
):
    # torch lets convolutions round float32 to TF32 whatever matrix products do
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    data = scenes()

    def build(**options):
        torch.manual_seed(0)
        return Pretrainer(
            data.modalities,
            OBJECTIVES[objective](dim=32),
            encoder=EncoderSettings(encoder, attention=attention),
            projector=ProjectorSettings(32),
            views=ViewSettings(size=SIZE),
            **options,
        )

    batch = batch_of(data, 0 if compiled else 3)
    expected = first_steps(build(compile=False), batch, "32-true", torch.device("cpu"))
    found = first_steps(build(compile=compiled), batch, precision, THERE)
    loss, cosine = PRECISIONS[precision]
    assert found.pop("losses") == pytest.approx(expected.pop("losses"), rel=loss)
    for name, gradient in expected.items():
        assert torch.cosine_similarity(found[name], gradient, dim=0) > cosine, name


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "bound"), [("32-true", 0.01), ("bf16-mixed", 0.05)])
def test_twenty_steps_follow_those_on_a_cpu(precision, bound):
    data = scenes()
    losses = []
    for kind, device in (("32-true", torch.device("cpu")), (precision, THERE)):
        torch.manual_seed(0)
        model = Pretrainer(
            data.modalities,
            OBJECTIVES["decur"](dim=32),
            encoder=EncoderSettings("test_resnet"),
            projector=ProjectorSettings(32),
            views=ViewSettings(size=SIZE),
            optimizer=OptimizerSettings("lars", lr=0.1),
            compile=False,
        )
        losses.append(first_steps(model, batch_of(data, 0), kind, device, 20)["losses"])
    exact, found = (sum(each) / len(each) for each in losses)
    assert losses[0][-1] < losses[0][0]  # it learns
    assert found == pytest.approx(exact, rel=bound)  # of eight samples: 2 % on a CPU in bfloat16


@pytest.mark.gpu
@pytest.mark.parametrize("lacking", [False, True])
def test_two_gpus_train_as_one(lacking, tmp_path, make_pairs):
    """Also where one of them often has no sample of a sensor."""
    if THERE.type == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    options = ["--config=demo", "--views.size=24", "--loader.workers=0", "--projector.width=32"]
    options += ["--monitor.every_epochs=0", "--trainer.max_epochs=2", "--float32_matmul=highest"]
    if lacking:
        root = make_pairs({"optical": 3, "sar": 2}, samples=32, size=32)
        for number in range(0, 32, 3):
            (root / "sar" / f"{number:04d}.npy").unlink()
            (root / "sar" / f"{(number + 1) % 32:04d}.npy").unlink(missing_ok=True)
        options += ["--data=PairedFolder", f"--data.root={root}", "--loader.batch_size=4"]
        options += ["--trainer.precision=64-true", "--encoder.name=test_resnet"]
        # Small steps: LARS makes whole ones of the gradients of two samples, which are rounding.
        options += ["--optimizer.name=lars", "--optimizer.lr=1e-3", "--optimizer.lr_bias=1e-6"]
    else:
        options += ["--data.samples=64", "--data.size=32", "--loader.batch_size=32"]
    options += [f"--trainer.accelerator={'gpu' if THERE.type == 'cuda' else 'cpu'}"]
    losses = []
    for number in (1, 2):
        run = tmp_path / str(number)
        given = [*options, f"--trainer.devices={number}", f"--run={run}"]
        done = subprocess.run(
            [sys.executable, "-m", "decur", "pretrain", *given],
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        losses.append([row["loss"] for row in read_metrics(RunFolder(run))])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def columns(path):
    """The numbers of a Parquet file, in its order: (rows, numbers)."""
    table = pq.read_table(path)
    floats = [c for c in table.columns if "float" in str(c.type) or "double" in str(c.type)]
    return np.concatenate([np.array(c.to_pylist(), float).reshape(len(table), -1) for c in floats])


@pytest.mark.gpu
@pytest.mark.parametrize("target", ["cover", "mask"])
def test_what_follows_pretraining_gives_what_it_gives_on_a_cpu(target, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    data, there = SyntheticScenes(40, size=64, modalities=["optical", "sar"]), THERE.type
    loader = LoaderSettings(8, workers=0)
    losses, predicted, embedded = [], [], []
    for number, device in enumerate(("cpu", there)):
        run = tmp_path / f"transfer-{number}"
        fresh = {"encoder": EncoderSettings("test_resnet"), "loader": loader}
        fit = {"epochs": 1, "name": "sgd", "lr": 0.01}
        options = {"freeze": False, "fit": fit, "device": device, "bootstrap": 0, **fresh}
        transfer(data, target=target, run=str(run), **options)
        losses.append(read_metrics(RunFolder(run))[-1]["loss"])
        out, model = tmp_path / f"predicted-{number}", tmp_path / "transfer-0"
        predict_data(model, data, out=str(out), loader=loader, device=device)
        predicted.append(columns(out / "predictions.parquet"))
        out, trainer = tmp_path / f"rows-{number}", {"accelerator": "gpu", "devices": 1}
        trainer |= {"accelerator": "cpu"} if device == "cpu" else {}
        embed(data, "random", out=str(out), trainer=trainer, **fresh)
        embedded += [[columns(path) for path in sorted(out.glob("*.parquet"))]]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
    np.testing.assert_allclose(*predicted, atol=2e-2)
    for one, other in zip(*embedded, strict=True):
        np.testing.assert_allclose(other, one, atol=1e-2 * np.abs(one).max())
