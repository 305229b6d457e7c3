"""What spatial saliency found, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decur.explain.base import Arrays
from decur.explain.maps import LAST
from decur.report import paragraph, table


def findings(arrays: Arrays) -> str:
    """What came out: how far maps overlap, beside other scenes', and what to think of it."""
    parts, score = arrays["parts"].tolist(), arrays["score"].item()
    stage = int(arrays["stage"])
    rows: list[list[object]] = []
    sentences = []
    for pair in arrays["pairs"].tolist():
        means = {}
        for part in parts:
            same, other = (arrays[f"{pair}/{part}/{kind}"] for kind in ("overlap", "other"))
            known = same[np.isfinite(same)]
            spread = float(known.std()) if len(known) else np.nan
            counts = f"{len(known)} of {len(same)}"
            rows.append([pair, part, counts, _mean(same), spread, _mean(other)])
            if len(known):
                means[part] = _mean(known)
        if {"common", "unique"} <= means.keys():
            sentences.append(_compared(pair, arrays, means))
    if not rows:
        sentences.append("Overlap compares sensors, and the run has one.")
    empty = [
        f"{float(arrays[f'{name}/{part}/empty']):.0%} ({name}, {part})"
        for name in arrays["modalities"].tolist()
        for part in parts
        if arrays[f"{name}/{part}/empty"] > 0
    ]
    if empty:
        sentences.append(
            "Maps on which nothing raises the score, and which do not count: "
            + ", ".join(empty)
            + "."
            + (
                " The sign of a dimension is by chance, and with it that of their mean: the score "
                "'energy', of the squares, does not depend on it."
                if score == "mean"
                else ""
            )
        )
    head = ["sensors", "part", "samples", "mean overlap", "spread", "with another scene"]
    return (
        "".join(paragraph(sentence) for sentence in sentences)
        + (table(head, rows) if rows else "")
        + paragraph(
            f"Score: {score} of a part's dimensions, standardised over the samples; feature map: "
            + ("the last" if stage == LAST else f"stage {stage}, -1 being the last")
            + ". Overlap is the cosine of the two maps, each divided by its L2 norm: 0 where they "
            "are disjoint, 1 where they are the same. With another scene: the same between a "
            "picture and the other sensor's of another scene; only what lies above it is "
            "agreement about the scene itself."
        )
    )


def _mean(values: NDArray[Any]) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean(dtype=np.float64)) if len(known) else np.nan


def _compared(pair: str, arrays: Arrays, means: Mapping[str, float]) -> str:
    common, unique = (arrays[f"{pair}/{part}/overlap"] for part in ("common", "unique"))
    both = np.isfinite(common) & np.isfinite(unique)
    difference = (common - unique)[both].astype(np.float64)
    told = " and ".join(
        f"by {means[part]:.2f} on {part} dimensions ({_mean(arrays[f'{pair}/{part}/other']):.2f} "
        "with another scene)"
        for part in ("common", "unique")
    )
    told = f"{pair}: the maps overlap {told}"
    if len(difference) < 2:
        return told + "."
    mean, error = difference.mean(), difference.std(ddof=1) / np.sqrt(len(difference))
    verdict = (
        "common maps overlap more, as the paper finds"
        if mean > 2 * error
        else "common maps overlap less, against what the paper finds"
        if mean < -2 * error
        else "no difference that could be told from chance"
    )
    return (
        f"{told}; of {len(difference)} samples that have both, by {mean:+.3f} "
        f"(standard error {error:.3f}): {verdict}."
    )
