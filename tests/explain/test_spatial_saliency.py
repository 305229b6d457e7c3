import numpy as np
import pytest
import torch
from planted import batch_of, planted

from decur.data import SyntheticScenes
from decur.encoders import Projector, build_encoder
from decur.explain import Checkpoint, DoesNotApply, SampleLoader, encoded
from decur.explain.base import text
from decur.explain.saliency import cuts, saliency_maps
from decur.explain.spatial import (
    another_scene,
    findings,
    overlap,
    plot_examples,
    plot_overlap,
    product,
    spatial,
)
from decur.pretrain import LoaderSettings

HALVES = {"common": slice(0, 1), "unique": slice(1, 2)}


def checkpoint_of(name, size=64, **options):
    data = SyntheticScenes(4, size, modalities=["optical", "sar"])
    torch.manual_seed(0)
    encoders = {k: build_encoder(name, m, **options) for k, m in data.modalities.items()}
    projectors = {k: Projector(e.dim, 16, layers=2) for k, e in encoders.items()}
    parts = {"common": slice(0, 12), "unique": slice(12, 16)}
    return Checkpoint(
        "run", encoders, projectors=projectors, modalities=data.modalities, parts=parts
    ), data


def first_batch(data, drop=()):
    """A batch of all scenes, without the sensors of `drop`: pairs of row and sensor."""
    batch = next(iter(SampleLoader(data, settings=LoaderSettings(batch_size=8, workers=0))))
    for row, name in drop:
        batch["present"][name][row] = False
    return batch


@pytest.mark.parametrize(
    ("name", "stage", "options"),
    [
        ("test_resnet", -1, {}),
        ("test_resnet", -2, {}),
        ("test_convnext", -1, {}),
        ("test_convnext", -3, {}),
        ("test_efficientnet", -1, {}),
        ("test_vit", -1, {}),
        ("test_vit", -1, {"global_pool": "avg"}),
        ("mit_b0", -1, {}),
        ("alexnet", -1, {}),
        ("resnet10t", -1, {"attention": {"layer4": "cross_da"}}),
        ("resnet10t", -2, {"attention": {"layer4": "rda"}}),
        (
            "swin_tiny_patch4_window7_224",
            -1,
            {"img_size": 64, "window_size": 2, "depths": (1,) * 4},
        ),
    ],
)
def test_what_follows_a_map_gives_the_encoders_vector(name, stage, options):
    checkpoint, data = checkpoint_of(name, **options)
    batch = first_batch(data, drop=[(1, "sar"), (3, "optical")])
    vectors = checkpoint.rows(batch).features
    found = cuts(checkpoint, batch, stage)
    assert list(found) == ["optical", "sar"]
    for sensor, cut in found.items():
        encoder = checkpoint.encoder(sensor)
        side = 64 // encoder.strides[stage]
        assert cut.values.shape[2:] == (side, side) or name == "alexnet"
        known = vectors[sensor][batch["present"][sensor]]
        torch.testing.assert_close(cut.head(cut.values), known, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(cut.head(cut.values.flip(1)), known, atol=1e-3)


def test_an_encoder_may_round_otherwise_in_a_batch_of_another_size(monkeypatch):
    """As a GPU does, which chooses its kernels by the size of the batch."""
    from decur.encoders import MiTEncoder

    stage = MiTEncoder.stage
    monkeypatch.setattr(
        MiTEncoder,
        "stage",
        lambda self, number, x: stage(self, number, x) * (1.002 if len(x) > 1 else 1),
    )
    checkpoint, data = checkpoint_of("mit_b0")
    assert list(cuts(checkpoint, first_batch(data))) == ["optical", "sar"]


@pytest.mark.parametrize("score", ["mean", "energy"])
@pytest.mark.parametrize("stage", [-1, -2])
def test_maps_are_grad_cam_written_out(score, stage):
    checkpoint, data = checkpoint_of("test_resnet")
    batch = first_batch(data)
    z = checkpoint.rows(batch).embeddings
    statistics = {name: (x.mean(0), x.std(0, correction=0)) for name, x in z.items()}
    found = saliency_maps(checkpoint, batch, statistics=statistics, score=score, stage=stage)
    layer = {-1: "layer4", -2: "layer3"}[stage]
    assert max(float(maps.max()) for parts in found.values() for maps in parts.values()) > 0
    for name in ("optical", "sar"):
        backbone = checkpoint.encoder(name).backbone
        kept = []

        def keep(module, given, made, kept=kept):
            kept.append(made.detach().requires_grad_())
            return kept[-1]

        hook = backbone.get_submodule(layer).register_forward_hook(keep)
        out = checkpoint.projector(name)(backbone(checkpoint.pictures(batch, name)))
        hook.remove()
        out = (out - z[name].mean(0)) / z[name].std(0, correction=0)
        for part, dims in checkpoint.parts.items():
            of = out[:, dims].mean(1) if score == "mean" else (out[:, dims] ** 2).mean(1) / 2
            (slope,) = torch.autograd.grad(of.sum(), kept[0], retain_graph=True)
            a, slope = kept[0].detach().numpy(), slope.numpy()
            cam = np.einsum("nchw,nc->nhw", a, slope.mean((2, 3)))  # of either sign
            upsampled = torch.nn.functional.interpolate(
                torch.from_numpy(np.maximum(cam, 0))[:, None], (64, 64), mode="bilinear"
            )[:, 0]
            scale = float(np.abs(cam).max())
            torch.testing.assert_close(
                found[name][part] / scale, upsampled / scale, atol=1e-4, rtol=1e-3
            )


@pytest.mark.parametrize("attention", [None, {"layer4": "rda"}])
def test_the_papers_maps_are_those_of_algorithm_2(attention):
    """Grad-CAM at the last conv2 with torch's own gradients; the product of min-max scaled maps."""
    checkpoint, data = checkpoint_of("resnet10t", attention=attention, zero_init_last=False)
    batch = first_batch(data)
    loader = SampleLoader(data, settings=LoaderSettings(batch_size=8, workers=0))
    found = spatial(checkpoint, loader, paper=True, score="energy")
    z = checkpoint.rows(batch).embeddings
    maps = {}
    for name in ("optical", "sar"):
        backbone, kept = checkpoint.encoder(name).backbone, []

        def keep(module, given, made, kept=kept):
            kept.append(made.detach().requires_grad_())
            return kept[-1]

        hook = backbone.layer4[0].conv2.register_forward_hook(keep)
        out = checkpoint.projector(name)(backbone(checkpoint.pictures(batch, name)))
        hook.remove()
        out = (out - z[name].mean(0)) / z[name].std(0, correction=0)
        for part, dims in checkpoint.parts.items():
            (slope,) = torch.autograd.grad(out[:, dims].mean(1).sum(), kept[0], retain_graph=True)
            cam = (kept[0] * slope.mean((2, 3), keepdim=True)).sum(1).relu().detach()
            maps[name, part] = torch.nn.functional.interpolate(
                cam[:, None], (64, 64), mode="bilinear"
            )[:, 0].numpy()
    compared = 0
    for part in checkpoint.parts:
        for i in range(4):
            one, two = maps["optical", part][i], maps["sar", part][i]
            if np.ptp(one) > 0 and np.ptp(two) > 0:
                wanted = ((one - one.min()) / np.ptp(one) * (two - two.min()) / np.ptp(two)).mean()
                got = found[f"optical-sar/{part}/overlap"][i]
                assert got == pytest.approx(wanted, rel=0.02, abs=2e-3)
                compared += 1
    assert compared and "last layer conv2" in findings(found)
    assert "--options.spatial.paper true" in findings(spatial(checkpoint, loader))


def test_the_product_of_two_maps_by_hand():
    a = torch.tensor([[[1.0, 3.0], [5.0, 5.0]]])  # scaled 0, 1/2, 1, 1
    b = torch.tensor([[[4.0, 2.0], [0.0, 4.0]]])  # scaled 1, 1/2, 0, 1
    assert product(a, b).tolist() == [(0 + 0.25 + 0 + 1) / 4]
    assert product(a, torch.ones(1, 2, 2)).isnan().all()


def test_a_network_without_conv2_is_told_so():
    checkpoint, data = checkpoint_of("test_vit")
    with pytest.raises(DoesNotApply, match="no layer conv2"):
        saliency_maps(checkpoint, first_batch(data), stage="conv2")


def test_maps_lie_where_each_part_was_planted():
    checkpoint = planted(["s"], 2, HALVES)
    corners = [(0, 0), (0, 12), (12, 0), (12, 12)]
    pictures = []
    for i in range(4):
        x = torch.full((2, 16, 16), 0.1)
        for band, (top, left) in enumerate((corners[i], corners[3 - i])):
            x[band, top : top + 4, left : left + 4] = 0.5 + 0.1 * i  # means that differ
        pictures.append({"s": x})
    batch = batch_of(checkpoint, pictures)
    for score in ("mean", "energy"):
        maps = saliency_maps(checkpoint, batch, score=score)["s"]
        for i in (2, 3):  # brighter than the mean of all: both scores rise with brightness
            for part, (top, left) in zip(maps, (corners[i], corners[3 - i]), strict=True):
                y, x = divmod(int(maps[part][i].argmax()), 16)
                assert top <= y < top + 4
                assert left <= x < left + 4
    assert maps["common"][0].max() == 0  # less than the mean: more of it lowers the energy


def test_a_map_does_not_depend_on_the_other_samples_of_its_batch(tiny_checkpoint, tiny_loader):
    checkpoint, loader = tiny_checkpoint(), tiny_loader(24)
    whole = encoded(checkpoint, loader)
    statistics = {name: whole.statistics(name) for name in checkpoint.modalities}
    batch = next(iter(loader))
    alone = {key: value for key, value in batch.items() if key in ("ids", "target", "bad")}
    for kind in ("images", "present"):
        alone[kind] = {name: x[5:6] for name, x in batch[kind].items()}
    for name, maps in saliency_maps(checkpoint, batch, statistics=statistics).items():
        one_by_part = saliency_maps(checkpoint, alone, statistics=statistics)[name]
        for part, one in one_by_part.items():
            torch.testing.assert_close(maps[part][5:6], one, atol=1e-6, rtol=1e-3)


def test_the_sign_of_a_dimension_changes_the_mean_and_not_the_energy(tiny_checkpoint, tiny_loader):
    batch = next(iter(tiny_loader(12)))
    plain, turned = tiny_checkpoint(), tiny_checkpoint()
    turned.projector("sar")[-1].weight[:12] *= -1  # all that are common
    for score, same in (("energy", True), ("mean", False)):
        one, other = (
            saliency_maps(c, batch, score=score)["sar"]["common"] for c in (plain, turned)
        )
        scale = max(one.max(), other.max())
        assert scale > 0
        assert torch.allclose(one / scale, other / scale, atol=1e-4) == same


def test_rows_are_of_the_samples_that_have_the_sensor(tiny_checkpoint, tiny_loader):
    checkpoint = tiny_checkpoint()
    batch = next(iter(tiny_loader(12)))
    batch["present"]["sar"][3:] = False
    maps = saliency_maps(checkpoint, batch)
    assert maps["optical"]["common"].shape == (12, 32, 32)
    assert maps["sar"]["unique"].shape == (3, 32, 32)
    for of_parts in maps.values():
        assert list(of_parts) == ["common", "unique"]
        for saliency in of_parts.values():
            assert saliency.dtype == torch.float32
            assert saliency.min() >= 0
            assert saliency.isfinite().all()
    batch["present"]["sar"][:] = False
    assert list(saliency_maps(checkpoint, batch)) == ["optical"]


def test_encoders_without_places_say_so(tiny_checkpoint, tiny_loader):
    batch = next(iter(tiny_loader(4)))
    with pytest.raises(DoesNotApply, match="no place stands out"):
        saliency_maps(tiny_checkpoint(encoder="mlp"), batch)
    with pytest.raises(DoesNotApply, match="stage -9"):
        saliency_maps(tiny_checkpoint(), batch, stage=-9)


def test_overlap_by_hand():
    a = torch.tensor([[[1.0, 0], [0, 0]], [[3, 4], [0, 0]], [[1, 1], [1, 1]], [[0, 0], [0, 0]]])
    b = torch.tensor([[[0.0, 2], [0, 0]], [[6, 8], [0, 0]], [[2, 0], [0, 0]], [[1, 0], [0, 0]]])
    found = overlap(a, b)
    assert found[:3].tolist() == pytest.approx([0, 1, 0.5])
    assert found[3].isnan()
    even = torch.ones(1, 4, 4)
    assert overlap(even, torch.ones(1, 2, 2)).item() == pytest.approx(1)


def test_statistics_are_numpys_over_the_samples_that_have_the_sensor(tiny_checkpoint, tiny_loader):
    checkpoint, loader = tiny_checkpoint(), tiny_loader(20)
    whole = encoded(checkpoint, loader)
    embedding = whole.embeddings["sar"]
    embedding[4:9] = np.nan
    whole.features["sar"][4:9] = np.nan
    rows = embedding[~np.isnan(embedding[:, 0])].astype(np.float64)
    mean, std = whole.statistics("sar")
    np.testing.assert_allclose(mean, rows.mean(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(std, rows.std(0), rtol=1e-5)


def overlaps(common, unique, groups=None):
    """The arrays of `spatial` for overlaps of samples, and of unlike scenes."""
    arrays = {
        "modalities": text("A", "B"),
        "parts": text("common", "unique"),
        "pairs": text("A-B"),
        "score": text("energy"),
        "stage": np.array(-1),
        **({} if groups is None else {"A-B/groups": groups}),
    }
    for part, (same, other) in {"common": common, "unique": unique}.items():
        arrays |= {f"A-B/{part}/overlap": same, f"A-B/{part}/other": other}
        arrays |= {f"{name}/{part}/empty": np.array(0.0) for name in "AB"}
    return arrays


MORE, LESS, UNTOLD = "overlap more, as", "overlap less, against", "no difference that could be told"


@pytest.mark.parametrize(
    ("common", "unique", "said"),
    [
        ((0.8, 0.3), (0.5, 0.3), MORE),
        ((0.8, 0.8), (0.5, 0.3), LESS),  # both look at the centre: no agreement about the scene
        ((0.5, 0.3), (0.8, 0.6), UNTOLD),
    ],
)
def test_maps_are_compared_beyond_those_of_another_scene(common, unique, said):
    rng = np.random.default_rng(0)
    parts = [
        tuple((mean + 0.05 * rng.normal(size=200)).astype(np.float32) for mean in means)
        for means in (common, unique)
    ]
    assert said in findings(overlaps(*parts))
    # samples of two places tell no more than two
    assert UNTOLD in findings(overlaps(*parts, groups=np.arange(200) % 2)) or said != UNTOLD


@pytest.mark.parametrize("seen", ["yes", "cannot be told"])
def test_pairs_that_were_trained_on_give_no_verdict(seen):
    rng = np.random.default_rng(0)
    common, unique = (mean + 0.05 * rng.normal(size=(2, 200)) for mean in ([[0.8], [0.3]], 0.5))
    arrays = overlaps(common, unique)
    assert MORE in findings(arrays) and "no verdict" not in findings(arrays)
    html = findings(arrays | {"seen": np.array(seen)})
    assert "no verdict" in html and not any(said in html for said in (MORE, LESS, UNTOLD))
    assert "the maps overlap by 0.80 on common dimensions" in html


@pytest.mark.parametrize("count", [2, 3, 8])
def test_few_samples_are_rarely_taken_for_a_difference(count):
    rng, fired, rounds = np.random.default_rng(0), 0, 300
    for _ in range(rounds):
        noise = 0.5 + 0.1 * rng.normal(size=(4, count))
        fired += UNTOLD not in findings(overlaps(noise[:2], noise[2:]))
    assert fired / rounds < 0.09
    same = np.full((2, count), [[0.5], [0.4]])  # the same difference each time
    assert (UNTOLD in findings(overlaps(same, same[::-1]))) == (count < 6)


def test_another_scene_is_of_another_group():
    assert another_scene(np.arange(4)).tolist() == [2, 3, 0, 1]
    found = another_scene(np.array([0, 0, 0, 1, 0]))
    assert found[3] != 3 and (found[[0, 1, 2, 4]] == 3).all()
    assert another_scene(np.zeros(3, int)).tolist() == [-1] * 3
    assert another_scene(np.array([7])).tolist() == [-1]


def test_ids_are_shown_as_they_are(tiny_checkpoint, tiny_loader):
    checkpoint, loader = tiny_checkpoint(), tiny_loader(8)
    loader.data.ids = [f"$x_{{$ {number}" for number in range(8)]
    plot_examples(spatial(checkpoint, loader, examples=2)).canvas.draw()


@pytest.mark.parametrize("sensors", [1, 2, 3])
def test_arrays_are_kept_and_drawn_again(sensors, tiny_checkpoint, tiny_loader, tmp_path):
    checkpoint, loader = tiny_checkpoint(sensors), tiny_loader(20, sensors)
    arrays = spatial(checkpoint, loader, examples=3)
    np.savez(tmp_path / "a.npz", **arrays)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as kept:
        arrays = dict(kept)
    pairs = arrays["pairs"].tolist()
    assert len(pairs) == sensors * (sensors - 1) // 2
    assert arrays["examples"].tolist() == [loader.ids[0], loader.ids[10], loader.ids[19]]
    assert arrays["optical/pictures"].shape == (3, 32, 32, 3)
    assert len(plot_examples(arrays).axes) >= 9
    html = findings(arrays)
    for pair in pairs:
        for part in ("common", "unique"):
            values = arrays[f"{pair}/{part}/overlap"]
            assert values.shape == (20,)
            known = values[np.isfinite(values)]
            assert ((known >= 0) & (known <= 1)).all()
            assert f"{len(known)} of 20" in html
    if pairs:
        assert len(plot_overlap(arrays).axes) >= len(pairs)
    else:
        assert "the run has one" in html
        with pytest.raises(DoesNotApply, match="the run has one"):
            plot_overlap(arrays)


def test_a_planted_agreement_is_told_from_another_scenes():
    """Common squares lie at the same place in both sensors, unique ones anywhere."""
    checkpoint = planted(["a", "b"], 2, HALVES)
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(40):
        places = [rng.integers(0, 4, 2) * 4 for _ in range(3)]  # common, unique of a, unique of b
        sample = {}
        for name, own in (("a", places[1]), ("b", places[2])):
            x = torch.zeros(2, 16, 16)
            for band, (top, left) in enumerate((places[0], own)):
                x[band, top : top + 4, left : left + 4] = 0.2 + 0.6 * rng.random()
            sample[name] = x
        pictures.append(sample)
    batch = batch_of(checkpoint, pictures)
    maps = saliency_maps(checkpoint, batch)
    common, unique = (overlap(maps["a"][p], maps["b"][p]) for p in ("common", "unique"))
    other = overlap(maps["a"]["common"], maps["b"]["common"].roll(20, 0))
    assert common.nanmean() > 0.99
    assert unique.nanmean() < 0.35
    assert other.nanmean() < 0.35
