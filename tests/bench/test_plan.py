"""`decur plan`: what it foresees against what really is kept, stored, sent and counted by hand."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch

from decur.bench.commands import print_cost
from decur.bench.measure import MOST_ROWS, Pretraining
from decur.bench.plan import (
    line,
    measure_memory,
    measure_reading,
    plan,
    tile,
    time_steps,
)
from decur.bench.step import Steps
from decur.cli import main
from decur.data import LoaderSettings, PairedFolder, SyntheticScenes
from decur.encoders import EncoderSettings
from decur.errors import ConfigError
from decur.objectives import CLIP, DeCUR
from decur.pretrain.distributed import traffic
from decur.pretrain.optim import build_optimizer
from decur.pretrain.settings import (
    OptimizerSettings,
    PretrainSettings,
    ProjectorSettings,
    TrainerSettings,
    ViewSettings,
)
from decur.pretrain.trainer import length_of_run

SENSORS = ["optical", "sar"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def scenes():
    return SyntheticScenes(samples=16, size=32, modalities=SENSORS)


def settings(**options):
    given = {"encoder": EncoderSettings("test_resnet"), "projector": ProjectorSettings(32)}
    given |= {"views": ViewSettings(24), "optimizer": OptimizerSettings("adamw")}
    return PretrainSettings(**{**given, "loader": LoaderSettings(4, 0), **options})


def steps(data, objective=None, **options):
    return Steps(pretraining(data, objective, **options))


def pretraining(data, objective=None, **options):
    return Pretraining(data, objective or DeCUR(dim=32), settings(**options), CPU)


@pytest.fixture(scope="module")
def examples(scenes):
    return measure_reading(pretraining(scenes), 0.1)[1]


@pytest.fixture(scope="module")
def planned(scenes):
    options = {"loader": LoaderSettings(8, 0), "trainer": TrainerSettings(max_epochs=3)}
    return plan(pretraining(scenes, **options), gpus=[1, 2], link=1e9, seconds=0.3)


def kept_in_a_step(model, batch):
    """By hand: each storage that autograd keeps, but for weights and buffers."""
    there = {x.untyped_storage().data_ptr() for x in (*model.parameters(), *model.buffers())}
    kept = {}

    def keep(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage()
        return x

    views = model.make_views(batch, 0)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        first, second = (model.embed({n: v[i] for n, v in views.items()})[1] for i in (0, 1))
        model.objective({name: (first[name], second[name]) for name in first})
    return sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in there)


@pytest.mark.parametrize("encoder", ["test_resnet", "test_vit"])
def test_memory_of_a_batch_from_that_of_small_ones(scenes, examples, encoder):
    options = {"encoder": EncoderSettings(encoder), "views": ViewSettings(32)}
    foreseen = measure_memory(steps(scenes, **options), examples, 0)
    found = kept_in_a_step(steps(scenes, **options).model, tile(examples, 24))
    assert foreseen(24, 24)["activations"] == pytest.approx(found, rel=0.02)


@pytest.mark.parametrize(("kind", "views"), [(DeCUR, 2), (CLIP, 1)])
def test_memory_of_other_devices_embeddings(scenes, examples, kind, views):
    objective = kind(dim=2048)
    run = steps(scenes, objective, projector=ProjectorSettings(2048))
    embedding = 2 * views * 2048 * 4  # of a sample
    foreseen = measure_memory(run, examples, embedding)
    assert foreseen(4, 4)["others' embeddings"] == 0

    def kept(batch):
        storages = {}

        def keep(x):
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage()
            return x

        given = {n: tuple(torch.randn(batch, 2048, requires_grad=True) for _ in "ab") for n in "ab"}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            objective(given)
        return sum(storage.nbytes() for storage in storages.values())

    more = kept(16) - kept(4)
    others = foreseen(4, 16)["others' embeddings"]
    assert 0.95 * more <= others <= more + 2 * 12 * embedding


@pytest.mark.parametrize("name", ["lars", "adamw"])
def test_weights_gradients_and_state(scenes, examples, name):
    run = steps(scenes, optimizer=OptimizerSettings(name))
    memory, model = measure_memory(run, examples, 0)(4, 4), run.model
    optimizer = build_optimizer(model, OptimizerSettings(name), 4)
    batch = tile(examples, 4)
    model.training_step(batch, 0).backward()
    optimizer.step()
    state = [x for entry in optimizer.state.values() for x in entry.values()]
    moments = sum(x.nbytes for x in state if torch.is_tensor(x) and x.ndim)
    assert memory["optimiser"] == pytest.approx(moments, rel=1e-3)
    assert memory["gradients"] == sum(p.grad.nbytes for p in model.parameters())
    saved = sum(x.numel() * 4 for x in model.state_dict().values())
    assert memory["weights"] == pytest.approx(saved, rel=0.01)
    assert memory["pictures"] == sum(x.nbytes for x in batch["images"].values())


def test_operations_of_parts_by_hand(scenes, examples):
    run = steps(scenes, projector=ProjectorSettings(32, 3))
    found = run.operations(tile(examples, 6))
    width = run.model.encoder("sar").dim  # both sensors' vectors are of this width
    assert found["projectors"] == 2 * 2 * (2 * 6) * (width * 32 + 2 * 32**2)
    assert found["encoders"] > found["projectors"]
    forward = found["encoders"] + found["projectors"]
    assert 1.5 * forward < found["backward"] < 2 * forward


def test_time_is_a_line():
    fixed, each = line([(8, 1.0), (32, 2.2)])
    assert fixed + 128 * each == pytest.approx(0.6 + 0.05 * 128)
    for slow in (0.9, 8.0):  # by chance: faster with more samples, or slower than in proportion
        fixed, each = line([(8, 1.0), (32, slow)])
        assert fixed + 64 * each == pytest.approx(2 * slow)
    fixed, each = line([(8, 1.0)])
    assert fixed + 16 * each == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (1200, 12)),
        ({"max_epochs": 3}, (36, 12)),
        ({"max_epochs": 3, "max_steps": None, "accumulate_grad_batches": None}, (36, 12)),
        ({"max_epochs": 3, "max_steps": 20}, (20, 12)),
        ({"max_epochs": -1, "max_steps": 20}, (20, 12)),
        ({"max_epochs": 3, "max_steps": 20, "accumulate_grad_batches": 2}, (36, 12)),
        ({"max_epochs": 3, "limit_train_batches": 5}, (15, 5)),
        ({"max_epochs": 3, "limit_train_batches": 0.5}, (18, 6)),
    ],
)
def test_steps_of_a_run(options, expected):
    assert length_of_run(options, 100 // 8) == expected


@pytest.mark.parametrize(
    ("each", "chosen"), [(2.0, [2]), (0.1, [4, 16]), (0.01, [16, 64]), (1e-4, [32, 128])]
)
def test_steps_are_of_the_largest_batch_that_is_fast_enough(each, chosen):
    sizes = [2, 4, 8, 16, 32, 64, 128]
    found = time_steps(lambda samples, least: [samples * each] * 3, sizes, 10.0)
    assert found == [(samples, pytest.approx(samples * each)) for samples in chosen]


def test_a_plan_adds_up(planned, scenes):
    one, two = planned.shares
    assert planned.steps == 6 and planned.epochs == 3
    assert (one.samples, two.samples) == (8, 4) and one.seconds["sending"] == 0
    trained = sum(p.numel() for p in steps(scenes).model.parameters())
    assert planned.parameters == trained
    assert two.sent == traffic(32, 2, 8, trained, 2)
    assert two.seconds["sending"] == two.sent["total"] / 1e9
    for key in ("weights", "gradients", "optimiser"):
        assert one.memory[key] == two.memory[key] > 0
    assert one.memory["pictures"] == 2 * two.memory["pictures"]
    assert one.memory["all"] == sum(n for part, n in one.memory.items() if part != "all")
    took, other = one.seconds["a step"], two.seconds["a step"]
    assert took >= one.seconds["computing"] + one.seconds["reading"]  # no workers: by turns
    assert one.hours > 6 * took / 3600
    assert one.hours - two.hours == pytest.approx(6 * (took - other) / 3600)
    assert planned.reading["pictures"] == 32 * 32 * (6 + 2) * 4


def test_a_plan_states_what_it_assumes(planned, capsys):
    print_cost(dataclasses.replace(planned, capacity=16 * 10**9, link=5e8))
    said = capsys.readouterr().out.partition("assumed:")[2]
    for assumed in (
        "all devices are like cpu, have 16 GB each and send 500 MB/s (--link)",
        "memory lies on the line through steps of 2 and 4 samples; kernels, the allocator and",
        "files that are in memory (page cache)",
    ):
        assert assumed in said


def test_what_to_do_where_memory_will_not_do(planned):
    assert not list(planned.warnings())
    one, two = planned.shares
    between = (one.memory["all"] + two.memory["all"]) / 2 / 0.9
    (warning,) = dataclasses.replace(planned, capacity=between).warnings()
    assert "on one device" in warning and "bf16-mixed" in warning
    advised = int(warning.split("loader.batch_size ")[1].split(";")[0])
    assert 4 <= advised < 8
    fixed = sum(one.memory[key] for key in ("weights", "gradients", "optimiser"))
    (first, second) = dataclasses.replace(planned, capacity=fixed).warnings()
    assert "projector.width" in first and "on 2 devices" in second
    (ready,) = dataclasses.replace(planned, workers=10**12).warnings()
    assert "loader.workers" in ready


def test_bytes_of_files(tmp_path):
    for sensor in ("a", "b"):
        (tmp_path / sensor).mkdir()
        for i in range(6):
            np.save(tmp_path / sensor / f"{i}.npy", np.full((1, 32, 32), i, np.float32))
    reading, batch = measure_reading(pretraining(PairedFolder(tmp_path)), 0.05)
    assert reading["pictures"] == 2 * 32 * 32 * 4 and reading["rate"] > 0 and reading["alone"] > 0
    assert reading["files"] >= reading["pictures"]
    assert len(tile(batch, 9)["ids"]) == 9


def test_examples_are_those_with_most_sensors():
    images = {name: torch.arange(3.0)[:, None] for name in SENSORS}
    there = torch.tensor([True, True, True])
    present = {"optical": there, "sar": torch.tensor([False, True, False])}
    batch = {"images": images, "present": present, "target": {}, "ids": list("abc"), "bad": []}
    assert tile(batch, 4)["ids"] == ["b", "a", "c", "b"]


SMALL = ["--data", "SyntheticScenes", "--data.samples", "16", "--data.size", "32",
         "--modalities", "optical", "sar", "--encoder.name", "test_resnet", "--projector.width",
         "32", "--views.size", "24", "--loader.batch_size", "4", "--loader.workers", "0",
         "--device", "cpu"]  # fmt: skip


def test_the_command(capsys, tmp_path):
    file = tmp_path / "new" / "plan.json"
    main(["plan", *SMALL, "--seconds", "0.1", "--gpus", "1", "2", "--samples", "4000"]
         + ["--memory", "0.001", "--trainer.max_epochs", "2", "--json", str(file)]
         + ["--objective.common", "auto"])  # fmt: skip
    out = capsys.readouterr().out
    assert "4,000 samples, 2 epochs, 2,000 steps" in out and "2 devices" in out
    assert "WARNING" in out and "memory of a device" in out
    # a tenth is held out of the training that counts, which takes an epoch
    assert "900 steps come first and count the share" in out
    found = json.loads(file.read_text())
    took = found["shares"][0]["seconds"]["a step"]
    assert found["counting"] == 900 and found["shares"][0]["hours"] > 2900 * took / 3600
    assert found["steps"] == 2000 and len(found["shares"]) == 2 and len(found["warnings"]) == 2
    assert found["capacity"] == 1_000_000
    assert not (tmp_path / "runs").exists()


def test_many_devices_are_columns_that_stay_whole_on_a_narrow_terminal(planned, capsys):
    counts = range(1, 14)
    shares = [dataclasses.replace(planned.shares[0], gpus=count) for count in counts]
    print_cost(dataclasses.replace(planned, shares=shares))
    tables = re.findall(r"^ ─+ *\n((?: .*\S.*\n)+)", capsys.readouterr().out, re.M)
    assert len(tables) == 2 and all(table.count("\n") <= MOST_ROWS for table in tables)
    (weights,) = (line for line in tables[0].splitlines() if "weights" in line)
    assert weights.count("MB") == len(counts)


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        (["--gpus", "3"], "does not divide among 3"),
        (["--gpus", "4"], "2 or more samples"),
        (["--seconds", "0"], "--seconds"),
        (["--device", "abacus"], "--device"),
        (["--encoder.nmae", "resnet18"], "did you mean encoder.name"),
        (["--loader.batch_size", "32"], "--samples"),
        (["--trainer.max_epochs", "-1"], "max_epochs"),
        (["--data", "PairedFolder", "--data.root", "/nowhere"], "/nowhere"),
        (["--json", "."], "--json .: is a folder; give a file in it"),
    ],
)
def test_wrong_options_end_in_one_line(capsys, wrong, line):
    with pytest.raises(SystemExit) as stopped:
        main(["plan", *SMALL, *wrong])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and line in error and error.count("\n") == 1


def test_a_model_that_no_device_holds(scenes, monkeypatch):
    monkeypatch.setattr("decur.bench.plan.device_memory", lambda device: 1000)
    with pytest.raises(ConfigError, match=r"projector\.width"):
        plan(pretraining(scenes))


def test_a_file_of_print_config_is_taken(capsys, tmp_path):
    from decur.bench.commands import bench_command, plan_command
    from decur.pretrain.configuration import build_parser

    with pytest.raises(SystemExit):
        build_parser("decur pretrain", "").parse(["--data", "SyntheticScenes", "--print_config"])
    config = tmp_path / "c.yaml"
    config.write_text(capsys.readouterr().out)
    assert "resume: false" in config.read_text()
    for command, words in ((plan_command, []), (bench_command, ["step"])):
        with pytest.raises(ConfigError, match="nowhere"):  # the last thing that is looked at
            command([*words, "--config", str(config), "--device", "nowhere"])
