"""What labels ask for: a loss, metrics and a picture for each kind of target."""

from decur.data import Target
from decur.transfer.tasks.base import Kept, Task
from decur.transfer.tasks.classification import MultiLabel, SingleLabel
from decur.transfer.tasks.regression import Regression
from decur.transfer.tasks.segmentation import Segmentation

TASKS: dict[str, type[Task]] = {
    "class": SingleLabel,
    "multilabel": MultiLabel,
    "scalar": Regression,
    "mask": Segmentation,
}


def make_task(name: str, target: Target) -> Task:
    """The task of a label.

    Args:
        name: of the label in the data.
        target: what it is.
    """
    return TASKS[target.kind](name, target)


__all__ = [
    "TASKS",
    "Kept",
    "MultiLabel",
    "Regression",
    "Segmentation",
    "SingleLabel",
    "Task",
    "make_task",
]
