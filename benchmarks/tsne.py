r"""A map of dimensions: openTSNE, as `decur explain` uses it, against scikit-learn.

    python benchmarks/tsne.py                     # 2 x 8192 dimensions on 512 samples
    python benchmarks/tsne.py --dimensions 1024   # both, twice, in a minute or two

Both lay out the same points in this process, in turn, from the same start (principal components),
with the same perplexity and number of iterations, on the same number of threads. The points are
dimensions of two made-up sensors that share 7/8 of them. "kept" says how much of the points'
neighbourhoods survives: the share of the 10 nearest that are among the 10 nearest on the map.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.manifold import TSNE
from sklearn.neighbors import NearestNeighbors

from decur.explain.tsne import EXAGGERATED, PLAIN, lay_out

Points = NDArray[np.float32]


def made_up(dimensions: int, samples: int) -> Points:
    """Dimensions as points, (2 K, N): each answers to a few of many factors, and to noise."""
    rng = np.random.default_rng(0)
    factors = dimensions // 16

    def answers(seen: NDArray[np.float64], count: int) -> NDArray[np.float64]:
        weights = rng.normal(size=(factors, count)) * (rng.random((factors, count)) < 6 / factors)
        return seen @ weights

    shared = answers(rng.normal(size=(samples, factors)), dimensions * 7 // 8)
    sensors = []
    for _ in range(2):
        own = answers(rng.normal(size=(samples, factors)), dimensions - shared.shape[1])
        z = np.hstack([shared, own])
        sensors.append(z + 0.3 * z.std() * rng.normal(size=z.shape))
    z = np.hstack(sensors)
    points: NDArray[np.float32] = ((z - z.mean(0)) / z.std(0)).T.astype(np.float32)
    return points


def by_scikit_learn(points: Points, jobs: int) -> Points:
    tsne = TSNE(perplexity=30, init="pca", max_iter=EXAGGERATED + PLAIN, n_jobs=jobs)
    laid: Points = tsne.set_params(random_state=0).fit_transform(points)
    return laid


def by_open_tsne(points: Points, jobs: int) -> Points:
    return lay_out(points, jobs=jobs)[0]


def kept(points: Points, laid: Points) -> float:
    """Share of the 10 nearest of 1,000 points that are among their 10 nearest on the map."""
    asked = np.linspace(0, len(points) - 1, 1000).astype(int)
    near = [
        NearestNeighbors(n_neighbors=11).fit(x).kneighbors(x[asked])[1][:, 1:]
        for x in (points, laid)
    ]
    return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(*near, strict=True)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--dimensions", type=int, default=8192, help="of each of two sensors")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.jobs)
    points = made_up(args.dimensions, args.samples)
    print(f"{len(points)} points of {args.samples} samples, {args.jobs} threads")
    print(f"{'':14}{'seconds':>9}{'CPU seconds':>13}{'kept':>7}{'same again':>12}", flush=True)
    ways: dict[str, Callable[[Points, int], Points]] = {
        "openTSNE": by_open_tsne,
        "scikit-learn": by_scikit_learn,
    }
    for name, way in ways.items():
        started, cpu = time.perf_counter(), time.process_time()
        laid = way(points, args.jobs)
        wall, cpu = time.perf_counter() - started, time.process_time() - cpu
        again = np.array_equal(laid, way(points, args.jobs)) if args.dimensions <= 1024 else None
        same = "" if again is None else "yes" if again else "no"
        print(f"{name:14}{wall:9.1f}{cpu:13.1f}{kept(points, laid):7.2f}{same:>12}", flush=True)


if __name__ == "__main__":
    main()
