import math

import pytest
import torch
from objective_references import correlation, draw

from decur.objectives.alignment import alignment, effective_rank, spread

PARTS = {"common": slice(0, 6), "unique": slice(6, 8)}


@pytest.mark.parametrize(("n", "k"), [(3, 8), (40, 8)])
@pytest.mark.parametrize("absent", [0, 0.2])
def test_alignment_equals_the_correlation_matrix(n, k, absent):
    embeddings, present = draw(n, k, absent=absent, seed=3)
    found = alignment(embeddings, PARTS, present=present)
    masks = present or {name: torch.ones(n, dtype=torch.bool) for name in embeddings}
    both = masks["s1"] & masks["s2"]
    c = correlation(*(embeddings[name][0][both].double() for name in embeddings))
    off = c[~torch.eye(k, dtype=torch.bool)]
    expected = {
        "diagonal/common/s1-s2": c.diagonal()[:6].mean(),
        "diagonal/unique/s1-s2": c.diagonal()[6:].mean(),
        "offdiag_rms/s1-s2": off.square().mean().sqrt(),
        "offdiag_chance/s1-s2": (both.sum() - 1) ** -0.5,
    }
    for name, views in embeddings.items():
        inside = correlation(*(z[masks[name]].double() for z in views))
        expected[f"diagonal/intra/{name}"] = inside.diagonal().mean()
    assert set(found) == set(expected)
    for key, value in expected.items():
        assert found[key].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-6)
        assert not found[key].requires_grad


def test_alignment_of_what_is_the_same_and_what_is_not():
    z, other = torch.randn(2, 500, 8)
    mixed = torch.cat([z[:, :6], other[:, 6:]], 1)
    found = alignment({"s1": (z, z), "s2": (mixed, -mixed)}, PARTS)
    assert found["diagonal/common/s1-s2"] == pytest.approx(1, abs=1e-3)
    assert found["diagonal/unique/s1-s2"] == pytest.approx(0, abs=0.15)
    assert found["diagonal/intra/s1"] == pytest.approx(1, abs=1e-3)
    assert found["diagonal/intra/s2"] == pytest.approx(-1, abs=1e-3)
    assert found["offdiag_rms/s1-s2"] == pytest.approx(500**-0.5, rel=0.3)


def test_alignment_is_nan_where_no_sample_can_tell():
    embeddings, _ = draw(4, 8)
    present = {"s1": torch.tensor([True, True, False, False])}
    present["s2"] = ~present["s1"]
    found = alignment(embeddings, PARTS, present=present)
    assert found["diagonal/intra/s1"].isfinite()
    assert all(found[key].isnan() for key in found if "s1-s2" in key)


@pytest.mark.parametrize(("n", "d"), [(64, 200), (200, 64)])
def test_effective_rank_of_known_spectra(n, d):
    left, right = (torch.linalg.qr(torch.randn(m, m, dtype=torch.float64)).Q for m in (n, d))
    left = torch.linalg.qr(left - left.mean(0)).Q[:, :20]  # centring changes nothing any more
    flat = left @ right[:20]
    assert effective_rank(flat + 7) == pytest.approx(20, rel=1e-4)
    assert effective_rank(left[:, :1] @ right[:1] + 7) == pytest.approx(1, abs=1e-4)
    weights = torch.tensor([3.0, 1.0], dtype=torch.float64)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank((left[:, :2] * weights) @ right[:2]) == pytest.approx(
        math.exp(entropy), 1e-4
    )


def test_effective_rank_of_the_degenerate():
    assert effective_rank(torch.full((8, 5), 0.1)) == pytest.approx(1)
    assert effective_rank(torch.zeros(8, 5)) == 1
    assert effective_rank(torch.randn(8, 5) / 0).isnan()
    assert effective_rank(torch.randn(1, 5)) == 1


def test_spread():
    x = torch.randn(4000, 16)
    assert spread(x) == pytest.approx(1, abs=0.05)
    assert spread(1000 * x) == pytest.approx(1, abs=0.05)
    assert spread(torch.full((8, 5), 3.0)) == 0
    assert spread(torch.zeros(8, 5)) == 0
    assert spread(torch.tensor([[1.0], [3.0]])) == pytest.approx(1 / math.sqrt(5))
