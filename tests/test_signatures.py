"""Signatures of the public API: short, and called by keyword after the first two parameters."""

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path

import decur

ROOT = Path(decur.__file__).parent
REFERENCE = ROOT.parents[1] / "docs" / "reference" / "python.md"
POSITIONAL, MOST, MOST_OF_ENTRY_POINTS = 2, 8, 12


def public_functions() -> Iterator[tuple[str, list[inspect.Parameter]]]:
    """Yield the functions and methods of all packages' `__all__`, and their parameters.

    What a dataclass generates is left out, and so is what a library calls: methods that a class
    outside decur declares, such as `forward` and the hooks of Lightning.
    """
    packages = [
        found.name for found in pkgutil.walk_packages(decur.__path__, "decur.") if found.ispkg
    ]
    for module in map(importlib.import_module, ["decur", *packages]):
        for name in getattr(module, "__all__", ()):
            thing = getattr(module, name)
            if inspect.isfunction(thing):
                yield f"{module.__name__}.{name}", [*inspect.signature(thing).parameters.values()]
            if not inspect.isclass(thing):
                continue
            others = [base for base in thing.__mro__ if not base.__module__.startswith("decur")]
            for key, member in vars(thing).items():
                function = getattr(member, "__func__", member)
                if not inspect.isfunction(function) or (key[0] == "_" and key != "__init__"):
                    continue
                if (
                    is_dataclass(thing)
                    if key == "__init__"
                    else any(hasattr(b, key) for b in others)
                ):
                    continue
                bound = 0 if isinstance(member, staticmethod) else 1
                parameters = [*inspect.signature(function).parameters.values()]
                yield f"{module.__name__}.{name}.{key}", parameters[bound:]


def test_parameters_are_given_by_keyword_after_the_first_two():
    """Version 0.1's names took no more by position either: none of them is excepted."""
    by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    found = {
        name: [each.name for each in parameters if each.kind in by_place]
        for name, parameters in public_functions()
    }
    assert {"decur.build_encoder", "decur.PairedFolder.__init__"} <= found.keys()
    assert not {name: places for name, places in found.items() if len(places) > POSITIONAL}


def entry_points() -> set[str]:
    """Return the names in the reference of the Python API, by the last parts of their addresses."""
    return {
        name.rpartition(".")[2] for name in re.findall(r"^::: (\S+)$", REFERENCE.read_text(), re.M)
    }


def test_functions_have_few_parameters():
    documented, wrong = entry_points(), {}
    assert {"pretrain", "PairedFolder"} <= documented
    for file in sorted(ROOT.rglob("*.py")):
        tree = ast.parse(file.read_text())
        owners = {
            id(function): node.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef)
            for function in node.body
        }
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            names = [each.arg for each in (*node.args.posonlyargs, *node.args.args)]
            names = names[1:] if names[:1] in (["self"], ["cls"]) else names
            owner = owners.get(id(node))
            named = owner if owner and node.name == "__init__" else node.name
            most = MOST_OF_ENTRY_POINTS if named in documented else MOST
            if len(names) + len(node.args.kwonlyargs) > most:
                wrong[f"{file.relative_to(ROOT)}:{node.lineno}"] = node.name
    assert not wrong
