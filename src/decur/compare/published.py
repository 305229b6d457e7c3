"""The scores that the DeCUR paper prints, to stand beside measured ones: `published.csv`.

Wang, Albrecht, Braham, Liu, Xiong, Zhu: Decoupling Common and Unique Representations for
Multimodal Self-supervised Learning, ECCV 2024. A row of the file is a printed number: `table` is
the name by which comparisons ask for it ("table1-sar"), `source` and `section` say where it stands
in the paper, `method`, `backbone` and `reference` which row it is in, `column` which column.
`modalities`, `training`, `label_fraction` and `metric` say how it was measured, empty where the
paper does not; `value` is empty where there is a dash. `note` holds what a reader of the table must
know, at its first number, or what is particular about a number.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from functools import cache
from importlib import resources
from typing import IO, TYPE_CHECKING, Literal

from decur.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

Training = Literal["frozen", "fine-tuned", "supervised"]

# What tells one measurement from another; a table may print one in two columns.
_MEASUREMENT = ["table", "method", "backbone", "modalities", "training", "label_fraction", "metric"]


def read_published(file: IO[str]) -> pd.DataFrame:
    """Read published scores, one a row, from CSV with the columns of `published.csv`.

    Args:
        file: open for reading.

    Returns:
        Numbers in `value` and `label_fraction`, NaN where there is none; all else as text.
    """
    import pandas as pd

    frame = pd.read_csv(file, dtype=str, keep_default_na=False)
    for column in ("value", "label_fraction"):
        frame[column] = pd.to_numeric(frame[column])
    return frame


@cache
def published_scores() -> pd.DataFrame:
    """Return all scores that ship with the package; do not change them."""
    file = resources.files("decur") / "compare" / "published.csv"
    with file.open(encoding="utf-8") as text:
        return read_published(text)


def published_table(name: str) -> pd.DataFrame:
    """Return the scores of one table that ships with the package.

    Raises:
        ConfigError: if there is none of this name.
    """
    frame = published_scores()
    names = list(frame["table"].unique())
    if name not in names:
        close = difflib.get_close_matches(name, names, n=3) or names
        raise ConfigError(f"no published table {name!r}; there is {', '.join(close)}")
    return frame[frame["table"] == name]


def check_names(key: str, names: Sequence[str]) -> None:
    """Refuse names of tables that do not ship with the package.

    Args:
        key: of the configuration, where the names stand.
        names: of tables.

    Raises:
        ConfigError: naming the key and near names.
    """
    for name in names:
        try:
            published_table(name)
        except ConfigError as error:
            raise ConfigError(f"{key}: {error}") from error


def find(
    frame: pd.DataFrame,
    *,
    training: Training | Collection[Training] | None = None,
    label_fraction: float | None = None,
    modalities: Collection[str] | None = None,
    metric: str | None = None,
) -> pd.DataFrame:
    """Return the scores that were measured in a given way, in the order of the table.

    One that is printed in several columns for one measurement is found once; what the table does
    not state is not found.

    Args:
        frame: published scores.
        training: of the encoders, one or several: ("fine-tuned", "supervised") also finds the
            row that was trained from scratch.
        label_fraction: share of the labels.
        modalities: the sensors, in any order.
        metric: as the paper names it; needed where a table has two.
    """
    chosen = frame["value"].notna()
    if training is not None:
        wanted = [training] if isinstance(training, str) else list(training)
        chosen &= frame["training"].isin(wanted)
    if label_fraction is not None:
        chosen &= (frame["label_fraction"] - label_fraction).abs() < 1e-9
    if modalities is not None:
        sensors = set(modalities)
        chosen &= frame["modalities"].map(lambda text: set(text.split("+")) == sensors).astype(bool)
    if metric is not None:
        chosen &= frame["metric"] == metric
    return frame[chosen].drop_duplicates(_MEASUREMENT)
