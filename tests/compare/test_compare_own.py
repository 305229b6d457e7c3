"""One's own pairs with labels: `base: compare-own` and a few lines, on real pictures."""

import csv
import json
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
import yaml
from PIL import Image

from decur.cli import main

OMBRIA = Path(__file__).resolve().parents[3] / "shared" / "data" / "ombria"
TINY = {
    "encoder.name": "test_resnet",
    "projector.width": 16,
    "views.size": 32,
    "loader": {"batch_size": 16, "workers": 0},
    "trainer": {"max_epochs": 1, "limit_train_batches": 1, "accelerator": "cpu"},
    "monitor.every_epochs": 0,
}
# As README has it: a class that both sensors tell, a number and a class that one alone tells.
OWN = {
    "base": "compare-own",
    "pretrain": {"optimizer": {"name": "adamw", "lr": 0.0005}, **TINY},
    "transfer": {"probe": "auto", "loader.workers": 0, "device": "cpu", "bootstrap": 0},
    "backbones": ["test_resnet"],
    "methods": {"random": {"pretrain": None}, "DeCUR": {}},
    "tasks": {
        "water": {"transfer": {"target": "water"}, "modalities": [["s1"], ["s1", "s2"]]},
        "echo": {"transfer": {"target": "echo"}, "modalities": [["s1"]], "table": "one alone"},
        "light": {"transfer": {"target": "light"}, "modalities": [["s2"]], "table": "one alone"},
    },
    "label_fractions": [1.0],
    "seeds": [0],
    "cluster": {"name": "debug"},
}


@pytest.fixture
def floods(tmp_path):
    """Forty flooded places with labels taken from their masks and pictures."""
    root, rows = tmp_path / "floods", []
    for sensor in ("s1", "s2"):
        (root / sensor).mkdir(parents=True)
    with (OMBRIA / "splits.csv").open(newline="") as file:
        groups = {row["id"]: row["cluster"] for row in csv.DictReader(file)}
    for mask in sorted((OMBRIA / "mask").iterdir())[::17][:40]:
        for sensor in ("s1", "s2"):
            (root / sensor / mask.name).symlink_to(OMBRIA / sensor / mask.name)
        share, echo, light = (
            np.asarray(Image.open(OMBRIA / part / mask.name)).mean()
            for part in ("mask", "s1", "s2")
        )
        rows.append((mask.stem, share, f"{echo:.3f}", light))
    water, light = (np.median([row[column] for row in rows]) for column in (1, 3))
    table = ["id,water,echo,light"] + [
        f"{id_},{'much' if w > water else 'little'},{e},{'bright' if b > light else 'dark'}"
        for id_, w, e, b in rows
    ]
    (root / "labels.csv").write_text("\n".join(table))
    split = ["id,split,group"] + [f"{row[0]},all,{groups[row[0]]}" for row in rows]
    (root / "splits.csv").write_text("\n".join(split))
    return root


def compared(folder: Path, data: Path, **changes) -> Path:
    file, run = folder / "mine.yaml", folder / "run"
    file.write_text(
        yaml.safe_dump({**OWN, "data": {"root": str(data)}, **changes}, sort_keys=False)
    )
    main(["compare", f"--config={file}", f"--run={run}"])
    return run


@pytest.mark.realdata
@pytest.mark.skipif(not OMBRIA.is_dir(), reason=f"no real data at {OMBRIA}")
def test_real_pairs_with_labels_are_compared_by_one_file(floods, tmp_path, capsys):
    run = compared(tmp_path, floods)
    said = capsys.readouterr().out
    assert "water: 2 classes" in said and "echo: number" in said
    with (run / "tables.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if not row["against"]]
    columns = [("water", "s1", "accuracy"), ("water", "s1+s2", "accuracy")]
    columns += [("echo", "s1", "R2"), ("light", "s2", "accuracy")]
    assert sorted(
        tuple(row[k] for k in ("method", "task", "modalities", "metric")) for row in rows
    ) == sorted((method, *column) for method in OWN["methods"] for column in columns)
    assert all(row["seeds"] == "1" and not row["failed"] for row in rows)
    models = {
        task: {
            json.loads(found.read_text())["model"]
            for found in run.glob(f"transfer/{task}-*/results.json")
        }
        for task in OWN["tasks"]
    }
    assert models == {
        "water": {"linear head (logistic)"},
        "echo": {"linear head (ridge)"},
        "light": {"linear head (logistic)"},
    }


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"transfer": {"target": "wood"}}, "tasks.wood: target: the data has no label 'wood'"),
        (
            {"transfer": {"target": "water"}, "modalities": [["s3"]]},
            "tasks.wood: modalities: the data has no sensor 's3'; choose from s1",
        ),
        (
            {"transfer": {"target": "water", "test_data.root": "ELSEWHERE"}},
            "tasks.wood: test_data: the training data has no class 'none' of 'water'",
        ),
    ],
)
def test_a_label_or_sensor_that_is_not_there_is_told_before_anything_is_pretrained(
    task, message, make_pairs, tmp_path, capsys
):
    root = make_pairs({"s1": 1}, samples=4, size=16)
    (root / "labels.csv").write_text("id,water\n0000,much\n0001,little\n")
    if "test_data.root" in task["transfer"]:
        other = copytree(root, tmp_path / "other")
        (other / "labels.csv").write_text("id,water\n0000,much\n0001,none\n")
        task = {"transfer": {**task["transfer"], "test_data.root": str(other)}}
    with pytest.raises(SystemExit) as stopped:
        compared(tmp_path, root, tasks={"wood": task})
    assert stopped.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_method_of_sensors_that_are_not_there_is_told_before_anything_is_pretrained(
    make_pairs, tmp_path, capsys
):
    root = make_pairs({"s1": 1, "s2": 1}, samples=4, size=16)
    (root / "labels.csv").write_text("id,water\n0000,much\n0001,little\n")
    blocks = {"objective.blocks": {"s1+s3": 0.5}, "objective.common": 0.875}
    water = {"transfer": {"target": "water"}}
    with pytest.raises(SystemExit) as stopped:
        compared(tmp_path, root, tasks={"water": water}, methods={"DeCUR": {"pretrain": blocks}})
    said = "methods.DeCUR: objective.blocks: 's1+s3' names s3, which is not trained on"
    assert stopped.value.code == 2 and said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
