"""Where windows lie, and what they weigh."""

import numpy as np
import pytest

from decur.predict.windows import Area, Axis


@pytest.mark.parametrize("axis", [Axis(100, 32, 16), Axis(97, 32, 13, 5), Axis(64, 64, 30)])
def test_every_cell_has_a_weight_and_windows_lie_within(axis):
    total = np.zeros(axis.length)
    for start in axis.starts:
        total[start : start + axis.window] += axis.weights(start)
    assert total.min() > 1e-3
    assert axis.starts[0] == 0 and axis.starts[-1] + axis.window == axis.length
    assert axis.starts == sorted(set(axis.starts))


def test_scenes_that_overlap_are_seen_in_the_same_windows():
    whole, cut = Axis(200, 32, 14, origin=1003), Axis(163, 32, 14, origin=1040)
    shared = {start - 37 for start in whole.starts if 37 < start < 168}
    assert shared < set(cut.starts)


def test_parts_are_whole_units_that_fill_the_area():
    area = Area(7, 3, 1100, 40)
    parts = [area.part(which, 3, 512) for which in (1, 2, 3)]
    assert [(part.row, part.height) for part in parts] == [(7, 512), (519, 512), (1031, 76)]
    assert area.part(1, 4, 512) is None
