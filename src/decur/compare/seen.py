"""Whether a pretraining sees the pictures that a transfer tests on, as their configurations say."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from pydoc import locate
from typing import TYPE_CHECKING

from decur.compare.settings import Changes
from decur.errors import DecurError
from decur.layers import flatten
from decur.runs import RunFolder

if TYPE_CHECKING:
    from jsonargparse import Namespace

_ROOT, _SPLIT = "init_args.root", "init_args.split"
_COUNT = "init_args.samples"  # of generated data, which begin with the same ones


def is_split(transfer: Namespace) -> bool:
    """Return whether a transfer tests on a split or on data of its own, not on a fold."""
    return transfer.train_split is not None or transfer.test_data is not None


def samples_of(data: Changes) -> Changes:
    """Return what says which samples a data set has: all but how sensors and labels are read.

    Args:
        data: the data set as a configuration names it, one key each (`init_args.root`).
    """
    found = {
        key: value
        for key, value in data.items()
        if not re.match(r"(init_args\.)?(modalities|label|mask)", key)
    }
    if isinstance(root := found.get(_ROOT), str | Path):
        found[_ROOT] = str(Path(root).expanduser().resolve())
    return found


def is_one_source(one: Changes, other: Changes) -> bool:
    """Return whether two data sets may have samples in common, given what `samples_of` returns.

    Those of one folder may, whatever reads it and however; generated ones where they are drawn
    alike, of whatever number.
    """
    if _ROOT in one or _ROOT in other:
        return bool(one.get(_ROOT) == other.get(_ROOT))
    first, second = (
        {k: v for k, v in _with_defaults(each).items() if k not in (_COUNT, _SPLIT)}
        for each in (one, other)
    )
    return first == second


def _with_defaults(data: Changes) -> Changes:
    """Return a data set with the defaults of its class, which a run of version 0.1 may lack."""
    kind = locate(str(data.get("class_path")))
    if not isinstance(kind, type):
        return data
    defaults = {
        f"init_args.{name}": parameter.default
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.default is not parameter.empty
    }
    return {**samples_of(defaults), **data}


def sees_what_tests(trained: Changes, transfer: Namespace) -> bool:
    """Return whether a pretraining on all of some data sees the pictures that a transfer tests on.

    Args:
        trained: the data that is pretrained on, as `samples_of` returns it.
        transfer: configuration of the transfer.
    """
    data: Changes = flatten(transfer.data.as_dict())
    for key, value in flatten(transfer.test_data or {}).items():
        data[key if key.startswith(("class_path", "init_args.")) else f"init_args.{key}"] = value
    tested = samples_of(data)
    if not is_one_source(trained, tested):
        return False
    seen, test = trained.get(_SPLIT), tested.get(_SPLIT)
    if is_split(transfer):
        test = transfer.test_split or test
    return seen is None or test is None or seen == test


def earlier_run_sees(encoders: Sequence[str], transfer: Namespace, fold: Changes) -> bool:
    """Return whether runs that encoders come from have seen the pictures that a transfer tests on.

    Args:
        encoders: runs, files, repositories or names of weights; runs alone say what they have seen.
        transfer: configuration of the transfer.
        fold: the fold that it tests on, as a pretraining names it that leaves it out
            (`without_fold` and so on); nothing where it tests on none.
    """
    for source in encoders:
        try:
            values = RunFolder(Path(source)).configuration(used=())
        except DecurError:  # fresh or published weights, or a file
            continue
        if not isinstance(data := values.get("data"), dict):
            continue
        trained = samples_of(flatten(data))
        tested = samples_of(flatten(transfer.data.as_dict()))
        alike = {**tested, **trained} == tested  # a run of version 0.1 may lack keys
        left_out = all(values.get(key) == value for key, value in fold.items())
        if not (fold and alike and left_out) and sees_what_tests(trained, transfer):
            return True
    return False
