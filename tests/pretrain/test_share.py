"""`objective.common: auto`: the share of common dimensions, counted early from samples held out."""

import json
import shutil
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file
from torch import multiprocessing

from decur.cli import main
from decur.data import LinearGaussianFactors, LoaderSettings
from decur.errors import ConfigError
from decur.objectives import DeCUR
from decur.pretrain import Pretrainer
from decur.pretrain.data import EpochBatches, PairedData
from decur.pretrain.metrics import read_metrics
from decur.pretrain.restore import restore
from decur.pretrain.settings import ProjectorSettings, ViewSettings
from decur.pretrain.share import (
    Counted,
    CountShare,
    choose_held_out,
    count_directions,
    refuse_too_short,
)
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
    assert nothing.between == {("a", "b"): 0} and nothing.share() is None


def test_samples_held_out_are_not_trained_on():
    paired = PairedData(LinearGaussianFactors(400, 2, unique_dims=2, dim=4), LoaderSettings(32))
    assert not len(choose_held_out(DeCUR(8), paired))
    paired.held_out = choose_held_out(DeCUR(8, common="auto"), paired)
    assert len(set(paired.held_out.tolist())) == 100 and paired.steps_per_epoch == 300 // 32
    batches = EpochBatches(paired.samples, 30, 0, order=paired.order)
    trained = [row for batch in batches for row in batch]
    assert sorted([*trained, *paired.held_out.tolist()]) == list(range(400))
    paired.dataset.groups = [str(row // 4) for row in range(400)]
    held = choose_held_out(DeCUR(8, common="auto"), paired)
    assert all(len(set(range(4 * (row // 4), 4 * (row // 4) + 4)) - set(held)) == 0 for row in held)


def test_what_cannot_be_counted_is_refused():
    few = PairedData(LinearGaussianFactors(20, 2, unique_dims=2, dim=4), LoaderSettings(4))
    with pytest.raises(ConfigError, match=r"auto needs 32 samples.*there are 20"):
        choose_held_out(DeCUR(8, common="auto"), few)
    with pytest.raises(ConfigError, match=r"first tenth.*raise trainer\.max_epochs"):
        refuse_too_short(DeCUR(8, common="auto"), 1)
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


def _count_late(rank, folder):
    # A collective would end after a tenth of what the first process takes to count.
    rendezvous = f"file://{folder}/rendezvous"
    dist.init_process_group(
        "gloo", rendezvous, timeout=timedelta(seconds=0.3), rank=rank, world_size=2
    )

    class Late(CountShare):
        def _count(self, trainer, model):
            assert rank == 0
            time.sleep(3)
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
        datamodule=SimpleNamespace(steps_per_epoch=1000),
        current_epoch=0,
        max_epochs=2,
        is_global_zero=rank == 0,
        strategy=SimpleNamespace(broadcast=broadcast),
    )
    Late(Console()).on_train_epoch_end(trainer, model)
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
    shares = [row["share/common"] for row in rows]
    assert shares[0] == 1 and shares[1] == shares[2] < 1
    assert rows[0]["directions/x"] >= rows[0]["directions/x-y"] and "directions/x" not in rows[1]
    split = round(8 * shares[1])
    assert restore(whole).objective.parts["common"] == slice(0, split)
    with safe_open(whole / "encoders" / "x.safetensors", "pt") as file:
        about = json.loads(file.metadata()["decur"])["objective"]
    assert about["parts"]["common"] == [0, split]
    assert "was counted after epoch 1" in (whole / "report.html").read_text()


@pytest.mark.parametrize("step", [2, 3, 5])  # within the warm-up, at its end, after it
def test_a_run_goes_on_to_the_same_bits(whole, step, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "encoders")
    for path in (folder / "checkpoints").iterdir():
        if int(path.stem.split("-")[1]) > step:
            path.unlink()
    main(["pretrain", "--resume", f"--run={folder}"])
    assert ("from now on" in capsys.readouterr().out) == (step < 3)
    for name in ("x", "y"):
        a, b = (load_file(f / "encoders" / f"{name}.safetensors") for f in (whole, folder))
        assert all(torch.equal(a[key], b[key]) for key in a)
    tables = [read_metrics(RunFolder(f)) for f in (whole, folder)]
    for rows in tables:
        for row in rows:
            del row["pairs_per_second"]
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_several_processes_count_what_one_does(whole, tmp_path):
    folder = tmp_path / "together"
    command = [sys.executable, "-m", "decur", *ARGUMENTS, f"--run={folder}"]
    command += ["--trainer.devices=2", "--trainer.strategy=ddp"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("from now on") == 1  # one process speaks
    keys = ("share/common", "directions/x-y", "directions/x", "directions/y")
    tables = [read_metrics(RunFolder(f)) for f in (whole, folder)]
    for one, two in zip(*tables, strict=True):
        assert [one.get(key) for key in keys] == [two.get(key) for key in keys]
