"""`decur predict`: parts of a map, maps of features, and data sets."""

import json
import shutil

import numpy as np
import pytest
import rasterio
import torch
from make_raster import NORTH, WEST, write_placed
from PIL import Image
from predict_rasters import SENSORS, noise

from decur.cli import main
from decur.data import LoaderSettings, PairedFolder
from decur.encoders import load_encoder, save_encoder
from decur.errors import ConfigError, DataError
from decur.predict import predict, predict_data
from decur.predict.folder import _fitted, mask_name
from decur.predict.model import open_predictor
from decur.predict.settings import PredictSettings
from decur.predict.sheet import Sheet
from decur.transfer.heads import load_model, save_model

QUICK = LoaderSettings(batch_size=8, workers=0)


def pixels_of(path):
    with rasterio.open(path) as file:
        return file.read()


def test_parts_of_several_machines_join_into_the_whole(make_model, tmp_path):
    folder = make_model(classes=("dry", "wet & more"))
    pixels = noise(1, 1100, 40)
    scene = {"s1": write_placed(tmp_path / "in" / "s1.tif", pixels)}
    whole = predict(folder, scene, out=str(tmp_path / "map.tif"), loader=QUICK)
    for part in ("2/2", "1/2"):
        out = str(tmp_path / "parts" / "map.tif")
        found = predict(folder, scene, out=out, loader=QUICK, part=part, probabilities=True)
        assert (found.joined is not None) == (part == "1/2")
    with rasterio.open(found.joined) as file, rasterio.open(whole.path) as one:
        assert (file.transform, file.crs, file.shape) == (one.transform, one.crs, one.shape)
        assert np.array_equal(file.read(), one.read())
        assert file.colormap(1)[1] == one.colormap(1)[1]
    assert pixels_of(tmp_path / "parts" / "map-probabilities.vrt").shape == (2, 1100, 40)
    with pytest.raises(ConfigError, match="at most 3"):
        predict(folder, scene, out=str(tmp_path / "map.tif"), part="1/4")


def test_features_lie_at_the_stride_of_the_encoder(make_model, scene, tmp_path):
    folder = make_model()
    model, _ = load_model(folder / "model.safetensors")
    for name in model.encoders:
        save_encoder(model.encoder(name), tmp_path / "run" / "encoders" / f"{name}.safetensors")
    encoder = load_encoder(tmp_path / "run" / "encoders" / "s1.safetensors")
    stride = encoder.strides[-1]
    options = {"loader": QUICK, "window": 256, "features": "all"}
    found = predict(tmp_path / "run", scene[:1], out=str(tmp_path / "all.tif"), **options)
    padded = torch.full((1, 1, 128, 160), torch.nan)
    padded[..., :100, :130] = torch.from_numpy(pixels_of(scene[0].partition("=")[2]))
    with torch.no_grad():
        (expected,) = encoder.forward_features(SENSORS["s1"].scale(padded))[-1]
    maps = pixels_of(found.path)
    assert maps.shape == (encoder.channels[-1], -(-100 // stride), -(-130 // stride))
    np.testing.assert_allclose(maps, expected[:, : maps.shape[1], : maps.shape[2]], atol=1e-5)
    with rasterio.open(found.path) as file:
        assert file.res == (10 * stride, 10 * stride)
        assert (file.bounds.left, file.bounds.top) == (WEST, NORTH)
    options["features"] = "pca"
    components = predict(tmp_path / "run", scene, out=str(tmp_path / "pca.tif"), **options)
    assert components.grid.resolution == (10 * stride, 10 * stride)
    found = pixels_of(components.path)
    both = predict(
        tmp_path / "run", scene, out=str(tmp_path / "both.tif"), **{**options, "features": "all"}
    )
    rows = pixels_of(both.path).reshape(-1, found[0].size)
    rows = rows - rows.mean(axis=1, keepdims=True)
    singular = np.linalg.svd(rows, compute_uv=False)[:3]
    lengths = np.linalg.norm(found.reshape(3, -1), axis=1)
    np.testing.assert_allclose(lengths, singular, rtol=1e-3)


def test_encoders_alone_know_no_classes(scene, tmp_path, make_model, capsys):
    model, _ = load_model(make_model() / "model.safetensors")
    save_encoder(model.encoder("s1"), tmp_path / "run" / "encoders" / "s1.safetensors")
    with pytest.raises(ConfigError, match="--features pca"):
        predict(tmp_path / "run", scene[:1])
    for arguments in ((), ("--scene", scene[0], "--data.root", str(tmp_path))):
        with pytest.raises(SystemExit) as ended:
            main(["predict", str(tmp_path / "run"), *arguments])
        assert ended.value.code == 2
        assert "one of them" in capsys.readouterr().err


# -- data sets -------------------------------------------------------------------------------------


@pytest.fixture
def pairs(tmp_path):
    """Twelve pairs of 32 pixels, one of which lacks the second sensor and one is damaged."""
    root = tmp_path / "pairs"
    for seed, (name, modality) in enumerate(SENSORS.items()):
        (root / name).mkdir(parents=True)
        for i in range(12):
            np.save(root / name / f"{i:02}.npy", noise(modality.channels, 32, 32, 20 * seed + i))
    (root / "s2" / "03.npy").unlink()
    (root / "s1" / "05.npy").write_bytes(b"\x93NUMPY")
    return root


@pytest.mark.usefixtures("drawing")
def test_a_data_set_gets_masks_by_id_a_table_and_a_sheet(make_model, pairs, tmp_path):
    import pandas as pd

    folder, out = make_model(), tmp_path / "out"
    main(
        ["predict", str(folder), f"--data.root={pairs}", f"--out={out}", "--loader.workers=0"]
        + ["--loader.max_bad=0.2"]
    )
    table = pd.read_parquet(out / "predictions.parquet").set_index("id")
    assert list(table.columns) == ["share dry", "share wet", "share wood"]
    assert set(table.index) == {f"{i:02}" for i in range(12)} - {"05"}
    assert "05.npy" in (out / "bad_samples.csv").read_text()
    assert (out / "contact_sheet.png").is_file()
    model, _ = load_model(folder / "model.safetensors")
    images = {
        name: sensor.scale(torch.from_numpy(np.load(pairs / name / "07.npy"))[None])
        for name, sensor in SENSORS.items()
    }
    with torch.no_grad():
        expected = model(images, None, (32, 32))[0].argmax(dim=0).numpy()
    mask = Image.open(out / "masks" / "07.png")
    assert mask.mode == "P" and np.array_equal(np.asarray(mask), expected)
    np.testing.assert_allclose(
        table.loc["07"], np.bincount(expected.ravel(), minlength=3) / 1024, atol=1e-9
    )


def test_masks_of_a_known_place_have_it_with_colours_and_names(make_model, tmp_path):
    for name, modality in SENSORS.items():
        write_placed(tmp_path / "pairs" / name / "a.tif", noise(modality.channels, 32, 32))
    data, out = PairedFolder(tmp_path / "pairs"), tmp_path / "out"
    predict_data(make_model(), data, out=str(out), loader=QUICK)
    with rasterio.open(out / "masks" / "a.tif") as mask:
        assert (mask.bounds.left, mask.bounds.top, mask.res) == (WEST, NORTH, (10, 10))
        assert mask.colormap(1)[1] == (119, 170, 221, 255)
        assert json.loads(mask.tags()["CLASSES"])["2"] == "wood"


def test_classes_come_with_their_probabilities(make_model, pairs, tmp_path):
    import pandas as pd

    folder = make_model("late_fusion", "class", ("a", "b"))
    (pairs / "s1" / "05.npy").unlink()
    predict_data(folder, PairedFolder(pairs), out=str(tmp_path / "out"), loader=QUICK)
    table = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    assert len(table) == 12
    np.testing.assert_allclose(table["p a"] + table["p b"], 1, atol=1e-6)
    assert (table["class"] == np.where(table["p a"] >= 0.5, "a", "b")).all()


@pytest.mark.usefixtures("drawing")
@pytest.mark.parametrize(("probe", "says"), [("ridge", "a, score 0.60"), ("logistic", "a 62 %")])
def test_the_sheet_calls_least_squares_no_probability(
    make_model, pairs, tmp_path, monkeypatch, probe, says
):
    """Shares of least squares are 3/4 and 2/4, of which 0.6 is the first's; a softmax has 62 %."""
    predictor = open_predictor(make_model("late_fusion", "class", ("a", "b"), probe=probe))
    drawn = []
    monkeypatch.setattr("decur.plotting.save", lambda figure, path: drawn.append(figure))
    sheet = Sheet(predictor, PairedFolder(pairs), 12)
    sheet.add(7, predictor.answers(torch.tensor([[0.5, 0.0]]))[0].numpy())
    sheet.save(tmp_path / "sheet.png")
    assert drawn[0].axes[0].get_title().splitlines()[1] == says


@pytest.mark.parametrize("seen", [True, False, None])
def test_a_sensor_that_no_training_lacked_is_told_of_a_data_set(make_model, pairs, caplog, seen):
    predictor = open_predictor(make_model("late_fusion", "class", ("a", "b"), absent=seen))
    _fitted(PairedFolder(pairs), predictor)
    shutil.rmtree(pairs / "s2")
    _fitted(PairedFolder(pairs), predictor)
    told = [line for line in caplog.messages if "no sample of the training lacked" in line]
    assert [line.partition(", which")[0] for line in told] == (
        ["the data has no s2 for 1 of 12 samples", "the data has no s2"] if seen is False else []
    )


def test_settings_that_a_data_set_has_no_use_for_are_refused(make_model, pairs):
    folder, data = make_model(), PairedFolder(pairs)
    given = {
        **{"features": "pca", "probabilities": True, "bounds": (0, 0, 1, 1), "resolution": 10},
        **{"part": "1/2", "window": 64, "overlap": 0.3, "shifts": 3, "min_valid": 0.9, "tile": 128},
    }
    for name, value in given.items():
        with pytest.raises(ConfigError, match=f"^{name}: is for a scene, not for a data set"):
            predict_data(folder, data, **{name: value})
    assert given.keys() | {"out", "loader", "device"} == vars(PredictSettings()).keys()


def test_bands_are_found_by_name_and_nodata_is_the_data_s_own(make_model, pairs, tmp_path):
    folder = make_model()
    for file in (pairs / "s1").glob("*.npy"):
        if file.stem != "05":
            np.save(file, np.where(np.arange(32) < 9, -7, np.load(file)).astype(np.float32))
    (pairs / "s1" / "05.npy").unlink()
    one = "{bands: [VV], nodata: -7, scaling: range, value_range: [0, 1000]}"
    two = "{bands: [%s], scaling: range, value_range: [0, 1000]}"
    masks = []
    for order in ("r, g", "g, r"):
        (pairs / "modalities.yaml").write_text(f"s1: {one}\ns2: {two % order}\n")
        found = predict_data(folder, PairedFolder(pairs), out=str(tmp_path / order), loader=QUICK)
        masks.append(np.asarray(Image.open(found.folder / "masks" / "07.png")))
        for file in (pairs / "s2").glob("*.npy"):
            np.save(file, np.load(file)[::-1].copy())
    assert np.array_equal(*masks)
    images = {
        name: sensor.scale(torch.from_numpy(np.load(pairs / name / "07.npy"))[None])
        for name, sensor in SENSORS.items()
    }
    images["s1"][..., :9] = 0.5  # no measurement
    model, _ = load_model(folder / "model.safetensors")
    with torch.no_grad():
        assert np.array_equal(masks[0], model(images, None, (32, 32))[0].argmax(dim=0).numpy())
    (pairs / "modalities.yaml").write_text(f"s1: {one}\ns2: {two % 'g, b'}\n")
    with pytest.raises(DataError, match="s2: the data has the bands g, b"):
        predict_data(folder, PairedFolder(pairs), out=str(tmp_path / "other"), loader=QUICK)


def test_ids_become_names_that_stay_in_the_folder():
    assert mask_name("region/tile 3") == "region/tile 3"
    assert "/" not in mask_name("../../etc") and "/" not in mask_name("/etc")
    assert mask_name("a:b?c") == "a%3Ab%3Fc"
    assert mask_name("é/ü") == "é/ü"
    long = [mask_name("🌍" * 60 + end) for end in "ab"]
    assert long[0] != long[1] and all(len(name.encode()) <= 200 for name in long)


def test_masks_of_an_earlier_table_go_and_the_table_comes_last(
    make_model, pairs, tmp_path, monkeypatch
):
    folder, out = make_model(), tmp_path / "out"
    (pairs / "s1" / "05.npy").unlink()
    options = {"out": str(out), "loader": QUICK}
    predict_data(folder, PairedFolder(pairs), **options)
    (out / "masks" / "own.png").touch()
    for sensor in SENSORS:
        (pairs / sensor / "11.npy").unlink()
    found = predict_data(folder, PairedFolder(pairs), **options)
    assert {path.stem for path in (out / "masks").iterdir()} == {
        *(f"{i:02}" for i in range(11)),
        "own",
    }
    assert found.samples == 11

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("decur.predict.folder.Sheet.save", full)
    with pytest.raises(ConfigError, match="No space left"):
        predict_data(folder, PairedFolder(pairs), out=str(tmp_path / "full"), loader=QUICK)
    assert not (tmp_path / "full" / "predictions.parquet").exists()


@pytest.mark.parametrize("classes", [("id", "b"), ("a", "p a")])
def test_labels_that_would_share_a_column_are_refused(make_model, pairs, tmp_path, classes):
    folder = make_model("late_fusion", "multilabel", classes)
    with pytest.raises(ConfigError, match="two columns"):
        predict_data(folder, PairedFolder(pairs), out=str(tmp_path / "out"), loader=QUICK)


def test_other_names_of_a_scene_s_bands_are_told(make_model, tmp_path, caplog):
    raster = write_placed(tmp_path / "in" / "s2.tif", noise(2, 64, 64))
    with rasterio.open(raster, "r+") as file:
        file.descriptions = ("B8", "B4")
    predict(make_model(), {"s2": raster}, out=str(tmp_path / "map.tif"), loader=QUICK)
    assert caplog.text.count("its bands are named B8, B4 and the model's r, g") == 1


def test_rasters_of_one_ground_and_bounds_beyond_it_are_told(make_model, tmp_path, caplog):
    for seed, date in enumerate(("20230101", "20230601")):
        write_placed(tmp_path / f"{date}.tif", noise(1, 64, 64, seed))
    words = [f"s1={tmp_path}/20230101.tif", f"s1={tmp_path}/20230601.tif"]
    bounds = (WEST - 100, NORTH - 320, WEST + 320, NORTH + 20)
    found = predict(make_model(), words, out=str(tmp_path / "map.tif"), loader=QUICK, bounds=bounds)
    assert "20230601.tif: lies over" in caplog.text
    assert "mapped are 32 x 32 of 34 x 42 pixels" in caplog.text
    assert found.grid.bounds == (WEST, NORTH - 320, WEST + 320, NORTH)
    with pytest.raises(DataError, match=r"gdal_translate .* .*mosaic\.vrt scene\.tif"):
        predict(make_model(), {"s1": tmp_path / "mosaic.vrt"}, out=str(tmp_path / "v.tif"))


def test_a_crs_that_no_map_can_have_is_refused_before_hours_of_work(make_model, tmp_path):
    pole = "+proj=ob_tran +o_proj=longlat +o_lon_p=-162 +o_lat_p=39.25 +lon_0=180"
    crs = f"{pole} +to_meter=0.0174532925199433"
    write_placed(tmp_path / "a.tif", noise(1, 64, 64), 0, 10, 0.1, crs=crs)
    with pytest.raises(ConfigError, match=r"a\.tif: has a CRS that no GeoTIFF holds; warp it"):
        predict(make_model(), {"s1": tmp_path / "a.tif"}, out=str(tmp_path / "map.tif"))


def test_help_lists_what_a_map_needs(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["predict", "--help"])
    assert not ended.value.code
    assert "--scene" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("kind", "../x"),
        ("classes", ["one", "two"]),
        ("classes", [1, None, 2]),
        ("classes", "abc"),
        ("target", None),
        ("size", "32"),
        ("size", -3),
        ("pictures", {"s1": [0, 0]}),
        ("pictures", {"s1": 3}),
        ("pictures", [1]),
    ],
)
def test_a_model_whose_header_does_not_fit_is_refused(make_model, key, value):
    folder = make_model()
    trained, header = load_model(folder / "model.safetensors")
    save_model(trained, folder / "model.safetensors", {**header, key: value})
    with pytest.raises(DataError, match=r"model\.safetensors"):
        open_predictor(folder)
