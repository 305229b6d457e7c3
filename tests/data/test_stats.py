import re
import shlex

import numpy as np
import pytest
import yaml
from make_folder import make_folder, write, write_raster

from decur.cli import main
from decur.data import BandStatistics, PairedFolder, SyntheticScenes, command_stats, compute_stats
from decur.data.files import read_image
from decur.data.stats import guess_augmentation, stats_of_files, write_modalities
from decur.errors import DataError
from decur.modality import load_modalities

pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")

RNG = np.random.default_rng(0)


def assert_is(stats, pixels):
    """`stats` against NumPy in float64 on all pixels at once, (C, P)."""
    x = pixels.astype(np.float64)
    np.testing.assert_array_equal(stats.count, (~np.isnan(x)).sum(1))
    np.testing.assert_allclose(stats.mean, np.nanmean(x, 1), rtol=1e-12)
    np.testing.assert_allclose(stats.std, np.nanstd(x, 1), rtol=1e-12)
    np.testing.assert_array_equal(stats.minimum, np.nanmin(x, 1))
    np.testing.assert_array_equal(stats.maximum, np.nanmax(x, 1))


@pytest.mark.parametrize("cuts", [[], [1], [999], [3, 4, 500], list(range(50, 1000, 50))])
@pytest.mark.parametrize("offset", [0, 1e4])
def test_any_partition_merges_to_the_whole(cuts, offset):
    pixels = RNG.normal(offset, 3, (3, 1000))
    pixels[0, 100:300] = np.nan
    pixels[1, :3] = np.nan  # a part without any measured pixel
    parts = [BandStatistics.of_image(part) for part in np.split(pixels, cuts, axis=1)]
    left = right = None
    for part in parts:
        left = part if left is None else left.merge(part)
    for part in reversed(parts):
        right = part if right is None else part.merge(right)
    assert_is(left, pixels)
    assert_is(right, pixels)


def test_percentiles_of_bytes_are_exact():
    pixels = RNG.integers(0, 256, (2, 4000), dtype=np.uint8)
    stats = BandStatistics.of_image(pixels[:, :100]).merge(BandStatistics.of_image(pixels[:, 100:]))
    percents = (0, 1, 2, 50, 98, 99, 100)
    expected = np.percentile(pixels, percents, axis=1, method="nearest")
    np.testing.assert_array_equal(stats.percentiles(percents), expected)


def test_percentiles_of_floats_within_the_error_stated(tmp_path):
    pixels = RNG.normal(size=(40, 1, 64, 64)).astype(np.float32)
    paths = [write(tmp_path / f"{i}.npy", image) for i, image in enumerate(pixels)]
    found = stats_of_files(paths).percentiles((1, 50, 98))[:, 0]
    drawn = 500_000
    for percent, value in zip((1, 50, 98), found, strict=True):
        rank = 100 * (pixels <= value).mean()
        assert abs(rank - percent) < 5 * np.sqrt(percent * (100 - percent) / drawn)


def test_of_files_any_number_of_workers(tmp_path):
    pixels = RNG.normal(5, 2, (70, 2, 8, 8)).astype(np.float32)
    pixels[3, 0, :4] = np.nan
    paths = [write(tmp_path / f"{i:02d}.npy", image) for i, image in enumerate(pixels)]
    alone, many = stats_of_files(paths, workers=1), stats_of_files(paths, workers=4)
    assert_is(alone, pixels.transpose(1, 0, 2, 3).reshape(2, -1))
    np.testing.assert_array_equal(alone.m2, many.m2)
    np.testing.assert_array_equal(alone.pixels, many.pixels)


def test_nodata_counts_nowhere_and_suspects_are_reported(tmp_path):
    pixels = np.array([[[0, 0, 1, 3, -9999]]], np.int16)
    path = write(tmp_path / "a.tif", pixels)
    stats = stats_of_files([path])
    assert stats.suspects.tolist() == [[2, 1]]
    assert "set nodata: -9999" in "\n".join(stats.report())
    stats = stats_of_files([path], nodata=-9999)
    assert (stats.count.tolist(), stats.mean.tolist()) == ([4], [1.0])
    assert "-9999" not in "\n".join(stats.report())


def test_bytes_with_holes_are_still_bytes(tmp_path):
    write(tmp_path / "a.png", np.array([[0, 2, 4]], np.uint8))
    stats = stats_of_files([tmp_path / "a.png"], nodata=0)
    assert stats.is_byte
    assert stats.mean.tolist() == [3.0]
    assert stats.percentiles((0, 100)).tolist() == [[2.0], [4.0]]


def test_bad_files_are_left_out_and_listed(tmp_path):
    good = write(tmp_path / "b.npy", np.full((1, 4, 4), 2.0))
    (tmp_path / "a.npy").write_bytes(b"")
    stats = stats_of_files([tmp_path / "a.npy", good])
    assert stats.images == 1
    assert stats.bad[0][0].endswith("a.npy")
    assert "1 bad files left out" in "\n".join(stats.report())
    with pytest.raises(DataError, match=r"none of 1 files can be read; the first: .*a\.npy"):
        stats_of_files([tmp_path / "a.npy"])


def test_different_numbers_of_bands_are_refused(tmp_path):
    paths = [write(tmp_path / f"{n}.npy", np.ones((n, 4, 4))) for n in (1, 2)]
    with pytest.raises(DataError, match="put them into different folders"):
        stats_of_files(paths)


def test_written_modalities_are_read_again(tmp_path):
    root = make_folder(tmp_path, {"rgb": ["a", "b"]}, bands={"rgb": 3})
    for id_ in "ab":
        write(root / "s1" / f"{id_}.npy", RNG.normal(-12, 3, (2, 8, 8)))
    statistics = compute_stats(root, workers=2)
    written = write_modalities(root / "modalities.yaml", statistics)
    assert load_modalities(root / "modalities.yaml") == written
    assert "# percentile 98: " in (root / "modalities.yaml").read_text()
    assert (written["rgb"].scaling, written["s1"].scaling) == ("range", "standard")
    np.testing.assert_allclose(written["s1"].mean, statistics["s1"].mean, rtol=1e-6)
    data = PairedFolder(root)
    assert data.modalities["s1"] == written["s1"].with_(size=(8, 8))
    assert not list(root.glob("*.part"))


def test_known_modalities_keep_all_but_their_statistics(tmp_path):
    make_folder(tmp_path, {"s1": ["a"], "other": ["a"]}, bands={"s1": 2})
    known = load_modalities({"s1": "sentinel1"})
    statistics = compute_stats(tmp_path, known)
    assert list(statistics) == ["s1"]
    written = write_modalities(tmp_path / "m.yaml", statistics, modalities=known)["s1"]
    assert (written.bands, written.cut) == (("VV", "VH"), 2.0)
    np.testing.assert_allclose(written.mean, statistics["s1"].mean, rtol=1e-6)
    assert list(yaml.safe_load((tmp_path / "m.yaml").read_text())) == ["s1"]


def test_of_a_data_set_equals_of_its_samples():
    data = SyntheticScenes(5, size=16)
    statistics = compute_stats(data)
    for name in data.modalities:
        images = np.stack([data[i]["images"][name].numpy() for i in range(5)], 1)
        assert_is(statistics[name], images.reshape(len(images), -1))
        assert statistics[name].names == data.modalities[name].bands


def test_of_a_folder_with_a_bad_sample(tmp_path):
    root = make_folder(tmp_path, {"s1": ["a", "b"], "s2": ["a", "b"]})
    data = PairedFolder(root)
    (root / "s2" / "b.png").write_bytes(b"")
    statistics = compute_stats(data)
    assert statistics["s1"].images == 1
    assert [path.rsplit("/", 1)[1] for path, _ in statistics["s1"].bad] == ["b.png"]


def test_augmentation_by_name():
    names = ("S1RTC", "radar", "DEM", "dsm", "hha", "depth", "S2L1C", "rgb")
    expected = ["sar", "sar", "dem", "dem", "hha", "hha", "optical", "optical"]
    assert [guess_augmentation(name) for name in names] == expected


def test_overwriting_keeps_what_a_person_edited(tmp_path, capsys):
    root = make_folder(tmp_path, {"s1": ["a", "b"], "notes": ["a"]})
    (root / "modalities.yaml").write_text(
        "s1: {bands: [VV], scaling: range, nodata: 0, augmentation: sar}\n"
    )
    main(["stats", str(root), "--overwrite"])
    made = load_modalities(root / "modalities.yaml")["s1"]
    assert (made.bands, made.nodata, made.augmentation) == (("VV",), 0, "sar")
    pixels = np.stack([read_image(root / "s1" / f"{id_}.png").numpy() for id_ in "ab"])
    np.testing.assert_allclose(made.mean, pixels[pixels > 0].mean(), rtol=1e-6)
    out = " ".join(capsys.readouterr().out.split())
    assert "modalities.yaml: s1; only mean and std are replaced" in out
    assert "left out: notes" in out
    make_folder(root, {"s1": ["a", "b"]}, bands={"s1": 3})
    with pytest.raises(SystemExit):
        main(["stats", str(root), "--overwrite"])
    assert "is given 1 bands (VV), its files have 3; correct `bands`" in capsys.readouterr().err


def test_a_constant_band_needs_no_std_where_it_is_scaled_by_its_range(tmp_path):
    write(tmp_path / "s1" / "a.npy", np.full((1, 4, 4), 2.0))
    known = tmp_path / "known.yaml"
    known.write_text("s1: {bands: [VV], scaling: range}\n")
    main(["stats", str(tmp_path), "--modalities", str(known)])
    made = load_modalities(tmp_path / "modalities.yaml")["s1"]
    assert (made.mean, made.std) == ((2.0,), (0.0,))


def folder_of(root, pictures):
    for i, pixels in enumerate(pictures):
        write(root / "x" / f"{i}.npy", pixels.astype(np.float32))
    return root


def spectra(bands, offset=0):
    """Reflectance as of vegetation: the last band of 13 but two is that of cirrus."""
    mean = np.linspace(300, 3000, bands)[:, None, None]
    if bands == 13:
        mean[10] = 15
    return mean * RNG.uniform(0.5, 1.5, (bands, 9, 9)) + offset


DECIBELS = RNG.normal(-12, 3, (2, 9, 9))


@pytest.mark.parametrize(
    ("pictures", "told"),
    [
        ([spectra(12, 1000 * (i < 3)) for i in range(6)], "3 have no band darker than 950"),
        ([spectra(13, 1000 * (i == 9)) for i in range(20)], "1 have no band darker than 950"),
        ([spectra(12) for _ in range(6)], None),
        ([spectra(13, 1000) for _ in range(6)], None),  # told of by their statistics
        ([spectra(4, 1000 * (i < 3)) for i in range(6)], None),
        ([DECIBELS, DECIBELS, 10 ** (DECIBELS / 10)], "2 look like decibels"),
        ([spectra(4), spectra(4) / 1e4], "1 hold numbers up to 0.4"),
        ([RNG.uniform(0.5, 8, (1, 9, 9)), RNG.uniform(500, 8000, (1, 9, 9))], "metres"),
        ([RNG.uniform(0, 10**i, (1, 9, 9)) for i in range(4)], None),
    ],
)
def test_files_of_two_kinds_are_told_of(tmp_path, capsys, pictures, told):
    main(["stats", str(folder_of(tmp_path, pictures))])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert [told in line and "0.npy" in line for line in lines] == ([True] if told else [])


def test_names_that_do_not_pair_and_bands_of_quality_are_told_of(tmp_path, capsys):
    for i in range(3):
        for name, bands in (("a", ["B04", "QA_PIXEL"]), ("b", None)):
            pixels = RNG.integers(0, 3000, (2, 4, 4)).astype(np.uint16)
            write_raster(tmp_path / name / f"{i}_{name}.tif", pixels, names=bands)
    main(["stats", str(tmp_path)])
    out = capsys.readouterr().out
    assert "0 of 6 samples have two modalities (3 of a, 3 of b), without a partner are a/0_a" in out
    assert """--data.pattern '{"a": "{id}_a", "b": "{id}_b"}'""" in out
    assert "a: band QA_PIXEL is no measurement by its name" in out


def test_bands_in_another_order_are_counted_by_name(tmp_path):
    pixels = np.stack([np.full((4, 4), value) for value in (1, 2)]).astype(np.float32)
    first = write_raster(tmp_path / "a.tif", pixels, names=["B2", "B3"])
    second = write_raster(tmp_path / "b.tif", pixels[::-1], names=["B03", "B02"])
    assert stats_of_files([first, second]).mean.tolist() == [1, 2]


def test_no_number_is_cut_in_a_pipe_and_a_preset_is_named_that_fits(tmp_path, capsys):
    for name in ("s1", "s2"):
        (tmp_path / name).mkdir()
        pixels = np.linspace(-123_456, 987_654, 12 * 16, dtype=np.float32).reshape(12, 4, 4)
        np.save(tmp_path / name / "a.npy", pixels)
    main(["stats", str(tmp_path)])
    out = capsys.readouterr().out
    assert "…" not in out and "-1.235e+05" in out and "9.877e+05" in out
    assert "preset 'sentinel2-l2a' fits" in out


def test_the_pattern_that_a_message_proposes_is_taken(tmp_path, capsys):
    root = make_folder(tmp_path, {f"{split}/s1": [f"{split}_a"] for split in ("train", "val")})
    with pytest.raises(SystemExit):
        main(["stats", str(root)])
    (remedy,) = re.findall(r"--data\.pattern '[^']*'", capsys.readouterr().err)
    main(["stats", str(root), *shlex.split(remedy)])
    files = [root / "train/s1/train_a.png", root / "val/s1/val_a.png"]
    pixels = np.stack([read_image(file).numpy() for file in files])
    made = load_modalities(root / "modalities.yaml")
    assert list(made) == ["s1"]
    np.testing.assert_allclose(made["s1"].mean, pixels.mean(), rtol=1e-6)
    main(["stats", str(root), "--overwrite", "--pattern", '{"s1": "val/s1/{id}"}'])
    assert "s1: 1 images" in capsys.readouterr().out


def test_statistics_are_written_also_where_nobody_reads_what_is_printed(tmp_path, monkeypatch):
    root = make_folder(tmp_path, {"s1": ["a", "b"]})

    def closed(*_, **__):
        raise BrokenPipeError

    monkeypatch.setattr("decur.data.command_stats._print", closed)
    with pytest.raises(BrokenPipeError):
        command_stats.main([str(root)])
    assert list(load_modalities(root / "modalities.yaml")) == ["s1"]
