import hashlib
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from decur import Modality
from decur.errors import ConfigError, DataError
from decur.views import Views
from decur.views.augmentation import RECIPES, Augmentation
from decur.views.counter import mix, sample_seeds, stream_keys, uniform
from decur.views.pixels import blur_, crop_resize, drop_bands_, gray_, jitter_, solarize_


def modality(name, bands, augmentation="optical"):
    return Modality(
        name=name,
        bands=tuple(f"b{i}" for i in range(bands)),
        scaling="range",
        augmentation=augmentation,
    )


SENSORS = {
    "s1": modality("s1", 2, "sar"),
    "s2": modality("s2", 5),
    "dem": modality("dem", 1, "dem"),
    "hha": modality("hha", 3, "hha"),
}


@pytest.fixture
def images():
    g = torch.Generator().manual_seed(0)
    sizes = {"s1": (40, 40), "s2": (40, 52), "dem": (24, 24), "hha": (60, 80)}
    return {n: torch.rand(6, SENSORS[n].channels, *sizes[n], generator=g) for n in SENSORS}


@pytest.fixture
def seeds():
    return sample_seeds([f"tile-{i}" for i in range(6)], seed=1, epoch=0)


def draw(recipe, size=(264, 264), samples=20_000, bands=4, **changes):
    views = Views({"x": modality("x", bands, recipe)}, overrides={"x": changes})
    return views.draw({"x": size}, torch.arange(samples))["x"]


def ramps(height, width, bands):
    """Pictures whose first two bands say where each pixel is, in fractions of the picture."""
    rows = ((torch.arange(height) + 0.5) / height)[:, None].expand(height, width)
    columns = ((torch.arange(width) + 0.5) / width).expand(height, width)
    return torch.stack((rows, columns, *[rows] * (bands - 2))).expand(8, -1, -1, -1)


# --- random numbers -------------------------------------------------------------------------------


def test_mix_is_splitmix64():
    golden, state, published = 0x9E3779B97F4A7C15, 1234567, []
    for _ in range(5):
        word = int(mix(torch.tensor([state - (1 << 64) if state >> 63 else state]))[0])
        published.append(word % (1 << 64))
        state = (state + golden) % (1 << 64)
    assert published == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_sample_seeds_are_hashes_of_run_epoch_and_id():
    seeds = sample_seeds(["a", "b/ü"], seed=7, epoch=2)
    digest = hashlib.blake2b("7/2/b/ü".encode(), digest_size=8).digest()
    assert seeds.dtype == torch.int64
    assert seeds[1] == int.from_bytes(digest, "little", signed=True)
    every = [sample_seeds(["a", "b"], s, epoch=e) for s in range(3) for e in range(3)]
    assert torch.cat(every).unique().numel() == 18


@pytest.mark.parametrize("consecutive", [True, False])
def test_numbers_are_uniform_and_independent(consecutive):
    n = 100_000
    ids = [str(i) for i in range(n)]
    seeds = torch.arange(n) if consecutive else sample_seeds(ids, seed=0, epoch=0)
    u = uniform(seeds, stream_keys("abcd")).numpy()
    assert u.min() >= 0 and u.max() < 1
    for column in u.T:  # Kolmogorov-Smirnov, p = 1e-4
        assert stats.kstest(column, "uniform").statistic < 2.23 / math.sqrt(n)
    pairs = [(u[:, i], u[:, j]) for i in range(4) for j in range(i)]
    pairs += [(u[:-1, 0], u[1:, 0]), (u[:-1, 0], u[1:, 1])]  # neighbours in the data set
    for a, b in pairs:  # chi-square of a 16 x 16 table, 255 degrees of freedom, p = 1e-4
        table, *_ = np.histogram2d(a, b, bins=16, range=[[0, 1], [0, 1]])
        expected = len(a) / 256
        assert ((table - expected) ** 2 / expected).sum() < 346


def test_a_view_depends_on_its_own_sample_only(images, seeds):
    views = Views(SENSORS, size=32)
    together = views(images, seeds)
    order = torch.tensor([4, 1, 3])
    some = views({n: x[order] for n, x in images.items()}, seeds[order])
    alone = views({n: x[2:3] for n, x in images.items()}, seeds[2:3])
    few = views({"s2": images["s2"]}, seeds)
    for name in SENSORS:
        for view in range(2):
            close = {"atol": 1e-6, "rtol": 0}
            torch.testing.assert_close(some[name][view], together[name][view][order], **close)
            torch.testing.assert_close(alone[name][view][0], together[name][view][2], **close)
    assert torch.equal(few["s2"][1], together["s2"][1])


def test_no_global_state_is_read_or_changed(images, seeds):
    views = Views(SENSORS, size=32)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = views(images, seeds)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second = views(images, seeds)
    assert all(torch.equal(first[n][v], second[n][v]) for n in first for v in range(2))


def test_views_differ_between_views_modalities_samples_epochs_and_runs():
    twins = {"a": modality("a", 3), "b": modality("b", 3)}
    picture = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    images = {n: picture.expand(4, -1, -1, -1) for n in twins}
    views = Views(twins, size=32)
    made = []
    for seed, epoch in [(0, 0), (0, 1), (1, 0)]:
        out = views(images, sample_seeds(list("pqrs"), seed, epoch=epoch))
        made += [*out["a"][0], *out["a"][1], *out["b"][0], *out["b"][1]]
    assert len(made) == 48
    for i, one in enumerate(made):
        assert all((one - other).abs().max() > 1e-3 for other in made[:i])


# --- geometry -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "scale"), [((264, 264), (0.2, 1.0)), ((50, 160), (0.2, 1.0)), ((90, 70), (0.5, 1.0))]
)
def test_crops_are_distributed_as_torchvisions(size, scale):
    box = draw("dem", size, crop_scale=scale)[0].box * torch.tensor([*size, *size])
    assert torch.allclose(box, box.round(), atol=1e-9)
    torch.manual_seed(0)
    picture = torch.empty(1, *size)
    crop = v2.RandomResizedCrop(8, scale=scale)
    theirs = np.array(
        [list(crop.make_params([picture]).values())[:4] for _ in range(4000)]
    )  # top, left, height, width
    for ours, other in zip(box.round().numpy().T, theirs.T, strict=True):
        assert stats.ks_2samp(ours, other).statistic < 2.23 * math.sqrt(1 / 20_000 + 1 / 4000)


@pytest.mark.parametrize(("size", "expected"), [((20, 400), (20, 27)), ((400, 20), (27, 20))])
def test_a_crop_that_never_fits_becomes_the_central_one(size, expected):
    box = draw("dem", size, samples=50, crop_scale=(1.0, 1.0))[0].box
    height, width = expected
    middle = [(size[0] - height) // 2, (size[1] - width) // 2, height, width]
    wanted = torch.tensor(middle).double() / torch.tensor([*size, *size])
    assert torch.allclose(box, wanted.expand(50, 4), atol=1e-12)


@pytest.mark.parametrize("size", [(32, 32), (24, 45), (70, 64)])
def test_crop_resize_equals_torchvision(size):
    images = torch.rand(16, 3, 44, 60, generator=torch.Generator().manual_seed(0))
    drawn = draw("dem", (44, 60), samples=16, crop_scale=(0.2, 0.8), crop_ratio=(0.8, 1.2))[0]
    flip = torch.tensor([[v, h] for v in (False, True) for h in (False, True)]).repeat(4, 1)
    ours = crop_resize(images, drawn.box, flip, size)
    for i, box in enumerate(drawn.box * torch.tensor([44, 60, 44, 60])):
        theirs = TF.resized_crop(images[i], *box.round().int().tolist(), size, antialias=False)
        theirs = TF.vertical_flip(theirs) if flip[i, 0] else theirs
        theirs = TF.horizontal_flip(theirs) if flip[i, 1] else theirs
        torch.testing.assert_close(ours[i], theirs, atol=1e-5, rtol=0)


def test_the_whole_picture_at_its_own_size_stays_as_it_is():
    images = torch.rand(2, 3, 20, 30)
    box = torch.tensor([[0.0, 0, 1, 1]], dtype=torch.float64).expand(2, 4)
    same = crop_resize(images, box, torch.zeros(2, 2, dtype=torch.bool), (20, 30))
    torch.testing.assert_close(same, images, atol=1e-5, rtol=0)


def test_large_crops_are_averaged_before_they_are_sampled():
    images = torch.rand(3, 2, 90, 60, generator=torch.Generator().manual_seed(0))
    flip = torch.tensor([[False, True], [False, False], [True, False]])
    # three times too large; only twice too wide; not too large at all
    pixels = torch.tensor([[0, 0, 90, 60], [30, 10, 40, 44], [60, 8, 30, 20]])
    ours = crop_resize(images, pixels / torch.tensor([90.0, 60, 90, 60]).double(), flip, (30, 20))
    first = TF.horizontal_flip(F.avg_pool2d(images[0], 3))
    torch.testing.assert_close(ours[0], first, atol=1e-5, rtol=0)
    halved = F.avg_pool2d(images[1], (1, 2))
    second = TF.resized_crop(halved, 30, 5, 40, 22, (30, 20), antialias=False)
    torch.testing.assert_close(ours[1], second, atol=1e-5, rtol=0)
    third = TF.vertical_flip(images[2, :, 60:90, 8:28])
    torch.testing.assert_close(ours[2], third, atol=1e-5, rtol=0)


def test_averaging_keeps_everything_in_its_place():
    images = ramps(101, 67, 2)[:1]  # neither side is a multiple of what is averaged
    box = torch.tensor([[0.1, 0.2, 0.8, 0.7]], dtype=torch.float64)
    out = crop_resize(images, box, torch.zeros(1, 2, dtype=torch.bool), (16, 16))
    centres = (torch.arange(16) + 0.5) / 16
    inner = slice(1, -1)  # at the edges a crop is clamped to whole pixels
    torch.testing.assert_close(out[0, 0, inner, 3], (0.1 + 0.8 * centres)[inner], atol=1e-5, rtol=0)
    torch.testing.assert_close(out[0, 1, 3, inner], (0.2 + 0.7 * centres)[inner], atol=1e-5, rtol=0)


def test_fine_patterns_do_not_alias():
    stripes = torch.tensor([0.0, 1.0]).repeat(128).expand(1, 1, 256, 256)
    box = torch.tensor([[0.0, 0, 1, 1]], dtype=torch.float64)
    out = crop_resize(stripes, box, torch.zeros(1, 2, dtype=torch.bool), (60, 60))
    assert (out - 0.5).abs().max() < 1e-5


# --- colour ---------------------------------------------------------------------------------------


def test_jitter_equals_torchvision_on_one_band():
    x = 0.3 + 0.2 * torch.rand(4, 1, 12, 14)  # nothing leaves [0, 1]
    brightness = torch.tensor([1.0, 0.6, 1.4, 0.9], dtype=torch.float64)
    contrast = torch.tensor([1.0, 1.4, 0.6, 1.1], dtype=torch.float64)
    ours = jitter_(x.clone(), brightness, contrast)
    for i in range(4):
        theirs = TF.adjust_contrast(
            TF.adjust_brightness(x[i], brightness[i].item()), contrast[i].item()
        )
        torch.testing.assert_close(ours[i], theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("per_band", [True, False])
def test_contrast_pulls_each_band_towards_its_own_mean(per_band):
    """As the authors' code does; in version 0.1 towards the mean of the grey picture."""
    x = torch.rand(3, 13, 8, 9)
    brightness = torch.tensor([0.7, 1.2, 1.0], dtype=torch.float64)
    contrast = torch.tensor([1.3, 0.8, 1.0], dtype=torch.float64)
    bright = x.double() * brightness[:, None, None, None]
    level = (bright if per_band else bright.mean(1, keepdim=True)).mean((2, 3), keepdim=True)
    wanted = level + (bright - level) * contrast[:, None, None, None]
    found = jitter_(x.clone(), brightness, contrast, per_band=per_band).double()
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


def test_gray_replaces_all_bands_by_their_mean():
    x = torch.rand(3, 4, 5, 6)
    out = gray_(x.clone(), torch.tensor([False, True, False]))
    torch.testing.assert_close(out[1], x[1].mean(0, keepdim=True).expand(4, -1, -1))
    assert torch.equal(out[[0, 2]], x[[0, 2]])
    single = torch.rand(2, 1, 5, 6)
    assert torch.equal(gray_(single.clone(), torch.tensor([True, True])), single)


@pytest.mark.parametrize("shape", [(2, 20, 20), (13, 70, 131), (1, 64, 128), (3, 5, 9)])
def test_blur_equals_torchvision(shape):
    x = torch.rand(5, *shape, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.1, 0.0, 0.7, 2.0, 1.3], dtype=torch.float64)
    ours = blur_(x.clone(), sigma, 2.0)
    kernel = [2 * min(6, side - 1) + 1 for side in (shape[2], shape[1])]
    for i, s in enumerate(sigma.tolist()):
        theirs = TF.gaussian_blur(x[i], kernel, [s, s]) if s else x[i]
        torch.testing.assert_close(ours[i], theirs, atol=2e-6, rtol=0)
    assert torch.equal(ours[1], x[1])


def test_solarize_equals_torchvision():
    x = torch.rand(3, 4, 6, 6)
    out = solarize_(x.clone(), torch.tensor([True, False, True]), 0.3)
    torch.testing.assert_close(out[0], torch.where(x[0] > 0.3, 1 - x[0], x[0]))
    assert torch.equal(out[1], x[1])
    theirs = TF.solarize(x[2, :3], 0.3)  # theirs takes three bands only
    torch.testing.assert_close(out[2, :3], theirs)


def test_dropped_bands_are_zero():
    x = 0.1 + torch.rand(2, 3, 4, 4)
    dropped = torch.tensor([[False, True, False], [True, False, True]])
    out = drop_bands_(x.clone(), dropped)
    assert torch.equal(out, torch.where(dropped[:, :, None, None], 0, x))


@pytest.mark.parametrize(("bands", "most"), [(13, 6), (4, 2), (3, 1), (2, 1), (1, 0)])
def test_colour_drop_takes_one_to_half_of_the_bands_all_alike(bands, most):
    dropped = draw("optical", bands=bands, color_drop_p=0.4)[0].dropped
    count = dropped.sum(1)
    touched = (count > 0).double().mean().item()
    assert touched == pytest.approx(0.4 if most else 0, abs=0.015)
    assert count.max() == most
    if most:
        shares = count[count > 0].bincount(minlength=most + 1)[1:] / (count > 0).sum()
        assert torch.allclose(shares, torch.full((most,), 1 / most), atol=0.025)
        each = dropped.double().mean(0)
        assert torch.allclose(each, each.mean().expand(bands), atol=0.015)


# --- recipes --------------------------------------------------------------------------------------


def test_draws_follow_the_recipe():
    for drawn in draw("optical"):
        shares = {
            0.2: [drawn.gray, drawn.solarize],
            0.0: [drawn.dropped.any(1)],
            0.5: [drawn.flip[:, 0], drawn.flip[:, 1], drawn.sigma > 0],
            0.8: [drawn.brightness != 1, drawn.contrast != 1],
        }
        for p, chosen in shares.items():
            for one in chosen:
                assert one.double().mean().item() == pytest.approx(p, abs=0.015)
        for factor in (drawn.brightness, drawn.contrast):
            drawn_factor = factor[factor != 1].numpy()
            assert stats.kstest(drawn_factor, stats.uniform(0.6, 0.8).cdf).pvalue > 1e-4
        sigma = drawn.sigma[drawn.sigma > 0].numpy()
        assert stats.kstest(sigma, stats.uniform(0.1, 1.9).cdf).pvalue > 1e-4
        assert (drawn.brightness != 1).equal(drawn.contrast != 1)  # one decision for both


@pytest.mark.parametrize("recipe", ["sar", "dem", "hha"])
def test_special_modalities_skip_what_is_infeasible(recipe):
    drawn = draw(recipe, samples=2000)[1]
    assert (drawn.brightness == 1).all() and (drawn.contrast == 1).all()
    assert not drawn.solarize.any() and not drawn.dropped.any()
    assert drawn.gray.any() == (drawn.sigma > 0).any() == (recipe == "sar")
    assert drawn.flip[:, 1].any()
    assert drawn.flip[:, 0].any() == (recipe != "hha")
    area = (drawn.box[:, 2] * drawn.box[:, 3]).min()
    assert area == pytest.approx(0.5 if recipe == "hha" else 0.2, abs=0.02)


def test_overrides_change_one_modality_or_all():
    overrides = {"all": {"blur_p": 0, "crop_scale": [0.9, 1.0]}, "s2": {"blur_p": 1.0}}
    views = Views(SENSORS, overrides=overrides)
    assert views.recipes["s1"].blur_p == 0 and views.recipes["s2"].blur_p == 1
    assert {r.crop_scale for r in views.recipes.values()} == {(0.9, 1.0)}
    assert RECIPES["optical"] == Augmentation()  # shared defaults stay as they are


def test_runs_of_version_0_1_go_on_with_its_recipes():
    views = Views(SENSORS, recipes="0.1", overrides={"s1": {"blur_p": 0.1}})
    assert views.recipes["s2"].color_drop_p == 0.2 and not views.recipes["hha"].color_drop_p
    assert views.recipes["s1"].blur_p == 0.1 and not views.per_band
    assert (
        not Views(SENSORS, recipes="0.1", overrides={"all": {"color_drop_p": 0}})
        .recipes["s2"]
        .color_drop_p
    )


def test_everything_off_is_a_plain_resize(images, seeds):
    off = {f: 0.0 for f in Augmentation.__dataclass_fields__ if f.endswith("_p")}
    off |= {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0)}
    views = Views({"s1": SENSORS["s1"]}, size=(30, 50), overrides={"all": off})
    first, second = views({"s1": images["s1"]}, seeds)["s1"]
    wanted = F.interpolate(images["s1"], (30, 50), mode="bilinear", align_corners=False)
    torch.testing.assert_close(first, wanted, atol=1e-5, rtol=0)
    assert torch.equal(first, second)


def test_pictures_are_rounded_to_8_bits_where_that_is_asked_for(images, seeds):
    rounded, plain = Views(SENSORS, size=32, levels=256), Views(SENSORS, size=32)
    eight = {name: (x * 255).round().to(torch.uint8).float() / 255 for name, x in images.items()}
    found, wanted = rounded(images, seeds), plain(eight, seeds)
    for name in images:
        torch.testing.assert_close(found[name][0], wanted[name][0], atol=1e-6, rtol=0)
        assert not torch.equal(found[name][0], plain(images, seeds)[name][0])
    with pytest.raises(ConfigError, match="levels is 1"):
        Views(SENSORS, levels=1)


def test_operations_come_in_order(images, seeds):
    """Each view again, sample by sample, from what was drawn, with torchvision."""
    x = images["s2"] * 0.5 + 0.1
    views = Views(
        {"s2": SENSORS["s2"]}, size=32, overrides={"s2": {"solarize_p": 0.5, "color_drop_p": 0.3}}
    )
    drawn = views.draw({"s2": (40, 52)}, seeds)
    made = views({"s2": x}, seeds)["s2"]
    for view, d in zip(made, drawn["s2"], strict=True):
        for i in range(len(x)):
            box = (d.box[i] * torch.tensor([40, 52, 40, 52])).round().int().tolist()
            y = TF.resized_crop(x[i], *box, (32, 32), antialias=False)
            y = y.flip([k for k in (1, 2) if d.flip[i, k - 1]])
            y = y * d.brightness[i].item()
            level = y.mean((1, 2), keepdim=True)
            y = level + (y - level) * d.contrast[i].item()
            y = y.mean(0, keepdim=True).expand(5, -1, -1) if d.gray[i] else y
            y = TF.gaussian_blur(y, 13, d.sigma[i].item()) if d.sigma[i] else y
            y = torch.where(y > 0.5, 1 - y, y) if d.solarize[i] else y
            y = y.masked_fill(d.dropped[i][:, None, None], 0).clamp(0, 1)
            torch.testing.assert_close(view[i], y, atol=2e-5, rtol=0)


# --- shared geometry ------------------------------------------------------------------------------


def test_shared_geometry_shows_the_same_place_in_all_modalities():
    sensors = {"a": modality("a", 2, "dem"), "b": modality("b", 3, "dem")}
    images = {"a": ramps(128, 128, 2), "b": ramps(64, 96, 3)}
    views = Views(sensors, size=32, shared_geometry=True)
    out = views(images, torch.arange(8))
    for view in range(2):  # half a pixel at the edges of the crops is the difference
        assert (out["a"][view][:, :2] - out["b"][view][:, :2]).abs().max() < 0.5 / 64 + 1e-4
    assert (out["a"][0] - out["a"][1]).abs().mean() > 0.05
    apart = Views(sensors, size=32)(images, torch.arange(8))
    assert (apart["a"][0] - apart["b"][0][:, :2]).abs().mean() > 0.05


def test_shared_geometry_uses_only_what_all_can_bear():
    sensors = {"rgb": modality("rgb", 3), "hha": SENSORS["hha"]}
    views = Views(sensors, shared_geometry=True)
    drawn = views.draw({"rgb": (100, 100), "hha": (100, 100)}, torch.arange(500))
    for view in range(2):
        rgb, hha = drawn["rgb"][view], drawn["hha"][view]
        assert torch.equal(rgb.box, hha.box) and torch.equal(rgb.flip, hha.flip)
        assert not rgb.flip[:, 0].any() and rgb.flip[:, 1].any()
        assert (rgb.box[:, 2] * rgb.box[:, 3]).min() > 0.48
        assert rgb.gray.any() and not hha.gray.any()  # colour stays each one's own


# --- types, shapes, errors ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_are_computed_in_float32(images, seeds, dtype):
    views = Views(SENSORS, size=24)
    typed = {n: x.to(dtype) for n, x in images.items()}
    out = views(typed, seeds)
    exact = views({n: x.float() for n, x in typed.items()}, seeds)
    for name in SENSORS:
        assert out[name][0].dtype == dtype
        assert torch.equal(out[name][0], exact[name][0].to(dtype))


def test_autocast_changes_nothing(images, seeds):
    views = Views(SENSORS, size=24)
    plain = views(images, seeds)
    with torch.autocast("cpu", torch.bfloat16):
        under = views(images, seeds)
    assert all(torch.equal(plain[n][v], under[n][v]) for n in plain for v in range(2))


def test_views_have_the_size_asked_for_lie_in_range_and_leave_the_images_alone(images, seeds):
    before = {n: x.clone() for n, x in images.items()}
    strided = {n: x.to(memory_format=torch.channels_last) for n, x in images.items()}
    out = Views(SENSORS, size=(20, 28))(images, seeds)
    again = Views(SENSORS, size=(20, 28))(strided, seeds)
    for name, pair in out.items():
        assert torch.equal(images[name], before[name])
        for view, other in zip(pair, again[name], strict=True):
            assert view.shape == (6, SENSORS[name].channels, 20, 28)
            assert view.min() >= 0 and view.max() <= 1 and not view.requires_grad
            torch.testing.assert_close(view, other, atol=1e-6, rtol=0)


def test_an_empty_batch_gives_empty_views():
    out = Views({"s1": SENSORS["s1"]}, size=8)({"s1": torch.rand(0, 2, 9, 9)}, torch.arange(0))
    assert out["s1"][0].shape == (0, 2, 8, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overrides": {"s3": {"blur_p": 0}}}, "'s3'"),
        ({"overrides": {"s1": {"blurp": 0}}}, "'s1': unknown augmentation key 'blurp'"),
        ({"overrides": {"all": {"blur_p": 1.5}}}, "blur_p is 1.5"),
        ({"overrides": {"s1": {"blur_p": "often"}}}, "blur_p is 'often'"),
        ({"overrides": {"s1": {"blur_p": True}}}, "blur_p is True"),
        ({"overrides": {"s1": {"crop_scale": 0.5}}}, "crop_scale is 0.5"),
        ({"overrides": {"s1": {"crop_scale": [0, 1]}}}, "crop_scale"),
        ({"overrides": {"s1": {"crop_scale": [0.5, 1.5]}}}, "low <= high <= 1"),
        ({"overrides": {"s1": {"crop_ratio": [2, 1]}}}, "crop_ratio"),
        ({"overrides": {"s2": {"blur_sigma": [0.0, 2.0]}}}, "blur_sigma"),
        ({"overrides": {"s2": {"brightness": float("nan")}}}, "brightness is nan"),
        ({"overrides": {"s1": None}}, "'s1'"),
        ({"size": 0}, "size"),
        ({"size": (3, 4, 5)}, "size"),
        (
            {
                "overrides": {"s1": {"crop_scale": [0.2, 0.4]}},
                "shared_geometry": True,
            },
            "crop_scale",
        ),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ConfigError) as caught:
        Views(SENSORS, **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_recipe_is_named():
    with pytest.raises(ConfigError, match=r"'x': no augmentation recipe 'lidar'.*optical, sar"):
        Views({"x": modality("x", 1, "lidar")})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"s3": torch.rand(6, 2, 9, 9)}, "'s3'"),
        ({"s1": torch.rand(6, 3, 9, 9)}, "'s1'"),
        ({"s1": torch.rand(5, 2, 9, 9)}, "'s1'"),
        ({"s1": torch.rand(2, 9, 9)}, "'s1'"),
        ({"s1": torch.zeros(6, 2, 9, 9, dtype=torch.uint8)}, "Modality.scale"),
    ],
)
def test_wrong_images_are_named(seeds, change, message):
    with pytest.raises(DataError, match=message):
        Views(SENSORS)(change, seeds)


def test_wrong_seeds_are_named(images):
    with pytest.raises(DataError, match="sample_seeds"):
        Views(SENSORS)(images, torch.rand(6))


def test_views_do_not_depend_on_the_type_that_torch_gives_new_tensors(images, seeds):
    views = Views(SENSORS, size=24)
    expected = views(images, seeds)
    torch.set_default_dtype(torch.bfloat16)  # as Lightning does in a training in "bf16-true"
    try:
        found = views(images, seeds)
    finally:
        torch.set_default_dtype(torch.float32)
    for name, pair in expected.items():
        assert all(torch.equal(*both) for both in zip(found[name], pair, strict=True)), name


@pytest.mark.gpu
def test_on_a_gpu_the_same_views_come_without_waiting(images, seeds):
    views = Views(SENSORS, size=24)
    on_gpu = {n: x.cuda() for n, x in images.items()}
    views(on_gpu, seeds)  # what is built once may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = views(on_gpu, seeds)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for name, pair in views(images, seeds).items():
        for ours, cpu in zip(out[name], pair, strict=True):
            torch.testing.assert_close(ours.cpu(), cpu, atol=1e-3, rtol=0)
