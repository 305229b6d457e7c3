"""Advice on the split into common and unique dimensions: what the numbers of `shared` bear."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from decur.errors import enumerated
from decur.explain.base import Arrays, seen_in_training
from decur.explain.collapse import collapsed_parts, diagonals, on_constant, on_width, varying
from decur.objectives.blocks import is_shared, sensors_of
from decur.scores import Float
from decur.verdicts import LEVEL, Interval, Verdict, all_of, any_of

TELLS = 0.1  # least share of held-out variance, beyond chance, that is worth a dimension
# Unique dimensions that are predicted at least this much as well as the common ones are like them.
AS_GOOD = 0.5
LEAKS = 0.25  # largest share of all predictable variance that may lie in unique dimensions
TOO_MANY = 0.2  # largest share of common dimensions that may fail to agree
# Share of the correlation that a dimension can reach, below which the sensors do not share it.
APART = 0.25
FEWEST = 10  # independent test samples, to tell that directions are not shared
MORE = (
    "Explain more samples: raise --samples and --options.shared.samples, or give more data with "
    "--data.KEY VALUE."
)
_NO_CHANCE = (
    "What chance gives is not known, as the samples are of too few groups to pair these otherwise, "
    f"so there is no verdict on the split. {MORE}"
)
_MOST_ALIKE = 0.9  # quantile of the common dimensions that shows what a dimension can reach


def advice(arrays: Arrays, pair: str) -> list[str]:
    """Say in sentences what to do about the split of two sensors, by these rules.

    Each condition is judged with its interval: it holds, it does not hold, or it cannot be told.

    0. The run was trained on these pairs, or nobody can tell: no verdict. Pairs that were trained
       on agree in what was learned by heart.
    1. The other sensor tells nothing beyond chance of any part, or whether it does cannot be told:
       no verdict on the split; only an interval that lies below chance says that they share
       nothing. Nor is there one where neither 2 nor 3 holds and it tells too little to be worth a
       dimension (0.1 of the variance), or whether it tells so much cannot be told.
    2. The unique dimensions of one sensor can be predicted from the other, from its unique
       dimensions or from its encoder's vector, by more than 0.1 of their variance beyond chance,
       and either more than half as well as the common ones, or with more than a quarter of all
       the variance that can be predicted (share times number of dimensions) in them: the common
       share is too small; raise `objective.common`.
    3. More than a fifth of the common dimensions correlate with their partner less than a quarter
       as well as a dimension can: the common share is too large; lower it, unless training was
       short or had few pairs, which shows alike. What a dimension can reach shows in the best
       tenth of the common ones, and in two views of one sensor where training has measured that.
       So noise, which weakens all of them alike, is not taken for a wrong split.
    4. Rules 2 and 3 at once: the parts are not told apart; train longer.
    5. None of them: the numbers are consistent with this split. They cannot tell the right share,
       as the objective fills any number of common dimensions with copies; where fewer directions
       are shared than there are common dimensions, that is said.
       Dimensions that are the same for all samples of a sensor are left out, and said to be so.
    6. A part's effective rank is below a tenth of what its width and the training samples allow:
       a narrower embedding may be enough. Where it is hardly above 1, all samples lie on a line or
       in a point: the part has collapsed, its width says nothing, and none of rules 1 to 5 holds.

    Args:
        arrays: of `shared`.
        pair: its name there.
    """
    if seen := no_verdict_on_pairs_seen(arrays):
        return seen
    if collapsed_parts(arrays, pair):
        return on_width(arrays, pair)
    if _is_chance_unknown(arrays, pair):
        return [_NO_CHANCE, *on_width(arrays, pair)]
    measured = _Measured.of(arrays, pair)
    told_apart = measured.apart.above(TOO_MANY) is Verdict.YES
    copies = [] if told_apart else _on_copies(arrays, pair)
    constant = on_constant(diagonals(arrays, pair))
    return [_on_the_split(measured), *copies, *constant, *on_width(arrays, pair)]


def no_verdict_on_pairs_seen(arrays: Arrays, run: int = 0) -> list[str]:
    """Return the sentence of rule 0, where it holds: for every analysis of what sensors share.

    Args:
        arrays: of the analysis.
        run: its number, where several stand side by side.
    """
    seen = seen_in_training(arrays, run)
    if seen is Verdict.NO:
        return []
    known = (
        "The run was trained on these pairs"
        if seen is Verdict.YES
        else "Whether the run was trained on these pairs cannot be told"
    )
    return [
        f"{known}: what agrees in them may be learned by heart, so there is no verdict. Explain "
        "pairs that it has not seen: another split, folder or data set, with --data.KEY VALUE."
    ]


@dataclass(frozen=True)
class _Measured:
    """What the rules look at.

    Args:
        widths: dimensions by part.
        vary: those of them that vary, by part.
        told: of each part, how much the other sensor tells beyond chance by its better predictor.
        apart: share of the common dimensions that the sensors do not share.
        reached: correlation that a common dimension can reach.
        samples: how many test, and what they are called.
    """

    widths: dict[str, int]
    vary: dict[str, int]
    told: dict[str, Interval]
    apart: Interval
    reached: float
    samples: str

    @classmethod
    def of(cls, arrays: Arrays, pair: str) -> _Measured:
        """Read the measures of one pair from the arrays of `shared`."""
        parts = arrays[f"{pair}/parts"].tolist()
        widths = dict(zip(parts, arrays[f"{pair}/widths"].tolist(), strict=True))
        test = arrays[f"{pair}/samples"][2]
        count = int(arrays.get(f"{pair}/independent", [0, test])[1])
        reached = correlation_reached(arrays, pair)
        return cls(
            widths=widths,
            vary=widths | {p: len(varying(c)) for p, c in diagonals(arrays, pair).items()},
            told={part: told(arrays, pair, part) for part in parts},
            apart=share_apart(arrays, pair, reached),
            reached=reached,
            samples=f"{test} samples" + (f" of {count} groups" if count < test else ""),
        )

    @property
    def share(self) -> float:
        """Share of the common dimensions in all."""
        return self.widths.get("common", 0) / sum(self.widths.values())

    @property
    def held(self) -> Interval:
        """Share of the unique dimensions in all the variance that can be predicted."""
        unique, common = (self.told.get(part, Interval(0.0, 0.0, 0.0)) for part in _PARTS)
        k_unique, k_common = (self.vary.get(part, 0) for part in _PARTS)
        pairs = [
            (k_unique * max(u, 0.0), k_common * max(c, 0.0))
            for u, c in (
                (unique.value, common.value),
                (unique.low, common.high),
                (unique.high, common.low),
            )
        ]
        value, low, high = (
            u / (u + c) if np.isfinite(u + c) and u + c > 0 else float(u > c) for u, c in pairs
        )
        return Interval(value, low, high)


_PARTS = ("unique", "common")


def _on_the_split(found: _Measured) -> str:
    """Return the sentence of rules 1 to 5."""
    anything = any_of(*(x.above() for x in found.told.values()))
    enough = any_of(*(x.above(TELLS) for x in found.told.values()))
    # where it cannot be told, the part that it turns on
    most = max(found.told.values(), key=lambda x: x.high if enough is Verdict.UNTOLD else x.value)
    if anything is Verdict.NO:
        return (
            "Neither part of one sensor can be predicted from the other beyond chance: they share "
            f"nothing that a linear map shows on {found.samples}, or the run has hardly been "
            "trained. This says nothing about the split."
        )
    if anything is Verdict.UNTOLD:
        much = (
            f"less than is worth a dimension ({TELLS}). Either they share next to nothing that a "
            "linear map shows, or the run has hardly been trained."
            if enough is Verdict.NO
            else f"which may be much or nothing. {MORE}"
        )
        return (
            f"Whether the sensors share anything cannot be told from {found.samples}: of the part "
            f"that may be predicted best, the other sensor tells {most} of the variance beyond "
            f"chance, {much} This says nothing about the split."
        )
    leaks, apart = _leaks(found), found.apart.above(TOO_MANY)
    common, unique = (found.told.get(part) for part in ("common", "unique"))
    held = f"{found.held.value:.0%} of all that can be"
    if leaks is Verdict.YES and apart is Verdict.YES:
        return (
            f"Unique dimensions can be predicted from the other sensor ({unique} of their variance "
            f"beyond chance) while {found.apart.value:.0%} of the common ones have hardly anything "
            "to do with it: the parts are not told apart. Train longer before changing the split; "
            "if that changes nothing, this data does not suit it."
        )
    if leaks is Verdict.YES:
        return (
            f"The unique dimensions hold what the other sensor sees too: {unique} of their "
            f"variance can be predicted from it, beyond chance, {held}. The common share is too "
            f"small: raise objective.common (now {found.share:.2g})."
        )
    if apart is Verdict.YES:
        remedy = (
            f"lower objective.common (now {found.share:.2g})"
            if len(found.widths) > 1
            else f"DeCUR with objective.common of about {max(1 - found.apart.value, 0.1):.1f} "
            "would free them"
        )
        return (
            f"{found.apart.value:.0%} of the common dimensions have hardly anything to do with the "
            f"other sensor, though a dimension can reach a correlation of {found.reached:.2f}. The "
            f"common share is too large: {remedy}. A run of few steps shows this, too, and so does "
            "one that has learned few pairs by heart; then train longer, or on more pairs, first."
        )
    if enough is not Verdict.YES:
        told = (
            "The sensors tell something of each other beyond chance, at most "
            f"{most} of the variance on {found.samples}"
        )
        if enough is Verdict.NO:
            return f"{told}: too little for a verdict on the split."
        return f"{told}: too few samples for a verdict on the split. {MORE}"
    untold = [
        claim
        for claim, verdict in (
            ("the unique dimensions hold what the other sensor sees", leaks),
            ("some of the common ones have nothing to do with it", apart),
        )
        if verdict is Verdict.UNTOLD
    ]
    doubt = f" Whether {' or '.join(untold)}, {found.samples} cannot tell." if untold else ""
    if unique is not None:
        return (
            f"Consistent with this split: {common} of the variance of the common dimensions can be "
            f"predicted from the other sensor, beyond chance, and {max(unique.value, 0):.2f} of "
            f"that of the unique ones, which hold {held}. This cannot tell which share is right: "
            f"compare runs of other shares by what they are for.{doubt}"
        )
    return (
        f"All dimensions are common, and consistent with that: {common} of their variance can be "
        "predicted from the other sensor, beyond chance. Whether fewer would do, and whether they "
        f"leave out what only one sensor sees, this cannot tell.{doubt}"
    )


def _is_chance_unknown(arrays: Arrays, pair: str) -> bool:
    """Return whether there were too few pairings to know what R2 is by chance."""
    parts = arrays[f"{pair}/parts"].tolist()
    return all(np.isnan(by_chance(arrays[f"{pair}/same-chance/{part}"])) for part in parts)


def by_chance(permuted: Float) -> float:
    """Return the most that chance gives, at least 0; NaN where it is not known."""
    return float("nan") if np.isnan(permuted).all() else float(np.nanmax(permuted, initial=0))


def told(arrays: Arrays, pair: str, part: str) -> Interval:
    """Return R2 of a part beyond chance, from the better of its predictors and directions."""
    found = []
    for key in ("same", "features"):
        chance = by_chance(arrays[f"{pair}/{key}-chance/{part}"])
        values = arrays[f"{pair}/{key}/{part}"]
        ends = unknown = np.tile([-np.inf, np.inf], (len(values), 1))
        if np.isfinite(chance):
            ends = arrays.get(f"{pair}/{key}-interval/{part}", unknown)
        found += [
            Interval(float(value), float(low), float(high)) - np.nan_to_num(chance)
            for value, (low, high) in zip(values, ends, strict=True)
        ]
    value = float(np.fmax.reduce([x.value for x in found]))
    return Interval(value, max(x.low for x in found), max(x.high for x in found))


def _leaks(found: _Measured) -> Verdict:
    """Tell whether the unique dimensions hold what the other sensor sees (rule 2)."""
    if "unique" not in found.told:
        return Verdict.NO
    unique, common = found.told["unique"], found.told.get("common", Interval(0.0, 0.0, 0.0))
    as_good = Interval(
        unique.value - AS_GOOD * common.value,
        unique.low - AS_GOOD * common.high,
        unique.high - AS_GOOD * common.low,
    )
    return all_of(unique.above(TELLS), any_of(as_good.above(), found.held.above(LEAKS)))


def correlation_reached(arrays: Arrays, pair: str) -> float:
    """Return the correlation that a common dimension can reach with this noise and training.

    That is what the best tenth of the common dimensions reach, or, if that is more, what two views
    of one sensor reach (the sensor that reaches less). NaN where neither is told from nothing.
    """
    if f"{pair}/diagonal/common" not in arrays:
        return float("nan")
    c, error = varying(arrays[f"{pair}/diagonal/common"])  # (k,) each
    if not len(c):
        return float("nan")
    reach = _student(int(arrays[f"{pair}/independent"][0]) - 1, LEVEL) * error
    own = float(np.quantile(c - reach, _MOST_ALIKE))
    views = float(arrays[f"{pair}/ceiling"].min())  # 0 where it is not known
    if max(own, views) <= 0:
        return float("nan")
    return max(float(np.quantile(c, _MOST_ALIKE)), views)


def share_apart(arrays: Arrays, pair: str, reached: float) -> Interval:
    """Return the share of the common dimensions that the sensors do not share (rule 3).

    The lower end counts those whose correlation with their partner is surely less than `APART` of
    what a dimension can reach, the upper end all but those where it is surely more.

    Args:
        arrays: of `shared`.
        pair: its name there.
        reached: as `correlation_reached` gives it.
    """
    if not np.isfinite(reached):
        return Interval(float("nan"))
    c, error = varying(arrays[f"{pair}/diagonal/common"])  # (k,) each
    reach = _student(int(arrays[f"{pair}/independent"][0]) - 1, LEVEL) * error
    limit = APART * reached
    low, high = (c + reach < limit).mean(), 1 - (c - reach > limit).mean()
    return Interval(float((c < limit).mean()), float(low), float(high))


def _on_copies(arrays: Arrays, pair: str) -> list[str]:
    """Say how many directions are shared where they are fewer than common dimensions (rule 5)."""
    if f"{pair}/canonical/common" not in arrays or f"{pair}/independent" not in arrays:
        return []
    values = arrays[f"{pair}/canonical/common"]
    level = arrays[f"{pair}/canonical-chance/common"].max()
    width = len(varying(arrays[f"{pair}/diagonal/common"][0]))
    shown = min(width, int(arrays[f"{pair}/looked"]))
    tested = int(arrays[f"{pair}/independent"][1])
    if tested < FEWEST:
        return []
    error = (1 - values**2) / np.sqrt(tested - 1)
    unshared = values + _student(tested - 1, LEVEL) * error < np.sqrt(TELLS)
    shared = int(((values > level) & ~unshared).sum())
    nothing = int(unshared.sum()) + shown - len(values)  # the latter: the rank is lower
    if not shared or nothing <= TOO_MANY * shown:
        return []
    of = f"the {width} common dimensions"
    if shown < width:
        of = f"the {shown} main directions of {of}"
    return [
        f"Only {shared} of {of} are told to be shared, and {nothing} surely are not: these are "
        "copies or mixtures. A lower objective.common may hold as much; only a run tells."
    ]


def _student(freedom: int, level: float) -> float:
    """Return the one-sided point of Student's t; infinite where there is no freedom."""
    from scipy.stats import t

    return float(t.ppf(1 - level, freedom)) if freedom > 0 else float("inf")


# -- of blocks of dimensions -----------------------------------------------------------------------


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
    trained on, or nobody can tell, there is no verdict, and none where a part has collapsed.

    Args:
        arrays: of `shared`.
        pair: its name there.
    """
    if seen := no_verdict_on_pairs_seen(arrays):
        return seen
    if collapsed_parts(arrays, pair):
        return on_width(arrays, pair)
    if _is_chance_unknown(arrays, pair):
        return [_NO_CHANCE, *on_width(arrays, pair)]
    sensors = arrays[f"{pair}/sensors"].tolist()
    measured = {part: told(arrays, pair, part) for part in arrays[f"{pair}/parts"].tolist()}
    shared = {part: value for part, value in measured.items() if is_shared(part, *sensors)}
    others = {part: value for part, value in measured.items() if part not in shared}
    tells = "Of the variance of each part, beyond chance, the other sensor tells "
    found = [f"No block names both. {tells}{_listed(others)}."]
    if shared:
        apart = f", and of the dimensions that they do not share {_listed(others)}"
        found = [f"{tells}{_listed(shared)}{apart if others else ''}."]
    empty = [part for part, value in shared.items() if value.above(TELLS) is Verdict.NO]
    leaking = [part for part, value in others.items() if value.above(TELLS) is Verdict.YES]
    if empty:
        it, its = ("it", "its share") if len(empty) == 1 else ("them", "their shares")
        found.append(
            f"{enumerated(empty)}: hardly anything in {it} is shared by these two; lower {its} "
            "in objective.blocks, or train longer."
        )
    if leaking:
        remedy = "raise the share of" if shared else "add"
        found.append(
            f"{enumerated(leaking)}: these two share what should not be shared there; {remedy} a "
            "block that names both in objective.blocks."
        )
    if not empty and not leaking:
        untold = [part for part, x in measured.items() if x.above(TELLS) is Verdict.UNTOLD]
        found.append(
            f"Whether the other sensor tells more than {TELLS} of {enumerated(untold)} cannot be "
            f"told: these are too few samples, for a verdict on the blocks. {MORE}"
            if untold
            else "That is consistent with these blocks, and cannot tell their right shares."
        )
    return [*found, *on_constant(diagonals(arrays, pair)), *on_width(arrays, pair)]


def _listed(parts: dict[str, Interval]) -> str:
    """Return "0.81 (0.75 to 0.86) of optical+sar, 0.10 of unique"."""
    return ", ".join(f"{value} of {part}" for part, value in parts.items())
