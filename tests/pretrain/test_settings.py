"""The settings of pretraining, which are known without Lightning, agree with it."""

import inspect
from dataclasses import fields

import lightning as L
import pytest

from decur.data import LoaderSettings, SyntheticScenes
from decur.errors import ConfigError
from decur.layers import override
from decur.objectives import DeCUR
from decur.pretrain.run import pretrain
from decur.pretrain.settings import PretrainSettings, TrainerSettings

# Options of Lightning's Trainer that a run decides itself, or that need validation data.
NOT_OFFERED = {
    "self",
    "default_root_dir",
    "plugins",
    "use_distributed_sampler",
    "enable_checkpointing",
    "enable_progress_bar",
    "enable_model_summary",
    "enable_autolog_hparams",
    "num_sanity_val_steps",
    "reload_dataloaders_every_n_epochs",
    "model_registry",
    "barebones",
    "limit_val_batches",
    "limit_test_batches",
    "limit_predict_batches",
    "val_check_interval",
    "check_val_every_n_epoch",
    "fast_dev_run",
    "overfit_batches",
    "min_epochs",
    "min_steps",
    "inference_mode",
    "sync_batchnorm",
}


def test_the_trainer_takes_lightnings_options_with_its_defaults():
    theirs = inspect.signature(L.Trainer.__init__).parameters
    ours = {option.name: option.default for option in fields(TrainerSettings)}
    assert ours.pop("max_epochs") == 100  # Lightning's None would stand for 1000
    assert set(ours) == set(theirs) - NOT_OFFERED - {"max_epochs"}
    assert ours == {name: theirs[name].default for name in ours}
    L.Trainer(**{**TrainerSettings().as_dict(), "accelerator": "cpu", "logger": False})


@pytest.mark.parametrize(
    "wrong", [{"epochs": 3}, {"trainer": {"epochs": 3}}, {"trainer": {"barebones": True}}]
)
def test_settings_that_there_are_not_are_refused(wrong, tmp_path):
    scenes = SyntheticScenes(samples=8, modalities=["optical", "sar"])
    with pytest.raises(ConfigError, match=r"(epochs|barebones): unknown option of"):
        pretrain(scenes, DeCUR(dim=16), run=str(tmp_path / "run"), **wrong)
    assert not (tmp_path / "run").exists()


def test_a_mapping_of_a_group_leaves_its_other_fields_and_nothing_else_is_a_group():
    settings = PretrainSettings(trainer=TrainerSettings(max_epochs=7))
    found = override(settings, {"trainer": {"devices": 2}}, "pretrain").trainer
    assert (found.max_epochs, found.devices) == (7, 2)
    with pytest.raises(ConfigError, match="trainer: of pretrain is a TrainerSettings or a mapping"):
        override(settings, {"trainer": 7}, "pretrain")


@pytest.mark.parametrize("devices", [0, -2, 10**9])
def test_devices_that_no_machine_has_are_refused(devices):
    with pytest.raises(ConfigError, match=r"trainer\.devices: must be from 1 to 1,024"):
        TrainerSettings(devices=devices)
    assert TrainerSettings(devices=-1).devices == -1


@pytest.mark.parametrize("time", [{}, {"hour": 1}, {"hours": 0}, "1:00", "00:00:00:00"])
def test_a_time_that_is_none_is_refused(time):
    with pytest.raises(ConfigError, match=r"trainer\.max_time: .* is no time; give DD:HH:MM:SS"):
        TrainerSettings(max_time=time)
    assert TrainerSettings(max_time="00:00:00:01") and TrainerSettings(max_time={"hours": 12})


def test_reading_processes_follow_the_cores_that_may_be_used(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(13)), raising=False)
    assert [LoaderSettings().processes(sharing) for sharing in (1, 2, 4, 13)] == [8, 5, 2, 1]
    assert LoaderSettings(workers=3).processes(4) == 3
