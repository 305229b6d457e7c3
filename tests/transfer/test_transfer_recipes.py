"""The recipes of `decur transfer`: each runs, with the paper's numbers (appendix B.2)."""

import json

import numpy as np
import pytest
from make_bigearthnet_mm import make_bigearthnet_mm
from make_geonrw import make_geonrw
from PIL import Image

from decur.config import command_of, find_config, flatten, recipes

# Appendix B.2, typed from the paper: optimiser, rate, momentum, decay, epochs, steps, batch.
PAPER = {
    "bigearthnet-linear": ("sgd", 0.5, 0.9, 0.0, 100, None, 256),
    "bigearthnet-finetune": ("sgd", 0.05, 0.9, 0.0, 100, None, 256),
    "geonrw-frozen": ("adamw", 1e-4, None, 0.01, 30, None, 256),
    "geonrw-finetune": ("adamw", 1e-4, None, 0.01, 30, None, 256),
    "sunrgbd-fcn": ("sgd", 0.01, None, 1e-5, None, 40_000, 8),
    "nyu-fcn": ("sgd", 0.01, None, 1e-5, None, 40_000, 8),
}


@pytest.fixture
def labelled(make_pairs, tmp_path):
    """The data that a recipe's header asks for."""

    def make(name):
        if "bigearthnet" in name:
            kinds = [["Pastures"], ["Sea and ocean"], ["Pastures", "Sea and ocean"]]
            splits = {"train": range(12), "val": range(12, 15), "test": range(15, 18)}
            return make_bigearthnet_mm(tmp_path / "ben", kinds * 6, splits)
        if "geonrw" in name:
            return make_geonrw(tmp_path / "nrw", ("bonn", "herne"), side=128)
        root = make_pairs({"rgb": 3, "depth": 1}, samples=24, size=32)
        ids = [f"{i:04d}" for i in range(24)]
        split = [f"{id_},{'test' if i % 3 == 0 else 'train'}" for i, id_ in enumerate(ids)]
        (root / "splits.csv").write_text("\n".join(["id,split", *split]) + "\n")
        (root / "mask").mkdir()
        for i, id_ in enumerate(ids):
            mask = (np.arange(32) > i)[None].repeat(32, axis=0).astype(np.uint8)
            Image.fromarray(mask).save(root / "mask" / f"{id_}.png")
        return root

    return make


def test_every_recipe_is_compared_with_the_paper():
    assert {name for name, text in recipes().items() if command_of(text) == "transfer"} == set(
        PAPER
    )


@pytest.mark.parametrize("name", PAPER)
def test_a_recipe_runs_as_the_paper_says(name, labelled, transferred, tmp_path):
    optimiser, lr, momentum, decay, epochs, steps, batch = PAPER[name]
    short = ("--fit.steps=2",) if steps else ("--fit.epochs=2",)
    folder = transferred(
        *(
            f"--config={name}",
            f"--data.root={labelled(name)}",
            "--size=32",
            *short,
            f"--run={tmp_path / name}",
        ),
        name=name,
    )
    results = json.loads((folder / "results.json").read_text())
    assert results["freeze"] == (name in ("bigearthnet-linear", "geonrw-frozen"))
    assert results["modalities"] == (["rgb"] if "fcn" in name else results["modalities"])
    fit = results["fit"]
    assert (fit["name"], fit["lr"], fit["weight_decay"]) == (optimiser, lr, decay)
    assert momentum in (None, fit["momentum"])
    assert fit["schedule"] == {"sgd": "poly" if steps else "steps", "adamw": "constant"}[optimiser]
    if fit["schedule"] == "steps":
        assert [round(share * epochs) for share in fit["milestones"]] == [60, 80]
    given = [flatten(layer) for layer in find_config(name)]
    kept = {key: value for layer in given for key, value in layer.items()}
    assert kept["loader.batch_size"] == batch
    assert (kept.get("fit.epochs"), kept.get("fit.steps")) == (epochs, steps)
