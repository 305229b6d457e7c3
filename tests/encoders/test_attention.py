"""Attention modules: their equations, place by place, and their place in an encoder."""

import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn.functional import conv2d, gelu, interpolate, layer_norm

from decur import Modality
from decur.encoders import build_encoder, load_encoder, save_encoder
from decur.encoders.attention import ATTENTIONS, CBAM, DeformableAttention
from decur.encoders.attention.deformable import gathered
from decur.encoders.header import EncoderHeader
from decur.errors import ConfigError


def make(
    channels=8,
    heads=4,
    groups=2,
    stride=2,
    kernel=3,
    size=(5, 6),
    residual=True,
    moved=0.5,
    centred=True,
):
    """A module in float64 whose every number matters."""
    torch.manual_seed(0)
    module = DeformableAttention(
        channels,
        heads=heads,
        groups=groups,
        stride=stride,
        kernel=kernel,
        size=size,
        residual=residual,
        centred=centred,
    ).double()
    with torch.no_grad():
        module.offset[-1].weight.normal_(std=moved)
        module.bias.normal_()
        module.offset[1].weight.uniform_(0.5, 2)
        module.offset[1].bias.normal_()
    return module


def at(picture, y, x):
    """Bilinear sample of (C, H, W) at fractional indices; the border goes on outside."""
    height, width = picture.shape[-2:]
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = min(int(y), height - 2) if height > 1 else 0, min(int(x), max(width - 2, 0))
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    b, r = y - top, x - left
    return (
        (1 - b) * (1 - r) * picture[:, top, left]
        + (1 - b) * r * picture[:, top, right]
        + b * (1 - r) * picture[:, bottom, left]
        + b * r * picture[:, bottom, right]
    )


def sampled_points(module, query, source):
    """For each group of channels, its points as (y, x) and what the map holds there, (C / g, n)."""
    group = len(query) // module.groups
    depthwise, norm, _, point = module.offset
    for g in range(module.groups):
        own = slice(g * group, (g + 1) * group)
        kernel, bias, padding = depthwise.weight, depthwise.bias, depthwise.padding
        o = conv2d(query[own][None], kernel, bias, module.stride, padding, 1, group)[0]
        o = gelu(layer_norm(o.permute(1, 2, 0), (group,), norm.weight, norm.bias))  # (h, w, C / g)
        offsets = o @ point.weight[:, :, 0, 0].T  # (h, w, 2), y and x
        rows, columns = offsets.shape[:2]
        places, samples = [], []
        for i in range(rows):
            for j in range(columns):
                if module.centred:
                    y, x = (2 * i + 1) / rows - 1, (2 * j + 1) / columns - 1
                else:  # the authors': from half a place to half a place past the last
                    y = (i + 0.5) / (rows - 1) * 2 - 1
                    x = (j + 0.5) / (columns - 1) * 2 - 1
                y = min(max(y + offsets[i, j, 0].item(), -1), 1)
                x = min(max(x + offsets[i, j, 1].item(), -1), 1)
                row, column = (
                    (c + 1) / 2 * n - 0.5 if module.centred else (c + 1) / 2 * (n - 1)
                    for c, n in zip((y, x), source.shape[1:], strict=True)
                )
                places.append((y, x))
                samples.append(at(source[own], row, column))
        yield places, torch.stack(samples, 1)


def reference(module, x, source):
    """Section 3.2 with loops, for one picture: (C, H, W) and the map that is sampled."""
    channels, height, width = x.shape
    weigh = lambda layer, t: layer.weight[:, :, 0, 0] @ t + layer.bias[:, None]  # noqa: E731
    query, head = weigh(module.query, x.flatten(1)).reshape(x.shape), channels // module.heads
    places_of, samples = zip(*sampled_points(module, query, source), strict=True)
    sampled = torch.cat(samples)  # (C, n)
    key, value = weigh(module.key, sampled), weigh(module.value, sampled)  # (C, n)
    heads_of_group = module.heads // module.groups
    table_h, table_w = module.bias.shape[1:]
    result = torch.zeros_like(x)
    for h in range(module.heads):
        places = places_of[h // heads_of_group]
        own = slice(h * head, (h + 1) * head)
        for i in range(height):
            for j in range(width):
                logits = []
                for n, (py, px) in enumerate(places):
                    # distance in steps of the map, to the table's: 2 H - 1 steps become its rows
                    if module.centred:
                        dy = ((2 * i + 1) / height - 1 - py) / 2 * height
                        dx = ((2 * j + 1) / width - 1 - px) / 2 * width
                    else:
                        dy = (i / (height - 1) * 2 - 1 - py) / 2 * (height - 1)
                        dx = (j / (width - 1) * 2 - 1 - px) / 2 * (width - 1)
                    ty = (dy / max(height - 1, 1) + 1) / 2 * (table_h - 1)
                    tx = (dx / max(width - 1, 1) + 1) / 2 * (table_w - 1)
                    bias = at(module.bias[h : h + 1], ty, tx)[0]
                    logits.append(query[own, i, j] @ key[own, n] / math.sqrt(head) + bias)
                result[own, i, j] = value[own] @ torch.stack(logits).softmax(0)
    result = weigh(module.out, result.flatten(1)).reshape(x.shape)
    return x + result if module.residual else result


@pytest.mark.parametrize(
    ("size", "stride", "kernel", "residual"),
    [((5, 6), 2, 3, True), ((7, 4), 1, 5, False), ((3, 3), 3, 3, True), ((1, 2), 1, 3, False)],
)
def test_deformable_attention_is_its_equations(size, stride, kernel, residual):
    module = make(stride=stride, kernel=kernel, residual=residual)
    x = torch.randn(2, 8, *size, dtype=torch.float64)
    expected = torch.stack([reference(module, one, one) for one in x])
    torch.testing.assert_close(module(x), expected)
    y, inspection = module.inspect(x)
    torch.testing.assert_close(y, expected)
    assert inspection.attention.shape[:3] == (2, 4, size[0] * size[1])
    assert inspection.points.abs().max() <= 1 and inspection.points.shape[:2] == (2, 2)


@pytest.mark.parametrize(("size", "stride"), [((5, 6), 2), ((4, 3), 1)])
def test_the_default_geometry_is_that_of_dat(size, stride):
    """The paper follows DAT++ (appendix B.1), whose coordinates `reference` writes out."""
    module = make(stride=stride, centred=False)
    x = torch.randn(2, 8, *size, dtype=torch.float64)
    expected = torch.stack([reference(module, one, one) for one in x])
    torch.testing.assert_close(module(x), expected)
    torch.testing.assert_close(module.inspect(x)[0], expected)
    module.centred = True
    assert not torch.allclose(module(x), expected)
    module.centred = False
    assert module(torch.randn(1, 8, 1, 1).double()).isfinite().all()  # undefined in their code


def test_keys_and_values_can_come_from_another_map():
    module = make()
    x, source = torch.randn(1, 8, 4, 4).double(), torch.randn(1, 8, 7, 5).double()
    torch.testing.assert_close(module(x, source)[0], reference(module, x[0], source[0]))


def test_gradients_are_right():
    module = make(channels=4, heads=2, groups=2, size=(3, 3))
    x = torch.randn(1, 4, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, x)
    parameters = dict(module.named_parameters())

    def by_parameters(*values):
        state = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(module, state, (x.detach(),))

    assert torch.autograd.gradcheck(by_parameters, tuple(parameters.values()))


def test_a_new_module_samples_the_centres_of_its_cells():
    module = DeformableAttention(
        4, heads=1, groups=1, stride=2, kernel=3, size=(4, 4), centred=True
    )
    x = torch.zeros(1, 4, 4, 4)
    x[0, 0] = torch.arange(16.0).reshape(4, 4)
    _, inspection = module.inspect(x)
    assert inspection.points[0, 0].tolist() == [[-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5], [0.5, 0.5]]
    assert not inspection.offsets.any()
    with (
        torch.no_grad()
    ):  # the value of a point is the mean of the four places that it lies between
        for layer in (module.value, module.out):
            layer.weight.copy_(torch.eye(4)[:, :, None, None])
            layer.bias.zero_()
        module.query.weight.zero_()
        module.query.bias.zero_()
        module.bias.fill_(-1e9)
        module.bias[0, 3, 3] = 0  # the table's middle: no distance at all
    table = module.bias[0]
    assert table.shape == (7, 7)
    weights = module.inspect(x)[1].attention[0, 0]  # (16, 4), far from each other: nearest wins
    assert weights.argmax(1).reshape(4, 4).tolist() == [[0, 0, 1, 1]] * 2 + [[2, 2, 3, 3]] * 2


@pytest.mark.parametrize("side", [5, 9])
def test_the_table_of_distances_is_resized_with_the_map(side):
    module = make(channels=4, heads=2, groups=1, stride=1, size=(5, 5), moved=0.0)
    points = module.inspect(torch.zeros(1, 4, side, side).double())[1].points
    found = module._distance_bias(points, side, side)[0]  # (2, side ** 2, side ** 2)
    table = interpolate(
        module.bias[None], (2 * side - 1,) * 2, mode="bilinear", align_corners=True
    )[0]
    rows, columns = torch.arange(side**2) // side, torch.arange(side**2) % side
    dy, dx = rows[:, None] - rows, columns[:, None] - columns
    torch.testing.assert_close(found, table[:, dy + side - 1, dx + side - 1])


def test_without_residual_the_map_is_replaced():
    with_, without = make(residual=True), make(residual=False)
    x = torch.randn(1, 8, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(with_(x) - x, without(x))


@pytest.mark.parametrize("shape", [(6, 5), (1, 1)])
def test_cbam_is_its_equations(shape):
    torch.manual_seed(0)
    module = CBAM(8, reduction=4).double()
    x = torch.randn(2, 8, *shape, dtype=torch.float64, requires_grad=True)
    perceptron, kernel = module.channel, module.place.weight[0]  # (2, 7, 7)
    expected = torch.zeros_like(x)
    for b in range(2):
        places = x[b].flatten(1)
        mean = torch.stack([row.sum() / len(row) for row in places])
        most = torch.stack([row.max() for row in places])
        refined = x[b] * torch.sigmoid(perceptron(mean) + perceptron(most))[:, None, None]
        for i in range(shape[0]):
            for j in range(shape[1]):
                logit = module.place.bias[0]
                for u in range(-3, 4):
                    for v in range(-3, 4):
                        if 0 <= i + u < shape[0] and 0 <= j + v < shape[1]:
                            column = refined[:, i + u, j + v]
                            logit = logit + kernel[0, u + 3, v + 3] * column.sum() / 8
                            logit = logit + kernel[1, u + 3, v + 3] * column.max()
                expected[b, :, i, j] = refined[:, i, j] * torch.sigmoid(logit)
    torch.testing.assert_close(module(x), expected)
    assert torch.autograd.gradcheck(module, x)


# -- in an encoder ---------------------------------------------------------------------------------


def test_resnet50_has_the_papers_two_modules():
    encoder = build_encoder("resnet50", 3, attention="rda")
    third, fourth = (getattr(encoder.backbone, name).attention for name in ("layer3", "layer4"))
    assert (third.heads, third.groups, third.stride) == (8, 4, 2)
    assert (fourth.heads, fourth.groups, fourth.stride) == (16, 8, 1)
    assert third.offset[0].kernel_size == (5, 5) and fourth.offset[0].kernel_size == (3, 3)
    assert third.bias.shape == (8, 27, 27) and fourth.bias.shape == (16, 13, 13)
    count = [sum(p.numel() for p in m.parameters()) / 1e6 for m in (third, fourth)]
    assert [round(c, 2) for c in count] == [4.21, 16.79]
    _, inspection = third.inspect(torch.zeros(1, 1024, 14, 14))
    assert inspection.points.shape == (1, 4, 49, 2)
    assert (
        third.residual
        and not build_encoder("resnet18", 3, attention="da").backbone.layer4.attention.residual
    )


def test_the_geometry_is_a_choice_that_a_file_names(tmp_path):
    modality, x = Modality.preset("rgb"), torch.rand(1, 3, 96, 64)
    encoder = build_encoder("test_resnet", modality, attention="rda").eval()
    stage = encoder.backbone.layer4.attention
    assert not stage.centred and stage.offset[-1].weight.any()  # DAT leaves torch's own start
    for name in ("da", "cross_da", "rda_official"):
        assert not build_encoder("test_resnet", 3, attention=name).backbone.layer4.attention.centred
    ours = build_encoder("test_resnet", modality, attention="rda", geometry="centred").eval()
    assert not ours.backbone.layer4.attention.offset[-1].weight.any()
    ours.load_state_dict(encoder.state_dict())
    assert not torch.allclose(ours(x), encoder(x), atol=1e-5)
    for which in (encoder, ours):
        path = save_encoder(which, tmp_path / "e.safetensors")
        assert torch.equal(load_encoder(path)(x), which(x))
    # version 0.1 wrote no geometry, and had the centred one
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["decur"])
    assert header["options"].pop("geometry") == "centred"
    save_file(ours.state_dict(), path, metadata={"decur": json.dumps(header)})
    assert torch.equal(load_encoder(path)(x), ours(x))
    inside = {"encoder": "test_resnet", "options": header["options"], "part": [0, 1]}
    whole = {**header, "encoder": "projected", "options": inside}
    assert EncoderHeader.check(path, whole).options["options"]["geometry"] == "centred"
    plain = {**header, "options": {"attention": {"layer4": "cbam"}}}
    assert "geometry" not in EncoderHeader.check(path, plain).options


@pytest.mark.parametrize("name", ATTENTIONS.names())
@pytest.mark.parametrize(
    "backbone", [pytest.param("resnet18", marks=pytest.mark.slow), "test_resnet"]
)
def test_every_attention_serves_any_size_and_survives_a_file(name, backbone, tmp_path):
    modality = Modality.preset("rgb")
    encoder = build_encoder(backbone, modality, attention=name).eval()
    for side in (64, (97, 130), 224):
        x = torch.rand(1, 3, *((side, side) if isinstance(side, int) else side))
        maps = encoder.forward_features(x)
        assert [m.shape[1] for m in maps] == encoder.channels
        torch.testing.assert_close(encoder(x), maps[-1].mean((2, 3)))
    with torch.autocast("cpu", torch.bfloat16):
        rough = encoder(x)
    torch.testing.assert_close(rough.float(), encoder(x), atol=0.05, rtol=0.1)
    again = load_encoder(save_encoder(encoder, tmp_path / "e.safetensors"))
    assert torch.equal(again(x), encoder(x))
    assert again.options["attention"] == {"layer3": name, "layer4": name}
    encoder.train()(x.repeat(2, 1, 1, 1)).square().sum().backward()
    own = {k: p for k, p in encoder.named_parameters() if "attention" in k}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in own.values())


def test_the_backbones_weights_keep_their_names():
    plain = build_encoder("resnet18", 3)
    encoder = build_encoder("resnet18", 3, attention={"layer2": "cbam"})
    missing = encoder.load_state_dict(plain.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert all(".layer2.attention." in f".{key}" for key in missing.missing_keys)
    x = torch.rand(2, 3, 64, 64)
    before, after = plain.eval().forward_features(x), encoder.eval().forward_features(x)
    assert torch.equal(before[1], after[1]) and not torch.equal(before[2], after[2])


def test_attention_that_cannot_be_is_refused_in_words():
    for name, attention, words in (
        ("resnet18", "rdaa", "no attention 'rdaa'; did you mean rda"),
        ("resnet18", {"layer5": "rda"}, "no stage 'layer5'.*layer1, layer2, layer3, layer4"),
        ("resnet18", {"act1": "rda"}, "no stage 'act1'"),
        ("vit_tiny_patch16_224", "rda", "no stages that an attention could follow"),
        ("alexnet", "rda", "alexnet"),
        ("mlp", "rda", "mlp"),
    ):
        with pytest.raises(ConfigError, match=words):
            build_encoder(name, 3, attention=attention)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(7, 5), (1, 1)])
def test_gathers_read_what_grid_sample_reads(align_corners, size):
    maps, points = torch.randn(3, 4, *size), 3 * torch.rand(3, 6, 2, 2) - 1.5  # some outside
    points[0, 0] = torch.tensor([[-1.0, 1.0], [1.0, -1.0]])
    expected = torch.nn.functional.grid_sample(
        maps, points, padding_mode="border", align_corners=align_corners
    )
    found = gathered(maps, points, align_corners=align_corners)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
