"""The alignment histogram against numpy over all rows at once, and by hand."""

import itertools

import numpy as np
import pytest
import torch

from decur.explain import DoesNotApply, encoded
from decur.explain.alignment import (
    alignment,
    diagonal,
    findings,
    histogram,
    losses,
    plot_all,
    plot_batch,
)


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


def test_what_does_not_vary_correlates_with_nothing():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 64, 3)).astype(np.float32)
    a[:, 1] = 0.1
    found = diagonal(chunks(a, b, [30, 34]))
    assert found[1] == 0 and (found[[0, 2]] != 0).all()


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
    text = findings(again)
    assert "40 samples" in text and "misaligned" not in text
    assert "40 samples, where C_ii is 0 ± 0.16 by chance" in text  # 1 / sqrt(39)
    for c, said in (
        (np.repeat([1.0, 0.0], [12, 4]), "100% are apart, as unique ones should be"),
        (np.ones(16), "0% are apart, though unique ones should be"),
        (np.zeros(16), "one of the two has the same embedding for all samples"),
    ):
        assert said in findings({**again, "0/optical-sar/all": c})


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
    text = findings(arrays)
    assert "&lt;whole&gt;" in text and "<whole>" not in text
    assert text.count("<tr>") == 1 + 3 * 2 + 1


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
