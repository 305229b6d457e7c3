"""The augmentation recipes of sensors: which operations, and how strong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from decur.errors import ConfigError
from decur.modality import Modality


@dataclass(frozen=True)
class Augmentation:
    """The augmentation recipe of one modality; a probability of 0 switches an operation off.

    The operations come in the order below. Defaults are those of optical images (DeCUR paper,
    appendix B.1, which follows Grill et al. 2020; ranges as in the authors' code). The paper lists
    "color drop" beside grayscale. It says no more, Grill et al. call grayscale by that name, and in
    the authors' code the dropping of bands is commented out: it is off unless it is asked for.

    Args:
        crop_scale: smallest and largest area of the crop, as a fraction of the picture.
        crop_ratio: smallest and largest aspect ratio of the crop, width by height.
        horizontal_flip_p: probability of mirroring left and right.
        vertical_flip_p: probability of mirroring top and bottom.
        jitter_p: probability of a change of brightness and contrast.
        brightness: its factor lies within 1 - brightness and 1 + brightness.
        contrast: its factor lies within 1 - contrast and 1 + contrast.
        grayscale_p: probability that all bands become their mean.
        blur_p: probability of a Gaussian blur.
        blur_sigma: smallest and largest standard deviation of the blur, in pixels of the view.
        solarize_p: probability that values above the threshold become 1 - value.
        solarize_threshold: in [0, 1].
        color_drop_p: probability that some bands become 0: a random choice of at least one and at
            most half of them. One band alone is never dropped.

    Raises:
        ConfigError: naming the field that is out of range.
    """

    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    horizontal_flip_p: float = 0.5
    vertical_flip_p: float = 0.5
    jitter_p: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    grayscale_p: float = 0.2
    blur_p: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize_p: float = 0.2
    solarize_threshold: float = 0.5
    color_drop_p: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, tuple):
                largest = 1.0 if field.name == "crop_scale" else float("inf")
                if not (isinstance(value, Sequence) and len(value) == 2 and _all_numbers(*value)):
                    raise ConfigError(f"{field.name} is {value!r}; needs two numbers [low, high]")
                if not 0 < value[0] <= value[1] <= largest:
                    bound = "low <= high <= 1" if largest == 1 else "low <= high"
                    raise ConfigError(f"{field.name} is {list(value)}; needs 0 < {bound}")
                object.__setattr__(self, field.name, tuple(value))  # YAML has no tuples
            elif not (_all_numbers(value) and 0 <= value <= 1):
                raise ConfigError(f"{field.name} is {value!r}; needs a number in [0, 1]")


def _all_numbers(*values: object) -> bool:
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


_GEOMETRY = Augmentation(jitter_p=0.0, grayscale_p=0.0, blur_p=0.0, solarize_p=0.0)

# What is feasible for which sensor: DeCUR paper, appendix B.1, "Data augmentations".
RECIPES: dict[str, Augmentation] = {
    "optical": Augmentation(),
    "sar": replace(_GEOMETRY, grayscale_p=0.2, blur_p=0.5),
    "dem": _GEOMETRY,
    "hha": replace(_GEOMETRY, crop_scale=(0.5, 1.0), vertical_flip_p=0.0),
}


# The recipes of version 0.1, where they differ: runs that it began go on as they began.
VERSION_0_1: dict[str, dict[str, Any]] = {"optical": {"color_drop_p": 0.2}}


def recipe_of(name: str, modality: Modality, *, changes: Mapping[str, Any]) -> Augmentation:
    """Return the recipe that a modality asks for, with some fields changed.

    Args:
        name: of the modality.
        modality: whose `augmentation` is a key of `RECIPES`.
        changes: fields of `Augmentation`.

    Raises:
        ConfigError: naming the modality and the key that is unknown or out of range.
    """
    where = f"modality {name!r}"
    if modality.augmentation not in RECIPES:
        raise ConfigError(
            f"{where}: no augmentation recipe {modality.augmentation!r}; "
            f"choose from {', '.join(RECIPES)}"
        )
    known = [field.name for field in fields(Augmentation)]
    unknown = sorted(set(changes) - set(known))
    if unknown:
        raise ConfigError(
            f"{where}: unknown augmentation key {unknown[0]!r}; known are {', '.join(known)}"
        )
    try:
        return replace(RECIPES[modality.augmentation], **changes)
    except ConfigError as error:
        raise ConfigError(f"{where}: augmentation {error}") from None


def feasible_for_all(recipes: Mapping[str, Augmentation]) -> Augmentation:
    """Return the geometry that every recipe allows; its colours mean nothing.

    Raises:
        ConfigError: if the recipes' crops have nothing in common.
    """
    changes: dict[str, Any] = {}
    for field in ("crop_scale", "crop_ratio"):
        lows, highs = zip(*(getattr(recipe, field) for recipe in recipes.values()), strict=True)
        if max(lows) > min(highs):
            ranges = ", ".join(f"{n} {list(getattr(r, field))}" for n, r in recipes.items())
            raise ConfigError(
                f"views: shared_geometry needs a {field} that all modalities allow; make these "
                f"overlap: {ranges}"
            )
        changes[field] = (max(lows), min(highs))
    for field in ("horizontal_flip_p", "vertical_flip_p"):
        changes[field] = min(getattr(recipe, field) for recipe in recipes.values())
    return Augmentation(**changes)
