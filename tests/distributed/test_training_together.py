"""Several processes train as one with the same global batch, whatever is missing where."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from together import BATCH, DIM, Case, build, finish, silence, start, train
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.tensor.debug import CommDebugMode

from decur.objectives import list_objectives
from decur.pretrain.distributed import Sharded, traffic
from decur.pretrain.state import TrainingState
from decur.runs import RunFolder


def with_holes(objective, encoder, world):
    """Radar absent on the second process alone; files that cannot be read, unevenly."""
    share = BATCH // world
    return Case(
        objective, encoder, frozenset(range(share, 2 * share)), frozenset([0, 2, BATCH - 1])
    )


QUICK = [with_holes("decur", "resnet", 2), with_holes("clip", "vit", 2)]
REST = {
    world: [
        case
        for name in list_objectives()
        for encoder in ("vit", "resnet")
        for case in (with_holes(name, encoder, world), Case(name, encoder))
        if (world, case) not in [(2, quick) for quick in QUICK]
    ]
    for world in (2, 4)
}


def check(world, cases, folder):
    silence()
    context = start(world, folder, cases)
    alone = [train(case) for case in cases]
    finish(context)
    for case, (losses, weights) in zip(cases, alone, strict=True):
        found, others = torch.load(folder / f"{case.name}.pt", weights_only=True)
        torch.testing.assert_close(found, losses, rtol=1e-4, atol=0, msg=case.name)
        compare(others, weights, case)


def compare(found, expected, case):
    for key, value in expected.items():
        difference = float((found[key] - value).abs().max())
        assert difference <= 1e-4 * float(value.abs().max()) + 1e-5, (case.name, key, difference)


def test_processes_train_as_one(tmp_path):
    check(2, QUICK, tmp_path / "found")


@pytest.mark.slow
@pytest.mark.parametrize("world", REST)
def test_processes_train_as_one_for_every_objective_and_encoder(world, tmp_path):
    check(world, REST[world], tmp_path / "found")


SENDING = ("all_gather", "all_gather_into_tensor", "all_reduce", "broadcast", "reduce_scatter")
SENDING += ("reduce_scatter_tensor", "scatter", "all_to_all", "all_to_all_single", "gather")


class Buckets(Callback):
    """Notes what DDP averages, in place of what it does by itself."""

    def __init__(self, sent):
        self.sent = sent

    def on_train_start(self, trainer, pl_module):
        trainer.model.register_comm_hook(dist.group.WORLD, self.average)

    def average(self, group, bucket):
        self.sent.append(("gradients", bucket.buffer().numel()))
        return allreduce_hook(group, bucket)


def count(case, world):
    """What is handed to collectives in a step: the name, and the number of values."""
    sent = []

    def watched(name, real):
        def call(*tensors, **options):
            flat = [t for x in tensors for t in (x if isinstance(x, list | tuple) else [x])]
            sent.append((name, max(t.numel() for t in flat if torch.is_tensor(t))))
            return real(*tensors, **options)

        return call

    real = {name: getattr(dist, name) for name in SENDING}
    for name, function in real.items():
        setattr(dist, name, watched(name, function))
    with TemporaryDirectory() as folder:
        more = [Buckets(sent), TrainingState(RunFolder(Path(folder)))]
        once = {"max_epochs": 1, "limit_train_batches": 1, "enable_checkpointing": True}
        train(case, world, **once, more=more)
    for name, function in real.items():
        setattr(dist, name, function)
    return sent


def test_nothing_of_size_k_by_k_is_sent(tmp_path):
    world, case = 2, Case("decur", "vit")
    finish(start(world, tmp_path / "found", [case], count))
    sent = torch.load(tmp_path / "found" / f"{case.name}.pt", weights_only=True)
    parameters = sum(p.numel() for p in build(case)[0].parameters())
    expected = traffic(DIM, modalities=2, batch=BATCH, parameters=parameters, world=world)
    embedding = BATCH // world * DIM  # values, of a view of a sensor on one process

    # in each step Lightning would ask whether a process was told to stop, and wait for the GPU
    assert "broadcast" not in {name for name, _ in sent}
    averaged = sum(size for name, size in sent if name == "gradients")
    assert 4 * averaged * 2 * (world - 1) // world == expected["gradients"]
    together = 2 * 2 * embedding  # both views of both sensors, in one exchange
    gathered = [size for name, size in sent if name == "all_gather" and size >= embedding]
    assert gathered == [together] and 4 * together * (world - 1) == expected["embeddings"]
    # gloo has no reduce-scatter: each process scatters what it owes the others in its turn
    returned = [size for name, size in sent if name == "scatter"]
    assert returned == [together] * world
    assert 4 * sum(returned) // world * (world - 1) == expected["embedding_gradients"]
    known = {together, *(size for name, size in sent if name == "gradients")}
    rest = [size for _, size in sent if size not in known]
    assert max(rest) <= 2 * DIM + 2 < embedding < DIM * DIM  # batch statistics


def both(case, world):
    """Losses and weights with DDP and with FSDP, which takes no precision of 64 bits by name."""
    single = {"precision": "32-true", "double": True, "max_epochs": 1}
    return train(case, world, **single), train(case, world, **single, strategy=Sharded())


def check_sharded(cases, folder):
    finish(start(2, folder, cases, both))
    for case in cases:
        ddp, fsdp = torch.load(folder / f"{case.name}.pt", weights_only=True)
        torch.testing.assert_close(fsdp[0], ddp[0], rtol=1e-4, atol=0, msg=case.name)
        compare(fsdp[1], ddp[1], case)


class Norms(Callback):
    """Counts what the optimiser's step exchanges."""

    def __init__(self):
        self.seen, self.counts = CommDebugMode(), []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.seen.__enter__()

    def on_train_batch_end(self, trainer, pl_module, *given):
        self.seen.__exit__(None, None, None)
        self.counts.append(self.seen.get_total_counts())


def count_norms(case, world):
    norms = Norms()
    train(case, world, precision="32-true", max_epochs=1, more=[norms], strategy=Sharded())
    return norms.counts


@pytest.mark.slow
def test_lars_over_divided_weights_exchanges_their_norms_at_once(tmp_path):
    case = Case("decur", "vit")
    finish(start(2, tmp_path / "found", [case], count_norms))
    counts = torch.load(tmp_path / "found" / f"{case.name}.pt", weights_only=True)
    weights = sum(p.ndim > 1 for p in build(case)[0].parameters())
    assert 0 < max(counts) <= 10 < weights


@pytest.mark.slow
def test_sharded_training_equals_ddp(tmp_path):
    check_sharded([Case("clip", "vit")], tmp_path / "found")  # CLIP has a parameter of its own


@pytest.mark.slow
def test_sharded_training_equals_ddp_for_every_objective_and_encoder(tmp_path):
    cases = [Case(name, e) for name in list_objectives() for e in ("vit", "resnet")]
    check_sharded([*cases, with_holes("decur", "vit", 2)], tmp_path / "found")
