"""`objective.common: auto`: the share of common dimensions, counted before training."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file
from torch import multiprocessing

from decur.cli import main
from decur.data import LinearGaussianFactors, LoaderSettings
from decur.errors import ConfigError, Interrupted
from decur.objectives import DeCUR
from decur.pretrain import Pretrainer, pretrain, run, share
from decur.pretrain.data import EpochBatches, PairedData
from decur.pretrain.directions import Counted, count_directions
from decur.pretrain.metrics import read_metrics
from decur.pretrain.restore import restore
from decur.pretrain.settings import ProjectorSettings, ViewSettings
from decur.pretrain.share import CountShare, counting_epochs, hold_out
from decur.runs import RunFolder

EPOCHS = 3
ARGUMENTS = [
    *("pretrain", "--config=gaussian", "--objective.common=auto", "--data.samples=400"),
    *("--data.dim=8", "--data.shared_dims=2", "--data.unique_dims=6", "--projector.width=8"),
    *("--loader.batch_size=100", "--loader.workers=0", f"--trainer.max_epochs={EPOCHS}"),
    *("--trainer.accelerator=cpu", "--monitor.every_epochs=0", "--checkpoint.keep=99"),
    *("--checkpoint.every_minutes=0",),
]


def planted(rng, n, shared, own):
    """Mixtures of shared and own numbers: two views of each sensor, with a little noise."""
    common = rng.standard_normal((n, shared))
    found = {}
    for name in own:
        latent = np.concatenate([common, rng.standard_normal((n, own[name]))], axis=1)
        mixed = latent @ rng.standard_normal((latent.shape[1], latent.shape[1]))
        noise = 0.05 * rng.standard_normal((2, *mixed.shape))
        found[name] = tuple((mixed + noise).astype(np.float32))
    return found


def test_counts_are_those_of_the_factors():
    embeddings = planted(np.random.default_rng(0), 600, 4, {"a": 6, "b": 6, "c": 12})
    counted = count_directions(embeddings, None, seed=0)
    assert counted.within == {"a": 10, "b": 10, "c": 16} and counted.looked == 16
    assert counted.between == {("a", "b"): 4, ("a", "c"): 4, ("b", "c"): 4}
    assert counted.shares()["a", "b"] == 0.4 and counted.share() == pytest.approx(4 / 13)


def test_a_quarter_of_the_dimensions_is_common_where_fewer_directions_agree():
    few, many = (Counted({("a", "b"): n}, {"a": 40, "b": 60}, 64) for n in (3, 25))
    assert few.share() == 0.06 and few.taken() == 0.25
    assert many.share() == many.taken() == 0.5
    assert Counted({("a", "b"): 0}, {"a": 40, "b": 60}, 64).taken() == 0.25
    assert Counted({("a", "b"): 0}, {"a": 0, "b": 0}, 64).taken() is None


def test_samples_without_a_sensor_do_not_count_and_groups_are_no_agreement():
    rng = np.random.default_rng(0)
    embeddings = planted(rng, 600, 4, {"a": 6, "b": 6})
    for view in embeddings["b"]:
        view[::3] = np.nan
    assert count_directions(embeddings, None, seed=0).between == {("a", "b"): 4}
    # what differs between 30 places alone agrees by chance as often as 30 samples do
    places = np.repeat(np.arange(30), 20)
    alike = {
        name: tuple(np.float32(rng.standard_normal((30, 8))[places]) for _ in range(2))
        for name in "ab"
    }
    groups = [str(place) for place in places]
    assert count_directions(alike, groups, seed=0).between["a", "b"] == 0
    nothing = count_directions({"a": embeddings["a"], "b": alike["a"]}, None, seed=0)
    assert nothing.between == {("a", "b"): 0} and nothing.share() == 0


@pytest.mark.parametrize("several", [5, 6, 7, 8, 20])
def test_few_groups_count_as_many_directions_as_there_are(several):
    embeddings = planted(np.random.default_rng(1), 326, 8, {"a": 8, "b": 8})
    groups = [str(row % several) for row in range(326)]
    counted = count_directions(embeddings, groups, seed=0)
    assert counted.within == {"a": 16, "b": 16} and not counted.untold
    assert counted.between["a", "b"] in (8, 9)  # chance has its level passed once in twenty times


@pytest.mark.parametrize(
    ("several", "words"), [(1, "1 group of the samples"), (4, "4 groups of the samples held out")]
)
def test_too_few_groups_are_said_and_a_quarter_is_taken(several, words, caplog, tmp_path, capsys):
    embeddings = planted(np.random.default_rng(0), 80, 2, {"a": 2, "b": 2})
    counted = count_directions(embeddings, [str(row % several) for row in range(80)], seed=0)
    assert counted.between == {("a", "b"): None} and counted.within == {"a": None, "b": None}
    assert counted.share() is None and counted.taken() == 0.25
    folder = RunFolder(tmp_path)
    counted.write(folder)
    assert Counted.read(folder) == counted
    objective = DeCUR(8, common="auto")
    objective.set_share(counted.taken())
    share.tell_share(counted, objective, Console(soft_wrap=True))
    assert f"a occurs in {words}" in caplog.text and "too few to know chance" in caplog.text
    assert "share cannot be told; 0.25 of the dimensions will be common" in caplog.text
    assert "agree in no direction" not in caplog.text
    said = capsys.readouterr().out
    assert "chance: cannot be counted" in said and "common 2 of 8 dimensions (25%)" in said


def test_sensors_that_never_occur_together_are_left_out_and_named():
    embeddings = planted(np.random.default_rng(0), 800, 4, {"x": 6, "y": 6, "z": 6, "rare": 6})
    for name, absent in (("x", slice(400, None)), ("z", slice(400)), ("rare", slice(5, None))):
        for view in embeddings[name]:
            view[absent] = np.nan
    counted = count_directions(embeddings, None, seed=0)
    assert counted.shares() == {("x", "y"): 0.4, ("y", "z"): 0.4} and counted.share() == 0.4
    assert counted.untold == [
        "rare occurs in 5 of the 800 samples held out: what it shares cannot be counted",
        "x and z occur together in 0 of the 800 samples held out: what they share cannot be "
        "counted",
    ]
    assert counted.apart() == [] and "rare" not in counted.sentence()


@pytest.mark.parametrize("absent", [(700, 700), (0, 1400)])  # of the first and of the second
def test_sensors_are_compared_on_the_samples_that_have_both(absent):
    embeddings = planted(np.random.default_rng(0), 1600, 16, {"a": 16, "b": 16})
    first, last = absent
    for view in (0, 1):
        embeddings["a"][view][:first] = np.nan
        embeddings["b"][view][len(embeddings["b"][view]) - last :] = np.nan
    counted = count_directions(embeddings, None, seed=0)
    alone = {
        name: tuple(view[first : 1600 - last] for view in views)
        for name, views in embeddings.items()
    }
    # as many directions as on these samples alone, of which few are found
    assert counted.share() == count_directions(alone, None, seed=0).share() > 0.4
    assert counted.within["a"] == 32
    assert "occur together in 200 of the 1600" not in "".join(counted.untold)
    with_fewer = {name: tuple(view.copy() for view in v) for name, v in embeddings.items()}
    for view in with_fewer["b"]:
        view[: first + 50] = np.nan
    (line,) = count_directions(with_fewer, None, seed=0).untold
    assert line.startswith("a and b occur together in 150 of the 1600") and "rough" in line


@pytest.mark.parametrize(
    ("between", "within", "words"),
    [
        (0, 0, "not even two views of a sensor agree in any direction beyond chance"),
        (0, 9, "x and y agree in no direction beyond chance"),
    ],
)
def test_a_warning_says_what_agrees_in_no_direction(between, within, words, caplog):
    objective = DeCUR(8, common="auto")
    objective.set_share(0.25)
    counted = Counted({("x", "y"): between}, {"x": within, "y": within}, 64, 2000, 57)
    share.tell_share(counted, objective, Console())
    assert f"after a training of 57 steps {words}; 0.25 of" in caplog.text


def test_what_is_said_of_a_share_is_not_rounded_to_its_contrary(capsys):
    objective = DeCUR(128, common="auto")
    objective.set_share(0.25)
    counted = Counted({("x", "y"): 30}, {"x": 120, "y": 122}, 128, 2000, 57)
    share.tell_share(counted, objective, Console(soft_wrap=True))
    assert "common 32 of 128 dimensions (25%, the least; counted were 24.8%)" in (
        capsys.readouterr().out
    )
    alike = dict.fromkeys([("x", "y"), ("x", "z"), ("y", "z")], 40)
    counted = Counted(alike, dict.fromkeys("xyz", 120), 128, 2000, 57)
    share.tell_share(counted, objective, Console(soft_wrap=True))
    assert "of two sensors: x-y 33%, x-z 33%, y-z 33%\n" in capsys.readouterr().out


def test_groups_that_are_cut_deal_out_no_picture_that_is_held_out():
    data = LinearGaussianFactors(120, 2, unique_dims=2, dim=4)
    data.groups = [str(row % 6) for row in range(120)]
    fewer = hold_out(PairedData(data, LoaderSettings(16), pairing="group"))
    held = set(fewer.held_out.tolist())
    rows = fewer.order(np.random.default_rng(0)).tolist()
    read = [fewer.anew.source(row, name, epoch=0) for row in rows for name in ("x", "y")]
    assert len(held) == 30 and not held & set(read) and sorted(read) == sorted(2 * rows)
    assert set(fewer.dataset.groups) == set("012345")


def test_samples_held_out_are_not_seen_by_the_training_that_counts():
    paired = PairedData(LinearGaussianFactors(400, 2, unique_dims=2, dim=4), LoaderSettings(32))
    fewer = hold_out(paired)
    assert not len(paired.held_out) and paired.steps_per_epoch == 400 // 32
    assert len(set(fewer.held_out.tolist())) == 100 and fewer.steps_per_epoch == 300 // 32
    batches = EpochBatches(fewer.samples, 30, 0, order=fewer.order)
    trained = [row for batch in batches for row in batch]
    assert sorted([*trained, *fewer.held_out.tolist()]) == list(range(400))
    paired.dataset.groups = [str(row // 4) for row in range(400)]
    held = hold_out(paired).held_out
    assert all(len(set(range(4 * (row // 4), 4 * (row // 4) + 4)) - set(held)) == 0 for row in held)


@pytest.mark.parametrize(
    ("samples", "groups", "held"),
    # a quarter of 24 and a tenth of 50 would be too few to know chance; half of 12 at most
    [(800, 24, 8), (3000, 50, 8), (1000, 200, 40), (600, 12, 6)],
)
def test_so_many_whole_groups_are_held_out_that_chance_is_known(samples, groups, held, monkeypatch):
    monkeypatch.setattr(share, "MOST", 100 if samples == 3000 else share.MOST)
    paired = PairedData(LinearGaussianFactors(samples, 2, unique_dims=2, dim=4), LoaderSettings(32))
    of = np.arange(samples) % groups
    paired.dataset.groups = [str(group) for group in of]
    fewer = hold_out(paired)
    out = np.isin(np.arange(samples), fewer.held_out)
    assert len(set(of[out])) == held and not set(of[out]) & set(of[~out])
    rows = share.counted_on(fewer)  # of all these groups, though there be too many samples
    assert set(of[rows]) == set(of[out]) and len(rows) == min(len(fewer.held_out), share.MOST)


@pytest.mark.parametrize("groups", [5, 6, 7, 8, 9, 10, 12])
def test_what_is_held_out_of_few_groups_can_be_counted_on(groups):
    paired = PairedData(LinearGaussianFactors(1304, 2, unique_dims=2, dim=4), LoaderSettings(32))
    paired.dataset.groups = [str(row % groups) for row in range(1304)]
    rows = hold_out(paired).held_out
    embeddings = planted(np.random.default_rng(1), len(rows), 8, {"a": 8, "b": 8})
    counted = count_directions(embeddings, [paired.dataset.groups[row] for row in rows], seed=0)
    assert not counted.untold and counted.between["a", "b"] >= 6


@pytest.mark.parametrize(
    ("epochs", "steps", "counting"),
    # enough steps in a tenth; more epochs for them; as many as cost 15 %; at least one
    [(100, 1000, 10), (40, 32, 5), (100, 9, 15), (12, 9, 1), (1, 9, 1)],
)
def test_counting_takes_as_long_as_it_needs_and_costs_little(epochs, steps, counting):
    assert counting_epochs(epochs, steps) == counting


def test_what_cannot_be_counted_is_refused():
    few = PairedData(LinearGaussianFactors(20, 2, unique_dims=2, dim=4), LoaderSettings(4))
    with pytest.raises(ConfigError, match=r"auto needs 32 samples.*there are 20"):
        hold_out(few)
    full = PairedData(LinearGaussianFactors(100, 2, unique_dims=2, dim=4), LoaderSettings(80))
    held = (
        "75 samples there are; set it to 75 or less, as objective.common: auto holds 25 of the 100"
    )
    with pytest.raises(ConfigError, match=held):
        hold_out(full)
    for several, words in ((1, "1 group to"), (4, "4 groups to")):  # before hours of training
        few = PairedData(LinearGaussianFactors(100, 2, unique_dims=2, dim=4), LoaderSettings(32))
        few.dataset.groups = [str(row % several) for row in range(100)]
        with pytest.raises(ConfigError, match=f"auto has samples of {words}.*; give the share"):
            hold_out(few)
    with pytest.raises(ConfigError, match="2 batches an epoch of the training that counts"):
        share.counting_batches(hold_out(PairedData(full.dataset, LoaderSettings(32))), 0.3)
    with pytest.raises(ConfigError, match=r"0\.01 is fewer than one of 8 dimensions.*or give 0"):
        DeCUR(8, common=0.01)
    assert DeCUR(8, common=0).parts == {"unique": slice(0, 8)}
    for options in ({"intra": False}, {"decouple": False}, {"blocks": {"a+b": 0.5}}):
        with pytest.raises(ConfigError, match=r"auto|blocks") as error:
            DeCUR(8, common="auto", **options)
        assert "\n" not in str(error.value)


def test_the_share_is_part_of_the_state():
    objective = DeCUR(8, common="auto")
    assert objective.parts == {"common": slice(0, 8)} and not objective.is_counted
    assert objective.set_share(0.25) == 2 and objective.share == 0.25 and objective.is_counted
    other = torch.nn.ModuleDict({"objective": DeCUR(8, common="auto").half()})
    other.load_state_dict(torch.nn.ModuleDict({"objective": objective}).state_dict())
    assert other["objective"].parts == {"common": slice(0, 2), "unique": slice(2, 8)}
    assert not DeCUR(8).state_dict()  # as before
    assert DeCUR(2, common="auto").set_share(0.25) == 1  # a quarter of two is rounded to none


def test_the_share_of_a_checkpoint_is_that_of_the_run_whose_count_was_deleted(tmp_path):
    checkpoint = tmp_path / "checkpoint"
    torch.save({"state_dict": {"objective.counted": torch.tensor(3)}}, checkpoint)
    model = SimpleNamespace(objective=DeCUR(8, common="auto"))
    assert share.take_counted(RunFolder(tmp_path), model, checkpoint) is None
    assert model.objective.parts == {"common": slice(0, 3), "unique": slice(3, 8)}
    assert share.take_counted(RunFolder(tmp_path), model) is None
    assert not model.objective.is_counted


def _count_late(rank, folder):
    # A collective would end after a tenth of what the first process takes to count.
    rendezvous = f"file://{folder}/rendezvous"
    dist.init_process_group(
        "gloo", rendezvous, timeout=timedelta(seconds=0.3), rank=rank, world_size=2
    )

    class Late(CountShare):
        def _count(self, trainer, model):
            assert rank == 0
            time.sleep(1)
            return Counted({("a", "b"): 2}, {"a": 4, "b": 4}, 9)

    def broadcast(found):
        several = [found]
        dist.broadcast_object_list(several)
        return several[0]

    data = LinearGaussianFactors(40, 2, unique_dims=2, dim=4)
    objective = DeCUR(8, common="auto")
    model = Pretrainer(
        data.modalities,
        objective,
        encoder="mlp",
        projector=ProjectorSettings(8),
        views=ViewSettings(1),
    )
    trainer = SimpleNamespace(
        datamodule=SimpleNamespace(),
        current_epoch=1,
        max_epochs=2,
        is_global_zero=rank == 0,
        strategy=SimpleNamespace(broadcast=broadcast),
    )
    Late(RunFolder(Path(folder))).on_train_epoch_end(trainer, model)
    assert objective.parts == {"common": slice(0, 4), "unique": slice(4, 8)}
    assert model.meter.state_dict()["directions/a-b"] == (2, 1)
    Path(folder, f"{rank}.done").touch()


def test_the_others_wait_for_the_count_of_the_first_process_without_a_time_out(tmp_path):
    multiprocessing.start_processes(
        _count_late, (str(tmp_path),), nprocs=2, start_method="forkserver"
    )
    assert len(list(tmp_path.glob("*.done"))) == 2


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("auto") / "whole"
    main([*ARGUMENTS, f"--run={folder}"])
    return folder


def test_a_run_counts_once_and_says_so(whole):
    rows = read_metrics(RunFolder(whole))
    counted = Counted.read(RunFolder(whole))
    split = round(8 * counted.taken())
    assert 0 < split < 8 and [row["share/common"] for row in rows] == [split / 8] * EPOCHS
    before = read_metrics(RunFolder(whole).counting)
    assert [row["share/common"] for row in before] == [1]
    assert {f"directions/{name}": n for name, n in counted.within.items()}.items() <= (
        before[0].items()
    )
    assert before[0]["directions/x-y"] == counted.between["x", "y"] <= counted.within["x"]
    assert counted.samples == 100 and counted.steps == 3
    assert not RunFolder(whole).counting.checkpoints.exists()
    assert restore(whole).objective.parts["common"] == slice(0, split)
    with safe_open(whole / "encoders" / "x.safetensors", "pt") as file:
        about = json.loads(file.metadata()["decur"])["objective"]
    assert about["parts"]["common"] == [0, split]
    assert f"That is a share of {counted.share():.0%}" in (whole / "report.html").read_text()


def test_what_follows_is_to_the_bit_the_training_with_that_share(whole, tmp_path):
    share = read_metrics(RunFolder(whole))[0]["share/common"]
    main([*ARGUMENTS, f"--objective.common={share}", f"--run={tmp_path / 'given'}"])
    assert_same(whole, tmp_path / "given", besides=("share/common",))


def assert_same(one, other, besides=()):
    for name in ("x", "y"):
        a, b = (load_file(f / "encoders" / f"{name}.safetensors") for f in (one, other))
        assert all(torch.equal(a[key], b[key]) for key in a)
    tables = [read_metrics(RunFolder(f)) for f in (one, other)]
    for rows in tables:
        for row in rows:
            for key in ("pairs_per_second", *besides):
                row.pop(key, None)
    assert tables[0] == tables[1]


@pytest.mark.parametrize("step", [4, 8])  # at the end of an epoch
def test_a_run_goes_on_to_the_same_bits(whole, step, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "encoders")
    for path in (folder / "checkpoints").iterdir():
        if int(path.stem.split("-")[1]) > step:
            path.unlink()
    main(["pretrain", "--resume", f"--run={folder}"])
    assert "counted first" not in capsys.readouterr().out
    assert_same(whole, folder)


class Stop(Callback):
    """Stop a training after a step, as Ctrl-C does."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def test_counting_starts_anew_where_nothing_of_it_was_saved(whole, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    for part in ("encoders", "checkpoints"):
        shutil.rmtree(folder / part)
    RunFolder(folder).counted.unlink()  # as a kill before the first checkpoint leaves it
    main([*ARGUMENTS, f"--run={folder}"])
    said = capsys.readouterr().out
    assert "counted first" in said
    assert said.index("\ncounting epoch 1/") < said.index("\nepoch 1/")  # not called alike
    assert_same(whole, folder)
    assert_same_counting(whole, folder)


def test_a_run_that_became_shorter_while_it_counted_counts_anew(tmp_path, monkeypatch, capsys):
    long = [*ARGUMENTS, "--trainer.max_epochs=20", "--trainer.max_time=01:00:00:00"]
    long.append(f"--run={tmp_path / 'run'}")
    made = share.make_trainer

    def stopping(options, *, callbacks, **fixed):
        assert "max_time" not in options  # it is of the training that follows
        return made(options, callbacks=[Stop(4), *callbacks], **fixed)

    monkeypatch.setattr(share, "make_trainer", stopping)
    with pytest.raises((Interrupted, KeyboardInterrupt, SystemExit)):
        main(long)
    monkeypatch.undo()
    assert RunFolder(tmp_path / "run").counting.saved_checkpoints()
    main([*long, "--trainer.max_epochs=2"])
    assert "(1 epoch)" in capsys.readouterr().out
    assert Counted.read(RunFolder(tmp_path / "run")).steps == 3


def test_an_objective_that_has_counted_counts_again(tmp_path):
    data = LinearGaussianFactors(64, 2, unique_dims=2, dim=4)
    objective = DeCUR(8, common="auto")
    options = {
        "encoder": "mlp",
        "projector": {"width": 8},
        "views": {"size": 1},
        "loader": {"batch_size": 16, "workers": 0},
        "trainer": {"max_epochs": 1, "accelerator": "cpu"},
        "monitor": {"every_epochs": 0},
    }
    for name in ("one", "other"):
        pretrain(data, objective, run=str(tmp_path / name), **options)
        (row,) = read_metrics(RunFolder(tmp_path / name).counting)
        assert row["share/common"] == 1
    assert_same(tmp_path / "one", tmp_path / "other")


@pytest.mark.parametrize("when", ["within", "after", "after, and the count was deleted"])
def test_counting_goes_on_where_it_was_stopped(whole, when, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    made = share.make_trainer
    if when == "within":
        monkeypatch.setattr(
            share,
            "make_trainer",
            lambda options, *, callbacks, **fixed: made(
                options, callbacks=[Stop(2), *callbacks], **fixed
            ),
        )
    else:
        monkeypatch.setattr(run, "tell_share", stopped)
    with pytest.raises((Interrupted, KeyboardInterrupt, SystemExit)):
        main([*ARGUMENTS, f"--run={folder}"])
    monkeypatch.undo()
    assert RunFolder(folder).is_begun() and not RunFolder(folder).saved_checkpoints()
    assert RunFolder(folder).counted.exists() == (when != "within")
    if "deleted" in when:  # the checkpoint of the training that counted has a split
        RunFolder(folder).counted.unlink()
    with pytest.raises(SystemExit) as error:  # what is begun is not of another share
        main([*ARGUMENTS, "--objective.common=0.5", f"--run={folder}"])
    assert error.value.code == 2 and "--overwrite" in capsys.readouterr().err
    main(["pretrain", "--resume", f"--run={folder}"])
    assert ("counted first" in capsys.readouterr().out) == (when != "after")
    assert_same(whole, folder)
    assert_same_counting(whole, folder)


def stopped(*_):
    raise KeyboardInterrupt


def test_a_count_on_other_data_is_told(whole, tmp_path, caplog):
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(whole, folder.path)
    shutil.rmtree(folder.checkpoints)
    replace(Counted.read(folder), data="of other files").write(folder)
    main([*ARGUMENTS, f"--run={folder.path}"])
    assert f"the data has changed since {folder.counted} was written" in caplog.text


def test_a_training_that_breaks_counts_nothing(tmp_path, capsys):
    broken = ["--optimizer.lr=1e38", "--trainer.limit_train_batches=1", f"--run={tmp_path / 'run'}"]
    with pytest.raises(SystemExit) as error:
        main([*ARGUMENTS, *broken])
    assert error.value.code == 3 and "occurs in 0" not in capsys.readouterr().err
    assert not RunFolder(tmp_path / "run").counted.exists()


def assert_same_counting(one, other):
    assert Counted.read(RunFolder(one)) == Counted.read(RunFolder(other))
    tables = [read_metrics(RunFolder(f).counting) for f in (one, other)]
    for rows in tables:
        for row in rows:
            del row["pairs_per_second"]
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    "written",
    [
        '{"between": [["x"',
        '{"between": [["x", "y", 3]], "within": {}, "looked": 8}',
        '{"between": [["x", "y", "3"]], "within": {"x": 4, "y": 4}, "looked": 8}',
        '{"between": [["a", "b", 3]], "within": {"a": 4, "b": 4}, "looked": 8}',
        '{"between": [["x", "y", 3]], "within": {"x": 4, "y": 4}, "looked": 8, "untold": [1]}',
        '{"between": [["x", "y", 3]], "within": {"x": 4, "y": 4}, "looked": 8, "untold": "words"}',
        '{"between": [["x", "y", 3]], "within": {"x": 4, "y": 4}, "looked": "many"}',
        '{"between": [["x", "y", true]], "within": {"x": 4, "y": 4}, "looked": 8}',
        '{"between": [["x", "y", 200]], "within": {"x": 4, "y": 4}, "looked": 8}',
        '{"between": [["x", "y", 2]], "within": {"x": null, "y": 4}, "looked": 8}',
    ],
)
def test_a_damaged_count_is_told_in_a_line(whole, written, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "checkpoints")
    RunFolder(folder).counted.write_text(written)
    with pytest.raises(SystemExit) as error:
        main(["pretrain", "--resume", f"--run={folder}"])
    assert error.value.code == 2
    assert "share.json" in (said := capsys.readouterr().err) and "Traceback" not in said


def test_the_count_of_another_run_is_told_from_that_of_the_checkpoint(whole, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    counted = Counted.read(RunFolder(folder))
    most = counted.looked
    all_agree = {k: dict.fromkeys(getattr(counted, k), most) for k in ("between", "within")}
    replace(counted, **all_agree, views={}).write(RunFolder(folder))
    with pytest.raises(SystemExit) as error:
        main(["pretrain", "--resume", f"--run={folder}", "--trainer.max_epochs=99"])
    assert error.value.code == 2
    line = capsys.readouterr().err
    assert "share.json: makes 8 of 8 dimensions common, and" in line
    assert line.endswith("has 2; delete it, and the checkpoint's are kept\n")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_several_processes_count_what_one_does(whole, strategy, tmp_path):
    folder = tmp_path / "together"
    command = [sys.executable, "-m", "decur", *ARGUMENTS, f"--run={folder}"]
    command += ["--trainer.devices=2", f"--trainer.strategy={strategy}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("training starts with it") == 1  # one process speaks
    one, two = (Counted.read(RunFolder(f)) for f in (whole, folder))
    assert one == two
    assert [row["share/common"] for row in read_metrics(RunFolder(folder))] == [
        row["share/common"] for row in read_metrics(RunFolder(whole))
    ]
