"""The alignment histogram against numpy over all rows at once, and by hand."""

import itertools
import re

import numpy as np
import pytest
import torch

from decur.explain import DoesNotApply, encoded
from decur.explain.alignment import (
    agreement,
    alignment,
    findings,
    histogram,
    losses,
    plot_all,
    plot_batch,
)
from decur.explain.base import text
from decur.explain.correlation import diagonal, diagonal_with_error
from decur.scores import standardised
from decur.verdicts import standard_error


def at_once(a, b):
    """Eq. 1 of the paper, on the diagonal, in float64."""
    a, b = (x.astype(np.float64) - x.astype(np.float64).mean(0) for x in (a, b))
    return (a * b).sum(0) / np.sqrt((a**2).sum(0)) / np.sqrt((b**2).sum(0))


def chunks(a, b, sizes):
    edges = np.cumsum([0, *sizes])
    return [(a[i:j], b[i:j]) for i, j in itertools.pairwise(edges)]


@pytest.mark.parametrize("mean", [0, 3, 1e6])
def test_streaming_is_exact_and_stable(mean):
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(1000, 20))
    a = mean + shared + rng.normal(size=(1000, 20)) * rng.uniform(0.1, 3, 20)
    b = -mean + shared + rng.normal(size=(1000, 20))
    want = at_once(a, b)
    for sizes in ([1000], [1, 1, 998], [300, 300, 400], [1] * 1000):
        np.testing.assert_allclose(diagonal(chunks(a, b, sizes)), want, atol=1e-10)


def test_it_is_no_average_of_batches():
    rng = np.random.default_rng(0)
    drift = np.repeat([0.0, 50.0], 100)[:, None]  # common to both, between the batches
    a, b = rng.normal(size=(2, 200, 3)) + drift
    halves = np.mean([at_once(x, y) for x, y in chunks(a, b, [100, 100])], axis=0)
    whole = diagonal(chunks(a, b, [100, 100]))
    assert (whole > 0.99).all() and (halves < 0.5).all()


def test_what_does_not_vary_has_no_correlation():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 64, 3)).astype(np.float32)
    a[:, 1] = 0.1
    found = diagonal(chunks(a, b, [30, 34]))
    np.testing.assert_array_equal(np.isnan(found), [False, True, False])


def test_the_last_bin_holds_what_is_above_one():
    c = np.array([1.0, 1.0, 0.5, 0.0, -0.1, -1.0])
    np.testing.assert_allclose(losses(c), [0, 0, 0.25, 1, 1.21, 4])
    counts = histogram(losses(c))
    assert counts[0] == 2 and counts[5] == 1 and counts[19] == 1 and counts[-1] == 2
    assert counts.sum() == len(c)


def test_a_checkpoint_against_its_own_embeddings(tiny_checkpoint, tiny_loader, tmp_path):
    run, loader = tiny_checkpoint(), tiny_loader(40)
    arrays = alignment(run, loader, batch=10)
    z = encoded(run, loader).embeddings
    rows = np.linspace(0, 39, 10).round().astype(int)
    want, once = at_once(z["optical"], z["sar"]), at_once(z["optical"][rows], z["sar"][rows])
    np.testing.assert_allclose(arrays["0/optical-sar/all"], want, atol=1e-10)
    np.testing.assert_allclose(arrays["0/optical-sar/batch"], once, atol=1e-10)
    np.savez(tmp_path / "kept.npz", **arrays)
    with np.load(tmp_path / "kept.npz") as file:
        again = dict(file)
    for plot in (plot_all, plot_batch):
        assert len(plot(again).axes) == 1
    html = findings(again)
    assert "40 samples" in html and "misaligned" not in html
    assert "40 samples, where C_ii is 0 ± 0.16 by chance" in html  # 1 / sqrt(39)
    again["0/optical-sar/error"] = np.zeros(16)  # no more than that of Gaussians
    for c, said in (
        (np.repeat([1.0, 0.0], [12, 4]), "100% are apart, as unique ones should be"),
        (np.ones(16), "0% are apart, though unique ones should be"),
        (np.zeros(16), "no dimension varies in both, so nothing can be compared"),
    ):
        assert said in findings({**again, "0/optical-sar/all": c})


@pytest.mark.parametrize("groups", [None, 7, 300])
def test_errors_of_a_correlation_are_those_of_its_influences(groups):
    rng = np.random.default_rng(0)
    rows = rng.permutation(900)[:700]
    a = rng.normal(size=(900, 5))
    b = a * [0, 0.5, 1, 2, 0] + rng.normal(size=(900, 5)) + 3
    a[:, 4] = 0.1
    a, b = a.astype(np.float32), b.astype(np.float32)
    own = None if groups is None else rng.integers(0, groups, 700)
    c, error = diagonal_with_error(a, b, rows, own)
    x, y = (standardised(z[rows]).astype(np.float64) for z in (a, b))
    known = standard_error(x * y - (x * y).mean(0) * (x**2 + y**2) / 2, own)[0]
    np.testing.assert_allclose(c[:4], at_once(a[rows][:, :4], b[rows][:, :4]), atol=1e-10)
    np.testing.assert_allclose(error[:4], known[:4], rtol=1e-4)
    assert np.isnan(c[4]) and np.isnan(error[4])
    assert np.isinf(diagonal_with_error(a, b, rows, np.zeros(700))[1]).all()


def of_pair(common, unique, samples, groups=None, seen=None):
    """The arrays of `alignment` for correlations by hand."""
    c = np.array([*common, *unique], float)
    arrays = {
        "runs": text("run"),
        "pairs": text("a-b"),
        "0/parts": text("common", "unique"),
        "0/bounds": np.array([[0, len(common)], [len(common), len(c)]]),
        "0/a-b/all": c,
        "0/a-b/batch": c,
        "0/a-b/samples": np.array([samples, samples]),
    }
    if groups is not None:
        arrays["0/a-b/independent"] = np.array(groups)
        arrays["0/a-b/error"] = (1 - c**2) * max(groups - 1, 0.01) ** -0.5
    return arrays if seen is None else arrays | {"seen": np.array(seen)}


APART, NOT_APART = "% are apart, as unique ones should be)", "though unique ones should be)"
LITTLE = "yet they agree a little more than by chance, which unique ones should not)"
SOME = "yet they agree more than by chance, which unique ones should not)"
UNTOLD = "whether they are apart, as unique ones should be, these samples cannot tell)"


@pytest.mark.parametrize(
    ("unique", "samples", "groups", "said"),
    [
        ([0.45] * 4, 10_000, None, NOT_APART),
        ([0.49] * 4, 10_000, None, NOT_APART),
        ([0.8, -0.8], 200, None, NOT_APART),  # they agree, with the sign turned
        ([0.01, -0.02, 0.0], 10_000, None, APART),
        ([0.1, -0.1, 0.02], 200, None, APART),
        ([0.2] * 4, 10_000, None, LITTLE),
        ([0.35] * 4, 200, None, SOME),
        ([0.6, 0.6, 0.1, 0.1], 6, None, UNTOLD),
        ([0.0] * 4, 6, None, UNTOLD),
        ([0.45] * 4, 10_000, 6, UNTOLD),
        ([0.01, -0.02, 0.0], 10_000, 6, UNTOLD),
        ([0.01, -0.02, 0.0], 10_000, 400, APART),
        ([0.45] * 4, 10_000, 1, UNTOLD),
    ],
)
def test_unique_dimensions_are_judged_beyond_chance(unique, samples, groups, said):
    html = findings(of_pair([0.9] * 4, unique, samples, groups))
    assert [x for x in (APART, NOT_APART, LITTLE, SOME, UNTOLD) if x in html] == [said]
    assert ("0 ± " in html) == (groups is None)
    assert (f"{samples} samples of {groups} groups" in html) == (groups is not None)


@pytest.mark.parametrize(
    ("common", "samples", "said"),
    [
        (0.9, 10_000, "(0% are apart, which common ones should not be)"),
        (0.36, 200, "(0% are apart, which common ones should not be; that they agree is beyond"),
        (0.05, 10_000, "(100% are apart, which common ones should not be; they hardly agree)"),
        (-0.9, 10_000, "(100% are apart, as they do the opposite, which common ones should not)"),
        (0.5, 6, "whether they agree, as common ones should, these samples cannot tell)"),
    ],
)
def test_common_dimensions_are_judged_beyond_chance(common, samples, said):
    assert said in findings(of_pair([common] * 4, [0.0] * 4, samples))


def test_dimensions_that_do_not_vary_are_named_and_left_out():
    nan = float("nan")
    few = of_pair([0.9] * 3, [0.0] * 4, 10_000, 10_000)
    html = findings(few)
    assert "collapsed" not in html
    some = findings(of_pair([0.9, nan, 0.9, nan, 0.9], [0.0] * 4, 10_000, 10_000))
    told = "2 of 5 common dimensions are the same for all samples of a sensor: collapsed"
    assert re.sub(f"<p>a-b in run: {told}.*?</p>", "", some) == html and told in some
    none = findings(of_pair([0.9] * 3, [nan] * 4, 10_000, 10_000))
    assert "4 of 4 unique dimensions" in none and "nan" not in none
    plot_all(of_pair([0.9, nan], [nan], 10_000) | {"0/a-b/samples": np.array([10_000, 5])})


@pytest.mark.parametrize("seen", ["yes", "cannot be told"])
def test_pairs_that_were_trained_on_give_no_verdict(seen):
    html = findings(of_pair([0.9] * 4, [0.0] * 4, 10_000, seen=seen))
    assert "no verdict" in html and "should be)" not in html and "should not be)" not in html
    assert "(100% are apart)" in html
    assert "no verdict" not in findings(of_pair([0.9] * 4, [0.0] * 4, 10_000, seen="no"))


def test_a_run_beside_that_was_trained_on_the_pairs_gives_no_verdict():
    arrays = of_pair([0.9] * 4, [0.0] * 4, 10_000)
    arrays |= {f"1{key[1:]}": x for key, x in arrays.items() if key.startswith("0/")}
    arrays["runs"] = text("new", "old")
    for seen in (["no", "yes"], "no"):  # of version 0.1: of one run alone
        html = findings(arrays | {"seen": np.array(seen)})
        assert html.count(APART) == 1 and html.count("no verdict") == 1
        assert html.count("<p>old: ") == 1 and "<p>new: " not in html


@pytest.mark.parametrize("agrees", [True, False])
@pytest.mark.parametrize(("samples", "clusters"), [(12, None), (200, None), (200, 10)])
def test_chance_is_rarely_taken_for_agreement(samples, clusters, agrees):
    """Noise that all dimensions share, of samples or of whole groups."""
    rng, fired, rounds = np.random.default_rng(0), 0, 150
    groups = None if clusters is None else np.arange(samples) % clusters
    for _ in range(rounds):
        if clusters is None:
            a, b = rng.normal(size=(2, samples, 1)) + 0.3 * rng.normal(size=(2, samples, 4))
        else:
            a, b = rng.normal(size=(2, clusters, 1))[:, groups]
            a, b = (x + 0.3 * rng.normal(size=(samples, 4)) for x in (a, b))
        c, error = diagonal_with_error(a, b, np.arange(samples), groups)
        arrays = of_pair(c[:0], c, samples) | {"0/a-b/error": error}
        arrays["0/a-b/independent"] = np.array(clusters or samples)
        fired += agreement(arrays, "0/a-b", slice(0, 4), agrees=agrees).low > 0
    assert fired / rounds < 0.06


def test_groups_of_the_data_are_respected(tiny_checkpoint, tiny_loader):
    run, loader = tiny_checkpoint(), tiny_loader(24)
    loader.data.groups = [f"place {row // 8}" for row in range(24)]
    arrays = alignment(run, loader)
    assert arrays["0/optical-sar/independent"] == 3
    assert "24 samples of 3 groups" in findings(arrays)


def test_several_batches_are_drawn_side_by_side(tiny_checkpoint, tiny_loader):
    """Fig. 7 of the paper: four batches, without a sample in common."""
    run, loader = tiny_checkpoint(), tiny_loader(48)
    arrays = alignment(run, loader, batch=10, batches=4)
    z = encoded(run, loader).embeddings
    spaced = np.linspace(0, 47, 40).round().astype(int)
    for number in range(4):
        rows = spaced[number::4]
        once = arrays["0/optical-sar/batch" + (f"/{number}" if number else "")]
        np.testing.assert_allclose(once, at_once(z["optical"][rows], z["sar"][rows]), atol=1e-10)
    figure = plot_batch(arrays)
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == [f"optical-sar, batch {number}" for number in (1, 2, 3, 4)]
    few = alignment(run, tiny_loader(6), batches=9)  # two samples each, not less
    assert [k for k in few if "/batch" in k][-1].endswith("/batch/2")


def test_a_name_of_a_run_is_no_formula(tiny_checkpoint, tiny_loader):
    runs = [tiny_checkpoint(name="$x_{$"), tiny_checkpoint()]
    plot_all(alignment(runs[0], tiny_loader(8), batch=4, beside=runs[1:])).canvas.draw()


def test_a_run_with_itself_for_another_sensor(tiny_checkpoint, tiny_loader):
    run = tiny_checkpoint()
    loader = tiny_loader(20)
    z = encoded(run, loader)
    z.embeddings["sar"][:] = z.embeddings["optical"]
    np.testing.assert_allclose(alignment(run, loader)["0/optical-sar/all"], 1, atol=1e-12)


def test_runs_side_by_side(tiny_checkpoint, tiny_loader):
    split = tiny_checkpoint(3, name="split")
    whole = tiny_checkpoint(2, parts={"common": slice(0, 16)}, name="<whole>", seed=1)
    arrays = alignment(split, tiny_loader(24, 3), batch=16, beside=[whole])
    assert arrays["pairs"].tolist() == ["optical-sar", "optical-elevation", "sar-elevation"]
    assert "1/optical-sar/all" in arrays and "1/sar-elevation/all" not in arrays
    figure = plot_all(arrays)
    assert len(figure.axes) == 6
    html = findings(arrays)
    assert "&lt;whole&gt;" in html and "<whole>" not in html
    assert html.count("<tr>") == 1 + 3 * 2 + 1


def test_only_samples_with_both_sensors_count(tiny_checkpoint, tiny_loader):
    run, loader = tiny_checkpoint(), tiny_loader(24)
    z = encoded(run, loader)
    for held in (z.features, z.embeddings):
        held["sar"][::3] = np.nan
    arrays = alignment(run, loader)
    rows = np.flatnonzero(np.arange(24) % 3)
    assert arrays["0/optical-sar/samples"].tolist() == [16, 16]
    want = at_once(z.embeddings["optical"][rows], z.embeddings["sar"][rows])
    np.testing.assert_allclose(arrays["0/optical-sar/all"], want, atol=1e-10)
    z.features["sar"][:] = np.nan
    with pytest.raises(DoesNotApply, match="two sensors"):
        alignment(run, loader)


def test_one_sensor_has_nothing_to_compare(tiny_checkpoint, tiny_loader):
    with pytest.raises(DoesNotApply, match="has one"):
        alignment(tiny_checkpoint(1), tiny_loader(8, 1))


def test_the_monitor_of_training_agrees(tiny_checkpoint, tiny_loader):
    from decur.objectives.alignment import alignment as monitored

    run, loader = tiny_checkpoint(), tiny_loader(48)
    with torch.no_grad():
        z = {k: torch.from_numpy(np.array(v)) for k, v in encoded(run, loader).embeddings.items()}
    z = {name: x / x.std(0) for name, x in z.items()}  # else the objective's eps is felt
    want = monitored({name: (x, x) for name, x in z.items()}, run.parts)
    arrays = alignment(run, loader)
    for part, dims in run.parts.items():
        got = arrays["0/optical-sar/all"][dims].mean()
        assert got == pytest.approx(float(want[f"diagonal/{part}/optical-sar"]), abs=1e-4)
