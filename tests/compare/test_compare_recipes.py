"""The comparisons that ship: every cell's configuration is right."""

import re

import pytest
import yaml

from decur.bounded_yaml import LOADER
from decur.cli import main
from decur.compare.plan import plan_cells
from decur.recipes import command_of, find_config, recipes

COMPARISONS = [name for name, text in recipes().items() if command_of(text) == "compare"]
ALIKE = r"compare-(attention|common|loss|projector|settings|vit)-"  # one axis of another's


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if re.match(ALIKE, n) else n for n in COMPARISONS],
)
def test_every_comparison_can_be_planned(name, planned):
    said, plan = planned(name)
    lines = said.splitlines()
    cells = [line.strip() for line in lines[2:]]
    assert f"{len(cells)}: 0 done, {len(cells)} to do" in lines[1] and len(set(cells)) == len(cells)
    for seed in find_config(name)[0].get("seeds", (0, 1, 2)):
        assert any(c.startswith("pretraining, DeCUR") and c.endswith(f"seed {seed}") for c in cells)
    assert_fresh_weights_are_the_network_of_the_trained_rows(find_config(name)[-1]["methods"], plan)


def assert_fresh_weights_are_the_network_of_the_trained_rows(methods, plan):
    """Methods that name an encoder of their own may train another network."""
    plain = {n for n, m in methods.items() if "encoder" not in str((m or {}).get("pretrain"))}
    trained, fresh = {}, []
    for cell in {(c.command, c.method, c.backbone, c.task): c for c in plan}.values():
        config = yaml.load(cell.config, LOADER)
        encoder = {
            key: config["encoder"][key] for key in ("name", "attention", "geometry", "options")
        }
        if cell.command == "pretrain" and cell.method in plain:
            trained.setdefault(cell.backbone, encoder)
        elif cell.command == "transfer" and config["encoders"] == ["random"]:
            fresh.append((cell, encoder))
    asked = any("encoders" not in m and m.get("pretrain", m) is None for m in methods.values() if m)
    assert bool(fresh) == asked
    for cell, encoder in fresh:
        assert encoder == trained[cell.backbone], cell.label


@pytest.mark.parametrize("name", ["compare-sunrgbd", "compare-sunrgbd-cmx", "compare-ombria"])
def test_tables_say_whether_pretraining_has_seen_what_tests(name, planned):
    cells = [cell for cell in planned(name)[1] if cell.command == "transfer"]
    trained = {cell.method: bool(cell.needs) for cell in cells}
    sun = "sunrgbd" in name  # pretrained on all scenes; the others leave out the fold that tests
    assert {cell.method: cell.transductive for cell in cells} == {
        method: sun and needs for method, needs in trained.items()
    }


def test_the_command_line_changes_single_keys_of_what_is_common(tmp_path, monkeypatch):
    plans = []
    monkeypatch.setattr("decur.compare.run.plan_cells", lambda plan: plans.append(plan) or [])
    main(
        [
            *("compare", "--config=compare-ombria", "--data.root=X", "--dry_run=true"),
            *("--pretrain.trainer.max_epochs", "1", "--pretrain.trainer.precision=bf16-mixed"),
            *(f"--run={tmp_path / 'run'}", "--transfer.precision=bf16-mixed"),
        ]
    )
    monkeypatch.undo()
    cells = plan_cells(plans[0])
    pretraining = yaml.load(next(c.config for c in cells if c.command == "pretrain"), LOADER)
    assert pretraining["trainer"]["max_epochs"] == 1
    assert pretraining["trainer"]["precision"] == "bf16-mixed"
    assert pretraining["views"]["size"] == 64 and pretraining["data"]["init_args"]["root"] == "X"
    transfer = yaml.load(next(c.config for c in cells if c.command == "transfer"), LOADER)
    assert transfer["precision"] == "bf16-mixed" and transfer["loader"]["batch_size"] == 16
    assert set(transfer["data"]["init_args"]["modalities"]) == {"s1", "s2"}
