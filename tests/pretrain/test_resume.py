"""An interrupted run ends as the uninterrupted one: bit for bit."""

import csv
import errno
import logging
import os
import shutil
import signal

import torch
import yaml
from make_folder import make_folder
from safetensors.torch import load_file

from decur.cli import main
from decur.pretrain import Pretrainer
from decur.pretrain.command_pretrain import main as pretrain
from decur.pretrain.outcome import KEY
from decur.pretrain.restore import restore
from decur.pretrain.state import TrainingState
from decur.runs import RunFolder

OFTEN = "--checkpoint.every_minutes=0"  # after each of 6 steps


def encoders(folder):
    return {p.name: load_file(p) for p in sorted((folder / "encoders").glob("*.safetensors"))}


def assert_same_run(a, b):
    left, right = encoders(a), encoders(b)
    assert left.keys() == right.keys() and len(left) == 2
    for name in left:
        for key in left[name]:
            assert torch.equal(left[name][key], right[name][key]), (name, key)
    timeless = [list(csv.DictReader((f / "metrics.csv").open())) for f in (a, b)]
    for row in (*timeless[0], *timeless[1]):
        del row["pairs_per_second"]
    assert timeless[0] == timeless[1]


# -- the command in a process of its own, in which a signal comes at a known place -----------------


def killed_when_saved(command):
    def save_and_die(self, *rest, save=TrainingState.save):
        save(self, *rest)
        os.kill(os.getpid(), signal.SIGKILL)

    TrainingState.save = save_and_die
    main(command)


def told_in_a_step(command):
    def step(self, batch, batch_idx, step=Pretrainer.training_step):
        if self.global_step == 3:  # the first of the second epoch
            os.killpg(0, signal.SIGTERM)  # as a scheduler does: workers are told, too
        return step(self, batch, batch_idx)

    Pretrainer.training_step = step
    main(command)


def test_killed_and_told_to_stop_a_run_ends_as_the_uninterrupted_one(
    tiny, ready, tiny_arguments, apart, tmp_path
):
    folder = tmp_path / "broken"
    command = ["pretrain", *tiny_arguments, OFTEN, f"--run={folder}"]

    code, _, error = apart(killed_when_saved, command).end()
    assert code == -signal.SIGKILL, error
    assert [p.name for p in (folder / "checkpoints").glob("*.ckpt")] == ["step-000000001.ckpt"]
    assert restore(folder).encoders.keys() == {"optical", "sar"}  # of use as it is

    code, _, error = apart(told_in_a_step, [*command, "--loader.workers=2", "--resume"]).end()
    assert code == 128 + signal.SIGTERM, error
    assert "the same command goes on from here" in error and "Traceback" not in error
    assert not list((folder / "checkpoints").glob(".*"))  # nothing half written
    assert RunFolder(folder).newest_checkpoint().name == "step-000000004.ckpt"

    tiny(OFTEN, name="broken")  # the same command, without --resume
    assert_same_run(ready(name="whole"), folder)


def test_the_folder_alone_is_enough_also_where_options_have_come_since(ready):
    whole, broken = ready(name="whole"), ready(name="broken")
    sorted((broken / "checkpoints").glob("*.ckpt"))[-1].unlink()
    shutil.rmtree(broken / "encoders")
    config = yaml.safe_load((broken / "config.yaml").read_text())
    del config["encoder"]["checkpointing"], config["data"]["init_args"]["noise"]
    (broken / "config.yaml").write_text(yaml.safe_dump(config))
    pretrain(["--resume", f"--run={broken}"])
    assert_same_run(whole, broken)


def test_a_run_whose_pictures_were_normalised_otherwise_is_not_gone_on_with(ready, refused):
    folder = ready()
    older, last = sorted((folder / "checkpoints").glob("*.ckpt"))[-2:]
    last.unlink()
    saved = torch.load(older, weights_only=True)
    saved[KEY]["options"]["sar"]["normalisation"] = {"mean": [0.5, 0.5], "std": [0.2, 0.2]}
    torch.save(saved, older)
    said = refused("pretrain", "--resume", f"--run={folder}")
    assert "gave the pretrained weights of sar pictures" in said


def test_a_truncated_checkpoint_falls_back_to_the_one_before(tiny, ready, caplog):
    whole, broken = ready(name="whole"), ready(name="broken")
    # as if the run had died after its second epoch, with the disk damaged
    last = sorted((broken / "checkpoints").glob("*.ckpt"))[-1]
    last.write_bytes(last.read_bytes()[:1000])
    for path in (broken / "encoders").iterdir():
        path.unlink()
    with caplog.at_level(logging.WARNING):  # workers read ahead before Lightning says which epoch
        tiny("--loader.workers=1", name="broken")
    assert f"{last} is damaged" in caplog.text
    assert_same_run(whole, broken)


def test_a_number_of_steps_ends_within_an_epoch_and_is_resumed_from_the_end_of_one(tiny, ready):
    options = ("--trainer.max_steps=5", "--trainer.max_epochs=9")  # an epoch has 3
    whole, broken = (ready(*options, name=name) for name in ("whole", "broken"))
    saved = sorted((broken / "checkpoints").glob("*.ckpt"))
    assert [path.name for path in saved] == ["step-000000003.ckpt", "step-000000005.ckpt"]
    saved[-1].unlink()
    tiny(*options, name="broken")
    assert_same_run(whole, broken)
    tiny(*options, name="broken")  # it is finished: nothing is trained any more
    assert_same_run(whole, broken)
    steps = tiny("--trainer.max_steps=6", "--trainer.max_epochs=9", name="steps")
    assert_same_run(steps, ready(name="epochs"))


def test_a_full_disk_keeps_the_old_checkpoint_and_the_run(tiny, monkeypatch, caplog):
    real, calls = torch.save, []

    def save(thing, path, *rest):
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"part of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(thing, path, *rest)

    monkeypatch.setattr("decur.pretrain.state.torch.save", save)
    with caplog.at_level(logging.WARNING):
        folder = tiny("--trainer.max_epochs=3")
    assert "No space left" in caplog.text
    steps = [path.name for path in sorted((folder / "checkpoints").iterdir())]
    assert steps == ["step-000000003.ckpt", "step-000000009.ckpt"]
    assert RunFolder(folder).newest_checkpoint().name == steps[-1]


def test_pictures_that_have_changed_since_are_told(tmp_path, caplog):
    ids = [str(number) for number in range(16)]
    root = make_folder(tmp_path / "pairs", {"a": ids, "b": ids})
    command = ["--config=demo", "--data=PairedFolder", f"--data.root={root}"]
    command += ["--projector.width=16", "--views.size=16", "--loader.batch_size=8"]
    command += ["--loader.workers=0", "--monitor.every_epochs=0", f"--run={tmp_path / 'run'}"]
    pretrain([*command, "--trainer.max_epochs=1"])
    pretrain([*command, "--trainer.max_epochs=2"])
    assert "the data has changed" not in caplog.text
    first = sorted((root / "a").iterdir())[0]
    os.utime(first, ns=(0, 0))
    pretrain([*command, "--trainer.max_epochs=3"])
    assert "the data has changed since" in caplog.text and "--overwrite starts anew" in caplog.text
