"""Deformable attention: each place looks at a few points, which the picture itself moves."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import (
    conv2d,
    grid_sample,
    layer_norm,
    linear,
    scaled_dot_product_attention,
)

from decur.encoders.attention.base import ATTENTIONS, Geometry, Stage

HEAD, GROUP = 128, 256  # channels of a head, and of a group that shares its points


class Inspection(NamedTuple):
    """The points, offsets and weights of a deformable attention; g groups, h heads, n points.

    Attributes:
        points: (B, g, n, 2) places that are sampled, x and y, from -1 (left, top) to 1.
        offsets: (B, g, n, 2) how far they were moved from the centres of their cells.
        attention: (B, h, H * W, n) weight of each point for each place; sums to 1 over the points.
    """

    points: Tensor
    offsets: Tensor
    attention: Tensor


class DeformableAttention(nn.Module):
    """Deformable multi-head attention on a feature map.

    Every place asks (a query); keys and values come from a coarse grid of points, moved by offsets
    that a small network reads off the queries, one grid a group of channels. A learned bias for
    the distance between place and point is read continuously from a table that spans the map
    whatever its size, so a module trained on one size of pictures takes others.

    Two geometries are there. That of DAT, the default, is the one that the paper follows
    (appendix B.1, "following DAT++") and that the authors' weights were trained with: -1 and 1 are
    the centres of the outermost places, the points start half a cell further down and right, those
    of the last row and column at the very end, and a new network moves them at random. Centred, -1
    and 1 are the map's edges, and the points of a new module stay at the centres of their cells.
    Wherever training moves the points, they stay inside the map.

    Args:
        channels: C of the map, divisible by `heads` and by `groups`.
        heads: h; a head has C / h channels.
        groups: g of channels that have points of their own; divides `heads`.
        stride: r; the grid has a point for every r x r places.
        kernel: of the offset network's depthwise convolution, odd.
        size: height and width of the map that the table of biases is made for.
        residual: add the map to the result: RDA instead of DA (section 3.2).
        centred: take the centred geometry, which is not the paper's: version 0.1 had it.

    Shapes:
        (B, C, H, W) to (B, C, H, W).

    Source: DeCUR paper, section 3.2 and appendix B.1; Xia et al. 2022, 2023 (DAT, DAT++), whose
    DAT++ lets offsets pass no tanh, as the authors' code does not.

    Examples:
        >>> module = DeformableAttention(256, heads=2, groups=1, stride=2, kernel=5, size=(14, 14))
        >>> module(torch.zeros(1, 256, 14, 14)).shape
        torch.Size([1, 256, 14, 14])
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        groups: int,
        stride: int,
        kernel: int,
        size: tuple[int, int],
        residual: bool = True,
        centred: bool = False,
    ) -> None:
        super().__init__()
        self.heads, self.groups, self.stride, self.residual = heads, groups, stride, residual
        self.centred = centred
        self.gathers = False  # whether points are read by `gathered`, in graphs for other programs
        self.query = nn.Conv2d(channels, channels, 1)
        self.key = nn.Conv2d(channels, channels, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        width = channels // groups
        move = nn.Conv2d(width, 2, 1, bias=False)
        if centred:
            nn.init.zeros_(move.weight)  # a random network would scatter the points
        padding = kernel // 2 if centred or kernel != stride else 0  # cells that do not overlap
        self.offset = nn.Sequential(
            nn.Conv2d(width, width, kernel, stride, padding, groups=width),
            _ChannelNorm(width),
            nn.GELU(),
            move,
        )
        self.bias = nn.Parameter(torch.empty(heads, 2 * size[0] - 1, 2 * size[1] - 1))
        nn.init.trunc_normal_(self.bias, std=0.01)

    def forward(self, x: Tensor, source: Tensor | None = None) -> Tensor:
        """Attend from each place of a map to points of it, or of another map.

        Args:
            x: (B, C, H, W) the map that asks, and whose points are moved.
            source: (B, C, any, any) the map that is sampled; `x` itself by default.
        """
        q, k, v, bias, _, _ = self._prepare(x, x if source is None else source)
        y = scaled_dot_product_attention(q, k, v, attn_mask=bias)  # (B, h, HW, C / h)
        return self._finish(x, y)

    def inspect(self, x: Tensor, source: Tensor | None = None) -> tuple[Tensor, Inspection]:
        """Return the result of `forward`, and the points, offsets and weights behind it."""
        q, k, v, bias, points, offsets = self._prepare(x, x if source is None else source)
        attention = (q @ k.mT * q.shape[-1] ** -0.5 + bias).softmax(-1)  # (B, h, HW, n)
        return self._finish(x, attention @ v), Inspection(points, offsets, attention)

    def _prepare(self, x: Tensor, source: Tensor) -> tuple[Tensor, ...]:
        asked = _project(self.query, _tokens(x))  # (B, HW, C)
        query = asked.mT.unflatten(2, x.shape[-2:])  # (B, C, H, W)
        # Coordinates and sampling in float32: in bfloat16 a point would miss its place by a cell.
        exact = torch.promote_types(x.dtype, torch.float32)
        offsets = self._offsets(query).to(exact)  # (B g, H / r, W / r, 2), x and y
        rows, columns = offsets.shape[1:3]
        start = _grid(rows, columns, offsets, 1, 0 if self.centred else 1)
        points = (start + offsets).clamp(-1, 1)
        sampled = self._sample(
            self._grouped(source.to(exact)), points, align_corners=not self.centred
        )  # (B g, C / g, H / r, W / r)
        sampled = _tokens(sampled.to(x.dtype).unflatten(0, (-1, self.groups)).flatten(1, 2))
        q, k, v = (
            tensor.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for tensor in (asked, _project(self.key, sampled), _project(self.value, sampled))
        )  # (B, h, HW, C / h), twice (B, h, n, C / h)
        points, offsets = (
            tensor.flatten(1, 2).unflatten(0, (-1, self.groups)) for tensor in (points, offsets)
        )  # (B, g, n, 2)
        bias = self._distance_bias(points, *x.shape[-2:]).to(q.dtype)
        return q, k, v, bias, points, offsets

    def _offsets(self, query: Tensor) -> Tensor:
        """Return the offsets of `self.offset` for each group: (B, C, H, W) to (B g, h, w, 2).

        All groups share its weights. Repeated for each, they take the map as it lies, where one
        group after the other would have to be copied out of it.
        """
        depthwise, norm, activation, move = self.offset
        assert isinstance(depthwise, nn.Conv2d) and isinstance(norm, nn.LayerNorm)
        assert isinstance(move, nn.Conv2d) and depthwise.bias is not None
        x = conv2d(
            query,
            depthwise.weight.repeat(self.groups, 1, 1, 1),
            depthwise.bias.repeat(self.groups),
            depthwise.stride,
            depthwise.padding,
            groups=query.shape[1],
        )  # (B, C, h, w)
        x = x.movedim(1, -1).unflatten(-1, (self.groups, -1))  # (B, h, w, g, C / g)
        x = activation(layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps))
        offsets = linear(x, move.weight.flatten(1))  # (B, h, w, g, 2), y and x
        return offsets.movedim(3, 1).flatten(0, 1).flip(-1)

    def _sample(self, maps: Tensor, points: Tensor, *, align_corners: bool) -> Tensor:
        """Read maps (n, C, H, W) at points (n, h, w, 2), bilinearly: (n, C, h, w)."""
        if self.gathers:
            return gathered(maps, points, align_corners=align_corners)
        return grid_sample(maps, points, padding_mode="border", align_corners=align_corners)

    def _grouped(self, x: Tensor) -> Tensor:
        grouped: Tensor = x.unflatten(1, (self.groups, -1)).flatten(0, 1)  # (B g, C / g, H, W)
        return grouped

    def _distance_bias(self, points: Tensor, height: int, width: int) -> Tensor:
        """Return the bias of each place for each point: (B, g, n, 2) to (B, h, H W, n)."""
        first, less = (1, 0) if self.centred else (0, 1)
        places = _grid(height, width, points, first, less).flatten(0, 1)[:, None]  # (HW, 1, 2)
        distance = (places - points.flatten(0, 1)[:, None]) / 2  # (B g, HW, n, 2), parts of the map
        # From the first place to the last is the whole table: H - 1 steps of 1 / H if centred.
        x, y = (
            d * (n / max(n - 1, 1)) if self.centred else d
            for d, n in zip(distance.unbind(-1), (width, height), strict=True)
        )
        table = self.bias.to(points.dtype).unflatten(0, (self.groups, -1))
        found = self._sample(
            table.repeat(points.shape[0], 1, 1, 1), torch.stack((x, y), -1), align_corners=True
        )  # (B g, h / g, HW, n)
        bias: Tensor = found.unflatten(0, (-1, self.groups)).flatten(1, 2)
        return bias

    def _finish(self, x: Tensor, y: Tensor) -> Tensor:
        y = _project(self.out, y.transpose(1, 2).flatten(2))  # (B, HW, C)
        y = y.mT.unflatten(2, x.shape[-2:])  # (B, C, H, W)
        return x + y if self.residual else y


def gathered(maps: Tensor, points: Tensor, *, align_corners: bool) -> Tensor:
    """Return what `grid_sample` with borders does, by four gathers, which every program has.

    Args:
        maps: (n, C, H, W).
        points: (n, h, w, 2), x and y from -1 to 1.
        align_corners: as `grid_sample` takes it.

    Returns:
        (n, C, h, w).
    """
    height, width = maps.shape[-2:]
    corners, parts = [], []  # of each axis: the two places that a point is between, and how far
    for at, length in zip(points.unbind(-1), (width, height), strict=True):
        place = (at + 1) / 2 * (length - 1) if align_corners else ((at + 1) * length - 1) / 2
        place = place.clamp_min(0).clamp_max(length - 1)  # (n, h, w)
        first = place.floor()
        corners.append((first.long(), (first + 1).clamp_max(length - 1).long()))
        parts.append((place - first)[:, None])  # (n, 1, h, w)
    flat, size = maps.flatten(2), points.shape[1:3]

    def read(row: Tensor, column: Tensor) -> Tensor:
        index = (row * width + column).flatten(1)[:, None].expand(-1, flat.shape[1], -1)
        found: Tensor = flat.gather(2, index).unflatten(2, size)  # (n, C, h, w)
        return found

    (left, right), (top, bottom) = corners
    x, y = parts
    upper = read(top, left) * (1 - x) + read(top, right) * x
    return upper * (1 - y) + (read(bottom, left) * (1 - x) + read(bottom, right) * x) * y


def _tokens(x: Tensor) -> Tensor:
    return x.flatten(2).mT  # (B, C, H, W) to (B, HW, C)


def _project(layer: nn.Conv2d, tokens: Tensor) -> Tensor:
    """Apply a 1 x 1 convolution as one matrix product, which is faster on small maps."""
    return linear(tokens, layer.weight.flatten(1), layer.bias)


class _ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def _grid(height: int, width: int, like: Tensor, first: int, less: int) -> Tensor:
    """Return the places in the map as x and y, (height, width, 2).

    The i-th of n is at (2 i + first) / (n - less) - 1: with (1, 0) the centres of cells, with
    (0, 1) the outermost at -1 and 1.
    """
    y, x = (
        (torch.arange(steps, device=like.device, dtype=like.dtype) * 2 + first)
        / max(steps - less, 0.5)  # so that a single point starts at the end, as theirs does
        - 1
        for steps in (height, width)
    )
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)


Kind = TypeVar("Kind", bound=DeformableAttention)


def for_stage(
    stage: Stage,
    residual: bool,
    geometry: Geometry = "dat",
    kind: type[Kind] = DeformableAttention,  # type: ignore[assignment]
) -> Kind:
    """Return the attention that the paper has after a stage, also for other widths and stages.

    The last stage's has a point for every place and a 3 x 3 offset kernel; of each one before, the
    stride doubles and the kernel grows by 2, so that all stages sample about as many points
    (Xia et al. 2023). Heads have 128 channels and groups 256 where the width divides by them.
    """
    heads, groups = (stage.channels // w if stage.channels % w == 0 else 1 for w in (HEAD, GROUP))
    return kind(
        stage.channels,
        heads=heads,
        groups=groups,
        stride=2**stage.later,
        kernel=2 * stage.later + 3,
        size=stage.size,
        residual=residual,
        centred=geometry == "centred",
    )


@ATTENTIONS.register("rda")
def _rda(stage: Stage, geometry: Geometry = "dat") -> DeformableAttention:
    return for_stage(stage, residual=True, geometry=geometry)


@ATTENTIONS.register("da")
def _da(stage: Stage, geometry: Geometry = "dat") -> DeformableAttention:
    return for_stage(stage, residual=False, geometry=geometry)


@ATTENTIONS.register("rda_official")
def _rda_official(stage: Stage) -> DeformableAttention:
    """Return the attention that files of the authors' weights name, in DAT's geometry."""
    return for_stage(stage, residual=True, geometry="dat")
