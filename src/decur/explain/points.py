"""Deformable points: what attention looks at, and the main component of its map (Fig. 5b)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from decur.data import Batch, LoaderSettings
from decur.encoders.attention import DeformableAttention, Inspection
from decur.errors import ConfigError
from decur.explain.base import Analysis, Arrays, DoesNotApply, Watch, register, text, unwatched
from decur.explain.model import Checkpoint
from decur.features import SampleLoader, each_batch, spread
from decur.plotting import Figure, plain, render, subplots
from decur.report import paragraph, table
from decur.verdicts import LEVEL, Interval, ratio_interval

SHOWN, MOST = 4, 16  # samples, where none are named and where they are
_ACROSS = 2  # sensors side by side
_POINT = "#D55E00"  # vermilion of Okabe and Ito, seen on blue, yellow and grey alike


def points(
    checkpoint: Checkpoint,
    loader: SampleLoader,
    *,
    watch: Watch = unwatched,
    ids: str | Sequence[str] | None = None,
) -> Arrays:
    """Collect the points that deformable attention samples, and its map's first component.

    Args:
        checkpoint: The run.
        loader: The samples.
        watch: Shows how far it is.
        ids: Ids of the samples to look at, "a, b" or a list; None for four, evenly spaced.

    Returns:
        "ids" and "modalities", names; of each sensor M "M/picture" (n, H, W, 3) in [0, 1] and
        "M/stages", names; of each stage S "M/S/component" (n, h, w), of standard deviation 1 over
        its places; "M/S/points" and "M/S/starts" (n, g, p, 2), x and y, from -1 (left, top) to 1:
        where they are, and where they were before the attention moved them; "M/S/share" (n,), of
        the map's variance that the component explains; and "M/S/strength" (n, 3), the mean length
        of the vectors of the map that is sampled: at the points, everywhere and at the starts. NaN
        where the sensor is absent. "groups" (n,), where the data names them.

    Raises:
        ConfigError: if there is no sample of such an id, or they are too many.
        DoesNotApply: if no encoder has deformable attention.
    """
    attentions = {
        name: {
            module_name.removesuffix(".attention").rsplit(".", 1)[-1]: module
            for module_name, module in checkpoint.encoder(name).named_modules()
            if isinstance(module, DeformableAttention)
        }
        for name in checkpoint.modalities
    }
    if not any(attentions.values()):
        raise DoesNotApply(
            "No encoder of this run has deformable attention; pretrain a CNN with "
            "--encoder.attention rda to get it."
        )
    if isinstance(ids, str):
        ids = [name.strip() for name in ids.split(",")]
    places = _rows(loader, ids)
    one = LoaderSettings(batch_size=MOST, workers=0)
    few = SampleLoader(loader.data, settings=one, among=places)
    arrays: Arrays = {"ids": text(*few.ids), "modalities": text(*checkpoint.modalities)}
    if few.groups is not None:
        arrays["groups"] = text(*few.groups)
    of_batch = partial(_of_batch, checkpoint, attentions)
    for found in each_batch(checkpoint, few, make=of_batch, watch=watch):
        arrays |= found
    if not any(f"{name}/picture" in arrays for name in attentions):
        raise DoesNotApply("None of the samples that it would show can be read.")
    return {**arrays, **{f"{name}/stages": text(*of) for name, of in attentions.items()}}


def _rows(loader: SampleLoader, ids: Sequence[str] | None) -> list[int]:
    """Return indices of the samples in the data set."""
    if ids is None:
        count = min(SHOWN, len(loader.indices))
        spaced = (np.arange(count) + 0.5) * len(loader.indices) / count
        return [loader.indices[int(place)] for place in spaced]
    if not 1 <= len(ids) <= MOST:
        raise ConfigError(f"options.points.ids: from 1 to {MOST} samples, are {len(ids)}")
    known = {name: index for index, name in enumerate(loader.data.ids)}
    for name in ids:
        if name not in known:
            raise ConfigError(f"options.points.ids: the data has no sample {name!r}")
    return [known[name] for name in ids]


def _of_batch(
    checkpoint: Checkpoint, attentions: dict[str, dict[str, DeformableAttention]], batch: Batch
) -> Arrays:
    seen: dict[tuple[str, str], tuple[Tensor, Inspection, Tensor]] = {}
    hooks = []
    for name, stages in attentions.items():
        for stage, module in stages.items():

            def look(
                of: nn.Module, given: tuple[Tensor, ...], key: tuple[str, str] = (name, stage)
            ) -> None:
                assert isinstance(of, DeformableAttention)
                seen[key] = (*of.inspect(*given), given[-1])

            hooks.append(module.register_forward_pre_hook(look))
    try:
        checkpoint(batch)
    finally:
        for hook in hooks:
            hook.remove()
    arrays: Arrays = {}
    for name, modality in checkpoint.modalities.items():
        has = batch["present"][name]
        if not has.any():
            continue
        shown = np.stack([render(x, modality) for x in checkpoint.pictures(batch, name)])
        arrays[f"{name}/picture"] = _among(has, shown)
        for stage in attentions[name]:
            feature, inspection, sampled = seen[name, stage]
            found = [component(x.float().cpu().numpy()) for x in feature]
            at, start = _places(attentions[name][stage], inspection, feature.shape)
            starts = start.expand_as(at)
            long = sampled.float().norm(dim=1, keepdim=True)  # (n, 1, h, w)
            there, before = (
                nn.functional.grid_sample(
                    long, grid, mode="bilinear", padding_mode="border", align_corners=False
                )  # (n, 1, g, p)
                for grid in (at, starts)
            )
            strength = torch.stack([x.mean((1, 2, 3)) for x in (there, long, before)], 1)
            for key, rows in (
                ("component", np.stack([scores for scores, _ in found])),
                ("share", np.array([share for _, share in found])),
                ("points", at.cpu().numpy()),
                ("starts", starts.cpu().numpy()),
                ("strength", strength.cpu().numpy()),
            ):
                arrays[f"{name}/{stage}/{key}"] = _among(has, rows)
    return arrays


def _places(
    module: DeformableAttention, inspection: Inspection, shape: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return points (n, g, p, 2) and their starts (p, 2); the map's edges are at -1 and 1."""
    at = inspection.points.float()
    sides = shape[-1], shape[-2]  # x and y
    axes = []
    for side in sides:
        count = -(-side // module.stride)
        steps = count if module.centred else max(count - 1, 0.5)
        index = torch.arange(count, device=at.device)
        axes.append(((2 * index + 1) / steps - 1).clamp(-1, 1))
    y, x = torch.meshgrid(axes[1], axes[0], indexing="ij")
    start = torch.stack([x.flatten(), y.flatten()], 1)
    if not module.centred:  # there -1 and 1 are the centres of the outermost places
        inner = torch.tensor([(side - 1) / side for side in sides], device=at.device)
        at, start = at * inner, start * inner
    return at, start


def component(feature: NDArray[Any]) -> tuple[NDArray[np.float32], float]:
    """Return the first principal component of a map over its places.

    Its sign is such that it rises where the map's vectors are long; where that does not tell, its
    value of the largest magnitude is positive.

    Args:
        feature: (C, h, w).

    Returns:
        (h, w), of mean 0 and standard deviation 1, and the share of the variance that it explains;
        zeros and 0 of a map that is the same everywhere.
    """
    x = feature.reshape(len(feature), -1).T.astype(np.float64)  # (places, C)
    long = np.linalg.norm(x, axis=1)
    x = x - x.mean(0)
    total = float((x**2).sum())
    if total <= np.finfo(np.float32).eps ** 2 * float((long**2).sum()):
        return np.zeros(feature.shape[1:], np.float32), 0.0
    left, values, _ = np.linalg.svd(x, full_matrices=False)
    scores = left[:, 0]
    rises = float(scores @ (long - long.mean()))
    if abs(rises) <= 1e-9 * float(np.linalg.norm(long)):
        rises = scores[np.abs(scores).argmax()]
    scores = scores * (np.sign(rises) or 1) * np.sqrt(len(scores))
    shape = feature.shape[1:]
    return scores.reshape(shape).astype(np.float32), float(values[0] ** 2 / total)


def _among(has: Tensor, rows: NDArray[Any]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = spread(torch.from_numpy(rows), has).numpy()
    return found


def plot_points(arrays: Arrays) -> Figure:
    """Draw each sample's picture, and of each stage the first component with its points.

    A line leads to each point from where it was before it was moved.
    """
    names = [str(name) for name in arrays["modalities"] if f"{name}/picture" in arrays]
    ids = arrays["ids"].tolist()
    wide = 1 + max(len(arrays[f"{name}/stages"]) for name in names)
    across = min(_ACROSS, len(names))
    blocks = -(-len(names) // across)
    columns = across * wide
    figure, axes = subplots(len(ids) * blocks, columns, width=min(1.9, 8.8 / columns))
    for axis in axes.flat:
        axis.axis("off")
    for number, name in enumerate(names):
        block, left = divmod(number, across)
        for row, label in enumerate(ids):
            of = axes[block * len(ids) + row, left * wide : (left + 1) * wide]
            heading = row == 0
            _draw(of, arrays, name, row, heading)
            if left == 0:
                of[0].text(
                    -0.05, 0.5, plain(label[-16:]), rotation=90, fontsize=8,
                    ha="right", va="center", transform=of[0].transAxes,
                )  # fmt: skip
    return figure


def _draw(axes: Any, arrays: Arrays, name: str, row: int, heading: bool) -> None:
    picture = arrays[f"{name}/picture"][row]
    if heading:
        axes[0].set_title(plain(name), fontsize=9)
    if np.isnan(picture).any():
        axes[0].text(0.5, 0.5, "absent", ha="center", va="center", fontsize=8)
        return
    axes[0].imshow(picture, interpolation="nearest", extent=(-1, 1, 1, -1))
    grey = np.allclose(picture[..., 0], picture[..., 1])
    for axis, stage in zip(axes[1:], arrays[f"{name}/stages"].tolist(), strict=False):
        if heading:
            axis.set_title(stage, fontsize=9)
        axis.imshow(picture.mean(-1), cmap="gray", extent=(-1, 1, 1, -1))
        axis.imshow(
            arrays[f"{name}/{stage}/component"][row],
            extent=(-1, 1, 1, -1),
            cmap="gray" if grey else "viridis",
            interpolation="nearest",
            alpha=0.7,
        )
        at = arrays[f"{name}/{stage}/points"][row].reshape(-1, 2)
        start = arrays[f"{name}/{stage}/starts"][row].reshape(-1, 2)
        lines = np.stack([start, at], 1)  # (points, 2, 2)
        size = float(np.clip(300 / len(at), 5, 12))
        axis.plot(*lines.transpose(2, 1, 0), color=_POINT, linewidth=0.4, alpha=0.6)
        axis.scatter(*at.T, s=size, color=_POINT, edgecolors="white", linewidths=0.3, zorder=3)
        axis.set(xlim=(-1, 1), ylim=(1, -1))


def findings(arrays: Arrays) -> str:
    """Write how far the points have moved, and whether they go where the map is strong."""
    shown = [
        (name, stage)
        for name in arrays["modalities"].tolist()
        for stage in arrays[f"{name}/stages"].tolist()
        if f"{name}/{stage}/points" in arrays
    ]
    rows: list[list[object]] = []
    for name, stage in shown:
        key = f"{name}/{stage}"
        at, start = arrays[f"{key}/points"], arrays[f"{key}/starts"]
        far = float(np.nanmean(np.linalg.norm(at - start, axis=-1)) / 2)
        step = at.shape[2] ** -0.5  # between points of a square grid, in widths of the picture
        there, before, more = _strengths(arrays, key, LEVEL / len(shown))
        rows.append(
            [name, stage, at.shape[1], at.shape[2], f"{100 * far:.1f} %", far / step]
            + [there, before, str(more), more.above().value]
            + [f"{100 * np.nanmean(arrays[f'{key}/share']):.0f} %"]
        )
    head = ["sensor", "stage", "groups", "points", "moved", "in steps", "strength", "at the starts"]
    head += ["difference", "go where it is strong", "explained"]
    reading = (
        "moved: how far attention has moved its points on average, as a share of the picture's "
        "width, and in steps of the grid that they start on; a module with fresh weights has moved "
        "them, too, so that this alone tells nothing of what was learned. strength: mean length of "
        "the vectors of the map that is sampled at the points, over that at all its places; a grid "
        "has one above or below 1, too, so that the points go where the map is strong only if it "
        "is more than at their starts, beyond the interval of the difference (95 % for all rows "
        "together). explained: share of the variance of the stage's map that its first component "
        f"shows. Of the {len(arrays['ids'])} samples above; --options.points.ids takes up to "
        f"{MOST}."
    )
    return table(head, rows) + paragraph(reading)


def _strengths(arrays: Arrays, key: str, level: float) -> tuple[float, float, Interval]:
    """Return the strength at the points and at their starts, and the difference with its interval.

    Args:
        arrays: of `points`.
        key: "SENSOR/STAGE".
        level: of the interval.
    """
    strength = arrays[f"{key}/strength"]
    has = ~np.isnan(strength).any(1)
    there, everywhere, *others = strength[has].T
    before = others[0] if others else np.full_like(there, np.nan)  # decur 0.1 kept two
    groups = arrays["groups"][has] if "groups" in arrays else None
    if not everywhere.any():
        return np.nan, np.nan, Interval(np.nan)
    more = ratio_interval(there - before, everywhere, groups, level)
    total = everywhere.sum()
    return float(there.sum() / total), float(before.sum() / total), more


register(
    Analysis(
        name="points",
        title="Deformable points",
        about=(
            "Where deformable attention looks (Fig. 5b of the paper): each sensor's picture and, "
            "for each stage that has attention, the first principal component of its feature map, "
            "in colour where the picture is and in grey where not, over the picture, with the "
            "points that are sampled. Bright is where the features are strong. A line leads to "
            "each point from where it started; fresh weights move points, too."
        ),
        arrays=points,
        plots={"map": plot_points},
        findings=findings,
        order=30,
    )
)
