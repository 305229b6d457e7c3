"""Batch normalisation over the batch of all processes, on the GPU and on the CPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.plugins import LayerSync
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from decur.encoders.checkpointing import batch_statistics
from decur.errors import ConfigError


class CPUSyncBatchNorm(_BatchNorm):
    """What torch's SyncBatchNorm computes, for processes without a GPU, which it refuses.

    In eval mode, or alone, a plain batch normalisation. Takes (B, C, ...).
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, ...) to the same shape; B may be 0 on some processes."""
        alone = not (dist.is_initialized() and dist.get_world_size() > 1)
        if alone or not self.training:
            return super().forward(input)
        x = input.float() if input.dtype in (torch.bfloat16, torch.float16) else input
        out, mean, variance, counts = _Normalise.apply(x, self.weight, self.bias, self.eps)
        samples, values = counts.tolist()
        if samples > 1:  # a single one is left out, as by one process alone
            self._track(mean, variance * (values / max(1.0, values - 1)))
        return out.to(input.dtype)

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        step = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), step)
        self.running_var.lerp_(variance.to(self.running_var.dtype), step)


class _Normalise(torch.autograd.Function):
    """Normalisation by the statistics of all processes: one collective forward, one backward.

    Means and sums of squares of each process are merged as by Chan, Golub and LeVeque (1983): the
    difference of mean squares would lose what it is about.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(B, C, ...) to the same; mean and variance (C,); samples and values a channel."""
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
        """Of the sum over the processes; those of weight and bias are this process's share."""
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
    """What statistics are over, and how those of channels are laid against x."""
    return [0, *range(2, x.ndim)], [1, -1] + [1] * (x.ndim - 2)


class SyncBatchNorms(LayerSync):
    """Makes each batch normalisation of a model see the batch of all processes.

    Without effect on a single device. Keys of the state dict stay.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        """Replace the layers."""
        if next(model.parameters()).is_cuda:
            return convert_sync_batchnorm(model)  # knows timm's layers with an activation inside
        return convert_on_cpu(model)

    def revert(self, model: nn.Module) -> nn.Module:
        """Leave the layers: alone, they are what they were."""
        return model


@contextmanager
def finite_statistics(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Undo what a batch of too few values does to running statistics, without a wait for the GPU.

    torch's SyncBatchNorm divides by the number of values on all processes, be it 0, and the
    variance that it tracks by one less.

    Args:
        modules: those that may be given such a batch.
    """
    kept = [(b, b.clone()) for module in modules for b in batch_statistics(module)]
    yield
    for buffer, before in kept:
        buffer.copy_(torch.where(buffer.isfinite(), buffer, before))


def convert_on_cpu(module: nn.Module) -> nn.Module:
    """Replace batch normalisations by `CPUSyncBatchNorm`, weights and names kept.

    Raises:
        ConfigError: for one of a kind that is not known.
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
