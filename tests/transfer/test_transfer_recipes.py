"""The recipes of `decur transfer`: each runs, with the paper's numbers (appendix B.2)."""

import json

import pytest
from make_bigearthnet_mm import make_bigearthnet_mm
from make_geonrw import make_geonrw
from make_nyu import make_nyu
from make_sunrgbd import make_sunrgbd

from decur.data import Target
from decur.layers import flatten
from decur.recipes import command_of, find_config, recipes
from decur.transfer import FitSettings
from decur.transfer.command_transfer import build_parser
from decur.transfer.tasks import make_task

# Appendix B.2, typed from the paper: optimiser, rate, momentum, decay, epochs, steps, batch.
PAPER = {
    "bigearthnet-linear": ("sgd", 0.5, 0.9, 0.0, 100, None, 256),
    "bigearthnet-finetune": ("sgd", 0.05, 0.9, 0.0, 100, None, 256),
    "geonrw-frozen": ("adamw", 1e-4, None, 0.01, 30, None, 256),
    "geonrw-finetune": ("adamw", 1e-4, None, 0.01, 30, None, 256),
    "sunrgbd-fcn": ("sgd", 0.01, None, 1e-5, None, 40_000, 8),
    "nyu-fcn": ("sgd", 0.01, None, 1e-5, None, 40_000, 8),
    # "the same settings of CMX": its section IV-B and appendix A
    "sunrgbd-cmx": ("adamw", 6e-5, None, 0.01, 200, None, 8),
    "nyu-cmx": ("adamw", 6e-5, None, 0.01, 500, None, 6),
}
CMX_SCALES = [0.5, 0.75, 1, 1.25, 1.5, 1.75]  # of its code, within its paper's "[0.5, 1.75]"


@pytest.fixture
def labelled(tmp_path):
    """The data that a recipe's header asks for."""

    def make(name):
        if "bigearthnet" in name:
            kinds = [["Pastures"], ["Sea and ocean"], ["Pastures", "Sea and ocean"]]
            splits = {"train": range(12), "val": range(12, 15), "test": range(15, 18)}
            return make_bigearthnet_mm(tmp_path / "ben", kinds * 6, splits)
        if "geonrw" in name:
            return make_geonrw(tmp_path / "nrw", ("bonn", "herne"), side=128)
        if name == "nyu-cmx":  # the camera is known at its true size only
            return make_nyu(tmp_path / "nyu", range(1, 9), range(9, 11), (480, 640))
        if "nyu" in name:
            return make_nyu(tmp_path / "nyu", range(1, 17), range(17, 21))
        scenes = [f"kv1/NYUdata/NYU{i:04d}" for i in range(20)]
        return make_sunrgbd(tmp_path / "sun", {"train": scenes[:16], "test": scenes[16:]})

    return make


def test_every_recipe_is_compared_with_the_paper():
    assert {name for name, text in recipes().items() if command_of(text) == "transfer"} == set(
        PAPER
    )


@pytest.mark.parametrize("name", PAPER)
def test_a_recipe_is_as_the_paper_says(name):
    optimiser, lr, momentum, decay, epochs, steps, batch = PAPER[name]
    cmx = "cmx" in name
    settings = build_parser().parse([f"--config={name}", "--data.root=X"])
    kind = "multilabel" if "bigearthnet" in name else "mask"
    task = make_task("cover", Target(kind, ("a", "b")))
    fit = FitSettings(**vars(settings.fit)).complete(task, settings.freeze, head=settings.head)
    assert settings.freeze == (name in ("bigearthnet-linear", "geonrw-frozen"))
    assert (fit.name, fit.lr, fit.weight_decay) == (optimiser, lr, decay)
    assert momentum in (None, fit.momentum)
    poly = steps or cmx
    assert fit.schedule == ("poly" if poly else {"sgd": "steps", "adamw": "constant"}[optimiser])
    if fit.schedule == "steps":
        assert [round(share * epochs) for share in fit.milestones] == [60, 80]
    given = [flatten(layer) for layer in find_config(name)]
    kept = {key: value for layer in given for key, value in layer.items()}
    assert kept["loader.batch_size"] == batch
    assert (kept.get("fit.epochs"), kept.get("fit.steps")) == (epochs, steps)
    if cmx:
        assert (kept["test_scales"], kept["test_flip"]) == ([0.75, 1, 1.25], True)
        assert (fit.warmup_epochs, list(fit.scales)) == (10, CMX_SCALES)
        size = {"sunrgbd-cmx": ("mit_b2", [480, 480]), "nyu-cmx": ("mit_b5", None)}
        assert (kept["encoder.name"], kept["fit.piece"]) == size[name]
        assert kept["test_window"] == (kept["fit.piece"] or [480, 640])  # as in training
        assert fit.decay_biases is False


QUICK = ("bigearthnet-linear", "geonrw-frozen", "sunrgbd-fcn")  # one of each data


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in PAPER]
)
def test_a_recipe_runs(name, labelled, transferred, tmp_path):
    optimiser, lr, _, decay, _, steps, _ = PAPER[name]
    short = ["--fit.steps=2"] if steps else ["--fit.epochs=2"]
    if name.startswith("sunrgbd"):
        short.append("--data.size=[48,64]")  # else all pictures are resized to the camera's size
    if cmx := "cmx" in name:
        short += ["--encoder.name=mit_b0", "--test_scales=[1,1.25]", "--test_window=[48,48]"]
        small = "--fit.piece=[48,48]" if name.startswith("sunrgbd") else "--data.size=[48,64]"
        short.append(small)
    folder = transferred(
        *(
            f"--config={name}",
            f"--data.root={labelled(name)}",
            f"--size={64 if cmx else 32}",
            *short,
            f"--run={tmp_path / name}",
        ),
        name=name,
    )
    results = json.loads((folder / "results.json").read_text())
    assert results["freeze"] == (name in ("bigearthnet-linear", "geonrw-frozen"))
    fit = results["fit"]
    assert (fit["name"], fit["lr"], fit["weight_decay"]) == (optimiser, lr, decay)
    assert results["model"] == "CMX" or not cmx
    if cmx or "fcn" in name:
        assert results["modalities"] == (["rgb", "hha"] if cmx else ["rgb"])
