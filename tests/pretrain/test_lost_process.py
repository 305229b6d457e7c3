"""A process of several that dies ends the run with its reason, and the run goes on from there."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from decur.errors import ProcessLostError
from decur.pretrain.distributed import reporting_lost_processes

PAIR = ("--trainer.devices=2", "--trainer.accelerator=cpu", "--checkpoint.every_minutes=0")
# LARS: AdamW makes whole steps of gradients that are zero but for rounding
PAIR += ("--trainer.max_epochs=4", "--optimizer.name=lars", "--optimizer.lr=0.1")
PAIR += ("--optimizer.lr_bias=0.0002",)


class OneOfTwo:
    world_size, global_rank = 2, 0


class Alone:
    world_size, global_rank = 1, 0


def test_only_what_collectives_raise_counts_as_a_lost_process():
    with (
        pytest.raises(ProcessLostError, match=r"process 0 of 2 .*Connection closed by peer"),
        reporting_lost_processes(OneOfTwo()),
    ):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [::1]:5")
    with pytest.raises(RuntimeError, match="shapes"), reporting_lost_processes(OneOfTwo()):
        raise RuntimeError("shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="gloo"), reporting_lost_processes(Alone()):
        raise RuntimeError("gloo")


def children(process):
    return [
        int(pid)
        for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        if b"pretrain" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the other process in /proc")
@pytest.mark.parametrize(("strategy", "then"), [("ddp", "ddp"), ("ddp", "fsdp"), ("fsdp", "ddp")])
def test_a_killed_process_ends_the_run_and_the_run_goes_on(strategy, then, tiny_process):
    options = (*PAIR, f"--trainer.strategy={strategy}")
    process, whole = tiny_process(*options, name="whole")
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error

    process, broken = tiny_process(*options, name="broken")
    deadline = time.monotonic() + 200
    while len(list((broken / "checkpoints").glob("step-*.ckpt"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    (other,) = children(process)
    os.kill(other, signal.SIGKILL)
    killed = time.monotonic()
    _, error = process.communicate(timeout=60)
    assert time.monotonic() - killed < 60 and process.returncode != 0
    assert "Traceback" not in error
    reasons = [line for line in error.splitlines() if "lost another" in line or "-9" in line]
    assert reasons, error
    assert not (broken / "encoders").exists()

    process, broken = tiny_process(*PAIR, f"--trainer.strategy={then}", name="broken")
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    files = sorted((whole / "encoders").iterdir())
    assert len(files) == 2
    for path in files:
        a, b = load_file(path), load_file(broken / "encoders" / path.name)
        for key in a:
            assert torch.allclose(a[key], b[key], rtol=1e-4, atol=1e-5), key
