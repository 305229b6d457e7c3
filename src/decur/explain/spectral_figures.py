"""Pictures of spectral saliency: what each band is worth to each part."""

from __future__ import annotations

from typing import TYPE_CHECKING

from decur.explain.base import Arrays, DoesNotApply
from decur.plotting import part_colour

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UPRIGHT = 9  # bands, above which their names stand upright


def plot_bands(arrays: Arrays) -> Figure:
    """Box plots over samples, one panel a sensor, one box for each band and part (Fig. 6b)."""
    from decur.plotting import plain, subplots

    parts = arrays["parts"].tolist()
    names = [
        name
        for name in arrays["modalities"].tolist()
        if f"{name}/bands" in arrays and len(arrays[f"{name}/{parts[0]}/importance"])
    ]
    if not names:
        raise DoesNotApply("No sample that was looked at has a sensor with several bands.")
    figure, axes = subplots(len(names), 1, width=8.0, height=2.6 if len(names) > 1 else 3.2)
    for axis, name in zip(axes[:, 0], names, strict=True):
        bands = arrays[f"{name}/bands"].tolist()
        width = 0.7 / len(parts)
        for number, part in enumerate(parts):
            values = arrays[f"{name}/{part}/importance"]  # (n, C)
            shift = (number - (len(parts) - 1) / 2) * (width + 0.04)
            colour = part_colour(part)
            axis.axhline(1 / len(bands), color="grey", linewidth=0.8, linestyle=":", zorder=0)
            boxes = axis.boxplot(
                values,
                positions=[i + shift for i in range(len(bands))],
                widths=width,
                whis=(5, 95),
                showfliers=False,
                showmeans=True,
                patch_artist=True,
                boxprops={"facecolor": colour, "alpha": 0.45, "edgecolor": colour},
                medianprops={"color": "black", "linewidth": 1.2},
                whiskerprops={"color": colour},
                capprops={"color": colour},
                meanprops={"marker": "o", "markersize": 3, "markerfacecolor": "black"}
                | {"markeredgecolor": "black"},
            )
            boxes["boxes"][0].set_label(part)
            exchanged = arrays[f"{name}/{part}/exchanged"]
            if len(exchanged):
                axis.plot(
                    [i + shift for i in range(len(bands))],
                    exchanged.mean(0),
                    **{"marker": "D", "linestyle": "", "markersize": 4, "markerfacecolor": "white"},
                    color="black",
                    label="exchanged" if part == parts[-1] else None,
                )
            if part == "unique":
                for box in boxes["boxes"]:
                    box.set_linestyle("--")
        turn = {"rotation": 90} if len(bands) > UPRIGHT else {}
        axis.set_xticks(range(len(bands)), map(plain, bands), fontsize=8, **turn)
        axis.tick_params(axis="y", labelsize=8)
        axis.set_ylim(bottom=0)
        axis.set_ylabel(f"{plain(name)}\nimportance", fontsize=9)
    axes[0, 0].legend(
        fontsize=8, frameon=False, ncols=len(parts) + 1, loc="lower right", bbox_to_anchor=(1, 1)
    )
    return figure
