"""The demo probes scenes like those that it trained on, and refuses others before training."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only

from decur import command_demo, demo
from decur.cli import main
from decur.data import SyntheticScenes
from decur.encoders import EncoderSettings
from decur.objectives import DeCUR
from decur.pretrain.command_pretrain import parse
from decur.pretrain.run import make_model
from decur.pretrain.settings import PretrainSettings, ProjectorSettings, ViewSettings

TINY = [
    "--data.samples=48",
    "--data.size=32",
    "--projector.width=32",
    "--views.size=24",
    "--loader.batch_size=16",
    "--loader.workers=0",
    "--monitor.every_epochs=0",
    "--trainer.max_epochs=1",
    "--trainer.accelerator=cpu",
]


def test_scenes_are_probed_with_the_options_that_were_trained_with(tmp_path, monkeypatch, capsys):
    probed, encode = [], demo.encode_samples

    def watched(model, data, samples):
        probed.append(data.dataset.made_of)
        return encode(model, data, samples)

    monkeypatch.setattr(demo, "encode_samples", watched)
    monkeypatch.setattr(demo, "SAMPLES", 60)
    run = tmp_path / "run"
    main(["demo", *TINY, "--data.noise=true", "--data.seed=3", f"--run={run}"])
    expected = {
        **{"samples": 60, "size": 32, "seed": 3, "modalities": ["optical", "sar"]},
        **{"start": demo.UNSEEN, "noise": True, "structure": True},
    }
    assert probed and all(made_of == expected for made_of in probed)
    out = capsys.readouterr().out
    assert "What the encoders know" in out and "by chance" in out
    assert "which way strips of fields run (layout)" in out and "Common dimensions should" in out


def test_of_several_processes_one_probes_and_one_device_is_the_default(monkeypatch, capsys):
    assert int(parse(command_demo._RECIPE)[1].trainer.devices) == 1
    monkeypatch.setattr(rank_zero_only, "rank", 1, raising=False)
    monkeypatch.setattr(demo, "start", lambda arguments: SimpleNamespace())  # has trained
    demo.demo([], {"start": 0})
    assert capsys.readouterr().out == ""


def test_the_network_before_training_is_the_one_that_was_trained():
    data = SyntheticScenes(4, 32, modalities=["optical", "sar"])
    settings = PretrainSettings(
        encoder=EncoderSettings("resnet10t", attention="rda", options={"stem_width": 16}),
        projector=ProjectorSettings(32, 2),
        views=ViewSettings(32),
        seed=7,
    )
    torch.manual_seed(settings.seed)
    model = make_model(data, DeCUR(dim=32), settings)
    before, own = demo._untrained(model).state_dict(), model.state_dict()
    assert before.keys() == own.keys()
    assert all(torch.equal(before[key], x) for key, x in own.items())


def test_other_data_is_refused_before_training(make_pairs, tmp_path, capsys):
    root, run = make_pairs({"s1": 1, "s2": 1}, samples=4, size=32), tmp_path / "run"
    with pytest.raises(SystemExit) as stopped:
        main(["demo", "--data=PairedFolder", f"--data.root={root}", f"--run={run}"])
    assert stopped.value.code == 2 and "the demo probes SyntheticScenes" in capsys.readouterr().err
    assert not run.exists()


def test_what_is_said_of_the_split_follows_from_the_scores():
    rows = [("cover", "all", "sar", 0.5, 0.9, 0.7), ("cloud", "optical", "optical", 0.0, 0.9, 0.5)]
    rows += [("cloud", "optical", "sar", 0.0, 0.0, 0.9), ("wet", "sar", "sar", 0.0, 0.90, 0.91)]
    rows += [("rows", "sar", "sar", 0.35, 0.33, 0.39)]
    assert demo.split_shown(rows, ["common", "unique"]) == (
        "The part that should carry it tells it better by more than 0.05: cover (sar). "
        "The other part tells it better by more than 0.05: cloud (optical). "
        "Within 0.05, so that one run cannot tell where it is kept: wet (sar). "
        "No part tells it by more than 0.05 better than one guess for all: rows (sar)."
    )
    assert demo.split_shown(rows, ["common"]) == ""
