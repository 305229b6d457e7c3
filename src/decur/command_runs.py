"""`decur runs`: existing runs side by side: curves, settings that differ, and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from decur import plotting, report
from decur.bounded_yaml import parse_json
from decur.config import Parser
from decur.errors import DataError, reason_of, require
from decur.layers import key_parts
from decur.runs import RunFolder, write_text, writing
from decur.terminal import make_table, tell_result

_ABOUT = (
    "Runs of decur pretrain and decur transfer on one page: curves overlaid, the settings that "
    "differ, and scores with what is reached by chance, where that is known: "
    "decur runs runs/a runs/b"
)
_CURVES = {
    "loss": "loss",
    "diagonal/common": "agreement of sensors, common dimensions",
    "diagonal/unique": "agreement of sensors, unique dimensions",
    "rank/features": "effective rank of features",
}
_CHANCE = "/chance"  # ends the name of what a probe has by chance
_SCORES = ("diagonal/common", "diagonal/unique", "rank/features", "probe/")
_PLACES = ("run", "resume", "overwrite", "config")  # where a run lies is no setting of it
_NONE = "–"


@dataclass(frozen=True)
class _Run:
    """What a page shows of a run.

    Args:
        name: of its folder, or the whole path where two have the same name.
        settings: `{"optimizer.lr": value}`.
        rows: metrics of each epoch; none of a transfer that fits in closed form.
        scores: `{metric: (value, floor)}`; a floor is None where it is not known.
    """

    name: str
    settings: Mapping[str, Any]
    rows: list[dict[str, float]]
    scores: Mapping[str, tuple[float | None, float | None]]


def main(arguments: Sequence[str]) -> Path:
    """Run `decur runs ARGUMENTS`, and return the page.

    Raises:
        DecurError: for whatever a person can mend.
    """
    parser = Parser("decur runs", _ABOUT)
    parser.usage = "decur runs RUN [RUN ...] [--out PAGE.html]"
    parser.add_argument("runs", type=str, nargs="+", help="Folders of runs.")
    parser.add_argument("--out", type=str, default="runs.html", help="Page to write.")
    parser.show_first({"what is shown": ("runs",), "what is written": ("out",)})
    settings = parser.parse(arguments)
    page = Path(settings.out)
    require(not page.is_dir(), f"--out {page}: is a folder; give a file in it")
    names = _names(settings.runs)
    runs = [_open(path, name) for path, name in zip(settings.runs, names, strict=True)]
    different, scores = _different_settings(runs), _scores(runs)
    console = Console(soft_wrap=True, markup=False, emoji=False)
    for title, rows in (("settings that differ", different), ("scores", scores)):
        head = ["", *names, *(["by chance"] if rows is scores else [])]
        console.print(make_table(head, rows, title=title) if rows else f"{title}: none")
    with writing(page):
        write_text(page, _page(runs, different, scores, page))
    tell_result("look at     ", page)
    return page


def _names(paths: Sequence[str]) -> list[str]:
    """Return the names of folders, or their paths where these are not distinct."""
    names = [Path(path).resolve().name for path in paths]
    return names if len(set(names)) == len(names) else list(paths)


def _open(path: str, name: str) -> _Run:
    """Read what a run has kept; nothing of it is made or imported.

    Raises:
        DataError: if the folder holds no run, or a file of it cannot be read.
    """
    from decur.pretrain.metrics import read_metrics  # imports torch

    folder, results = RunFolder(Path(path)), Path(path) / "results.json"
    if not folder.path.is_dir():
        raise DataError(f"{path}: no such folder; give that of a run")
    if not folder.metrics.is_file() and not results.is_file():
        raise DataError(f"{path}: holds neither metrics.csv nor results.json; give that of a run")
    try:
        rows = [row for row in read_metrics(folder) if "epoch" in row]
        scores: dict[str, tuple[float | None, float | None]] = {
            key: (value, _by_chance(key, rows[-1]))
            for key, value in (rows[-1] if rows else {}).items()
            if key.startswith(_SCORES) and not key.endswith(_CHANCE)
        }
        if results.is_file():
            metrics = parse_json(results.read_text())["metrics"]
            scores |= {
                key: (_number_in(each["value"]), _number_in(each.get("floor")))
                for key, each in metrics.items()
            }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read ({reason_of(error)}); give another run") from error
    kept = folder.configuration(used=()) if folder.config.is_file() else {}
    return _Run(name, _flat(kept), rows, scores)


def _by_chance(key: str, row: Mapping[str, float]) -> float | None:
    """Return what a score has by chance; None where that is not known, as of a rank."""
    if key.startswith("diagonal/"):
        return 0.0  # no correlation at all
    return row.get(key.rpartition("/")[0] + _CHANCE)


def _number_in(value: Any) -> float | None:
    """Return a score of a file; None where it is undefined.

    Raises:
        TypeError: if it is no number.
    """
    return None if value is None else value + 0.0


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return nested settings by the names that the command line gives them."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = above.rstrip(".") if key in ("class_path", "init_args") else f"{above}{key}"
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{name}.")
        elif name not in _PLACES:
            found[name] = value.rpartition(".")[2] if key == "class_path" else value
    return found


def _different_settings(runs: Sequence[_Run]) -> list[list[str]]:
    """Return a row for each setting that two runs have and do not agree on."""
    rows = []
    for key in dict.fromkeys(key for run in runs for key in run.settings):
        told = [_setting(run, key) for run in runs]
        if len({*told} - {_NONE}) > 1:
            rows.append([key, *told])
    return rows


def _setting(run: _Run, key: str) -> str:
    """Return a setting of a run as text; of a key in a mapping, that the mapping is not there."""
    if key in run.settings:
        return str(run.settings[key])
    above = (run.settings.get(part, _NONE) for part in key_parts(key))
    return next((str(value) for value in above if value in (None, {})), _NONE)


def _scores(runs: Sequence[_Run]) -> list[list[str]]:
    """Return a row for each score: that of each run, and what is reached by chance."""
    rows = []
    for key in dict.fromkeys(key for run in runs for key in run.scores):
        found = [run.scores.get(key, (None, None)) for run in runs]
        floors = sorted({_number(floor) for _, floor in found if floor is not None})
        rows.append([key, *(_number(value) for value, _ in found), " / ".join(floors) or _NONE])
    return rows


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:.4g}"


def _page(
    runs: Sequence[_Run],
    different: Sequence[Sequence[str]],
    scores: Sequence[Sequence[str]],
    page: Path,
) -> str:
    """Return the page; its picture lies beside it, too."""
    names = [run.name for run in runs]
    body = [report.paragraph(f"{len(runs)} runs: {', '.join(names)}.")]
    if scores:
        body.append(report.table(["score", *names, "by chance"], scores))
    if different:
        body.append(report.table(["setting", *names], different))
    else:
        body.append(report.paragraph("All settings that they share are the same."))
    curves = _curves(runs)
    if curves and plotting.available():
        body.append(report.figure(_draw(curves, page.with_suffix(".png")), "By epoch."))
    elif curves:
        body.append(report.paragraph(plotting.MISSING))
    about = "A dash: this run has none. Settings that only one run has are left out."
    return report.whole_page("Runs side by side", "\n".join([*body, report.note(about)]))


def _curves(runs: Sequence[_Run]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Return `{curve: {run: [(epoch, mean over sensors)]}}` of what any run has measured."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for prefix, title in _CURVES.items():
        for run in runs:
            points = []
            for row in run.rows:
                values = [v for k, v in row.items() if k == prefix or k.startswith(f"{prefix}/")]
                if values:
                    points.append((row["epoch"], sum(values) / len(values)))
            if points:
                found.setdefault(title, {})[run.name] = points
    return found


def _draw(curves: Mapping[str, Mapping[str, list[tuple[float, float]]]], path: Path) -> Path:
    """Draw a panel for each curve, with a line for each run."""
    columns = min(2, len(curves))
    figure, axes = plotting.subplots(-(-len(curves) // columns), columns, width=4.2, height=2.8)
    for axis in axes.flat[len(curves) :]:
        axis.axis("off")
    for axis, (title, of_runs) in zip(axes.flat, curves.items(), strict=False):
        lines = {
            name: axis.plot(*zip(*points, strict=True), marker=".")[0]
            for name, points in of_runs.items()
        }
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("epoch", fontsize=9)
        axis.grid(alpha=0.3)
        plotting.legend(axis, lines.values(), lines, fontsize=8, frameon=False)
    return plotting.save(figure, path)
