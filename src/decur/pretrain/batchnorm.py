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

    Attributes:
        parts: how many equal parts of a training batch, one after the other, are normalised each by
            its own statistics; two where both views of a sensor come together.
    """

    parts = 1

    def _check_input_dim(self, input: Tensor) -> None:
        """Take any number of dimensions."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, ...); B may be 0 on some processes.

        The device is known only here: Lightning replaces layers before it moves the model.
        """
        alone = not (dist.is_initialized() and dist.get_world_size() > 1)
        if not self.training or (alone and self.parts == 1):
            return self._finish(super().forward(input))
        if alone:
            normal = [super(SyncBatchNorm, self).forward(x) for x in _split(input, self.parts)]
            return self._finish(torch.cat(normal))
        kernels = _uses_kernels(input)
        half = input.dtype in (torch.bfloat16, torch.float16)
        x = input.float() if half and not kernels else input
        normalise: Any = _NormaliseByKernels if kernels else _Normalise  # `apply` is not annotated
        out, means, variances, counts = normalise.apply(
            x, self.weight, self.bias, self.eps, self.parts
        )
        for mean, variance in zip(means, variances, strict=True):
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
            mean: (C,) of a part, of all processes.
            variance: (C,) of a part, of all processes.
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


def _split(x: Tensor, parts: int) -> tuple[Tensor, ...]:
    """Return equal parts of a batch, which may be empty, as views."""
    return x.view(parts, len(x) // parts, *x.shape[1:]).unbind()


def _axes(x: Tensor) -> tuple[list[int], list[int]]:
    """Return the axes of (parts, n, C, ...) that statistics are over, and the shape of (parts, C)
    beside it."""
    return [1, *range(3, x.ndim)], [len(x), 1, -1] + [1] * (x.ndim - 3)


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


_Gradients = tuple[Tensor, Tensor | None, Tensor | None, None, None]


class _Normalise(torch.autograd.Function):
    """Normalise by the statistics of all processes: one collective forward, one backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, parts: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return x normalised (B, C, ...), mean and variance of each part of it (parts, C), and
        numbers of samples and of values a channel of a part (2,)."""
        out, x = torch.empty_like(x), x.view(parts, len(x) // parts, *x.shape[1:])
        axes, shape = _axes(x)
        own_mean = x.sum(axes) / max(1, x[0].numel() // x.shape[2])  # x: (parts, n, C, ...)
        squares = (x - own_mean.view(shape)).square().sum(axes)  # (parts, C)
        own = (own_mean.flatten(), squares.flatten(), _counts(x[0], x.dtype))
        everyone = _gather(torch.cat(own))  # (world, 2 parts C + 2)
        means, squares = everyone[:, :-2].chunk(2, dim=1)  # (world, parts C) each
        mean, variance, total = _merge(means, squares, everyone[:, -2:])
        mean, variance = mean.view(parts, -1), variance.view(parts, -1)
        scale = torch.rsqrt(variance + eps)  # (parts, C)
        normal = (x - mean.view(shape)) * scale.view(shape)
        ctx.save_for_backward(normal, weight, scale, total[1].clamp_min(1))
        ctx.mark_non_differentiable(mean, variance, total)
        inner = out.view_as(normal)  # autograd refuses a view that is changed in place, as by ReLU
        inner.copy_(normal if weight is None else normal * weight.view(shape[1:]))
        if bias is not None:
            inner += bias.view(shape[1:])
        return out, mean, variance, total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> _Gradients:
        """Return gradients of the sum of all losses; of weight and bias, this process's share."""
        normal, weight, scale, count = ctx.saved_tensors
        axes, shape = _axes(normal)
        given = grads[0].reshape(normal.shape)
        own = torch.stack((given.sum(axes), (given * normal).sum(axes)))  # (2, parts, C)
        whole = own.clone()
        dist.all_reduce(whole)
        constant, slope = ((sums / count).view(shape) for sums in whole)
        grad = (given - constant - normal * slope) * scale.view(shape)
        if weight is None:
            return grad.reshape(grads[0].shape), None, None, None, None
        grad = (grad * weight.view(shape[1:])).reshape(grads[0].shape)
        shares = own.sum(1)  # (2, C)
        return grad, shares[1], shares[0], None, None


class _NormaliseByKernels(torch.autograd.Function):
    """The same by torch's kernels, which read each map once forward and twice backward.

    They take bfloat16 maps beside float32 statistics, and none takes an empty batch.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, parts: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what `_Normalise.forward` does; statistics are float32 (float64 for float64)."""
        x = _dense(x)
        exact = torch.float64 if x.dtype == torch.float64 else torch.float32
        # They mix two types at most: of the maps, and of all that is kept for each channel.
        weight, bias = (None if p is None else p.to(exact) for p in (weight, bias))
        each = _split(x, parts)
        if len(x):
            found = [torch.batch_norm_stats(part, eps) for part in each]  # (C,) each
            own_mean, invstd = (torch.cat(values).to(exact) for values in zip(*found, strict=True))
            # Back from 1 / sqrt(variance + eps), which is all that the kernel returns.
            values = each[0].numel() // x.shape[1]
            squares = (invstd.pow(-2) - eps).clamp_min(0) * values
        else:
            own_mean = squares = torch.zeros(parts * x.shape[1], dtype=exact, device=x.device)
        everyone = _gather(torch.cat((own_mean, squares, _counts(each[0], exact))))
        means, squares = everyone[:, :-2].chunk(2, dim=1)  # (world, parts C) each
        mean, variance, total = _merge(means, squares, everyone[:, -2:])
        mean, variance = mean.view(parts, -1), variance.view(parts, -1)
        scale = torch.rsqrt(variance + eps)  # (parts, C)
        counts = everyone[:, -1].contiguous().to(torch.int32)  # (world,)
        ctx.save_for_backward(x, weight, mean, scale, counts)
        ctx.mark_non_differentiable(mean, variance, total)
        if not len(x):
            return x.clone(), mean, variance, total
        normal = [
            torch.batch_norm_elemt(part, weight, bias, mean[i], scale[i], eps)
            for i, part in enumerate(each)
        ]
        return _joined(normal), mean, variance, total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> _Gradients:
        """Return gradients of the sum of all losses; of weight and bias, this process's share."""
        x, weight, mean, scale, counts = ctx.saved_tensors
        parts, grad = len(mean), _dense(grads[0])
        pairs = list(zip(_split(grad, parts), _split(x, parts), strict=True))
        share: list[Tensor | None] = [None, None]
        if len(x):
            affine = weight is not None
            sums = [
                torch.batch_norm_backward_reduce(
                    given, part, mean[i], scale[i], weight, True, affine, affine
                )
                for i, (given, part) in enumerate(pairs)
            ]
            whole = torch.stack([torch.stack((s[0], s[1])) for s in sums])  # (parts, 2, C)
            if affine:
                share = [torch.stack([s[i] for s in sums]).sum(0) for i in (2, 3)]
        else:
            whole = torch.zeros(parts, 2, mean.shape[1], dtype=mean.dtype, device=x.device)
            if weight is not None:
                share = [torch.zeros_like(weight), torch.zeros_like(weight)]
        dist.all_reduce(whole)
        if not len(x):
            return grad, share[0], share[1], None, None
        made = [
            torch.batch_norm_backward_elemt(
                given, part, mean[i], scale[i], weight, whole[i, 0], whole[i, 1], counts
            )
            for i, (given, part) in enumerate(pairs)
        ]
        return _joined(made), share[0], share[1], None, None


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


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


def normalise_parts(module: nn.Module, parts: int) -> None:
    """Let the batch normalisations of `synchronise` take the parts of a batch each by itself."""
    for layer in module.modules():
        if isinstance(layer, SyncBatchNorm):
            layer.parts = parts


def synchronise(module: nn.Module, key: str = "trainer.devices") -> nn.Module:
    """Replace batch normalisations by `SyncBatchNorm`, weights and names kept.

    Args:
        module: changed in place, but for one that is such a layer itself.
        key: of the configuration, for the message.

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
            f"{key}: {type(module).__name__} has statistics that cannot be over all processes, or "
            "over a view; leave it, or use an encoder with plain batch normalisation"
        )
    for name, child in module.named_children():
        module.add_module(name, synchronise(child, key))
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
