"""Encoders over a data set: rows of features, streamed, cached and NaN where a sensor is absent.

A recipe, from a data set to rows of features:

    model = FeatureModel(encoders, projectors=projectors).to("cuda")
    loader = SampleLoader(data.only(["s1", "s2"], targets=["cover"]), samples=2000)

    for rows in iterate(model, loader):            # one batch after another, nothing is kept
        rows.features["s1"]                        # (B, D), NaN rows where the sensor is absent
    found = compute_features(model, loader)        # all rows, in memory or in a file
    found = cached_features(model, loader, cache=cache)  # computed once, kept in a folder
    found.features["s1"], found.embeddings["s1"], found.labels["cover"]  # (N, D), (N, K), (N, ...)

The samples come in the order of the data set, each once, without augmentation. What the loader's
data set is narrowed to (`only`) is read, and no more. Samples that cannot be read have no sensor
and no known label, and are listed as bad. Encoders that attend to each other run together. The
model is in evaluation mode meanwhile and as it was afterwards; the global random state is left
alone. A cache knows its content by `decur.digest`: other weights, other pictures, another size or
another scaling are computed anew, and two runs that want the same at one time compute it once.

`each_batch` is the same pass for whatever else is made of a batch: the embeddings of two views, the
points of an attention. Loops over encoders stand elsewhere only where they are no such pass: the
steps of Lightning (training, `embed` on several devices, the validation part of a transfer), the
windows of a scene and the samples of `predict`, whose numbers are not kept as rows, and saliency,
which needs gradients of the pictures.
"""

from decur.features.cache import cached_features
from decur.features.model import LAST_MAPS, FeatureBatch, FeatureModel, map_names, scaled, spread
from decur.features.passes import SampleLoader, collect, compute_features, each_batch, iterate
from decur.features.rows import Features, MasksDifferError, NotFiniteError, zeroed

__all__ = [
    "LAST_MAPS",
    "FeatureBatch",
    "FeatureModel",
    "Features",
    "MasksDifferError",
    "NotFiniteError",
    "SampleLoader",
    "cached_features",
    "collect",
    "compute_features",
    "each_batch",
    "iterate",
    "map_names",
    "scaled",
    "spread",
    "zeroed",
]
