"""The section of a run's report, and its pictures."""

from __future__ import annotations

from decur import plotting, report
from decur.data import PairedDataset
from decur.pretrain import figures
from decur.pretrain.callbacks import read_metrics
from decur.pretrain.module import Pretrainer
from decur.runs import RunFolder

_DIAGONALS = (
    "Mean diagonal of the cross-correlation matrix between sensors. Common dimensions should rise "
    "towards 1, unique ones stay near 0; dotted: between two views of one sensor."
)
_RANKS = "Effective rank: how many dimensions are in use. A fall towards 1 is a collapse."
_PROBES = (
    "Linear probe of frozen features, half of the monitored samples against the other half: "
    "accuracy, mean average precision or R2."
)


def finish_report(folder: RunFolder, data: PairedDataset, model: Pretrainer) -> None:
    """Draw the figures of a run and write its section of the report.

    Args:
        folder: the run's.
        data: what was trained on.
        model: what was trained.
    """
    rows = read_metrics(folder)
    if not rows:
        return
    body = [report.paragraph(data.describe()), _last_values(rows)]
    if plotting.available():
        views = folder.figures / "views.png"
        if views.is_file():
            body.append(
                report.figure(views, "Samples, each with the two views that training sees.")
            )
        for name, picture, caption in (
            ("diagonals", figures.diagonals(rows), _DIAGONALS),
            ("loss", figures.loss_terms(rows), "Loss terms, each divided by its dimensions."),
            ("ranks", figures.rank_curves(rows), _RANKS),
            ("probes", figures.probe_curves(rows), _PROBES),
        ):
            if picture is not None:
                path = plotting.save(picture, folder.figures / f"{name}.png")
                body.append(report.figure(path, caption))
    else:
        body.append(report.paragraph("No pictures: pip install 'decur[explain]' for matplotlib."))
    if folder.config.is_file():
        body.append(report.details("Configuration", folder.config.read_text()))
    report.add_section(folder, 10, "pretrain", "Pretraining", "\n".join(body))


def _last_values(rows: list[dict[str, float]]) -> str:
    wanted = ("loss", "diagonal/", "offdiag_rms/", "rank/", "pairs_per_second")
    first, last = rows[0], rows[-1]
    names = [key for key in last if key.startswith(wanted)]
    return report.table(
        ("", "first epoch", f"epoch {last['epoch']:.0f}"),
        [(name, first.get(name, float("nan")), last[name]) for name in names],
    )
