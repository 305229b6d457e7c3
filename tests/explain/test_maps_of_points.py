"""Maps of dimensions and of samples: who lies where, with what is known of them."""

import base64
import io

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import r2_score

from decur import plotting
from decur.data import Target
from decur.data.selection import evenly_spaced
from decur.explain import DoesNotApply, encoded
from decur.explain import samples as sample_map
from decur.explain.base import text
from decur.explain.dimensions import (
    _across,
    chances,
    chart_map,
    dealt_parts,
    dimensions,
    findings,
    neighbours,
    plot_map,
)
from decur.explain.tsne import lay_out

pytest.importorskip("openTSNE")


def two_clusters(n=60):
    rng = np.random.default_rng(0)
    return (rng.normal(size=(n, 10)) + 8 * (np.arange(n) % 2)[:, None]).astype(np.float32)


def test_clusters_stay_apart_and_neighbours_are_exact():
    points = two_clusters()
    xy, nearest = lay_out(points)
    centres = np.stack([xy[i::2].mean(0) for i in (0, 1)])
    near = np.linalg.norm(xy[:, None] - centres, axis=2).argmin(1)
    assert (near == np.arange(60) % 2).all()
    distances = np.linalg.norm(points[:, None] - points, axis=2) + 1e9 * np.eye(60)
    np.testing.assert_array_equal(nearest, distances.argmin(1))


def test_a_seed_makes_the_same_map():
    points = two_clusters()
    first, _ = lay_out(points, seed=3)
    np.testing.assert_array_equal(first, lay_out(points, seed=3)[0])


def test_few_points_lower_the_perplexity_and_fewer_make_no_map():
    xy, _ = lay_out(two_clusters(8))
    assert np.isfinite(xy).all()
    with pytest.raises(DoesNotApply, match="8 points"):
        lay_out(two_clusters(7))


def test_points_that_are_all_alike_make_no_map():
    with pytest.raises(DoesNotApply, match="all alike"):
        lay_out(np.ones((20, 4), np.float32))


def test_a_sensor_that_is_constant_loses_its_map_alone(tiny_checkpoint, tiny_loader):
    run, loader = tiny_checkpoint(), tiny_loader(24)
    whole = encoded(run, loader)
    whole.features["sar"][:] = 0.3
    arrays = sample_map.samples(run, loader, vectors="features")
    assert arrays["maps"].tolist() == ["optical"] and len(arrays["xy"]) == 24
    assert sample_map.findings(arrays) and sample_map.plot_map(arrays)
    whole.features["optical"][:] = 0.3
    with pytest.raises(DoesNotApply, match="all alike"):
        sample_map.samples(run, loader, vectors="features")


@pytest.mark.parametrize("there", [0, 3])
def test_samples_that_cannot_be_read_do_not_count(there, tiny_checkpoint, tiny_loader):
    run, loader = tiny_checkpoint(), tiny_loader(24)
    for features in encoded(run, loader).features.values():
        features[there:] = np.nan
    with pytest.raises(DoesNotApply, match=f"8 points or more; there are {2 * there}"):
        sample_map.samples(run, loader)


def test_several_maps_are_drawn_one_below_the_other(tiny_checkpoint, tiny_loader):
    """Fig. 8 of the paper: four batches."""
    arrays = dimensions(tiny_checkpoint(), tiny_loader(40), samples=10, batches=4)
    assert int(arrays["3/samples"]) == 10 and "4/xy" not in arrays
    assert not np.array_equal(arrays["xy"], arrays["1/xy"])
    figure = plot_map(arrays)
    rows = [axis.get_ylabel() for axis in figure.axes][::2]
    assert rows == [f"batch {number}" for number in (1, 2, 3, 4)]


def test_progress_runs_to_its_end():
    seen = []

    def watch(steps, n):
        for step in steps:
            yield step
            seen.append(n)

    lay_out(two_clusters(12), watch=watch)
    assert len(seen) == seen[0] == 30


@pytest.fixture
def split_run(tiny_checkpoint, tiny_loader):
    """Common dimensions nearly alike for both sensors, unique ones by themselves; one constant."""
    run, loader = tiny_checkpoint(), tiny_loader(60)
    whole = encoded(run, loader)
    rng = np.random.default_rng(0)
    both = rng.normal(size=(60, 12))
    for name in ("optical", "sar"):
        whole.embeddings[name][:, :12] = 5 + both + 0.3 * rng.normal(size=(60, 12))
        own = rng.normal(size=(60, 1)) + 0.3 * rng.normal(size=(60, 4))
        whole.embeddings[name][:, 12:] = own
    whole.embeddings["sar"][:, 15] = 0.1
    return run, loader


def _assert_places(chart, arrays):
    """Each look of a chart has each point of a map once, in its place."""
    for _, traces in chart["looks"]:
        found = [chart["data"][number] for number in traces]
        which = np.concatenate([trace["customdata"] for trace in found])
        places = np.concatenate([np.stack([trace["x"], trace["y"]], 1) for trace in found])
        assert sorted(which) == list(range(len(arrays["xy"])))
        np.testing.assert_allclose(places, arrays["xy"][which], rtol=1e-5)


def test_common_dimensions_find_their_partners(split_run, tmp_path):
    run, loader = split_run
    arrays = dimensions(run, loader, samples=50)
    np.savez(tmp_path / "kept.npz", **arrays)
    with np.load(tmp_path / "kept.npz") as file:
        arrays = dict(file)
    assert len(arrays["xy"]) == 31 and arrays["constant"] == 1 and arrays["samples"] == 50
    common, unique = (arrays["part"] == number for number in (0, 1))
    assert common.sum() == 24 and unique.sum() == 7
    assert neighbours(arrays, common) == (1, 1, 1)
    partner, other, own = neighbours(arrays, unique)
    assert partner < 0.5 and other == 0 and own == 1
    assert len(plot_map(arrays).axes) == 2
    chart = chart_map(arrays)
    names, about = chart["points"]["names"], chart["points"]["about"]
    assert [look for look, _ in chart["looks"]] == ["by sensor", "by part"]
    _assert_places(chart, arrays)
    z = encoded(run, loader).embeddings
    rows = evenly_spaced(60, 50)
    point = names.index("sar 3")
    together = np.corrcoef(z["optical"][rows][:, 3], z["sar"][rows][:, 3])[0, 1]
    assert about[point].startswith("sar 3, common\nwith its partner of optical: ")
    assert f"{together:.2f}" in about[point] and "sar 15" not in names
    assert "partner" not in about[names.index("optical 15")]  # which is constant in the other
    nearest = names[arrays["nearest"][point]]
    assert about[point].splitlines()[-1].startswith(f"nearest: {nearest}, ")
    assert chart_map({k: v for k, v in arrays.items() if k != "correlation"}) is None  # an old file
    text = findings(arrays)
    assert "1 do not vary" in text and "100%" in text
    # 16 and 15 of 31 points, 24 and 7; one of the 7 has no partner
    row = text.partition(">unique<")[2].partition("</tr>")[0]
    assert f"(by chance {(3 / 15 + 3 / 16) / 7:.1%})" in row
    assert f"0% (by chance {(4 * 15 + 3 * 16) / (7 * 30):.1%})" in row
    assert f"100% (by chance {6 / 30:.1%})" in row


@pytest.mark.parametrize("sensors", [2, 3])
def test_the_chance_told_is_that_of_noise(sensors):
    """Each dimension has one partner in each other sensor: 1 of K, however many sensors."""
    width = 400
    features = np.random.default_rng(0).normal(size=(sensors * width, 64)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    sensor, dimension = np.divmod(np.arange(sensors * width), width)
    arrays = {
        "modalities": text(*"abc"[:sensors]),
        "parts": text("common"),
        "xy": features[:, :2],
        "modality": sensor,
        "part": 0 * sensor,
        "dimension": dimension,
        "nearest": 0 * sensor,
        "across": _across(features, sensor),
        "samples": np.array(64),
        "constant": np.array(0),
    }
    assert neighbours(arrays, sensor >= 0)[0] == pytest.approx(1 / width, abs=0.0045)
    assert "(by chance 0.2%)" in findings(arrays) and "dealt" not in findings(arrays)


def test_each_part_has_the_chance_of_its_own_size():
    """Noise of 2 x 256 dimensions, an eighth unique: every point may be the nearest."""
    rng, point = np.random.default_rng(0), np.arange(512)
    arrays = {
        "modality": point // 256,
        "dimension": point % 256,
        "part": (point % 256 >= 224).astype(int),
    }
    common, unique = (arrays["part"] == part for part in (0, 1))
    drawn, within = [], []
    for draw in range(40):
        arrays["nearest"] = (point + rng.integers(1, 512, 512)) % 512
        arrays["across"] = rng.integers(0, 256, 512) + 256 * (point < 256)
        drawn.append([neighbours(arrays, chosen) for chosen in (common, unique)])
        low, high = dealt_parts(arrays, unique) if draw < 10 else (0, 1)
        within.append(low <= drawn[-1][1][2] <= high)
    expected = [chances(arrays, chosen) for chosen in (common, unique)]
    np.testing.assert_allclose(np.mean(drawn, 0), expected, atol=0.03)
    assert [own for _, _, own in expected] == pytest.approx([447 / 511, 63 / 511])
    assert sum(within[:10]) >= 8
    arrays["nearest"] = (point + 256) % 512  # the partner: in the own part, whatever the parts are
    assert dealt_parts(arrays, unique) == (1, 1)
    arrays["nearest"] = point // 32 * 32 + (point + 1) % 32  # the unique ones are the last 32
    assert dealt_parts(arrays, unique)[1] < 0.3 < neighbours(arrays, unique)[2] == 1


def test_best_match_across_against_numpy(split_run):
    run, loader = split_run
    arrays = dimensions(run, loader)
    z = encoded(run, loader).embeddings
    c = np.corrcoef(z["optical"].T, z["sar"][:, :15].T)[:16, 16:]
    np.testing.assert_array_equal(arrays["across"][:16], 16 + c.argmax(1))
    np.testing.assert_array_equal(arrays["across"][16:], c.argmax(0))


def test_one_sensor_has_a_map_of_its_own(tiny_checkpoint, tiny_loader):
    arrays = dimensions(tiny_checkpoint(1), tiny_loader(20, 1))
    assert (arrays["across"] == -1).all() and "partner" not in findings(arrays)
    plot_map(arrays)


def test_dimensions_need_samples_with_all_sensors(tiny_checkpoint, tiny_loader):
    run, loader = tiny_checkpoint(), tiny_loader(20)
    encoded(run, loader).features["sar"][5:] = np.nan
    with pytest.raises(DoesNotApply, match="there are 5"):
        dimensions(run, loader)


def test_samples_by_what_each_sensor_sees(tiny_checkpoint, tiny_loader, tmp_path):
    run, loader = tiny_checkpoint(), tiny_loader(48)
    whole = encoded(run, loader)
    cloud = whole.labels["cloud"]
    whole.embeddings["optical"][:] = np.sin(np.arange(1, 17) * (1 + cloud[:, None]))
    whole.features["sar"][40:] = np.nan
    arrays = sample_map.samples(run, loader, perplexity=8)
    np.savez(tmp_path / "kept.npz", **arrays)
    with np.load(tmp_path / "kept.npz") as file:
        arrays = dict(file)
    assert len(arrays["xy"]) == 48 + 40
    assert arrays["labels"].tolist()[:2] == ["cloud", "moisture"] and len(arrays["labels"]) == 4
    assert all(name.startswith("cover: ") for name in arrays["labels"].tolist()[2:])
    assert sample_map.told(arrays, "cloud", 0) > 0.4 > sample_map.told(arrays, "cloud", 1)
    assert len(sample_map.plot_map(arrays).axes) == 5 + 1 + 2  # panels, an empty one, colour bars
    assert "Not shown for want of room" in sample_map.findings(arrays)
    chart = sample_map.chart_map(arrays)
    points, looks = chart["points"], [look for look, _ in chart["looks"]]
    assert looks == ["sensor", *arrays["labels"].tolist()]
    _assert_places(chart, arrays)
    assert points["names"] == [loader.ids[row] for row in arrays["sample"]]
    assert f"cloud: {cloud[0]:.4g}" in points["about"][0]
    shown = points["thumbnails"]
    assert shown["count"] == 48 and shown["places"] == arrays["sample"].tolist()
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown["sheets"]["sar"][23:]))))
    raw, side = loader.data[5]["images"]["sar"][None], sample_map.SIDE
    mine = plotting.small_pictures(raw, run.modalities["sar"], side)[0].astype(float)
    tile = sheet[:side, 5 * side : 6 * side]
    assert np.abs(tile - mine).mean() < 0.5 * np.abs(sheet[:side, :side] - mine).mean()


def test_features_have_a_map_a_sensor(tiny_checkpoint, tiny_loader):
    run, loader = tiny_checkpoint(), tiny_loader(24)
    arrays = sample_map.samples(run, loader, vectors="features")
    assert arrays["maps"].tolist() == ["optical", "sar"]
    np.testing.assert_array_equal(arrays["map"], arrays["modality"])
    assert len(sample_map.plot_map(arrays).axes) == 2 * 4 + 4


def test_without_labels_colours_are_the_sensors(tiny_checkpoint, tiny_loader):
    run, loader = tiny_checkpoint(), tiny_loader(24)
    loader.data.targets = {}
    arrays = sample_map.samples(run, loader, samples=12)
    assert len(arrays["xy"]) == 24 and not len(arrays["labels"])
    assert len(sample_map.plot_map(arrays).axes) == 1
    assert "no labels" in sample_map.findings(arrays)


def test_classes_with_unknown_and_many_values(tiny_checkpoint, tiny_loader):
    run, loader = tiny_checkpoint(), tiny_loader(48)
    whole = encoded(run, loader)
    names = tuple(f"<class {i}>" for i in range(12))
    loader.data.targets["kind"] = Target("class", names)
    whole.labels["kind"] = np.arange(48) % 13 - 1
    arrays = sample_map.samples(run, loader)
    assert arrays["labels"][2] == "kind"
    assert np.isnan(arrays["label/kind"]).sum() == 4
    axis = sample_map.plot_map(arrays).axes[3]
    told = [entry.get_text() for entry in axis.get_legend().get_texts()]
    assert "unknown" in told and "others" in told and len(told) == 10
    text = sample_map.findings(arrays)
    assert "accuracy" in text


def test_names_are_shown_as_they_are(tiny_checkpoint, tiny_loader):
    run, loader = tiny_checkpoint(), tiny_loader(16)
    encoded(run, loader).labels["$x_{$"] = np.arange(16) % 2
    loader.data.targets["$x_{$"] = Target("class", ("$5k-$10k", "_bg"))
    figure = sample_map.plot_map(sample_map.samples(run, loader))
    figure.canvas.draw()  # would raise ValueError for a formula that is none
    axis = figure.axes[3]
    assert axis.get_title() == r"\$x_{\$"
    shown = [entry.get_text() for entry in axis.get_legend().get_texts()]
    assert shown == [r"\$5k-\$10k", "_bg"]


def test_neighbours_on_the_map_tell_numbers_by_their_mean():
    rng = np.random.default_rng(0)
    xy = rng.normal(size=(80, 2)).astype(np.float32)
    y = xy[:, 0] + 0.1 * rng.normal(size=80)
    y[::9] = np.nan
    arrays = {
        "xy": xy,
        "modality": np.zeros(80, int),
        "sample": np.arange(80),
        "label/x": y,
        "classes/x": np.array([], dtype=np.str_),
    }
    known = ~np.isnan(y)
    xy, y = xy[known], y[known]
    distances = np.linalg.norm(xy[:, None] - xy, axis=2) + 1e9 * np.eye(len(xy))
    missed = 1 - r2_score(y, y[np.argsort(distances)[:, :10]].mean(1))  # of the variance
    want = 1 - missed * (len(y) - 1) / len(y) / (1 + 1 / 10)  # 10 samples at random miss 11 tenths
    assert sample_map.told(arrays, "x", 0) == pytest.approx(want)
    assert np.isnan(sample_map.told(arrays, "x", 1))
