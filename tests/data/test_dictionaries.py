import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from decur.data import LoaderSettings, Target, from_dataset
from decur.embed import embed
from decur.encoders import build_encoder, save_encoder
from decur.encoders.settings import EncoderSettings
from decur.errors import BadSampleError, ConfigError, DataError
from decur.pretrain import PairedData
from decur.transfer import transfer


class Stacked(Dataset):
    """As torchgeo's data sets: a dictionary, all bands in one tensor, a label."""

    classes = ("dry", "wet")

    def __init__(self, label):
        self.label = label

    def __len__(self):
        return 12

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        sample = {"image": torch.from_numpy(rng.normal(5, 2, (5, 16, 16)).astype(np.float32))}
        sample["rgb"] = None if index == 3 else rng.integers(0, 255, (3, 8, 8), np.uint8)
        return {**sample, "label": self.label(index)}


SENSORS = {"s1": ("image", [0, 1]), "s2": ("image", range(2, 5)), "rgb": "rgb"}


@pytest.mark.parametrize(
    ("label", "target"),
    [
        (lambda i: torch.tensor(i % 2), Target("class", ("dry", "wet"))),
        (lambda i: torch.tensor([1, i % 2]), Target("multilabel", ("dry", "wet"))),
        (lambda i: torch.tensor(i / 2), Target("scalar")),
        (lambda i: np.full((16, 16), i % 2), Target("mask", ("dry", "wet"))),
    ],
)
def test_dictionaries_are_pairs(label, target):
    source = Stacked(label)
    data = from_dataset(source, SENSORS, target="label")
    assert data.targets == {"label": target} and data.ids[:2] == ["00", "01"]
    sample = data[1]
    raw = source[1]
    assert torch.equal(sample["images"]["s2"], raw["image"][2:])
    np.testing.assert_array_equal(sample["images"]["rgb"], raw["rgb"])
    np.testing.assert_array_equal(sample["target"]["label"], np.asarray(raw["label"]))
    assert set(data[3]["images"]) == {"s1", "s2"}
    assert data.modalities["rgb"].scaling == "range"
    pixels = np.stack([source[i]["image"] for i in range(12)])
    np.testing.assert_allclose(data.modalities["s1"].mean, pixels[:, :2].mean((0, 2, 3)), rtol=1e-5)


def test_dictionaries_are_embedded(tmp_path):
    data = from_dataset(Stacked(int), {"s1": SENSORS["s1"]})
    encoder = build_encoder("test_resnet", data.modalities["s1"])
    save_encoder(encoder, tmp_path / "s1.safetensors")
    loader = LoaderSettings(4, workers=0)
    out = str(tmp_path / "out")
    found = embed(data, str(tmp_path / "s1.safetensors"), out=out, loader=loader)
    assert found.rows == {"s1": 12} and not found.bad
    pairs = PairedData(from_dataset(Stacked(int), SENSORS), loader)
    assert next(iter(pairs.train_dataloader()))["images"]["s2"].shape == (4, 3, 16, 16)
    again = pickle.loads(pickle.dumps(data))
    assert torch.equal(again[0]["images"]["s1"], data[0]["images"]["s1"])


class Patches(Dataset):
    """As torchgeo's classification sets: classes by name, all bands in one tensor, a transform."""

    classes = ("dry", "wet")

    def __init__(self, transforms=None):
        self.transforms = transforms

    def __len__(self):
        return 40

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        image = torch.randn(5, 16, 16, generator=generator) + 4 * (index % 2)
        sample = {"image": image, "label": torch.tensor(index % 2)}
        return self.transforms(sample) if self.transforms else sample


def test_dictionaries_are_transferred(tmp_path):
    data = from_dataset(
        Patches(), {"s1": ("image", [0, 1]), "s2": ("image", [2, 3, 4])}, target="label"
    )
    done = transfer(
        data,
        probe="auto",
        encoder=EncoderSettings(name="test_resnet"),
        loader=LoaderSettings(8, workers=0),
        run=str(tmp_path),
        device="cpu",
    )
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["modalities"], results["test"]) == (["s1", "s2"], 8)
    accuracy = results["metrics"]["accuracy"]
    assert accuracy["value"] > accuracy["floor"] and set(results["by_class"]) == {"dry", "wet"}
    assert done.results["model"] == "linear head (logistic)"


class Boxes(Dataset):
    """As torchgeo's GeoDataset, whose samples are had by boxes."""

    def __len__(self):
        return 3

    def __getitem__(self, box):
        return {"image": torch.zeros(2, 4, 4), "bounds": tuple(box)}


def test_wrong_keys_are_named():
    with pytest.raises(ConfigError, match=r"sample 0 cannot be had by its number .*GeoDataset"):
        from_dataset(Boxes(), {"a": "image"})
    source = Stacked(lambda i: torch.tensor(i % 2))
    for options, match in (
        ({"images": {"a": "nothing"}}, "no sample has 'nothing'; there is image, rgb, label"),
        ({"images": {"a": "image"}, "target": "cover"}, "samples have no 'cover'"),
        (
            {"images": {"a": "image"}, "modalities": {"a": "rgb"}},
            "'a' has 3 bands, 'image' holds 5",
        ),
        ({"images": {"a": "image"}, "modalities": {"b": "rgb"}}, "no 'b' in images"),
        ({"images": {"a": "image"}, "ids": ["x"]}, "ids: 1 for 12 samples"),
        ({"images": {}}, "needs a sensor"),
        ({"images": {"a": ("image", [0, 5])}}, "has 5 bands, counted from 0, and no band 5"),
    ):
        with pytest.raises(ConfigError, match=match):
            from_dataset(source, **options)


class Made(Dataset):
    """Samples made by a function of their number."""

    def __init__(self, make):
        self.make = make

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return self.make(index)


def test_bands_come_last_where_their_number_says_so():
    pixels = np.random.default_rng(0).integers(0, 255, (8, 9, 3), np.uint8)
    expected = np.moveaxis(pixels, -1, 0)
    data = from_dataset(Made(lambda i: {"a": pixels}), {"a": "a"}, modalities={"a": "rgb"})
    np.testing.assert_array_equal(data[0]["images"]["a"], expected)
    pictures = from_dataset(Made(lambda i: {"a": Image.fromarray(pixels)}), {"a": "a"})
    np.testing.assert_array_equal(pictures[0]["images"]["a"], expected)
    with pytest.raises(BadSampleError, match="looks like"):
        from_dataset(Made(lambda i: {"a": pixels[:, :8]}), {"a": "a"})
    both = Made(lambda i: {"a": pixels[:3]})
    with pytest.raises(BadSampleError, match="3 bands come first or last"):
        from_dataset(both, {"a": "a"}, modalities={"a": "rgb"})


def test_a_sample_that_cannot_be_read_is_a_bad_one():
    def make(index):
        if index in (0, 3):
            raise OSError("broken")
        return {"a": np.full((1, 4, 4), index / 2)}

    data = from_dataset(Made(make), {"a": "a"})
    assert data.modalities["a"].mean == (1.5,)  # of 0.5, 1, 2 and 2.5
    with pytest.raises(BadSampleError, match="broken"):
        data[3]

    def broken(index):
        raise OSError("disk")

    with pytest.raises(DataError, match=r"no sample can be read; the first: .* 0: OSError: disk"):
        from_dataset(Made(broken), {"a": "a"})


def test_labels_may_be_names_and_are_held_against_the_classes():
    data = from_dataset(
        Made(lambda i: {"a": np.ones((1, 4, 4)), "y": "xyx?"[min(i, 3)]}),
        {"a": "a"},
        modalities={"a": "dem"},
        target="y",
        classes=["x", "y"],
    )
    assert [int(data[i]["target"]["y"]) for i in range(3)] == [0, 1, 0]
    with pytest.raises(DataError, match=r"'\?' is none of x, y"):
        data[3]
    numbers = Made(lambda i: {"a": np.ones((1, 4, 4)), "y": i - 1})
    data = from_dataset(numbers, {"a": "a"}, modalities={"a": "dem"}, target="y", classes=2)
    assert [int(data[i]["target"]["y"]) for i in range(3)] == [-1, 0, 1]
    with pytest.raises(DataError, match="a class is 2, classes are 0 to 1 and -1 is unknown"):
        data[3]
