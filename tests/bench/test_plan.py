"""`decur plan`: what it foresees against what really is kept, stored, sent and counted by hand."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from decur.bench.device import Rates
from decur.bench.traffic import traffic
from decur.cli import main
from decur.data import LoaderSettings, PairedFolder, SyntheticScenes
from decur.encoders import EncoderSettings
from decur.errors import ConfigError
from decur.objectives import DeCUR
from decur.plan import Calibration, Shape, calibrate, measure_reading, parts_of, plan
from decur.plan.calibration import measure_activations
from decur.plan.costs import kept_by_loss
from decur.plan.estimate import _length
from decur.plan.reading import tile
from decur.pretrain import Pretrainer
from decur.pretrain.optim import build_optimizer
from decur.pretrain.settings import OptimizerSettings, ProjectorSettings, ViewSettings

SENSORS = ["optical", "sar"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def scenes():
    return SyntheticScenes(samples=16, size=32, modalities=SENSORS)


def build(scenes, **options):
    given = {"encoder": EncoderSettings("test_resnet"), "projector": ProjectorSettings(32)}
    still = OptimizerSettings("adamw", lr=0.0, lr_bias=0.0)
    given |= {"views": ViewSettings(24), "optimizer": still, "batch_size": 4}
    return Pretrainer(scenes.modalities, DeCUR(dim=32), **{**given, **options})


@pytest.fixture(scope="module")
def examples(scenes):
    return measure_reading(scenes, LoaderSettings(4, 0), 0, 0.1)[1]


@pytest.fixture(scope="module", autouse=True)
def known_device():
    """The device's best is measured, and tested, elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        rates = Rates(matrix=1e12, copy=1e10)
        patch.setattr("decur.plan.estimate.measure_device", lambda *_: rates)
        yield


@pytest.fixture(scope="module")
def planned(scenes, known_device):
    return plan(
        scenes,
        DeCUR(dim=32),
        encoder=EncoderSettings("test_resnet"),
        projector=ProjectorSettings(32),
        views=ViewSettings(24),
        optimizer=OptimizerSettings("adamw"),
        loader=LoaderSettings(8, 0),
        trainer={"max_epochs": 3},
        gpus=[1, 2],
        seconds=0.3,
        link=1e9,
    )


def kept_in_a_step(model, batch):
    """By hand: each storage that autograd keeps, but for weights, buffers and views."""
    views = model.make_views(batch, 0)
    but = [*model.parameters(), *model.buffers(), *(v for pair in views.values() for v in pair)]
    there = {x.untyped_storage().data_ptr() for x in but}
    kept = {}

    def keep(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        pairs = zip(*(model.embed({n: v[i] for n, v in views.items()})[1].items() for i in (0, 1)))  # noqa: B905
        model.objective({first[0]: (first[1], second[1]) for first, second in pairs})
    return sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in there)


@pytest.mark.parametrize("encoder", ["test_resnet", "test_vit"])
def test_memory_of_a_batch_from_that_of_small_ones(scenes, examples, encoder):
    options = {"encoder": EncoderSettings(encoder), "views": ViewSettings(32)}
    kept = measure_activations(build(scenes, **options), examples, {}, CPU)
    loss = {n: kept_by_loss(DeCUR(dim=32), SENSORS, n) for n in (2, 4, 24)}
    each = (kept[4] - loss[4] - kept[2] + loss[2]) / 2
    fixed = kept[2] - loss[2] - 2 * each
    found = kept_in_a_step(build(scenes, **options), tile(examples, 24))
    assert fixed + 24 * each + loss[24] == pytest.approx(found, rel=0.02)


@pytest.mark.parametrize("name", ["lars", "adamw"])
def test_weights_gradients_and_state(scenes, examples, name):
    model = build(scenes)
    settings = OptimizerSettings(name)
    model.optimizer_settings = settings
    memory = Shape.of(model, 4).memory(4, 0)
    optimizer = build_optimizer(model, settings, 4)
    batch = tile(examples, 4)
    model.training_step(batch, 0).backward()
    optimizer.step()
    state = [x for entry in optimizer.state.values() for x in entry.values()]
    moments = sum(x.nbytes for x in state if torch.is_tensor(x) and x.ndim)
    assert memory.optimizer == pytest.approx(moments, rel=1e-3)
    assert memory.gradients == sum(p.grad.nbytes for p in model.parameters())
    saved = sum(x.numel() * 4 for x in model.state_dict().values())
    assert memory.weights == pytest.approx(saved, rel=0.01)
    views = model.make_views(batch, 0)
    assert memory.views == sum(v.nbytes for pair in views.values() for v in pair)


def test_parts_by_hand(scenes):
    model = build(scenes, projector=ProjectorSettings(32, 3)).to("meta")
    found = {part.name: part for part in parts_of(model, DeCUR(dim=32), 6)}
    assert list(found)[-1] == "objective" and len(found) == 5
    projector, width = found["projector sar"], model.encoder("sar").dim
    assert projector.forward == 2 * (2 * 6) * (width * 32 + 2 * 32**2)
    assert projector.backward == 2 * projector.forward
    assert found["encoder sar"].parameters == sum(
        p.numel() for p in model.encoder("sar").parameters()
    )
    assert found["encoder optical"].forward > found["encoder sar"].forward  # six bands, not two


def test_time_is_a_line():
    measured = Calibration(((8, 1.0), (32, 2.2)), (), 1)
    assert measured.seconds(128) == pytest.approx(0.6 + 0.05 * 128)
    for slow in (0.9, 8.0):  # by chance: faster with more samples, or slower than in proportion
        steps = Calibration(((8, 1.0), (32, slow)), (), 1)
        assert steps.seconds(64) == pytest.approx(2 * slow)
    assert Calibration(((8, 1.0),), (), 1).seconds(16) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (1200, 12)),
        ({"max_epochs": 3}, (36, 12)),
        ({"max_epochs": 3, "max_steps": 20}, (20, 12)),
        ({"max_epochs": -1, "max_steps": 20}, (20, 12)),
        ({"max_epochs": 3, "max_steps": 20, "accumulate_grad_batches": 2}, (36, 12)),
        ({"max_epochs": 3, "limit_train_batches": 5}, (15, 5)),
        ({"max_epochs": 3, "limit_train_batches": 0.5}, (18, 6)),
    ],
)
def test_steps_of_a_run(options, expected):
    assert _length(options, 100, 8) == expected


def test_calibration_takes_what_is_fast_enough(scenes, examples):
    found = calibrate(build(scenes), examples, [2, 4, 8], {}, CPU, 1e-3)
    assert [samples for samples, _ in found.steps] == [2]
    assert found.threads == torch.get_num_threads() and not found.peaks


def test_a_plan_adds_up(planned):
    one, two = planned.shares
    assert planned.steps == 6 and planned.epochs == 3
    assert (one.samples, two.samples) == (8, 4) and one.exchange == 0
    trained = sum(part.parameters for part in planned.parts)
    assert two.exchange == traffic(32, 2, 8, trained, 2)["total"] / 1e9
    assert one.memory.fixed == two.memory.fixed
    assert one.memory.views == 2 * two.memory.views
    assert one.step >= one.compute + one.reading  # no workers: by turns
    assert one.hours == pytest.approx((6 * one.step + 3 * planned.monitor) / 3600)
    assert planned.reading.pictures == 32 * 32 * (6 + 2) * 4 and 0 < planned.reached < 1.5


def test_what_to_do_where_memory_will_not_do(planned):
    assert not list(planned.warnings())
    one, two = planned.shares
    between = (one.memory.total + two.memory.total) / 2 / 0.9
    (warning,) = dataclasses.replace(planned, capacity=between).warnings()
    assert "on one device" in warning and "bf16-mixed" in warning
    advised = int(warning.split("loader.batch_size ")[1].split(";")[0])
    assert 4 <= advised < 8
    (first, second) = dataclasses.replace(planned, capacity=one.memory.fixed).warnings()
    assert "projector.width" in first and "on 2 devices" in second
    (ready,) = dataclasses.replace(planned, ahead=10**15).warnings()
    assert "loader.workers" in ready


def test_bytes_of_files(tmp_path):
    for sensor in ("a", "b"):
        (tmp_path / sensor).mkdir()
        for i in range(6):
            np.save(tmp_path / sensor / f"{i}.npy", np.full((1, 32, 32), i, np.float32))
    reading, batch = measure_reading(PairedFolder(tmp_path), LoaderSettings(2, 0), 0, 0.05)
    assert reading.pictures == 2 * 32 * 32 * 4 and reading.rate > 0 and reading.alone > 0
    assert reading.files is None or reading.files >= reading.pictures
    assert len(tile(batch, 9)["ids"]) == 9


SMALL = ["--data", "SyntheticScenes", "--data.samples", "16", "--data.size", "32",
         "--modalities", "optical", "sar", "--encoder.name", "test_resnet", "--projector.width",
         "32", "--views.size", "24", "--loader.batch_size", "4", "--loader.workers", "0",
         "--device", "cpu"]  # fmt: skip


def test_the_command(capsys, tmp_path):
    file = tmp_path / "new" / "plan.json"
    main(["plan", *SMALL, "--seconds", "0.1", "--gpus", "1", "2", "--samples", "4000"]
         + ["--memory", "0.001", "--trainer.max_epochs", "2", "--json", str(file)])  # fmt: skip
    out = capsys.readouterr().out
    assert "4,000 samples, 2 epochs, 2,000 steps" in out and "2 devices" in out
    assert "WARNING" in out and "memory of a device" in out
    found = json.loads(file.read_text())
    assert found["steps"] == 2000 and len(found["shares"]) == 2 and len(found["warnings"]) == 2
    assert not (tmp_path / "runs").exists()


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
    ],
)
def test_wrong_options_end_in_one_line(capsys, wrong, line):
    with pytest.raises(SystemExit) as stopped:
        main(["plan", *SMALL, *wrong])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and line in error and error.count("\n") == 1


def test_a_model_that_no_device_holds(scenes, monkeypatch):
    monkeypatch.setattr("decur.plan.estimate.device_memory", lambda device: 1000)
    with pytest.raises(ConfigError, match=r"projector\.width"):
        plan(scenes, DeCUR(dim=32), encoder=EncoderSettings("test_resnet"),
             projector=ProjectorSettings(32), loader=LoaderSettings(4, 0))  # fmt: skip
