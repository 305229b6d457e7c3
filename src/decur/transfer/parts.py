"""Which labelled samples train and which test, and whether that can be."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from decur.data import PairedDataset
from decur.errors import DataError
from decur.transfer.splits import Rows, fold_split, shared_groups
from decur.transfer.survey import Survey
from decur.transfer.tasks import Task

log = logging.getLogger(__name__)


def split_parts(
    whole: PairedDataset,
    data: PairedDataset,
    task: Task,
    seen: Survey,
    modalities: Sequence[str],
    folds: tuple[int, int],
    seed: int,
) -> tuple[Rows, Rows]:
    """Labelled samples with one of the sensors at least, to train on and to test on.

    Args:
        whole: all data, that to test on after that to train on.
        data: the data to train on; `whole` itself where folds split it.
        task: whose labels are looked at.
        seen: survey of `whole`.
        modalities: the sensors that are used.
        folds: into how many parts, and which of them tests.
        seed: of the shuffling where there are no groups.

    Returns:
        Rows of `whole` to train on and to test on.

    Raises:
        DataError: if a part is empty, or a class is only in the test part.
        ConfigError: if the folds are impossible.
    """
    known = task.known(seen.labels)
    if not known.any():
        raise DataError(
            f"target: no sample has a known label {task.name!r}; correct labels.csv or mask/"
        )
    there = np.logical_or.reduce([whole.present[name] for name in modalities])
    rows = np.flatnonzero(known & there)
    if whole is data:
        train, test = fold_split(rows, data.groups, *folds, seed)
    else:
        train, test = rows[rows < len(data)], rows[rows >= len(data)]
    for part, chosen in (("training", train), ("test", test)):
        if not len(chosen):
            raise DataError(
                f"the {part} part is empty: none of its samples has a known {task.name!r} and one "
                f"of {', '.join(modalities)}; choose another split or label it"
            )
    log.info(
        "%d of %d samples are labelled and seen: %d to train on, %d to test on",
        *(len(rows), len(whole), len(train), len(test)),
    )
    if shared := shared_groups(whole.groups, train, test):
        log.warning(
            "%d groups are in the training and in the test part: the scores flatter; split by "
            "folds instead",
            shared,
        )
    if task.target.kind == "class":
        shown = np.unique(seen.labels[test])
        for name in task.missing_classes(seen.labels[train]):
            if (label := task.target.classes.index(name)) in shown:
                raise DataError(
                    f"target: class {name!r} of {task.name!r} has "
                    f"{int((seen.labels[test] == label).sum())} test samples and none to train on; "
                    "choose another --fold or split, or take the class out"
                )
    return train, test
