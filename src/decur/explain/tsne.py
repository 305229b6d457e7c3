"""t-SNE: points laid out in a plane, and the nearest neighbour of each before that."""

from __future__ import annotations

import logging

import numpy as np
import torch
from numpy.typing import NDArray

from decur.explain.base import DoesNotApply, Watch, unwatched

FEWEST = 8  # points that make a map
_FEW = 5000
_FAR = (
    0.8  # groups so far off that one point stands for them; 0.5 takes a third longer, for no more
)
EXAGGERATED, PLAIN, _EVERY = 250, 500, 25  # iterations: openTSNE's own numbers


def lay_out(
    points: NDArray[np.float32],
    perplexity: float = 30,
    seed: int = 0,
    watch: Watch = unwatched,
    jobs: int | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Lay points out in a plane by t-SNE (van der Maaten and Hinton 2008), with openTSNE.

    Neighbours by Euclidean distance are exact, the layout starts from principal components, and
    gradients are interpolated for many points (Linderman et al. 2019). The same seed gives the
    same map.

    Args:
        points: (n, d).
        perplexity: roughly the number of neighbours that count; at most a third of the points.
        seed: of the principal components.
        watch: shows how far it is.
        jobs: number of threads; None for torch's number, or for one where points are few, as
            starting threads would take longer.

    Returns:
        (n, 2), and the index of each point's nearest other point, (n,).

    Raises:
        DoesNotApply: if there are too few points, or all are alike.
    """
    if len(points) < FEWEST:
        raise DoesNotApply(f"A map needs {FEWEST} points or more; there are {len(points)}.")
    if not np.ptp(points, axis=0).any():
        raise DoesNotApply("A map needs points that differ; to this run they are all alike.")
    from openTSNE import TSNE
    from openTSNE.affinity import PerplexityBasedNN
    from openTSNE.initialization import pca
    from openTSNE.nearest_neighbors import PrecomputedNeighbors
    from sklearn.neighbors import NearestNeighbors

    logging.getLogger("openTSNE").setLevel(logging.WARNING)  # below that it tells what it chose
    jobs = jobs or (torch.get_num_threads() if len(points) > _FEW else 1)
    perplexity = min(perplexity, (len(points) - 1) / 3)
    search = NearestNeighbors(n_neighbors=int(3 * perplexity), n_jobs=jobs).fit(points)
    distances, neighbours = search.kneighbors()  # (n, k), without the points themselves
    affinities = PerplexityBasedNN(
        knn_index=PrecomputedNeighbors(neighbours, distances), perplexity=perplexity, n_jobs=jobs
    )
    steps = (EXAGGERATED + PLAIN) // _EVERY
    ticks = watch(range(steps), steps)

    def tick(iteration: int, divergence: float, places: NDArray[np.float64]) -> None:
        next(ticks, None)

    tsne = TSNE(
        theta=_FAR,
        early_exaggeration_iter=EXAGGERATED,
        n_iter=PLAIN,
        n_jobs=jobs,
        random_state=seed,
        callbacks=tick,
        callbacks_every_iters=_EVERY,
    )
    start = pca(points, random_state=seed)
    found = tsne.fit(affinities=affinities, initialization=start)
    next(ticks, None)  # so that a bar ends
    return np.asarray(found, dtype=np.float32), neighbours[:, 0].astype(np.int64)


def reduced(x: NDArray[np.float32], components: int, seed: int) -> NDArray[np.float32]:
    """Return the first principal components of vectors, as t-SNE is usually given.

    Args:
        x: (n, d); those that are all zero are returned as they are.
        components: at most how many.
        seed: of the solver.
    """
    from sklearn.decomposition import PCA

    if not x.any():  # none, or all alike: there are no axes
        return x
    found: NDArray[np.float32] = PCA(min(components, *x.shape), random_state=seed).fit_transform(x)
    return found
