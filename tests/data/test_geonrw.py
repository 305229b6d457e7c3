import json
import pickle

import numpy as np
import pytest
import rasterio
import torch
from make_geonrw import make_geonrw
from make_raster import write_georeferenced
from torch.utils.data import DataLoader

from decur.cli import main
from decur.data import Collate, GeoNRW
from decur.errors import BadSampleError, ConfigError, DataError
from decur.transfer.tasks import make_task

CITIES = ("aachen", "bonn", "herne")


@pytest.fixture
def root(tmp_path):
    return make_geonrw(tmp_path / "nrw", CITIES, scenes=2, side=64)


def raw(file):
    with rasterio.open(file) as source:
        return source.read()


def test_tiles_are_the_quarters_of_the_quarters(root):
    data = GeoNRW(root)
    assert len(data) == 3 * 2 * 16
    assert {name: m.size for name, m in data.modalities.items()} == dict.fromkeys(
        ("rgb", "dem"), (16, 16)
    )
    photo, dem, cover = (
        raw(root / "bonn" / f"281_5656_{kind}") for kind in ("rgb.jp2", "dem.tif", "seg.tif")
    )
    for row, column in ((0, 0), (0, 3), (2, 1), (3, 3)):
        index = data.ids.index(f"bonn_281_5656_{row}_{column}")
        sample = data[index]
        window = (slice(None), slice(16 * row, 16 * row + 16), slice(16 * column, 16 * column + 16))
        np.testing.assert_array_equal(sample["images"]["rgb"], photo[:3][window])
        np.testing.assert_array_equal(sample["images"]["dem"], dem[window])
        classes = cover[window][0].astype(int)  # in the files 0 is the background
        wanted = np.where(classes == 0, 255, classes - 1)
        np.testing.assert_array_equal(sample["target"]["cover"], wanted)
        assert data.groups[index] == "bonn_281_5656"
        assert (sample["images"]["rgb"].dtype, sample["target"]["cover"].dtype) == (
            torch.uint8,
            torch.int64,
        )
    assert len(data.targets["cover"].classes) == 10 and "background" not in str(data.targets)


def test_background_is_a_class_only_where_that_is_asked_for(root):
    """A hand case: a rival of the background in the scores, which the paper's 10 classes lack."""
    data, old = GeoNRW(root), GeoNRW(root, background="class")
    assert old.targets["cover"].classes == ("background", *data.targets["cover"].classes)
    index = next(i for i in range(len(old)) if (old[i]["target"]["cover"] == 0).any())
    batch = Collate(data.modalities, data.targets)([data[index]])["target"]["cover"]
    assert torch.equal(batch[0] == 255, old[index]["target"]["cover"] == 0)
    guess = torch.where(batch == 255, 0, batch)  # right wherever the paper asks
    task = make_task("cover", data.targets["cover"])
    output = torch.nn.functional.one_hot(guess, 10).movedim(-1, 1).float()
    scores = task.metrics(task.keep(output, batch))
    assert scores == {"mIoU": 1.0, "overall_accuracy": 1.0}
    assert "background" not in task.by_class(task.keep(output, batch))


def test_scenes_of_the_true_size_have_tiles_of_250(tmp_path):
    data = GeoNRW(make_geonrw(tmp_path, ["aachen"], side=1000), dem_channels=3)
    assert data.modalities["rgb"].size == (250, 250)
    images = data[7]["images"]
    assert (tuple(images["rgb"].shape), tuple(images["dem"].shape)) == ((3, 250, 250),) * 2
    assert torch.equal(images["dem"][0], images["dem"][2])


def test_official_test_cities(root):
    assert {id_.split("_")[0] for id_ in GeoNRW(root, "test").ids} == {"herne"}
    assert {id_.split("_")[0] for id_ in GeoNRW(root, "train").ids} == {"aachen", "bonn"}
    for file in (root / "herne").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"no scene of split 'test' in what is there \(aachen, bon"):
        GeoNRW(root, "test")


def test_tiles_do_not_share_memory_with_the_scene_that_is_kept(root):
    data = GeoNRW(root)
    before = data[1]["images"]["rgb"].clone()
    data[1]["images"]["rgb"].zero_()
    assert torch.equal(data[1]["images"]["rgb"], before)
    assert data[1]["images"]["rgb"].untyped_storage().nbytes() == before.nbytes


def test_incomplete_scenes(root):
    (root / "aachen" / "280_5656_dem.tif").unlink()
    (root / "aachen" / "281_5656_seg.tif").unlink()
    (root / "bonn" / "280_5656_rgb.jp2").unlink()
    data = GeoNRW(root, "train")
    assert data.present["dem"].reshape(4, 16)[:, 0].tolist() == [False, True, True, True]
    assert data.present["rgb"].reshape(4, 16)[:, 0].tolist() == [True, True, False, True]
    assert data[0]["images"].keys() == {"rgb"}
    assert data[16]["target"] == {}
    batch = Collate(data.modalities, data.targets)([data[0], data[16], data[32]])
    assert batch["present"]["dem"].tolist() == [False, True, True]
    assert (batch["target"]["cover"][1] == 255).all()


def test_bad_files_are_named(root):
    data = GeoNRW(root, "train")
    folder = root / "aachen"
    seg = raw(folder / "280_5656_seg.tif")
    write_georeferenced(folder / "280_5656_seg.tif", np.full_like(seg, 11), 1000)
    with pytest.raises(BadSampleError, match=r"280_5656_seg\.tif: has class 11, known are 0 to 10"):
        data[0]
    write_georeferenced(folder / "280_5656_seg.tif", seg[:, :48], 1000)
    with pytest.raises(BadSampleError, match=r"seg\.tif: has 48 x 64 pixels, other scenes 64 x 64"):
        data[0]
    cut = (folder / "281_5656_rgb.jp2").read_bytes()[:200]
    (folder / "281_5656_rgb.jp2").write_bytes(cut)
    with pytest.raises(BadSampleError, match=r"281_5656_rgb\.jp2"):
        data[16]


def test_photographs_converted_to_geotiff(root):
    plain = GeoNRW(root, "test")[5]
    file = root / "herne" / "280_5656_rgb.jp2"
    write_georeferenced(file.with_suffix(".tif"), raw(file), 1000)
    with pytest.raises(DataError, match=r"280_5656_rgb\.\w+ and .*280_5656_rgb\.\w+ are the same"):
        GeoNRW(root, "test")
    file.unlink()
    assert torch.equal(GeoNRW(root, "test")[5]["images"]["rgb"], plain["images"]["rgb"])


def test_wrong_layouts_and_options(root, tmp_path):
    with pytest.raises(DataError, match=r"no such folder; expected ROOT/<city>.*ieee-dataport"):
        GeoNRW(tmp_path / "none")
    with pytest.raises(DataError, match=r"no scene in what is there \(nrw\); expected"):
        GeoNRW(tmp_path)  # one folder too high
    for wrong, said in (
        ({"split": "val"}, r"split is 'val'; choose from train, test"),
        ({"dem_channels": 2}, r"dem_channels is 2; choose from 1, 3"),
        ({"grid": 0}, "at least 1"),
        ({"grid": 3}, r"does not divide scenes of 64 x 64 pixels"),
    ):
        with pytest.raises(ConfigError, match=said):
            GeoNRW(root, **wrong)


def test_in_worker_processes(root):
    data = GeoNRW(root, "train")
    first = data[0]
    assert len(pickle.dumps(data)) < len(pickle.dumps(first)) * 100
    assert pickle.loads(pickle.dumps(data))._last is None
    loader = DataLoader(
        data,
        batch_size=8,
        collate_fn=Collate(data.modalities, data.targets),
        num_workers=1,
        multiprocessing_context="forkserver",
    )
    batches = list(loader)
    assert [id_ for batch in batches for id_ in batch["ids"]] == data.ids
    assert torch.equal(batches[0]["images"]["dem"][0], first["images"]["dem"])


@pytest.mark.slow  # the same way as with BigEarthNet
def test_pretrain_and_transfer(root, tmp_path):
    data = [f"--data={GeoNRW.__name__}", f"--data.root={root}", "--data.grid=2"]
    encoder = ["--encoder.name=test_resnet", "--loader.workers=0"]
    main(
        [
            *("pretrain", *data, *encoder, "--data.split=train", f"--run={tmp_path / 'pre'}"),
            *("--projector.width=16", "--loader.batch_size=8", "--views.size=32"),
            *("--trainer.max_epochs=1", "--trainer.accelerator=cpu"),
        ]
    )
    main(
        [
            *("transfer", *data, *encoder, "--train_split=train", "--test_split=test"),
            *(f"--encoders={tmp_path / 'pre'}", "--bootstrap=0", "--device=cpu"),
            *("--fit.epochs=1", "--loader.batch_size=8", f"--run={tmp_path / 'transfer'}"),
        ]
    )
    results = json.loads((tmp_path / "transfer" / "results.json").read_text())
    assert (results["train"], results["test"], results["kind"]) == (16, 8, "mask")
    assert results["modalities"] == ["rgb", "dem"]
