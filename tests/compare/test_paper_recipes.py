"""The recipes of the paper's tables: its settings, its scores, and encoders that fit the tasks."""

import re
from pathlib import Path

import pytest
import yaml
from make_bigearthnet_mm import make_bigearthnet_mm
from make_geonrw import make_geonrw
from make_nyu import make_nyu
from make_ssl4eo_s12 import make_ssl4eo_s12
from make_sunrgbd import make_sunrgbd

from decur.bounded_yaml import LOADER
from decur.cli import main
from decur.compare.plan import plan_cells
from decur.compare.tables import find, published_scores, published_table
from decur.pretrain import OptimizerSettings, ProjectorSettings
from decur.pretrain.command_pretrain import parse
from decur.recipes import command_of, describe_recipe, find_config, recipes

LARS, ADAMW = ("lars", 0.2, 0.0048, 1e-6), ("adamw", 1e-4, 1e-4, 0.01)
# Section 4 and appendix B.1, typed from the paper: share of common dimensions, batch, passes over
# the data, samples of a picture in one of our epochs, optimiser with rates and decay; those of ViT
# are in the public scripts alone.
PRETRAINED = {
    "ssl4eo": (0.875, 256, 100, 4, LARS),
    "ssl4eo-vit": (0.875, 512, 200, 4, ADAMW),
    "geonrw": (0.75, 256, 100, 1, LARS),
    "geonrw-vit": (0.75, 512, 200, 1, ADAMW),
    "sunrgbd": (0.75, 128, 200, 1, LARS),
    "sunrgbd-mit": (0.75, 128, 200, 1, ADAMW),
}
# The rows of its tables that are pretrained with what there is here, each under our name of it.
ROWS = {
    "compare-ssl4eo": {
        **{"random": "Rand. Init.", "supervised": "Supervised", "SimCLR": "SimCLR-cross"},
        **{"CLIP": "CLIP", "Barlow Twins": "Barlow Twins", "Barlow Twins, SAR": "BT-SAR"},
        **{"VICReg": "VICReg", "DeCUR": "DeCUR (ours)"},
    },
    "compare-ssl4eo-outside": {
        **{"SeCo": "SeCo", "SSL4EO MoCo": "SSL4EO", "FG-MAE": "FG-MAE", "CROMA": "CROMA"},
        **{"DeCUR": "DeCUR (ours)", "DeCUR, released": "DeCUR (ours)"},
    },
    "compare-ssl4eo-vit": {"random": "Rand. Init.", "SimCLR": "SimCLR", "DeCUR": "DeCUR (ours)"},
    "compare-geonrw": {
        **{"random": "Rand. Init.", "supervised": "Supervised", "SimCLR": "SimCLR-cross"},
        **{"CLIP": "CLIP", "Barlow Twins": "Barlow Twins", "VICReg": "VICReg"},
        **{"Barlow Twins, RGB": "BarlowTwins-RGB", "DeCUR": "DeCUR (ours)"},
    },
    "compare-geonrw-vit": {"random": "Rand. Init.", "SimCLR": "SimCLR", "DeCUR": "DeCUR (ours)"},
    **{
        f"compare-attention-{data}": {
            **{"DeCUR": "w/o. DA", "DeCUR, DA": "with DA", "DeCUR, RDA": "with RDA"},
            **{"DeCUR, cross DA": "Cross DA", "DeCUR, CBAM": "CBAM"},
        }
        for data in ("ssl4eo", "geonrw")
    },
    **{
        f"compare-loss-{data}": {
            **{"DeCUR": "DeCUR (ours)", "DeCUR without intra": "w/o intra"},
            "DeCUR without intra and decoupling": "w/o intra&decoup.",
            "DeCUR without decoupling": "w/o decoup.",
        }
        for data in ("ssl4eo", "geonrw")
    },
    "compare-sunrgbd": {"random": "FCN", "CLIP": "FCN (CLIP)", "DeCUR": "FCN (DeCUR)"},
    "compare-sunrgbd-cmx": {"ImageNet": "CMX-B2", "DeCUR": "CMX-B2 (DeCUR)"},
    "compare-nyu-cmx": {"ImageNet": "CMX-B5", "DeCUR": "CMX-B5 (DeCUR)"},
}
UNPRINTED = {"SSL4EO DINO", "SoftCon", "Satlas", "DOFA"}  # beside them
SCORED = {name for name, text in recipes().items() if re.search(r"^# score ", text, re.M)}


def cells_of(name, monkeypatch, tmp_path, *arguments):
    """The cells of a comparison that ships."""
    plans = []
    with monkeypatch.context() as patched:
        patched.setattr("decur.compare.run.plan_cells", lambda plan: plans.append(plan) or [])
        folders = (f"--run={tmp_path / 'run'}", f"--pretrained={tmp_path / 'pretrained'}")
        given = (*folders, "--dry_run=true", *arguments)
        main(["compare", f"--config={name}", *given])
    return plan_cells(plans[0])


@pytest.mark.parametrize("name", PRETRAINED)
def test_pretraining_is_as_the_paper_says(name):
    common, batch, passes, repeats, (optimiser, *rates) = PRETRAINED[name]
    settings = parse([f"--config={name}", "--data.root=X"])[1]
    losses = settings.objective.init_args
    weights = {losses.lambda_common, losses.lambda_unique, losses.lambda_intra}
    assert settings.objective.class_path.endswith(".DeCUR") and losses.common == common
    assert weights == {0.0051} and losses.intra and losses.decouple
    assert (settings.projector.width, settings.projector.layers) == (8192, 3)
    own = {"vit": "vit_small_patch16_224", "mit": "mit_b2"}.get(name[-3:])
    assert settings.encoder.name == (own or "resnet50")
    assert settings.encoder.attention == (None if own else "rda")
    assert settings.encoder.geometry == "dat" and settings.encoder.pretrained == bool(own)
    assert settings.pairing == ("group" if name.startswith("ssl4eo") else "fixed")
    assert settings.views.levels == (None if name.startswith("sunrgbd") else 256)
    crops = {"rgb": {"crop_scale": [0.5, 1.0]}} if name.startswith("sunrgbd") else {}
    assert settings.views.augment == crops and settings.views.recipes == "paper"
    assert settings.loader.batch_size == batch and settings.views.size == 224
    assert settings.trainer.max_epochs * repeats == passes
    assert settings.optimizer.name == optimiser and not settings.optimizer.warmup_epochs
    assert OptimizerSettings(**vars(settings.optimizer)).rates() == pytest.approx(rates)
    assert settings.trainer.precision == "bf16-mixed"  # float32 activations exceed 80 GB
    assert settings.optimizer.momentum == 0.9 and not settings.optimizer.scale_lr


def test_every_recipe_of_the_paper_says_its_score():
    of_paper = {name for name, text in recipes().items() if "(Table" in describe_recipe(text)}
    assert of_paper == SCORED - set(ROWS) and set(ROWS) < SCORED
    assert set(PRETRAINED) == {n for n in of_paper if command_of(recipes()[n]) == "pretrain"}


@pytest.mark.parametrize("name", sorted(SCORED))
def test_a_score_in_a_header_is_one_of_decur_in_the_table_it_names(name):
    header = re.search(r"^# score +(.*?)^(?:# [a-z]|[^#])", recipes()[name], re.M | re.S)[1]
    told = re.split(r"\(Table (\d)\)", header)
    tables, claimed = told[1::2], [re.findall(r"\d\d\.\d", part) for part in told[::2]]
    if len(tables) == 1:  # of all that is said
        claimed = [[score for part in claimed for score in part]]
    for number, part in zip(tables, claimed, strict=False):
        scores = published_scores()
        ours = scores["method"].str.contains("DeCUR|w/o. DA")
        there = scores[ours & scores["table"].str.startswith(f"table{number}-")]["value"].dropna()
        printed = {f"{value:.1f}" for value in there}
        assert part and set(part) <= printed


@pytest.mark.parametrize("name", ROWS)
def test_each_line_of_a_comparison_has_its_published_row(name, planned):
    tasks = yaml.load(recipes()[name], LOADER)["tasks"]
    printed = {"mAP_micro": "mAP", "mIoU": "mIoU", "overall_accuracy": "OA"}
    compared = set()
    for cell in planned(name)[1]:
        if cell.command == "pretrain" or cell.method in UNPRINTED:
            continue
        frozen = yaml.load(cell.config, LOADER)["freeze"]
        task = tasks[cell.task]
        tables = [published_table(table) for table in task["published"]]
        for metric in task["metric"] if isinstance(task["metric"], list) else [task["metric"]]:
            found = [
                find(
                    table,
                    training="frozen" if frozen else ("fine-tuned", "supervised"),
                    label_fraction=cell.label_fraction,
                    modalities=cell.modalities or None,  # named where not all are used
                    metric=printed[metric],
                )
                for table in tables
            ]
            dashes = [table[table["value"].isna()] for table in tables]
            rows = {method for table in [*found, *dashes] for method in table["method"]}
            assert ROWS[name][cell.method] in rows, (cell.label, metric)
        compared.add(cell.method)
    assert compared == set(ROWS[name])


@pytest.mark.parametrize("name", [name for name in ROWS if "SimCLR" in ROWS[name]])
def test_simclr_and_clip_have_the_heads_of_the_public_code(name, planned):
    """Its simclr.py and clip.py: Linear 512, batch norm, ReLU, Linear 128, batch norm; tau 1."""
    for cell in planned(name)[1]:
        if cell.command != "pretrain":
            continue
        config = yaml.load(cell.config, LOADER)
        if cell.method not in ("SimCLR", "CLIP"):
            assert config["projector"]["width"] == 8192 and not config["projector"]["last_norm"]
            continue
        head = ProjectorSettings(**config["projector"]).build(64)
        assert [type(layer).__name__ for layer in head] == [
            *("Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d")
        ]
        assert [head[0].out_features, head[3].out_features] == [512, 128]
        own = config["objective"]["init_args"]
        assert own["temperature"] == 1
        assert cell.method == "SimCLR" or (own["symmetric"], own["learned"]) == (False, False)


def test_what_ablations_have_in_common_is_pretrained_once(tmp_path, monkeypatch):
    def pretrained(kind):
        name, data = f"compare-{kind}ssl4eo", ("--pretrain.data.root=X", "--transfer.data.root=Y")
        data += ("--seeds=[0]",)
        cells = cells_of(name, monkeypatch, tmp_path, *data)
        trained = [cell for cell in cells if cell.command == "pretrain"]
        for cell in trained:
            cell.folder.mkdir(parents=True, exist_ok=True)  # as it is once it has begun
        return {(cell.method, cell.backbone): cell.folder for cell in trained}

    without, attended = pretrained("loss-"), pretrained("attention-")
    plain = without["DeCUR", "resnet50"]
    assert attended["DeCUR", "resnet50"] == plain
    assert pretrained("common-")["DeCUR, 87.5 %", "8192 dimensions"] == plain
    assert pretrained("")["DeCUR", "resnet50"] == attended["DeCUR, RDA", "resnet50"] != plain
    for data in ("ssl4eo", "geonrw", "ombria"):
        homes = {
            {key: value for layer in find_config(name) for key, value in layer.items()}[
                "pretrained"
            ]
            for name in recipes()
            if re.match(rf"compare-([a-z]+-)?{data}(-outside)?$", name)
        }
        assert homes == {f"runs/pretrained-{data}"}


def make_data(name, tmp_path):
    """Command-line arguments that name tiny data for a comparison."""
    root = tmp_path / "data"
    if "ssl4eo" in name:
        make_ssl4eo_s12(root / "ssl4eo", {"s1": range(2), "s2c": range(2)})
        kinds = [["Pastures"], ["Sea and ocean"], ["Pastures", "Sea and ocean"]] * 4
        splits = {"train": range(8), "val": range(8, 9), "test": range(9, 12)}
        make_bigearthnet_mm(root / "ben", kinds, splits)
        return [f"--pretrain.data.root={root / 'ssl4eo'}", f"--transfer.data.root={root / 'ben'}"]
    if "geonrw" in name:
        return [f"--data.root={make_geonrw(root, ('bonn', 'herne'), side=128)}"]
    scenes = [f"kv1/NYUdata/NYU{i:04d}" for i in range(12)]
    make_sunrgbd(root, {"train": scenes[:8], "test": scenes[8:]})
    make_nyu(root, range(1, 9), range(9, 13))
    return [f"--data.root={root}", "--data.size=[48,64]"]


@pytest.mark.parametrize(
    "name",
    [
        "compare-geonrw-vit",
        pytest.param("compare-ssl4eo", marks=pytest.mark.slow),
        pytest.param("compare-sunrgbd", marks=pytest.mark.slow),
        pytest.param("compare-sunrgbd-cmx", marks=pytest.mark.slow),
    ],
)
def test_encoders_fit_the_tasks_that_they_are_pretrained_for(name, tmp_path, monkeypatch):
    tiny = {"vit": "test_vit", "cmx": "mit_b0"}.get(name[-3:], "test_resnet")
    encoder, size = f"--encoder.name={tiny}", 64 if tiny == "mit_b0" else 32
    cells = cells_of(name, monkeypatch, tmp_path, *make_data(name, tmp_path))
    cells = [cell for cell in cells if cell.method == "DeCUR"]
    chosen = {cell.task: cell for cell in reversed(cells) if "optical-only" not in cell.task}
    for cell in reversed(chosen.values()):  # one of each task, after the pretraining
        short = [encoder, "--loader.workers=0", "--loader.batch_size=4"]
        if cell.command == "pretrain":
            short += ["--projector.width=16", "--views.size=32", "--trainer.max_epochs=1"]
            short += ["--encoder.pretrained=false"]  # whose weights would have to be downloaded
        else:
            steps = yaml.load(cell.config, LOADER)["fit"]["steps"]
            short += ["--fit.steps=1" if steps else "--fit.epochs=1", f"--size={size}"]
            short += ["--device=cpu", "--label_fraction=1"]
            short += (
                ["--fit.piece=[48,48]", "--test_scales=[1]", "--test_window=[48,48]"]
                if tiny == "mit_b0"
                else []
            )
        cell.folder.parent.mkdir(parents=True, exist_ok=True)
        config = cell.folder.with_suffix(".yaml")
        config.write_text(cell.config)
        main([cell.command, f"--config={config}", *short])
    transfers = [cell.folder for cell in chosen.values() if cell.command == "transfer"]
    assert len(transfers) == {"compare-ssl4eo": 4, "compare-sunrgbd": 2}.get(name, 1)
    assert all((Path(folder) / "results.json").is_file() for folder in transfers)
