"""`decur predict`: maps of scenes, against the model called by hand and against rasterio."""

import signal
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
import torch
from make_raster import NORTH, WEST, write_placed
from PIL import Image
from predict_rasters import SENSORS, noise
from torch.nn.functional import conv2d, pad

from decur.cli import main
from decur.data import LoaderSettings
from decur.data.grid import Grid
from decur.errors import ConfigError, WriteError
from decur.predict import PredictSettings, model, predict
from decur.predict import scene as scene_module
from decur.predict.map_files import name_files
from decur.predict.raster_files import MapLayout, write_optimised, write_tile
from decur.transfer.heads import load_model


def quick(out, **options):
    return {
        "out": str(out),
        "loader": LoaderSettings(batch_size=8, workers=0),
        "tile": 64,
        **options,
    }


def file_of(word):
    return word.partition("=")[2]


def pixels_of(path):
    with rasterio.open(path) as file:
        return file.read()


def test_the_map_has_the_grid_of_the_first_sensor_classes_and_colours(make_model, scene, tmp_path):
    out = tmp_path / "map.tif"
    arguments = ["--loader.workers=0", "--probabilities=true", f"--out={out}"]
    main(["predict", str(make_model()), "--scene", *scene, *arguments])
    with rasterio.open(out) as found, rasterio.open(file_of(scene[0])) as own:
        assert (found.crs, found.transform, found.shape) == (own.crs, own.transform, own.shape)
        assert found.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert found.nodata == 255
        assert len(set(list(found.colormap(1).values())[:3])) == 3
        classes = found.read(1)
        assert set(np.unique(classes)) <= {0, 1, 2}
    assert "<Category>wood</Category>" in (tmp_path / "map.tif.aux.xml").read_text()
    with rasterio.open(tmp_path / "map-probabilities.tif") as file:
        assert file.descriptions == ("dry", "wet", "wood")
        probabilities = file.read()
    np.testing.assert_allclose(probabilities.sum(axis=0), 1, atol=1e-5)
    assert np.array_equal(probabilities.argmax(axis=0), classes)
    assert not list(tmp_path.glob("*unfinished*"))


def test_a_scene_of_one_window_is_what_the_model_says_of_it(make_model, scene, tmp_path):
    folder = make_model()
    found = predict(folder, scene, **quick(tmp_path / "map.tif", window=256, probabilities=True))
    network, _ = load_model(folder / "model.safetensors")
    images = {}
    for word in scene:
        name, _, file = word.partition("=")
        whole = np.full((SENSORS[name].channels, 128, 160), np.nan, np.float32)
        whole[:, :100, :130] = pixels_of(file)  # cut to whole steps of 32 pixels
        images[name] = SENSORS[name].scale(torch.from_numpy(whole)[None])
    with torch.no_grad():
        expected = network(images, None, (128, 160)).softmax(dim=1)[0, :, :100, :130]
    np.testing.assert_allclose(pixels_of(found.probabilities), expected, atol=1e-5)


@pytest.mark.usefixtures("drawing")
def test_a_picture_lies_beside_the_map(make_model, scene, tmp_path):
    found = predict(make_model(), scene, **quick(tmp_path / "map.tif", window=128, overlap=0))
    assert found.picture == tmp_path / "map.png"
    with Image.open(found.picture) as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20)}
    with rasterio.open(found.path) as file:
        shown = {file.colormap(1)[value][:3] for value in np.unique(file.read(1)).tolist()}
    assert shown <= colours


class Toy(model.Predictor):
    """A convolution of 9 x 9 pixels; it sees nothing beyond a window, as any network."""

    kernel = torch.from_numpy(np.random.default_rng(3).normal(size=(1, 1, 9, 9))).float()
    bands, reference, digest = ("sum",), "s1", "toy"

    def __init__(self):
        self.encoders = {"s1": SimpleNamespace(strides=[1])}
        self.modalities, self.pictures = {"s1": SENSORS["s1"]}, {"s1": (32, 32)}

    def to(self, device):
        pass

    def refuse_window(self, window):
        pass

    def predict(self, images, present):
        return conv2d(images["s1"] / 1000, self.kernel, padding=4)


@pytest.mark.parametrize(
    ("window", "overlap", "shifts"),
    [(None, 0.5, 1), (48, 0.4, 1), (40, 0.75, 1), (48, 0.4, 3), (64, None, 5)],
)
def test_windows_blend_into_what_one_piece_gives(
    window, overlap, shifts, scene, tmp_path, monkeypatch
):
    toy = Toy()
    toy.encoders["s1"].strides = [4, 8, 16]
    monkeypatch.setattr(scene_module, "open_model", lambda *_, **__: toy)
    options = quick(tmp_path / "map.tif", window=window, overlap=overlap, shifts=shifts)
    found = pixels_of(predict("toy", scene[:1], **options).path)
    whole = torch.from_numpy(pixels_of(file_of(scene[0])))[None]
    expected = Toy().predict({"s1": whole}, {})[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


class MeanFilter(Toy):
    """Class 1 where the mean of 9 x 9 pixels is above 500."""

    says, dense = "class", True
    bands, classes, digest = ("low", "high"), ("low", "high"), "mean"

    def predict(self, images, present):
        x = pad(images["s1"], (4, 4, 4, 4), mode="replicate")
        mean = conv2d(x, torch.full((1, 1, 9, 9), 1 / 81))
        high = (mean / 100 - 5).sigmoid()
        return torch.cat([1 - high, high], dim=1)


def test_a_known_scene_is_mapped_with_the_iou_that_its_tiles_have(tmp_path, monkeypatch):
    y, x = np.mgrid[:192, :192]
    truth = np.sin(x / 25) * np.cos(y / 19) > 0
    pixels = 300 + 400 * truth + np.random.default_rng(0).normal(0, 300, truth.shape)
    file = write_placed(tmp_path / "s1.tif", pixels[None].astype(np.float32))

    def iou(mask):
        return (mask & truth).sum() / (mask | truth).sum()

    tiles = np.zeros_like(truth)
    for row in range(0, 192, 32):
        for column in range(0, 192, 32):
            at = (slice(row, row + 32), slice(column, column + 32))
            raw = torch.from_numpy(pixels[at].astype(np.float32))[None, None]
            tiles[at] = MeanFilter().predict({"s1": raw}, {})[0].argmax(dim=0).numpy() == 1
    monkeypatch.setattr(scene_module, "open_model", lambda *_, **__: MeanFilter())
    found = pixels_of(predict("toy", {"s1": file}, **quick(tmp_path / "map.tif")).path)[0] == 1
    assert iou(found) >= iou(tiles) > 0.8
    assert iou(found) == pytest.approx(iou(tiles), abs=0.03)


def test_bounds_and_parts_are_cut_from_the_whole_map(make_model, scene, tmp_path):
    folder = make_model()
    whole = pixels_of(predict(folder, scene, **quick(tmp_path / "map.tif")).path)
    bounds = (WEST + 301, NORTH - 900, WEST + 1000, NORTH - 200)
    cut = predict(folder, scene, **quick(tmp_path / "cut.tif", bounds=bounds))
    assert np.array_equal(pixels_of(cut.path), whole[:, 20:90, 30:100])
    with rasterio.open(cut.path) as file:
        assert tuple(file.bounds) == (WEST + 300, NORTH - 900, WEST + 1000, NORTH - 200)


def test_a_killed_map_goes_on_to_the_same_bytes(make_model, scene, tmp_path, monkeypatch):
    folder = make_model()
    once = predict(folder, scene, **quick(tmp_path / "once.tif", probabilities=True))
    made, write = [], scene_module.write_tile

    def killed(path, *rest):
        if len(made) == 5:  # the probabilities of the third tile are there, its classes are not
            (path.parent / ".map-000009.tif.1.tmp").touch()
            raise KeyboardInterrupt
        made.append(path)
        write(path, *rest)

    options = quick(tmp_path / "twice.tif", probabilities=True)
    monkeypatch.setattr(scene_module, "write_tile", killed)
    with pytest.raises(KeyboardInterrupt):
        predict(folder, scene, **options)
    assert not (tmp_path / "twice.tif").exists()
    made.clear()
    monkeypatch.setattr(scene_module, "write_tile", lambda p, *r: (made.append(p), write(p, *r)))
    twice = predict(folder, scene, **options)
    assert len(made) == 2 * (2 * 3 - 2)
    for name in ("path", "probabilities"):
        assert getattr(once, name).read_bytes() == getattr(twice, name).read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(("twice", ".twice"))) == [
        "twice-probabilities.tif",
        "twice.tif",
        "twice.tif.aux.xml",
    ]


def test_where_nothing_was_seen_there_is_nodata(make_model, scene, tmp_path):
    pixels = pixels_of(file_of(scene[0]))
    pixels[:, :, 90:] = np.nan
    write_placed(tmp_path / "in" / "s1.tif", pixels)
    folder, own = make_model(), {"window": 32, "overlap": 0.5, "shifts": 1}
    alone = pixels_of(predict(folder, scene[:1], **quick(tmp_path / "one.tif", **own)).path)
    assert (alone[:, :, 90:] == 255).all() and (alone[:, :, :90] != 255).all()
    both = pixels_of(predict(folder, scene, **quick(tmp_path / "map.tif", **own)).path)
    assert (both != 255).all()
    only = pixels_of(predict(folder, scene[1:], **quick(tmp_path / "two.tif", **own)).path)
    # far from where s1 is there, it is as if the scene had none
    assert np.array_equal(both[:, :, 100:], only[:, :, 100:])


def test_a_window_has_one_class_or_number(make_model, scene, tmp_path):
    folder = make_model("late_fusion", "scalar", ())
    found = predict(folder, scene, **quick(tmp_path / "map.tif"))
    with rasterio.open(found.path) as file:
        assert file.dtypes == ("float32",) and np.isnan(file.nodata)
        assert file.read(1).shape == (100, 130)
    folder = make_model("late_fusion", "multilabel", ("a", "b"))
    found = predict(folder, scene, **quick(tmp_path / "flags.tif"))
    with rasterio.open(found.path) as file:
        assert file.descriptions == ("a", "b") and file.dtypes == ("uint8", "uint8")


# -- what a person can mend ------------------------------------------------------------------------


def refused(capsys, tmp_path, *arguments):
    """The one line that a command ends in, with nothing under the final name."""
    out = tmp_path / "refused" / "map.tif"
    with pytest.raises(SystemExit) as ended:
        model, *rest = map(str, arguments)
        main(["predict", model, "--loader.workers=0", *rest, f"--out={out}"])
    assert ended.value.code == 2
    assert not out.parent.exists() or not [p for p in out.parent.glob("map*") if p.is_file()]
    (line,) = [text for text in capsys.readouterr().err.splitlines() if "rror" in text]
    return line


def test_bad_scenes_are_refused_in_a_line(make_model, scene, tmp_path, capsys):
    folder, far = make_model(), tmp_path / "in" / "far.tif"
    write_placed(far, noise(2, 64, 64), west=WEST + 1e5)
    line = refused(capsys, tmp_path, folder, "--scene", scene[0], f"s2={far}")
    assert "do not overlap" in line and "far.tif" in line
    write_placed(far, noise(2, 64, 64), crs=None)
    assert "has no CRS" in refused(capsys, tmp_path, folder, "--scene", scene[0], f"s2={far}")
    turned = rasterio.Affine(8, 6, WEST, 6, -8, NORTH)
    write_placed(far, noise(2, 64, 64), transform=turned)
    assert "gdalwarp" in refused(capsys, tmp_path, folder, "--scene", scene[0], f"s2={far}")
    line = refused(capsys, tmp_path, folder, "--scene", *scene, "--resolution=0.0005")
    assert "TB" in line and "resolution" in line
    (tmp_path / "keys.yaml").write_text("scene: {s1: a.tif}")
    line = refused(capsys, tmp_path, folder, "--config", tmp_path / "keys.yaml")
    assert "scene: is a list, such as [A, B], and has no keys" in line
    line = refused(capsys, tmp_path, folder, "--scene", *scene, "--resolution=1e-300")
    assert "1.3e+303 pixels" in line
    line = refused(capsys, tmp_path, folder, "--scene", *scene, "--resolution=5000")
    assert "a pixel of 5000 is larger than" in line and "1300 x 1000" in line
    write_placed(far, noise(2, 64, 64), 9.0, 45.0, 1e-4, crs="EPSG:4326")
    line = refused(capsys, tmp_path, folder, "--scene", f"s2={far}", "--resolution=10")
    assert "10 m are about 8.98e-05 degrees" in line
    line = refused(capsys, tmp_path, folder, "--scene", "s3=x.tif")
    assert "s3" in line and "s1, s2" in line
    line = refused(capsys, tmp_path, folder, "--scene", f"s1={file_of(scene[1])}")
    assert "has 2 bands, and the model was trained on 1 of s1 (VV)" in line
    line = refused(capsys, tmp_path, folder, "--scene", "s1=nowhere.tif")
    assert "nowhere.tif: no such file" in line
    line = refused(capsys, tmp_path, tmp_path / "none", "--scene", *scene)
    assert "none" in line
    line = refused(capsys, tmp_path, folder, "--scene", *scene, "--bounds", "0", "0", "9", "9")
    assert "bounds" in line
    line = refused(capsys, tmp_path, folder, "--scene", *scene, "--part=2/2")
    assert "at most 1" in line


@pytest.mark.parametrize("workers", [0, 1])
def test_a_block_that_cannot_be_read_is_told_in_a_line(
    make_model, scene, tmp_path, capsys, workers
):
    file = tmp_path / "in" / "s1.tif"
    file.write_bytes(file.read_bytes()[:20_000])  # its header is whole
    line = refused(capsys, tmp_path, make_model(), "--scene", *scene, f"--loader.workers={workers}")
    assert "s1.tif: cannot be read (" in line and "See previous" not in line


def test_a_full_disk_leaves_nothing_under_the_final_name(
    make_model, scene, tmp_path, capsys, monkeypatch
):
    def full(source, whole, *rest):
        whole.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(whole))

    monkeypatch.setattr(scene_module, "write_optimised", full)
    line = refused(capsys, tmp_path, make_model(), "--scene", *scene)
    assert "No space left" in line
    monkeypatch.undo()
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=100))
    line = refused(capsys, tmp_path, make_model(), "--scene", *scene)
    assert "too few" in line and "make room" in line


@pytest.mark.skipif(sys.platform == "win32", reason="has no limits of files")
def test_a_map_that_does_not_fit_is_told_once(tmp_path, capfd):
    import resource

    tile = tmp_path / "tile.tif"
    pixels = np.random.default_rng(0).integers(0, 200, (1, 512, 512), dtype=np.uint8)
    layout = MapLayout("uint8", 255, ("class",))
    write_tile(tile, pixels, Grid("EPSG:32632", 0.0, 0.0, (10.0, 10.0), 512, 512), layout)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python has it
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(WriteError, match=r"whole\.tif: cannot be written"):
            write_optimised(tile, tmp_path / "whole.tif", layout)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert capfd.readouterr().err == ""  # nothing of libtiff's own


def test_no_raster_of_the_scene_is_overwritten(make_model, scene, tmp_path):
    for number, (out, own) in enumerate(
        (("m.tif", "m-probabilities.tif"), ("n.tif", "n.tif"), ("o.tif", "o-1of2.tif"))
    ):
        with pytest.raises(ConfigError, match=f"would write .*{own}, a raster of the scene"):
            name_files(
                PredictSettings(
                    out=str(tmp_path / out),
                    part="1/2" if number == 2 else None,
                    probabilities=number == 0,
                ),
                [tmp_path / own],
            )


def test_what_is_no_map_is_not_replaced(make_model, scene, tmp_path, capsys, monkeypatch):
    folder, out = make_model(), tmp_path / "map.tif"
    own = write_placed(out, noise(1, 9, 9)).read_bytes()
    with pytest.raises(ConfigError, match=r"map\.tif: is there and is no map of decur"):
        predict(folder, scene, **quick(out))
    assert out.read_bytes() == own
    out.rename(tmp_path / "map-probabilities.tif")
    with pytest.raises(ConfigError, match=r"map-probabilities\.tif: is there and is no map"):
        predict(folder, scene, **quick(out, probabilities=True))
    with monkeypatch.context() as patch:
        patch.setattr("decur.plotting.available", lambda: True)
        Image.new("L", (9, 9)).save(tmp_path / "map.png")
        with pytest.raises(ConfigError, match=r"map\.png: is there and is no map of decur"):
            predict(folder, scene, **quick(out))
    for words, told in ((scene, False), (scene, False), (scene[:1], True)):
        predict(folder, words, **quick(out, window=128, overlap=0))
        assert (f"replacing {out}" in capsys.readouterr().out) == told


def test_a_sensor_that_measured_nothing_is_told(make_model, scene, tmp_path, caplog):
    write_placed(tmp_path / "in" / "s1.tif", np.full((1, 100, 130), np.nan, np.float32))
    folder = make_model()
    predict(folder, scene, **quick(tmp_path / "map.tif"))
    assert "s1.tif: nothing is measured where the map is" in caplog.text
    assert "all of the map is nodata" not in caplog.text
    found = predict(folder, scene[:1], **quick(tmp_path / "empty.tif"))
    assert "all of the map is nodata" in caplog.text
    assert (pixels_of(found.path) == 255).all()


def test_parts_of_two_scenes_are_not_joined(make_model, tmp_path):
    folder, out = make_model(), tmp_path / "out.tif"
    for seed, part, joins in ((0, "1/2", False), (0, "2/2", True), (1, "1/2", False)):
        raster = write_placed(tmp_path / f"in{seed}" / "a.tif", noise(1, 1100, 40, seed))
        options = {"out": str(out), "loader": LoaderSettings(batch_size=8, workers=0)}
        found = predict(folder, {"s1": raster}, part=part, **options)
        assert (found.joined is not None) == joins
        assert out.with_suffix(".vrt").exists() == joins


def test_a_scene_in_other_units_is_told(make_model, scene, tmp_path, caplog):
    write_placed(tmp_path / "in" / "s1.tif", noise(1, 100, 130) / 1000)
    predict(make_model(), scene, **quick(tmp_path / "map.tif"))
    assert "s1.tif: the statistics do not fit the data, 1 of 1 bands (VV)" in caplog.text
    assert "are expected? give a raster in the units of the training" in caplog.text
    assert "s2.tif: the statistics" not in caplog.text


def test_many_bands_lie_in_small_blocks():
    layout = MapLayout(dtype="float32", nodata=np.nan, bands=tuple(map(str, range(4096))))
    assert layout.block == 128
    assert MapLayout(dtype="uint8", nodata=255, bands=("class",)).block == 512


@pytest.mark.parametrize("damaged", ["{", "[1]", '"identity"', "\xff"])
def test_damaged_unfinished_work_is_that_of_another_map(make_model, scene, tmp_path, damaged):
    about = tmp_path / "map.tif.unfinished" / "about.json"
    about.parent.mkdir()
    about.write_text(damaged, encoding="latin-1")
    folder = make_model(classes=("dry", "gro\x01und", "wood"))  # no XML may hold the second
    predict(folder, scene, **quick(tmp_path / "map.tif"))
    assert "<Category>ground</Category>" in (tmp_path / "map.tif.aux.xml").read_text()


@pytest.mark.parametrize(
    "wrong",
    [{"resolution": 0.0}, {"resolution": float("inf")}, {"bounds": (0, 0, float("inf"), 1)}],
)
def test_numbers_without_end_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        PredictSettings(**wrong)
