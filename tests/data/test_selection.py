"""Some of the sensors: the samples that are left, and what is left of each."""

import numpy as np
import pytest
import torch
from make_folder import make_folder

from decur import Modality
from decur.data import PairedDataset, PairedFolder
from decur.data.base import refuse_within_data
from decur.data.chosen_bands import take_bands, with_bands
from decur.data.sample import Collate, Sample, Target
from decur.data.selection import join_columns, select
from decur.errors import BadSampleError, ConfigError
from decur.pretrain.figures import data_options
from decur.transfer.splits import join

# sample: its sensors
HAS = {"p": "ac", "q": "b", "r": "abc", "s": "c", "t": "bc"}


class Places(PairedDataset):
    """Five places, each seen by some of three sensors; picture and label tell place and sensor."""

    def __init__(self):
        self.modalities = {
            name: Modality(name, ("x",), (0.0,), (1.0,), size=(1, 1)) for name in "abc"
        }
        self.ids = list(HAS)
        self.present = {n: np.array([n in sensors for sensors in HAS.values()]) for n in "abc"}
        self.targets = {"place": Target("scalar")}
        self.groups = [f"group {id_}" for id_ in HAS]

    def read(self, index: int) -> Sample:
        id_ = self.ids[index]
        if id_ == "s":
            raise BadSampleError("s.tif", "is damaged")
        images = {n: torch.full((1, 1, 1), 10.0 * index + "abc".index(n)) for n in HAS[id_]}
        return {"id": id_, "images": images, "target": {"place": torch.tensor(float(index))}}


@pytest.fixture
def places():
    return Places()


@pytest.mark.parametrize("wanted", [None, [], ["a", "b", "c"], ("c", "a", "b")])
def test_all_sensors_are_the_data_itself(places, wanted):
    assert select(places, wanted) is places


@pytest.mark.parametrize(
    ("wanted", "ids"), [("a", "pr"), ("b", "qrt"), ("c", "prst"), ("ab", "pqrt"), ("cb", "pqrst")]
)
def test_samples_that_have_none_of_the_sensors_are_left_out(places, wanted, ids):
    chosen = select(places, list(wanted))
    assert chosen.ids == list(ids) and len(chosen) == len(ids)
    assert chosen.groups == [f"group {id_}" for id_ in ids]
    assert chosen.targets == places.targets
    assert list(chosen.modalities) == sorted(wanted)  # in the order of the data
    assert {name: list(has) for name, has in chosen.present.items()} == {
        name: [name in HAS[id_] for id_ in ids] for name in wanted
    }


def test_a_sample_keeps_its_label_and_the_pictures_that_are_wanted(places):
    chosen = select(places, ["b", "a"])
    samples = [chosen[i] for i in range(len(chosen))]
    assert [(s["id"], s["target"]["place"].item()) for s in samples] == [
        *(("p", 0.0), ("q", 1.0), ("r", 2.0), ("t", 4.0))
    ]
    assert [{name: x.item() for name, x in s["images"].items()} for s in samples] == [
        *({"a": 0.0}, {"b": 11.0}, {"a": 20.0, "b": 21.0}, {"b": 41.0})
    ]
    batch = Collate(chosen.modalities, chosen.targets)(samples)
    for name in "ab":
        assert batch["present"][name].tolist() == chosen.present[name].tolist()
    assert set(places[2]["images"]) == set("abc")  # the data set is as it was


def test_data_without_groups_has_none(places):
    places.groups = None
    assert select(places, ["a"]).groups is None


def test_a_damaged_file_is_named(places):
    with pytest.raises(BadSampleError, match=r"s\.tif: is damaged"):
        select(places, ["c"])[2]


def test_an_unknown_sensor_is_refused(places):
    with pytest.raises(ConfigError, match=r"^modalities: the data has no 'd'; .* a, b, c$"):
        select(places, ["a", "d"])


def test_the_order_is_the_whole_data_sets_without_those_left_out(places):
    places.order = lambda rng: np.array([4, 0, 3, 1, 2])
    some = select(places, ["b"])  # q, r, t
    assert [some.ids[i] for i in some.order(np.random.default_rng(0))] == ["t", "q", "r"]


def test_what_is_not_wanted_may_be_missing(tmp_path):
    """Training on pictures of one sensor does not open the other's, whatever wraps the data."""
    data = PairedFolder(make_folder(tmp_path, {"a": "xyz", "b": "xyz"}))
    wrapped = [data, join(data, data), select(data, ["a", "b"]), select(join(data, data), ["a"])]
    for file in (tmp_path / "b").iterdir():
        file.unlink()
    for whole in wrapped:
        found = whole.only(["a"])
        assert set(found[1]["images"]) == {"a"} and found.ids == whole.ids
    with pytest.raises(BadSampleError):
        data[1]  # itself it wants all


def test_a_data_set_made_of_another_lies_where_that_lies(tmp_path):
    """Results are not written among the pictures, and a map knows where they were taken."""
    data = PairedFolder(make_folder(tmp_path, {"a": "xyz", "b": "xz"}))
    data.place = lambda index: f"where {data.ids[index]} is"
    one_hot = Target("class", ("0", "1"))
    data.targets = {"is_wet": one_hot, "is_dry": one_hot}
    for made in (select(data, ["b"]), join_columns(data, "is_*")):
        assert made.files(1) == data.only(made.modalities).files(data.ids.index(made.ids[1]))
        assert made.place(1) == f"where {made.ids[1]} is"
        with pytest.raises(ConfigError, match="lies within the data"):
            refuse_within_data(tmp_path / "embeddings", made)
        assert data_options(made) == data_options(data)


def test_bands_of_a_model_are_taken_by_name(tmp_path):
    """The pictures of a folder without the others, in another order, have the same numbers."""
    pixels = np.arange(4 * 2 * 2, dtype=np.float32).reshape(4, 2, 2)
    (tmp_path / "s2").mkdir()
    np.save(tmp_path / "s2" / "a.npy", pixels)
    known = {"s2": {"bands": ["B02", "B03", "B04", "B8A"], "scaling": "image"}}
    data = PairedFolder(tmp_path, known, missing="keep")

    taken = take_bands(data.only(["s2"]), {"s2": ["B4", "b2"]})

    assert taken.modalities["s2"].bands == ("B4", "b2")
    assert taken[0]["images"]["s2"].numpy().tolist() == pixels[[2, 0]].tolist()
    assert taken.files(0) == data.files(0)
    assert take_bands(data, {"s2": data.modalities["s2"].bands}) is data


def test_statistics_go_with_the_bands_that_are_taken():
    sensor = Modality("x", ("B1", "B2", "B3"), mean=(1, 2, 3), std=(4, 5, 6))
    assert with_bands(sensor, ("B3", "B1")) == Modality("x", ("B3", "B1"), mean=(3, 1), std=(6, 4))


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        (("B1", "B2"), ("B3",)),
        (("band1", "band2"), ("band1",)),  # that number says nothing
        (("1", "2"), ("1",)),
        (("B1", "B01"), ("B1",)),
    ],
)
def test_bands_that_no_name_tells_are_not_taken(there, wanted):
    assert with_bands(Modality("x", there, scaling="range"), wanted) is None
