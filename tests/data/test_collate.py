import pickle

import pytest
import torch
from torch.utils.data import DataLoader

from decur import Modality
from decur.data import Collate, PairedDataset, SkipBad, Target
from decur.errors import BadSampleError

MODALITIES = {
    "a": Modality(name="a", bands=("x", "y"), scaling="range", size=(4, 6)),
    "b": Modality(name="b", bands=("x",), scaling="range", size=(2, 2)),
}
TARGETS = {
    "kind": Target("class", ("u", "v")),
    "tags": Target("multilabel", ("u", "v", "w")),
    "level": Target("scalar"),
    "mask": Target("mask", ("u", "v")),
}


def test_absent_modality_and_missing_targets():
    full = {
        "id": "1",
        "images": {"a": torch.full((2, 4, 6), 3.0), "b": torch.ones(1, 2, 2, dtype=torch.uint8)},
        "target": {
            "kind": torch.tensor(1),
            "tags": torch.tensor([1.0, 0.0, 1.0]),
            "level": torch.tensor(0.5),
            "mask": torch.ones(4, 6, dtype=torch.int64),
        },
    }
    partial = {"id": "2", "images": {"b": torch.zeros(1, 2, 2, dtype=torch.uint8)}}
    batch = Collate(MODALITIES, TARGETS)([partial, full])
    assert batch["ids"] == ["2", "1"]
    assert batch["present"]["a"].tolist() == [False, True]
    assert batch["present"]["b"].tolist() == [True, True]
    assert batch["images"]["a"].shape == (2, 2, 4, 6)
    assert batch["images"]["a"][0].abs().sum() == 0
    assert batch["images"]["b"].dtype == torch.uint8
    assert batch["target"]["kind"].tolist() == [-1, 1]
    assert batch["target"]["tags"][0].isnan().all()
    assert batch["target"]["level"][0].isnan()
    assert (batch["target"]["mask"][0] == 255).all()
    assert batch["target"]["mask"].dtype == torch.int64
    assert batch["bad"] == []


def test_a_batch_without_any_mask_has_masks_of_the_first_modality():
    batch = Collate(MODALITIES, TARGETS)([{"id": "1", "images": {}}])
    assert batch["target"]["mask"].shape == (1, 4, 6)
    assert (batch["target"]["mask"] == 255).all()


def test_an_unknown_label_of_ones_own_kind_has_the_shape_of_the_known_ones():
    samples = [
        {"id": "1", "images": {}, "bad": "cannot be read"},
        {"id": "2", "images": {}, "target": {"place": torch.tensor([3.0, 4.0])}},
    ]
    batch = Collate(MODALITIES, {"place": Target("vector", ("x", "y"))})(samples)
    assert batch["target"]["place"].shape == (2, 2)
    assert batch["target"]["place"][0].isnan().all()
    assert batch["target"]["place"][1].tolist() == [3.0, 4.0]


def test_mixed_types_become_float():
    samples = [
        {"id": "1", "images": {"b": torch.full((1, 2, 2), 7, dtype=torch.uint8)}},
        {"id": "2", "images": {"b": torch.full((1, 2, 2), torch.nan)}},
    ]
    images = Collate(MODALITIES, {})(samples)["images"]["b"]
    assert images.dtype == torch.float32
    assert (images[0] == 7).all()
    assert images[1].isnan().all()


def test_a_modality_that_no_sample_has():
    batch = Collate(MODALITIES, {})([{"id": "1", "images": {}}])
    assert batch["images"]["a"].shape == (1, 2, 4, 6)
    assert batch["present"]["a"].tolist() == [False]


class Told(Collate):
    """Tells of each batch whether its pictures lie where the process that trains sees them."""

    def __call__(self, samples):
        batch = super().__call__(samples)
        return {**batch, "shared": [x.is_shared() for x in batch["images"].values()]}


def test_a_reading_process_stacks_where_the_training_one_sees_it():
    samples = [
        {"id": "1", "images": {"a": torch.rand(2, 4, 6)}},
        {"id": "2", "images": {"b": torch.full((1, 2, 2), 7, dtype=torch.uint8)}},
    ]
    here, there = (
        next(iter(DataLoader(samples, 2, collate_fn=Told(MODALITIES, {}), num_workers=workers)))
        for workers in (0, 1)
    )
    assert (here["shared"], there["shared"]) == ([False, False], [True, True])
    for name, pictures in here["images"].items():
        assert torch.equal(there["images"][name], pictures), name
        assert there["images"][name].dtype == pictures.dtype
    assert there["images"]["a"][1].abs().sum() == 0 == there["images"]["b"][0].sum()


class Spoilt(PairedDataset):
    modalities = MODALITIES
    ids = ("1", "2")
    targets = TARGETS

    def read(self, index):
        if index:
            raise BadSampleError("file", "is broken")
        return {"id": "1", "images": {}}


def test_skip_bad_marks_the_sample():
    data = SkipBad(Spoilt())
    assert len(data) == 2
    assert "bad" not in data[0]
    assert data[1] == {"id": "2", "images": {}, "bad": ("file", "is broken")}
    batch = Collate(MODALITIES, TARGETS)([data[0], data[1]])
    assert batch["bad"] == [("file", "is broken")]


def test_skip_bad_lets_faults_of_code_through():
    class Wrong(Spoilt):
        def read(self, index):
            raise NameError

    with pytest.raises(NameError):
        SkipBad(Wrong())[0]


def test_bad_sample_error_survives_a_process():
    error = pickle.loads(pickle.dumps(BadSampleError("file", "is broken")))
    assert (error.path, error.reason, str(error)) == ("file", "is broken", "file: is broken")
