"""What a comparison leaves in its folder: tables, pictures, a page."""

from __future__ import annotations

from collections.abc import Sequence

from decur import plotting, report
from decur.compare.formats import cells_csv, latex, markdown, table_csv
from decur.compare.plan import Axis, Cell
from decur.compare.table import Table, caption, failures, header, rows
from decur.runs import RunFolder, atomic


def write(
    folder: RunFolder,
    tables: Sequence[Table],
    cells: Sequence[Cell],
    seeds: int,
    axis: Axis | None = None,
) -> None:
    """Write `tables.md`, `.tex`, `.csv`, `cells.csv`, pictures, and the section of `report.html`.

    Args:
        folder: of the comparison.
        tables: of all that has finished.
        cells: of the comparison.
        seeds: how many there are to be.
        axis: what pictures show scores along; None for the shares of the labels.
    """
    for name, text in (
        ("tables.md", markdown(tables, seeds)),
        ("tables.tex", latex(tables, seeds)),
        ("tables.csv", table_csv(tables)),
        ("cells.csv", cells_csv(cells)),
    ):
        with atomic(folder.path / name) as temporary:
            temporary.write_text(text)
    body = []
    drawn = 0
    for table in tables:
        labels, names = header(table)
        body += [
            report.paragraph(f"{table.title}. {caption(table, seeds).replace('Bold', 'With *')}"),
            report.table([*labels, *names], rows(table, seeds, bold=lambda text: f"{text} *")),
            *(report.paragraph(f"Failed: {reason}") for reason in failures(table)),
        ]
        if table.against or not plotting.available():
            continue
        drawn += 1
        if any(scores.by_seed for scores in table.cells.values()):
            from decur.compare.figures import draw

            name = "compare.png" if drawn == 1 else f"compare-{drawn}.png"
            path = plotting.save(draw(table, axis), folder.figures / name)
            body.append(report.figure(path, f"{table.title}, as in the table above."))
    if not plotting.available():
        body.append(report.paragraph("No pictures: pip install 'decur[explain]' for matplotlib."))
    if folder.config.is_file():
        body.append(report.details("Configuration", folder.config.read_text()))
    report.add_section(folder, 10, "compare", "Comparison", "\n".join(body))
