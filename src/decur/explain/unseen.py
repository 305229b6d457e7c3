"""Which samples a run was trained on, and where there are others: what is explained must be new."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from decur.data import PairedDataset
from decur.errors import BadSampleError, DecurError
from decur.explain.settings import own_data
from decur.verdicts import Verdict

HELD_OUT = ("val", "validation", "test")  # splits beside "train", the first that is there
FURTHER = (
    1_000_000  # samples between the first of generated data that was trained on and an unseen one
)
_LOOKED_AT = 4  # samples of the same name, to tell whether they are of the same pictures


def unseen_part(trained: PairedDataset) -> PairedDataset | None:
    """Return samples that belong to a data set and that a run on it has not seen.

    Args:
        trained: the data set that the run was trained on.

    Returns:
        Another split, where it is the split "train"; samples that begin elsewhere, where they are
        generated from a number on (`start`); None where the data set offers neither.
    """
    made_of = trained.made_of
    if "start" in made_of and "samples" in made_of:
        start = made_of["start"] + max(FURTHER, made_of["samples"])
        return type(trained)(**{**made_of, "start": start})
    if made_of.get("split") != "train":
        return None
    for name in HELD_OUT:
        try:
            other = type(trained)(**{**made_of, "split": name})
        except DecurError:  # there is no such split
            continue
        if len(other):
            return other
    return None


def was_trained_on(run: str, data: PairedDataset, indices: Sequence[int]) -> Verdict:
    """Tell whether a run was trained on samples: on any of them, as names and pictures say.

    Args:
        run: its folder.
        data: any data set.
        indices: of the samples in it.

    Returns:
        UNTOLD where the run's own data cannot be opened any more, or none of its pictures read.
    """
    try:
        trained = own_data(run)
    except DecurError:
        return Verdict.UNTOLD
    place = {name: index for index, name in enumerate(trained.ids)}
    both = [(place[data.ids[i]], i) for i in indices if data.ids[i] in place]
    if not both:
        return Verdict.NO
    compared = 0
    # names such as 0001 are found in many a folder: pictures decide
    for own, other in both[:: -(-len(both) // _LOOKED_AT)]:
        try:
            one, two = trained.read(own)["images"], data.read(other)["images"]
        except BadSampleError:
            continue
        compared += 1
        if any(name in two and torch.equal(x, two[name]) for name, x in one.items()):
            return Verdict.YES
    return Verdict.NO if compared else Verdict.UNTOLD
