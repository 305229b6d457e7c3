"""The command itself: quick to answer, helpful, silent about nothing."""

import subprocess
import sys
import time
import warnings
from importlib import import_module
from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.progress import TimeRemainingColumn

import decur
from decur.cli import COMMANDS, main
from decur.errors import ConfigError, printable
from decur.recipes import command_of, describe_recipe, find_config, recipes
from decur.terminal import progress_bar, quiet


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
def test_each_command_explains_itself(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0 and text.startswith(f"usage: decur {command}")
    assert "optional arguments" not in text and "(type: " not in text  # argparse's own page
    lines = text.splitlines()
    assert len(lines) <= 52 and max(map(len, lines)) <= 80  # a screen of a large terminal


def test_help_shows_first_what_people_set(capsys):
    for words in (["--help"], ["--help-all"]):
        with pytest.raises(SystemExit):
            main(["pretrain", *words])
    first, everything = capsys.readouterr().out.split("usage: decur pretrain")[1:]
    places = [first.index(f"--{key} ") for key in ("data.root", "objective.common", "run")]
    assert places == sorted(places) and "[default: 0.875]" in first
    assert "--checkpoint.keep" in everything and "--checkpoint.keep" not in first


def test_help_offers_only_what_the_command_takes(capsys):
    """No --config where there is none, and as many options as --help-all has."""
    for command, files in (("runs", False), ("neighbors", False), ("predict", True)):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        short = " ".join(capsys.readouterr().out.split())
        assert ("--config" in short) == files
    with pytest.raises(SystemExit):
        main(["runs", "--help"])
    assert "lists all 2 options" in capsys.readouterr().out


def test_help_says_what_must_be_given(capsys):
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    text = " ".join(capsys.readouterr().out.split())  # however wide the terminal is
    assert text.count("required]") == 3 and "torch; required]" in text


def test_help_of_the_demo_shows_its_own_values(capsys):
    main(["demo", "--help"])
    assert "[default: runs/demo]" in capsys.readouterr().out


def test_an_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["pretran"])
    assert stopped.value.code == 2 and "did you mean pretrain?" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["xyz"])
    assert stopped.value.code == 2 and "choose from demo, plan" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("embed runs/a", "runs/a: every value has its option, such as --encoders runs/a"),
        ("pretrain demo", "such as --config demo; `decur pretrain --help`"),
        ("--debug runs", None),
        ("export", "ENCODER, --format, --out: must be given; `decur export --help` says how"),
        ("recipes a b", "b: is too much"),
        ("neighbors a --query", "--query: give a value"),
        (
            "export a --format onnx --out b --size 64",
            r"size: expected [int, int] or null, got '64'",
        ),
        ("pretrain --objective X", "choose from BarlowTwins, CLIP, DeCUR, SimCLR, VICReg"),
    ],
)
def test_a_line_that_is_no_command_says_what_would_be(line, said, capsys):
    with pytest.raises(SystemExit if said else ConfigError) as stopped:
        main(line.split())
    lines = capsys.readouterr().err.splitlines()
    assert said is None or (stopped.value.code == 2 and len(lines) == 1 and said in lines[0])


def test_the_package_runs_as_a_module():
    out = subprocess.run(
        [sys.executable, "-m", "decur", "--version"], text=True, capture_output=True, check=True
    )
    assert out.stdout == f"decur {decur.__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_a_function_of_its_arguments(name):
    module, _, function = COMMANDS[name][0].partition(":")
    assert callable(getattr(import_module(module), function))


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """Ask as a shell does for what completes a line; where the answer will be."""

    def ask(line):
        found = tmp_path / "found"
        found.touch()
        for name, value in {
            **{"_ARGCOMPLETE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": str(found)},
            **{"_ARGCOMPLETE_IFS": "|", "_ARGCOMPLETE_SUPPRESS_SPACE": "1"},
            **{"COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9"},
        }.items():
            monkeypatch.setenv(name, value)
        return found

    return ask


def words_in(answer):
    return set(filter(None, answer.read_text().split("|")))


@pytest.mark.parametrize(
    ("line", "words"),
    [("decur pre", ["predict", "pretrain"]), ("decur ", [*COMMANDS, "-h", "--help"])],
)
def test_the_shell_completes_commands_without_torch(line, words, asked):
    code = "import sys; from decur.cli import main\ntry: main()\nfinally: " + (
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    answer = asked(line)
    run = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True)
    assert words_in(answer) == set(words) and "True" not in run.stderr


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("decur pretrain --views.s", ["--views.shared_geometry", "--views.size"]),
        ("decur pretrain --optimizer.name ", ["lars", "adamw"]),
        ("decur pretrain --objective V", ["VICReg"]),
        ("decur pretrain --config dem", ["demo"]),
        ("decur neighbors --que", ["--query"]),
        ("decur nothing --o", []),
    ],
)
def test_the_shell_completes_options(line, words, asked, apart):
    answer = asked(line)
    apart(main).end()
    assert words_in(answer) == set(words)


def test_recipes_are_listed_for_own_data_first_then_the_papers_by_table(capsys):
    main(["recipes"])
    listed = capsys.readouterr().out.splitlines()
    named = {line.split()[0]: line for line in listed if line.startswith("  ")}
    assert set(named) - {"decur"} == set(recipes())
    for name, text in recipes().items():
        assert named[name].split(maxsplit=2)[1:] == [command_of(text), describe_recipe(text)]
    heads = [line for line in listed if line and line[0] != " "]
    assert heads[0].startswith("Your own") and heads[2].endswith("Table 1")
    tables = [line.split()[-1] for line in heads if "Table" in line]
    assert tables == sorted(tables) == list("123456")
    assert listed.index(named["compare-own"]) < listed.index(heads[1])
    for name in ("demo", "ombria", "compare-ombria"):
        assert listed.index(named[name]) < listed.index(heads[2])
    assert listed.index(named["ssl4eo"]) > listed.index(heads[2])
    main(["recipes", "demo"])
    assert capsys.readouterr().out == recipes()["demo"]


@pytest.mark.parametrize("name", recipes())
def test_a_recipe_says_how_to_run_it_on_what(name):
    text = recipes()[name]
    assert describe_recipe(text) and "# hardware" in text
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


def test_quiet_leaves_warnings_and_the_paths_of_results(make_pairs, capsys):
    root = make_pairs({"s1": 2, "dem": 1}, samples=6, size=16)
    main(["stats", str(root), "--quiet"])
    assert capsys.readouterr() == (f"{root / 'modalities.yaml'}\n", "")
    with pytest.raises(SystemExit):
        main(["stats", str(root), "--quiet"])
    assert capsys.readouterr().err.startswith("error: ")
    with pytest.raises(SystemExit) as stopped:  # nothing would be left of it
        main(["recipes", "--quiet"])
    assert stopped.value.code == 2 and "leave --quiet out" in capsys.readouterr().err


def test_a_bar_is_shown_on_terminals_and_in_notebooks_that_can(monkeypatch):
    def is_shown(**options):
        return not progress_bar(Console(**options), "x", "", TimeRemainingColumn()).disable

    assert is_shown(force_terminal=True) and not is_shown(force_terminal=False)
    monkeypatch.setattr("decur.terminal.find_spec", lambda name: name == "ipywidgets")
    assert is_shown(force_jupyter=True, force_terminal=False)
    monkeypatch.setattr("decur.terminal.find_spec", lambda name: None)
    assert not is_shown(force_jupyter=True, force_terminal=False)
    with quiet():
        assert not is_shown(force_terminal=True)


@pytest.mark.parametrize("base", ["demo", "ombria"])
@pytest.mark.parametrize("objective", ["BarlowTwins", "CLIP", "SimCLR", "VICReg"])
def test_a_recipe_that_differed_by_its_objective_names_the_option(base, objective):
    with pytest.raises(ConfigError, match=f"use --config {base} --objective {objective}"):
        find_config(f"{base}-{objective.lower()}")


@pytest.mark.parametrize("word", ["--data.root=fo\udce9", "--run=\udcff"])
def test_names_that_no_report_could_hold_are_refused(word, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["pretrain", word])
    line = capsys.readouterr().err
    assert stopped.value.code == 2 and line.startswith("error: ") and "UTF-8" in line


def test_names_steer_no_terminal(capsys):
    with pytest.raises(SystemExit):
        main(["a\x1b[31m\x07b"])
    assert not {"\x1b", "\x07"} & {*capsys.readouterr().err}
    assert printable("a\x1b[2J\tb\n") == "a\ufffd[2J\tb\n"


def test_a_warning_of_a_library_is_one_line(monkeypatch, capsys):
    command = SimpleNamespace(main=lambda words: warnings.warn("low\ncontrast", stacklevel=1))
    monkeypatch.setattr("decur.cli.import_module", lambda name: command)
    with warnings.catch_warnings():
        warnings.showwarning = lambda *told: print(
            warnings.formatwarning(*told), end="", file=sys.stderr
        )
        warnings.simplefilter("always")
        main(["recipes"])
    assert capsys.readouterr().err == "WARNING: low contrast\n"
