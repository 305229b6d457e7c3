"""An interrupted training on pictures ends as the uninterrupted one: bit for bit."""

import json
import logging
import os
import shutil
import signal

import numpy as np
import pytest

from decur.cli import main
from decur.pretrain.state import TrainingState
from decur.transfer import engine, run
from decur.transfer.fit import EveryBatch
from decur.transfer.trainee import Trainee

SCENES = [
    *("--data=SyntheticScenes", "--data.samples=60", "--data.size=32"),
    "--data.modalities=[optical,sar]",
    *("--label_fraction=0.9", "--loader.batch_size=16"),  # 43 pictures: batches of 16, 16 and 11
]
TUNED = [*SCENES, "--target=cover", "--freeze=false", "--fit.epochs=4"]
DROPOUT = "--encoder.options={drop_rate: 0.5}"
FROZEN_FCN = [*SCENES, "--target=mask", "--fit.lr=0.01"]


# -- the command in a process of its own, in which a signal comes at a known place -----------------


def killed_when_saved(command):
    def save_and_die(self, *rest, save=TrainingState.save):
        save(self, *rest)
        os.kill(os.getpid(), signal.SIGKILL)

    engine.SAVE_PAUSE, TrainingState.save = 0, save_and_die
    main(command)


def told_in_a_step(command):
    def step(self, batch, batch_idx, step=Trainee.training_step):
        if self.global_step == 7:
            os.killpg(0, signal.SIGTERM)  # as a scheduler does: workers are told, too
        return step(self, batch, batch_idx)

    Trainee.training_step = step
    main(command)


# -- and in this one -------------------------------------------------------------------------------


class Steps:
    """Counts the steps that are trained; one of them may be told to be the last."""

    def __init__(self):
        self.done, self.last, self.signal = 0, None, signal.SIGTERM


@pytest.fixture
def steps(monkeypatch):
    counter, real = Steps(), Trainee.training_step

    def step(self, batch, batch_idx):
        counter.done += 1
        if counter.done == counter.last:
            os.kill(os.getpid(), counter.signal)
        return real(self, batch, batch_idx)

    monkeypatch.setattr(Trainee, "training_step", step)
    return counter


@pytest.fixture
def stopped(transferred, steps, tmp_path):
    """A transfer that is told to stop in its `last` step; returns the run's folder."""

    def stop(*arguments, last, number=signal.SIGTERM, name="run"):
        steps.done, steps.last, steps.signal = 0, last, number
        with pytest.raises(SystemExit) as error:
            transferred(*arguments, name=name)
        assert error.value.code == 128 + number and steps.done == last
        steps.done, steps.last = 0, None
        assert not (tmp_path / name / "results.json").exists()
        return tmp_path / name

    return stop


@pytest.fixture(scope="module")
def kept():
    """Folders of runs that several tests begin with."""
    return {}


@pytest.fixture
def once(kept, tmp_path, tmp_path_factory):
    """A run's folder, made by the first test that wants it; others get a copy."""

    def get(key, make):
        if key in kept:
            return shutil.copytree(kept[key], tmp_path / kept[key].name)
        made = make()
        kept[key] = shutil.copytree(made, tmp_path_factory.mktemp("kept") / made.name)
        return made

    return get


def saved(folder):
    return [path.name for path in (folder / "unfinished").rglob("*") if path.is_file()]


def assert_same_run(a, b):
    for name in ("model.safetensors", "metrics.csv"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    left, right = (np.load(folder / "predictions.npz") for folder in (a, b))
    assert {"ids", "output", "truth"} <= set(left.files) == set(right.files)
    for key in left.files:
        assert np.array_equal(left[key], right[key]), key


@pytest.mark.slow  # the same class as in pretraining, whose kill is among the short tests
def test_killed_and_told_to_stop_a_training_ends_as_the_uninterrupted_one(
    transferred, steps, apart, tmp_path
):
    whole = transferred(*TUNED, DROPOUT, name="whole")
    assert steps.done == 12

    folder = tmp_path / "broken"
    common = ["transfer", *TUNED, DROPOUT, f"--run={folder}"]
    common += ["--encoder.name=test_resnet", "--bootstrap=5", "--device=cpu"]

    code, _, error = apart(killed_when_saved, [*common, "--loader.workers=0"]).end()
    assert code == -signal.SIGKILL, error
    assert saved(folder) == ["step-000000003.ckpt"]

    code, out, error = apart(told_in_a_step, [*common, "--loader.workers=2"]).end()
    assert code == 128 + signal.SIGTERM, error
    assert "resuming" in out and "step-000000003.ckpt" in out
    assert "the same command goes on from here" in error and "Traceback" not in error
    assert saved(folder) == ["step-000000008.ckpt"]  # and nothing half written
    assert not (folder / "model.safetensors").exists()

    steps.done = 0
    transferred(*TUNED, DROPOUT, name="broken")
    assert steps.done == 4
    assert_same_run(whole, folder)
    assert not (folder / "unfinished").exists()


@pytest.mark.parametrize(
    ("length", "last", "number"),
    [
        ("epochs=2", 2, signal.SIGINT),
        ("epochs=2", 3, signal.SIGTERM),
        *(pytest.param("epochs=2", k, signal.SIGTERM, marks=pytest.mark.slow) for k in (5, 6)),
        *(pytest.param("steps=5", k, signal.SIGTERM, marks=pytest.mark.slow) for k in (2, 3)),
        ("steps=5", 5, signal.SIGTERM),
    ],
)
def test_a_frozen_fcn_may_be_stopped_in_any_step(
    length, last, number, transferred, run_folder, stopped, steps, capsys, once
):
    """In the midst of an epoch, at its end, and in the last step, also of a broken off epoch."""
    total = 6 if "epochs" in length else 5
    common = [*FROZEN_FCN, f"--fit.{length}", f"--encoders={run_folder}"]
    whole = once(length, lambda: transferred(*common, name="whole"))
    broken = stopped(*common, last=last, number=number)
    assert saved(broken) == [f"step-{last:09d}.ckpt"]
    said = capsys.readouterr()
    assert f"stopped by {number.name}; the same command goes on from here" in said.err
    transferred(*common)
    assert steps.done == total - last
    assert "resuming" in capsys.readouterr().out
    assert_same_run(whole, broken)
    assert not saved(broken)


@pytest.mark.parametrize("last", [2, *(pytest.param(k, marks=pytest.mark.slow) for k in (3, 8)), 9])
def test_a_training_with_a_validation_part_keeps_the_same_epoch(
    last, transferred, stopped, steps, once
):
    """Stopped within an epoch, at its end, and where patience has just run out."""
    common = [*TUNED, DROPOUT, "--val_fraction=0.2", "--fit.patience=1", "--fit.lr=1"]
    common += ["--fit.epochs=20"]
    whole = once("validated", lambda: transferred(*common, name="whole"))
    best = json.loads((whole / "results.json").read_text())["validation"]
    assert best["last_epoch"] == best["best_epoch"] + 1 < 20
    total = 3 * best["last_epoch"]
    last = min(last, total)
    broken = stopped(*common, last=last)
    transferred(*common)
    assert steps.done == total - last
    assert_same_run(whole, broken)
    assert json.loads((broken / "results.json").read_text())["validation"] == best


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("--seed=1", "seed"),
        ("--fit.lr=0.02", "fit"),
        ("--label_fraction=0.5", "training part"),
        ("--data.seed=5", "data"),
        ("--encoder.options={drop_rate: 0.1}", "encoders"),
        ("--freeze=true", "freeze"),
        ("--encoders", "encoders"),
        *(
            pytest.param(f"--{change}", named, marks=pytest.mark.slow)  # of the same list
            for change, named in (
                ("fit.augment=false", "fit"),
                ("fold=1", "training part"),
                ("size=40", "size"),
                ("loader.batch_size=20", "loader.batch_size"),
                ("modalities=sar", "modalities"),
            )
        ),
    ],
)
def test_a_state_of_another_training_is_discarded(
    change, named, transferred, run_folder, stopped, steps, caplog, once
):
    common = [*FROZEN_FCN, "--freeze=false", "--fit.epochs=1"]
    once("stopped", lambda: stopped(*common, last=2))
    changed = [*common, *([f"--encoders={run_folder}"] if change == "--encoders" else [change])]
    with caplog.at_level(logging.WARNING):
        if change == "--seed=1":  # to the end
            folder = transferred(*changed)
        else:
            stopped(*changed, last=1)
    (notice,) = (text for text in caplog.messages if "discarded" in text)
    assert "is of another training" in notice
    assert named in notice[notice.index("(") : notice.index(")")]
    if change == "--seed=1":
        trained, steps.done = steps.done, 0
        assert_same_run(transferred(*changed, name="fresh"), folder)
        assert trained == steps.done > 0 and not saved(folder)


def test_a_state_that_cannot_be_read_is_discarded(transferred, stopped, steps, caplog):
    broken = stopped(*TUNED, last=5)
    (path,) = (broken / "unfinished").rglob("*.ckpt")
    path.write_bytes(path.read_bytes()[:1000])
    with caplog.at_level(logging.WARNING):
        transferred(*TUNED)
    assert f"{path} is damaged" in caplog.text and "training starts anew" in caplog.text
    assert steps.done == 12 and not saved(broken)


def test_only_a_long_training_is_saved(transferred, monkeypatch):
    steps, real = [], TrainingState.save

    def save(self, trainer):
        real(self, trainer)
        steps.append(trainer.global_step)
        assert saved(self.run.path.parent) == [f"step-{trainer.global_step:09d}.ckpt"]  # only one

    monkeypatch.setattr(TrainingState, "save", save)
    short = transferred(*TUNED, name="short")
    assert steps == []
    monkeypatch.setattr(engine, "SAVE_PAUSE", 0)
    long = transferred(*TUNED, name="long")
    assert steps == [3, 6, 9, 12] and not saved(long)
    assert_same_run(short, long)


def test_the_state_stays_until_the_results_are_written(transferred, stopped, steps, monkeypatch):
    broken = stopped(*TUNED, last=12)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(run, "write_results", lambda *_: (_ for _ in ()).throw(OSError("full")))
        transferred(*TUNED)
    transferred(*TUNED)
    assert steps.done == 0
    assert (broken / "results.json").exists() and not saved(broken)


def test_signals_are_given_back_whatever_ends_a_training(transferred, stopped):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    stopped(*TUNED, last=1)
    with pytest.raises(SystemExit):
        transferred(*SCENES, "--target=moisture", "--freeze=false", "--fit.lr=1e30", name="bad")
    assert before == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]


@pytest.mark.parametrize(("samples", "lengths"), [(43, [16, 16, 11]), (33, [16, 16]), (2, [2])])
def test_batches_hold_every_sample_unless_one_is_left_over(samples, lengths):
    batches = EveryBatch(samples, min(16, samples), seed=0)
    first = list(batches)
    assert [len(batch) for batch in first] == lengths and len(batches) == len(lengths)
    rows = [row for batch in first for row in batch]
    assert len(set(rows)) == len(rows) and set(rows) <= set(range(samples))
    batches.set_epoch(1)
    assert samples == 2 or list(batches) != first
    batches.epoch, batches.start = 0, len(lengths) - 1  # as a training that goes on
    assert list(batches) == first[-1:] and len(batches) == len(lengths)
