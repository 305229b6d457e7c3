"""Figures of a pretraining run, and its section of the report."""

from __future__ import annotations

import inspect
import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decur import plotting, report
from decur.data.base import DATASETS, Derived, PairedDataset
from decur.data.sample import Batch
from decur.errors import enumerated
from decur.objectives.blocks import COMMON, is_shared_by, sensors_of
from decur.objectives.decur import SHARE
from decur.plotting import legend, plain, render, subplots
from decur.pretrain.data import PairedData
from decur.pretrain.directions import Counted
from decur.pretrain.metrics import agreements, offdiag_by_chance, read_metrics
from decur.pretrain.module import Pretrainer
from decur.runs import RunFolder

if TYPE_CHECKING:
    from decur.plotting import Figure

Rows = list[dict[str, float]]
_DIAGONALS = (
    "Mean diagonal of the cross-correlation matrix between sensors. Of dimensions that they share "
    "(solid lines) it should rise towards 1, of others (dashed) stay near 0; dotted: between two "
    "views of one sensor."
)
_PARTS = {
    "common": "agreement of sensors, common dimensions",
    "unique": "agreement of sensors, unique dimensions",
    "intra": "agreement of two views of one sensor",
}
_RANKS = "Effective rank: how many dimensions are in use. A fall towards 1 is a collapse."
_PROBES = (
    "Linear probe of frozen features, half of the monitored samples against the other half: "
    "accuracy, mean average precision or R2. The encoders have trained on the pictures of both "
    "halves, without their labels: scores of new pictures are those of `decur transfer`. Dashed: "
    "one guess for all samples, where the run has measured it; of an R2 it is 0."
)


@dataclass(frozen=True)
class TrainedOn:
    """What a report says of the data of a run.

    Args:
        text: the data set in one line.
        sensors: their names.
        samples: how many there are.
        root: the data's folder, or a word in its place.
        label: one of the data's labels, or a word in its place.
        options: of a command that reads the data, as far as they are not the usual ones.
    """

    text: str
    sensors: list[str]
    samples: int
    root: str
    label: str
    options: str = ""  # a decur before 0.2 has saved none

    @classmethod
    def of(cls, data: PairedDataset) -> TrainedOn:
        """Describe a data set; generated pictures have no folder, and no labels of a person's."""
        root = getattr(data, "root", None)
        return cls(
            text=data.only(targets=()).describe(),  # labels were not trained on
            sensors=list(data.modalities),
            samples=len(data),
            root=str(root or "FOLDER"),
            label=next(iter(data.targets)) if root and data.targets else "LABEL",
            options=data_options(data) if root else "",
        )


def data_options(data: PairedDataset) -> str:
    """Return the options of a command line that make a data set, but for its folder."""
    while isinstance(data, Derived):
        data = data.data
    kind = type(data).__name__
    if kind not in DATASETS.names():
        return ""  # somebody's own, whose arguments need not be options
    usual = inspect.signature(type(data)).parameters
    words = [] if kind == "PairedFolder" else ["--data", kind]
    for key, value in data.made_of.items():
        if key != "root" and value != usual[key].default:
            text = str(value) if isinstance(value, str | Path) else json.dumps(value, default=str)
            words += [f"--data.{key}", shlex.quote(text)]
    return " ".join(words)


def write_report(
    folder: RunFolder,
    data: PairedDataset | TrainedOn,
    *,
    objective: Mapping[str, Any] | None = None,
    about: str = "",
    draw: bool = True,
) -> None:
    """Draw the figures of a run, and write its section of the report.

    Args:
        folder: the run's folder.
        data: the data set that was trained on, or its description.
        objective: what is trained with, as `Objective.about` gives it; None: not told.
        about: how far the run has come, where it has not ended as it was to.
        draw: draw the figures anew; else those are shown that there are.
    """
    rows = read_metrics(folder)
    if not rows:
        return
    trained_on = data if isinstance(data, TrainedOn) else TrainedOn.of(data)
    body = [report.paragraph(about)] if about else []
    body += [report.paragraph(trained_on.text), *_parts(objective or {})]
    body += [_counted_share(folder, objective or {}), _last_values(rows)]
    if plotting.available():
        body += _report_figures(folder, rows, draw)
    else:
        body.append(report.paragraph(plotting.MISSING))
    if folder.config.is_file():
        body.append(report.details("Configuration", folder.config.read_text()))
    report.add_section(folder, 0, name="summary", title="", body=_summary(folder, trained_on, rows))
    report.add_section(folder, 10, name="pretrain", title="Pretraining", body="\n".join(body))


def _summary(folder: RunFolder, data: TrainedOn, rows: Rows) -> str:
    """Write the first screen: what was trained, on what, how far it came, and what to do next."""
    last = rows[-1]
    epochs = f"{last['epoch']:.0f} epoch{'s' if last['epoch'] > 1 else ''}"
    numbers = []
    found = agreements(last)
    for part, name in _PARTS.items():
        if values := found.get(part):
            floor = "mean diagonal; 0 by chance, 1 at most"
            # + 0.0: not -0.00
            numbers.append((name, f"{round(sum(values) / len(values), 2) + 0.0:.2f}", floor))
    ranks = {k.split("/")[-1]: v for k, v in last.items() if k.startswith("rank/features/")}
    if ranks:
        sensor = min(ranks, key=lambda name: ranks[name])
        name = "directions that features use" + (f", {sensor}" if len(ranks) > 1 else "")
        numbers.append((name, f"{ranks[sensor]:.0f}", "effective rank; 1 is a collapse"))
    words = [f"--data.root {data.root}", *filter(None, [data.options]), f"--target {data.label}"]
    labelled = " ".join(words)
    return report.summary(
        f"Encoders of {enumerated(data.sensors)} were pretrained for {epochs} on "
        f"{data.samples:,} samples, without labels.",
        numbers[:3],
        then=[
            f"decur transfer --encoders {folder.path} {labelled}",
            f"decur transfer --encoders random:{folder.path} {labelled}   # the same, untrained",
            f"decur explain {folder.path}",
        ],
    )


def _report_figures(folder: RunFolder, rows: Rows, draw: bool) -> list[str]:
    found = []
    views = folder.figures / "views.png"
    if views.is_file():
        found.append(report.figure(views, "Samples, each with the two views that training sees."))
    curves: tuple[tuple[str, Callable[[Rows], Figure | None], str], ...] = (
        ("diagonals", diagonals, _DIAGONALS),
        ("loss", loss_terms, "Loss terms, each divided by its dimensions."),
        ("ranks", rank_curves, _RANKS),
        ("probes", probe_curves, _PROBES),
    )
    for name, make, caption in curves:
        path = folder.figures / f"{name}.png"
        if draw and (picture := make(rows)) is not None:
            plotting.save(picture, path)
        if path.is_file():
            found.append(report.figure(path, caption))
    return found


def _parts(objective: Mapping[str, Any]) -> list[str]:
    """Write how many dimensions each part of the embedding has, where there are several."""
    parts: Mapping[str, tuple[int, int]] = objective.get("parts", {})
    if len(parts) < 2:
        return []
    sizes = ", ".join(f"{name} {last - first}" for name, (first, last) in parts.items())
    blocks = any(sensors_of(name) for name in parts)
    shared = "; the sensors that a block names share its dimensions" if blocks else ""
    return [
        report.paragraph(
            f"Parts of the embedding: {sizes} of {objective['dim']} dimensions{shared}."
        )
    ]


def _counted_share(folder: RunFolder, objective: Mapping[str, Any]) -> str:
    """Write how the share of common dimensions was counted, where it was, and what was taken."""
    counted = Counted.read(folder)
    if counted is None:
        return ""
    found, taken = counted.share(), counted.taken()
    share = SHARE if taken is None else taken
    common = f"{share:.0%} of the dimensions"
    if COMMON in (parts := objective.get("parts", {})):
        first, last = parts[COMMON]
        common = f"{last - first} of {objective['dim']} dimensions"
    told = [*counted.untold]
    if found is None:
        if counted.is_counted:
            told.append("Not even two views of a sensor agree in a direction beyond chance")
        told.append(f"So the share could not be counted, and {common} are common")
    else:
        least = ", the least of any two sensors" if len(counted.shares()) > 1 else ""
        few = ", as fewer would be too few" if counted.is_few else ""
        told.append(f"That is a share of {_percent(found, share)}{least}; {common} are common{few}")
    if not counted.is_counted:
        told.append("Give the share")
    elif not found:
        told.append("Where sensors share more, train longer or give the share")
    steps = f"{counted.steps} step{'s' * (counted.steps != 1)}"
    return report.paragraph(
        f"The share of common dimensions was counted first, by a training of {steps} in which all "
        f"were common. On {counted.samples} samples held out of it: {counted.sentence()}. "
        f"{'. '.join(told)}."
    )


def _percent(share: float, other: float) -> str:
    """Return a share in percent, with a decimal where it would look like another one without."""
    alike = share != other and f"{share:.0%}" == f"{other:.0%}"
    return f"{share:.1%}" if alike else f"{share:.0%}"


def _last_values(rows: Rows) -> str:
    """Write the first and the last epoch's values, and what correlations are by chance."""
    wanted = ("loss", "share/", "diagonal/", "offdiag_rms/", "rank/", "pairs_per_second")
    first, last = rows[0], rows[-1]
    names = [key for key in last if key.startswith(wanted)]
    floor = {name: "0" for name in names if name.startswith("diagonal/")}
    for name in names:
        if (by_chance := offdiag_by_chance(name, last)) is not None:
            floor[name] = f"{by_chance:.3g}"
    reading = (
        "By chance: of embeddings without any correlation. Off the diagonal it is not 0 but one "
        "over the square root of the samples of a batch on a device that have both sensors, less "
        "one; runs of older versions do not tell it."
    )
    values = [
        (name, last[name], floor.get(name, ""), first.get(name, float("nan"))) for name in names
    ]
    head = ("", f"epoch {last['epoch']:.0f}", "by chance", "first epoch")
    return report.table(head, values) + (report.paragraph(reading) if floor else "")


def save_contact_sheet(folder: RunFolder, model: Pretrainer, data: PairedData) -> Path:
    """Draw a few samples with their views to the run's folder, and return the path.

    Args:
        folder: the run's folder.
        model: whose views are drawn.
        data: where the samples come from.
    """
    sheet = contact_sheet(model, data.examples(6))
    return plotting.save(sheet, folder.figures / "views.png")


def contact_sheet(model: Pretrainer, batch: Batch, rows: int = 6) -> Figure:
    """Draw each sensor's picture of some samples, with the two views that training makes of it.

    Args:
        model: whose views are made.
        batch: raw samples.
        rows: at most how many samples.
    """
    views = {k: (a.cpu(), b.cpu()) for k, (a, b) in model.make_views(batch, epoch=0).items()}
    rows = min(rows, len(batch["ids"]))
    columns = 3 * len(model.modalities)
    # all in one panel: a panel for each picture takes ten times as long to draw
    figure, ((axis,),) = subplots(1, 1, width=1.3 * columns, height=1.3 * rows)
    for c, (name, modality) in enumerate(model.modalities.items()):
        for i, title in enumerate((name, "view 1", "view 2")):
            x = 3 * c + i
            axis.text(x + 0.5, -0.05, plain(title), ha="center", va="bottom", fontsize=8)
            for r in range(rows):
                if batch["present"][name][r]:
                    raw = batch["images"][name][r : r + 1]
                    picture = views[name][i - 1][r] if i else modality.scale(raw)[0]
                    place = (x + 0.03, x + 0.97, r + 0.97, r + 0.03)  # left, right, bottom, top
                    axis.imshow(render(picture, modality), interpolation="nearest", extent=place)
                else:
                    axis.text(x + 0.5, r + 0.5, "absent", ha="center", va="center", fontsize=7)
    axis.set(xlim=(0, columns), ylim=(rows, 0))
    axis.axis("off")
    return figure


def loss_terms(rows: Rows) -> Figure:
    """Draw each loss term over the epochs, divided by its number of dimensions."""
    figure, axes = subplots(1, 1, width=7, height=3.5)
    axis = axes[0, 0]
    lines = {
        key.removesuffix("/dim"): axis.plot(*_curve(rows, key), marker=".")[0]
        for key in _keys(rows, lambda key: key.endswith("/dim"))
    }
    axis.set(xlabel="epoch", ylabel="loss term per dimension")
    if _positive(rows, "/dim"):
        axis.set_yscale("log")
    _finish(axis, lines)
    return figure


def diagonals(rows: Rows) -> Figure:
    """Draw the mean diagonal of the cross-correlation of common and unique dimensions by epoch."""
    figure, axes = subplots(1, 1, width=7, height=3.5)
    axis = axes[0, 0]
    lines = {}
    for key in _keys(rows, lambda key: key.startswith("diagonal/")):
        _, part, between = key.split("/", 2)
        style = ":" if part == "intra" else "-" if is_shared_by(part, between) else "--"
        (line,) = axis.plot(*_curve(rows, key), style, marker=".")
        lines[f"{part} {between}"] = line
    axis.axhline(0, color="grey", linewidth=0.5)
    axis.set(xlabel="epoch", ylabel="mean diagonal of C", ylim=(-0.15, 1.05))
    _finish(axis, lines)
    return figure


def rank_curves(rows: Rows) -> Figure | None:
    """Draw the effective rank of features and embeddings by epoch; None if none was measured."""
    return _curves(rows, "rank/", "effective rank")


def probe_curves(rows: Rows) -> Figure | None:
    """Draw the linear probes by epoch, one panel a label; None where nothing is labelled."""
    labels = list(dict.fromkeys(k.split("/")[1] for k in _keys(rows, _linear)))
    if not labels:
        return None
    figure, axes = subplots(1, len(labels), width=3, height=2.8)
    for axis, label in zip(axes[0], labels, strict=True):
        lines = {
            key.split("/")[2]: axis.plot(*_curve(rows, key), marker=".")[0]
            for key in _keys(rows, _linear)
            if key.split("/")[1] == label
        }
        for name, line in list(lines.items()):
            by_chance = _curve(rows, f"probe/{label}/{name}/chance")
            if by_chance[0]:
                colour = line.get_color()
                (dashed,) = axis.plot(*by_chance, "--", linewidth=1, color=colour)
                lines["by chance"] = dashed
        axis.set_title(plain(label), fontsize=10)
        axis.set_xlabel("epoch")
        axis.set_ylim(bottom=max(-0.25, axis.get_ylim()[0]))
        for name, line in lines.items():
            line.set_label(plain(name))
        _finish(axis, lines if axis is axes[0, -1] else {})
    axes[0, 0].set_ylabel("linear probe")
    return figure


def _linear(key: str) -> bool:
    return key.startswith("probe/") and key.endswith("/linear")


def _curves(rows: Rows, prefix: str, ylabel: str) -> Figure | None:
    keys = _keys(rows, lambda key: key.startswith(prefix))
    if not keys:
        return None
    figure, axes = subplots(1, 1, width=7, height=3)
    axis = axes[0, 0]
    lines = {key.removeprefix(prefix): axis.plot(*_curve(rows, key), marker=".")[0] for key in keys}
    axis.set(xlabel="epoch", ylabel=ylabel)
    _finish(axis, lines)
    return figure


def _keys(rows: Rows, wanted: Callable[[str], bool]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row if wanted(key)))


def _curve(rows: Rows, key: str) -> tuple[list[float], list[float]]:
    there = [row for row in rows if key in row]
    return [row["epoch"] for row in there], [row[key] for row in there]


def _finish(axis: Any, lines: Mapping[str, Any]) -> None:
    axis.xaxis.get_major_locator().set_params(integer=True)  # epochs
    axis.grid(alpha=0.3)
    legend(axis, lines.values(), lines, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))


def _positive(rows: Rows, suffix: str) -> bool:
    return all(v > 0 for row in rows for k, v in row.items() if k.endswith(suffix))
