"""No name has two meanings: a public class has a name of its own."""

import ast
from collections import defaultdict
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "decur"


def test_no_two_public_classes_share_a_name():
    where = defaultdict(set)
    for path in SOURCE.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                where[node.name].add(str(path.relative_to(SOURCE)))
    assert where["Modality"] == {"modality.py"}  # they are found at all
    assert {name: paths for name, paths in where.items() if len(paths) > 1} == {}
