"""Weights of others: each key where it belongs, the same numbers, and no guesses."""

import argparse
import json
import re

import pytest
import timm
import torch
import torchvision
from torch.nn.functional import conv2d, gelu, grid_sample, layer_norm

from decur import Modality
from decur.cli import main
from decur.data.base import change_modalities
from decur.encoders import build_encoder, load_encoder
from decur.encoders.imagenet import IMAGENET
from decur.errors import ConfigError, DataError
from decur.exchange.importing import import_weights
from decur.runs import RunFolder
from decur.transfer.sources import gather_encoders

S1, S2 = Modality.preset("sentinel1"), Modality.preset("sentinel2-l1c")


def resnet(bands, seed, name="resnet18"):
    """A torchvision ResNet without a classifier whose every number matters."""
    torch.manual_seed(seed)
    with torch.device("meta"):  # which is not filled with numbers that nobody needs
        model = getattr(torchvision.models, name)()
        model.conv1 = torch.nn.Conv2d(bands, 64, 7, 2, 3, bias=False)
        model.fc = torch.nn.Identity()
    model.to_empty(device="cpu")
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.num_batches_tracked.zero_()
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(std=0.1)
        elif isinstance(module, torch.nn.Conv2d):
            module.weight.data.normal_(std=module.weight[0].numel() ** -0.5)
    return model.eval()


def attention_keys(channels, heads, groups, kernel, side):
    """Names and shapes of one attention module of the authors."""
    width = channels // groups
    projections = {
        f"proj_{p}.{w}": shape
        for p in ("q", "k", "v", "out")
        for w, shape in (("weight", (channels, channels, 1, 1)), ("bias", (channels,)))
    }
    return projections | {
        "conv_offset.0.weight": (width, 1, kernel, kernel),
        "conv_offset.0.bias": (width,),
        "conv_offset.1.norm.weight": (width,),
        "conv_offset.1.norm.bias": (width,),
        "conv_offset.3.weight": (2, width, 1, 1),
        "rpe_table": (heads, 2 * side - 1, 2 * side - 1),
    }


SMALL = {3: (256, 2, 1, 5, 14), 4: (512, 4, 2, 3, 7)}  # as large as a ResNet-18's maps
LARGE = {3: (1024, 8, 4, 5, 14), 4: (2048, 16, 8, 3, 7)}  # a ResNet-50's, as released


def attention(number, shapes=SMALL):
    torch.manual_seed(10 + number)
    return {
        f"da{number}_l{layer}.{key}": torch.randn(shape) * 0.05
        for layer, given in shapes.items()
        for key, shape in attention_keys(*given).items()
    }


def joint(bands=(2, 13), rda=False):
    """A checkpoint of the authors, as they save it."""
    models = [resnet(n, i) for i, n in enumerate(bands)]
    state = {}
    for i, model in enumerate(models, 1):
        state |= {f"module.backbone_{i}.{k}": v for k, v in model.state_dict().items()}
        state |= {f"module.projector{i}.0.weight": torch.zeros(8, 512)}
        if rda:
            state |= {f"module.{k}": v for k, v in attention(i).items()}
    state |= {f"module.bn.{k}": torch.zeros(8) for k in ("running_mean", "running_var")}
    state["module.bn.num_batches_tracked"] = torch.tensor(0)
    return models, state


def attend(keys, x, shape, stride):
    """The authors' geometry in one expression a step; x (B, C, H, W)."""
    channels, heads, groups, kernel, _ = shape
    batch, _, height, width = x.shape
    project = lambda p, t: conv2d(t, keys[f"proj_{p}.weight"], keys[f"proj_{p}.bias"])  # noqa: E731
    part = channels // groups
    query = project("q", x)
    o = conv2d(
        query.reshape(-1, part, height, width),
        *(keys["conv_offset.0.weight"], keys["conv_offset.0.bias"]),
        stride=stride,
        padding=kernel // 2,
        groups=part,
    ).permute(0, 2, 3, 1)
    norm = keys["conv_offset.1.norm.weight"], keys["conv_offset.1.norm.bias"]
    o = gelu(layer_norm(o, (part,), *norm)) @ keys["conv_offset.3.weight"][:, :, 0, 0].T
    rows, columns = o.shape[1:3]
    y = ((torch.arange(rows) + 0.5) / (rows - 1) * 2 - 1)[:, None].expand(rows, columns)
    x_ = ((torch.arange(columns) + 0.5) / (columns - 1) * 2 - 1).expand(rows, columns)
    points = torch.stack([(x_ + o[..., 1]).clamp(-1, 1), (y + o[..., 0]).clamp(-1, 1)], -1)
    sampled = grid_sample(x.reshape(-1, part, height, width), points, align_corners=True)
    sampled = sampled.reshape(batch, channels, 1, -1)
    split = lambda t: t.reshape(batch, heads, channels // heads, -1)  # noqa: E731
    q, k, v = split(query), split(project("k", sampled)), split(project("v", sampled))
    places = torch.stack(
        torch.meshgrid(torch.linspace(-1, 1, width), torch.linspace(-1, 1, height), indexing="xy"),
        -1,
    )
    apart = (places.reshape(1, -1, 1, 2) - points.reshape(len(points), 1, -1, 2)) / 2
    table = keys["rpe_table"].reshape(groups, heads // groups, *keys["rpe_table"].shape[1:])
    bias = grid_sample(table.repeat(batch, 1, 1, 1), apart, align_corners=True)
    logits = torch.einsum("bhcm,bhcn->bhmn", q, k) / (channels // heads) ** 0.5
    weights = (logits + bias.reshape(logits.shape)).softmax(-1)
    return project("out", torch.einsum("bhmn,bhcn->bhcm", weights, v).reshape(x.shape))


def with_attention(model, keys, prefix, x):
    """A torchvision ResNet with the authors' attention behind its last two stages."""
    own = lambda n: {  # noqa: E731
        k.removeprefix(f"{prefix}_l{n}."): v
        for k, v in keys.items()
        if k.startswith(f"{prefix}_l{n}.")
    }
    x = model.maxpool(model.relu(model.bn1(model.conv1(x))))
    x = model.layer3(model.layer2(model.layer1(x)))
    x = x + attend(own(3), x, SMALL[3], 2)
    x = model.layer4(x)
    x = x + attend(own(4), x, SMALL[4], 1)
    return model.avgpool(x).flatten(1)


@pytest.fixture
def write(tmp_path):
    def write(state, name="weights.pth"):
        torch.save(state, tmp_path / name)
        return tmp_path / name

    return write


@torch.no_grad()
def same(encoder, expected, bands, side=64):
    x = torch.rand(2, bands, side, side)
    torch.testing.assert_close(encoder(x), expected(x), rtol=1e-4, atol=1e-5)


# -- the authors' checkpoints ----------------------------------------------------------------------


def test_a_joint_checkpoint_becomes_two_encoders(write, tmp_path):
    models, state = joint()
    file = write({"epoch": 99, "model": state, "optimizer": {"state": {}}})
    found = import_weights(file, tmp_path / "out")
    assert RunFolder(tmp_path / "out").saved_encoders() == found
    for path, name, seen, model in zip(found, ("s1", "s2"), (S1, S2), models, strict=True):
        encoder = load_encoder(path)
        assert path.stem == encoder.modality.name == name and encoder.name == "resnet18"
        # their code cuts no outliers
        assert encoder.modality == seen.with_(name=name, cut=0.0)
        same(encoder, model, seen.channels)


def test_both_encoders_get_the_attention_that_both_were_trained_with(write, tmp_path):
    models, state = joint(rda=True)
    file = write(state)
    with pytest.raises(ConfigError, match=r"weights\.pth.*--compat official"):
        import_weights(file, tmp_path)
    found = import_weights(file, tmp_path, compat="official")
    for path, model, bands in zip(found, models, (2, 13), strict=True):
        encoder = load_encoder(path)
        assert encoder.options["attention"] == {"layer3": "rda_official", "layer4": "rda_official"}
        same(encoder, lambda x, m=model: with_attention(m, attention(1), "da1", x), bands, 96)


def test_a_backbone_with_attention_is_taken_as_it_is(write, tmp_path, caplog):
    model = resnet(13, 0)
    state = {f"backbone.{k}": v for k, v in model.state_dict().items()} | attention(2)
    (path,) = import_weights(write(state), tmp_path, compat="official")
    assert "da2 was never trained" in caplog.text
    same(load_encoder(path), lambda x: with_attention(model, attention(2), "da2", x), 13, 96)


def test_the_released_shapes_fit(write, tmp_path):
    with torch.device("meta"):
        backbone = resnet(2, 0, "resnet50").state_dict()
        state = {f"backbone.{k}": v for k, v in backbone.items()} | attention(1, LARGE)
    blank = {k: torch.zeros((), dtype=v.dtype).expand(v.shape) for k, v in state.items()}
    (path,) = import_weights(write(blank), tmp_path, layout="decur", compat="official")
    encoder = load_encoder(path)
    assert encoder.name == "resnet50" and encoder.modality.name == "s1"
    stages = [encoder.backbone.layer3.attention, encoder.backbone.layer4.attention]
    sizes = [sum(p.numel() for p in stage.parameters()) / 1e6 for stage in stages]
    assert [round(size, 2) for size in sizes] == [4.21, 16.79] and stages[0].heads == 8


@torch.no_grad()
def test_bigearthnet_takes_them_as_its_recipe_scales_it(write, tmp_path):
    as_recipe = {"s1": "sentinel1", "s2": "sentinel2-l1c"}
    models, state = joint()
    import_weights(write(state), tmp_path / "out", modalities=as_recipe)
    twelve = Modality.preset("sentinel2-l2a")  # without B10
    known = {"s1": S1.with_(name="s1", mean=(0, 0), size=(120, 120)), "s2": twelve}
    data = change_modalities(known, as_recipe)
    found = gather_encoders(str(tmp_path / "out"), data, missing_bands="empty")
    x = torch.rand(2, 12, 64, 64)
    inserted = torch.cat([x[:, :10], torch.zeros_like(x[:, :1]), x[:, 10:]], 1)  # B10
    torch.testing.assert_close(found["s2"](x), models[1](inserted), rtol=1e-4, atol=1e-5)
    same(found["s1"], models[0], 2)


def test_three_equal_bands_become_one(write, tmp_path):
    models, state = joint(bands=(3, 3))
    file, given = write(state), {"rgb": "rgb", "dem": "dem"}
    with pytest.raises(ConfigError, match="bands, which do not tell their sensors"):
        import_weights(file, tmp_path)
    with pytest.raises(ConfigError, match=r"'dem' has 1 bands.*--compat official"):
        import_weights(file, tmp_path, modalities=given)
    rgb, dem = import_weights(file, tmp_path, modalities=given, compat="official")
    same(load_encoder(rgb), lambda x: models[0](x.flip(1)), 3)
    same(load_encoder(dem), lambda x: models[1](x.expand(-1, 3, -1, -1)), 1)


def test_the_authors_photographs_were_blue_green_red(write, tmp_path, caplog):
    """Their data sets hand on what `cv2.imread` gives, so their first input is blue."""
    models, state = joint(bands=(3, 3))
    three = {**Modality.preset("dem").to_dict(), "bands": ["a1", "a2", "a3"]}
    given = {"rgb": "rgb", "dem": three}
    rgb, dem = import_weights(write(state), tmp_path, modalities=given)
    same(load_encoder(rgb), lambda x: models[0](x.flip(1)), 3)
    same(load_encoder(dem), models[1], 3)  # equal bands have no order
    # whoever hands on pictures as theirs are says so by the names of the bands
    blue_first = {**Modality.preset("rgb").to_dict(), "bands": ["blue", "green", "red"]}
    bgr, hha = import_weights(
        write(state), tmp_path, modalities={"bgr": blue_first, "hha": "hha"}, normalised="imagenet"
    )
    file = Modality.preset("rgb").with_(bands=("blue", "green", "red"), name="bgr")
    assert load_encoder(bgr).modality == file
    # ImageNet's normalisation goes by place in the file, and is folded before the turn
    mean, std = (torch.tensor(v)[:, None, None] for v in IMAGENET)
    x = torch.rand(2, 3, 64, 64)
    inner = (..., slice(2, -2), slice(2, -2))  # what no padding of the first layer touches
    for path, model, seen in ((bgr, models[0], x), (hha, models[1], x.flip(1))):
        theirs = model.relu(model.bn1(model.conv1((seen - mean) / std)))
        found = load_encoder(path).eval().forward_features(x)[0]
        torch.testing.assert_close(found[inner], theirs[inner], rtol=1e-4, atol=1e-5)
    # one backbone by itself has a plain ResNet's keys: the user says whose it is
    file = write(models[0].state_dict(), "rn50_geonrw_rgb_decur_ep100.pth")
    (path,) = import_weights(file, tmp_path / "plain")
    assert "--compat official" in caplog.text
    same(load_encoder(path), models[0], 3)
    (path,) = import_weights(file, tmp_path / "theirs", compat="official")
    same(load_encoder(path), lambda x: models[0](x.flip(1)), 3)


# -- plain weights ---------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["auto", "torchgeo", "resnet"])
def test_torchgeos_weights(layout, write, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("resnet18", in_chans=13, num_classes=0).eval()
    state = {k: v for k, v in model.state_dict().items() if "num_batches" not in k}
    (path,) = import_weights(write(state), tmp_path, layout=layout)
    assert load_encoder(path).modality == S2.with_(name="s2")
    same(load_encoder(path), model, 13)


@torch.no_grad()
def test_imagenets_normalisation_is_folded(write, tmp_path):
    model = resnet(3, 0)
    file = write({**model.state_dict(), "fc.weight": torch.zeros(1000, 512)})
    (path,) = import_weights(file, tmp_path)
    encoder = load_encoder(path)
    assert encoder.modality == Modality.preset("rgb")
    x = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(v)[:, None, None] for v in IMAGENET)
    expected = model.relu(model.bn1(model.conv1((x - mean) / std)))
    first = encoder.forward_features(x)[0]
    inner = slice(2, -2)  # what no padding of the first convolution touches
    torch.testing.assert_close(
        first[..., inner, inner], expected[..., inner, inner], rtol=1e-4, atol=1e-5
    )
    (path,) = import_weights(file, tmp_path, normalised="none")
    same(load_encoder(path), model, 3)
    # as many classes as none of ImageNet's: pictures in [0, 1], as far as anybody knows
    (path,) = import_weights(write(model.state_dict()), tmp_path)
    same(load_encoder(path), model, 3)


@torch.no_grad()
@pytest.mark.parametrize(
    ("normalised", "values"), [("imagenet", IMAGENET), ("half", ((0.5,) * 3, (0.5,) * 3))]
)
def test_a_vit_and_its_normalisation(normalised, values, write, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=1000).eval()
    file = write(model.state_dict())
    with pytest.raises(ConfigError, match=r"--normalised: .* imagenet .* half .* none"):
        import_weights(file, tmp_path, layout="vit")  # both kinds have the same keys
    (path,) = import_weights(file, tmp_path, layout="vit", normalised=normalised)
    mean, std = (torch.tensor(v)[:, None, None] for v in values)
    model.reset_classifier(0)
    same(load_encoder(path), lambda x: model((x - mean) / std), 3, 224)  # patches have no padding


@torch.no_grad()
def test_mit_as_released_and_as_the_authors_train_it(write, tmp_path):
    torch.manual_seed(0)
    models = [build_encoder("mit_b0", 3).eval() for _ in range(2)]
    released = {**models[0].state_dict(), "head.weight": torch.zeros(1000, 256)}
    (path,) = import_weights(write(released), tmp_path, normalised="none", layout="mit")
    assert load_encoder(path).name == "mit_b0"
    same(load_encoder(path), models[0], 3)
    state = {
        f"module.backbone_{i}.{k}": v
        for i, model in enumerate(models, 1)
        for k, v in {**model.state_dict(), "head.bias": torch.zeros(2048)}.items()
    }
    given = {"rgb": "rgb", "hha": "hha"}
    found = import_weights(write(state), tmp_path, modalities=given)
    x = torch.rand(1, 3, 64, 64)
    mean, std = (torch.tensor(v)[:, None, None] for v in IMAGENET)
    for path, model in zip(found, models, strict=True):
        theirs, ours = model.patch_embed1.proj, load_encoder(path).patch_embed1.proj
        expected = theirs((x.flip(1) - mean) / std)[..., 1:-1, 1:-1]
        torch.testing.assert_close(ours(x)[..., 1:-1, 1:-1], expected, rtol=1e-4, atol=1e-4)


# -- what is refused -------------------------------------------------------------------------------


def changed(**changes):
    state = resnet(2, 0).state_dict() | changes
    return {k: v for k, v in state.items() if v is not None}


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (lambda: changed(extra=torch.zeros(1)), "no resnet18; names that match nothing: extra"),
        (
            lambda: changed(**{"layer2.0.bn1.bias": torch.zeros(3)}),
            r"shapes that differ: layer2\.0\.bn1\.bias \(3,\) for \(128,\)",
        ),
        (lambda: changed(**{"bn1.weight": None}), "names that are missing: bn1.weight"),
        (
            lambda: {k: v for k, v in joint()[1].items() if "backbone_2" not in k},
            "backbone_1 but no backbone_2",
        ),
        (
            lambda: joint()[1] | {f"module.queue{i}": torch.zeros(1) for i in range(7)},
            r"match nothing: module\.queue0, .*module\.queue4 and 2 more",
        ),
        (
            lambda: {"backbone.conv1.weight": torch.zeros(1)} | attention(1) | attention(2),
            r"match nothing: da2_l3\.proj_q\.weight, ",
        ),
        (lambda: changed(**{"conv1.weight": torch.full((1,), torch.nan)}), "weight is not finite"),
        (lambda: {"a": 3}, "a are no tensors"),
        (lambda: [1, 2], "no state dict"),
        (lambda: argparse.Namespace(a=1), "no file of plain tensors .*UnpicklingError"),
        (lambda: {"lone.weight": torch.zeros(2)}, "neither ResNet, ViT nor MiT"),
        (
            lambda: {k: v for k, v in resnet(2, 0).state_dict().items() if "layer3.1" not in k},
            "a resnet of unknown width or depth",
        ),
    ],
)
def test_files_that_fit_nothing_end_it_in_one_line(state, said, write, tmp_path):
    with pytest.raises(DataError, match=said) as caught:
        import_weights(write(state()), tmp_path / "out")
    assert "\n" not in str(caught.value) and "weights.pth" in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layout": "mit"}, "not of layout 'mit', its keys are those of 'resnet'"),
        ({"modalities": {"a": "rgb"}}, "'a' has 3 bands, the encoder of .* takes 2"),
        ({"modalities": {"a": "rgb", "b": "rgb"}}, "holds 1 encoders .*2 modalities are given"),
        ({"normalised": "imagenet"}, "2 bands, ImageNet's"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, said, write, tmp_path):
    with pytest.raises(ConfigError, match=said):
        import_weights(write(changed()), tmp_path / "out", **options)
    with pytest.raises(DataError, match="no such file"):
        import_weights(tmp_path / "nothing.pth", tmp_path, **options)


def test_names_that_a_wrapper_has_put_before_all_others_are_left_out(write, tmp_path):
    state = resnet(2, 0).state_dict()
    plain, wrapped = (
        load_encoder(import_weights(write(given), tmp_path / str(number))[0])
        for number, given in enumerate((state, {f"model.module.{k}": v for k, v in state.items()}))
    )
    x = torch.rand(1, 2, 32, 32)
    assert torch.equal(plain(x), wrapped(x))


def test_files_and_runs_of_decur_are_left_alone(write, tmp_path):
    file = write(changed())
    (own,) = import_weights(file, tmp_path / "own")
    with pytest.raises(ConfigError, match="is an encoder file of decur's already"):
        import_weights(own, tmp_path / "again")
    (tmp_path / "own" / "config.yaml").touch()
    with pytest.raises(ConfigError, match="own: holds a run; choose another folder"):
        import_weights(file, tmp_path / "own")


def test_a_place_that_cannot_be_written_is_refused(write, tmp_path):
    file, out = write(changed()), tmp_path / "file"
    out.write_text("mine")
    s1 = re.escape(str(out / "encoders" / "s1.safetensors"))
    with pytest.raises(ConfigError, match=rf"^--out {s1}: cannot be written \(.+\).* choose an"):
        import_weights(file, out)
    (tmp_path / "out" / "encoders" / "s1.safetensors").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"s1\.safetensors: cannot be written \(Is a directory\)"):
        import_weights(file, tmp_path / "out")


def test_the_command(write, tmp_path, capsys):
    file, fields = write(changed()), tmp_path / "fields.json"
    fields.write_text(json.dumps({**S1.to_dict(), "cut": 1.0}))
    out = str(tmp_path / "out")
    main(["import", str(file), "--out", out, "--modality", f"sar={fields}"])
    assert "encoders/sar.safetensors" in capsys.readouterr().out
    encoder = load_encoder(tmp_path / "out" / "encoders" / "sar.safetensors")
    assert encoder.modality == S1.with_(name="sar", cut=1.0)
    for wrong, said in (
        (["--modality", "sentinel1"], "not NAME=PRESET"),
        (["--modality", "a=sentinel9"], "no modality preset 'sentinel9'"),
        (["--modality", "a=rgb", "a=rgb"], "given twice"),
        (["--compat", "other"], "compat"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["import", str(file), "--out", out, *wrong])
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and re.search(said, error) and error.count("\n") == 1
