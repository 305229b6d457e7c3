"""What methods gain over one of them, seed by seed."""

from __future__ import annotations

from decur.compare.table import Line, Scores, Table, is_sure, paired


def differences(table: Table, against: str) -> Table | None:
    """How far the lines of a table are above those of one method, seed by seed.

    What seeds share (the fold, the labels drawn) cancels out: a spread over folds of unlike
    difficulty hides differences that hold in each of them.

    Args:
        table: of scores.
        against: the method that all others are held against, backbone by backbone.

    Returns:
        A table of the same columns, but those in which the method has no score; marked is what a
        paired t-test over seeds (two-sided, 5 %) tells from nothing. None if nothing is left.
    """
    cells = {}
    for (line, column), scores in table.cells.items():
        other = table.cells.get((Line(against, line.backbone), column))
        if line.method != against and other is not None and (gains := paired(scores, other)):
            cells[line, column] = Scores(gains, sure=is_sure([*gains.values()], "two-sided"))
    if not cells:
        return None
    columns = [column for column in table.columns if any(key[1] == column for key in cells)]
    return Table(
        f"{table.title}, against {against}",
        {column: table.metrics[column] for column in columns},
        columns,
        [line for line in table.lines if any(key[0] == line for key in cells)],
        cells,
        against=against,
    )
