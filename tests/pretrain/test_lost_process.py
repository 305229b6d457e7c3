"""A process of several that dies ends the run with its reason, and the run goes on from there."""

import json
import math
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file
from torch import multiprocessing

from decur.errors import ProcessLostError
from decur.objectives.distributed import _host_group
from decur.pretrain.distributed import from_first, reporting_lost_processes

PAIR = ("--trainer.devices=2", "--trainer.accelerator=cpu", "--checkpoint.every_minutes=0")
# LARS: AdamW makes whole steps of gradients that are zero but for rounding
PAIR += ("--trainer.max_epochs=4", "--optimizer.name=lars", "--optimizer.lr=0.1")
PAIR += ("--optimizer.lr_bias=0.0002",)


class OneOfTwo:
    world_size, global_rank = 2, 0
    strategy = SimpleNamespace(_timeout=timedelta(seconds=90), process_group_backend="nccl")


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


@pytest.mark.parametrize(
    ("whose", "words"),
    [
        ("gloo", "[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 90000ms for recv"),
        (
            "nccl",
            "Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, Timeout(ms)=90000)",
        ),
    ],
)
def test_time_outs_are_named_the_process_s_own_and_that_of_the_collective(whose, words):
    with (
        pytest.raises(ProcessLostError, match=rf"process 0 of 2 .*own is 90 s, {whose}'s.*90000"),
        reporting_lost_processes(OneOfTwo()),
    ):
        raise RuntimeError(words)


def test_hosts_give_up_before_nccl_ends_their_processes(monkeypatch):
    asked = []

    def new_group(**options):
        asked.append(options)
        return dist.ProcessGroup(0, 1)

    monkeypatch.setattr(dist, "get_backend", lambda group: "nccl")
    monkeypatch.setattr(dist, "new_group", new_group)
    _host_group.__wrapped__(None)
    (options,) = asked
    assert options["backend"] == "gloo"
    assert timedelta(minutes=20) < options["timeout"] < dist.default_pg_timeout


def _await_the_first(rank, folder, fails):
    # A collective would end after a tenth of what the first process takes.
    rendezvous = f"file://{folder}/rendezvous"
    dist.init_process_group(
        "gloo", rendezvous, timeout=timedelta(seconds=0.3), rank=rank, world_size=2
    )

    def work():
        time.sleep(3)
        if fails:
            raise ValueError("broken")
        return {"rank": 1.5, "none": math.nan}

    for _ in range(1 if fails else 2):
        if fails and rank == 0:
            with pytest.raises(ValueError, match="broken"):
                from_first(work)
        elif fails:
            with pytest.raises(ProcessLostError, match="process 1 of 2: the first one has failed"):
                from_first(work)
        else:
            found = from_first(work)
            assert found["rank"] == 1.5 and math.isnan(found["none"])
    Path(folder, f"{rank}.done").touch()


@pytest.mark.parametrize("fails", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_others_wait_for_monitors_of_the_first_process_without_a_time_out(fails, tmp_path):
    multiprocessing.start_processes(
        _await_the_first, (str(tmp_path), fails), nprocs=2, start_method="forkserver"
    )
    assert len(list(tmp_path.glob("*.done"))) == 2


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
    for path in (broken / "encoders").glob("*.safetensors"):  # those of the last whole epoch
        with safe_open(path, "pt") as file:
            assert "unfinished" in json.loads(file.metadata()["decur"])

    process, broken = tiny_process(*PAIR, f"--trainer.strategy={then}", name="broken")
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    files = sorted((whole / "encoders").iterdir())
    assert len(files) == 2
    for path in files:
        a, b = load_file(path), load_file(broken / "encoders" / path.name)
        for key in a:
            assert torch.allclose(a[key], b[key], rtol=1e-4, atol=1e-5), key
