"""What the numbers of `shared` bear on blocks of dimensions that some of the sensors share."""

from __future__ import annotations

from decur.explain.advice import TELLS, no_verdict_on_pairs_seen, on_width, told
from decur.explain.base import Arrays
from decur.objectives.blocks import is_shared, sensors_of
from decur.verdicts import Interval, Verdict


def has_blocks(arrays: Arrays, pair: str) -> bool:
    """Return whether a run has blocks of dimensions.

    Args:
        arrays: of `shared`.
        pair: its name there.
    """
    return any(sensors_of(part) for part in arrays[f"{pair}/parts"].tolist())


def advice_on_blocks(arrays: Arrays, pair: str) -> list[str]:
    """Say in sentences how much two sensors share by the subset that a block names.

    A block that names both should be told by the other sensor, by more than 0.1 of its variance
    beyond chance; a block that leaves one of them out, and the unique dimensions, should not. Each
    is judged with its interval; what cannot be told is not complained of. Of pairs that the run was
    trained on, or nobody can tell, there is no verdict.

    Args:
        arrays: of `shared`.
        pair: its name there.
    """
    if seen := no_verdict_on_pairs_seen(arrays):
        return seen
    sensors = arrays[f"{pair}/sensors"].tolist()
    measured = {part: told(arrays, pair, part) for part in arrays[f"{pair}/parts"].tolist()}
    shared = {part: value for part, value in measured.items() if is_shared(part, *sensors)}
    others = {part: value for part, value in measured.items() if part not in shared}
    found = [
        "Of the variance of each part, beyond chance, the other sensor tells "
        f"{_listed(shared, 'of what no block gives to both')}"
        + (f", and of the dimensions that they do not share {_listed(others)}." if others else ".")
    ]
    empty = [part for part, value in shared.items() if value.above(TELLS) is Verdict.NO]
    leaking = [part for part, value in others.items() if value.above(TELLS) is Verdict.YES]
    if empty:
        found.append(
            f"{' and '.join(empty)}: hardly anything in it is shared by these two; lower its share "
            "in objective.blocks, or train longer."
        )
    if leaking:
        found.append(
            f"{' and '.join(leaking)}: these two share what should not be shared there; raise the "
            "share of a block that names both in objective.blocks."
        )
    if not empty and not leaking:
        sure = all(value.above(TELLS) is Verdict.YES for value in shared.values())
        found.append(
            "That is consistent with these blocks, and cannot tell their right shares."
            if sure
            else "That is too little, or these are too few samples, for a verdict on the blocks."
        )
    return [*found, *on_width(arrays, pair)]


def _listed(parts: dict[str, Interval], nothing: str = "nothing") -> str:
    """Return "0.81 (0.75 to 0.86) of optical+sar, 0.10 of unique"."""
    return ", ".join(f"{value} of {part}" for part, value in parts.items()) or f"nothing {nothing}"
