"""Packages import their names on first use, and only then."""

import subprocess
import sys

import pytest

import decur


@pytest.mark.parametrize("name", decur.__all__)
def test_what_is_documented_is_there_from_decur_itself(name):
    assert name in dir(decur) and getattr(decur, name)
    assert name == "__version__" or getattr(decur, name).__name__ == name


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'decur' has no attribute 'Wrong'"):
        _ = decur.Wrong
    assert not hasattr(decur, "wrong")


def test_nothing_is_imported_before_it_is_used():
    code = (
        "import sys, decur; before = 'torch' in sys.modules; decur.DeCUR; "
        "print(before, 'torch' in sys.modules, 'DeCUR' in vars(decur), 'lightning' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert out.stdout.split() == ["False", "True", "True", "False"]
