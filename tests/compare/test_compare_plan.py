"""What a comparison consists of, before anything runs."""

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from decur.bounded_yaml import LOADER
from decur.cli import main
from decur.compare.plan import plan_cells
from decur.compare.settings import CompareSettings, MethodSettings, TaskSettings
from decur.errors import ConfigError
from decur.layers import flatten
from decur.pretrain.configuration import ORDERS
from decur.pretrain.configuration import build_parser as pretrain_parser
from decur.pretrain.data import seen_data
from decur.pretrain.settings import PretrainSettings
from decur.transfer.command_transfer import build_parser as transfer_parser
from decur.transfer.settings import TransferSettings
from decur.transfer.splits import choose_parts
from decur.transfer.tasks import choose_task

SCENES = {
    "class_path": "decur.data.SyntheticScenes",
    "init_args": {"samples": 40, "size": 16, "modalities": ["optical", "sar"]},
}
BOTH, OPTICAL = ["optical", "sar"], ["optical"]


def plan(run="runs/c", **changes):
    """The cells of one method, task, backbone and seed, but for what is changed."""
    parts = {
        "methods": {"DeCUR": MethodSettings()},
        "tasks": {"cover": TaskSettings({"target": "cover"})},
        "backbones": ["test_resnet"],
        "data": SCENES,
        "pretrain": {"base": "demo"},
        "seeds": [0],
        **changes,
    }
    return plan_cells(CompareSettings(run=run, **parts))


def cells(command="transfer", **changes):
    return [cell for cell in plan(**changes) if cell.command == command]


def settings(cell):
    """A cell's configuration, `{"outer.inner": value}`."""
    return flatten(yaml.load(cell.config, LOADER))


# -- which cells -----------------------------------------------------------------------------------


def test_cells_are_the_product_and_each_stands_after_what_it_needs():
    axes = {
        "methods": {"random": MethodSettings(pretrain=None), "DeCUR": MethodSettings()},
        "backbones": ["test_resnet", "resnet18"],
        "label_fractions": [0.1, 1.0],
        "modalities": [OPTICAL, ["sar"], BOTH],
        "seeds": [3, 5],
    }
    found = plan(**axes)
    transfers = {
        (c.method, c.backbone, c.label_fraction, c.modalities, c.seed): c
        for c in found
        if c.command == "transfer"
    }
    subsets = [tuple(subset) for subset in axes["modalities"]]
    assert set(transfers) == set(
        itertools.product(
            axes["methods"], axes["backbones"], axes["label_fractions"], subsets, axes["seeds"]
        )
    )
    pretrained = {(c.backbone, c.seed): c for c in found if c.command == "pretrain"}
    assert set(pretrained) == set(itertools.product(axes["backbones"], axes["seeds"]))
    assert len({c.folder for c in found}) == len(found) == len(transfers) + len(pretrained)
    place = {c.folder: number for number, c in enumerate(found)}
    for (method, backbone, fraction, subset, seed), cell in transfers.items():
        source = pretrained[backbone, seed].folder
        assert cell.needs == ((source,) if method == "DeCUR" else ())
        assert all(place[folder] < place[cell.folder] for folder in cell.needs)
        chosen = settings(cell)
        assert chosen["encoders"] == ([str(source)] if method == "DeCUR" else ["random"])
        assert chosen["encoder.name"] == backbone  # of fresh weights
        assert (chosen["label_fraction"], chosen["seed"]) == (fraction, seed)
        assert tuple(chosen["modalities"]) == subset and chosen["run"] == str(cell.folder)
    # all of a seed before the next: an early table has whole lines
    assert [c.seed for c in found] == sorted(c.seed for c in found)


def test_a_task_has_its_own_sensors_shares_and_methods():
    found = cells(
        methods={name: MethodSettings(pretrain=None) for name in ("a", "b")},
        tasks={
            "cover": TaskSettings({"target": "cover"}, [OPTICAL, BOTH], [0.1, 0.5]),
            "cloud": TaskSettings({"target": "cloud"}, methods=["b"]),
        },
        modalities=[["sar"]],
        label_fractions=[1.0],
    )
    assert Counter((c.task, c.method) for c in found) == {
        **{("cover", "a"): 4, ("cover", "b"): 4, ("cloud", "b"): 1}
    }
    assert {c.modalities for c in found if c.task == "cover"} == {tuple(OPTICAL), tuple(BOTH)}
    assert {c.label_fraction for c in found if c.task == "cover"} == {0.1, 0.5}
    (cloud,) = [c for c in found if c.task == "cloud"]
    assert (cloud.modalities, cloud.label_fraction) == (("sar",), 1.0)
    assert settings(cloud)["target"] == "cloud"


def test_a_method_takes_part_in_the_tasks_that_it_names():
    found = cells(
        methods={"a": MethodSettings(None, tasks=["cloud"]), "b": MethodSettings(None)},
        tasks={name: TaskSettings({"target": name}) for name in ("cover", "cloud")},
    )
    assert {(c.method, c.task) for c in found} == {
        *(("a", "cloud"), ("b", "cover"), ("b", "cloud"))
    }


def test_methods_that_differ_in_transfer_alone_are_pretrained_once():
    methods = {
        "features": MethodSettings(),
        "embedding": MethodSettings(transfer={"representation": "embedding"}),
        "longer": MethodSettings({"trainer.max_epochs": 7}),
    }
    found = plan(methods=methods)
    trained = [c.folder for c in found if c.command == "pretrain"]
    needs = {c.method: c.needs for c in found if c.command == "transfer"}
    assert len(trained) == 2 and set(needs) == set(methods)
    assert needs["features"] == needs["embedding"] != needs["longer"]
    assert "features" in needs["embedding"][0].name


def test_apart_pretrains_each_sensor_without_the_others():
    found = plan(
        methods={"BT": MethodSettings({"objective": "BarlowTwins"}, apart=True)},
        modalities=[OPTICAL, BOTH],
    )
    alone = {c.modalities: c for c in found if c.command == "pretrain"}
    assert set(alone) == {("optical",), ("sar",)}
    for sensors, cell in alone.items():
        assert tuple(settings(cell)["modalities"]) == sensors
    sources = {c.folder for c in alone.values()}
    for cell in found:
        if cell.command == "transfer":
            assert set(cell.needs) == sources == set(map(Path, settings(cell)["encoders"]))


def test_the_label_says_what_a_cell_is():
    found = plan(modalities=[BOTH], label_fractions=[0.005])
    assert [c.label for c in found] == [
        "pretraining, DeCUR, test_resnet, seed 0",
        "cover, DeCUR, test_resnet, optical+sar, 0.5 %, seed 0",
    ]


# -- their configuration ---------------------------------------------------------------------------


def test_a_configuration_is_whole_and_the_later_layer_wins():
    (trained,) = cells(
        "pretrain",
        pretrain={"base": "demo", "trainer.max_epochs": 7, "views": {"size": 20}},
        backbones={"small": {"encoder.name": "test_resnet", "projector.width": 64}},
        methods={"CLIP": MethodSettings({"objective": "CLIP", "views.size": 24})},
        seeds=[4],
    )
    found = settings(trained)
    assert found["optimizer.lr"] == 0.001 and found["monitor.samples"] == 768  # of the recipe demo
    assert found["data.init_args.samples"] == 40  # not the recipe's 2048
    assert found["objective.class_path"].endswith("CLIP")  # of the method
    assert (found["trainer.max_epochs"], found["views.size"]) == (7, 24)
    assert (found["projector.width"], found["seed"], trained.backbone) == (64, 4, "small")

    (transferred,) = cells(
        transfer={"bootstrap": 3, "folds": 4, "loader.workers": 0},
        tasks={"cover": TaskSettings({"target": "cover", "folds": 3, "probe": "sgd"})},
        methods={"a": MethodSettings(None, ["timm.safetensors"], transfer={"probe": "ridge"})},
    )
    found = settings(transferred)
    assert (found["bootstrap"], found["folds"], found["probe"]) == (3, 3, "ridge")
    assert found["encoders"] == ["timm.safetensors"]
    assert found["data.init_args.samples"] == 40

    for cell, parser in ((trained, pretrain_parser()), (transferred, transfer_parser())):
        again = parser.read([yaml.load(cell.config, LOADER)])
        values = yaml.safe_load(parser.to_yaml(again))
        assert {k: v for k, v in values.items() if k not in ORDERS} == yaml.load(
            cell.config, LOADER
        )


def test_seeds_test_on_folds_unless_the_task_says_what_tests():
    def folds(**transfer):
        found = cells(
            methods={"a": MethodSettings(pretrain=None)},
            tasks={"cover": TaskSettings({"target": "cover", **transfer})},
            seeds=[0, 1, 4, 5, 12],
        )
        return [settings(cell)["fold"] for cell in found]

    assert folds() == [0, 1, 4, 0, 2]  # of five
    assert folds(folds=3) == [0, 1, 1, 2, 0]
    assert folds(fold=3) == [3] * 5
    assert folds(train_split="train", test_split="test") == [0] * 5
    assert folds(folds=0)  # left for the transfer to refuse


def test_fresh_weights_have_the_backbone_of_the_line():
    found = cells(
        methods={"random": MethodSettings(pretrain=None)}, backbones=["test_resnet", "resnet18"]
    )
    assert [settings(c)["encoder.name"] for c in found] == ["test_resnet", "resnet18"]


DEEP = {"name": "resnet10t", "attention": "rda", "geometry": "centred"}
DEEP["options"] = {"stem_width": 16}


@pytest.mark.parametrize(
    "changes",
    [
        {"pretrain": {"base": "demo", "encoder": DEEP}},
        {"pretrain": {"base": "BASE"}},
        {"pretrain": {"base": "BASE"}, "backbones": ["resnet10t"]},
        {"pretrain": {"base": "BASE"}, "backbones": {"resnet10t": {}}},
        {"backbones": {"deep": {"encoder": DEEP}}},
        {"methods": {"DeCUR": {"encoder": DEEP}, "CLIP": {"encoder": DEEP, "objective": "CLIP"}}},
        {"methods": {"DeCUR": {"base": "BASE"}}},
        {
            "pretrain": {"base": "BASE"},
            "methods": {"DeCUR": {}, "DA": {"encoder.attention": "da"}},
        },
        {
            "methods": {"DeCUR": {"encoder": DEEP}, "ViT": {"encoder.name": "test_vit"}},
            "transfer": {"encoder.name": "resnet10t"},
        },
        {
            "methods": {
                "DeCUR": {"encoder": DEEP},
                "plain": {"encoder": {**DEEP, "attention": None}},
                "wide": {"encoder": {**DEEP, "options": {"stem_width": 32}}},
            },
            "transfer": {"encoder.attention": "rda", "encoder.options.stem_width": 16},
        },
    ],
    ids=[
        "pretrain",
        "base",
        "base, backbones",
        "base, backbones without changes",
        "backbones",
        "methods",
        "a method's base",
        "one",
        "named",
        "named by attention and option",
    ],
)
def test_fresh_weights_are_the_trained_network_wherever_it_is_named(changes, tmp_path):
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({"base": "demo", "encoder": DEEP}))
    changes = yaml.safe_load(yaml.safe_dump(changes).replace("BASE", str(tmp_path / "base.yaml")))
    methods = {"DeCUR": {}, **changes.pop("methods", {})}
    found = plan(
        **{"backbones": None, **changes},
        methods={
            "random": MethodSettings(None),
            "supervised": MethodSettings(None, transfer={"freeze": False}),
            **{name: MethodSettings(own) for name, own in methods.items()},
        },
    )
    fresh = [c for c in found if c.method in ("random", "supervised")]
    for cell in [*fresh, *(c for c in found if (c.command, c.method) == ("pretrain", "DeCUR"))]:
        encoder = yaml.load(cell.config, LOADER)["encoder"]
        assert {key: encoder[key] for key in DEEP} == DEEP, cell.label
        assert cell.backbone in ("resnet10t", "deep")
    assert len(fresh) == 2


def test_fresh_weights_may_be_a_network_that_no_method_trains_if_it_is_named(caplog):
    (found,) = cells(
        backbones=None,
        methods={"DeCUR": MethodSettings(tasks=[]), "random": MethodSettings(None)},
        transfer={"encoder.name": "resnet34"},
    )
    assert settings(found)["encoder.name"] == "resnet34"
    assert "methods.random: its fresh weights are the 'resnet34'" in caplog.text


def test_fresh_weights_never_start_from_the_weights_of_the_trained_ones():
    start = {"pretrained": True, "options": {"checkpoint_path": "x.pth", "stem_width": 16}}
    for where in (
        {"pretrain": {"base": "demo", "encoder": {"name": "resnet10t", **start}}},
        {"backbones": {"deep": {"encoder": {"name": "resnet10t", **start}}}},
    ):
        (found,) = cells(
            **{"backbones": None, **where},
            methods={"DeCUR": MethodSettings(tasks=[]), "random": MethodSettings(None)},
        )
        encoder = yaml.load(found.config, LOADER)["encoder"]
        assert not encoder["pretrained"] and encoder["options"] == {"stem_width": 16}


@pytest.mark.parametrize(
    ("changes", "seen"),
    [
        ({}, True),
        ({"unseen_test": True}, False),
        ({"pretrain": {"base": "demo", "data.start": 5000}}, False),
        ({"transfer": {"test_data": {"start": 5000}}}, False),
        ({"unseen_test": True, "transfer": {"test_data": {"size": 16}}}, True),
    ],
    ids=["folds of what is trained on", "left out", "other data", "tested elsewhere", "the same"],
)
def test_cells_know_whether_pretraining_has_seen_what_tests(changes, seen):
    methods = {"random": MethodSettings(None), "DeCUR": MethodSettings()}
    found = cells(methods=methods, **changes)
    assert {c.method: c.transductive for c in found} == {"random": False, "DeCUR": seen}


@pytest.mark.parametrize(("split", "seen"), [(None, True), ("train", False), ("test", True)])
def test_a_split_that_tests_is_seen_by_pretraining_on_all_of_the_data(split, seen, tmp_path):
    (found,) = cells(
        methods={"DeCUR": MethodSettings()},
        data={"class_path": "PairedFolder", "init_args": {"root": str(tmp_path)}},
        pretrain={"data.split": split},
        transfer={"train_split": "train", "test_split": "test"},
        unseen_test=True,  # which leaves out folds alone
    )
    assert found.transductive == seen


@pytest.mark.parametrize(
    ("reads", "seen"),
    [
        ({"root": "{}/./places"}, True),
        ({"missing": "drop"}, True),
        ({"class_path": "NYUDepthV2", "init_args.root": "{}/places"}, True),  # which cannot be told
        ({"root": "{}/others"}, False),
        ({"root": "{}/others", "split": "test"}, False),
    ],
    ids=["another spelling", "read otherwise", "another reader", "another folder", "its split"],
)
@pytest.mark.parametrize("unseen_test", [True, False])
def test_one_folder_is_one_source_however_it_is_read(reads, seen, unseen_test, tmp_path):
    tests_on = {key: value.format(tmp_path) for key, value in reads.items()}
    (found,) = cells(
        methods={"DeCUR": MethodSettings()},
        data={"class_path": "PairedFolder", "init_args": {"root": str(tmp_path / "places")}},
        transfer={f"data.{key}": value for key, value in tests_on.items()},
        unseen_test=unseen_test,
    )
    left_out = unseen_test and reads == {"root": "{}/./places"}
    assert found.transductive == (seen and not left_out)


def test_encoders_of_an_earlier_run_have_seen_what_it_was_trained_on(tmp_path):
    folder = {"class_path": "PairedFolder", "init_args": {"root": str(tmp_path / "places")}}
    for fold in (None, 0, 1):
        run = tmp_path / f"without-{fold}"
        run.mkdir()
        spelt = folder | {"class_path": "decur.data.PairedFolder"}
        kept = {"data": spelt, "without_fold": fold, "folds": 5, "fold_seed": 0}
        (run / "config.yaml").write_text(yaml.safe_dump(kept))

    def seen(*encoders, **changes):
        method = MethodSettings(None, encoders=[str(tmp_path / name) for name in encoders])
        (found,) = cells(methods={"earlier": method}, data=folder, **changes)
        return found.transductive

    assert seen("without-None") and not seen("no-such-run")
    assert not seen("without-0", unseen_test=True) and seen("without-1", unseen_test=True)
    assert not seen("without-None", transfer={"data.root": str(tmp_path / "others")})


def test_an_earlier_run_on_generated_scenes_may_lack_keys_of_today(tmp_path):
    old = {"class_path": "decur.data.SyntheticScenes", "init_args": {"samples": 60, "size": 16}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": old}))
    earlier = {"earlier": MethodSettings(None, encoders=[str(tmp_path)])}
    (found,) = cells(methods=earlier)
    assert found.transductive
    for elsewhere in ({"start": 1_000_000}, {"structure": True}):
        (found,) = cells(methods=earlier, transfer={"test_data": elsewhere})
        assert not found.transductive


@pytest.mark.parametrize("trained", ["train", None])
@pytest.mark.parametrize("tested", ["train", None])
def test_folds_of_a_split_are_seen_where_pretraining_is_on_them(trained, tested, tmp_path):
    (found,) = cells(
        methods={"DeCUR": MethodSettings()},
        data={"class_path": "PairedFolder", "init_args": {"root": str(tmp_path)}},
        pretrain={"data.split": trained},
        transfer={"data.split": tested},
        unseen_test=trained != tested,  # and then nothing can be left out
    )
    assert found.transductive


# -- their folders ---------------------------------------------------------------------------------


def folders(**changes):
    """Folder names of one pretraining run and one transfer."""
    return [cell.folder.name for cell in plan(**changes)]


@pytest.fixture(scope="module")
def known():
    """The names without any change."""
    return folders()


def test_a_folder_is_named_alike_wherever_and_however_it_runs(known):
    assert known == folders(run="/elsewhere/c")
    assert known == folders(
        pretrain={
            "base": "demo",
            "loader.workers": 3,
            "checkpoint.every_minutes": 1.0,
            "trainer.devices": 2,
        },
        transfer={
            **{"loader": {"workers": 2}, "device": "cpu", "cache": "somewhere"},
            "keep_model": False,
        },
    )
    assert known[0].startswith("decur-test-resnet-seed0-")
    assert known[1].startswith("cover-decur-test-resnet-100pc-seed0-")


@pytest.mark.parametrize(
    "changes",
    [
        {"seeds": [1]},
        {"pretrain": {"base": "demo", "trainer.max_epochs": 16}},
        {"pretrain": {"base": "demo", "trainer.precision": "bf16-mixed"}},
        {"pretrain": {"base": "demo", "objective": "CLIP"}},
        {"methods": {"DeCUR": MethodSettings({"objective.init_args.common": 0.5})}},
        {"backbones": {"test_resnet": {"encoder": {"name": "test_resnet", "pretrained": True}}}},
        {"data": {**SCENES, "init_args": {**SCENES["init_args"], "seed": 1}}},
    ],
    ids=lambda changes: str(next(iter(changes.items())))[:50],
)
def test_another_pretraining_is_another_folder_for_all_that_builds_on_it(changes, known):
    assert all(a != b for a, b in zip(known, folders(**changes), strict=True))


@pytest.mark.parametrize(
    "changes",
    [
        {"transfer": {"freeze": False}},
        {"transfer": {"bootstrap": 10}},
        {"tasks": {"cover": TaskSettings({"target": "cloud"})}},
        {"methods": {"DeCUR": MethodSettings(transfer={"probe": "sgd"})}},
        {"label_fractions": [0.5]},
        {"modalities": [OPTICAL]},
    ],
    ids=str,
)
def test_another_transfer_builds_on_the_same_pretraining(changes, known):
    (trained, transferred), (same, other) = known, folders(**changes)
    assert trained == same and transferred != other


def test_encoder_files_of_one_name_are_told_apart():
    names = [
        cells(methods={"given": MethodSettings(None, [f"{where}/encoders/optical.safetensors"])})[
            0
        ].folder.name
        for where in ("first", "second")
    ]
    assert names[0] != names[1]


# -- what is refused -------------------------------------------------------------------------------


@pytest.fixture
def refused(tmp_path, capsys):
    """A comparison that must be refused before anything is written: the line that says why."""

    def run(**changes) -> str:
        config = {
            "data": SCENES,
            "pretrain": {"base": "demo"},
            "methods": {"DeCUR": {}},
            "tasks": {"cover": {"transfer": {"target": "cover"}}},
            "backbones": ["test_resnet"],
            **changes,
        }
        file, folder = tmp_path / "wrong.yaml", tmp_path / "run"
        file.write_text(yaml.safe_dump(config))
        with pytest.raises(SystemExit) as stopped:
            main(["compare", f"--config={file}", f"--run={folder}"])
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        assert stopped.value.code == 2 and len(lines) == 1 and not folder.exists()
        return lines[0].removeprefix("error: ")

    return run


COVER = {"target": "cover"}


@pytest.mark.parametrize(
    ("changes", "start", "end"),
    [
        (
            {"methods": {"DeCUR": {}, "CLIP": {"pretrain": {"loader.batchsize": 8}}}},
            "methods.CLIP: loader.batchsize: unknown key",
            "did you mean loader.batch_size?",
        ),
        (
            {
                "backbones": None,
                "methods": {
                    "random": {"pretrain": None},
                    "A": {"pretrain": {"encoder.name": "resnet18"}},
                    "B": {"pretrain": {"encoder.name": "test_vit"}},
                },
            },
            "methods.random: cannot tell which network its fresh weights are, as encoder.name of "
            "those that are trained is 'resnet18' (A), 'test_vit' (B)",
            "compare them in backbones",
        ),
        (
            {"methods": {"CLIP": {"pretrain": {"trainer": {"max_epochs": "ten"}}}}},
            "methods.CLIP: trainer.max_epochs: ",
            "'ten'",
        ),
        (
            {"methods": {"CLIP": {"pretrain": {"base": "demo-klip"}}}},
            "methods.CLIP: ",
            "(`decur recipes` lists all)",
        ),
        (
            {"methods": {"CLIP": {"transfer": {"probes": "sgd"}}}},
            "tasks.cover of CLIP: probes: unknown key",
            "did you mean probe?",
        ),
        ({"methods": {"CLIP": {"task": ["cover"]}}}, "methods", ""),
        (
            {"methods": {"CLIP": {"tasks": ["cloud"]}}},
            "methods.CLIP.tasks: there is no 'cloud'",
            "choose from cover",
        ),
        ({"methods": {"BT": {"apart": True}}}, "methods.BT.apart: ", "[[s1], [s2]]"),
        ({"methods": {}}, "methods: is empty", ""),
        ({"seeds": []}, "seeds: is empty", ""),
        (
            {"tasks": {"cover": {"transfer": {**COVER, "bootstraps": 3}}}},
            "tasks.cover of DeCUR: bootstraps: unknown key",
            "did you mean bootstrap?",
        ),
        (
            {"tasks": {"cover": {"transfer": {**COVER, "base": "nothing"}}}},
            "tasks.cover of DeCUR: ",
            "`decur recipes` lists those that ship",
        ),
        (
            {"tasks": {"cover": {"transfer": COVER, "methods": ["clip"]}}},
            "tasks.cover.methods: there is no 'clip'",
            "choose from DeCUR",
        ),
        (
            {"tasks": {"cover": {"transfer": COVER, "metric": "mAP"}}},
            "tasks.cover.metric: there is no 'mAP'; choose from accuracy, ",
            "R2, MAE",
        ),
        (
            {"tasks": {"cover": {"transfer": COVER, "published": ["table1-sarr"]}}},
            "tasks.cover.published: no published table 'table1-sarr'; there is table1-sar",
            "",
        ),
        (
            {"label_fractions": [0.1, 10]},
            "tasks.cover: label_fractions are shares in (0, 1], not 10",
            "",
        ),
        ({"tasks": {"cover": {"transfers": COVER}}}, "tasks", ""),
        (
            {"pretrain": {"base": "demo", "objective.dim": 96}},
            "methods.DeCUR: objective.dim: is 96, but projector.width, which it follows, is 256",
            "give --projector.width 96",
        ),
        ({"against": "ours"}, "against: there is no 'ours'; choose from DeCUR", ""),
        ({"along": "width"}, "along: goes with methods.NAME.at", ""),
        ({"methods": {"CLIP": {"at": 3}}}, "along: goes with methods.NAME.at", ""),
        ({"seed": [1]}, "seed: unknown key", "did you mean seeds?"),
        ({"data": {"class_path": "decur.data.Scenes"}}, "methods.DeCUR: data: ", "'Scenes'"),
        ({"seeds": [0, -1]}, "seeds: must not be negative, -1 is", ""),
        ({"seeds": [1, 1]}, "seeds: 1 is there twice", ""),
        ({"label_fractions": []}, "label_fractions: is empty", ""),
        ({"backbones": []}, "backbones: is empty", ""),
        ({"data": None}, "data: must be a mapping", ""),
        ({"transfer": None}, "transfer: must be a mapping", ""),
        ({"tasks": {"cover": {"transfer": None}}}, "tasks.cover.transfer: must be a mapping", ""),
        ({"methods": {"random": None}}, "methods: each is a mapping of keys", "null is not"),
        ({"methods": {"a": {"pretrian": {}}}}, "methods.a.pretrian: unknown key", "pretrain?"),
        ({"methods": {"a": {"tasks": "x"}}}, "methods.a.tasks: there is no 'x'", "from cover"),
        ({"methods": {"a": {"tasks": {}}}}, "methods.a.tasks: expected list", "got '{}'"),
        ({"tasks": {"cover": {"metrc": {}}}}, "tasks.cover.metrc: unknown key", "metric?"),
        ({"methods": {"a": {"pretrain.seed": 1}}}, "methods.a.pretrain.seed: each cell", "seeds"),
        ({"transfer": {"loader": 4}}, "tasks.cover of DeCUR: loader: has keys of its own", ""),
        ({"pretrain": {"base": 3}}, "methods.DeCUR: base: must be a file or a recipe's name", ""),
        ({"pretrain": {"base": "demo", "seed": 3}}, "pretrain.seed: each cell has its own; ", ""),
        ({"methods": {"a": {"pretrain": {"run": "x"}}}}, "methods.a.pretrain.run: ", ""),
        ({"transfer": {"modalities": ["sar"]}}, "transfer.modalities: each cell ", ""),
        (
            {"tasks": {"cover": {"transfer": {**COVER, "label_fraction": 0.1}}}},
            "tasks.cover.transfer.label_fraction: each cell has its own; give label_fractions",
            "",
        ),
        (
            {"methods": {"a": {"transfer": {"encoders": "runs/x"}}}},
            "methods.a.transfer.encoders: each cell has its own; give methods.NAME.encoders",
            "pretrain: null",
        ),
        ({"methods": {"a": {"encoders": ["x"]}}}, "methods.a.encoders: x would not", "null, too"),
        (
            {"pretrain": {"base": "demo", "encoder": {"name": "resnet18"}}},
            "pretrain.encoder.name: is 'resnet18', and 'test_resnet' in backbones",
            "",
        ),
        (
            {"transfer": {"encoder.name": "resnet18"}},
            "transfer.encoder.name: is 'resnet18', and 'test_resnet' in backbones",
            "",
        ),
        (
            {"tasks": {"cover": {"transfer": {**COVER, "encoder": {"name": "resnet18"}}}}},
            "tasks.cover.transfer.encoder.name: is 'resnet18', and 'test_resnet' in backbones",
            "",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_said_in_a_line_before_anything_runs(refused, changes, start, end):
    line = refused(**changes)
    assert line.startswith(start) and line.split("; see")[0].endswith(end), line


def test_a_wrong_key_is_found_in_the_last_method_and_task():
    methods = {name: MethodSettings(None) for name in ("a", "b")}
    tasks = {
        "cover": TaskSettings(COVER),
        "cloud": TaskSettings({"targets": "cloud"}, methods=["b"]),
    }
    with pytest.raises(ConfigError, match=r"^tasks\.cloud of b: targets: unknown key"):
        plan(methods=methods, tasks=tasks)


def test_without_backbones_there_is_the_one_that_the_pretraining_names():
    def names(**changes):
        found = plan(**{"backbones": None, **changes})
        assert all(settings(c)["encoder.name"] == c.backbone for c in found)
        return {c.method: c.backbone for c in found}

    assert names(pretrain={}) == {"DeCUR": "resnet50"}  # that of `decur pretrain`
    assert names(pretrain={"base": "ssl4eo-vit"}) == {"DeCUR": "vit_small_patch16_224"}
    methods = {"random": MethodSettings(None), "ViT": MethodSettings({"base": "ssl4eo-vit"})}
    assert names(methods=methods, pretrain={"encoder.name": "resnet18"}) == {
        **{"random": "resnet18", "ViT": "resnet18"}  # what is written wins over what is built on
    }
    assert names(methods=methods, pretrain={}) == {
        **{"random": "vit_small_patch16_224", "ViT": "vit_small_patch16_224"}
    }
    named_or_not = [
        {c.folder for c in plan(backbones=given, pretrain={"base": "ssl4eo-vit"})}
        for given in (None, ["vit_small_patch16_224"])
    ]
    assert named_or_not[0] == named_or_not[1]


def test_a_backbone_of_a_recipe_may_be_another_than_the_one_that_is_written():
    found = cells("pretrain", pretrain={"base": "ssl4eo-vit"}, backbones=["test_resnet"])
    assert [settings(c)["encoder.name"] for c in found] == ["test_resnet"]


def test_a_backbone_may_be_named_as_it_likes():
    names = {"for transfer": "test_resnet", "other": "resnet18"}
    found = cells("pretrain", backbones={name: {"encoder.name": names[name]} for name in names})
    assert {cell.backbone: settings(cell)["encoder.name"] for cell in found} == names


def test_a_dry_run_prints_the_cells_in_order_and_writes_nothing(tmp_path, capsys):
    config = {
        "run": str(tmp_path / "run"),
        "data": SCENES,
        "pretrain": {"base": "demo"},
        "methods": {"zeta": {"pretrain": None}, "alpha": {}, "Mid": {"pretrain": None}},
        "tasks": {"cover": {"transfer": COVER}},
        "backbones": ["test_resnet"],
        "seeds": [0],
    }
    file = tmp_path / "compare.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    main(["compare", f"--config={file}", "--dry_run=true"])
    printed = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert printed[1:] == [
        "cells     4: 0 done, 4 to do",
        "cover, zeta, test_resnet, 100 %, seed 0",
        "pretraining, alpha, test_resnet, seed 0",
        "cover, alpha, test_resnet, 100 %, seed 0",
        "cover, Mid, test_resnet, 100 %, seed 0",
    ]
    main(["compare", f"--config={file}", "--dry_run=true", "--only=cover, alpha"])
    printed = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert printed[1:] == [
        "cells     4: 0 done, 2 to do",
        "pretraining, alpha, test_resnet, seed 0",  # which the other needs
        "cover, alpha, test_resnet, 100 %, seed 0",
    ]
    with pytest.raises(SystemExit):
        main(["compare", f"--config={file}", "--only=beta"])
    assert "--only beta: no cell's label contains it" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [file]


def test_all_seeds_test_on_folds_of_one_partition(tmp_path, caplog):
    run = tmp_path / "run"
    found = [settings(cell) for cell in cells(run=run, seeds=[0, 1, 2])]
    assert [s["fold"] for s in found] == [0, 1, 2]
    # the partition of seed 0, whose cells stay those of version 0.1
    assert [s["fold_seed"] for s in found] == [None, 0, 0] and not caplog.messages
    named = [settings(cell) for cell in cells(run=run, seeds=[0, 1], transfer={"fold": 2})]
    assert [(s["fold"], s["fold_seed"]) for s in named] == [(2, None), (2, None)]
    # what version 0.1 did with folds of groups is kept: no seed shuffles them
    old = cells(run=run, seeds=[1], transfer={"fold": 1})[0].folder
    old.mkdir(parents=True)
    for groups, same in ((4, True), (None, False)):
        (old / "results.json").write_text(json.dumps({"groups": groups}))
        assert (cells(run=run, seeds=[1])[0].folder == old) == same
    plan(run=run, seeds=[0, 1, 2, 3, 4, 5])
    assert "6 seeds share 5 folds, so some test on the same samples" in caplog.text


def test_a_comparison_may_test_on_other_data(tmp_path):
    transfer = {"test_data.samples": 8, "test_data.seed": 5}
    (cell,) = cells(run=tmp_path / "run", seeds=[1], transfer=transfer)
    chosen = yaml.load(cell.config, LOADER)
    assert chosen["test_data"] == {"samples": 8, "seed": 5}
    assert chosen["fold"] == 0 and chosen["fold_seed"] is None  # nothing is split


# -- pretraining that has not seen what tests ------------------------------------------------------


def write_places(root, places=12, each=4):
    """Pairs of PNG, `each` of every place, of which every other has a label."""
    rows = [(f"{place:02d}_{n}", place, n) for place in range(places) for n in range(each)]
    for sensor in ("a", "b"):
        (root / sensor).mkdir(parents=True)
        for number, (name, *_) in enumerate(rows):
            Image.new("L", (8, 8), number).save(root / sensor / f"{name}.png")
    labels = [f"{name},{'xy'[place % 2] if n % 2 else ''}" for name, place, n in rows]
    (root / "labels.csv").write_text("\n".join(["id,cover:class", *labels, ""]))
    splits = [f"{name},train,place{place}" for name, place, _ in rows]
    (root / "splits.csv").write_text("\n".join(["id,split,group", *splits, ""]))
    return {"root": str(root)}


def opened(cell, parser, tmp_path):
    """The data and the settings of a cell, as its command makes them."""
    (tmp_path / "config.yaml").write_text(cell.config)
    return parser.instantiate(parser.parse(["--config", str(tmp_path / "config.yaml")]))


@pytest.mark.parametrize("grouped", [False, True])
def test_a_fold_that_tests_is_left_out_of_its_pretraining(grouped, tmp_path):
    data = write_places(tmp_path / "pairs") if grouped else SCENES
    found = plan(
        data=data,
        pretrain={} if grouped else {"base": "demo"},
        unseen_test=True,
        seeds=[0, 1, 6],
    )
    pretrainings = {cell.folder: cell for cell in found if cell.command == "pretrain"}
    tested = {}
    for cell in (cell for cell in found if cell.command == "transfer"):
        made = opened(pretrainings[cell.needs[0]], pretrain_parser(), tmp_path)
        seen = seen_data(made.data, PretrainSettings(without_fold=made.without_fold))
        made = opened(cell, transfer_parser(), tmp_path)
        whole, task = made.data, choose_task(made.data.targets, "cover")
        labels = np.stack([whole.read(row)["target"]["cover"].numpy() for row in range(len(whole))])
        kept = {name: made[name] for name in ("fold", "folds", "fold_seed", "folds_of")}
        sensors = list(whole.modalities)
        parts = choose_parts(whole, whole, task, labels, sensors, TransferSettings(**kept))
        test, train = parts.ids(parts.test), parts.ids(parts.train)
        assert set(train) <= set(seen.ids) and not set(test) & set(seen.ids)
        if grouped:  # of the places that test nothing is seen, labelled or not
            assert not set(seen.groups) & set(parts.groups(parts.test))
            assert len(seen) == 48 - 2 * len(test) and len(train) + len(test) == 24
        else:
            assert len(seen) == 32 and len(test) == 8
        tested[cell.seed] = set(test)
    assert tested[1] == tested[6] and not tested[0] & tested[1]


def test_tasks_of_other_folds_are_refused_and_other_data_is_told_of(caplog):
    cover = TaskSettings({"target": "cover"})
    tasks = {"cover": cover, "cloud": TaskSettings({"target": "cloud", "folds": 3})}
    with pytest.raises(ConfigError, match=r"unseen_test: the tasks of DeCUR .* different folds"):
        plan(tasks=tasks, unseen_test=True)
    found = plan(pretrain={"base": "demo", "data.start": 5000}, unseen_test=True)
    assert "DeCUR is pretrained on other data than cover tests on" in caplog.text
    assert settings(found[0])["without_fold"] is None
    found = plan(pretrain={"base": "demo", "data.samples": 60}, unseen_test=True)
    assert "reads the same data otherwise; give both the same samples" in caplog.text
    assert settings(found[0])["without_fold"] is None and found[1].transductive


def test_what_tests_on_a_split_leaves_nothing_out():
    split = {"target": "cover", "train_split": "train", "test_split": "test"}
    first, second = plan(tasks={"cover": TaskSettings(split)}, unseen_test=True)
    assert settings(first)["without_fold"] is None
    assert settings(second)["folds_of"] == "labelled"


def test_parts_that_a_share_to_be_counted_makes_may_be_probed():
    auto = {"auto": MethodSettings({"objective.common": "auto"})}
    (found,) = cells(methods=auto, transfer={"representation": "unique"})
    assert settings(found)["representation"] == "unique"
    with pytest.raises(ConfigError, match=r"no block:optical\+sar dimensions"):
        plan(methods=auto, transfer={"representation": "block:optical+sar"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"methods": {"blocks": MethodSettings({"objective.blocks": {"optical+sar": 0.5}})}},
            "methods.blocks: objective.common 0.75 and objective.blocks both say",
        ),
        (
            {"transfer": {"representation": "block:optical+sar"}},
            r"tasks.cover of DeCUR: .* no block:optical\+sar dimensions; choose from features",
        ),
    ],
    ids=["options of a method", "a part that it has not"],
)
def test_methods_are_made_before_any_is_trained(changes, message):
    with pytest.raises(ConfigError, match=message):
        plan(**changes)
