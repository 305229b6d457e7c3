"""Values of a training reach the loggers and callbacks of Lightning."""

import csv
import sys
from types import SimpleNamespace

import lightning as L
import pytest
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger

from decur.data import SyntheticScenes
from decur.errors import ConfigError
from decur.objectives import DeCUR
from decur.pretrain import LoaderSettings, PairedData, Pretrainer, ViewSettings
from decur.pretrain.loggers import make_callbacks, make_loggers, reporting_callbacks
from decur.runs import RunFolder

STOPPING = {
    "class_path": "lightning.pytorch.callbacks.EarlyStopping",
    "init_args": {"monitor": "loss", "patience": 1, "min_delta": 1e9},
}


def test_ones_own_trainer_hears_of_the_loss(tmp_path):
    scenes = SyntheticScenes(samples=16, size=32, modalities=["optical", "sar"])
    model = Pretrainer(
        scenes.modalities, DeCUR(dim=16), encoder="mlp", views=ViewSettings(size=32), batch_size=8
    )
    stopping = EarlyStopping("loss", patience=1, min_delta=1e9)
    trainer = L.Trainer(
        max_epochs=5,
        logger=CSVLogger(tmp_path, "", ""),
        callbacks=[stopping],
        accelerator="cpu",
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, PairedData(scenes, LoaderSettings(batch_size=8, workers=0)))
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    steps = [float(row["loss_step"]) for row in rows if row["loss_step"]]
    epochs = [float(row["loss_epoch"]) for row in rows if row["loss_epoch"]]
    assert stopping.stopped_epoch == 1 and len(steps) == 4 and len(epochs) == 2
    assert epochs[0] == pytest.approx(sum(steps[:2]) / 2, rel=1e-5)
    assert {"loss", "common/optical-sar", "intra/sar"} <= set(trainer.callback_metrics)


def test_a_run_takes_loggers_and_callbacks(tiny):
    run = tiny(
        "--trainer.logger=[csv,tensorboard]",
        f"--trainer.callbacks=[{STOPPING}]",
        "--trainer.max_epochs=5",
    )
    rows = list(csv.DictReader((run / "csv" / "metrics.csv").open()))
    assert max(int(row["step"]) for row in rows) == 2  # stopped after two epochs
    assert {"loss", "lr"} <= set(rows[0]) and (run / "tensorboard").is_dir()


def test_trackio_hears_of_the_values(monkeypatch, tmp_path):
    heard = []
    fake = SimpleNamespace(
        init=lambda **given: heard.append(given),
        log=heard.append,
        finish=lambda: heard.append("end"),
    )
    monkeypatch.setitem(sys.modules, "trackio", fake)
    (logger,) = make_loggers("trackio", RunFolder(tmp_path / "mine"))
    logger.log_metrics({"loss": 2.0}, 7)
    logger.finalize("success")
    assert heard[0]["name"] == "mine" and heard[1:] == [{"loss": 2.0, "step": 7}, "end"]


@pytest.mark.parametrize(
    ("names", "said"),
    [("tensorbord", "did you mean tensorboard?"), (["csv", "trackio"], "pip install trackio")],
)
def test_a_logger_that_is_not_there_is_refused(names, said, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ConfigError, match=said.replace("?", r"\?")):
        make_loggers(names, RunFolder(tmp_path))


@pytest.mark.parametrize(
    "spec",
    [
        {"init_args": {}},
        {"class_path": "lightning.Trainer"},
        {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitr": 1}},
    ],
)
def test_what_is_no_callback_is_refused(spec):
    with pytest.raises(ConfigError, match=r"trainer\.callbacks: "):
        make_callbacks([spec])


def test_what_fails_in_ones_own_callback_is_told_by_its_name():
    (own,) = make_callbacks([STOPPING])
    trainer = SimpleNamespace(callback_metrics={}, fast_dev_run=False, state=SimpleNamespace())
    with (
        pytest.raises(ConfigError, match=r"callbacks: EarlyStopping: .* `loss` .* not available"),
        reporting_callbacks([own]),
    ):
        own._run_early_stopping_check(trainer)
    with pytest.raises(ZeroDivisionError), reporting_callbacks([own]):
        1 / 0  # noqa: B018
