"""Networks of one's own become encoders, whose files are opened again; others are refused first."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from decur import Modality
from decur.cli import main
from decur.data import SyntheticScenes
from decur.encoders import EncoderSettings, build_encoder, load_encoder, save_encoder
from decur.encoders.base import ENCODERS
from decur.encoders.own import OwnEncoders, register_encoder
from decur.errors import ConfigError
from decur.objectives import DeCUR
from decur.pretrain import LoaderSettings, Pretrainer, ProjectorSettings, ViewSettings
from decur.pretrain.run import pretrain

RGB = Modality.preset("rgb")


class Network(nn.Module):
    """A network that knows nothing of decur."""

    def __init__(self, bands, width=4):
        super().__init__()
        self.first = nn.Conv2d(bands, width, 3, stride=2, padding=1)

    def forward(self, x):
        return self.first(x).mean((2, 3))


def of_sensor(modality, width=4):
    return Network(modality.channels, width)


@pytest.fixture
def registered(monkeypatch):
    """Register for one test."""
    ENCODERS.names()  # imports all others first
    monkeypatch.setattr(ENCODERS, "_items", dict(ENCODERS._items))

    def register(build, name="mine"):
        register_encoder(name, build)

    return register


def test_a_registered_network_is_saved_and_opened_again(registered, tmp_path):
    registered(of_sensor)
    encoder = build_encoder("mine", RGB, width=6)
    path = save_encoder(encoder, tmp_path / "rgb.safetensors")
    again = load_encoder(path)
    x = torch.rand(2, 3, 20, 20)
    assert torch.equal(again(x), encoder.module(x)) and again.dim == 6
    assert again.forward_features(x)[0].shape == (2, 6, 1, 1)
    with pytest.raises(ConfigError, match=r"its options are width"):
        build_encoder("mine", RGB, depth=3)


def test_vectors_maps_and_lists_of_maps_are_understood():
    class Maps(nn.Module):
        def __init__(self, bands):
            super().__init__()
            self.one, self.two = nn.Conv2d(bands, 5, 2, 2), nn.Conv2d(5, 7, 4, 4)

        def forward(self, x):
            one = self.one(x)
            return [one, self.two(one)]

    from decur.encoders.base import WrappedEncoder

    module = Maps(3)
    encoder = WrappedEncoder(module, 3)
    assert (encoder.channels, encoder.strides, encoder.dim) == ([5, 7], [2, 8], 7)
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(encoder(x), module(x)[-1].mean((2, 3)))
    only_map = WrappedEncoder(module.one, 3)
    assert torch.equal(only_map(x), module.one(x).mean((2, 3))) and only_map.strides == [2]
    with pytest.raises(ConfigError, match=r"gives \(2, 3, 4096\); vectors"):
        WrappedEncoder(nn.Flatten(2, 3), 3)
    with pytest.raises(ConfigError, match="takes no pictures of 3 bands"):
        WrappedEncoder(nn.Conv2d(4, 8, 3), 3)


def test_a_run_trains_a_copy_of_a_given_network_and_its_files_open(registered, tmp_path):
    registered(of_sensor)
    scenes = SyntheticScenes(samples=16, size=16, modalities=["optical", "sar"])
    module = Network(2)
    before = module.first.weight.clone()
    trained = pretrain(
        scenes,
        DeCUR(dim=8),
        run=str(tmp_path / "run"),
        encoder={"optical": of_sensor, "sar": module},
        projector=ProjectorSettings(8, layers=1),
        views=ViewSettings(16),
        loader=LoaderSettings(8, workers=0),
        trainer={"max_epochs": 1, "accelerator": "cpu"},
    )
    assert torch.equal(module.first.weight, before)
    for name in scenes.modalities:
        encoder = load_encoder(trained.folder.encoder(name))
        assert encoder.name == "mine"
        assert torch.equal(
            encoder.module.first.weight, trained.model.encoder(name).module.first.weight
        )


def test_an_encoder_that_was_loaded_is_trained_on(tmp_path):
    scenes = SyntheticScenes(samples=8, size=16, modalities=["optical", "sar"])
    encoder = build_encoder("mlp", scenes.modalities["sar"], width=8, layers=1)
    model = Pretrainer(
        scenes.modalities,
        DeCUR(dim=8),
        encoder={"optical": "mlp", "sar": encoder},
        views=ViewSettings(16),
    )
    assert torch.equal(model.encoder("sar").layers[0][0].weight, encoder.layers[0][0].weight)
    assert model.encoder("optical").name == "mlp"


@pytest.mark.parametrize(
    "given",
    [{"rgb": nn.Conv2d(3, 8, 3)}, lambda modality: Network(3), {"rgb": Network(3)}],
    ids=["unregistered", "lambda", "class-of-a-test"],
)
def test_what_no_file_could_be_opened_with_is_refused_at_the_start(given, monkeypatch):
    monkeypatch.setattr(Network, "__module__", "__main__")  # as in a notebook
    with pytest.raises(ConfigError, match="register_encoder"):
        OwnEncoders(given).build("rgb", RGB)


def test_an_error_of_a_builder_is_said_in_a_line_with_its_place(monkeypatch):
    def breaks(modality):
        raise RuntimeError("no such branch")

    breaks.__module__ = "mine"
    monkeypatch.setitem(ENCODERS._items, "mine", breaks)
    with pytest.raises(ConfigError, match=r"'mine': its builder .*RuntimeError: no such branch .*"):
        build_encoder("mine", RGB)


def test_settings_by_name_are_those_of_the_command_line():
    from decur.encoders.own import encoder_settings

    assert encoder_settings("mlp") == EncoderSettings("mlp")
    assert encoder_settings({"a": "mlp"}) == EncoderSettings({"a": "mlp"})


def _run_twice(folder, words):
    os.chdir(folder)  # which, as for a command that pip has installed, is on no path
    main(words)
    main(words)


def test_modules_of_the_working_folder_are_found_and_a_run_goes_on(tmp_path, apart):
    own = Path(__file__).parent.parent / "own_modules.py"
    (tmp_path / "my_modules.py").write_text(
        own.read_text().replace("class Waves(Paired", "class MyWaves(Paired")
        + "\n\ndef network(modality):\n    return nn.Conv2d(modality.channels, 8, 4, 4)\n"
    )
    words = ["pretrain", "--run=run", "--data=my_modules.MyWaves", "--projector.width=8"]
    words += ["--objective=my_modules.Distance", "--encoder.name=my_modules:network"]
    words += ["--views.size=8", "--loader.batch_size=8", "--loader.workers=0"]
    words += ["--trainer.max_epochs=1", "--monitor.every_epochs=0", "--trainer.accelerator=cpu"]
    code, out, error = apart(_run_twice, tmp_path, words).end()
    assert code == 0, error
    assert "resuming" in out and "my_modules:network" in out
