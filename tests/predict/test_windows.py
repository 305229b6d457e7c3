"""Where windows lie, and what they weigh."""

from types import SimpleNamespace

import numpy as np
import pytest

from decur.data.grid import Grid
from decur.errors import ConfigError
from decur.predict import PredictSettings
from decur.predict.planning import plan_map
from decur.predict.windows import Area, Axis, Tile

GRID = Grid("EPSG:32632", 500_000.0, 5_000_000.0, (10.0, 10.0), 1000, 900)


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


def test_shifted_grids_lie_evenly_within_the_steps_of_each_feature_map(tmp_path):
    encoders = {"s1": SimpleNamespace(strides=[2, 4, 8, 16, 32])}
    predictor = SimpleNamespace(
        encoders=encoders,
        says="class",
        dense=True,
        convolutional=True,
        cell=1,
        bands=("a", "b"),
        classes=("a", "b"),
        reference="s1",
        pictures={"s1": (64, 64)},
        input_size=lambda name, window: None,
        refuse_window=lambda window: None,
    )
    plan = plan_map(predictor, GRID, PredictSettings())
    assert plan.window == (256, 256)  # more than the training's
    shifts = plan.windows.shifts
    assert len(shifts) == 5 and plan.windows.rows.step == 224
    for axis in range(2):
        for stride in (8, 16, 32):
            at = sorted(shift[axis] * 5 / stride % 5 for shift in shifts)
            assert np.abs(np.array(at) - np.arange(5)).max() < 5 / stride  # to a pixel
    tile = Tile(0, 300, 250, 128, 128)
    corners = plan.windows.corners(tile)
    assert len({(row % 32, column % 32) for row, column in corners}) == 5
    total = np.zeros((GRID.height, GRID.width))
    for row, column in corners:
        total[row : row + 256, column : column + 256] += plan.windows.weights((row, column))
    assert total[300:428, 250:378].min() > 4.9  # each grid covers each pixel
    alone = plan_map(predictor, GRID, PredictSettings(shifts=1)).windows
    assert alone.shifts == ((0, 0),) and alone.rows.step == 124
    predictor.convolutional = False  # attention looks at all of a window
    plan = plan_map(predictor, GRID, PredictSettings())
    assert plan.window == (64, 64) and plan.windows.shifts == ((0, 0),)


@pytest.mark.parametrize(("shifts", "told"), [(2, "odd number, is 2"), (17, "from 1 to 15")])
def test_even_or_many_shifts_are_refused(shifts, told):
    with pytest.raises(ConfigError, match=f"shifts: must be .*{told}"):
        PredictSettings(shifts=shifts)


def test_parts_are_whole_units_that_fill_the_area():
    area = Area(7, 3, 1100, 40)
    parts = [area.part(which, 3, 512) for which in (1, 2, 3)]
    assert [(part.row, part.height) for part in parts] == [(7, 512), (519, 512), (1031, 76)]
    assert area.part(1, 4, 512) is None
