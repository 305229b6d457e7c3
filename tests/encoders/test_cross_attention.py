"""Attention from sensor to sensor: who is asked, and what happens where one is absent."""

import numpy as np
import pytest
import torch

from decur.encoders import build_encoder
from decur.encoders.attention import ATTENTIONS, encode, is_crossing
from decur.errors import ConfigError


def make(stages=("layer3", "layer4"), names=("s1", "s2"), backbone="resnet18", bands=2):
    torch.manual_seed(0)
    attention = dict.fromkeys(stages, "cross_da")
    encoders = {n: build_encoder(backbone, bands, attention=attention).eval() for n in names}
    for encoder in encoders.values():  # points that move
        for stage in stages:
            torch.nn.init.normal_(getattr(encoder.backbone, stage).attention.offset[-1].weight)
    return encoders


def images(encoders, count=4, side=64):
    torch.manual_seed(1)
    return {name: torch.rand(count, 2, side, side) for name in encoders}


def test_keys_and_values_come_from_the_other_sensor():
    encoders = make(("layer4",))
    pictures = images(encoders)
    backbones = {name: encoder.backbone for name, encoder in encoders.items()}
    maps = {}
    for name, b in backbones.items():
        x = b.layer3(b.layer2(b.layer1(b.maxpool(b.act1(b.bn1(b.conv1(pictures[name])))))))
        maps[name] = b.layer4[1](b.layer4[0](x))
    expected = {
        "s1": backbones["s1"].layer4.attention(maps["s1"], maps["s2"]).mean((2, 3)),
        "s2": backbones["s2"].layer4.attention(maps["s2"], maps["s1"]).mean((2, 3)),
    }
    found = encode(encoders, pictures)
    for name, vector in expected.items():
        torch.testing.assert_close(found[name], vector)
        assert not torch.allclose(encoders[name](pictures[name]), vector)


def test_by_itself_an_encoder_attends_to_its_own_map():
    encoder = make()["s1"]
    own = build_encoder("resnet18", 2, attention="da").eval()
    own.load_state_dict(encoder.state_dict())
    x = torch.rand(2, 2, 64, 64)
    assert torch.equal(encode({"s1": encoder}, {"s1": x})["s1"], own(x))
    assert torch.equal(encoder(x), own(x))


def test_a_sample_that_the_other_sensor_lacks_attends_to_its_own_map():
    encoders = make()
    pictures = images(encoders, 5)
    has = {"s1": torch.tensor([1, 1, 0, 1, 1]).bool(), "s2": torch.tensor([0, 1, 1, 0, 1]).bool()}
    there = {name: x[has[name]] for name, x in pictures.items()}
    found = encode(encoders, there, present=has)
    both = encode(encoders, {name: x[[1, 4]] for name, x in pictures.items()})
    torch.testing.assert_close(found["s1"][[1, 3]], both["s1"])
    torch.testing.assert_close(found["s2"][[0, 2]], both["s2"])
    torch.testing.assert_close(found["s1"][[0, 2]], encoders["s1"](pictures["s1"][[0, 3]]))
    torch.testing.assert_close(found["s2"][[1]], encoders["s2"](pictures["s2"][[2]]))


def test_pictures_of_two_sizes_and_gradients_across():
    encoders = make()
    pictures = images(encoders)
    pictures["s2"] = torch.rand(4, 2, 96, 80, requires_grad=True)
    encode(encoders, pictures)["s1"].square().sum().backward()
    assert pictures["s2"].grad.abs().sum() > 0
    none = torch.zeros(4, dtype=torch.bool)
    found = encode(
        encoders,
        {"s1": pictures["s1"], "s2": pictures["s2"][:0]},
        present={"s1": ~none, "s2": none},
    )
    torch.testing.assert_close(found["s1"], encoders["s1"](pictures["s1"]))


def test_other_encoders_are_left_alone():
    encoders = {**make(), "dem": build_encoder("test_resnet", 2).eval()}
    pictures = images(encoders)
    found = encode(encoders, pictures)
    assert list(found) == ["s1", "s2", "dem"]
    assert torch.equal(found["dem"], encoders["dem"](pictures["dem"]))


def test_what_cannot_be_stepped_together_is_refused():
    three = make(names=("a", "b", "c"))
    with pytest.raises(ConfigError, match="two sensors, these are a, b, c"):
        encode(three, images(three))
    apart = {"a": make(("layer3",))["s1"], "b": make(("layer4",))["s1"]}
    with pytest.raises(ConfigError, match="different stages"):
        encode(apart, images(apart))
    uneven = {"a": make(("layer4",))["s1"], "b": make()["s1"]}
    with pytest.raises(ConfigError, match="different stages"):
        encode(uneven, images(uneven))


class Across(torch.nn.Module):
    """Adds the mean of the other sensor's map, or of the own one where there is no other."""

    crosses = True

    def __init__(self, stage):
        super().__init__()

    def forward(self, x, source=None):
        return x + (x if source is None else source).mean((2, 3), keepdim=True)


def test_an_attention_of_ones_own_may_cross(monkeypatch):
    monkeypatch.setitem(ATTENTIONS._items, "across", Across)
    encoders = {n: build_encoder("resnet18", 2, attention={"layer4": "across"}) for n in "ab"}
    for encoder in encoders.values():
        encoder.eval()
        assert is_crossing(encoder)
    pictures = images(encoders)
    maps = {}
    for name, encoder in encoders.items():
        own = encoder.forward_features(pictures[name])[-1]  # m + mean(m): twice the mean
        maps[name] = own - own.mean((2, 3), keepdim=True) / 2
    found = encode(encoders, pictures)
    for one, other in ("ab", "ba"):
        expected = maps[one].mean((2, 3)) + maps[other].mean((2, 3))
        torch.testing.assert_close(found[one], expected)


@pytest.mark.parametrize("absent", [False, True])
def test_pretraining_steps_them_together(absent, tmp_path, make_pairs):
    import numpy as np
    from safetensors.torch import load_file

    from decur.cli import main

    root = make_pairs({"s1": 1, "s2": 3}, samples=12, size=32)
    if absent:
        for number in (1, 4):
            next(iter((root / "s1").glob(f"*{number}.*"))).unlink()
    run = tmp_path / "run"
    main(
        [
            *("pretrain", f"--data.root={root}", f"--run={run}", "--encoder.name=test_resnet"),
            *("--encoder.attention=cross_da", "--projector.width=16", "--views.size=32"),
            *("--loader.batch_size=6", "--loader.workers=0", "--trainer.max_epochs=1"),
        ]
    )
    weights = load_file(run / "encoders" / "s1.safetensors")
    assert "layer4.attention.query.weight" in weights
    assert all(np.isfinite(w.float().numpy()).all() for w in weights.values())


def test_what_is_watched_of_a_run_is_what_it_trains():
    from decur.data import Collate, LoaderSettings, SyntheticScenes
    from decur.objectives import DeCUR
    from decur.pretrain import EncoderSettings, Pretrainer, ViewSettings
    from decur.pretrain.data import PairedData
    from decur.pretrain.monitors import encode_samples as watch
    from decur.pretrain.settings import ProjectorSettings

    scenes = SyntheticScenes(6, size=32, modalities=["optical", "sar"])
    encoder = EncoderSettings("test_resnet", attention={"layer4": "cross_da"})
    model = Pretrainer(
        scenes.modalities,
        DeCUR(dim=16),
        encoder=encoder,
        projector=ProjectorSettings(16),
        views=ViewSettings(size=32),
    )
    for e in model.encoders.values():
        torch.nn.init.normal_(e.backbone.layer4.attention.offset[-1].weight)
    watched = watch(model, PairedData(scenes, LoaderSettings(4, workers=0)), 6)
    model.eval()
    batch = Collate(scenes.modalities, scenes.targets)([scenes[i] for i in range(6)])
    pictures = {name: m.scale(batch["images"][name]) for name, m in scenes.modalities.items()}
    features, embeddings = model.embed(pictures)
    alone = model.embed({"sar": pictures["sar"]})[0]["sar"]
    for name in features:
        torch.testing.assert_close(
            torch.from_numpy(watched.features[name]), features[name].detach()
        )
        torch.testing.assert_close(
            torch.from_numpy(watched.embeddings[name]), embeddings[name].detach()
        )
    assert not np.allclose(watched.features["sar"], alone.detach(), atol=1e-3)
