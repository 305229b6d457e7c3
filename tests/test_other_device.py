"""What trains, measures and explains on another device, backward passes included, gives what it
gives on the CPU."""

import os

import numpy as np
import pytest
import torch

from decur.data import Collate, LoaderSettings, SyntheticScenes
from decur.encoders import EncoderSettings
from decur.objectives import DeCUR, list_objectives
from decur.pretrain import PairedData, Pretrainer
from decur.pretrain.optim import build_optimizer
from decur.pretrain.settings import OptimizerSettings, ProjectorSettings, ViewSettings
from other_device import Other, move, register

SAMPLES, SIZE, DIM = 8, 32, 16
QUICK = [
    *((name, {"name": "mlp"}, 3, "lars", False) for name in list_objectives()),
    ("decur", {"name": "test_resnet"}, SAMPLES, "adamw", False),
    ("decur", {"name": "test_resnet"}, SAMPLES - 1, "lars", True),
]
REST = [
    *(
        ("decur", {"name": "resnet10t", "attention": name}, 3, "lars", together)
        for name in ("rda", "cbam", "cross_da")
        for together in (False, True)
    ),
    *(
        ("decur", {"name": name, "checkpointing": name != "alexnet"}, 3, "lars", False)
        for name in ("resnet10t", "test_vit", "mit_b0", "alexnet")
    ),
]


def scenes(samples=SAMPLES, size=SIZE):
    return SyntheticScenes(samples=samples, size=size, modalities=["optical", "sar"])


def train(case, device, seen):
    """The losses of two steps and the weights after them; `seen` is told what is waited for."""
    objective, encoder, absent, optimizer, together = case
    size = SIZE if encoder["name"] in ("mlp", "test_resnet") else 2 * SIZE
    data = scenes(size=size)
    batch = Collate(data.modalities, {})([data[i] for i in range(SAMPLES)])
    batch["present"]["sar"] = torch.arange(SAMPLES) >= absent
    torch.manual_seed(0)
    model = Pretrainer(
        data.modalities,
        list_objectives()[objective](dim=DIM),
        encoder=EncoderSettings(**encoder),
        projector=ProjectorSettings(DIM),
        views=ViewSettings(size, together=together),
        monitor_batches=1,
    )
    move(model, device)
    built = build_optimizer(model, OptimizerSettings(optimizer), SAMPLES)
    losses = []
    for step in range(2):
        model.on_train_batch_start(batch, step)
        sent = model.transfer_batch_to_device(batch, device, 0)
        before = dict(seen)
        loss = model.training_step(sent, step)
        model.on_before_backward(loss)
        loss.backward()
        model.on_after_backward()
        built.step()
        built.zero_grad()
        assert loss.device == device and dict(seen) == before, (case, seen)
        losses.append(float(loss.detach()))
    model.check_finite()
    return losses, {name: value.detach().cpu() for name, value in model.state_dict().items()}


def steps(cases):
    device = register()
    for case in cases:
        losses, weights = train(case, torch.device("cpu"), {})
        with Other() as other:
            found, others = train(case, device, other.waits)
        assert found == pytest.approx(losses, rel=1e-3), case
        for name, value in weights.items():
            torch.testing.assert_close(others[name], value, rtol=1e-2, atol=2e-3, msg=str(case))


def done(process, seconds=120):
    code, out, error = process.end(seconds)
    assert code == 0, f"{out}\n{error[-3000:]}"


def test_steps_give_what_they_give_on_a_cpu(apart):
    done(apart(steps, QUICK))


@pytest.mark.slow
def test_steps_of_every_kind_of_encoder_give_what_they_give_on_a_cpu(apart):
    done(apart(steps, REST), 400)


def measures():
    from decur.pretrain.directions import embed_views
    from decur.pretrain.monitors import effective_ranks, encode_samples, probes

    device = register()
    data = PairedData(scenes(24), LoaderSettings(8, workers=0))
    rows = np.arange(4, 20)
    found = {}
    for where in (torch.device("cpu"), device):
        torch.manual_seed(0)
        model = Pretrainer(
            data.dataset.modalities,
            DeCUR(dim=DIM, common="auto"),
            encoder="test_resnet",
            projector=ProjectorSettings(DIM),
            views=ViewSettings(SIZE),
        )
        with Other():
            move(model, where)
            features = encode_samples(model, data, 16)
            model.objective.set_share(0.5)
            model.load_state_dict({name: x.cpu() for name, x in model.state_dict().items()})
            assert model.objective.is_counted and model.objective.counted.device == where
            model.meter.load_state_dict({"loss": (3.0, 1)})
            model.meter.add({"loss": torch.tensor(1.0).to(where)})
            views = {
                f"{n}/{i}": z
                for n, pair in embed_views(model, data, rows).items()
                for i, z in enumerate(pair)
            }
            found[where] = {
                **effective_ranks(features),
                **probes(features, data, 0),
                **model.meter.means(),
                **{name: float(z.std()) for name, z in views.items()},
            }
    assert found[device] == pytest.approx(found[torch.device("cpu")], rel=1e-4)


def test_monitors_and_the_share_give_what_they_give_on_a_cpu(apart):
    done(apart(measures))


def states():
    """The state of an optimiser goes on where it was not made."""
    device = register()
    for name in ("lars", "adamw"):
        for before, after in ((torch.device("cpu"), device), (device, torch.device("cpu"))):
            with Other():
                state = None
                for where in (before, after):
                    layer = torch.nn.Linear(4, 4).to(where)
                    optimizer = build_optimizer(layer, OptimizerSettings(name), 256)
                    if state is not None:
                        optimizer.load_state_dict(state)
                    layer(torch.randn(2, 4).to(where)).sum().backward()
                    optimizer.step()
                    state = optimizer.state_dict()
                devices = {
                    value.device
                    for values in optimizer.state.values()
                    for key, value in values.items()
                    if key != "step"
                }
            assert devices == {after}, (name, devices)


def test_the_state_of_an_optimiser_goes_on_on_another_device(apart):
    done(apart(states))


def explains(folder):
    device = register()  # before what predicts is imported, since it replaces a decorator
    from decur.cli import main
    from decur.embed.model import build_embedder
    from decur.embed.settings import EmbedSettings
    from decur.explain import explain
    from decur.explain.model import Checkpoint
    from decur.predict import folder as predicting
    from decur.predict.folder import predict_data
    from decur.transfer import run as transferring
    from decur.transfer import transfer

    os.environ["DECUR_DEBUG"] = "1"
    to = Checkpoint.to
    Checkpoint.to = lambda self, *given, **layout: to(self, *([device] if given else []), **layout)
    transferring.choose_device = predicting.choose_device = lambda name: str(device)
    data = SyntheticScenes(samples=40, size=64, modalities=["optical", "sar"])
    small = ["--data.samples=32", "--data.size=64", "--views.size=64", "--loader.batch_size=16"]
    small += ["--projector.width=16", "--loader.workers=0", "--monitor.every_epochs=0"]
    small += ["--trainer.max_epochs=1", "--trainer.accelerator=cpu"]
    for encoder in (
        ["--encoder.name=resnet10t", "--encoder.attention=rda"],
        ["--encoder.name=test_vit"],
    ):
        pretrained = f"{folder}/{encoder[-1]}"
        main(["pretrain", "--config=demo", *small, *encoder, f"--run={pretrained}"])
        for target in ("cover", "mask"):
            out = f"{folder}/{target}-{encoder[-1]}"
            with Other():
                transfer(data, encoders=pretrained, target=target, run=out, fit={"epochs": 1})
                predict_data(out, data, out=f"{out}-predicted")
        model = build_embedder([pretrained], data.modalities, EmbedSettings(size=64))
        batch = Collate(data.modalities, {})([data[i] for i in range(8)])
        with Other():
            found = explain(pretrained, data, samples=40)
            columns = move(model, device).predict_step(
                model.transfer_batch_to_device(batch, device, 0), 0
            )
        assert {"alignment", "spatial", "spectral", "shared", "browser"} <= set(found.arrays)
        assert {x.device for of in columns.values() for x in of.values()} == {device}


@pytest.mark.slow
def test_what_explains_embeds_and_predicts_runs_on_another_device(apart, tmp_path):
    done(apart(explains, str(tmp_path)), 500)
