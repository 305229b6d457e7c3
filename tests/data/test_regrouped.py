"""Pairs within a group are drawn anew each epoch: every picture once, in the end all pairings."""

from collections import Counter

import numpy as np
import pytest
import torch
from make_ssl4eo_s12 import make_ssl4eo_s12

from decur.data import SSL4EOS12, LoaderSettings, PackedPairs, SyntheticScenes
from decur.data.packed import pack
from decur.data.selection import Regrouped
from decur.errors import BadSampleError, ConfigError
from decur.pretrain.data import PairedData

EPOCHS = 40
FIRST = {"s1": (0, 0, 0), "s2": (1, 0, 0)}  # the pixel that tells the season: of VV and of B2


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = make_ssl4eo_s12(tmp_path_factory.mktemp("ssl4eo"), {"s1": (0, 1), "s2c": (0, 1)})
    return SSL4EOS12(root)


def test_each_epoch_shows_every_season_once_and_a_run_all_pairings(data):
    anew = Regrouped(data, seed=3)
    pairings, orders = Counter(), {name: set() for name in FIRST}
    for epoch in range(EPOCHS):
        rows = {name: [anew.source(i, name, epoch=epoch) for i in range(8)] for name in FIRST}
        for name, of in rows.items():
            assert sorted(of) == list(range(8)) and {row // 4 for row in of[:4]} == {0}
            orders[name].add(tuple(of[:4]))
        pairings.update(zip(rows["s1"][:4], rows["s2"][:4], strict=True))
    assert len(pairings) == 16  # of each season of S1 with each of S2; fixed pairs are four
    assert max(pairings.values()) < 4 * EPOCHS / 16 * 2.2
    assert all(len(of) > 12 for of in orders.values())  # of 24 orders
    again = Regrouped(data, seed=3)
    assert again.source(5, "s2", epoch=7) == anew.source(5, "s2", epoch=7)


def test_pictures_are_those_of_the_samples_that_were_drawn_packed_or_not(data, tmp_path):
    pack(data, tmp_path / "packed", workers=0)
    for source in (data, PackedPairs(tmp_path / "packed")):
        anew = Regrouped(source)
        for index, epoch in ((0, 0), (6, 2)):
            sample = anew[index, epoch]
            assert sample["id"] == source.ids[index] and "bad" not in sample
            for name, picture in sample["images"].items():
                row = anew.source(index, name, epoch=epoch)
                assert torch.equal(picture, data[row]["images"][name])


def test_the_loader_of_training_hands_the_epoch_on(data):
    def seasons(epoch, batch=0, workers=0):
        loading = PairedData(data, LoaderSettings(4, workers), pairing="group").train_dataloader()
        loading.load_state_dict({"epoch": epoch, "batch": batch})
        return [
            {n: b["images"][n][:, k, i, j].tolist() for n, (k, i, j) in FIRST.items()}
            | {"ids": b["ids"]}
            for b in loading
        ]

    first = seasons(1)
    assert seasons(1, workers=1) == first and seasons(1, batch=1) == first[1:]
    by_id = [
        {
            id_: (a, b)
            for s in seasons(e)
            for id_, a, b in zip(s["ids"], s["s1"], s["s2"], strict=True)
        }
        for e in (1, 2)
    ]
    assert by_id[0].keys() == by_id[1].keys() and by_id[0] != by_id[1]


def test_absent_sensors_stay_absent_and_a_bad_picture_makes_a_bad_sample():
    scenes = SyntheticScenes(6, 16, modalities=["optical", "sar"])
    with pytest.raises(ConfigError, match="pairing: SyntheticScenes has no groups"):
        Regrouped(scenes)
    scenes.groups = ["a"] * 6
    scenes.present["sar"] = np.array([True, False, True, True, True, True])
    read = scenes.read

    def damaged(index):
        if index == 3:
            raise BadSampleError("x.tif", "is cut short")
        return read(index)

    scenes.read = damaged
    anew = Regrouped(scenes)
    samples = [anew[index, 0] for index in range(6)]
    assert anew.source(0, "sar", epoch=0) != 1 and "sar" not in samples[1]["images"]
    for index, sample in enumerate(samples):
        drawn = {anew.source(index, name, epoch=0) for name in scenes.sensors_of(index)}
        assert ("bad" in sample) == (3 in drawn)
