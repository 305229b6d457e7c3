"""A batch of pictures to two augmented views a modality, on the device the batch is on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from decur.errors import ConfigError, DataError
from decur.modality import Modality
from decur.views.augmentation import VERSION_0_1, Augmentation, feasible_for_all, recipe_of
from decur.views.counter import stream_keys, uniform
from decur.views.pixels import blur_, crop_resize, drop_bands_, gray_, jitter_, solarize_

_CANDIDATES = 10  # crops drawn until one fits, as in torchvision


@dataclass(frozen=True)
class Drawn:
    """The parameters of one view of one modality of a batch; all on the CPU.

    Args:
        box: (B, 4) float64, top, left, height and width of the crop as fractions of the picture.
        flip: (B, 2) bool, vertical and horizontal.
        brightness: (B,) float64 factors, 1 for none.
        contrast: (B,) float64 factors, 1 for none.
        gray: (B,) bool.
        sigma: (B,) float64 of the blur in pixels, 0 for none.
        solarize: (B,) bool.
        dropped: (B, C) bool, the bands that become 0.
    """

    box: Tensor
    flip: Tensor
    brightness: Tensor
    contrast: Tensor
    gray: Tensor
    sigma: Tensor
    solarize: Tensor
    dropped: Tensor


class Views(nn.Module):
    """Make two augmented views of each modality, with parameters of its own for each sample.

    What a sample becomes is a function of its seed, the modality's name and the view, and of
    nothing else: not of the batch it is in, the rank, the step, or the device.

    ```python
    views = Views({"s1": Modality.preset("sentinel1"), "s2": Modality.preset("sentinel2-l1c")})
    seeds = sample_seeds(batch["ids"], seed=0, epoch=3)
    first, second = views(images, seeds)["s1"]  # (B, 2, 224, 224) each
    ```

    Args:
        modalities: by name; each one's `augmentation` chooses its recipe from `RECIPES`.
        size: height and width of the views in pixels, or one number for both.
        shared_geometry: give all modalities of a sample the same crop (relative to each one's own
            size) and the same flips, within each view. Only what is feasible for all of them is
            used: crops that all their recipes allow, and the smallest of their flips'
            probabilities. Otherwise each modality has its own geometry, as in the paper.
        overrides: `{modality or "all": {field of Augmentation: value}}`; a modality's own go
            before those for all.
        recipes: "paper", or those of version "0.1": some bands of an optical picture are dropped
            with probability 0.2, and contrast pulls to the mean over all bands.
        levels: how many values a picture is rounded to before; 256 for those of 8 bits. None
            rounds nothing.
        channels_last: write views with their channels innermost, as ConvNets like them.

    Raises:
        ConfigError: naming the modality and the key that is unknown or out of range.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        size: int | tuple[int, int] = 224,
        *,
        shared_geometry: bool = False,
        overrides: Mapping[str, Mapping[str, Any]] | None = None,
        recipes: Literal["paper", "0.1"] = "paper",
        levels: int | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        sides = (size, size) if isinstance(size, int) else tuple(size)
        if len(sides) != 2 or min(sides) < 1:
            raise ConfigError(f"views: size is {size}; needs one or two positive whole numbers")
        for name, modality in modalities.items():
            if modality.scaling == "zscore":
                raise ConfigError(
                    f"views: modality {name!r} has scaling 'zscore', and views are of pictures in "
                    "[0, 1]; take 'standard', with the same mean and std"
                )
        overrides = overrides or {}
        unknown = sorted(set(overrides) - set(modalities) - {"all"})
        if unknown:
            raise ConfigError(
                f"views: overrides for {unknown[0]!r}; known are all, {', '.join(modalities)}"
            )
        for name, changes in overrides.items():
            if not isinstance(changes, Mapping):
                raise ConfigError(
                    f"views: overrides for {name!r} are {changes!r}; needs a mapping of "
                    "augmentation keys to values"
                )
        self.size = (int(sides[0]), int(sides[1]))
        if levels is not None and levels < 2:
            raise ConfigError(f"views: levels is {levels}; needs 2 or more, 256 for 8 bits")
        self.levels = levels
        self.channels_last = channels_last
        self.per_band = recipes != "0.1"  # the mean that contrast pulls to
        self.recipes = {}
        for name, modality in modalities.items():
            changes = {} if self.per_band else VERSION_0_1.get(modality.augmentation, {})
            changes = {**changes, **overrides.get("all", {}), **overrides.get(name, {})}
            self.recipes[name] = recipe_of(name, modality, changes=changes)
        self.bands = {name: modality.channels for name, modality in modalities.items()}
        self.shared = feasible_for_all(self.recipes) if shared_geometry and modalities else None

    @torch.no_grad()
    def forward(
        self, images: Mapping[str, Tensor], seeds: Tensor
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Draw and apply.

        Args:
            images: (B, C, H, W) of each modality, floating point in [0, 1], on any one device.
                Sizes may differ between modalities. A modality may be left out.
            seeds: (B,) int64 on the CPU, of the samples; see `sample_seeds`.

        Returns:
            Two views (B, C, *size) in [0, 1] of each modality, of the images' device and type.

        Raises:
            DataError: if shapes or types are not as above.
        """
        self._check(images, seeds)
        sizes = {name: (int(x.shape[-2]), int(x.shape[-1])) for name, x in images.items()}
        return self.render(images, self.draw(sizes, seeds))

    def draw(
        self, sizes: Mapping[str, tuple[int, int]], seeds: Tensor
    ) -> dict[str, tuple[Drawn, Drawn]]:
        """Return the parameters of both views, which `render` takes.

        Args:
            sizes: height and width of each modality's pictures in pixels.
            seeds: (B,) int64 on the CPU.
        """
        return {
            name: (self._draw(name, 0, sizes, seeds), self._draw(name, 1, sizes, seeds))
            for name in sizes
        }

    @torch.no_grad()
    def render(
        self, images: Mapping[str, Tensor], drawn: Mapping[str, tuple[Drawn, Drawn]]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Make the views that were drawn; see `forward`."""
        return {
            name: (
                self._render(x, drawn[name][0], self.recipes[name]),
                self._render(x, drawn[name][1], self.recipes[name]),
            )
            for name, x in images.items()
        }

    def _draw(
        self, name: str, view: int, sizes: Mapping[str, tuple[int, int]], seeds: Tensor
    ) -> Drawn:
        recipe = self.recipes[name]
        if self.shared is None:
            box, flip = _draw_geometry(seeds, f"{view}/{name}", recipe, sizes[name])
        else:  # pixels of one modality decide for all, so that the crops of all are the same
            first = next(other for other in self.recipes if other in sizes)
            box, flip = _draw_geometry(seeds, f"{view}/", self.shared, sizes[first])
        return Drawn(box, flip, *_draw_colour(seeds, f"{view}/{name}", recipe, self.bands[name]))

    def _render(self, images: Tensor, drawn: Drawn, recipe: Augmentation) -> Tensor:
        # Brightness, contrast and gray commute with each other and, but for values that leave
        # [0, 1] on the way, with the blur; one clamp at the end serves all.
        kind = images.dtype
        with torch.autocast(images.device.type, enabled=False):
            if self.levels is not None:
                images = images.float().mul(self.levels - 1).round_().div_(self.levels - 1)
            x = crop_resize(images.float().contiguous(), drawn.box, drawn.flip, self.size)
            if recipe.jitter_p:
                x = jitter_(x, drawn.brightness, drawn.contrast, per_band=self.per_band)
            x = gray_(x, drawn.gray)
            x = blur_(x, drawn.sigma, recipe.blur_sigma[1])
            x = solarize_(x, drawn.solarize, recipe.solarize_threshold)
            x = drop_bands_(x, drawn.dropped)
            # One pass clamps and changes the layout.
            out = torch.empty_like(x, memory_format=torch.channels_last)
            return torch.clamp(x, 0, 1, out=out if self.channels_last else x).to(kind)

    def _check(self, images: Mapping[str, Tensor], seeds: Tensor) -> None:
        if seeds.ndim != 1 or seeds.dtype != torch.int64 or seeds.device.type != "cpu":
            raise DataError(
                f"views: seeds are {seeds.dtype} {tuple(seeds.shape)} on {seeds.device}; "
                "needs int64 (B,) on the CPU, see sample_seeds"
            )
        for name, x in images.items():
            if name not in self.bands:
                raise DataError(
                    f"views: images of an unknown modality {name!r}; known are "
                    f"{', '.join(self.bands)}"
                )
            batch, bands = len(seeds), self.bands[name]
            if x.ndim != 4 or x.shape[:2] != (batch, bands) or not x.is_floating_point():
                raise DataError(
                    f"views: images of {name!r} are {x.dtype} {tuple(x.shape)}; needs floating "
                    f"point ({batch}, {bands}, H, W), see Modality.scale"
                )


@lru_cache(maxsize=256)
def _keys(stream: str, slots: tuple[tuple[str, int], ...]) -> Tensor:
    return stream_keys(f"{stream}/{name}/{i}" for name, count in slots for i in range(count))


def _numbers(seeds: Tensor, stream: str, **slots: int) -> dict[str, Tensor]:
    """Return uniform numbers by name: for each slot as many columns (B, n) as it needs."""
    numbers = uniform(seeds, _keys(stream, tuple(slots.items())))
    return dict(zip(slots, numbers.split(list(slots.values()), dim=1), strict=True))


def _between(uniforms: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * uniforms


def _draw_geometry(
    seeds: Tensor, stream: str, recipe: Augmentation, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Draw crops in whole pixels, distributed as RandomResizedCrop of torchvision, and flips.

    Area uniform, aspect ratio log-uniform. Of ten candidates the first that fits into the picture
    is taken; if none does, the largest central crop whose aspect ratio is allowed.

    Returns:
        Box (B, 4) float64 in fractions of the picture and flips (B, 2) bool, as in `Drawn`.
    """
    u = _numbers(
        seeds, stream, area=_CANDIDATES, ratio=_CANDIDATES, top=1, left=1, vertical=1, horizontal=1
    )
    extent = torch.tensor(size)  # (2,)
    area = _between(u["area"], *recipe.crop_scale) * extent.prod()  # (B, candidates)
    low, high = torch.tensor(recipe.crop_ratio, dtype=torch.float64)
    ratio = _between(u["ratio"], low.log(), high.log()).exp()
    drawn = torch.stack(((area / ratio).sqrt(), (area * ratio).sqrt()), -1).round()
    # (B, candidates + 1, 2): the central crop is the last candidate and always fits
    widest = (extent[1] / low).clamp(max=extent[0]), (extent[0] * high).clamp(max=extent[1])
    central = torch.stack(widest).round().clamp_min(1)
    crops = torch.cat((drawn, central.expand(len(seeds), 1, 2)), 1)
    fits = ((crops >= 1) & (crops <= extent)).all(-1)  # (B, candidates + 1)
    first = fits.int().argmax(1)  # (B,)
    crop = crops[torch.arange(len(seeds)), first]  # (B, 2)
    spare = extent - crop
    start = (torch.cat((u["top"], u["left"]), 1) * (spare + 1)).floor()
    start = torch.where((first == _CANDIDATES)[:, None], (spare / 2).floor(), start)
    box = torch.cat((start / extent, crop / extent), 1)
    p = torch.tensor([recipe.vertical_flip_p, recipe.horizontal_flip_p], dtype=torch.float64)
    return box, torch.cat((u["vertical"], u["horizontal"]), 1) < p


def _draw_colour(
    seeds: Tensor, stream: str, recipe: Augmentation, bands: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the fields of `Drawn` from `brightness` on."""
    single = ("jitter", "brightness", "contrast", "gray", "blur", "sigma", "solarize", "drop")
    u = _numbers(seeds, stream, **dict.fromkeys(single, 1), share=1, order=bands)
    one = {name: u[name][:, 0] for name in single}  # (B,) each
    jitter = one["jitter"] < recipe.jitter_p
    brightness = _between(one["brightness"], 1 - recipe.brightness, 1 + recipe.brightness)
    contrast = _between(one["contrast"], 1 - recipe.contrast, 1 + recipe.contrast)
    sigma = _between(one["sigma"], *recipe.blur_sigma)
    dropping = one["drop"] < recipe.color_drop_p
    count = 1 + (u["share"] * (bands // 2)).floor()  # (B, 1), from 1 to half of the bands
    rank = u["order"].argsort(1).argsort(1)  # (B, C), a random permutation of each sample's bands
    dropped = (rank < count) & dropping[:, None] if bands > 1 else (rank < 0)
    return (
        torch.where(jitter, brightness, 1.0),
        torch.where(jitter, contrast, 1.0),
        one["gray"] < recipe.grayscale_p,
        torch.where(one["blur"] < recipe.blur_p, sigma, 0.0),
        one["solarize"] < recipe.solarize_p,
        dropped,
    )
