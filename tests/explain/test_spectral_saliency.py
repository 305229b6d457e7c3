import numpy as np
import pytest
import torch
from planted import batch_of, planted

from decur.data import SyntheticScenes
from decur.encoders import Projector, build_encoder
from decur.explain import Checkpoint, DoesNotApply, SampleLoader, encoded
from decur.explain.attribution import ScoredPictures
from decur.explain.spectral import (
    SpectralSettings,
    _told,
    bands_above_even,
    bands_weighed_differently,
    findings,
    independent_rows,
    plot_bands,
    spectral,
)
from decur.pretrain import LoaderSettings


def test_a_linear_encoder_has_the_importance_of_its_formula():
    """Score (sum of x_d / s_d - m_d / s_d) / K over bands d: attribution x / s_d at each pixel."""
    checkpoint = planted(["s"], 4, {"common": slice(0, 3), "unique": slice(3, 4)})
    torch.manual_seed(0)
    x = torch.rand(3, 4, 16, 16)
    batch = batch_of(checkpoint, [{"s": row} for row in x])
    std = torch.tensor([0.5, 1.0, 2.0, 4.0])
    picture = ScoredPictures(checkpoint, batch, "s", (torch.zeros(4), std), "mean")
    expected = (x.mean((2, 3)) / std).numpy()
    for pixels in ("absolute", "net"):
        for part, dims in enumerate(checkpoint.parts.values()):
            found = picture.attributed(4, 0.0, pixels)
            bands, missed, spans = found.bands[part], found.missed[part], found.spans[part]
            known = np.zeros((3, 4))
            known[:, dims] = expected[:, dims]
            np.testing.assert_allclose(bands, known / known.sum(1, keepdims=True), atol=1e-5)
            np.testing.assert_allclose(missed, 0, atol=1e-5)
            np.testing.assert_allclose(spans, expected[:, dims].mean(1), rtol=1e-4)


@pytest.mark.parametrize("pixels", ["absolute", "net"])
def test_importance_is_the_path_integral_written_out(tiny_checkpoint, tiny_loader, pixels):
    checkpoint, loader = tiny_checkpoint(), tiny_loader(6)
    statistics = encoded(checkpoint, loader).statistics("optical")
    found = spectral(
        checkpoint,
        loader,
        settings=SpectralSettings(steps=5, score="energy", baseline=0.25, pixels=pixels),
    )
    batch = next(iter(loader))
    x = checkpoint.pictures(batch, "optical")
    nodes, weights = np.polynomial.legendre.leggauss(5)
    total = torch.zeros_like(x)
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        at = (0.25 + float(node) * (x - 0.25)).requires_grad_()
        z = checkpoint.projector("optical")(checkpoint.encoder("optical")(at))
        z = (z - statistics[0]) / statistics[1]
        (slope,) = torch.autograd.grad((z[:, 12:] ** 2).mean(1).sum() / 2, at)
        total += float(weight) * slope
    attribution = (x - 0.25) * total
    bands = attribution.abs().mean((2, 3))
    if pixels == "net":
        bands = attribution.mean((2, 3)).abs()
    bands = (bands / bands.sum(1, keepdim=True)).numpy()
    np.testing.assert_allclose(found["optical/unique/importance"], bands, rtol=2e-3, atol=1e-5)


def test_a_band_that_the_encoder_ignores_is_worth_nothing(tiny_checkpoint, tiny_loader):
    checkpoint = tiny_checkpoint()
    first = next(m for m in checkpoint.encoder("optical").modules() if hasattr(m, "kernel_size"))
    first.weight[:, 3] = 0
    arrays = spectral(checkpoint, tiny_loader(6), settings=SpectralSettings(steps=2))
    for part in ("common", "unique"):
        importance = arrays[f"optical/{part}/importance"]
        assert importance.shape == (6, 6)
        assert (importance[:, 3] == 0).all()
        assert (importance[:, [0, 1, 2, 4, 5]] > 0).all()
        np.testing.assert_allclose(importance.sum(1), 1, rtol=1e-5)


def test_exchange_is_the_change_of_the_score_when_one_band_is_another_samples(
    tiny_checkpoint, tiny_loader
):
    checkpoint, loader = tiny_checkpoint(), tiny_loader(6)
    mean, std = encoded(checkpoint, loader).statistics("sar")
    x = checkpoint.pictures(next(iter(loader)), "sar")

    def common(x):
        z = checkpoint.projector("sar")(checkpoint.encoder("sar")(x))
        return ((z - mean) / std)[:, :12].mean(1)

    changes = []
    for band in range(2):
        other = x.clone()
        other[:, band] = x[[3, 4, 5, 0, 1, 2], band]
        changes.append((common(other) - common(x)).abs())
    known = torch.stack(changes, 1)
    known = known / known.sum(1, keepdim=True)
    found = spectral(checkpoint, loader, settings=SpectralSettings(steps=1))["sar/common/exchanged"]
    np.testing.assert_allclose(found, known.numpy(), rtol=1e-2, atol=1e-3)
    alone = spectral(checkpoint, tiny_loader(1), settings=SpectralSettings(steps=1, baseline=0.0))
    assert alone["sar/common/exchanged"].shape == (0, 2)
    assert "blue" in findings(alone)
    alone = spectral(checkpoint, tiny_loader(1), settings=SpectralSettings(steps=1))
    assert alone["sar/common/importance"].shape == (0, 2)
    assert "another, whose picture is the start" in findings(alone)


def test_the_path_may_start_at_another_sample():
    """Linear: a band is worth what it differs by between the two."""
    checkpoint = planted(["s"], 3, {"common": slice(0, 3)})
    torch.manual_seed(0)
    x = torch.rand(4, 3, 16, 16)
    x[:, 1] = torch.rand(16, 16)  # a band that all samples have alike
    batch = batch_of(checkpoint, [{"s": row} for row in x])
    picture = ScoredPictures(checkpoint, batch, "s", (torch.zeros(3), torch.ones(3)), "mean")
    found = picture.attributed(2, "other", "net")
    bands, missed = found.bands[0], found.missed[0]
    assert found.starts.tolist() == [2, 3, 0, 1]  # each is the other's start
    known = (x - x[[2, 3, 0, 1]]).mean((2, 3)).abs()
    np.testing.assert_allclose(bands, known / known.sum(1, keepdim=True), atol=1e-4)
    np.testing.assert_allclose(bands[:, 1], 0, atol=1e-6)
    np.testing.assert_allclose(missed, 0, atol=1e-5)


def test_the_papers_attributions_are_those_of_algorithm_2(tiny_checkpoint, tiny_loader):
    """From black, 50 nodes of Gauss and Legendre, averaged over samples and pixels with signs."""
    checkpoint, loader = tiny_checkpoint(), tiny_loader(4)
    mean, std = encoded(checkpoint, loader).statistics("sar")
    x = checkpoint.pictures(next(iter(loader)), "sar")
    nodes, weights = np.polynomial.legendre.leggauss(50)
    total = torch.zeros_like(x)
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        at = (float(node) * x).requires_grad_()
        z = (checkpoint.projector("sar")(checkpoint.encoder("sar")(at)) - mean) / std
        (slope,) = torch.autograd.grad(z[:, :12].mean(1).sum(), at)
        total += float(weight) * slope
    wanted = (x * total).mean((0, 2, 3)).numpy()
    found = spectral(
        checkpoint,
        loader,
        settings=SpectralSettings(paper=True, steps=2, baseline="other", score="energy"),
    )
    np.testing.assert_allclose(found["sar/common/of_batch"], wanted, rtol=1e-2, atol=1e-5)
    assert (int(found["steps"]), found["baseline"].item()) == (50, "0.0")
    text = findings(found)
    assert "As in Algorithm 2 of the paper" in text and "50 steps" in text
    assert "Algorithm 2" not in findings(
        spectral(checkpoint, loader, settings=SpectralSettings(steps=1))
    )


def test_more_steps_come_closer_to_completeness(tiny_checkpoint, tiny_loader):
    few, many = (
        spectral(
            tiny_checkpoint(),
            tiny_loader(6),
            settings=SpectralSettings(steps=steps, score="energy"),
        )
        for steps in (2, 48)
    )
    for part in ("common", "unique"):
        assert many[f"sar/{part}/error"] < min(0.1, few[f"sar/{part}/error"])


def test_arrays_are_kept_and_drawn_again(tiny_checkpoint, tiny_loader, tmp_path):
    checkpoint, loader = tiny_checkpoint(3), tiny_loader(20, 3)
    arrays = spectral(checkpoint, loader, settings=SpectralSettings(steps=2, samples=7))
    np.savez(tmp_path / "a.npz", **arrays)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as kept:
        arrays = dict(kept)
    assert arrays["optical/common/importance"].shape == (7, 6)
    assert "elevation/bands" not in arrays
    html = findings(arrays)
    assert "elevation has one band" in html
    assert "7 samples" in html
    best = arrays["optical/bands"][arrays["optical/common/importance"].mean(0).argmax()]
    assert f"common dimensions {best}" in html
    assert len(plot_bands(arrays).axes) == 2


@pytest.mark.parametrize("samples", [6, 5])  # with even numbers two samples share a path
def test_attributions_are_those_of_captum(tiny_checkpoint, tiny_loader, samples):
    attr = pytest.importorskip("captum.attr")
    checkpoint, loader = tiny_checkpoint(), tiny_loader(samples)
    statistics = encoded(checkpoint, loader).statistics("optical")
    picture = ScoredPictures(checkpoint, next(iter(loader)), "optical", statistics, "mean")
    found = picture.attributed(3, "other", "absolute")
    start = picture.x[[(i - samples // 2) % samples for i in range(samples)]]
    for part in range(2):
        wanted = attr.IntegratedGradients(picture.scores).attribute(
            picture.x, baselines=start, target=part, n_steps=3
        )
        bands = wanted.abs().mean((2, 3))
        np.testing.assert_allclose(
            found.bands[part], bands / bands.sum(1, keepdim=True), rtol=1e-3, atol=1e-5
        )
        np.testing.assert_allclose(found.net[part], wanted.mean((2, 3)), rtol=1e-2, atol=1e-6)


def test_two_that_start_at_each_other_are_one_sample_to_a_test(tiny_checkpoint, tiny_loader):
    arrays = spectral(tiny_checkpoint(), tiny_loader(6), settings=SpectralSettings(steps=1))
    pairs = np.array([[0, 3], [1, 4], [2, 5], [3, 0], [4, 1], [5, 2]])
    np.testing.assert_array_equal(arrays["optical/groups"], pairs)
    assert [rows.tolist() for rows in independent_rows(pairs)] == [[0, 3], [1, 4], [2, 5]]
    for first, told in ((80, True), (53, False)):
        shares = np.random.default_rng(3).dirichlet([first, 50, 50, 50, 50, 50], 12)
        copies, two = (np.tile(x, (20, 1)) for x in (shares, np.arange(24).reshape(12, 2)))
        found = bands_above_even({"common": copies}, two)["common"]
        assert found.tolist() == bands_above_even({"common": shares})["common"].tolist()
        assert found.tolist() == [told, *[False] * 5]
        assert bands_above_even({"common": copies})["common"].any()  # as if they were independent


def test_a_band_is_above_an_even_share_only_where_that_is_no_chance():
    rng = np.random.default_rng(0)
    planted = rng.dirichlet([9, 3, 3, 3], 40)
    alike = rng.dirichlet([3, 3, 3, 3], 40)
    found = bands_above_even({"common": planted, "unique": alike})
    assert found["common"].tolist() == [True, False, False, False]
    assert not found["unique"].any()
    one = bands_above_even({"common": planted[:1], "unique": alike[:1]})
    assert not one["common"].any()  # a single sample tells nothing


def test_parts_weigh_a_band_differently_only_where_that_is_no_chance():
    rng = np.random.default_rng(0)
    common = rng.dirichlet([6, 6, 6, 6], 40)  # pictures differ more than parts do
    moved = common + [0.02, -0.02, 0, 0] + rng.normal(0, 0.005, common.shape)
    assert bands_weighed_differently(moved, common).tolist() == [1, -1, 0, 0]
    assert not bands_weighed_differently(common[::-1], common).any()
    assert not bands_weighed_differently(moved[:1], common[:1]).any()
    of_two = np.arange(40) % 2
    assert not bands_weighed_differently(moved, common, of_two).any()
    fired = [bands_weighed_differently(*rng.dirichlet([3] * 4, (2, 20))).any() for _ in range(100)]
    assert sum(fired) <= 10
    values = {"unique": moved, "common": common}
    bands = list("wxyz")
    said, _ = _told("s1", bands, values, values, np.arange(40), "40 samples")
    assert said.endswith(
        "Beyond chance, the unique part gives a larger share than the common one to w, and a "
        "smaller share than the common one to x."
    )
    values = {"unique": common[::-1], "common": common}
    said, _ = _told("s1", bands, values, values, np.arange(40), "40 samples")
    assert said.endswith("more to one part than to the other, 40 samples cannot tell.")


@pytest.mark.parametrize("compare", [False, True])
@pytest.mark.parametrize("groups", [3, 10])
def test_samples_of_few_groups_are_no_more_than_these(groups, compare):
    """Bands differ from place to place and not over all places: so they do not beyond chance."""
    fired, alone, rounds = 0, 0, 30
    for seed in range(rounds):
        rng = np.random.default_rng(seed)
        place = rng.dirichlet([8] * 4, groups)
        own = rng.integers(0, groups, 120)
        two = np.stack([own, np.roll(own, 60)], 1) if compare else own[:, None]
        rows = place[two].mean(1) + rng.normal(0, 0.02, (120, 4))
        values = {"common": rows / rows.sum(1, keepdims=True)}
        fired += bands_above_even(values, two)["common"].any()
        alone += bands_above_even(values)["common"].any()
    assert fired <= 0.1 * rounds
    assert alone > 0.5 * rounds  # as if samples were independent


def test_groups_tell_of_a_band_where_they_agree_and_there_are_enough(tiny_checkpoint, tiny_loader):
    rng = np.random.default_rng(0)
    own = np.repeat(np.arange(12), 10)
    rows = rng.dirichlet([40, 5, 5, 5], 12)[own]
    known = [True, False, False, False]
    assert bands_above_even({"common": rows}, own)["common"].tolist() == known
    assert not bands_above_even({"common": rows[:20]}, own[:20])["common"].any()  # of two groups
    loader = tiny_loader(6)
    loader.data.groups = ["x", "x", "y", "y", "z", "z"]
    arrays = spectral(tiny_checkpoint(), loader, settings=SpectralSettings(steps=1))
    assert arrays["sar/groups"].tolist() == [[0, 1], [0, 2], [1, 2], [1, 0], [2, 0], [2, 1]]
    text = findings(arrays)
    assert text.count("whether one has more cannot be told from 6 samples of 3 groups") == 2


def test_bands_that_change_nothing_have_no_largest_share(tiny_checkpoint, tiny_loader):
    arrays = dict(spectral(tiny_checkpoint(), tiny_loader(4), settings=SpectralSettings(steps=2)))
    for key, values in arrays.items():
        if key.startswith("sar/") and values.dtype.kind == "f":
            arrays[key] = np.full_like(values, np.nan if key.endswith("error") else 0.0)
    text = findings(arrays)
    assert "sar: no band changes any part" in text and "optical: the largest shares" in text
    assert "nan" not in text


def test_one_band_is_nothing_to_compare():
    data = SyntheticScenes(4, 32, modalities=["elevation"])
    encoder = build_encoder("test_resnet", data.modalities["elevation"])
    checkpoint = Checkpoint(
        "run",
        {"elevation": encoder},
        projectors={"elevation": Projector(encoder.dim, 8, layers=1)},
        modalities=data.modalities,
        parts={"common": slice(0, 8)},
    )
    with pytest.raises(DoesNotApply, match="each sensor here has one"):
        spectral(checkpoint, SampleLoader(data, settings=LoaderSettings(workers=0)))


def test_samples_without_the_sensor_are_left_out(tiny_checkpoint, tiny_loader):
    checkpoint, loader = tiny_checkpoint(), tiny_loader(8)
    loader.data.present["sar"][:] = False
    read = loader.data.read

    def without(index):
        sample = read(index)
        if index > 2:
            del sample["images"]["sar"]
        return sample

    loader.data.read = without
    arrays = spectral(checkpoint, loader, settings=SpectralSettings(steps=2))
    assert arrays["sar/common/importance"].shape == (3, 2)
    assert arrays["optical/common/importance"].shape == (8, 6)
    assert np.isfinite(arrays["sar/common/importance"]).all()


def test_encoders_that_attend_to_each_other_are_asked_together():
    data = SyntheticScenes(5, 64, modalities=["optical", "sar"])
    torch.manual_seed(0)
    kept = {"attention": {"layer4": "cross_da"}}
    encoders = {k: build_encoder("resnet10t", m, **kept) for k, m in data.modalities.items()}
    projectors = {k: Projector(e.dim, 16, layers=2) for k, e in encoders.items()}
    parts = {"common": slice(0, 16)}
    checkpoint = Checkpoint(
        "run", encoders, projectors=projectors, modalities=data.modalities, parts=parts
    )
    loader = SampleLoader(data, settings=LoaderSettings(batch_size=8, workers=0))
    batch = next(iter(loader))
    batch["present"]["sar"][1] = False
    vectors = checkpoint.rows(batch).features
    standard = torch.zeros(16), torch.ones(16)
    picture = ScoredPictures(checkpoint, batch, "optical", standard, "mean")
    both = batch["present"]["sar"]
    known = checkpoint.scores("optical", vectors["optical"][both], statistics=standard)
    torch.testing.assert_close(picture.scores(picture.x, *picture.others.values()), known)
    assert picture.attributed(2, 0.0, "net").bands.shape == (1, 4, 6)
