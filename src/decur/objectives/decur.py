"""DeCUR: common and unique representations decoupled by redundancy reduction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from decur.errors import ConfigError
from decur.objectives.base import OBJECTIVES, Objective, cross_pairs
from decur.objectives.batch import GlobalBatch
from decur.objectives.blocks import (
    COMMON,
    FORM,
    UNIQUE,
    is_shared,
    is_shared_by,
    joined,
    refuse_sensors,
    split_into_blocks,
)
from decur.objectives.redundancy import Correlation, redundancy

SHARE = 0.875  # share of common dimensions, as the paper has it for radar and optics


@OBJECTIVES.register("DeCUR")
class DeCUR(Objective):
    """DeCUR (Eq. 1 to 6), for two or more modalities.

    Cross-modal correlations, of the first views, go to the identity on the common dimensions
    ("common/A-B") and to zero on the unique ones ("unique/A-B"); the intra-modal correlation
    between a modality's two views goes to the identity on all ("intra/A"). The loss is the sum over
    modalities and pairs of modalities.

    With more than two modalities, some of what is shared may be shared by some of them only. With
    `blocks`, each block of dimensions is for the modalities that its name holds. For a pair of
    modalities the dimensions of all blocks that hold both are the common ones, and all other
    dimensions, of other blocks or of none, the unique ones. One block of all modalities is the same
    as `common`. The idea is that of HCL (arXiv 2604.05462); that all other dimensions go to zero
    for a pair is DeCUR's.

    Args:
        dim: Width of the embeddings (K in the paper).
        common: Share of the dimensions that are common, in [0, 1], or "auto"; they come first.
            0.875 for SAR-optical, 0.75 for RGB-DEM and RGB-depth. "auto": `decur pretrain` counts
            it from the data, by a short training that comes first; it is a quarter at least.
        lambda_common: Weight of the off-diagonal of the common correlation (Eq. 2).
        lambda_unique: Weight of the off-diagonal of the unique correlation (Eq. 3).
        lambda_intra: Weight of the off-diagonal of the intra-modal correlations (Eq. 4, 5).
        intra: False leaves the intra-modal terms out (Table 5).
        decouple: False makes all dimensions common (Table 5). Without `intra` too, this is
            cross-modal Barlow Twins.
        blocks: Share of the dimensions of each block, as `{"optical+sar+dem": 0.5, "optical+sar":
            0.125}`; they come first, in this order, and the rest is unique. In place of `common`,
            which is then left at its default.

    Examples:
        >>> z1, z1b, z2, z2b = torch.randn(4, 32, 512)
        >>> terms = DeCUR(dim=512)({"s1": (z1, z1b), "s2": (z2, z2b)})
        >>> list(terms)
        ['loss', 'intra/s1', 'intra/s2', 'common/s1-s2', 'unique/s1-s2']

    Raises:
        ConfigError: if a value is out of range.
    """

    counted: Tensor
    needs_whole_batch = (
        "DeCUR correlates dimensions over the whole batch, and the gradients of small batches do "
        "not add up to that of a large one"
    )
    forms: ClassVar[Mapping[str, str]] = {"blocks": FORM}
    least_modalities = 2

    def __init__(
        self,
        dim: int = 8192,
        common: float | Literal["auto"] = SHARE,
        *,
        lambda_common: float = 0.0051,
        lambda_unique: float = 0.0051,
        lambda_intra: float = 0.0051,
        intra: bool = True,
        decouple: bool = True,
        blocks: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(dim)
        self.counts_share = common == "auto"
        share = 1.0 if common == "auto" else common
        if not isinstance(share, float | int) or not 0 <= share <= 1:
            raise ConfigError(f"common is a share of the dimensions, in [0, 1]; is {common!r}")
        weights = {"common": lambda_common, "unique": lambda_unique, "intra": lambda_intra}
        for name, weight in weights.items():
            if not weight >= 0:
                raise ConfigError(f"lambda_{name} is a weight, at least 0; is {weight}")
        self.weights = weights
        self.intra = intra
        if self.counts_share:
            _refuse_beside_auto(intra, decouple)
            # How many dimensions are common, -1 before it is known. An integer: other buffers
            # take the precision of the weights.
            self.register_buffer("counted", torch.tensor(-1))
        if blocks:
            _refuse_beside_blocks(common, decouple)
            self.parts = split_into_blocks(blocks, dim)
        else:
            split = round(share * dim) if decouple else dim
            if share and not split:
                raise ConfigError(
                    f"common: {share:g} is fewer than one of {dim} dimensions; raise it or "
                    "projector.width, or give 0"
                )
            self._split_at(split)

    @property
    def share(self) -> float:
        """Return the share of the dimensions that are common now, of all or of some modalities."""
        unique = self.parts.get(UNIQUE, slice(0, 0))
        return 1 - float(unique.stop - unique.start) / self.dim

    @property
    def is_counted(self) -> bool:
        """Return whether the share that "auto" asks for has been set."""
        return self.counts_share and int(self.counted) >= 0

    def set_share(self, share: float | None) -> int:
        """Set the share that "auto" asks for; it becomes part of the state.

        Args:
            share: in [0, 1], of which one dimension is the least; None: it cannot be told, and the
                paper's is taken.

        Returns:
            The number of common dimensions.
        """
        split = max(1, round((SHARE if share is None else share) * self.dim))
        self.counted.fill_(split)
        self._split_at(split)
        return split

    def forget_share(self) -> None:
        """Make all dimensions common again, as they are before the share is counted."""
        self.counted.fill_(-1)
        self._split_at(self.dim)

    def _split_at(self, split: int) -> None:
        parts = {COMMON: slice(0, split), UNIQUE: slice(split, self.dim)}
        self.parts = {name: part for name, part in parts.items() if part.stop > part.start}

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if self.counts_share:
            self._split_at(int(self.counted) if self.is_counted else self.dim)

    def check_modalities(self, names: list[str]) -> None:
        """See `Objective.check_modalities`; blocks must be able to name them, and no others."""
        super().check_modalities(names)
        refuse_sensors(list(self.parts), names)

    def dimensions(self, term: str, between: str = "") -> int:
        """See `Objective.dimensions`."""
        if term not in (COMMON, UNIQUE):
            return super().dimensions(term, between)
        dims = [
            d for part, d in self.parts.items() if is_shared_by(part, between) == (term == COMMON)
        ]
        return sum(part.stop - part.start for part in dims)

    def _reason_without(self, part: str) -> str:
        """See `Objective._reason_without`."""
        if part != UNIQUE or not self.is_counted:
            return ""
        return (
            ", as objective.common: auto has counted all as common (to have some, train with a "
            "share that you give)"
        )

    def _dimensions_of(self, *sensors: str, shared: bool) -> tuple[slice, ...]:
        """Return the dimensions in which some sensors are to agree, or those in which they are not.

        Args:
            sensors: two of them.
            shared: which of both.
        """
        parts = self.parts.items()
        return joined([dims for part, dims in parts if is_shared(part, *sensors) == shared])

    def terms(self, batch: GlobalBatch) -> dict[str, Tensor]:
        """See `Objective.terms`."""
        correlations = []
        if self.intra:
            everything, weight = (slice(0, self.dim),), self.weights["intra"]
            for name in batch.names:
                key, views = f"intra/{name}", ((name, 0), (name, 1))
                correlations.append(Correlation(key, *views, everything, 1, weight))
        for pair, operands in cross_pairs(batch.names).items():
            for term in (COMMON, UNIQUE):
                key, shared = f"{term}/{pair}", term == COMMON
                dims = self._dimensions_of(*(name for name, _ in operands), shared=shared)
                if dims:
                    weight = self.weights[term]
                    correlations.append(Correlation(key, *operands, dims, float(shared), weight))
        return redundancy(batch, correlations)


def _refuse_beside_auto(intra: bool, decouple: bool) -> None:
    """Refuse options with which the share cannot be counted."""
    if not intra:
        raise ConfigError("common: auto counts what two views of a sensor share; leave intra true")
    if not decouple:
        raise ConfigError("decouple: false makes all dimensions common; leave common: auto out")


def _refuse_beside_blocks(common: float | str, decouple: bool) -> None:
    """Refuse options that say otherwise than blocks do which dimensions are common."""
    if common != SHARE:
        raise ConfigError(
            f"objective.common {common} and objective.blocks both say which dimensions are shared; "
            f"give one of them (beside blocks, common stays at its default, {SHARE:g})"
        )
    if not decouple:
        raise ConfigError("decouple: false makes all dimensions common; leave objective.blocks out")
