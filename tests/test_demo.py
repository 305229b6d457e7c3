"""The demo probes scenes like those that it trained on, and refuses others before training."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only

from decur import command_demo, demo
from decur.cli import main
from decur.data import SyntheticScenes, Target
from decur.encoders import EncoderSettings
from decur.objectives import DeCUR
from decur.pretrain.command_pretrain import parse
from decur.pretrain.run import make_model
from decur.pretrain.settings import PretrainSettings, ProjectorSettings, ViewSettings
from decur.verdicts import Interval

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
        **{"start": demo.UNSEEN, "noise": True, "structure": True, "pair_factors": False},
    }
    assert probed and all(made_of == expected for made_of in probed)
    out = capsys.readouterr().out
    assert "What the encoders know" in out and "by chance" in out
    assert "which way strips of fields run (layout)" in out and "Common dimensions should" in out
    assert "over the 30 scenes that tested both parts" in out


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


def told(factor, common, unique, better):
    return demo.Told(factor, Interval(*common), Interval(*unique), Interval(*better), 750)


def test_what_is_said_of_the_split_follows_from_the_intervals():
    high, low = (0.4, 0.3, 0.5), (0.1, -0.1, 0.3)
    found = [
        told("cover (sar)", high, low, (0.3, 0.1, 0.5)),
        told("cloud (optical)", high, low, (-0.3, -0.5, -0.1)),
        told("wet (sar)", high, high, (0.01, -0.02, 0.04)),
        told("rows (sar)", low, low, (0.06, 0.01, 0.11)),  # of what neither part is sure to tell
    ]
    assert demo.split_shown(found) == (
        "The part that should carry it tells it better: cover (sar) by 0.30. "
        "The other part tells it better: cloud (optical) by 0.30. "
        "It cannot be told where it is kept: wet (sar). "
        "No part is sure to tell it better than one guess for all: rows (sar). "
        "Each follows from a 95 % interval over the 750 scenes that tested both parts, of one "
        "training: another seed may find other factors."
    )
    assert demo.split_shown([]) == ""


def test_no_part_should_carry_what_two_of_three_sensors_share():
    scenes = SyntheticScenes(
        **{"samples": 8, "size": 32, "modalities": ["optical", "sar", "elevation"]},
        **{"structure": True, "pair_factors": True},
    )
    answers = dict.fromkeys(("common", "unique"), (np.eye(3)[[0, 1, 2, 0]], np.array([0, 1, 2, 1])))
    each = {(factor, "sar"): answers for factor in scenes.targets}
    told = demo._told(SimpleNamespace(dataset=scenes), each)
    assert [one.factor for one in told] == ["layout (sar)", "tillage (sar)"]


def test_the_interval_of_two_parts_is_that_of_the_paired_difference():
    """Parts that err on the same scenes differ by less than two binomials would let one think."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 750)
    right = np.stack([rng.random(750) < 0.7] * 2)
    right[0, :60] = True  # the first part also knows these
    outputs = [np.eye(2)[np.where(each, truth, 1 - truth)] for each in right]
    target = Target("class", ("a", "b"))
    found = demo.excess(outputs[0], outputs[1], truth, target)
    difference = right[0].astype(float) - right[1]
    half = 2.01 * difference.std(ddof=1) / np.sqrt(750)  # of 49 degrees of freedom
    assert found.value == pytest.approx(difference.mean())
    assert (found.low, found.high) == pytest.approx(
        (found.value - half, found.value + half), abs=4e-3
    )
    assert demo.excess(outputs[1], outputs[1], truth, target) == Interval(0, 0, 0)
    alone = demo.excess(outputs[0], None, truth, target)
    assert alone.value == right[0].mean() and alone.high - alone.low > 1.5 * (
        found.high - found.low
    )
