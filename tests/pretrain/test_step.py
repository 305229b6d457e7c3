"""The training step: nothing waits for the device, and whatever makes it faster keeps its result.

Half precision: the loss is within 1 % of the float32 one, and the gradient of each encoder has a
cosine of at least 0.98 with it where only projectors and objective are in bfloat16, of at least
0.85 where the encoders are, too: activations with 8 bits in a small, random network with batch
normalisation cost that much. channels_last and compiling: 1e-4 and 0.999.
"""

import contextlib
import functools
import logging
import math

import lightning as L
import pytest
import torch
from functorch.compile import make_boxed_func, nop
from torch._dynamo.backends.common import aot_autograd
from torch.utils._python_dispatch import TorchDispatchMode

from decur.data import SyntheticScenes
from decur.data.sample import Collate
from decur.encoders import EncoderSettings
from decur.errors import DivergedError
from decur.objectives import DeCUR, list_objectives
from decur.pretrain import LoaderSettings, PairedData, Pretrainer
from decur.pretrain.compiling import PAYS_AFTER, pays
from decur.pretrain.metrics import Divergence
from decur.pretrain.optim import build_optimizer
from decur.pretrain.settings import OptimizerSettings, ProjectorSettings, ViewSettings

OBJECTIVES = list_objectives()
SAMPLES, WIDTH = 48, 48


@pytest.fixture(scope="module")
def batch():
    scenes = SyntheticScenes(samples=SAMPLES, size=48, modalities=["optical", "sar"])
    return Collate(scenes.modalities, scenes.targets)([scenes[i] for i in range(SAMPLES)])


def lacking(batch, rows):
    """The same batch with a modality that some samples lack."""
    has = torch.ones(SAMPLES, dtype=torch.bool)
    has[rows] = False
    return {**batch, "present": {**batch["present"], "sar": has}}


def build(objective="decur", encoder="test_resnet", together=False, **options):
    torch.manual_seed(0)
    scenes = SyntheticScenes(samples=2, modalities=["optical", "sar"])
    return Pretrainer(
        scenes.modalities,
        OBJECTIVES[objective](dim=WIDTH),
        encoder=encoder,
        projector=ProjectorSettings(WIDTH),
        views=ViewSettings(size=32, together=together),
        **options,
    )


def step(model, batch, half=False):
    """Loss and each encoder's gradient of one step."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss = model.training_step(batch, 0)
    loss.backward()
    return loss.item(), {
        name: torch.cat([p.grad.flatten().double() for p in encoder.parameters()])
        for name, encoder in model.encoders.items()
    }


def assert_close(found, expected, loss, cosine):
    assert found[0] == pytest.approx(expected[0], rel=loss)
    for name, gradient in expected[1].items():
        assert torch.cosine_similarity(found[1][name], gradient, dim=0) > cosine, name


@pytest.fixture
def backend(monkeypatch):
    """Compile with another backend than the default, which takes minutes."""

    def choose(backend):
        torch._dynamo.reset()
        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))

    yield choose
    torch._dynamo.reset()


QUICK = ("decur", "clip")


@pytest.mark.parametrize(
    "objective",
    [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in OBJECTIVES],
)
def test_layout_and_half_precision_keep_loss_and_gradient(objective, batch, monkeypatch):
    exact = step(build(objective, channels_last=False), batch)
    assert_close(step(build(objective), batch), exact, 1e-4, 0.999)
    assert_close(step(build(objective), batch, half=True), exact, 0.01, 0.85)
    model = build(objective)
    for encoder in model.encoders.values():

        def in_float32(x, forward=encoder.forward):
            with torch.autocast("cpu", enabled=False):
                return forward(x)

        monkeypatch.setattr(encoder, "forward", in_float32)
    assert_close(step(model, batch, half=True), exact, 0.01, 0.98)


@pytest.mark.slow
@pytest.mark.parametrize("half", [False, True])
def test_compiled_it_is_the_same_step(half, batch):
    exact = step(build(compile=False, channels_last=False), batch)
    bounds = (0.01, 0.85) if half else (1e-4, 0.999)
    assert_close(step(build(compile=True), batch, half), exact, *bounds)


def test_compiling_keeps_names_and_is_for_whole_batches_in_training(batch, backend):
    compiled, runs = [], []

    def watched(graph, inputs):
        compiled.append(inputs[-1].shape)
        return lambda *a: runs.append(1) or graph(*a)

    backend(watched)
    model, plain = build(encoder="mlp", compile=True), build(encoder="mlp", compile=False)
    assert_close(step(model, batch), step(plain, batch), 1e-5, 0.9999)
    assert list(model.state_dict()) == list(plain.state_dict())
    graphs, calls = len(compiled), len(runs)
    assert graphs and calls == 8  # two views through two encoders and two projectors
    for rows in (slice(0, 3), slice(0, 9)):
        assert_close(
            step(model, lacking(batch, rows)), step(plain, lacking(batch, rows)), 1e-4, 0.99
        )
    model.eval()
    model.embed({"sar": torch.rand(5, 2, 32, 32)})
    assert len(compiled) == graphs  # of "optical" alone: sar has ever other numbers of pictures
    assert len(runs) == calls + 8


def test_where_compiling_fails_one_line_says_so_and_the_run_goes_on(batch, backend, caplog):
    def broken(graph, inputs):
        raise RuntimeError("no compiler\nhere")

    backend(broken)
    model = build(encoder="mlp", compile=True)
    with caplog.at_level(logging.WARNING, "decur"):
        found = [step(model, batch) for _ in range(2)]
    lines = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(lines) == 1 and "the run goes on without it" in lines[0]
    assert "no compiler here" in lines[0] and "\n" not in lines[0]
    plain = build(encoder="mlp", compile=False)
    for result in found:
        assert_close(result, step(plain, batch), 1e-6, 0.99999)


class Losses(L.Callback):
    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, module, outputs, *unused):
        self.values.append(float(outputs["loss"]))


def train(**options):
    scenes = SyntheticScenes(samples=16, size=32, modalities=["optical", "sar"])
    torch.manual_seed(0)
    model = build(encoder="mlp", optimizer=OptimizerSettings("adamw", lr=1e-3), **options)
    losses = Losses()
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=2, callbacks=[losses], **dict.fromkeys(off, False)
    )
    trainer.fit(model, PairedData(scenes, LoaderSettings(8, workers=0)))
    return losses.values, model.state_dict()


def test_where_the_backward_pass_cannot_be_compiled_the_step_is_done_again(
    backend, caplog, monkeypatch
):
    def broken(graph, inputs):
        def fail(*values):
            raise RuntimeError("out of shared memory")

        return make_boxed_func(fail)

    backend(aot_autograd(fw_compiler=nop, bw_compiler=broken))
    seeds, manual_seed_all = [], torch.cuda.manual_seed_all
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda s: seeds.append(s))
    with caplog.at_level(logging.WARNING, "decur"):
        losses, weights = train(compile=True)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", manual_seed_all)
    drawn = seeds[-5:]  # dropout draws the same again, on GPUs, too
    assert drawn[0] == drawn[1] and len(set(drawn)) == 4
    lines = [r.getMessage() for r in caplog.records if "compile: failed" in r.getMessage()]
    assert len(lines) == 1 and "out of shared memory" in lines[0]
    expected, right = train(compile=False)
    assert losses == expected and len(losses) == 4
    for key, value in right.items():
        assert torch.equal(weights[key], value), key


class RoundedProducts(TorchDispatchMode):
    """Round the factors of matrix products to the 10 digits of TF32, as a GPU may."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm):
            args = tuple(
                ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)
                if x.dtype == torch.float32
                else x
                for x in (value.contiguous() for value in args)
            )
        return function(*args, **(kwargs or {}))


def test_tf32_in_the_losss_products_hardly_changes_it():
    torch.manual_seed(0)
    z = [torch.randn(64, 256) for _ in range(4)]
    found = []
    for context in (contextlib.nullcontext(), RoundedProducts()):
        leaves = [x.clone().requires_grad_() for x in z]
        with context:
            pairs = {"a": (leaves[0], leaves[1]), "b": (leaves[2], leaves[3])}
            loss = DeCUR(dim=256)(pairs)["loss"]
            loss.backward()
        found.append((loss.detach(), torch.cat([x.grad for x in leaves])))
    (loss, gradient), (rounded, its) = found
    assert 0 < abs(rounded - loss) / loss < 1e-5
    assert (its - gradient).norm() / gradient.norm() < 1e-3


def test_tf32_in_the_products_of_a_blur_changes_views_by_less_than_half_a_grey_level(batch):
    model = build(encoder="mlp")
    exact = model.make_views(batch, 0)
    with RoundedProducts():
        rounded = model.make_views(batch, 0)
    off = [
        float((a - b).abs().max())
        for name in exact
        for a, b in zip(exact[name], rounded[name], strict=True)
    ]
    assert 0 < max(off) < 0.5 / 255


def test_errors_of_a_network_are_its_own(batch, backend, monkeypatch):
    backend("eager")
    model = build(encoder="mlp", compile=True)

    def forward(x):
        raise ValueError("wrong picture")

    monkeypatch.setattr(model.encoders["sar"], "forward", forward)
    with pytest.raises(ValueError, match="wrong picture"):
        step(model, batch)


def test_compiling_by_itself_is_for_long_runs_on_a_gpu():
    assert pays(torch.device("cuda"), PAYS_AFTER)
    assert not pays(torch.device("cuda"), PAYS_AFTER - 1)
    assert not pays(torch.device("cpu"), 10 * PAYS_AFTER)


@pytest.mark.slow
def test_a_compiled_run_goes_on_to_the_same_end(tiny, backend):
    backend("aot_eager")
    whole = tiny("--compile=true", "--trainer.max_steps=5", name="whole")
    tiny("--compile=true", "--trainer.max_steps=5", "--checkpoint.every_minutes=0", name="broken")
    broken = whole.parent / "broken"
    torch._dynamo.reset()
    for path in sorted((broken / "checkpoints").glob("*.ckpt"))[1:]:
        path.unlink()
    for path in (broken / "encoders").iterdir():
        path.unlink()
    tiny("--compile=true", "--trainer.max_steps=5", "--checkpoint.every_minutes=0", name="broken")
    for path in (whole / "encoders").iterdir():
        assert path.read_bytes() == (broken / "encoders" / path.name).read_bytes()


@pytest.mark.parametrize(
    "end", [{"max_steps": 4}, {"max_epochs": 2}, {"max_epochs": 9, "max_steps": 4}]
)
def test_with_lightning_alone_the_rate_falls_to_the_end(end, batch):
    seen = []

    class Rates(L.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            seen.append(optimizer.param_groups[0]["lr"])

    model = build(encoder="mlp", optimizer=OptimizerSettings("adamw", lr=1e-6))
    loader = torch.utils.data.DataLoader([batch, batch], batch_size=None)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    L.Trainer(accelerator="cpu", callbacks=[Rates()], **quiet, **end).fit(model, loader)
    assert seen == pytest.approx([1e-6, 0.8535e-6, 0.5e-6, 0.1464e-6], rel=1e-3)


def test_values_are_checked_once_they_have_arrived():
    class Event:
        there = False

        def query(self):
            return self.there

        def synchronize(self):
            self.there = True

    divergence, event = Divergence(), Event()
    wrong = torch.tensor([1.0, math.nan])
    divergence._unchecked.append(("step 7", ["loss", "intra/sar"], wrong, event))
    divergence.watch("step 8", {"loss": torch.tensor(1.0)})  # does not wait
    with pytest.raises(DivergedError, match="step 7: term 'intra/sar'"):
        divergence.check()
    with pytest.raises(DivergedError, match=r"step 9: the embeddings of 'sar'"):
        divergence.watch("step 9", {"spread/sar": torch.tensor(0.0)})
    divergence.check()


@pytest.mark.parametrize(
    ("encoder", "attention"),
    [
        ("test_resnet", None),
        pytest.param("resnet10t", "rda", marks=pytest.mark.slow),
        pytest.param("resnet10t", "cross_da", marks=pytest.mark.slow),
        ("test_vit", None),
    ],
)
def test_both_views_together_are_the_same_step(encoder, attention, batch):
    """Loss, gradients and running statistics, also where some samples lack a sensor."""
    batch = lacking(batch, slice(0, 5))
    found, settings = {}, EncoderSettings(encoder, attention=attention)
    for together in (False, True):
        model = build(encoder=settings, together=together).double()
        images = {name: x.double() for name, x in batch["images"].items()}
        loss, gradients = step(model, {**batch, "images": images})
        found[together] = loss, gradients, dict(model.named_buffers())
    assert found[True][0] == pytest.approx(found[False][0], rel=1e-6)
    for part in (1, 2):
        for name, value in found[False][part].items():
            torch.testing.assert_close(
                found[True][part][name], value, rtol=1e-4, atol=1e-6 * float(value.abs().max() + 1)
            )


@pytest.mark.gpu
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("optimizer", ["lars", "adamw"])
@pytest.mark.parametrize("absent", [0, 5])
@pytest.mark.parametrize("attention", [None, "rda", "cross_da"])
def test_on_a_gpu_no_step_waits(objective, optimizer, absent, attention, batch):
    """Views, encoders, objective, backward, optimiser and what is watched, without one wait."""
    if attention and (objective, optimizer) != ("decur", "lars"):
        pytest.skip("attention has nothing to do with these")
    options = {} if attention is None else {"attention": attention}
    encoder = EncoderSettings("resnet18" if attention else "test_resnet", **options)
    model = build(objective, encoder, monitor_batches=1).cuda()
    built = build_optimizer(model, OptimizerSettings(optimizer), 256)
    batch = lacking(batch, slice(0, absent)) if absent else batch
    steps_without_waiting(model, built, batch, model.training_step)


@pytest.mark.gpu
def test_on_a_gpu_no_step_of_ddp_waits(batch, tmp_path):
    """DDP moves to the GPU what it finds in a batch."""
    rendezvous = f"file://{tmp_path}/rendezvous"
    torch.distributed.init_process_group("nccl", rendezvous, rank=0, world_size=1)
    try:
        model = build(encoder="test_resnet", monitor_batches=1).cuda()
        built = build_optimizer(model, OptimizerSettings("lars"), 256)
        model.forward = model.training_step
        wrapped = torch.nn.parallel.DistributedDataParallel(
            model, [torch.cuda.current_device()], broadcast_buffers=False
        )
        steps_without_waiting(model, built, lacking(batch, slice(0, 5)), wrapped)
    finally:
        torch.distributed.destroy_process_group()


def steps_without_waiting(model, optimizer, batch, step):
    """Train for some steps on a GPU, and fail where one makes the host wait."""
    pinned = {name: x.pin_memory() for name, x in batch["images"].items()}

    def train(index):
        model.on_train_batch_start(batch, index)
        on_gpu = model.transfer_batch_to_device({**batch, "images": pinned}, model.device, 0)
        with torch.autocast("cuda", torch.bfloat16):
            loss = step(on_gpu, index)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    for index in range(3):  # what is built once may wait
        train(index)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for index in range(3):
            train(index)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    model.check_finite()


class DividingByNone(torch.nn.modules.batchnorm._BatchNorm):
    """What torch's SyncBatchNorm does on GPUs where no process has a value."""

    def _check_input_dim(self, input):
        pass

    def forward(self, x):
        if len(x):
            return super().forward(x)
        self.running_mean.fill_(math.nan)
        self.running_var.fill_(math.nan)
        return x * self.weight.sum()


def test_a_modality_that_no_process_has_leaves_its_statistics(batch, monkeypatch):
    def replace(module):
        for name, child in module.named_children():
            if isinstance(child, torch.nn.modules.batchnorm._BatchNorm):
                made = DividingByNone(child.num_features, child.eps, child.momentum)
                made.load_state_dict(child.state_dict(), strict=False)
                setattr(module, name, made)
            replace(child)

    model = build(encoder="resnet10t")
    replace(model)
    monkeypatch.setattr(Pretrainer, "_alone", property(lambda self: False))
    model.training_step(batch, 0)  # the statistics are those of a step
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.training_step(lacking(batch, slice(None)), 1)
    after = model.state_dict()
    running = [key for key in after if "running" in key]
    assert any("sar" in key for key in running)
    for key in running:
        assert torch.equal(after[key], before[key]) is ("sar" in key), key
