"""An interrupted run ends as the uninterrupted one: bit for bit."""

import errno
import logging
import os
import shutil
import signal
import time

import torch
import yaml
from safetensors.torch import load_file

from decur.cli import main
from decur.pretrain.command_pretrain import main as pretrain
from decur.runs import RunFolder

OFTEN = ("--checkpoint.every_minutes=0", "--trainer.max_epochs=4")  # after each of 12 steps


def encoders(folder):
    return {p.name: load_file(p) for p in sorted((folder / "encoders").glob("*.safetensors"))}


def assert_same_run(a, b):
    left, right = encoders(a), encoders(b)
    assert left.keys() == right.keys() and len(left) == 2
    for name in left:
        for key in left[name]:
            assert torch.equal(left[name][key], right[name][key]), (name, key)
    timeless = [
        [row.rsplit(",", 1)[0] for row in (f / "metrics.csv").read_text().splitlines()]
        for f in (a, b)
    ]
    assert timeless[0] == timeless[1]


def wait_for(folder, step, command):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and command.process.is_alive():
        found = [int(p.stem.split("-")[1]) for p in (folder / "checkpoints").glob("step-*.ckpt")]
        if max(found, default=0) >= step:
            return
        time.sleep(0.01)
    raise AssertionError(f"no checkpoint of step {step}: {command.end(0)}")


def test_killed_and_told_to_stop_a_run_ends_as_the_uninterrupted_one(
    tiny, tiny_arguments, apart, tmp_path
):
    whole = tiny(*OFTEN, name="whole")
    folder = tmp_path / "broken"
    command = ["pretrain", *tiny_arguments, *OFTEN, f"--run={folder}"]

    killed = apart(main, command)
    wait_for(folder, 2, killed)
    killed.process.kill()
    assert killed.end()[0] == -signal.SIGKILL
    assert not (folder / "encoders").exists()

    told = apart(main, [*command, "--loader.workers=2", "--resume"])
    wait_for(folder, 5, told)
    os.killpg(told.process.pid, signal.SIGTERM)  # as a scheduler does: workers are told, too
    code, _, error = told.end()
    assert code == 128 + signal.SIGTERM, error
    assert "the same command goes on from here" in error and "Traceback" not in error
    assert not list((folder / "checkpoints").glob(".*"))  # nothing half written

    tiny(*OFTEN, name="broken")  # the same command, without --resume
    assert_same_run(whole, folder)


def test_the_folder_alone_is_enough_also_where_options_have_come_since(tiny):
    whole = tiny("--trainer.max_epochs=2", name="whole")
    broken = tiny("--trainer.max_epochs=2", name="broken")
    sorted((broken / "checkpoints").glob("*.ckpt"))[-1].unlink()
    shutil.rmtree(broken / "encoders")
    config = yaml.safe_load((broken / "config.yaml").read_text())
    del config["encoder"]["checkpointing"], config["data"]["init_args"]["noise"]
    (broken / "config.yaml").write_text(yaml.safe_dump(config))
    pretrain(["--resume", f"--run={broken}"])
    assert_same_run(whole, broken)


def test_a_truncated_checkpoint_falls_back_to_the_one_before(tiny, caplog):
    whole = tiny("--trainer.max_epochs=3", name="whole")
    broken = tiny("--trainer.max_epochs=3", name="broken")
    # as if the run had died after its second epoch, with the disk damaged
    last = sorted((broken / "checkpoints").glob("*.ckpt"))[-1]
    last.write_bytes(last.read_bytes()[:1000])
    for path in (broken / "encoders").iterdir():
        path.unlink()
    with caplog.at_level(logging.WARNING):  # workers read ahead before Lightning says which epoch
        tiny("--trainer.max_epochs=3", "--loader.workers=1", name="broken")
    assert f"{last} is damaged" in caplog.text
    assert_same_run(whole, broken)


def test_a_number_of_steps_ends_within_an_epoch_and_is_resumed_from_the_end_of_one(tiny):
    options = ("--trainer.max_steps=5", "--trainer.max_epochs=9")  # an epoch has 3
    whole, broken = (tiny(*options, name=name) for name in ("whole", "broken"))
    saved = sorted((broken / "checkpoints").glob("*.ckpt"))
    assert [path.name for path in saved] == ["step-000000003.ckpt", "step-000000005.ckpt"]
    saved[-1].unlink()
    tiny(*options, name="broken")
    assert_same_run(whole, broken)
    tiny(*options, name="broken")  # it is finished: nothing is trained any more
    assert_same_run(whole, broken)
    longer = tiny("--trainer.max_steps=9", "--trainer.max_epochs=9", name="longer")
    epochs = tiny("--trainer.max_epochs=3", name="epochs")
    assert_same_run(longer, epochs)


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
