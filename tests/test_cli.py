"""The command itself: quick to answer, helpful, silent about nothing."""

import subprocess
import sys
import time

import pytest

from decur.cli import COMMANDS, main
from decur.config import command_of, describe, find_config, recipes
from decur.errors import ConfigError


def test_help_needs_no_heavy_import():
    code = (
        "import sys; from decur.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'numpy', 'lightning', 'jsonargparse'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert all(command in out.stdout for command in COMMANDS)
    assert out.stdout.endswith("[]\n")


@pytest.mark.parametrize("command", sorted({*COMMANDS} - {"demo"}))
def test_each_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0 and text.startswith(f"usage: decur {command}")


def test_an_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["pretran"])
    assert stopped.value.code == 2 and "pretrain" in capsys.readouterr().err


def test_recipes_are_listed_and_printed(capsys):
    main(["recipes"])
    listed = capsys.readouterr().out.splitlines()
    named = {line.split()[0]: line for line in listed if line.startswith("  ")}
    assert set(named) == set(recipes()) and len(listed) > len(named)
    assert all(len(line.split()) > 3 for line in named.values())
    for name, text in recipes().items():
        above = [line for line in listed[: listed.index(named[name])] if line[0] != " "]
        assert above[-1] == f"decur {command_of(text)} --config ..."
    main(["recipes", "demo"])
    assert capsys.readouterr().out == recipes()["demo"]


@pytest.mark.parametrize("name", recipes())
def test_a_recipe_says_how_to_run_it_on_what(name):
    text = recipes()[name]
    assert describe(text) and "# hardware" in text
    assert f"decur {command_of(text)} --config {name}" in text and command_of(text) in COMMANDS


def test_a_base_comes_before_what_builds_on_it(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("base: demo\nseed: 7\n")
    layers = find_config(str(path))
    assert len(layers) == 2 and "objective" in layers[0] and layers[1] == {"seed": 7}
    path.write_text("base: nothing\n")
    with pytest.raises(ConfigError, match="nothing"):
        find_config(str(path))


def test_stats_writes_what_pretraining_takes(make_pairs, capsys, tmp_path):
    from decur.data import PairedFolder

    root = make_pairs({"s1": 2, "dem": 1}, samples=6, size=16)
    main(["stats", str(root)])
    assert "modalities.yaml" in capsys.readouterr().out
    made = PairedFolder(root).modalities
    assert made["s1"].augmentation == "sar" and len(made["s1"].mean) == 2
    with pytest.raises(SystemExit) as stopped:
        main(["stats", str(root)])
    assert stopped.value.code == 2 and "--overwrite" in capsys.readouterr().err
    start = time.monotonic()
    main(["stats", str(root), "--overwrite", "--out", str(tmp_path / "m.yaml")])
    assert PairedFolder(root, tmp_path / "m.yaml").modalities == made
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("base", ["demo", "ombria"])
@pytest.mark.parametrize("objective", ["BarlowTwins", "CLIP", "SimCLR", "VICReg"])
def test_a_recipe_that_differed_by_its_objective_names_the_option(base, objective):
    with pytest.raises(ConfigError, match=f"use --config {base} --objective {objective}"):
        find_config(f"{base}-{objective.lower()}")
