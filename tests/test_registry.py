"""Items register themselves, are found by name or place, and a wrong name gets a hint."""

import sys

import pytest

from decur.errors import ConfigError
from decur.registry import Registry


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of two modules that register a function each, and one command."""
    folder = tmp_path / "shapes_of_test"
    (folder / "inner").mkdir(parents=True)
    (folder / "__init__.py").write_text(
        "from decur.registry import Registry\nSHAPES = Registry('shape', __name__)\n"
    )
    text = "from shapes_of_test import SHAPES\n@SHAPES.register('{0}')\ndef {0}(): return '{0}'\n"
    (folder / "circle.py").write_text(text.format("circle"))
    (folder / "inner" / "__init__.py").write_text("")
    (folder / "inner" / "square.py").write_text(text.format("square"))
    (folder / "command_draw.py").write_text("raise RuntimeError('a command was imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "shapes_of_test"
    for name in [name for name in sys.modules if name.startswith("shapes_of_test")]:
        del sys.modules[name]


def test_modules_are_imported_when_a_name_is_asked_for_and_not_before(package):
    shapes = __import__(package).SHAPES
    assert f"{package}.circle" not in sys.modules
    assert shapes.get("square")() == "square"
    assert shapes.names() == ["circle", "square"]
    assert f"{package}.command_draw" not in sys.modules


@pytest.mark.parametrize("separator", [":", "."])
def test_an_item_is_found_where_it_is_defined(package, separator):
    registry: Registry[object] = Registry("shape", package)
    assert registry.get(f"{package}.circle{separator}circle")() == "circle"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cirle", "no shape 'cirle'; did you mean circle\\?"),
        ("zzz", "no shape 'zzz'; choose from circle, square"),
        ("no_such_module:thing", "'no_such_module' cannot be imported .*PYTHONPATH"),
        ("shapes_of_test.circle:thing", "'shapes_of_test.circle' has no 'thing'"),
    ],
)
def test_a_wrong_name_is_refused_with_a_hint(package, name, message):
    with pytest.raises(ConfigError, match=message):
        __import__(package).SHAPES.get(name)
    with pytest.raises(ConfigError, match=r"^size\.shape: "):
        __import__(package).SHAPES.get(name, key="size.shape")


def test_two_items_of_one_name_are_refused(package):
    shapes = __import__(package).SHAPES
    shapes.names()
    with pytest.raises(ConfigError, match=r"two items .* 'circle'"):

        @shapes.register("circle")
        def other() -> None: ...


def test_modules_of_ones_own_come_from_the_environment(package, tmp_path, monkeypatch):
    (tmp_path / "shapes_of_mine.py").write_text(
        "from shapes_of_test import SHAPES\nSHAPES.register('mine')(7)\n"
    )
    monkeypatch.setenv("DECUR_IMPORT", "shapes_of_mine")
    assert __import__(package).SHAPES.get("mine") == 7
    (tmp_path / "broken_of_mine.py").write_text("1 / 0\n")
    monkeypatch.setenv("DECUR_IMPORT", "broken_of_mine")
    with pytest.raises(ConfigError, match=r"cannot be imported \(ZeroDivisionError: division"):
        Registry("shape", package).names()
    monkeypatch.setenv("DECUR_IMPORT", "no_such_module")
    with pytest.raises(ConfigError, match="DECUR_IMPORT: module 'no_such_module'"):
        Registry("shape", package).names()
