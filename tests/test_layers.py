"""Imports go down the list of layers and never back up, and no modules import each other."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import decur

ROOT = Path(decur.__file__).parent

# From the bottom to the top: a module imports from its own layer and from those before it. Imports
# within functions count; those for type checkers alone do not.
LAYERS = (
    *(
        "errors",
        "signals",
        "temporary",
        "renamed",
        "lazy",
        "devices",
        "terminal",
        "memory",
        "bounded_yaml",
        "scaling",
        "modality",
        "digest",
        "registry",
        "verdicts",
    ),
    *(
        "completion",
        "layers",
        "recipes",
        "short_help",
        "config",
        "locks",
        "runs",
        "charts",
        "plotting",
        "report",
        "data",
        "views",
        "encoders",
    ),
    *(
        "objectives",
        "features",
        "scores",
        "probes",
        "agreement",
        "pretrain",
        "transfer",
        "predict",
        "embed",
        "compare",
    ),
    *("explain", "explore", "exchange", "integrations", "bench", "demo"),
    *("command_demo", "command_recipes", "command_runs", "cli", "__main__"),
)
# An exception is (module, what it imports): why.
EXCEPTIONS: dict[tuple[str, str], str] = {}


def imports_of(file: Path) -> set[str]:
    """The modules that a file imports, of decur and of others."""
    found: set[str] = set()
    stack: list[ast.AST] = [ast.parse(file.read_text())]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            stack += node.orelse
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{file}: a relative import"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name for name in inside if is_module(name)}
            # A name of decur itself may be from any layer: within the package it hides where.
            others = inside - modules - {"decur.__version__"}
            assert node.module != "decur" or not others, f"{file}: {others}"
            found |= modules or {node.module}
        else:
            stack += ast.iter_child_nodes(node)
    return found


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split(".")[1:])
    return name.startswith("decur") and (path.with_suffix(".py").is_file() or path.is_dir())


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(("decur", *(part for part in parts if part != "__init__")))


ALL_IMPORTS = {name_of(file): imports_of(file) for file in sorted(ROOT.rglob("*.py"))}
IMPORTS = {
    module: {name for name in names if name.split(".")[0] == "decur"}
    for module, names in ALL_IMPORTS.items()
}


def layer_of(module: str) -> int:
    part = module.split(".")[1] if "." in module else ""
    return LAYERS.index(part) if part else -1  # decur itself offers names and imports on demand


def test_every_module_is_in_a_layer():
    assert {name.split(".")[1] for name in IMPORTS if "." in name} <= set(LAYERS)


def test_imports_go_down():
    up = {
        (module, other)
        for module, others in IMPORTS.items()
        for other in others
        if "." in module and layer_of(other) > layer_of(module)
    }
    assert up == EXCEPTIONS.keys()


def test_no_modules_import_each_other():
    graph = {module: others - {module, "decur"} for module, others in IMPORTS.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" imports ".join(reversed(error.args[1]))) from None


def test_two_modules_alone_import_matplotlib():
    drawing = {
        module
        for module, names in ALL_IMPORTS.items()
        if any(name.split(".")[0] == "matplotlib" for name in names)
    }
    assert drawing == {"decur.plotting", "decur.charts"}


def test_contributing_lists_every_module_below_what_it_imports():
    text = (ROOT.parent.parent / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| (`\w+(?:\.py|/)`.*?) \|", text, re.MULTILINE)
    row_of = {
        name: row
        for row, cell in enumerate(rows)
        for name in re.findall(r"`(\w+)(?:\.py|/)`", cell)
    }
    command_line = {"__main__", "command_demo", "command_recipes", "command_runs"}  # as `cli`
    assert set(LAYERS) - command_line == row_of.keys()
    for module, others in IMPORTS.items():
        name, *_ = module.split(".")[1:] or [""]
        below = {other for other in others if "." in other and name in row_of}
        for other in (other.split(".")[1] for other in below):
            assert row_of[other] <= row_of[name], f"{name} imports {other}"
