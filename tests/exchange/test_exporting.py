"""Encoders for other programs: the same numbers there, and what the input has to be."""

import json
from pathlib import Path

import onnx
import onnxruntime
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from decur import Modality
from decur.cli import main
from decur.encoders import build_encoder, load_encoder, save_encoder
from decur.errors import ConfigError
from decur.exchange.exporting import export_encoder
from decur.exchange.importing import import_weights

S1, RGB = Modality.preset("sentinel1"), Modality.preset("rgb")


@pytest.fixture
def make(tmp_path):
    """An encoder whose every number matters, and its file."""

    def make(name="test_resnet", modality=S1, **options):
        torch.manual_seed(0)
        encoder = build_encoder(name, modality, **options)
        for key, value in encoder.named_parameters():
            if key.endswith("offset.3.weight"):
                torch.nn.init.normal_(value, std=0.5)
        encoder(torch.rand(8, modality.channels, 64, 64))
        return encoder.eval(), save_encoder(encoder, tmp_path / "encoder.safetensors")

    return make


def raw(*shape):
    """Radar in dB, one image with nothing measured in a corner."""
    x = torch.randn(shape) * 6 - 15
    x[0, :, :8, :9] = torch.nan
    return x


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["grid", "gather"])
def test_deformable_attention_is_sampled_as_asked_with_a_warning(sampling, make, tmp_path, caplog):
    encoder, file = make(attention={"layer4": "rda"})
    out = tmp_path / "out.onnx"
    export_encoder(file, out, format="onnx", sampling=sampling, size=(64, 64))
    operations = {node.op_type for node in onnx.load(out).graph.node}
    assert ("GridSample" in operations) is (sampling == "grid")
    assert ("TensorRT" in caplog.text) is (sampling == "grid")
    assert ("polygraphy run" in caplog.text) is (sampling == "grid")
    x = torch.rand(2, 2, 64, 64)
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": x.numpy()})
    expected = encoder(x)
    assert (torch.from_numpy(found) - expected).abs().max() <= 1e-5 * expected.abs().max()


# -- state dicts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["timm", "torchgeo"])
def test_a_resnet50_loads_into_plain_timm(format, make, tmp_path):
    encoder, file = make("resnet50")
    out = tmp_path / ("plain.safetensors" if format == "timm" else "plain.pth")
    written = export_encoder(file, out, format=format)
    state = load_file(out) if format == "timm" else torch.load(out, weights_only=True)
    plain = timm.create_model("resnet50", in_chans=2, num_classes=0).eval()
    plain.load_state_dict(state, strict=True)
    x = torch.rand(1, 2, 64, 64)
    assert torch.equal(plain(x), encoder(x))
    about = json.loads(written[1].read_text())
    assert written[1].name == f"{out.name}.json" and about["encoder"] == "resnet50"
    assert Modality.from_dict(about["modality"]) == S1 and "[0, 1]" in about["input"]
    if format == "timm":
        with safe_open(out, "pt") as opened:
            assert json.loads(opened.metadata()["decur.export"]) == about


@pytest.mark.parametrize("name", ["plain.safetensors", "plain.pth"])
def test_what_was_exported_comes_back_with_its_sensor(name, make, tmp_path):
    sensor = Modality("camera", bands=("a", "b", "c", "d"), scaling="image")
    means = {"mean": [0.1, 0.2, 0.3, 0.4], "std": [0.5, 0.6, 0.7, 0.8]}
    encoder, file = make("resnet18", sensor, normalisation=means)
    out, note = export_encoder(file, tmp_path / "elsewhere" / name, format="timm")
    if name.endswith(".safetensors"):
        note.unlink()  # the file says it, too
    (back,) = import_weights(out, tmp_path / "back")
    again = load_encoder(back)
    assert again.modality == sensor
    x = torch.rand(2, 4, 32, 32)
    assert torch.equal(again(x), encoder(x))


@pytest.mark.parametrize(
    ("encoder", "options", "format", "said"),
    [
        ("test_resnet", {"attention": "rda"}, "timm", "timm has no such attention"),
        ("alexnet", {}, "timm", "timm has no such encoder 'alexnet'; take onnx or torch"),
        ("mit_b0", {}, "torchgeo", "torchgeo has no such encoder 'mit_b0'"),
        ("test_resnet", {}, "torchgeo", "no encoder 'test_resnet', but resnet18"),
    ],
)
def test_what_others_do_not_have_is_refused(encoder, options, format, said, make, tmp_path):
    out = tmp_path / "out.pth"
    with pytest.raises(ConfigError, match=said):
        export_encoder(make(encoder, RGB, **options)[1], out, format=format)
    assert not out.exists() and not out.with_name("out.pth.json").exists()


@pytest.mark.parametrize("name", ["out.pth", "out.safetensors", "out.pt2"])
def test_a_place_that_cannot_be_written_is_refused(name, make, tmp_path, monkeypatch):
    _, file = make()
    monkeypatch.setattr("decur.exchange.exporting._trace", lambda *a: None)  # takes seconds
    format = "torch" if name.endswith(".pt2") else "timm"
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file" / name, Path("/proc", name)):
        with pytest.raises(ConfigError, match=rf"^--out {out}: cannot be written \(.+\); .*choose"):
            export_encoder(file, out, format=format)
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=f"^--out {tmp_path / name}: is a folder"):
        export_encoder(file, tmp_path / name, format=format)


# -- graphs ----------------------------------------------------------------------------------------


def run_onnx(out, x):
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    (vectors,) = session.run(["vector"], {"image": x.numpy()})
    return torch.from_numpy(vectors)


def run_torch(out, x):
    return torch.export.load(out).module()(x)


def assert_says_what_it_takes(out, modality):
    """The graph's input, its metadata, and that nothing else was left."""
    model = onnx.load(out)
    onnx.checker.check_model(model)
    dimensions = [
        d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim
    ]
    assert dimensions == ["batch", 2, "height", "width"]
    about = {p.key: p.value for p in model.metadata_props}["decur.export"]
    assert Modality.from_dict(json.loads(about)["modality"]) == modality
    assert sorted(p.name for p in out.parent.iterdir()) == [
        *("encoder.onnx", "encoder.onnx.json", "encoder.safetensors"),
    ]


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("test_vit", {}),
        ("test_resnet", {}),
        ("resnet18", {"attention": "rda"}),
        ("resnet18", {"attention": "rda_official"}),
        ("mit_b0", {}),
    ],
)
def test_onnx_takes_any_batch_and_size(name, options, make, tmp_path):
    encoder, file = make(name, **options)
    out = tmp_path / "encoder.onnx"
    export_encoder(file, out, format="onnx")
    step = 16 if name == "test_vit" else 10  # a ViT takes whole patches, here and there
    for batch, height, width in ((1, 4 * step + 48, 64), (4, 8 * step, 6 * step)):
        height -= height % 16 if name == "test_vit" else 0
        x = torch.rand(batch, 2, height, width)
        torch.testing.assert_close(run_onnx(out, x), encoder(x), rtol=1e-4, atol=1e-4)
    assert_says_what_it_takes(out, S1)


ATTENDED = {"attention": {"layer4": "rda"}}
FOR_ONNX, FOR_TORCH = ((1, 2, 64, 96), (3, 2, 72, 50)), ((1, 2, 64, 96), (3, 2, 128, 64))


@torch.no_grad()
@pytest.mark.parametrize(
    ("run", "cut", "options", "shapes"),
    [
        (run_onnx, 0.0, {}, FOR_ONNX),
        pytest.param(run_torch, 2.0, {}, FOR_TORCH, marks=pytest.mark.slow),
        pytest.param(run_onnx, 0.0, ATTENDED, FOR_ONNX, marks=pytest.mark.slow),
        pytest.param(run_torch, 2.0, ATTENDED, FOR_TORCH, marks=pytest.mark.slow),
    ],
)
def test_scaling_goes_into_the_graph(run, cut, options, shapes, make, tmp_path):
    modality = S1.with_(cut=cut, nodata=(-50.0, -60.0))
    encoder, file = make(modality=modality, **options)
    format, out = ("torch", "encoder.pt2") if run is run_torch else ("onnx", "encoder.onnx")
    written = export_encoder(file, tmp_path / out, format=format, scaling=True)
    for shape in shapes:
        x = raw(*shape)
        x[:, 0, 20:30] = -50
        expected = encoder(modality.scale(x))
        torch.testing.assert_close(run(tmp_path / out, x), expected, rtol=1e-4, atol=1e-4)
    assert json.loads(written[1].read_text())["input"] == "raw values"
    if run is run_onnx:
        assert_says_what_it_takes(tmp_path / out, modality)


@pytest.mark.parametrize("modality", [S1, Modality.preset("dem")])
def test_percentiles_stay_out_of_onnx(modality, make, tmp_path):
    out = tmp_path / "encoder.onnx"
    with pytest.raises(ConfigError, match=r"cut at percentiles.*take --format torch"):
        export_encoder(make(modality=modality)[1], out, format="onnx", scaling=True)


@pytest.mark.slow  # with scaling it is tried above, without it in ONNX
@torch.no_grad()
def test_torch_export_takes_any_batch_and_size(make, tmp_path):
    encoder, file = make(attention={"layer4": "rda"})
    out = tmp_path / "encoder.pt2"
    export_encoder(file, out, format="torch")
    for shape in ((1, 2, 96, 64), (4, 2, 64, 160)):
        x = torch.rand(shape)
        torch.testing.assert_close(run_torch(out, x), encoder(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_graph_can_be_for_one_size(make, tmp_path):
    encoder, file = make()
    out = tmp_path / "encoder.onnx"
    export_encoder(file, out, format="onnx", size=(40, 48))
    x = torch.rand(5, 2, 40, 48)
    torch.testing.assert_close(run_onnx(out, x), encoder(x), rtol=1e-4, atol=1e-4)
    with pytest.raises(Exception, match="invalid dimensions"):
        run_onnx(out, torch.rand(5, 2, 48, 48))


def test_what_cannot_be_traced_is_refused_in_one_line(make, tmp_path, monkeypatch):
    def branching(self, x):
        return super(type(self), self).forward(x) if x.mean() > 0 else x

    _, file = make("alexnet")
    monkeypatch.setattr("decur.encoders.alexnet.AlexNetEncoder.forward", branching)
    out = tmp_path / "encoder.onnx"
    with pytest.raises(ConfigError, match="encoder 'alexnet' cannot be a graph") as caught:
        export_encoder(file, out, format="onnx")
    assert "\n" not in str(caught.value) and not out.exists()


def test_a_graph_that_differs_is_not_written(make, tmp_path, monkeypatch):
    _, file = make()
    monkeypatch.setattr(
        "decur.exchange.exporting._write_program", lambda *a: lambda x: torch.zeros(2, 1)
    )
    with pytest.raises(ConfigError, match="gives other vectors"):
        export_encoder(file, tmp_path / "encoder.pt2", format="torch")
    assert not list(tmp_path.glob("*pt2*"))


def test_the_command(make, tmp_path, capsys):
    _, file = make()
    out = tmp_path / "plain.pth"
    main(["export", str(file), "--format", "timm", "--out", str(out)])
    assert f"written: {out}" in capsys.readouterr().out and out.is_file()
    for wrong, said in (
        (["--format=onnx", f"--out={out}"], "must end in .onnx"),
        (["--format=timm", f"--out={out}", "--scaling=true"], "--scaling: a state dict has no"),
        (["--format=timm", f"--out={out}", "--size=[4,4]"], "--size: a state dict has no"),
        (["--format=tflite", f"--out={out}"], "format: "),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["export", str(file), *wrong])
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and said in error and error.count("\n") == 1
