"""Batch normalisation over the batch of all processes, on the GPU and on the CPU."""

from __future__ import annotations

import torch
import torch.distributed as dist
from lightning.pytorch.plugins import LayerSync
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm

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
        axes = [0, *range(2, x.ndim)]
        shape = [1, -1] + [1] * (x.ndim - 2)
        # The group by name: the default is the one of when torch was imported.
        count = torch.tensor(float(x.numel() // x.shape[1]), dtype=x.dtype)
        dist.all_reduce(count)
        mean = all_reduce(x.sum(axes), group=dist.group.WORLD) / count  # (C,)
        centred = x - mean.view(shape)
        # Twice over the batch: the difference of mean squares would lose what it is about.
        variance = all_reduce(centred.square().sum(axes), group=dist.group.WORLD) / count  # (C,)
        out = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        self._track(mean.detach(), variance.detach() * count / (count - 1).clamp_min(1))
        return out.to(input.dtype)

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        step = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), step)
        self.running_var.lerp_(variance.to(self.running_var.dtype), step)


class SyncBatchNorms(LayerSync):
    """Makes each batch normalisation of a model see the batch of all processes.

    Without effect on a single device. Keys of the state dict stay.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        """Replace the layers."""
        if next(model.parameters()).is_cuda:
            return convert_sync_batchnorm(model)  # knows timm's layers with an activation inside
        return _convert(model)

    def revert(self, model: nn.Module) -> nn.Module:
        """Leave the layers: alone, they are what they were."""
        return model


def _convert(module: nn.Module) -> nn.Module:
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
        module.add_module(name, _convert(child))
    return module
