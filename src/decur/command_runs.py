"""`decur runs`: existing runs side by side: curves, settings that differ, and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    "differ, and scores, each with its interval and what is reached by chance, where these are "
    "known: decur runs runs/a runs/b"
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
_SCORED = ("score", "run", "value", "95 %", "by chance")  # of the table of scores
_NONE = "–"


@dataclass(frozen=True)
class _Score:
    """A score of a run; `floor` is what is reached by chance; None: not known."""

    value: float | None
    floor: float | None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class _Run:
    """What a page shows of a run.

    Args:
        name: of its folder, or the whole path where two have the same name.
        settings: `{"optimizer.lr": value}`.
        rows: metrics of each epoch; none of a transfer that fits in closed form.
        scores: `{metric: score}`.
        tested: label and number of samples that a transfer was tested on, in words; "" of a
            pretraining, and where they are not known.
        warnings: of a transfer's results.
    """

    name: str
    settings: Mapping[str, Any]
    rows: list[dict[str, float]]
    scores: Mapping[str, _Score]
    tested: str = ""
    warnings: Sequence[str] = field(default_factory=list)


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
    different, scores, doubts = _different_settings(runs), _scores(runs), _doubts(runs)
    console = Console(soft_wrap=True, markup=False, emoji=False)
    for title, head, rows in (
        ("settings that differ", ["", *names], different),
        ("scores", _SCORED, scores),
    ):
        table = make_table(head, rows, title=title, words=["run"]) if rows else f"{title}: none"
        console.print(table)
    for doubt in doubts:
        console.print(f"WARNING     {doubt}", highlight=False)
    with writing(page):
        write_text(page, _page(runs, different, scores, doubts, page))
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
        scores = {
            key: _Score(value, _by_chance(key, rows[-1]))
            for key, value in (rows[-1] if rows else {}).items()
            if key.startswith(_SCORES) and not key.endswith(_CHANCE)
        }
        tested, warnings = "", list[str]()
        if results.is_file():
            found = parse_json(results.read_text())
            for key, each in found["metrics"].items():
                limits = [_number_in(limit) for limit in each.get("interval") or ()]
                low, high = limits or (None, None)
                interval = None if low is None or high is None else (low, high)
                value, floor = _number_in(each["value"]), _number_in(each.get("floor"))
                scores[key] = _Score(value, floor, interval)
            if "target" in found and "test" in found:
                tested = f"{found['target']}, {found['test']} test samples"
            warnings = [str(line) for line in found.get("warnings", ())]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read ({reason_of(error)}); give another run") from error
    kept = folder.configuration(used=()) if folder.config.is_file() else {}
    return _Run(name, _flat(kept), rows, scores, tested, warnings)


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
    """Return a row for each score of each run, the runs of a score one below the other."""
    rows = []
    for key in dict.fromkeys(key for run in runs for key in run.scores):
        title = key  # once
        for run in runs:
            if (score := run.scores.get(key)) is not None:
                limits = " to ".join(map(_number, score.interval or ())) or _NONE
                rows.append([title, run.name, _number(score.value), limits, _number(score.floor)])
                title = ""
    return rows


def _doubts(runs: Sequence[_Run]) -> list[str]:
    """Return what keeps scores from being read as success, or from being compared."""
    found = [f"{run.name}: {warning}" for run in runs for warning in run.warnings]
    transfers = [run for run in runs if run.tested]
    others = "labels or test parts differ, so that scores do not compare"
    if len({run.tested for run in transfers}) > 1:
        each = "; ".join(f"{run.name} {run.tested}" for run in transfers)
        return [*found, f"{others}: {each}"]
    floors: dict[str, set[str]] = {}
    for run in transfers:
        for key, score in run.scores.items():
            if score.floor is not None:  # depends on nothing but the labels of the test part
                floors.setdefault(key, set()).add(_number(score.floor))
    if differ := [key for key, values in floors.items() if len(values) > 1]:
        found.append(f"{others}: a constant guess has not the same {differ[0]} in all of them")
    return found


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:.4g}"


def _page(
    runs: Sequence[_Run],
    different: Sequence[Sequence[str]],
    scores: Sequence[Sequence[str]],
    doubts: Sequence[str],
    page: Path,
) -> str:
    """Return the page; its picture lies beside it, too."""
    names = [run.name for run in runs]
    body = [report.paragraph(f"{len(runs)} runs: {', '.join(names)}.")]
    if scores:
        body.append(report.table(_SCORED, scores))
    body += [report.paragraph(f"Warning: {doubt}.") for doubt in doubts]
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
