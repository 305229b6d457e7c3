"""Is the split right? Rules from what sensors tell of each other to a sentence of advice."""

from __future__ import annotations

from collections.abc import Mapping

from decur.explain.base import Arrays

TELLS = 0.1  # of held-out variance beyond chance: less is not worth a dimension
AS_GOOD = 0.5  # of what is predicted of the common dimensions: the unique ones are like them
LEAKS = 0.25  # of all the variance that can be predicted
TOO_MANY = 0.2  # of the common dimensions misaligned
LOW_RANK = 0.1  # of what width and samples allow


def advice(arrays: Arrays, pair: str) -> list[str]:
    """What to do about the split of two sensors, in sentences, by these rules:

    1. The unique dimensions of one sensor can be predicted from the other, from its unique
       dimensions or from its encoder's vector, by more than 0.1 of their variance beyond chance,
       and either more than half as well as the common ones, or with more than a quarter of all
       the variance that can be predicted (share times number of dimensions) in them: the common
       share is too small; raise `objective.common`.
    2. More than a fifth of the common dimensions is misaligned (loss of Eq. 7 above 0.25), or the
       common dimensions of the other sensor predict less than 0.1 of their variance beyond
       chance: the common share is too large; lower it.
    3. Both at once: the objective has not told them apart yet, and the split is not what to
       change first; train longer.
    4. Nothing is predicted in any part: the sensors share nothing that shows, or the run is
       untrained; no advice on the split.
    5. A part's effective rank is below a tenth of what its width and the training samples allow:
       the embedding is wider than needed; lower `projector.width`.
    6. None of 1 to 4: the split looks right; without unique dimensions, nothing speaks for fewer
       common ones, and what these leave out does not show.

    Args:
        arrays: of `shared`.
        pair: its name there.
    """
    parts = dict(
        zip(arrays[f"{pair}/parts"].tolist(), arrays[f"{pair}/widths"].tolist(), strict=True)
    )
    share = parts.get("common", 0) / sum(parts.values())
    told = {part: _told(arrays, pair, part) for part in parts}
    sentences = []
    held = _held(parts, told)
    leaks = told.get("unique", 0) > TELLS and (
        held > LEAKS or told["unique"] > AS_GOOD * told.get("common", 0)
    )
    bad, same = 0.0, 1.0
    if "common" in parts:
        bad = float(arrays[f"{pair}/aligned/common"][1])
        same = _beyond(arrays, pair, "same", "common")
    if max(told.values()) <= TELLS:
        sentences.append(
            "Neither part of one sensor can be predicted from the other: they share nothing that "
            "shows here, or the run has hardly been trained; this says nothing about the split."
        )
    elif leaks and (bad > TOO_MANY or same <= TELLS):
        sentences.append(
            f"Unique dimensions can be predicted from the other sensor ({told['unique']:.2f} of "
            f"their variance beyond chance) while {bad:.0%} of the common ones are misaligned: "
            "they are not told apart yet. Train longer before changing the split."
        )
    elif leaks:
        sentences.append(
            f"The unique dimensions hold what the other sensor sees too: {told['unique']:.2f} of "
            f"their variance can be predicted from it, beyond chance, {held:.0%} of all that can "
            "be. The common share is too small: raise objective.common "
            f"(now {share:.2g})."
        )
    elif bad > TOO_MANY or same <= TELLS:
        remedy = (
            f"lower objective.common (now {share:.2g})"
            if len(parts) > 1
            else f"DeCUR with objective.common of about {max(1 - bad, 0.1):.1f} would free them"
        )
        sentences.append(
            f"{bad:.0%} of the common dimensions are misaligned, and {same:.2f} of their variance "
            "can be predicted from the other sensor, beyond chance. The common share is too "
            f"large: {remedy}."
        )
    elif "unique" in told:
        sentences.append(
            f"The split looks right: {same:.2f} of the variance of the common dimensions can be "
            f"predicted from the other sensor, beyond chance, and {max(told['unique'], 0):.2f} of "
            f"that of the unique ones, which hold {held:.0%} of all that can be."
        )
    else:
        sentences.append(
            f"All dimensions are common, and nothing speaks for fewer: {same:.2f} of their "
            "variance can be predicted from the other sensor, beyond chance. Whether they leave "
            "out what only one sensor sees, this cannot tell."
        )
    return sentences + _too_wide(arrays, pair, parts)


def _told(arrays: Arrays, pair: str, part: str) -> float:
    """What the other sensor tells of a part at best, beyond chance."""
    return max(_beyond(arrays, pair, key, part) for key in ("same", "features"))


def _held(parts: Mapping[str, int], told: Mapping[str, float]) -> float:
    """Share of all the variance that can be predicted which lies in the unique dimensions."""
    amounts = {part: width * max(told[part], 0) for part, width in parts.items()}
    return amounts.get("unique", 0) / max(sum(amounts.values()), 1e-9)


def _beyond(arrays: Arrays, pair: str, key: str, part: str) -> float:
    """R2 beyond the largest that chance gave, in the better direction."""
    chance = arrays[f"{pair}/{key}-chance/{part}"].max(initial=0)
    return float(arrays[f"{pair}/{key}/{part}"].max() - chance)


def _too_wide(arrays: Arrays, pair: str, parts: Mapping[str, int]) -> list[str]:
    trained = arrays[f"{pair}/samples"][1]
    found = []
    for sensor, name in enumerate(arrays[f"{pair}/sensors"].tolist()):
        for part, width in parts.items():
            rank, most = arrays[f"{pair}/rank/{part}"][sensor], min(width, trained - 1)
            if rank < LOW_RANK * most:
                found.append(f"{name} {part} ({rank:.0f} of {most})")
    if not found:
        return []
    return [
        f"The effective rank is low beside the width: {', '.join(found)}. A narrower embedding "
        "would hold as much: lower projector.width."
    ]
