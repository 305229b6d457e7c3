"""The demo probes scenes like those that it trained on, and refuses others before training."""

import pytest

from decur import demo
from decur.cli import main

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
    probed, encode = [], demo.encode

    def watched(model, data, samples):
        probed.append(data.dataset.made_of)
        return encode(model, data, samples)

    monkeypatch.setattr(demo, "encode", watched)
    monkeypatch.setattr(demo, "SAMPLES", 60)
    run = tmp_path / "run"
    main(["demo", *TINY, "--data.noise=true", "--data.seed=3", f"--run={run}"])
    expected = {
        **{"samples": 60, "size": 32, "seed": 3, "modalities": ["optical", "sar"]},
        **{"start": demo.UNSEEN, "noise": True},
    }
    assert probed and all(made_of == expected for made_of in probed)
    assert "What the encoders know" in capsys.readouterr().out


def test_other_data_is_refused_before_training(make_pairs, tmp_path, capsys):
    root, run = make_pairs({"s1": 1, "s2": 1}, samples=4, size=32), tmp_path / "run"
    with pytest.raises(SystemExit) as stopped:
        main(["demo", "--data=PairedFolder", f"--data.root={root}", f"--run={run}"])
    assert stopped.value.code == 2 and "the demo probes SyntheticScenes" in capsys.readouterr().err
    assert not run.exists()
