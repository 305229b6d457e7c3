"""Training on several processes: absent sensors, divided weights (FSDP), lost processes."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from timm.optim.lars import Lars
from torch import Tensor, nn
from torch.distributed import DistError, default_pg_timeout, distributed_c10d
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from decur.encoders.attention.cross import is_crossing
from decur.errors import ConfigError, ProcessLostError
from decur.pretrain.batchnorm import synchronise

Model = TypeVar("Model", bound=nn.Module)
Result = TypeVar("Result")
# How gloo, NCCL and the store say that the other end is gone, or silent for too long.
_LOST = re.compile(
    r"gloo|NCCL|connection (was )?(closed|reset|refused)|broken pipe|timed out|remote process",
    re.IGNORECASE,
)
_LATE = re.compile(r"timed out|time-?out", re.IGNORECASE)
_NUMBERS = itertools.count()  # of results of the first process


# -- sensors of which a process has no sample -----------------------------------------------------


def stand_ins(
    encoders: Mapping[str, nn.Module] | nn.ModuleDict, rows: Mapping[str, Tensor]
) -> set[str]:
    """Return the modalities whose encoder is given one picture in place of an empty batch.

    Transformers do not take an empty batch, and DDP waits for a gradient of every parameter.
    Encoders with batch normalisation take an empty batch, and must: their statistics would include
    any other picture.

    Args:
        encoders: `{modality: encoder}`.
        rows: `{modality: (n,)}`, samples of this process that have the modality.
    """
    return {
        name
        for name, index in rows.items()
        if len(index) == 0
        and not any(isinstance(part, _BatchNorm) for part in encoders[name].modules())
    }


def zero_gradients(parts: Iterable[nn.Module], like: Tensor) -> Tensor:
    """Return a zero whose gradient is zero for all parameters of some modules.

    It stands for a modality that a whole batch lacks. Without a gradient, momentum and weight decay
    would not act in one process as they do in several, where the others have the modality.

    Args:
        parts: the modules.
        like: a tensor on the device of the result.
    """
    total = torch.zeros((), device=like.device)
    for part in parts:
        for parameter in part.parameters():
            if parameter.requires_grad:
                total = total + 0 * parameter.sum()
    return total


# -- weights divided among processes (FSDP) -------------------------------------------------------


class Sharded(ModelParallelStrategy):
    """Divide weights among all processes (FSDP2), with the checkpoints of any other strategy.

    FSDP2 keeps the shapes of parameters, which decide on LARS and weight decay. Lightning's own
    strategy "fsdp" is FSDP1, which flattens parameters and refuses to run without a GPU.
    Checkpoints are those of one process, so a run may go on with another strategy.

    Args:
        timeout: how long a process waits for the others.
    """

    def __init__(self, timeout: timedelta = timedelta(minutes=30)) -> None:
        super().__init__(save_distributed_checkpoint=False, timeout=timeout)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Return True: checkpoints hold the optimiser's state in Lightning's own format."""
        return True

    def setup_environment(self) -> None:
        """Put all processes into one data-parallel group."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()

    def setup_optimizers(self, trainer: L.Trainer) -> None:
        """Make the optimiser of the divided parameters.

        LARS takes them at once: the norms of all go through one exchange, in place of several for
        each. Other kernels for several tensors, which refuse divided ones beside whole ones, are
        not used.
        """
        from torch.distributed.tensor import DTensor

        super().setup_optimizers(trainer)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                divided = all(isinstance(p, DTensor) for p in group["params"])
                together = isinstance(optimizer, Lars) and divided
                kernels = {"foreach": together, "fused": False}
                group.update({key: use for key, use in kernels.items() if key in group})

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return all weights, on the CPU, on the first process, which writes them; else nothing.

        The names are the module's own: torch's function for this would use timm's for an encoder.
        """
        assert self.model is not None
        state = {key: _whole(value) for key, value in self.model.state_dict().items()}
        return state if self.is_global_zero else {}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the whole state, on the CPU, on the first process, which writes it."""
        state = optimizer.state_dict()
        whole = {
            index: {name: _whole(value) for name, value in values.items()}
            for index, values in state["state"].items()
        }
        return {**state, "state": whole} if self.is_global_zero else {}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> Any:
        """Read a checkpoint that any strategy has written."""
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load this process's part of the weights."""
        assert self.model is not None
        own = self.model.state_dict()
        parts = {key: _part(v, own[key]) for key, v in checkpoint["state_dict"].items()}
        self.model.load_state_dict(parts, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load this process's part of the optimiser's state."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            own = {
                index: {name: _part(value, parameters[index]) for name, value in values.items()}
                for index, values in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": own})


def shard(model: L.LightningModule, encoders: nn.ModuleDict, projectors: nn.ModuleDict) -> None:
    """Divide encoders, block by block, and projectors among all processes.

    Args:
        model: the whole model, which has a device mesh.
        encoders: of the model.
        projectors: of the model.

    Raises:
        ConfigError: for encoders that attend to each other, which are not called as a whole.
    """
    from torch.distributed.fsdp import fully_shard

    for name, encoder in encoders.items():
        if is_crossing(encoder):
            raise ConfigError(
                f"trainer.strategy fsdp: the encoder of {name!r} attends to another sensor's and "
                "cannot be divided; take ddp, or another encoder.attention"
            )
    assert model.device_mesh is not None
    mesh = model.device_mesh["data_parallel"]
    synchronise(model)
    model.to(memory_format=torch.contiguous_format)  # FSDP2 divides no other
    for part in (*encoders.values(), *projectors.values()):
        for inner in _blocks(part):
            fully_shard(inner, mesh=mesh)
        fully_shard(part, mesh=mesh)


def _blocks(module: nn.Module) -> list[nn.Module]:
    """Return the blocks of a network: the modules in its outermost sequences."""
    found: list[nn.Module] = []
    for child in module.children():
        if isinstance(child, nn.Sequential | nn.ModuleList):
            found += [block for block in child.children() if any(True for _ in block.parameters())]
        else:
            found += _blocks(child)
    return found


def average_gradients(module: nn.Module) -> None:
    """Average gradients of parameters that every process holds whole."""
    for parameter in module.parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()


def gather(model: nn.Module, whole: Model) -> Model:
    """Return the trained model in one piece on the first process; all must call this together.

    Args:
        model: the divided model.
        whole: a model like it that is not divided; its weights are replaced.
    """
    state = {key: _whole(value) for key, value in model.state_dict().items()}
    if dist.get_rank() == 0:
        whole.load_state_dict(state)
    return whole


def _whole(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = value.full_tensor() if hasattr(value, "full_tensor") else value
        return value.detach().cpu()
    return value


def _part(value: Any, parameter: Tensor) -> Any:
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(parameter, DTensor) or getattr(value, "shape", None) != parameter.shape:
        return value
    placed = value.to(parameter.device)
    return distribute_tensor(placed, parameter.device_mesh, parameter.placements)


# -- processes that wait, and that are lost --------------------------------------------------------


def from_first(work: Callable[[], Result]) -> Result:
    """Return on all processes what the first one computes, however long it takes.

    In a collective the others would wait only as long as their time-out, half an hour. Here they
    ask the store by which the processes have found each other. All must call this together.

    Args:
        work: is called on the first process; gives what JSON can hold, and not None.

    Raises:
        ProcessLostError: on the others, if the first one fails.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return work()
    store, name = distributed_c10d._get_default_store(), f"decur/{next(_NUMBERS)}"
    if dist.get_rank() == 0:
        found: Result | None = None
        try:
            found = work()
        finally:
            store.set(name, json.dumps(found))
        return found
    pause = 0.01
    while not store.check([name]):  # raises an error where the store is gone
        time.sleep(pause)
        pause = min(1.0, 1.5 * pause)
    told: Result | None = json.loads(store.get(name))
    if told is None:
        raise ProcessLostError(
            f"process {dist.get_rank()} of {dist.get_world_size()}: the first one has failed; its "
            "own last words stand above"
        )
    return told


@contextmanager
def reporting_lost_processes(trainer: L.Trainer) -> Iterator[None]:
    """Turn the error of a collective whose other process is gone into one line.

    Args:
        trainer: of the run.

    Raises:
        ProcessLostError: naming this process; another one has died, or was silent for longer than
            the time-out, which is named, too.
    """
    try:
        yield
    except (RuntimeError, ConnectionError) as error:
        reason = " ".join(str(error).split())
        lost = isinstance(error, DistError | ConnectionError) or _LOST.search(reason)
        if trainer.world_size == 1 or not lost:
            raise
        this = f"process {trainer.global_rank} of {trainer.world_size}"
        what = "lost another one, which died or cannot be reached"
        if _LATE.search(reason):
            own = getattr(trainer.strategy, "_timeout", default_pg_timeout).total_seconds()
            backend = getattr(trainer.strategy, "process_group_backend", None)
            backend = "gloo" if backend is None or "gloo" in reason else backend
            what = (
                f"has waited for another one until a time-out (its own is {own:.0f} s, {backend}'s "
                "stands in brackets); it hangs, reads slowly, or has died"
            )
        raise ProcessLostError(
            f"{this} {what} ({reason[:200]}); its own last words may stand above; the same command "
            "goes on from the last checkpoint"
        ) from error


# -- what is sent ---------------------------------------------------------------------------------


def traffic(
    objective_dim: int,
    modalities: int,
    batch: int,
    parameters: int,
    world: int,
    views: int = 2,
    itemsize: int = 4,
) -> dict[str, int]:
    """Return the bytes that each process sends in a training step, by what they are.

    Counted are the exchanges that grow with the model or the batch, each as a ring sends it, which
    no algorithm undercuts: of `b` bytes that a process hands over it sends `(world - 1) b` in an
    all-gather, `(world - 1) b / world` in a reduce-scatter and `2 (world - 1) b / world` in an
    all-reduce (Patarasuk and Yuan, Bandwidth optimal all-reduce algorithms, 2009).

    Args:
        objective_dim: width of the embeddings, K.
        modalities: number of sensors.
        batch: samples of a step, over all processes.
        parameters: trained numbers of the model.
        world: number of processes, among which the batch divides.
        views: of each sensor that the objective compares.
        itemsize: bytes of a parameter, and of its gradient.

    Returns:
        "embeddings", gathered for the loss; "embedding_gradients", on their way back to their
        owners; "gradients" of the parameters, averaged by DDP; and "total".
    """
    own = modalities * views * (batch // world) * objective_dim * 4  # bytes of float32
    gathered = (world - 1) * own
    averaged = 2 * (world - 1) * parameters * itemsize // world
    sent = {"embeddings": gathered, "embedding_gradients": gathered, "gradients": averaged}
    return {**sent, "total": sum(sent.values())}
