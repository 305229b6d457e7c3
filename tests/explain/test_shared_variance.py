"""What sensors tell of each other, where the answer is known: linear and Gaussian."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.cross_decomposition import CCA
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from decur.agreement import (
    Halves,
    at_random,
    canonical,
    coordinates,
    pairings,
    places,
    predicted,
)
from decur.explain import DoesNotApply, encoded
from decur.explain.advice import _on_the_split, advice, advice_on_blocks
from decur.explain.base import text
from decur.explain.shared import _Fitting, findings, plot_canonical, plot_shared, shared
from decur.features import Features
from decur.objectives.alignment import effective_rank
from decur.scores import split, standardised
from decur.verdicts import Interval

N = 900
TRAIN, TEST = split(N, None, 0)
HALF = np.repeat([0.9, 0.0], 12)  # of the common dimensions agree


def halves(x):
    return coordinates(standardised(x.astype(np.float32), TRAIN), TRAIN, TEST)


def gaussian(rho, width=20, seed=0):
    """Two sensors that see the same `width` factors, each a share `rho` of its variance."""
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(N, width))

    def sensor():
        turned = np.linalg.qr(rng.normal(size=(width, width)))[0]
        return np.sqrt(rho) * factors @ turned + np.sqrt(1 - rho) * rng.normal(size=(N, width))

    return sensor(), sensor()


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_the_shared_variance_is_found(rho):
    a, b = gaussian(rho)
    assert predicted(halves(a), halves(b))[0] == pytest.approx(rho**2, abs=0.06)


@pytest.mark.parametrize("rho", [0.4, 0.8])
def test_canonical_correlations_are_those_of_the_population(rho):
    a, b = gaussian(rho)
    found = canonical(halves(a), halves(b), 20)
    assert found.mean() == pytest.approx(rho, abs=0.06)


def test_more_dimensions_than_samples_tell_nothing_by_themselves():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, N, 1000))
    assert predicted(halves(a), halves(b))[0] == pytest.approx(0, abs=0.02)
    assert np.abs(canonical(halves(a), halves(b), 60)).max() < 0.25


def test_a_few_shared_directions_among_many_are_counted():
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(N, 5))
    a, b = (factors @ rng.normal(size=(5, 1200)) + rng.normal(size=(N, 1200)) for _ in "ab")
    found = canonical(halves(a), halves(b), 60)
    assert (found > 0.3).sum() == 5 and found[:5].min() > 0.9


@pytest.mark.parametrize("width", [30, 800])
def test_principal_coordinates_lose_nothing(width):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(N, width)), rng.normal(size=(N, 3))
    y[:, 0] += 4 * x[:, 0]
    x, y = (standardised(v.astype(np.float32), TRAIN).astype(np.float64) for v in (x, y))
    turned = halves(x)
    assert turned.train.shape[1] == min(width, len(TRAIN) - 1)
    want = Ridge(7.0, fit_intercept=False).fit(x[TRAIN], y[TRAIN]).predict(x[TEST])
    got = Ridge(7.0, fit_intercept=False).fit(turned.train, y[TRAIN]).predict(turned.test)
    np.testing.assert_allclose(got, want, atol=1e-3)


def test_shares_weigh_columns_by_their_variance_and_blocks_are_apart():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 4))
    y = np.hstack([3 * x[:, :1], rng.normal(size=(N, 1)), rng.normal(size=(N, 2))])
    found = predicted(Halves(x[TRAIN], x[TEST]), Halves(y[TRAIN], y[TEST]), targets=2)
    want = r2_score(y[TEST][:, :2], x[TEST][:, :1] * [[3, 0]], multioutput="variance_weighted")
    np.testing.assert_allclose(found, [want, 0], atol=0.02)


def test_what_does_not_vary_has_no_share_and_tells_nothing():
    rng = np.random.default_rng(0)
    x, flat = rng.normal(size=(2, N, 2))
    flat[TEST] = 3
    sides = [Halves(side[TRAIN], side[TEST]) for side in (x, np.hstack([flat, x]))]
    found = predicted(*sides, targets=2)
    assert np.isnan(found[0]) and found[1] == pytest.approx(1, abs=1e-3)
    nothing = Halves(np.zeros((len(TRAIN), 0)), np.zeros((len(TEST), 0)))
    np.testing.assert_array_equal(predicted(nothing, sides[1], targets=2), [np.nan, 0])


@pytest.mark.parametrize("part", ["common", "unique"])
def test_of_a_split_with_a_collapsed_part_nothing_else_is_said(part):
    arrays = by_hand((0.25, 0.20, 0.30), NOTHING)
    assert "Consistent" in advice(arrays, "a-b")[0]
    arrays[f"a-b/rank/{part}"] = np.array([4.0, 1.01])  # on a line
    (said,) = advice(arrays, "a-b")
    assert f"line or a point: b {part}." in said
    blocks = {key.replace("common", "a+b"): x for key, x in arrays.items()}
    blocks["a-b/parts"] = text("a+b", "unique")
    assert advice_on_blocks(blocks, "a-b") == [said.replace("common", "a+b")]


def test_dead_dimensions_are_no_sign_of_a_common_share_that_is_too_large():
    rng = np.random.default_rng(0)
    common, unique = noisy(rng, 12, 0.8), noisy(rng, 6, 0)
    whole = advice(measured(common, unique), "a-b")
    dead = [np.hstack([x, np.full((len(x), 12), 0.3)]) for x in common]
    arrays = measured(dead, unique)
    said = advice(arrays, "a-b")
    assert said[0] == whole[0] and "Consistent" in said[0]
    assert said[1].startswith("12 of 24 common dimensions are the same for all samples of a sensor")
    assert len(said) == 2
    assert arrays["a-b/aligned/common"] == pytest.approx([0.8, 0], abs=0.02)
    none = by_hand((0.25, 0.20, 0.30), NOTHING)
    none["a-b/diagonal/common"][:] = np.nan  # each in one of the sensors
    assert "12 of 12 common dimensions" in advice(none, "a-b")[1]


def test_canonical_correlations_against_scikit_learn():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, N, 6))
    b[:, 0] += 2 * a[:, 0]
    b[:, 1] += a[:, 1]
    x, y = halves(a), halves(b)
    fitted = CCA(2, max_iter=5000, tol=1e-12).fit(x.train, y.train)
    u, v = fitted.transform(x.test, y.test)
    want = [np.corrcoef(u[:, i], v[:, i])[0, 1] for i in range(2)]
    np.testing.assert_allclose(canonical(x, y, 6)[:2], want, atol=1e-4)


def test_a_side_of_lower_rank_cuts_nothing_off_the_other():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(N, 3)) * [9, 3, 1]
    y = coordinates((y - y[TRAIN].mean(0)).astype(np.float32), TRAIN, TEST)
    last = Halves(y.train[:, 2:], y.test[:, 2:])
    np.testing.assert_allclose(canonical(last, y, 9), 1, atol=1e-6)
    mixed = rng.normal(size=(N, 5)) @ rng.normal(size=(5, 5))
    x, y = halves(mixed[:, :4] + rng.normal(size=(N, 4))), halves(mixed)
    fitted = CCA(2, max_iter=5000, tol=1e-12).fit(x.train, y.train)
    u, v = fitted.transform(x.test, y.test)
    want = [np.corrcoef(u[:, i], v[:, i])[0, 1] for i in range(2)]
    found = canonical(x, y, 9)
    assert len(found) == 4
    np.testing.assert_allclose(found[:2], want, atol=1e-4)


def test_groups_stay_whole_and_choose_the_strength():
    groups = [f"g{i // 10}" for i in range(N)]
    train, test = split(N, groups, 0)
    assert not {groups[i] for i in train} & {groups[i] for i in test}
    assert len(train) + len(test) == N
    # copies within groups: who leaves one out, sees its twin and fits noise
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=(N // 10, 200)), 10, axis=0)
    y = np.repeat(rng.normal(size=(N // 10, 5)), 10, axis=0)
    sides = [Halves(v[train], v[test]) for v in (x, y)]
    alone = predicted(*sides)[0]
    grouped = predicted(*sides, groups=[groups[i] for i in train])[0]
    assert grouped > alone and grouped > -0.1


@pytest.mark.parametrize("chunk", [7, 512])
def test_places_against_brute_force(chunk):
    rng = np.random.default_rng(0)
    a = rng.normal(size=(50, 12)).astype(np.float32)
    b = (a + rng.normal(size=(50, 12))).astype(np.float32)
    parts = {"common": slice(0, 8), "unique": slice(8, 12)}
    found = places(a, b, parts, chunk)
    for name, dims in {**parts, "all": slice(0, 12)}.items():
        x, y = a[:, dims].astype(float), b[:, dims].astype(float)
        table = (x @ y.T) / np.linalg.norm(x, axis=1)[:, None] / np.linalg.norm(y, axis=1)
        there = [int((table[i] > table[i, i]).sum()) for i in range(50)]
        back = [int((table[:, i] > table[i, i]).sum()) for i in range(50)]
        np.testing.assert_array_equal(found[name][0], there)
        np.testing.assert_array_equal(found[name][1], back)


def test_vectors_that_are_all_alike_find_nothing():
    same = np.ones((20, 3), np.float32)
    for x in (same, 0 * same):
        there, back = places(x, x, {"common": slice(0, 3)})["common"]
        assert (there == 19).all() and (back == 19).all()


def made(tiny_checkpoint, tiny_loader, unique_tells=0.0, common_agrees=0.9, rank=None, width=24):
    """A checkpoint and a loader whose embeddings are replaced by Gaussians with a known answer."""
    parts = {"common": slice(0, width), "unique": slice(width, 32)}
    run, loader = tiny_checkpoint(parts=parts), tiny_loader(300)
    rng = np.random.default_rng(0)

    def pair(count, rho):
        if rank:
            both = rng.normal(size=(300, rank)) @ rng.normal(size=(rank, count))
            both = both / both.std(0)
        else:
            both = rng.normal(size=(300, count))
        noise = rng.normal(size=(2, 300, count))
        return np.sqrt(rho) * both + np.sqrt(1 - rho) * noise

    common, unique = pair(width, common_agrees), pair(32 - width, unique_tells)
    z = {
        name: np.hstack([common[sensor], unique[sensor]]).astype(np.float32)
        for sensor, name in enumerate(("optical", "sar"))
    }
    loader.kept[run] = Features(dict(z), z, {})
    return run, loader


def test_the_whole_of_it_on_a_known_answer(tiny_checkpoint, tiny_loader, tmp_path):
    run, loader = made(tiny_checkpoint, tiny_loader)
    arrays = shared(run, loader)
    np.savez(tmp_path / "kept.npz", **arrays)
    with np.load(tmp_path / "kept.npz") as file:
        arrays = dict(file)
    pair = "optical-sar"
    assert arrays[f"{pair}/samples"].tolist() == [300, 200, 100]
    np.testing.assert_allclose(arrays[f"{pair}/same/common"], 0.81, atol=0.06)
    np.testing.assert_allclose(arrays[f"{pair}/same/unique"], 0, atol=0.06)
    assert np.abs(arrays[f"{pair}/same-chance/common"]).max() < 0.06
    assert arrays[f"{pair}/recall/common"].min() > 0.95
    assert arrays[f"{pair}/recall/unique"].max() < 0.1
    level = arrays[f"{pair}/canonical-chance/common"].max()
    assert (arrays[f"{pair}/canonical/common"] > level).all()
    z = standardised(encoded(run, loader).embeddings["sar"], split(300, None, 0)[0])
    want = effective_rank(torch.from_numpy(z[split(300, None, 0)[0], :24]))
    assert arrays[f"{pair}/rank/common"][1] == pytest.approx(float(want), rel=1e-6)
    assert len(plot_shared(arrays).axes) == 3 and len(plot_canonical(arrays).axes) == 1
    assert "Consistent with this split" in findings(arrays)
    again = shared(run, loader)
    assert all(np.array_equal(arrays[key], again[key]) for key in arrays)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"unique_tells": 0.8}, "too small: raise objective.common (now 0.75)"),
        ({"unique_tells": 0.6, "width": 8}, "too small: raise objective.common (now 0.25)"),
        ({"unique_tells": 0.5}, "Consistent with this split"),
        ({"common_agrees": HALF}, "too large: lower objective.common (now 0.75)"),
        ({"unique_tells": 0.8, "common_agrees": HALF}, "Train longer"),
        ({"common_agrees": 0.0}, "share next to nothing"),
    ],
)
def test_the_advice_follows_its_rules(options, said, tiny_checkpoint, tiny_loader):
    arrays = shared(*made(tiny_checkpoint, tiny_loader, **options))
    sentences = advice(arrays, "optical-sar")
    assert said in sentences[0] and len(sentences) == 1


def test_the_interval_that_is_shown_is_that_which_nothing_can_be_told_by():
    told = {"common": Interval(0.05, -0.02, 0.08), "unique": Interval(0.02, -0.5, 0.6)}
    said = _on_the_split(SimpleNamespace(told=told, samples="15 samples"))
    assert "the other sensor tells 0.02 (-0.50 to 0.60) of the variance" in said
    assert "which may be much or nothing" in said


def measured(common, unique, seen=None, groups=None, ceilings=None):
    """The arrays of `shared` for embeddings of two sensors, given as pairs of arrays (N, k)."""
    z = {
        name: np.hstack([c, u]).astype(np.float32)
        for name, c, u in zip("ab", common, unique, strict=True)
    }
    width, rows = common[0].shape[1], len(common[0])
    parts = {"common": slice(0, width), "unique": slice(width, z["a"].shape[1])}
    run = SimpleNamespace(parts=parts, ceilings=ceilings or {})
    whole = SimpleNamespace(embeddings=z, features=z)
    fitting = _Fitting(run, whole, ("a", "b"), np.arange(rows), groups, 3, 0)
    arrays = {f"a-b/{key}": value for step in fitting.steps() for key, value in step.items()}
    return arrays if seen is None else {**arrays, "seen": text(seen)[0]}


def noisy(rng, width, correlation, n=1500, factors=None):
    """Two sensors whose dimensions are `factors` (N, width) with noise: correlated so far."""
    both = rng.normal(size=(n, width)) if factors is None else factors
    noise = np.sqrt(1 / correlation - 1) if correlation else 0
    scale = 1 if correlation else 0
    return [
        scale * both + (noise if correlation else 1) * rng.normal(size=both.shape) for _ in "ab"
    ]


@pytest.mark.parametrize("width", [10, 40])
def test_copies_of_few_shared_factors_are_not_taken_for_the_right_share(width):
    """Any number of common dimensions can be filled: what is shared does not show in how well."""
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(1500, 10)) @ rng.normal(size=(10, width)) / np.sqrt(10)
    said = advice(measured(noisy(rng, width, 0.9, factors=factors), noisy(rng, 20, 0)), "a-b")
    assert "cannot tell which share is right" in said[0]
    copies = [sentence for sentence in said if "copies" in sentence]
    assert len(copies) == (width > 10)
    assert not copies or "Only 10 of the 40 common dimensions" in copies[0]


@pytest.mark.parametrize("correlation", [0.1, 0.2, 0.45])
def test_noise_is_not_a_share_that_is_too_large(correlation):
    """All common dimensions are shared, and all are noisy: none does worse than it could."""
    rng = np.random.default_rng(0)
    said = advice(measured(noisy(rng, 20, correlation), noisy(rng, 20, 0)), "a-b")
    assert "too large" not in said[0]
    assert ("Consistent" in said[0]) == (correlation == 0.45)
    assert "verdict" in said[0] or "next to nothing" in said[0] or correlation == 0.45


def test_a_dimension_that_reaches_less_than_two_views_of_its_sensor_is_not_shared():
    rng = np.random.default_rng(0)
    pair = [np.hstack(both) for both in zip(noisy(rng, 6, 0.5), noisy(rng, 14, 0), strict=True)]
    assert "70% of the common" in advice(measured(pair, noisy(rng, 20, 0)), "a-b")[0]
    weak = noisy(rng, 20, 0.1, factors=np.repeat(rng.normal(size=(1500, 1)), 20, 1))
    known = {"a": 0.95, "b": 0.9}  # so noise is not what keeps them low
    assert "too large" not in advice(measured(weak, noisy(rng, 20, 0)), "a-b")[0]
    said = advice(measured(weak, noisy(rng, 20, 0), ceilings=known), "a-b")[0]
    assert "too large" in said and "a correlation of 0.90" in said


def by_hand(common, unique, samples=15):
    """Arrays of `shared` in which parts are predicted so well beyond chance: (value, low, high)."""
    arrays = {
        "a-b/sensors": text("a", "b"),
        "a-b/parts": text("common", "unique"),
        "a-b/widths": np.array([12, 4]),
        "a-b/samples": np.array([3 * samples, 2 * samples, samples]),
        "a-b/independent": np.array([3 * samples, samples]),
        "a-b/ceiling": np.zeros(2),
        "a-b/diagonal/common": np.array([[0.5] * 12, [0.05] * 12]),
    }
    for part, (value, *ends) in {"common": common, "unique": unique}.items():
        for key in ("same", "features"):
            arrays[f"a-b/{key}/{part}"] = np.full(2, value)
            arrays[f"a-b/{key}-interval/{part}"] = np.array([ends, ends])
            arrays[f"a-b/{key}-chance/{part}"] = np.zeros((2, 3))
        arrays[f"a-b/rank/{part}"] = np.array([4.0, 4.0])
    return arrays


NOTHING = (0.0, -0.02, 0.02)


@pytest.mark.parametrize(
    ("common", "unique", "said", "more"),
    [
        ((-0.1, -0.2, -0.01), (-0.1, -0.2, -0.01), "they share nothing that a linear map", False),
        ((0.22, -0.02, 0.60), NOTHING, "cannot be told from 15 samples: of the part that", True),
        ((0.02, -0.02, 0.06), NOTHING, "Either they share next to nothing", False),
        ((0.05, 0.02, 0.08), NOTHING, "too little for a verdict on the split", False),
        ((0.15, 0.02, 0.28), NOTHING, "too few samples for a verdict on the split", True),
        ((0.25, 0.20, 0.30), NOTHING, "Consistent with this split", False),
        ((0.25, -np.inf, np.inf), NOTHING, "cannot be told from 15 samples", True),
    ],
)
def test_nothing_little_and_untold_are_three_sentences(common, unique, said, more):
    (found,) = advice(by_hand(common, unique), "a-b")
    assert said in found and ("raise --samples" in found) == more
    assert ("share nothing" in found) == ("share nothing" in said)
    assert ("0.22 (-0.02 to 0.60)" in found) == (common[0] == 0.22)


def test_the_rank_of_a_few_groups_is_not_low():
    """Samples of a group may be alike: no more directions than groups."""
    arrays = by_hand((0.25, 0.20, 0.30), NOTHING, samples=1000)
    arrays["a-b/widths"] = np.array([512, 64])
    arrays["a-b/diagonal/common"] = np.array([[0.5] * 512, [0.05] * 512])
    assert "effective rank is low" in advice(arrays, "a-b")[-1]
    arrays["a-b/independent"] = np.array([30, 10])
    assert "effective rank" not in " ".join(advice(arrays, "a-b"))


@pytest.mark.parametrize(
    ("common", "unique", "said"),
    [
        ((0.25, 0.20, 0.30), NOTHING, "consistent with these blocks"),
        ((0.25, 0.20, 0.30), (0.1, -0.1, 0.3), "0.1 of unique cannot be told"),
        ((0.25, 0.0, 0.6), (0.1, -0.1, 0.3), "0.1 of a+b and unique cannot be told"),
        ((0.02, -0.02, 0.06), NOTHING, "hardly anything in it is shared"),
        ((0.25, 0.20, 0.30), (0.25, 0.20, 0.30), "unique: these two share what should not be"),
    ],
)
def test_blocks_are_consistent_only_where_all_of_them_are_told(common, unique, said):
    arrays = {k.replace("common", "a+b"): x for k, x in by_hand(common, unique).items()}
    arrays["a-b/parts"] = text("a+b", "unique")
    found = " ".join(advice_on_blocks(arrays, "a-b"))
    assert said in found
    assert ("consistent" in found) == ("consistent" in said)
    assert ("raise --samples" in found) == ("cannot be told" in said)


def test_few_samples_cannot_tell():
    rng = np.random.default_rng(0)
    mixed = [np.hstack(x) for x in zip(noisy(rng, 8, 0.9, 60), noisy(rng, 4, 0.3, 60), strict=True)]
    said = advice(measured(mixed, noisy(rng, 6, 0.55, 60)), "a-b")[0]
    assert "cannot tell" in said and "too" not in said.replace("sees too", "")


@pytest.mark.parametrize("seen", ["yes", "cannot be told"])
def test_pairs_that_were_trained_on_give_no_verdict(seen):
    rng = np.random.default_rng(0)
    for pair in (noisy(rng, 20, 0.9), noisy(rng, 20, 0)):
        (said,) = advice(measured(pair, noisy(rng, 20, 0), seen), "a-b")
        assert "no verdict" in said and "another split" in said
    (said,) = advice(measured(noisy(rng, 20, 0.9), noisy(rng, 20, 0), "no"), "a-b")
    assert "no verdict" not in said


def test_sensors_that_vary_by_place_and_share_nothing_are_not_above_chance():
    """Places are held out whole, and chance pairs whole places."""
    above, said = 0, ""
    for seed in range(6):
        rng = np.random.default_rng(seed)
        place = np.arange(240) % 12
        a, b = (rng.normal(size=(12, 6))[place] + 0.7 * rng.normal(size=(240, 6)) for _ in "ab")
        groups = [str(i) for i in place]
        if not seed:
            said = advice(measured((a, b), noisy(rng, 2, 0, 240), groups=groups), "a-b")[0]
        run = SimpleNamespace(parts={"common": slice(0, 6)})
        fitting = _Fitting(run, SimpleNamespace(), ("a", "b"), np.arange(240), groups, 3, 0)
        fitting.train, fitting.test = split(240, groups, seed)
        sides = [
            coordinates(
                standardised(x.astype(np.float32), fitting.train), fitting.train, fitting.test
            )
            for x in (a, b)
        ]
        found = fitting._canonical("common", sides, rng)
        above += (found["canonical/common"] > found["canonical-chance/common"].max()).any()
    assert above <= 1
    assert "cannot be told" in said and "share nothing" not in said and "of 4 groups" in said


def test_whole_groups_change_partners():
    groups = [f"g{i % 7}" for i in range(40)]
    train, test = split(40, groups, 0)
    mine = np.array(groups)
    found = at_random(train, test, groups, np.random.default_rng(0))
    for place, rows in zip(found, (train, test), strict=True):
        partners = {g: set(mine[rows][place][mine[rows] == g]) for g in set(mine[rows])}
        assert all(len(of) == 1 for of in partners.values())
        assert set().union(*partners.values()) == set(mine[rows])
    alone = at_random(train, test, None, np.random.default_rng(0))
    assert sorted(alone[0]) == list(range(len(train)))
    halves = np.arange(30), np.arange(30, 40)
    threes = ["a", "b", "c"] * 14  # not held out whole: each has the same partner in both parts
    for seed in range(4):
        x, y = at_random(*halves, threes, np.random.default_rng(seed))
        assert (x[0] % 3) == (y[0] % 3)


@pytest.mark.parametrize(
    ("train", "test", "ways"),
    # by hand: orders of 2, 3, 4 and 5 things in which nothing keeps its place are 1, 2, 9 and 44
    [("abc", "def", 4), ("abcd", "efgh", 81), ("abcd", "ef", 9), ("abcde", "abcde", 44)]
    + [("ab", "abc", 2), ("a", "a", 0), ("abcd", "e", 0)],
)
def test_few_groups_never_keep_their_partner(train, test, ways):
    groups = np.array([*train, *test] * 6)
    rows = np.arange(len(groups))
    place = rows % (len(train) + len(test))
    halves = rows[place < len(train)], rows[place >= len(train)]
    assert pairings(*halves, groups.tolist()) == ways
    for seed in range(20):
        found = at_random(*halves, groups.tolist(), np.random.default_rng(seed))
        for new, half in zip(found, halves, strict=True):
            alone = len(set(groups[half])) == 1
            assert ((groups[half] != groups[half][new]) | alone).all()
            assert not (new == np.arange(len(half))).all()
    assert pairings(np.arange(9), np.arange(9, 18), None) > 10**10  # samples without groups


def test_chance_among_few_groups_cannot_be_told(tiny_checkpoint, tiny_loader, monkeypatch):
    run, loader = made(tiny_checkpoint, tiny_loader)
    monkeypatch.setattr(loader.data, "groups", [f"g{i % 3}" for i in range(len(loader.data))])
    arrays = shared(run, loader)
    for key in ("canonical-chance", "same-chance", "features-chance"):
        assert np.isnan(arrays[f"optical-sar/{key}/common"]).all()
    said = findings(arrays)
    assert "cannot be told" in said and said.count("(unknown)") == 6 and " of 0" not in said
    assert "no verdict on the split" in said and "beyond chance:" not in said
    assert "nan" not in said
    plot_canonical(arrays)


def test_a_low_rank_is_wider_than_needed(tiny_checkpoint, tiny_loader):
    arrays = shared(*made(tiny_checkpoint, tiny_loader, common_agrees=1.0, rank=2))
    assert "optical common (2 of 24)" in advice(arrays, "optical-sar")[-1]


def test_without_a_split_a_share_to_free_is_named(tiny_checkpoint, tiny_loader):
    run, loader = made(tiny_checkpoint, tiny_loader, unique_tells=0.0)
    run.parts = {"common": slice(0, 32)}  # a quarter is misaligned
    arrays = shared(run, loader)
    assert "objective.common of about 0.8" in advice(arrays, "optical-sar")[0]
    whole = encoded(run, loader)
    whole.embeddings["sar"][:] = whole.embeddings["optical"]
    assert "Whether fewer would do" in advice(shared(run, loader), "optical-sar")[0]
    assert "recall/all" not in findings(arrays)
    plot_shared(arrays)


def test_three_sensors_make_three_pairs_and_one_none(tiny_checkpoint, tiny_loader):
    loader = tiny_loader(60, 3)
    ticks = []

    def watch(steps, n):
        for step in steps:
            ticks.append(n)
            yield step

    run = tiny_checkpoint(3)
    encoded(run, loader)
    arrays = shared(run, loader, watch=watch)
    assert ticks == [21] * 21
    assert len(arrays["pairs"]) == 3 and len(plot_shared(arrays).axes) == 9
    with pytest.raises(DoesNotApply, match="has one"):
        shared(tiny_checkpoint(1), tiny_loader(60, 1))
    with pytest.raises(DoesNotApply, match="40 samples"):
        shared(tiny_checkpoint(), tiny_loader(39))


def test_collapsed_embeddings_tell_nothing(tiny_checkpoint, tiny_loader):
    run, loader = made(tiny_checkpoint, tiny_loader)
    whole = encoded(run, loader)
    whole.embeddings["sar"][:] = 0.1
    arrays = shared(run, loader)
    for part in ("common", "unique"):
        np.testing.assert_array_equal(arrays[f"optical-sar/same/{part}"], [np.nan, 0])
        assert np.isinf(arrays[f"optical-sar/same-interval/{part}"]).all()
        assert not len(arrays[f"optical-sar/canonical/{part}"])
        assert arrays[f"optical-sar/rank/{part}"][1] == 1
        assert arrays[f"optical-sar/recall/{part}"].max() == 0
    assert "share" not in findings(arrays).partition("samples have both")[0]
    assert ">– / 0.00 (0.00)<" in findings(arrays) and "nan" not in findings(arrays)
    (said,) = advice(arrays, "optical-sar")
    assert "line or a point: sar common, sar unique" in said
    assert plot_shared(arrays) and plot_canonical(arrays)
