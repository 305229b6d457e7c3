"""Batches, optimiser groups, schedule, probes, meters: each alone."""

import csv
import math
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch import nn

from decur.data import LoaderSettings
from decur.encoders import build_encoder
from decur.errors import ConfigError, DataError, DivergedError
from decur.features import Features
from decur.pretrain.callbacks import BadSamples
from decur.pretrain.data import EpochBatches, ResumableLoader
from decur.pretrain.metrics import Meter
from decur.pretrain.monitors import effective_ranks, refuse_collapse
from decur.pretrain.optim import build_optimizer, cosine_with_warmup, parameter_groups
from decur.pretrain.settings import OptimizerSettings
from decur.pretrain.trainer import make_trainer
from decur.runs import RunFolder


def test_processes_share_each_batch_without_repeats_or_losses():
    whole = list(EpochBatches(103, 12, seed=3))
    shares = [list(EpochBatches(103, 12, 3, rank, world=3)) for rank in range(3)]
    assert len(whole) == 103 // 12 and all(len(batch) == 12 for batch in whole)
    assert [[i for share in shares for i in share[step]] for step in range(len(whole))] == whole
    assert len({i for batch in whole for i in batch}) == 12 * len(whole)


def test_the_order_is_a_function_of_seed_and_epoch():
    batches, again = EpochBatches(40, 8, seed=1), EpochBatches(40, 8, seed=1)
    first = list(batches)
    batches.set_epoch(1)
    second = list(batches)
    assert first != second
    again.set_epoch(1)
    assert list(again) == second
    batches.set_epoch(0)
    assert list(batches) == first
    assert list(EpochBatches(40, 8, seed=2)) != first


def test_a_loader_goes_on_in_the_middle_of_an_epoch():
    def loader():
        return ResumableLoader(list(range(40)), batch_sampler=EpochBatches(40, 8, seed=1))

    batches = loader().batch_sampler
    batches.set_epoch(2)
    expected = list(batches)
    resumed = loader()
    resumed.load_state_dict({"epoch": 2, "batch": 3})
    resumed.batch_sampler.set_epoch(
        2
    )  # as Lightning does, after the start of the iterator or before
    assert [batch.tolist() for batch in resumed] == expected[3:]
    assert len(resumed) == 5  # of the whole epoch: progress counts on
    resumed.batch_sampler.set_epoch(3)
    assert len(list(resumed)) == 5


def test_batches_that_cannot_be_made_are_refused():
    with pytest.raises(ConfigError, match="more than the 5 samples"):
        EpochBatches(5, 8, seed=0)
    with pytest.raises(ConfigError, match="there is 1; give more"):
        EpochBatches(1, 8, seed=0)
    with pytest.raises(ConfigError, match="does not divide among 3"):
        EpochBatches(50, 8, seed=0, world=3)
    with pytest.raises(ConfigError, match="batch_size"):
        LoaderSettings(batch_size=1)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_biases_norms_and_position_embeddings_are_exempt(name):
    module = nn.ModuleDict({"s1": build_encoder(name, 2)})
    weights, exempt = parameter_groups(module)
    names = {id(p): key for key, p in module.named_parameters()}
    assert len(weights) + len(exempt) == len(names)
    for p in exempt:
        assert p.ndim <= 1 or "pos_embed" in names[id(p)] or "cls_token" in names[id(p)]
    assert all(p.ndim > 1 for p in weights)
    assert ("vit" in name) == any("pos_embed" in names[id(p)] for p in exempt)


@pytest.mark.parametrize("decay", [1e-6, 0.0])
def test_lars_steps_are_those_of_the_paper(decay):
    """You et al. 2017 with momentum 0.9; biases plain SGD at their own rate (appendix B.1)."""
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    w, b = (p.detach().double().clone() for p in (layer.weight, layer.bias))
    optimizer = build_optimizer(layer, OptimizerSettings(weight_decay=decay), batch_size=256)
    vw, vb = torch.zeros_like(w), torch.zeros_like(b)
    for _ in range(3):
        optimizer.zero_grad()
        (layer(torch.ones(1, 3)) ** 2).sum().backward()
        gw, gb = layer.weight.grad.double(), layer.bias.grad.double()
        trust = 0.001 * w.norm() / (gw.norm() + decay * w.norm())
        vw = 0.9 * vw + trust * (gw + decay * w)
        vb = 0.9 * vb + gb
        w, b = w - 0.2 * vw, b - 0.0048 * vb
        optimizer.step()
        assert torch.allclose(layer.weight.double(), w, rtol=1e-5)
        assert torch.allclose(layer.bias.double(), b, rtol=1e-5)


def test_rates_have_the_papers_defaults_and_scale_on_request():
    assert OptimizerSettings().rates() == (0.2, 0.0048, 1e-6)
    assert OptimizerSettings("adamw").rates() == (1e-4, 1e-4, 0.01)
    scaled = build_optimizer(nn.Linear(2, 2), OptimizerSettings(scale_lr=True), batch_size=512)
    assert [group["lr"] for group in scaled.param_groups] == [0.4, 0.0096]


def test_the_schedule_is_a_cosine_after_a_warmup():
    assert cosine_with_warmup(0, 100, 0) == 1
    assert cosine_with_warmup(50, 100, 0) == pytest.approx(0.5)
    assert cosine_with_warmup(100, 100, 0) == pytest.approx(0)
    assert [cosine_with_warmup(i, 14, 4) for i in range(4)] == [0.25, 0.5, 0.75, 1]
    assert cosine_with_warmup(4 + 3, 14, 4) == pytest.approx((1 + math.cos(math.pi * 0.3)) / 2)


def test_a_meter_survives_being_saved():
    meter, other = Meter(), Meter()
    for value in (1.0, 2.0, 6.0):
        meter.add({"x": torch.tensor(value)})
    other.load_state_dict(meter.state_dict())
    other.add({"x": torch.tensor(3.0)})
    assert meter.means() == {"x": 3.0} and other.means() == {"x": 3.0}
    other.add({"x": torch.tensor(float("nan"))})
    other.add({"never": torch.tensor(float("nan"))})
    assert other.means() == {"x": 3.0}
    meter.reset()
    assert meter.means() == {}


def test_a_rank_is_of_enough_samples():
    rare = torch.full((40, 5), math.nan)
    rare[:2] = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    often = torch.randn(40, 5, generator=torch.Generator().manual_seed(1))
    found = effective_ranks(Features({"rare": rare.numpy(), "often": often.numpy()}, {}, {}))
    assert set(found) == {"rank/features/often"}


def test_processes_have_one_list_of_bad_samples(tmp_path):
    run, ours = RunFolder(tmp_path), [(f"s1/{i}.tif", "is cut short") for i in range(3)]
    one, other = (BadSamples(run, limit=0.1, samples=40) for _ in range(2))
    for process in (one, other):
        process.on_fit_start(None, None)
        process.on_train_batch_start(None, None, {"bad": ours[:2]}, 0)  # both come upon them
    one.on_train_batch_start(None, None, {"bad": ours[2:]}, 1)
    with pytest.raises(DataError, match=r"5 of 40 .* s1/9.tif"):
        other.on_train_batch_start(None, None, {"bad": [("s1/8.tif", "x"), ("s1/9.tif", "x")]}, 1)
    with run.bad_samples.open(newline="") as file:
        listed = [row["file"] for row in csv.DictReader(file)]
    assert sorted(listed) == [*(path for path, _ in ours), "s1/8.tif", "s1/9.tif"]
    with pytest.raises(DataError, match="5 of 40"):
        one.on_train_epoch_end(SimpleNamespace(world_size=2), None)


def test_ddp_keeps_gradients_once_and_sends_no_buffers():
    trainer = make_trainer({"accelerator": "cpu", "devices": 2, "strategy": "ddp"}, logger=False)
    assert trainer.strategy._ddp_kwargs["gradient_as_bucket_view"]
    assert not trainer.strategy._ddp_kwargs["broadcast_buffers"]
    assert "find_unused_parameters" not in trainer.strategy._ddp_kwargs


@pytest.mark.parametrize(("kind", "expected"), [("cuda", ["high", "highest"]), ("cpu", [])])
def test_only_a_gpu_is_told_how_to_multiply(kind, expected, monkeypatch):
    strategy = SimpleNamespace(root_device=torch.device(kind))
    made = SimpleNamespace(strategy=strategy, num_devices=1, precision_plugin=SimpleNamespace())
    told = []
    monkeypatch.setattr(L, "Trainer", lambda **options: made)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", told.append)
    for options in ({}, {"float32_matmul": "highest"}):
        make_trainer({}, **options)
    assert told == expected


def test_collapsed_features_are_refused():
    refuse_collapse({"rank/features/s1": 9.0, "rank/embedding/s1": 1.0}, limit=1.5)
    for rank in (1.0, float("nan")):
        with pytest.raises(DivergedError, match="'s1'"):
            refuse_collapse({"rank/features/s1": rank}, limit=1.5)
