"""CMX's modules against slow transcriptions of its equations; the whole model, and its command."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from decur import Modality
from decur.data import PairedFolder
from decur.encoders import build_encoder, save_encoder
from decur.errors import ConfigError, DataError
from decur.transfer import CMX, load_model
from decur.transfer.cmx import FeatureFusion, FeatureRectification, MLPDecoder
from decur.transfer.heads import save_model


def make_encoders(names=("mit_b0", "mit_b0"), bands=(3, 2)):
    torch.manual_seed(0)
    sensors = [
        Modality(name=name, bands=tuple(map(str, range(count))), scaling="range")
        for name, count in zip(("rgb", "hha"), bands, strict=True)
    ]
    return {
        sensor.name: build_encoder(name, sensor).eval()
        for sensor, name in zip(sensors, names, strict=True)
    }


def randomise(module):
    """No parameter or statistic is left at where it starts."""
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            torch.nn.init.uniform_(tensor, 0.1, 0.5)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return module.double().eval()


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@torch.no_grad()
def test_rectification_is_equations_1_to_6():
    torch.manual_seed(0)
    channels, height, width = 3, 2, 4
    module = randomise(FeatureRectification(channels))
    a, b = torch.randn(2, 2, channels, height, width, dtype=torch.float64)
    found_a, found_b = module(a, b)
    first, second = module.of_channels[0], module.of_channels[2]
    conv1, conv2 = module.of_places[0], module.of_places[2]
    for sample in range(2):
        both = [*a[sample], *b[sample]]  # 2C maps
        y = torch.stack([m.mean() for m in both] + [m.max() for m in both])  # 4C
        hidden = (first.weight @ y + first.bias).clamp_min(0)
        of_channels = [sigmoid(v) for v in second.weight @ hidden + second.bias]
        for row in range(height):
            for column in range(width):
                place = torch.stack([m[row, column] for m in both])
                hidden = (conv1.weight[:, :, 0, 0] @ place + conv1.bias).clamp_min(0)
                of_places = [sigmoid(v) for v in conv2.weight[:, :, 0, 0] @ hidden + conv2.bias]
                for c in range(channels):
                    at = (sample, c, row, column)
                    wanted_a = a[at] + 0.5 * of_channels[channels + c] * b[at]
                    wanted_a = wanted_a + 0.5 * of_places[1] * b[at]
                    wanted_b = b[at] + 0.5 * of_channels[c] * a[at] + 0.5 * of_places[0] * a[at]
                    torch.testing.assert_close(found_a[at], wanted_a)
                    torch.testing.assert_close(found_b[at], wanted_b)


def exchanged(module, number, own, other, heads):
    """Tokens (N, C) of one sensor after the exchange (equations 7 and 8), head by head."""
    places, channels = own.shape
    size = channels // heads

    def embedded(which, x):
        layer = module.embed[which]
        return (x @ layer.weight.T + layer.bias).clamp_min(0).split(channels, dim=1)

    residual, question = embedded(number, own)
    _, asked = embedded(1 - number, other)
    keys, values = (asked @ module.keys_values[1 - number].weight.T).split(channels, dim=1)
    answer = torch.zeros(places, channels, dtype=own.dtype)
    for head in range(heads):
        inside = slice(head * size, (head + 1) * size)
        context = torch.zeros(size, size, dtype=own.dtype)
        for place in range(places):
            context += torch.outer(keys[place, inside], values[place, inside]) / math.sqrt(size)
        context = context.exp() / context.exp().sum(dim=0)  # over the keys
        for place in range(places):
            answer[place, inside] = question[place, inside] @ context
    project, norm = module.project[number], module.norm[number]
    x = own + torch.cat([residual, answer], dim=1) @ project.weight.T + project.bias
    spread = x.var(dim=1, correction=0, keepdim=True)
    return norm.weight * (x - x.mean(dim=1, keepdim=True)) / (spread + norm.eps).sqrt() + norm.bias


def normalised(norm, x):
    """(C, ...) by running statistics."""
    shape = (-1, *[1] * (x.ndim - 1))
    mean, spread = norm.running_mean.view(shape), norm.running_var.view(shape)
    scaled = (x - mean) / (spread + norm.eps).sqrt()
    return norm.weight.view(shape) * scaled + norm.bias.view(shape)


def pointwise(conv, x):
    """A 1x1 convolution of (C, H, W)."""
    result = torch.einsum("oc,chw->ohw", conv.weight[:, :, 0, 0], x)
    return result if conv.bias is None else result + conv.bias[:, None, None]


@torch.no_grad()
@pytest.mark.parametrize("heads", [1, 2])
def test_fusion_is_equations_7_and_8_then_mixing(heads):
    torch.manual_seed(1)
    channels, height, width = 4, 3, 2
    module = randomise(FeatureFusion(channels, heads))
    a, b = torch.randn(2, 2, channels, height, width, dtype=torch.float64)
    found = module(a, b)
    assert found.shape == a.shape
    for sample in range(2):
        tokens = [x[sample].reshape(channels, -1).T for x in (a, b)]
        parts = [exchanged(module, i, tokens[i], tokens[1 - i], heads) for i in (0, 1)]
        both = torch.cat(parts, dim=1).T.reshape(2 * channels, height, width)
        into, depthwise, _, out, norm = module.mix
        x = pointwise(into, both)
        wide = torch.zeros(channels, height + 2, width + 2, dtype=x.dtype)
        wide[:, 1:-1, 1:-1] = x
        spread = torch.stack(
            [
                sum(
                    depthwise.weight[c, 0, i, j] * wide[c, i : i + height, j : j + width]
                    for i in range(3)
                    for j in range(3)
                )
                + depthwise.bias[c]
                for c in range(channels)
            ]
        )
        mixed = normalised(norm, pointwise(out, spread.clamp_min(0)))
        wanted = normalised(module.mixed_norm, pointwise(module.skip, both) + mixed)
        torch.testing.assert_close(found[sample], wanted)


@torch.no_grad()
def test_decoder_is_segformers():
    torch.manual_seed(2)
    module = randomise(MLPDecoder([2, 3], 5, width=4))
    maps = [torch.randn(1, 2, 4, 4).double(), torch.randn(1, 3, 2, 2).double()]
    # what a bilinear enlargement of 2 to 4 places does along a side, by hand
    enlarge = torch.tensor([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]], dtype=torch.float64)
    first = pointwise(module.embed[0], maps[0][0])
    second = enlarge @ pointwise(module.embed[1], maps[1][0]) @ enlarge.T
    x = pointwise(module.mix[0], torch.cat([first, second]))
    x = normalised(module.mix[1], x).clamp_min(0)
    torch.testing.assert_close(module(maps)[0], pointwise(module.classify, x))
    assert module.mix[3].p == 0.1  # of whole channels


def test_the_decoder_starts_as_in_the_public_code():
    """Kaiming's normal by fan in for convolutions; what are linear layers there, as PyTorch has."""
    torch.manual_seed(0)
    module = MLPDecoder([64, 128, 320, 512], 40)
    assert float(module.mix[0].weight.detach().std()) == pytest.approx(
        math.sqrt(2 / 2048), rel=0.01
    )
    assert float(module.classify.weight.detach().std()) == pytest.approx(
        math.sqrt(2 / 512), rel=0.03
    )
    assert float(module.embed[3].weight.detach().std()) == pytest.approx(
        1 / math.sqrt(3 * 512), rel=0.01
    )


def test_it_has_as_many_parameters_as_the_papers():
    """66.6 million with MiT-B2 on NYU-Depth v2 (Table XII of CMX)."""
    model = CMX(make_encoders(("mit_b2", "mit_b2"), (3, 3)), 40)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == 66.6


@torch.no_grad()
def test_corrected_maps_go_on_into_the_next_stage():
    """The model written out, from stages and modules that are tested by themselves."""
    model = CMX(make_encoders(), 4).eval()
    images = {"rgb": torch.rand(2, 3, 64, 48), "hha": torch.rand(2, 2, 64, 48)}
    a, b = images["rgb"], images["hha"]
    fused = []
    for number in range(4):
        a, b = model.encoder("rgb").stage(number, a), model.encoder("hha").stage(number, b)
        a, b = model.rectify[number](a, b)
        fused.append(model.fuse[number](a, b))
    small = model.decoder(fused)
    assert small.shape == (2, 4, 16, 12)
    wanted = torch.nn.functional.interpolate(small, (64, 48), mode="bilinear")
    assert torch.equal(model(images), wanted)
    assert model(images, size=(40, 24)).shape == (2, 4, 40, 24)


@pytest.mark.parametrize("freeze", [False, True])
def test_what_learns(freeze):
    model = CMX(make_encoders(), 3)
    if freeze:
        model.freeze()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()
    for encoder in model.encoders.values():
        encoder.eval()  # no stochastic depth, which would skip blocks
    images = {"rgb": torch.rand(2, 3, 64, 64), "hha": torch.rand(2, 2, 64, 64)}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(images).square().mean().backward()
    learning = {name: p.grad is not None for name, p in model.named_parameters()}
    assert all(learns != (freeze and n.startswith("encoders.")) for n, learns in learning.items())
    optimizer.step()
    changed = {k for k, v in model.state_dict().items() if not torch.equal(before[k], v)}
    assert any(key.startswith("rectify.0") for key in changed)
    assert freeze != any(key.startswith("encoders.") for key in changed)


@pytest.mark.slow
def test_four_pictures_are_learned_by_heart():
    torch.manual_seed(0)
    model = CMX(make_encoders(), 3).train()
    mask = torch.randint(3, (4, 4, 4)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    noise = torch.rand(4, 3, 32, 32)
    # class 1 only shows in one sensor, class 2 in the other
    images = {
        "rgb": 0.3 * noise + 0.7 * (mask == 1)[:, None],
        "hha": 0.3 * noise[:, :2] + 0.7 * (mask == 2)[:, None],
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(30):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images), mask)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        right = (model.eval()(images).argmax(1) == mask).float().mean()
    assert right > 0.9


@torch.no_grad()
def test_it_comes_back_from_a_file(tmp_path):
    model = CMX(make_encoders(), 3).eval()
    images = {"rgb": torch.rand(1, 3, 32, 32), "hha": torch.rand(1, 2, 32, 32)}
    path = save_model(model, tmp_path / "model.safetensors", {"target": "x"})
    again, about = load_model(path)
    assert isinstance(again, CMX) and about["model"] == "cmx"
    assert torch.equal(again(images), model(images))


def test_what_it_cannot_fuse_is_said():
    encoders = make_encoders()
    with pytest.raises(ConfigError, match=r"two sensors, not 1 \(rgb\)"):
        CMX({"rgb": encoders["rgb"]}, 3)
    with pytest.raises(ConfigError, match="hha has 'test_resnet'"):
        CMX(make_encoders(("mit_b0", "test_resnet")), 3)
    with pytest.raises(ConfigError, match="equal stages, not 'mit_b0' and 'mit_b1'"):
        CMX(make_encoders(("mit_b0", "mit_b1")), 3)
    model = CMX(encoders, 3).eval()
    images = {"rgb": torch.rand(2, 3, 32, 32), "hha": torch.rand(2, 2, 32, 32)}
    present = {"rgb": torch.tensor([True, True]), "hha": torch.tensor([True, False])}
    with pytest.raises(DataError, match="lacks 'hha'"):
        model(images, present)
    with pytest.raises(DataError, match="32 x 32 and 32 x 40"):
        model({**images, "hha": torch.rand(2, 2, 32, 40)})


@pytest.fixture
def rooms(make_pairs):
    """A folder of pairs with masks, which its pictures show."""
    root = make_pairs({"rgb": 3, "hha": 3}, samples=12, size=48, kind="png")
    (root / "mask").mkdir()
    for file in sorted((root / "rgb").iterdir()):
        bright = np.asarray(Image.open(file).convert("L")) > 128
        Image.fromarray(bright.astype(np.uint8)).save(root / "mask" / file.name)
    (root / "mask" / "classes.txt").write_text("dark\nbright\n")
    return root


TINY = ["--head=cmx", "--encoder.name=mit_b0", "--loader.batch_size=4", "--fit.steps=2"]


def test_the_command_fine_tunes_pretrained_encoders(rooms, transferred, tmp_path):
    for name, modality in PairedFolder(rooms).modalities.items():
        encoder = build_encoder("mit_b0", modality)
        save_encoder(encoder, tmp_path / "pretrained" / "encoders" / f"{name}.safetensors")
    folder = transferred(
        *(*TINY, f"--data.root={rooms}", "--freeze=false", "--fit.schedule=poly"),
        *("--fit.warmup_epochs=0.5", "--fit.scales=[0.75,1.25]", "--fit.piece=[32,48]"),
        *("--test_scales=[1,1.25]", "--test_flip=true", "--encoders", str(tmp_path / "pretrained")),
    )
    results = json.loads((folder / "results.json").read_text())
    assert results["model"] == "CMX" and results["modalities"] == ["hha", "rgb"]
    assert results["test_scales"] == [1, 1.25] and results["test_flip"]
    assert results["fit"]["scales"] == [0.75, 1.25] and results["fit"]["piece"] == [32, 48]
    model, about = load_model(folder / "model.safetensors")
    assert isinstance(model, CMX) and about["classes"] == ["dark", "bright"]


def test_the_command_keeps_frozen_encoders(rooms, transferred):
    folder = transferred(*TINY, f"--data.root={rooms}", "--fit.augment=false")
    model, _ = load_model(folder / "model.safetensors")
    torch.manual_seed(0)
    fresh = [build_encoder("mit_b0", 3) for _ in model.encoders]
    for encoder, start in zip(model.encoders.values(), fresh, strict=True):
        for key, value in encoder.state_dict().items():
            assert torch.equal(value, start.state_dict()[key])


def test_the_command_says_what_cannot_be(rooms, refused):
    folder = f"--data.root={rooms}"
    line = refused(*TINY, folder, "--modalities", "rgb")
    assert "fuses two sensors, not 1 (rgb)" in line
    assert "mit_b5), and hha has 'test_resnet'" in refused(
        *TINY, folder, "--encoder.name=test_resnet"
    )
    scenes = ["--data=SyntheticScenes", "--data.samples=20", "--data.size=32"]
    line = refused(*scenes, "--target=moisture", "--head=cmx")
    assert "head: cmx is for masks, and 'moisture' is a scalar" in line
    (rooms / "hha" / "0003.png").unlink()
    line = refused(*TINY, folder, "--data.missing=keep")
    assert "1 of 12 lack 'hha' (such as '0003')" in line
