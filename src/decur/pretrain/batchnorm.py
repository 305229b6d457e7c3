"""Batch normalisation over the batch of all processes, on CPUs and on GPUs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.plugins import LayerSync
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from decur.encoders.checkpointing import batch_statistics
from decur.errors import ConfigError

_REPLACED = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d)


class SyncBatchNorm(_BatchNorm):
    """Batch normalisation over the batch of all processes, any of which may have no sample.

    torch's layer of this name refuses to run on a CPU, makes the host wait for the GPU in every
    call, and sends statistics of another type from a process without samples, on which NCCL hangs.
    In eval mode, and in a single process, this is a plain batch normalisation.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Take any number of dimensions."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, ...); B may be 0 on some processes.

        The device is known only here: Lightning replaces layers before it moves the model.
        """
        alone = not (dist.is_initialized() and dist.get_world_size() > 1)
        if alone or not self.training:
            return self._finish(super().forward(input))
        kernels = _uses_kernels(input)
        half = input.dtype in (torch.bfloat16, torch.float16)
        x = input.float() if half and not kernels else input
        normalise: Any = _NormaliseByKernels if kernels else _Normalise  # `apply` is not annotated
        out, mean, variance, counts = normalise.apply(x, self.weight, self.bias, self.eps)
        self._track(mean, variance, counts)
        return self._finish(out.to(input.dtype))

    def _finish(self, x: Tensor) -> Tensor:
        """Apply the dropout and the activation that timm's layers hold inside."""
        for name in ("drop", "act"):
            part = getattr(self, name, None)
            x = x if part is None else part(x)
        return x

    def _track(self, mean: Tensor, variance: Tensor, counts: Tensor) -> None:
        """Update running statistics without waiting for the device.

        Args:
            mean: (C,) of all processes.
            variance: (C,) of all processes.
            counts: (2,), numbers of samples and of values a channel. One sample has no variance: a
                process that trains alone leaves it out, too.
        """
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        samples, values = counts.unbind()
        counted = samples > 1
        self.num_batches_tracked.add_(counted)
        step: Any = self.momentum
        if step is None:
            step = (1 / self.num_batches_tracked).to(self.running_mean.dtype)
        unbiased = variance * (values / (values - 1).clamp_min(1))
        for running, now in ((self.running_mean, mean), (self.running_var, unbiased)):
            new = running.lerp(now.to(running.dtype), step)
            running.copy_(torch.where(counted, new, running))


def _uses_kernels(x: Tensor) -> bool:
    """Return whether torch has kernels of its own for the parts of batch normalisation."""
    return x.is_cuda


def _axes(x: Tensor) -> tuple[list[int], list[int]]:
    """Return the axes that statistics are over, and the shape of a value a channel beside x."""
    return [0, *range(2, x.ndim)], [1, -1] + [1] * (x.ndim - 2)


def _counts(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the numbers of samples and of values a channel, written by the device: (2,)."""
    numbers = (len(x), x.numel() // x.shape[1])
    return torch.cat([torch.full((1,), n, dtype=dtype, device=x.device) for n in numbers])


def _gather(own: Tensor) -> Tensor:
    """Return what each process has, (n,), in one tensor: (world, n)."""
    everyone = own.new_empty(dist.get_world_size(), len(own))
    if dist.get_backend() == "nccl":
        dist.all_gather_into_tensor(everyone, own)
    else:
        dist.all_gather(list(everyone.unbind()), own)
    return everyone


def _merge(means: Tensor, squares: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, variance and counts of all processes from those of each.

    Means and sums of squares are merged as by Chan, Golub and LeVeque (1983): the mean of squares
    less the square of the mean would lose most digits.

    Args:
        means: (world, C).
        squares: (world, C), sums of squared distances from the own mean.
        counts: (world, 2), numbers of samples and of values a channel.
    """
    n, total = counts[:, 1:], counts.sum(0)
    count = total[1].clamp_min(1)
    mean = (n * means).sum(0) / count
    variance = (squares + n * (means - mean).square()).sum(0) / count
    return mean, variance, total


class _Normalise(torch.autograd.Function):
    """Normalise by the statistics of all processes: one collective forward, one backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return x normalised (B, C, ...), its mean and variance (C,), and numbers of samples and
        of values a channel (2,)."""
        axes, shape = _axes(x)
        own_mean = x.sum(axes) / max(1, x.numel() // x.shape[1])  # (C,)
        squares = (x - own_mean.view(shape)).square().sum(axes)  # (C,)
        everyone = _gather(torch.cat((own_mean, squares, _counts(x, x.dtype))))  # (world, 2C + 2)
        means, squares = everyone[:, :-2].chunk(2, dim=1)  # (world, C) each
        mean, variance, total = _merge(means, squares, everyone[:, -2:])
        scale = torch.rsqrt(variance + eps)  # (C,)
        normal = (x - mean.view(shape)) * scale.view(shape)
        ctx.save_for_backward(normal, weight, scale, total[1].clamp_min(1))
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


class _NormaliseByKernels(torch.autograd.Function):
    """The same by torch's kernels, which read each map once forward and twice backward.

    They take bfloat16 maps beside float32 statistics, and none takes an empty batch.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what `_Normalise.forward` does; statistics are float32 (float64 for float64)."""
        x = _dense(x)
        exact = torch.float64 if x.dtype == torch.float64 else torch.float32
        if len(x):
            own_mean, invstd = torch.batch_norm_stats(x, eps)  # (C,) each
            # Back from 1 / sqrt(variance + eps), which is all that the kernel returns.
            squares = (invstd.to(exact).pow(-2) - eps).clamp_min(0) * (x.numel() // x.shape[1])
        else:
            own_mean = squares = torch.zeros(x.shape[1], dtype=exact, device=x.device)
        everyone = _gather(torch.cat((own_mean.to(exact), squares, _counts(x, exact))))
        means, squares = everyone[:, :-2].chunk(2, dim=1)  # (world, C) each
        mean, variance, total = _merge(means, squares, everyone[:, -2:])
        scale = torch.rsqrt(variance + eps)  # (C,)
        counts = everyone[:, -1].contiguous().to(torch.int32)  # (world,)
        ctx.save_for_backward(x, weight, mean, scale, counts)
        ctx.mark_non_differentiable(mean, variance, total)
        out = torch.batch_norm_elemt(x, weight, bias, mean, scale, eps) if len(x) else x.clone()
        return out, mean, variance, total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        """Return gradients of the sum of all losses; of weight and bias, this process's share."""
        x, weight, mean, scale, counts = ctx.saved_tensors
        share: tuple[Tensor | None, Tensor | None] = (None, None)
        grad = _dense(grads[0])
        if len(x):
            total, along, *shares = torch.batch_norm_backward_reduce(
                grad, x, mean, scale, weight, True, weight is not None, weight is not None
            )
            share = (shares[0], shares[1]) if weight is not None else share
        else:
            total, along = torch.zeros_like(mean), torch.zeros_like(mean)
            if weight is not None:
                share = (torch.zeros_like(weight), torch.zeros_like(weight))
        whole = torch.stack((total, along))  # (2, C)
        dist.all_reduce(whole)
        if not len(x):
            return grad, *share, None
        made = torch.batch_norm_backward_elemt(
            grad, x, mean, scale, weight, whole[0].contiguous(), whole[1].contiguous(), counts
        )
        return made, *share, None


def _dense(x: Tensor) -> Tensor:
    """Return a tensor in a layout that the kernels take: channels innermost, or contiguous."""
    inner = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return x if inner else x.contiguous()


class SyncBatchNorms(LayerSync):
    """Make each batch normalisation of a model see the batch of all processes.

    Lightning does not call it on a single device. Keys of the state dict stay.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        """Replace the layers."""
        return synchronise(model)

    def revert(self, model: nn.Module) -> nn.Module:
        """Leave the layers: in a single process they are plain batch normalisations."""
        return model


def synchronise(module: nn.Module) -> nn.Module:
    """Replace batch normalisations by `SyncBatchNorm`, weights and names kept.

    Raises:
        ConfigError: for a kind of batch normalisation that cannot be replaced.
    """
    if isinstance(module, _BatchNorm) and type(module) in _REPLACED:
        synced = SyncBatchNorm(
            module.num_features,
            module.eps,
            module.momentum,
            module.affine,
            module.track_running_stats,
        )
        synced.weight, synced.bias = module.weight, module.bias
        synced.running_mean, synced.running_var = module.running_mean, module.running_var
        synced.num_batches_tracked = module.num_batches_tracked
        for name, part in module.named_children():
            synced.add_module(name, part)
        return synced.train(module.training)
    if isinstance(module, _BatchNorm) and not isinstance(module, SyncBatchNorm):
        raise ConfigError(
            f"trainer.devices: {type(module).__name__} cannot be synchronised across processes; "
            "use one process, or an encoder with plain batch normalisation"
        )
    for name, child in module.named_children():
        module.add_module(name, synchronise(child))
    return module


@contextmanager
def finite_statistics(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Keep running statistics finite where a batch has too few values, without waiting for the GPU.

    Other layers than `SyncBatchNorm` may divide by the number of values less one, which may be 0.

    Args:
        modules: those that may be given such a batch.
    """
    kept = [(b, b.clone()) for module in modules for b in batch_statistics(module)]
    yield
    for buffer, before in kept:
        buffer.copy_(torch.where(buffer.isfinite(), buffer, before))
