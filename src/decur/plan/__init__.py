"""What a pretraining run will cost, before it starts: `decur plan`."""

from decur.plan.calibration import Calibration, calibrate
from decur.plan.costs import Memory, Part, Shape, parts_of
from decur.plan.estimate import plan
from decur.plan.reading import Reading, measure_reading
from decur.plan.result import Plan, Share

__all__ = [
    "Calibration",
    "Memory",
    "Part",
    "Plan",
    "Reading",
    "Shape",
    "Share",
    "calibrate",
    "measure_reading",
    "parts_of",
    "plan",
]
