"""Tables as text: Markdown, CSV, LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence

from decur.compare.plan import Cell
from decur.compare.table import Table, caption, failures, header, read_scores, rows
from decur.compare.workers import is_done, seconds


def markdown(tables: Sequence[Table], seeds: int) -> str:
    """All tables as GitHub Markdown."""
    parts = []
    for table in tables:
        labels, names = header(table)
        head = [*labels, *names]
        body = [head, ["---"] * len(labels) + ["--:"] * len(names)]
        body += rows(table, seeds, bold=lambda text: f"**{text}**")
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in body]
        notes = [f"- failed: {reason}" for reason in failures(table)]
        parts.append("\n".join([f"### {table.title}\n", *lines, "", caption(table, seeds), *notes]))
    return "\n\n".join(parts) + "\n"


def latex(tables: Sequence[Table], seeds: int) -> str:
    """All tables for LaTeX with the package booktabs."""
    parts = []
    for table in tables:
        labels, names = header(table)
        shown = rows(table, seeds, bold=lambda text: f"\\textbf{{{text}}}")
        body = [_row(row) for row in shown]
        measured = len(table.lines)
        if table.published:
            body.insert(measured, r"\midrule")
        parts.append(
            "\n".join(
                [
                    r"\begin{table}",
                    r"\centering",
                    rf"\caption{{{_escape(table.title)}. {_escape(caption(table, seeds))}}}",
                    rf"\begin{{tabular}}{{{'l' * len(labels)}{'r' * len(names)}}}",
                    r"\toprule",
                    _row([*labels, *names]),
                    r"\midrule",
                    *body,
                    r"\bottomrule",
                    r"\end{tabular}",
                    r"\end{table}",
                ]
            )
        )
    return "\n\n".join(parts) + "\n"


def _row(cells: Sequence[str]) -> str:
    text = " & ".join(map(_escape, cells))
    if text.startswith(("[", "*")):  # else LaTeX reads it as an option of the line break before
        text = f"{{}}{text}"
    return text + r" \\"


def _escape(text: str) -> str:
    """Escape what LaTeX would read as a command; our own bold stays."""
    inner = re.fullmatch(r"\\textbf\{(.*)\}", text)
    if inner:
        return rf"\textbf{{{_escape(inner[1])}}}"
    return text.translate(_TEX)


_TEX = str.maketrans(
    {
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "–": "--",
        "…": r"\dots{}",
    }
)


def cells_csv(cells: Iterable[Cell]) -> str:
    """Every finished transfer, one row each with all its metrics: for whoever counts anew."""
    found: list[dict[str, object]] = []
    for cell in cells:
        if cell.command == "transfer" and is_done(cell):
            found.append(
                {
                    "task": cell.task,
                    "method": cell.method,
                    "backbone": cell.backbone,
                    "modalities": "+".join(cell.modalities) or "all",
                    "label_fraction": cell.label_fraction,
                    "seed": cell.seed,
                    **{
                        name: None if value is None else round(value, 6)
                        for name, value in read_scores(cell.folder).items()
                    },
                    "seconds": round(seconds(cell) or 0, 1),
                    "folder": cell.folder.name,
                }
            )
    if not found:
        return ""
    stream = io.StringIO()
    columns = list(dict.fromkeys(key for row in found for key in row))
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    return stream.getvalue()


def table_csv(tables: Sequence[Table]) -> str:
    """All tables in long form: a row for each method in each column, mean and spread.

    Rows with a method in `against` are differences from it, "best" if they are surely not chance.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        ("task", "method", "backbone", "modalities", "label_fraction", "metric")
        + ("mean", "std", "seeds", "best", "failed", "against")
    )
    for table in tables:
        for (line, column), scores in table.cells.items():
            writer.writerow(
                (column.task, line.method, line.backbone, "+".join(column.modalities) or "all")
                + (column.label_fraction, table.metrics.get(column, ""))
                + (f"{scores.mean:.6f}", f"{scores.spread:.6f}", len(scores.by_seed))
                + (scores.sure, "; ".join(dict.fromkeys(scores.failed.values())), table.against)
            )
    return stream.getvalue()
