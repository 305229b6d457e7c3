"""DeCUR: common and unique representations decoupled by redundancy reduction."""

from __future__ import annotations

from torch import Tensor

from decur.errors import ConfigError
from decur.objectives.base import OBJECTIVES, Objective, cross_pairs
from decur.objectives.batch import GlobalBatch
from decur.objectives.redundancy import Correlation, redundancy


@OBJECTIVES.register("DeCUR")
class DeCUR(Objective):
    """DeCUR (Eq. 1 to 6), for two or more modalities.

    Cross-modal correlations, of the first views, go to the identity on the common dimensions
    ("common/A-B") and to zero on the unique ones ("unique/A-B"); the intra-modal correlation
    between a modality's two views goes to the identity on all ("intra/A"). The loss is the sum over
    modalities and pairs of modalities.

    Args:
        dim: width of the embeddings, K.
        common: share of the dimensions that are common, in [0, 1]; they come first. 0.875 for
            SAR-optical, 0.75 for RGB-DEM and RGB-depth.
        lambda_common: weight of the off-diagonal of the common correlation (Eq. 2).
        lambda_unique: weight of the off-diagonal of the unique correlation (Eq. 3).
        lambda_intra: weight of the off-diagonal of the intra-modal correlations (Eq. 4, 5).
        intra: False leaves the intra-modal terms out (Table 5).
        decouple: False makes all dimensions common (Table 5). Without `intra` too, this is
            cross-modal Barlow Twins.

    Examples:
        >>> z1, z1b, z2, z2b = torch.randn(4, 32, 512)
        >>> terms = DeCUR(dim=512)({"s1": (z1, z1b), "s2": (z2, z2b)})
        >>> list(terms)
        ['loss', 'intra/s1', 'intra/s2', 'common/s1-s2', 'unique/s1-s2']

    Raises:
        ConfigError: if a value is out of range.
    """

    needs_whole_batch = (
        "DeCUR correlates dimensions over the whole batch, and the gradients of small batches do "
        "not add up to that of a large one"
    )
    least_modalities = 2

    def __init__(
        self,
        dim: int = 8192,
        common: float = 0.875,
        *,
        lambda_common: float = 0.0051,
        lambda_unique: float = 0.0051,
        lambda_intra: float = 0.0051,
        intra: bool = True,
        decouple: bool = True,
    ) -> None:
        super().__init__(dim)
        if not 0 <= common <= 1:
            raise ConfigError(f"common is a share of the dimensions, in [0, 1]; is {common}")
        weights = {"common": lambda_common, "unique": lambda_unique, "intra": lambda_intra}
        for name, weight in weights.items():
            if not weight >= 0:
                raise ConfigError(f"lambda_{name} is a weight, at least 0; is {weight}")
        self.weights = weights
        self.intra = intra
        split = round(common * dim) if decouple else dim
        parts = {"common": slice(0, split), "unique": slice(split, dim)}
        self.parts = {name: part for name, part in parts.items() if part.stop > part.start}

    def terms(self, batch: GlobalBatch) -> dict[str, Tensor]:
        """See `Objective.terms`."""
        correlations = []
        if self.intra:
            everything, weight = slice(0, self.dim), self.weights["intra"]
            for name in batch.names:
                key, views = f"intra/{name}", ((name, 0), (name, 1))
                correlations.append(Correlation(key, *views, everything, 1, weight))
        for pair, operands in cross_pairs(batch.names).items():
            for part, dims in self.parts.items():
                target, weight = float(part == "common"), self.weights[part]
                correlations.append(Correlation(f"{part}/{pair}", *operands, dims, target, weight))
        return redundancy(batch, correlations)
