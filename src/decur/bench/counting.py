"""What a module asks of a device: operations, bytes moved, and bytes kept for the backward pass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count, sdpa_flop_count


@dataclass(frozen=True)
class Operations:
    """The cost of one pass through a module.

    Args:
        forward: floating-point operations of matrix products, convolutions and attention; a
            multiply-add is 2.
        backward: the same of the gradients of all parameters, and of inputs that ask for one.
        bytes: least that the forward pass moves: weights, inputs and outputs of each leaf layer,
            once for each time it is called.
        parameters: number of weights.
        activations: bytes that are kept for the backward pass; those of parameters and buffers do
            not count.
    """

    forward: int
    backward: int
    bytes: int
    parameters: int
    activations: int


def count(module: nn.Module, *inputs: Tensor) -> Operations:
    """Count what one forward and one backward pass through a module cost.

    The module is as it was afterwards. On the meta device nothing is computed. Attention's
    backward counts as the mathematics has it, not what a kernel computes again; on the meta device
    attention keeps its weights for the backward pass, which fused kernels do not.

    Args:
        module: any module that gives tensors, or lists or dictionaries of them.
        *inputs: what it is called with, on its device.

    Example:
        >>> count(nn.Linear(8, 4, device="meta"), torch.zeros(2, 8, device="meta")).forward
        128
    """
    parameters = list(module.parameters())
    buffers = list(module.buffers())
    before = [buffer.detach().clone() for buffer in buffers]
    moved = _Moved(module)
    kept = Kept([*parameters, *buffers])
    with torch.enable_grad(), moved, kept, _counter() as counter:
        outputs = tree_leaves(module(*inputs))
    forward = counter.get_total_flops()
    outputs = [x for x in outputs if isinstance(x, Tensor) and x.requires_grad]
    wanted = [x for x in (*parameters, *inputs) if x.requires_grad]
    backward = 0
    if outputs and wanted:
        ones = [torch.ones_like(x) for x in outputs]
        with _counter() as counter:
            torch.autograd.grad(outputs, wanted, ones, allow_unused=True)
        backward = counter.get_total_flops()
    with torch.no_grad():
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
    return Operations(forward, backward, moved.bytes, _numel(parameters), kept.bytes)


class Kept:
    """A context in which what autograd keeps for the backward pass is added up.

    Each storage counts once, as a whole, however many tensors of it are kept.

    Args:
        but: tensors that do not count, since they are there anyway: parameters, inputs.

    Attributes:
        bytes: kept so far.
    """

    def __init__(self, but: Iterable[Tensor] = ()) -> None:
        self.bytes = 0
        # By storage, not by address: on the meta device all addresses are 0. Held, so that none
        # is freed and its name taken by another.
        self._seen: dict[int, torch.UntypedStorage] = {}
        self.leave_out(but)
        # detached: an output that its own node keeps would never be freed
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._add, lambda x: x)

    def leave_out(self, tensors: Iterable[Tensor]) -> None:
        """Do not count these, nor views of them, from now on."""
        self._seen.update((_storage(x), x.untyped_storage()) for x in tensors)

    def _add(self, x: Tensor) -> Tensor:
        key = _storage(x)
        if key not in self._seen:
            self._seen[key] = x.untyped_storage()
            self.bytes += x.untyped_storage().nbytes()
        return x.detach()

    def __enter__(self) -> Kept:
        self._hooks.__enter__()
        return self

    def __exit__(self, *unused: object) -> None:
        self._hooks.__exit__()
        self._seen.clear()


def _storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata


class _Moved:
    """A context that adds up the bytes of each leaf layer's weights, inputs and outputs."""

    def __init__(self, module: nn.Module) -> None:
        self.bytes = 0
        self._module = module
        self._handles: list[Any] = []

    def __enter__(self) -> None:
        for layer in self._module.modules():
            if next(layer.children(), None) is None:
                self._handles.append(layer.register_forward_hook(self._add, with_kwargs=True))

    def __exit__(self, *unused: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _add(self, layer: nn.Module, inputs: Any, named: Any, outputs: Any) -> None:
        tensors = [*layer.parameters(), *tree_leaves((inputs, named, outputs))]
        self.bytes += sum(x.nbytes for x in tensors if isinstance(x, Tensor))


def _numel(parameters: Iterable[Tensor]) -> int:
    return sum(p.numel() for p in parameters)


def _counter() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping=_MAPPING)


def _attention(q: Any, k: Any, v: Any, *unused: Any, **others: Any) -> int:
    return sdpa_flop_count(q, k, v)


def _attention_backward(grad: Any, q: Any, k: Any, v: Any, *unused: Any, **others: Any) -> int:
    return 2 * sdpa_flop_count(q, k, v)


def _convolution_backward(
    grad: Any,
    x: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    output_mask: list[bool],
    **others: Any,
) -> int:
    once = conv_flop_count(x, weight, grad, transposed=transposed)
    return once * sum(output_mask[:2])


# What PyTorch's counter does not count (attention on a CPU), counts as its kernel computes it and
# not as the mathematics has it (backward of attention), or counts too often (the weights' gradient
# of a grouped convolution, as many times as there are groups).
_MAPPING = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    torch.ops.aten._scaled_dot_product_flash_attention_backward: _attention_backward,
    torch.ops.aten._scaled_dot_product_efficient_attention_backward: _attention_backward,
    torch.ops.aten._scaled_dot_product_cudnn_attention_backward: _attention_backward,
    torch.ops.aten.convolution_backward: _convolution_backward,
}
