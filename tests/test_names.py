"""No name has two meanings: a public class, and what is named like one, has a name of its own."""

import ast
from collections import defaultdict
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "decur"


def defined(kinds):
    """Return `{public name: modules that define it}` at the top of modules."""
    where = defaultdict(set)
    for path in SOURCE.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [node.name] if isinstance(node, ast.ClassDef) else []
            if isinstance(node, ast.Assign):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            for name in names if isinstance(node, kinds) else ():
                if not name.startswith("_"):
                    where[name].add(str(path.relative_to(SOURCE)))
    return where


def test_no_two_public_classes_share_a_name():
    classes = defined(ast.ClassDef)
    assert classes["Modality"] == {"modality.py"}  # they are found at all
    assert {name: paths for name, paths in classes.items() if len(paths) > 1} == {}


def test_no_other_name_is_that_of_a_class():
    classes, others = defined(ast.ClassDef), defined(ast.Assign)
    assert "Arrays" in others
    assert {name: others[name] for name in others.keys() & classes.keys()} == {}
