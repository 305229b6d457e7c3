"""The rank of a sample's own vector is one number, wherever it is told."""

import numpy as np
import pytest

from decur.agreement import nearest_rows, places, unit_rows
from decur.embed.neighbors import Vectors, find_partners
from decur.explore.run import rank_rows

# How much more each vector's cosine with the query is than 0.5: some tie but for a rounding.
MORE = np.array([0.2, 1e-3, 2e-5, 4e-7, 1e-7, 0, -1e-7, -4e-7, -2e-5, -1e-3, -0.2])


def test_near_ties_count_against_the_partner_everywhere():
    cosine = 0.5 + MORE
    base = np.stack([cosine, np.sqrt(1 - cosine**2)], 1)  # (N, 2) of length 1
    queries = np.tile([1.0, 0.0], (len(base), 1))
    ids = [f"{row}" for row in range(len(base))]
    want = [1, 2, 3, 8, 8, 8, 8, 8, 9, 10, 11]  # five are equal
    exact = queries.astype(np.float32), base.astype(np.float32)
    partners = find_partners(*(Vectors(ids, x) for x in exact))
    assert [partners[id_].rank for id_ in ids] == want
    assert rank_rows(*exact, 3, itself=True).partner.tolist() == want
    there, _ = places(*exact, {"common": slice(0, 2)})["common"]
    assert (there + 1).tolist() == want
    for x, y in (exact, (queries, base)):  # as `explain` has them: exact, and piece by piece
        chunks = [(start, y[start : start + 4]) for start in (0, 4, 8)]
        own = np.arange(len(y))
        assert nearest_rows(x, chunks, 3, own=own, mine=y, itself=True)[2].tolist() == want


@pytest.mark.parametrize("itself", [True, False])
@pytest.mark.parametrize(("size", "k"), [(7, 5), (40, 5), (3, 39), (40, 1)])
def test_the_nearest_rows_are_those_of_brute_force(size, k, itself):
    rng = np.random.default_rng(0)
    x, y = (unit_rows(rng.normal(size=(40, 6))) for _ in range(2))
    x[3], y[5] = np.nan, np.nan
    chunks = [(start, y[start : start + size]) for start in range(0, 40, size)]
    own = np.arange(0, 40, 3)
    rows, cosines, rank = nearest_rows(x[own], chunks, k, own=own, mine=y[own], itself=itself)
    for row, query in enumerate(own):
        every = np.nan_to_num(y @ x[query], nan=-2)
        partner = (every >= every[query]).sum()
        assert rank[row] == (0 if query == 3 else partner)
        if not itself:
            every[query] = -2
        order = [int(place) for place in np.argsort(-every)[:k] if every[place] > -2]
        assert rows[row].tolist() == order + [-1] * (k - len(order))
        np.testing.assert_allclose(cosines[row][: len(order)], every[order], atol=1e-12)
