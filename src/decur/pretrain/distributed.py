"""Training on several processes: batch normalisation, absent sensors, FSDP, lost processes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.plugins import LayerSync
from lightning.pytorch.strategies import ModelParallelStrategy
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn
from torch.distributed import DistError
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from decur.encoders.attention.cross import is_crossing
from decur.encoders.checkpointing import batch_statistics
from decur.errors import ConfigError, ProcessLostError

Model = TypeVar("Model", bound=nn.Module)
# How gloo, NCCL and the store say that the other end is gone, or silent for too long.
_LOST = re.compile(
    r"gloo|NCCL|connection (was )?(closed|reset|refused)|broken pipe|timed out|remote process",
    re.IGNORECASE,
)


# -- batch normalisation over all processes -------------------------------------------------------


class CPUSyncBatchNorm(_BatchNorm):
    """Batch normalisation over the batch of all processes, on the CPU.

    It computes what torch's SyncBatchNorm does, which refuses to run without a GPU. In eval mode,
    and in a single process, it is a plain batch normalisation.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Take any number of dimensions."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, ...); B may be 0 on some processes."""
        alone = not (dist.is_initialized() and dist.get_world_size() > 1)
        if alone or not self.training:
            plain: Tensor = super().forward(input)
            return plain
        x = input.float() if input.dtype in (torch.bfloat16, torch.float16) else input
        normalise: Any = _Normalise  # torch does not annotate `apply`
        out, mean, variance, counts = normalise.apply(x, self.weight, self.bias, self.eps)
        samples, values = counts.tolist()
        result: Tensor = out.to(input.dtype)
        if samples > 1:  # one sample has no variance: one process alone leaves it out, too
            self._track(mean, variance * (values / max(1.0, values - 1)))
        return result

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        step = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), step)
        self.running_var.lerp_(variance.to(self.running_var.dtype), step)


class _Normalise(torch.autograd.Function):
    """Normalise by the statistics of all processes, with one collective forward and one backward.

    Means and sums of squares of the processes are merged as by Chan, Golub and LeVeque (1983): the
    mean of squares less the square of the mean would lose most digits.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return x normalised (B, C, ...), its mean and variance (C,), and numbers of samples and
        of values a channel (2,)."""
        axes, shape = _axes(x)
        values = x.numel() // x.shape[1]
        own_mean = x.sum(axes) / max(1, values)  # (C,)
        squares = (x - own_mean.view(shape)).square().sum(axes)  # (C,)
        own = torch.cat((own_mean, squares, x.new_tensor([len(x), values])))  # (2C + 2,)
        everyone = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, own)
        means, squares = (torch.stack(everyone)[:, :-2]).chunk(2, dim=1)  # (world, C) each
        counts = torch.stack(everyone)[:, -2:]  # (world, 2)
        n, total = counts[:, 1:], counts.sum(0)
        count = total[1].clamp_min(1)
        mean = (n * means).sum(0) / count
        variance = (squares + n * (means - mean).square()).sum(0) / count
        scale = torch.rsqrt(variance + eps)  # (C,)
        normal = (x - mean.view(shape)) * scale.view(shape)
        ctx.save_for_backward(normal, weight, scale, count)
        ctx.mark_non_differentiable(mean, variance, total)
        out = normal if weight is None else normal * weight.view(shape)
        return out if bias is None else out + bias.view(shape), mean, variance, total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        """Return gradients of the sum of all losses; of weight and bias, this process's share."""
        normal, weight, scale, count = ctx.saved_tensors
        axes, shape = _axes(normal)
        own = torch.stack((grads[0].sum(axes), (grads[0] * normal).sum(axes)))  # (2, C)
        whole = own.clone()
        dist.all_reduce(whole)
        constant, slope = ((part / count).view(shape) for part in whole)
        grad = (grads[0] - constant - normal * slope) * scale.view(shape)
        if weight is None:
            return grad, None, None, None
        return grad * weight.view(shape), own[1], own[0], None


def _axes(x: Tensor) -> tuple[list[int], list[int]]:
    """Return the axes that statistics are over, and the shape of a value a channel beside x."""
    return [0, *range(2, x.ndim)], [1, -1] + [1] * (x.ndim - 2)


class SyncBatchNorms(LayerSync):
    """Make each batch normalisation of a model see the batch of all processes.

    Lightning does not call it on a single device. Keys of the state dict stay.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        """Replace the layers."""
        if next(model.parameters()).is_cuda:
            return _convert_on_gpu(model)
        return convert_on_cpu(model)

    def revert(self, model: nn.Module) -> nn.Module:
        """Leave the layers: in a single process they are plain batch normalisations."""
        return model


@contextmanager
def finite_statistics(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Keep running statistics finite where a batch has too few values, without waiting for the GPU.

    torch's SyncBatchNorm divides by the number of values on all processes, which may be 0, and the
    variance that it tracks by one less.

    Args:
        modules: those that may be given such a batch.
    """
    kept = [(b, b.clone()) for module in modules for b in batch_statistics(module)]
    yield
    for buffer, before in kept:
        buffer.copy_(torch.where(buffer.isfinite(), buffer, before))


def _convert_on_gpu(module: nn.Module) -> nn.Module:
    """Replace batch normalisations by torch's SyncBatchNorm."""
    convert: Any = convert_sync_batchnorm  # knows timm's layers with an activation inside
    converted: nn.Module = convert(module)
    return converted


def convert_on_cpu(module: nn.Module) -> nn.Module:
    """Replace batch normalisations by `CPUSyncBatchNorm`, weights and names kept.

    Raises:
        ConfigError: for a kind of batch normalisation that cannot be replaced.
    """
    if isinstance(module, _BatchNorm) and type(module) in (nn.BatchNorm1d, nn.BatchNorm2d):
        synced = CPUSyncBatchNorm(
            module.num_features,
            module.eps,
            module.momentum,
            module.affine,
            module.track_running_stats,
        )
        synced.weight, synced.bias = module.weight, module.bias
        synced.running_mean, synced.running_var = module.running_mean, module.running_var
        synced.num_batches_tracked = module.num_batches_tracked
        return synced.train(module.training)
    if isinstance(module, _BatchNorm) and not isinstance(module, CPUSyncBatchNorm):
        raise ConfigError(
            f"trainer.devices: {type(module).__name__} cannot be synchronised across processes on "
            "the CPU; use a GPU, one process, or an encoder with plain batch normalisation"
        )
    for name, child in module.named_children():
        module.add_module(name, convert_on_cpu(child))
    return module


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
        """True: checkpoints hold the state of the optimiser in Lightning's own format."""
        return True

    def setup_environment(self) -> None:
        """Put all processes into one data-parallel group."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()

    def setup_optimizers(self, trainer: L.Trainer) -> None:
        """Make the optimiser of the divided parameters, without kernels for several tensors."""
        super().setup_optimizers(trainer)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:  # they refuse divided tensors beside whole ones
                group.update({key: False for key in ("foreach", "fused") if key in group})

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
    convert = convert_on_cpu if mesh.device_type == "cpu" else _convert_on_gpu
    convert(model)
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


# -- lost processes -------------------------------------------------------------------------------


@contextmanager
def reporting_lost_processes(trainer: L.Trainer) -> Iterator[None]:
    """Turn the error of a collective whose other process is gone into one line.

    Args:
        trainer: of the run.

    Raises:
        ProcessLostError: naming this process; another one has died.
    """
    try:
        yield
    except (RuntimeError, ConnectionError) as error:
        reason = " ".join(str(error).split())
        lost = isinstance(error, DistError | ConnectionError) or _LOST.search(reason)
        if trainer.world_size == 1 or not lost:
            raise
        raise ProcessLostError(
            f"process {trainer.global_rank} of {trainer.world_size} lost another one, which died "
            f"or cannot be reached ({reason[:200]}); its own last words may stand above; the same "
            "command goes on from the last checkpoint"
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
