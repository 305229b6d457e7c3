"""Weights, gradients and the optimiser's state divided among processes (FSDP)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.optim import Optimizer

from decur.encoders.attention.cross import is_crossing
from decur.errors import ConfigError
from decur.pretrain.batchnorm import convert_on_cpu

if TYPE_CHECKING:
    from decur.pretrain.module import Pretrainer


class Sharded(ModelParallelStrategy):
    """FSDP2 over all processes, with the checkpoints of any other strategy.

    FSDP2 keeps the shapes of parameters, by which LARS and weight decay are chosen; Lightning's
    strategy "fsdp" is FSDP1, which flattens them, and refuses to run without a GPU. Checkpoints are
    whole, in the format of one process: a run may go on with another strategy.

    Args:
        timeout: for which a process waits for the others.
    """

    def __init__(self, timeout: timedelta = timedelta(minutes=30)) -> None:
        super().__init__(save_distributed_checkpoint=False, timeout=timeout)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """True: the state of the optimiser is in the checkpoint as Lightning knows it."""
        return True

    def setup_environment(self) -> None:
        """One group of all processes."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()

    def setup_optimizers(self, trainer: L.Trainer) -> None:
        """Make the optimiser of the divided parameters."""
        super().setup_optimizers(trainer)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:  # kernels for many take no mixture of tensors
                group.update({key: False for key in ("foreach", "fused") if key in group})

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """All weights, on the CPU; empty but on the first process, which writes them.

        By the module's own names: torch's collector does not know that an encoder has timm's.
        """
        assert self.model is not None
        state = {key: _whole(value) for key, value in self.model.state_dict().items()}
        return state if self.is_global_zero else {}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The whole state, on the CPU; empty but on the first process, which writes it."""
        state = optimizer.state_dict()
        whole = {
            index: {name: _whole(value) for name, value in values.items()}
            for index, values in state["state"].items()
        }
        return {**state, "state": whole} if self.is_global_zero else {}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> Any:
        """Read a whole checkpoint, as every strategy writes it."""
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this process's part of the weights."""
        assert self.model is not None
        own = self.model.state_dict()
        parts = {key: _part(v, own[key]) for key, v in checkpoint["state_dict"].items()}
        self.model.load_state_dict(parts, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this process's part of the optimiser's state."""
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
        model: that has a device mesh.
        encoders: of the model.
        projectors: of the model.

    Raises:
        ConfigError: for encoders that are not called as a whole.
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
    convert = convert_on_cpu if mesh.device_type == "cpu" else convert_sync_batchnorm
    convert(model)
    model.to(memory_format=torch.contiguous_format)  # FSDP2 divides no other
    for part in (*encoders.values(), *projectors.values()):
        for inner in _blocks(part):
            fully_shard(inner, mesh=mesh)
        fully_shard(part, mesh=mesh)


def _blocks(module: nn.Module) -> list[nn.Module]:
    """The blocks of a network: what its outermost sequences hold."""
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


def gather(model: Pretrainer, whole: Pretrainer) -> Pretrainer:
    """The trained model in one piece on the first process; all must call it together.

    Args:
        model: divided.
        whole: one like it that is not; changed in place.
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
