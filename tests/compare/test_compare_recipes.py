"""The comparisons that ship: every cell's configuration is right."""

import pytest

from decur.cli import main
from decur.config import command_of, recipes


@pytest.mark.parametrize("name", [n for n, t in recipes().items() if command_of(t) == "compare"])
def test_every_comparison_can_be_planned(name, tmp_path, capsys):
    root = ["--data.root=anywhere"] if "data.root" in recipes()[name] else []
    main(["compare", f"--config={name}", f"--run={tmp_path / 'run'}", "--dry_run=true", *root])
    lines = capsys.readouterr().out.splitlines()
    cells = [line.strip() for line in lines[2:]]
    assert f"{len(cells)}: 0 done, {len(cells)} to do" in lines[1] and len(set(cells)) == len(cells)
    for seed in (0, 1, 2):
        assert any(c.startswith("pretraining, DeCUR") and c.endswith(f"seed {seed}") for c in cells)
    assert not (tmp_path / "run").exists()
