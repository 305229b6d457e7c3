"""A run that has not ended is of use: it is opened, ended now, or made longer."""

import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file

from decur.cli import main
from decur.encoders import load_encoder
from decur.errors import ConfigError, Interrupted
from decur.pretrain.command_pretrain import main as pretrain
from decur.pretrain.metrics import read_metrics
from decur.pretrain.optim import cosine_with_warmup
from decur.pretrain.restore import restore
from decur.pretrain.state import TrainingState
from decur.runs import RunFolder

THREE = ("--trainer.max_epochs=3", "--monitor.every_epochs=0")


def weights(folder):
    return {p.name: load_file(p) for p in sorted((folder / "encoders").glob("*.safetensors"))}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n][k], b[n][k]) for n in a for k in a[n])


@pytest.fixture
def stopped(tiny, monkeypatch, tmp_path):
    """The folder of a run of three epochs that was stopped after the second."""
    real = TrainingState.save

    def save(self, trainer):
        real(self, trainer)
        if trainer.global_step == 6:
            raise Interrupted(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "save", save)
        with pytest.raises(SystemExit):
            tiny(*THREE)
    return tmp_path / "run"


def test_each_epoch_leaves_encoders_and_a_report(tiny, stopped, caplog, capsys):
    folder = stopped
    page = (folder / "report.html").read_text()
    assert "Epoch 2 of 3: the run has not ended" in page and "--finish" in page
    with caplog.at_level("INFO"):
        restored = restore(folder)
    told = [line for line in caplog.messages if "has not ended, at epoch 2 of 3, step 6" in line]
    assert len(told) == 1  # once for both
    saved = torch.load(RunFolder(folder).newest_checkpoint(), weights_only=True)["state_dict"]
    for name, encoder in restored.encoders.items():
        for key, value in encoder.state_dict().items():
            assert torch.equal(value, saved[f"encoders.{name}.{key}"])

    before = weights(folder)
    shutil.rmtree(folder / "encoders")
    capsys.readouterr()
    main(["pretrain", "--finish", f"--run={folder}"])
    said = " ".join(capsys.readouterr().out.split())
    assert "Ended by --finish at epoch 2 of 3, step 6." in said and "report" in said
    assert equal(weights(folder), before)
    assert "has not ended" not in (folder / "report.html").read_text()
    caplog.clear()
    load_encoder(folder / "encoders" / "sar.safetensors")
    assert "has not ended" not in caplog.text

    whole = tiny(*THREE, name="whole")
    pretrain([f"--run={folder}"])  # goes on, and needs no more than the folder's name
    assert equal(weights(folder), weights(whole))


def test_a_finished_run_goes_on_longer_on_the_new_schedule(tiny, capsys):
    folder = tiny("--trainer.max_epochs=2", "--monitor.every_epochs=0")
    capsys.readouterr()
    pretrain([f"--run={folder}", "--trainer.max_epochs=4"])
    said = " ".join(capsys.readouterr().out.split())
    assert "4 epochs in place of 2: goes on after epoch 2" in said
    rows = read_metrics(RunFolder(folder))
    peak = rows[0]["lr"] / cosine_with_warmup(3, 6, 0)
    for row, total in zip(rows, (6, 6, 12, 12), strict=True):
        assert row["lr"] == pytest.approx(peak * cosine_with_warmup(row["step"], total, 0))
    assert (folder / "config.yaml").read_text().startswith("# Begun with trainer.max_epochs 2")

    again = shutil.copytree(folder, folder.with_name("again"))  # as if interrupted in epoch 4
    sorted((again / "checkpoints").glob("*.ckpt"))[-1].unlink()
    pretrain([f"--run={again}"])
    assert equal(weights(folder), weights(again))
    assert (again / "config.yaml").read_text().count("# Begun") == 1
    with pytest.raises(ConfigError, match=r"max_epochs: 3, but .* has trained 4 epochs already"):
        pretrain([f"--run={folder}", "--trainer.max_epochs=3"])
    assert "max_epochs: 4" in (folder / "config.yaml").read_text()


def test_what_cannot_be_ended_is_refused(tmp_path, refused):
    assert "no such folder" in refused("pretrain", "--finish", f"--run={tmp_path / 'none'}")
    (tmp_path / "run").mkdir()
    assert "holds no checkpoint" in refused("pretrain", "--finish", f"--run={tmp_path / 'run'}")
