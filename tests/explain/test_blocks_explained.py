"""What `explain` says of blocks of dimensions that some of three sensors share."""

import numpy as np
import pytest
import torch
from planted import Means

from decur.data import LinearGaussianFactors
from decur.encoders import Projector
from decur.explain import Checkpoint, SampleLoader
from decur.explain.advice import advice_on_blocks
from decur.explain.alignment import alignment
from decur.explain.alignment import findings as of_alignment
from decur.explain.dimensions import _kinds
from decur.explain.shared import findings as of_shared
from decur.explain.shared import shared
from decur.plotting import part_colour
from decur.pretrain import LoaderSettings

PARTS = {"x+y+z": slice(0, 2), "y+x": slice(2, 4), "y+z": slice(4, 6), "unique": slice(6, 8)}


@pytest.fixture(scope="module")
def planted():
    """Projectors that undo the mixing: each block holds the factors that its sensors share."""
    data = LinearGaussianFactors(
        300, 2, unique_dims=2, dim=12, size=4, noise=0.01, sensors=("x", "y", "z"), pair_dims=2
    )
    encoders = {name: Means(12) for name in data.modalities}
    projectors = {name: Projector(12, 8, layers=1) for name in data.modalities}
    for name, projector in projectors.items():
        undone = torch.from_numpy(np.linalg.pinv(data.mixing[name]))  # (12, factors)
        columns = dict(zip(data._factors_of[name], undone.split(2, dim=1), strict=True))
        spare = columns.get("shared_xz")  # has no block, and lies where the sensor has no factor
        wanted = ("shared", "shared_xy", "shared_yz", f"unique_{name}")
        rows = [columns.get(factor, spare) for factor in wanted]
        projector[0].weight.data = torch.cat(rows, 1).T.contiguous()
    checkpoint = Checkpoint(
        "planted", encoders, projectors=projectors, modalities=data.modalities, parts=PARTS
    )
    return checkpoint, SampleLoader(data, settings=LoaderSettings(batch_size=100, workers=0))


def test_how_much_is_shared_by_subset(planted):
    checkpoint, loader = planted
    arrays = shared(checkpoint, loader, permutations=1)
    told = {
        pair: {part: arrays[f"{pair}/same/{part}"].min() > 0.9 for part in PARTS}
        for pair in arrays["pairs"].tolist()
    }
    all_three = {"x+y+z": True, "y+x": False, "y+z": False, "unique": False}
    assert told == {
        "x-y": all_three | {"y+x": True},
        "x-z": all_three,
        "y-z": all_three | {"y+z": True},
    }
    text = of_shared(arrays)
    assert "x and y: Of the variance of each part" in text and "of y+x" in text
    assert "objective.common" not in text
    assert text.count("That is consistent with these blocks") == 2
    assert text.count("raise the share of a block that names both") == 1  # x and z have none
    for part in PARTS:  # intervals that hold everything
        arrays[f"x-y/same-interval/{part}"] = np.tile([-np.inf, np.inf], (2, 1))
        arrays[f"x-y/features-interval/{part}"] = np.tile([-np.inf, np.inf], (2, 1))
    assert "x and y: Of the variance" in of_shared(arrays)
    assert of_shared(arrays).count("too few samples, for a verdict on the blocks") == 1

    for part in ("x+y+z", "y+x"):  # in which nothing is shared
        for key in ("same", "features"):
            arrays[f"x-y/{key}/{part}"] = np.zeros(2)
            arrays[f"x-y/{key}-interval/{part}"] = np.zeros((2, 2))
    text = " ".join(advice_on_blocks(arrays, "x-y"))
    assert "x+y+z and y+x: hardly anything in them is shared by these two; lower their" in text
    arrays["x-z/parts"], arrays["x-z/widths"] = arrays["x-z/parts"][1:], arrays["x-z/widths"][1:]
    text = " ".join(advice_on_blocks(arrays, "x-z"))  # as if there were no block of all three
    assert text.startswith("No block names both. Of the variance of each part, beyond chance, the ")
    assert (
        "nothing" not in text and text.count("; add a block that names both in objective.bl") == 1
    )


def test_a_part_is_wanted_apart_where_a_pair_does_not_share_it(planted):
    text = of_alignment(alignment(*planted))
    assert "y+z dimensions (0% are apart, which shared ones should not be)" in text
    assert (
        "y+z dimensions (100% are apart, as dimensions that no block gives to both should be)"
        in text
    )


def test_points_of_a_block_are_told_apart_by_its_sensors():
    arrays = {
        "modalities": np.array(["x", "y", "z"]),
        "parts": np.array(["x+y", "unique"]),
        "modality": np.array([0, 1, 2, 2]),
        "part": np.array([0, 0, 0, 1]),
    }
    found = {name: chosen.tolist() for name, chosen in _kinds(arrays)}
    assert found == {
        "x+y": [True, True, False, False],
        "x+y, seen by z": [False, False, True, False],
        "unique": [False, False, False, True],
    }


def test_blocks_have_colours_of_their_own():
    colours = {part_colour(part, list(PARTS)) for part in PARTS}
    assert len(colours) == len(PARTS)
