"""Tables against numbers worked out by hand or by another library."""

import csv
import io
import json
import math
import re
import statistics
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_rel

from decur.compare.cells import Cell
from decur.compare.rendering import (
    as_text,
    best_scores,
    caption,
    cells_csv,
    failures,
    header,
    latex,
    markdown,
    tables_csv,
)
from decur.compare.run import _outcome
from decur.compare.settings import MethodAxis, TaskSettings
from decur.compare.tables import (
    Scores,
    add_published,
    differences,
    mark_best,
    published_table,
    read_published,
    tabulate,
)

BOTH = ("optical", "sar")


@pytest.fixture
def make(tmp_path):
    """A cell of a comparison; finished if it gets metrics."""

    def make(
        method: str, seed: int, *, task="cover", sensors=(), labels=1.0, freeze=True, **metrics
    ) -> Cell:
        name = "-".join(map(str, (task, method, *sensors, labels, seed)))
        folder = Path(tmp_path, re.sub(r"\W", "_", name))
        folder.mkdir()
        if metrics:
            found = {"metrics": {key: {"value": value} for key, value in metrics.items()}}
            (folder / "results.json").write_text(json.dumps(found))
            (folder / "cell.json").write_text(json.dumps({"seconds": 1.25}))
        text = f"freeze: {str(freeze).lower()}\n"
        return Cell("transfer", folder, text, (), method, "rn", seed, task, tuple(sensors), labels)

    return make


@pytest.fixture
def one_column(make):
    """A table of a single column from `{method: scores by seed}`."""

    def one_column(metric: str = "accuracy", **methods: list[float]):
        cells = [
            make(method, seed, **{metric: value})
            for method, values in methods.items()
            for seed, value in enumerate(values)
        ]
        (table,) = tabulate(cells, {}, {"cover": TaskSettings()})
        return table

    return one_column


def rows(table, seeds, bold=lambda text: text) -> list[list[str]]:
    return as_text(table, seeds, bold).to_numpy().tolist()


def best(table) -> list[str]:
    return [line.method for (line, _), scores in table.cells.items() if scores.sure]


# -- numbers ---------------------------------------------------------------------------------------


def test_mean_and_deviation(one_column):
    table = one_column(a=[0.5, 0.6, 0.9], b=[0.25])
    a, b = table.cells.values()
    assert a.mean == pytest.approx(2 / 3)
    assert a.spread == pytest.approx(math.sqrt(0.26 / 6))  # sum of squares 0.0867 over n - 1
    assert a.spread == pytest.approx(statistics.stdev([0.5, 0.6, 0.9]))
    assert b.mean == 0.25 and math.isnan(b.spread)
    assert rows(table, 3) == [["a", "66.7 ± 20.8"], ["b", "25.0 (1 of 3)"]]


# Two-sided 5 % points of Student's t for 2 and 4 degrees of freedom, as printed in tables.
@pytest.mark.parametrize(("shape", "t"), [([-1, 0, 1], 4.303), ([-1, -1, 0, 1, 1], 2.776)])
@pytest.mark.parametrize("metric", ["accuracy", "MAE"])
@pytest.mark.parametrize(("factor", "expected"), [(1.01, ["better"]), (0.99, [])])
def test_best_is_what_a_paired_test_tells_from_the_rest(
    one_column, shape, t, metric, factor, expected
):
    sign, step = (-1 if metric == "MAE" else 1), 0.01
    other = [0.3, 0.7, 0.4, 0.6, 0.5][: len(shape)]  # seeds differ more than methods do
    margin = factor * t * step * statistics.stdev(shape) / math.sqrt(len(shape))
    better = [x + sign * (margin + step * d) for x, d in zip(other, shape, strict=True)]
    assert best(one_column(metric, other=other, better=better)) == expected


@pytest.mark.parametrize(
    ("methods", "expected"),
    [
        ({"a": [0.5, 0.6, 0.7], "b": [0.1, 0.2, 0.31], "c": [0.4, 0.5, 0.61]}, ["a"]),
        # above b at every seed, above c only on average
        ({"a": [0.5, 0.6, 0.7], "b": [0.1, 0.2, 0.3], "c": [0.45, 0.65, 0.55]}, []),
        # the same distance each time: no certainty at two or three seeds, but at six
        ({"a": [0.5, 0.6, 0.7], "b": [0.4, 0.5, 0.6]}, []),
        ({"a": [0.5 + s / 20 for s in range(6)], "b": [0.4 + s / 20 for s in range(6)]}, ["a"]),
        ({"a": [0.5, 0.6], "b": [0.1, 0.2001]}, []),  # two seeds are too few for a test
        ({"a": [0.5, 0.6, 0.7], "b": [0.5, 0.6, 0.7]}, []),
        ({"a": [0.9], "b": [0.1]}, []),  # one seed tells nothing
        ({"a": [0.9, 0.8, 0.9], "b": [0.1]}, []),
        ({"a": [0.9, 0.8, 0.9]}, []),  # nothing to be better than
    ],
)
def test_best_is_better_than_each_other(one_column, methods, expected):
    assert best(one_column(**methods)) == expected


def test_marks_are_corrected_for_rivals_and_columns(make):
    """A gain of p = 0.03 is marked where it is the only one looked at."""
    one, other = [0.5, 0.6, 0.7], [0.5 - 0.05, 0.6 - 0.06, 0.7 - 0.09]
    p = ttest_rel(one, other).pvalue
    assert 0.05 / 2 < p < 0.05
    cells = [
        make(name, seed, labels=labels, accuracy=value)
        for labels in (0.5, 1.0)
        for name, values in {"a": one, "b": other}.items()
        for seed, value in enumerate(values if labels == 1 else one)
    ]
    (alone,) = tabulate(cells[6:], {}, {"cover": TaskSettings()})
    (table,) = tabulate(cells, {}, {"cover": TaskSettings()})
    assert best(alone) == ["a"] and best(table) == []
    assert (alone.tests, table.tests) == (1, 2)
    assert "corrected for one comparison" in caption(alone, 3)
    assert "corrected for 2 comparisons by Holm" in caption(table, 3)
    assert differences(table, "b").tests == 2 and not any(
        scores.sure for scores in differences(table, "b").cells.values()
    )


def test_too_few_seeds_mark_nothing_and_say_so(one_column):
    table = one_column(a=[0.9, 0.91], b=[0.1, 0.12])
    assert best(table) == [] and "a test needs 3 seeds" in caption(table, 2)
    gains = differences(table, "b")
    assert not gains.tests and "a test needs 3 seeds" in caption(gains, 2)


@pytest.mark.parametrize("methods", [2, 4])
def test_methods_of_the_same_accuracy_are_rarely_marked(methods):
    """Accuracies of ten test samples are tenths: by rounding alone differences are often equal."""
    rng, marked, rounds = np.random.default_rng(0), 0, 300
    for _ in range(rounds):
        column = [Scores(dict(enumerate(rng.binomial(10, 0.8, 3) / 10))) for _ in range(methods)]
        mark_best(column, lower=False)
        marked += any(scores.sure for scores in column)
    assert marked / rounds < 0.07


def test_several_metrics_stand_side_by_side(make):
    scores = {"a": (0.3, 0.7), "b": (0.4, 0.6)}
    cells = [
        make(name, seed, task=task, sensors=["rgb"], freeze=False, mIoU=miou, overall_accuracy=oa)
        for task in ("SUN", "NYU")
        for name, (miou, oa) in scores.items()
        for seed in (0, 1)
    ]
    plan = TaskSettings(metric=["mIoU", "overall_accuracy"])
    (table,) = tabulate(cells, {}, {"SUN": plan, "NYU": plan})
    add_published(table, cells, {"SUN": published_table("table3-sunrgbd")})
    names = ["SUN (mIoU)", "SUN (overall_accuracy)", "NYU (mIoU)", "NYU (overall_accuracy)"]
    assert header(table) == (["method"], names)
    shown = rows(table, 2, bold=lambda text: f"{text}!")
    assert shown[0] == ["a", *["30.0 ± 0.0", "70.0 ± 0.0"] * 2]
    assert shown[1] == ["b", *["40.0 ± 0.0", "60.0 ± 0.0"] * 2]
    assert ["FCN (DeCUR), ResNet-50, published", "34.5", "75.5", "–", "–"] in shown
    assert {row["metric"] for row in csv.DictReader(io.StringIO(tables_csv([table])))} == set(
        plan.metrics
    )


# Two-sided 5 % points of Student's t for 2 and 4 degrees of freedom, as printed in tables.
@pytest.mark.parametrize(("shape", "t"), [([-1, 0, 1], 4.303), ([-1, -1, 0, 1, 1], 2.776)])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("factor", "sure"), [(1.01, True), (0.99, False)])
def test_differences_are_of_the_same_seed(one_column, shape, t, sign, factor, sure):
    other = [0.3, 0.7, 0.4, 0.6, 0.5][: len(shape)]  # seeds differ more than methods do
    margin = sign * factor * t * 0.01 * statistics.stdev(shape) / math.sqrt(len(shape))
    one = [x + margin + 0.01 * d for x, d in zip(other, shape, strict=True)]
    (gain,) = differences(one_column(other=other, one=one), "other").cells.values()
    assert gain.mean == pytest.approx(margin) and gain.sure == sure
    assert gain.spread == pytest.approx(0.01 * statistics.stdev(shape))


def test_no_difference_is_none(one_column):
    same = [0.3, 0.7, 0.4]
    (none,) = differences(one_column(other=same, one=same), "other").cells.values()
    assert (none.mean, none.spread, none.sure) == (0, 0, False)


def test_differences_where_the_other_has_no_score(make):
    cells = [
        *(make("a", s, accuracy=0.5 + 0.1 * s) for s in (0, 1)),
        *(make("b", s, accuracy=0.52 + 0.11 * s) for s in (0, 1, 2)),
        *(make("c", s, accuracy=0.4) for s in (2, 3)),  # of seeds that a has not
        *(make(name, 0, task="cloud", accuracy=0.5) for name in "bc"),
    ]
    plans = {"cover": TaskSettings(table="both"), "cloud": TaskSettings(table="both")}
    (scores,) = tabulate(cells, {}, plans)
    table = differences(scores, "a")
    assert header(table) == (["method"], ["accuracy"])
    assert rows(table, 3) == [["b", "+2.5 ± 0.7 (2 of 3)"]]
    text = markdown([scores, table], 3)
    assert "### both, against a\n\n| method | accuracy |" in text
    assert "| b | +2.5 ± 0.7 (2 of 3) |\n\naccuracy in points above a: mean" in text
    written = list(csv.DictReader(io.StringIO(tables_csv([scores, table]))))
    assert [row["against"] for row in written] == [*[""] * 5, "a"]
    assert float(written[-1]["mean"]) == pytest.approx(0.025)
    assert differences(scores, "d") is None


def test_seeds_that_methods_do_not_share_compare_nothing(make):
    cells = [make("a", s, accuracy=0.9) for s in (0, 1)]
    cells += [make("b", s, accuracy=0.1) for s in (2, 3)]
    assert best(tabulate(cells, {}, {"cover": TaskSettings()})[0]) == []


def test_what_is_missing_is_said(make):
    values = {"a": [0.5, 0.7, None], "b": [None] * 3, "c": [None] * 3, "d": [0.5, 0.5, 0.5]}
    cells = [
        make(method, seed, **({} if value is None else {"accuracy": value}))
        for method, scores in values.items()
        for seed, value in enumerate(scores)
    ]
    cells.append(make("d", 0, labels=0.1, accuracy=0.25))
    reasons = {cell.folder: "too little memory" for cell in cells[3:6]} | {
        cells[2].folder: "no such file"
    }
    (table,) = tabulate(cells, reasons, {"cover": TaskSettings()})
    assert rows(table, 3) == [
        ["a", "60.0 ± 14.1 (2 of 3)", "–"],
        ["b", "failed", "–"],
        ["c", "…", "–"],  # not its turn yet
        ["d", "50.0 ± 0.0", "25.0 (1 of 3)"],
    ]
    assert failures(table) == [
        "a, cover, seed 2: no such file",
        "b, cover, seed 0, 1, 2: too little memory",
    ]


def test_the_metric_is_the_first_or_the_one_that_is_asked_for(make):
    cells = [make("a", seed, R2=0.8 + seed / 10, MAE=12.0 + seed) for seed in (0, 1)]
    (table,) = tabulate(cells, {}, {"cover": TaskSettings()})
    assert rows(table, 2) == [["a", "85.0 ± 7.1"]]
    assert header(table) == (["method"], ["R2"])
    (table,) = tabulate(cells, {}, {"cover": TaskSettings(metric="MAE")})
    assert rows(table, 2) == [["a", "12.500 ± 0.707"]]  # in the label's units
    assert "percent" not in caption(table, 2)
    (table,) = tabulate(cells, {}, {"cover": TaskSettings(metric="mIoU")})
    assert rows(table, 2) == [["a", "failed"]]
    assert failures(table) == ["a, cover, seed 0, 1: no metric 'mIoU'; there are R2, MAE"]


def test_an_undefined_score_is_not_replaced_by_another_metric(make):
    cells = [make("a", 0, R2=0.5, MAE=3.0), make("a", 1, R2=None, MAE=4.0)]
    (table,) = tabulate(cells, {}, {"cover": TaskSettings()})
    assert rows(table, 2) == [["a", "50.0 (1 of 2)"]]
    assert failures(table) == ["a, cover, seed 1: R2 is undefined on its test part"]
    assert [row["R2"] for row in csv.DictReader(io.StringIO(cells_csv(cells)))] == ["0.5", ""]


# -- which table, which column ---------------------------------------------------------------------


def test_tasks_of_a_single_column_stand_side_by_side(make):
    tasks = {"cover": TaskSettings(), "cloud": TaskSettings(), "relief": TaskSettings()}
    cells = [make("a", 0, task="cover", labels=f, mAP_micro=f) for f in (0.1, 1.0)]
    cells += [make("a", 0, task="cloud", R2=0.9), make("a", 0, task="relief", R2=0.8)]
    tables = tabulate(cells, {}, tasks)
    assert [table.title for table in tables] == ["cover", "cloud, relief"]
    assert [header(table)[1] for table in tables] == [["10 %", "100 %"], ["cloud", "relief"]]
    assert [rows(table, 1) for table in tables] == [
        [["a", "10.0", "100.0"]],
        [["a", "90.0", "80.0"]],
    ]


def test_tasks_of_one_table_stand_side_by_side(make):
    tasks = {
        "cover": TaskSettings(table="land"),
        "cloud": TaskSettings(),
        "use": TaskSettings(table="land"),
    }
    cells = [
        make("a", 0, task=task, sensors=sensors, accuracy=0.5)
        for task in tasks
        for sensors in (BOTH, ("sar",))
    ]
    tables = tabulate(cells, {}, tasks)
    assert [table.title for table in tables] == ["land", "cloud"]
    assert header(tables[0])[1] == [
        *("cover optical+sar", "cover sar", "use optical+sar", "use sar"),
    ]


def test_metrics_that_differ_are_named_in_the_head(make):
    cells = [make("a", 0, task="cover", mAP_micro=0.5), make("a", 0, task="cloud", MAE=0.5)]
    (table,) = tabulate(cells, {}, {"cover": TaskSettings(), "cloud": TaskSettings()})
    assert header(table)[1] == ["cover (mAP_micro)", "cloud (MAE)"]
    assert rows(table, 1) == [["a", "50.0", "0.500"]]
    assert caption(table, 1).startswith("MAE, mAP_micro (mAP_micro in percent), of one seed")


def test_methods_and_tasks_keep_their_order_though_some_lack_others(make):
    tasks = {"cover": TaskSettings(), "cloud": TaskSettings()}
    parts = {"zeta": ["cloud"], "alpha": ["cover"], "mid": ["cover", "cloud"]}
    cells = [make(method, 0, task=task, R2=0.5) for method in parts for task in parts[method]]
    (table,) = tabulate(cells, {}, tasks)
    assert header(table)[1] == ["cover", "cloud"]
    assert rows(table, 1) == [
        *(["zeta", "–", "50.0"], ["alpha", "50.0", "–"], ["mid", "50.0", "50.0"]),
    ]


# -- text ------------------------------------------------------------------------------------------


def test_markdown(make):
    cells = [
        make(method, seed, labels=labels, accuracy=value)
        for labels in (0.1, 1.0)
        for method, values in (("a|b", (0.5, 0.6, 0.7)), ("c", (0.7, 0.8, 0.901)))
        for seed, value in enumerate(values)
    ]
    tables = tabulate(cells, {}, {"cover": TaskSettings()})
    assert markdown(tables, 3) == (
        "### cover\n\n"
        "| method | 10 % | 100 % |\n"
        "| --- | --: | --: |\n"
        "| a\\|b | 60.0 ± 10.0 | 60.0 ± 10.0 |\n"
        "| c | **80.0 ± 10.1** | **80.0 ± 10.1** |\n"
        "\n"
        "accuracy in percent: mean ± standard deviation over 3 seeds. Bold: better than every "
        "other, at the 5 % level (two-sided paired t-test over seeds, corrected for 2 comparisons "
        "by Holm's method).\n"
    )


def test_latex_escapes_what_it_would_read_as_a_command(make):
    cells = [
        make(method, seed, task="R&D_1", mAP_micro=value, labels=labels)
        for method, value in (("50 % #1", 0.5), (r"x^2~{$}\y", 0.75))
        for seed in range(7)  # equal differences are told from chance by their number alone
        for labels in (0.1, 1.0)
    ]
    text = latex(tabulate(cells, {}, {"R&D_1": TaskSettings()}), 7)
    lines = text.splitlines()
    assert r"method & 10 \% & 100 \% \\" in lines
    assert r"50 \% \#1 & 50.0 $\pm$ 0.0 & 50.0 $\pm$ 0.0 \\" in lines
    assert (
        r"x\textasciicircum{}2\textasciitilde{}\{\$\}\textbackslash{}y"
        r" & \textbf{75.0 $\pm$ 0.0} & \textbf{75.0 $\pm$ 0.0} \\"
    ) in lines
    (title,) = [line for line in lines if line.startswith(r"\caption")]
    assert title.startswith(r"\caption{R\&D\_1. mAP\_micro in percent: mean $\pm$ standard")
    for name in ("table", "tabular"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") == 1
    plain = re.sub(r"\\[&%$#_{}]", "", text)  # whatever is left is LaTeX's
    assert plain.count("{") == plain.count("}") and "%" not in plain and "#" not in plain


def test_a_column_is_headed_by_its_metric_before_anything_has_finished(make):
    (table,) = tabulate([make("a", 0)], {}, {"cover": TaskSettings(metric="mIoU")})
    assert header(table) == (["method"], ["mIoU"]) and caption(table, 1).startswith("mIoU")
    cells = [make("b", 0, task="x", accuracy=0.5), make("b", 0, task="y", MAE=1.0)]
    (table,) = tabulate([*cells, make("b", 0, task="z")], {}, {t: TaskSettings() for t in "xyz"})
    assert header(table)[1] == ["x (accuracy)", "y (MAE)", "z"]


def test_nothing_is_best_while_another_has_no_score(make):
    scores = {"a": [0.9, 0.8, 0.7], "b": [0.1, 0.01, 0.0]}
    cells = [make(m, s, accuracy=v) for m, of in scores.items() for s, v in enumerate(of)]
    failed = make("c", 0)
    tasks = {"cover": TaskSettings()}
    assert best(tabulate(cells, {}, tasks)[0]) == ["a"]
    assert best(tabulate([*cells, failed], {failed.folder: "no memory"}, tasks)[0]) == []


def test_latex_takes_no_name_for_an_option_of_a_line_break(make):
    cells = [make("[CLS]", 0, accuracy=0.5), make("*", 0, accuracy=0.5)]
    text = latex(tabulate(cells, {}, {"cover": TaskSettings()}), 1)
    assert "\n{}[CLS] & 50.0 \\\\\n{}* & 50.0 \\\\\n" in text


def test_csv_gives_the_numbers_back(make):
    scores = {"a": [0.51, 0.62, 0.73], "b, c": [0.123456, 0.2]}
    cells = [
        make(method, seed, sensors=sensors, labels=0.1, mAP_micro=value, mAP_macro=value / 2)
        for sensors in ((), BOTH)
        for method, values in scores.items()
        for seed, value in enumerate(values)
    ]
    gone = make("b, c", 2, sensors=BOTH, labels=0.1)
    tables = tabulate([*cells, gone], {gone.folder: "no memory"}, {"cover": TaskSettings()})

    read = list(csv.DictReader(io.StringIO(tables_csv(tables))))
    assert [(row["method"], row["modalities"]) for row in read] == [
        *(("a", "all"), ("b, c", "all"), ("a", "optical+sar"), ("b, c", "optical+sar")),
    ]
    for row in read:
        values = scores[row["method"]]
        assert float(row["mean"]) == pytest.approx(statistics.mean(values), abs=1e-6)
        assert float(row["std"]) == pytest.approx(statistics.stdev(values), abs=1e-6)
        assert (row["task"], row["metric"]) == ("cover", "mAP_micro")
        assert int(row["seeds"]) == len(values) and float(row["label_fraction"]) == 0.1
    assert [row["failed"] for row in read] == ["", "", "", "no memory"]

    read = list(csv.DictReader(io.StringIO(cells_csv([*cells, gone]))))
    assert len(read) == len(cells)  # one that has not finished is not there
    for row, cell in zip(read, cells, strict=True):
        value = scores[cell.method][cell.seed]
        assert float(row["mAP_micro"]) == value
        assert float(row["mAP_macro"]) == pytest.approx(value / 2, abs=1e-6)
        assert (row["method"], int(row["seed"])) == (cell.method, cell.seed)
        assert row["folder"] == cell.folder.name
    assert cells_csv([gone]) == ""


# -- published scores ------------------------------------------------------------------------------

PRINTED = """
table,method,backbone,modalities,training,label_fraction,metric,value
printed,Ours,ResNet-50,s1+s2,frozen,0.01,mAP,11
printed,Ours,ResNet-50,s1+s2,frozen,1,mAP,22
printed,Ours,ResNet-50,s1+s2,fine-tuned,1,mAP,33
printed,Ours,ResNet-50,s1,frozen,1,mAP,44
printed,Theirs,,s1+s2,frozen,0.01,mAP,
printed,Theirs,,s1+s2,frozen,1,mAP,55
printed,Theirs,,s1+s2,fine-tuned,1,mAP,
printed,Supervised,,s1+s2,supervised,0.01,mAP,66
printed,Supervised,,s1+s2,supervised,1,mAP,77
printed,Supervised,,s1+s2,supervised,1,mAP,77
"""


@pytest.fixture
def printed():
    return read_published(io.StringIO(PRINTED))


@pytest.mark.parametrize(
    ("freeze", "metric", "expected"),
    [
        (
            True,
            "mAP_micro",
            [
                ("Ours, ResNet-50, published", [11, 22, None, 44, 22]),
                ("Theirs, published", [None, 55, None, None, 55]),
            ],
        ),
        (
            False,
            "mAP_micro",
            [
                ("Ours, ResNet-50, published", [None, 33, None, None, 33]),
                ("Supervised, published", [66, 77, None, None, 77]),
            ],
        ),
        (True, "mAP_macro", []),  # the paper's mAP is another
    ],
)
def test_published_scores_stand_in_the_column_that_was_measured_alike(
    make, printed, freeze, metric, expected
):
    measured = [
        *((("s2", "s1"), 0.01), (("s1", "s2"), 1.0), (("s1", "s2"), 0.1)),
        *((("s1",), 1.0), ((), 1.0)),  # the last: all sensors, whichever they are
    ]
    cells = [
        make("a", 0, sensors=sensors, labels=labels, freeze=freeze, **{metric: 0.5})
        for sensors, labels in measured
    ]
    (table,) = tabulate(cells, {}, {"cover": TaskSettings()})
    add_published(table, cells, {"cover": printed})
    assert dict(table.published) == dict(expected)


@pytest.mark.parametrize("turn", [1, -1])
def test_published_scores_of_both_trainings_stand_beside_a_task_that_has_both(make, printed, turn):
    cells = [
        make(name, 0, sensors=("s1", "s2"), freeze=freeze, mAP_micro=0.5)
        for name, freeze in (("probe", True), ("tuned", False))
    ]
    (table,) = tabulate(cells, {}, {"cover": TaskSettings()})
    add_published(table, cells[::turn], {"cover": printed})
    assert dict(table.published) == {
        "Ours, ResNet-50, frozen, published": [22],
        "Ours, ResNet-50, fine-tuned, published": [33],
        "Theirs, frozen, published": [55],
        "Supervised, supervised, published": [77],
    }


def test_published_scores_stand_below_and_only_beside_their_task(make, printed):
    tasks = ("cover", "use")
    cells = [make("a", 0, task=t, labels=1.0, sensors=("s1",), mAP_micro=0.5) for t in tasks]
    tables = tabulate(cells, {}, {task: TaskSettings() for task in tasks})
    add_published(tables[0], cells, {"use": printed})
    assert rows(tables[0], 1) == [
        ["a", "50.0", "50.0"],
        ["Ours, ResNet-50, published", "–", "44.0"],
    ]
    lines = latex(tables, 1).splitlines()
    own = lines.index(r"a & 50.0 & 50.0 \\")
    assert lines[own + 1 : own + 3] == [
        *(r"\midrule", r"Ours, ResNet-50, published & -- & 44.0 \\"),
    ]


# -- pictures --------------------------------------------------------------------------------------


def test_pictures_show_the_numbers(make):
    pytest.importorskip("matplotlib")
    from decur.compare.rendering import draw_table

    scores = {"a": {0.1: (0.2, 0.4), 1.0: (0.6, 0.8)}, "b": {0.1: (0.3, 0.3)}}
    cells = [
        make(method, seed, labels=labels, accuracy=value)
        for method, by_labels in scores.items()
        for labels, values in by_labels.items()
        for seed, value in enumerate(values)
    ]
    (table,) = tabulate(cells, {}, {"cover": TaskSettings()})
    bars = draw_table(table).axes[0].containers  # over the share of the labels: one line a method
    assert {bar.get_label(): list(bar.lines[0].get_ydata()) for bar in bars} == {
        "a": pytest.approx([0.3, 0.7]),
        "b": [0.3],
    }
    (table,) = tabulate([c for c in cells if c.label_fraction < 1], {}, {"cover": TaskSettings()})
    (axis,) = draw_table(table).axes  # a dot a seed, a bar at the mean
    drawn = [sorted(map(float, line.get_xdata())) for line in axis.lines]
    assert drawn == [[0.2, 0.4], [pytest.approx(0.3)], [0.3, 0.3], [pytest.approx(0.3)]]
    cells = [make("a", 0, task="map", labels=x, mIoU=x / 2, accuracy=x) for x in (0.1, 1.0)]
    (table,) = tabulate(cells, {}, {"map": TaskSettings(metric=["mIoU", "accuracy"])})
    panels = draw_table(table).axes  # a metric each
    assert [(axis.get_ylabel(), *axis.containers[0].lines[0].get_ydata()) for axis in panels] == [
        ("mIoU", 0.05, 0.5),
        ("accuracy", 0.1, 1.0),
    ]


def test_a_picture_along_a_number_in_which_methods_differ(make):
    pytest.importorskip("matplotlib")
    from decur.compare.rendering import draw_table

    scores = {"wide": (0.6, 0.8), "narrow": (0.4, 0.4), "without": (0.1, 0.3)}
    cells = [
        make(method, seed, labels=labels, accuracy=value * labels)
        for method, values in scores.items()
        for labels in (0.5, 1.0)
        for seed, value in enumerate(values)
    ]
    (table,) = tabulate(cells, {}, {"cover": TaskSettings()})
    panels = draw_table(
        table, MethodAxis("width", {"wide": 1024, "narrow": 64})
    ).axes  # a share of labels each
    assert [axis.get_title() for axis in panels] == ["50 %", "100 %"]
    for axis, share in zip(panels, (0.5, 1.0), strict=True):
        (bars,) = axis.containers
        assert list(bars.lines[0].get_xdata()) == [64, 1024]  # in order, whatever the table's
        assert list(bars.lines[0].get_ydata()) == pytest.approx([0.4 * share, 0.7 * share])
        level = next(line for line in axis.lines if line.get_label() == "without")
        assert list(level.get_ydata()) == pytest.approx([0.2 * share] * 2)
        assert axis.get_xlabel() == "width" and axis.get_xscale() == "log"
    one = draw_table(table, MethodAxis("width", {"wide": 1024})).axes[
        0
    ]  # a single place is no axis
    assert one.get_xlabel() == "labels (%)"


@pytest.mark.parametrize("axis", [None, MethodAxis("$w_{$", {"$a_{$": 64, "_b": 1024})])
@pytest.mark.parametrize("shares", [[1.0], [0.1, 1.0]])
def test_names_are_shown_as_they_are(make, axis, shares):
    pytest.importorskip("matplotlib")
    from decur.compare.rendering import draw_table

    cells = [make(name, 0, labels=x, accuracy=x) for name in ("$a_{$", "_b") for x in shares]
    cells += [make("_c", 0, labels=x, accuracy=x) for x in shares]
    (table,) = tabulate(cells, {}, {"cover": TaskSettings()})
    figure = draw_table(table, axis)
    figure.canvas.draw()  # would raise ValueError for a formula that is none
    found = [text.get_text() for text in figure.findobj(lambda x: hasattr(x, "get_text"))]
    assert "_c" in found


def test_a_legend_names_what_the_first_panel_lacks(make):
    pytest.importorskip("matplotlib")
    from decur.compare.rendering import draw_table

    cells = [make(m, 0, labels=x, accuracy=x) for m in ("wide", "narrow") for x in (0.5, 1.0)]
    cells += [make("without", 0, labels=1.0, accuracy=0.2), make("late", 0, labels=1.0, accuracy=0)]
    cells.insert(4, make("without", 0, labels=0.5))  # has not finished
    (table,) = tabulate(cells, {}, {"cover": TaskSettings()})
    figure = draw_table(table, MethodAxis("width", {"wide": 1024, "narrow": 64}))
    assert [text.get_text() for text in figure.legends[0].get_texts()][1:] == ["without", "late"]
    (late,) = (line for line in figure.axes[1].lines if line.get_label() == "late")
    assert late.get_color() == "C2"  # whichever other lines a panel has


def test_what_is_doubtful_of_cells_is_told_below_the_table(make):
    cells = [make("ours", seed, accuracy=0.5, macro_F1=0.3) for seed in (0, 1)]
    told = "the model predicts 'sea' everywhere, and tells nothing of the label"
    kept = {"metrics": {key: {"value": 0.5} for key in ("accuracy", "macro_F1")}}
    (cells[1].folder / "results.json").write_text(json.dumps({**kept, "warnings": [told]}))
    (table,) = tabulate(cells, {}, {"cover": TaskSettings(metric=["accuracy", "macro_F1"])})
    said = f"A cell has warnings (all are in cells.csv), such as {cells[1].label}: {told}."
    assert caption(table, 2).endswith(said) and said in markdown([table], 2)
    written = list(csv.DictReader(io.StringIO(cells_csv(cells))))
    assert [row["warnings"] for row in written] == ["", told]


def test_the_floor_stands_below_the_scores(make):
    cells = [make("ours", seed, accuracy=0.9, macro_F1=0.8) for seed in (0, 1)]
    for cell, floor in zip(cells, (0.5, 0.6), strict=True):
        metrics = {"accuracy": {"value": 0.9, "floor": floor}, "macro_F1": {"value": 0.8}}
        (cell.folder / "results.json").write_text(json.dumps({"metrics": metrics}))
    (table,) = tabulate(cells, {}, {"cover": TaskSettings(metric=["accuracy", "macro_F1"])})
    assert as_text(table, 2).to_numpy().tolist()[-1] == ["constant guess", "55.0", "–"]
    written = list(csv.DictReader(io.StringIO(tables_csv([table]))))
    assert [(row["metric"], row["floor"]) for row in written] == [
        ("accuracy", "0.550000"),
        ("macro_F1", ""),
    ]
    written = list(csv.DictReader(io.StringIO(cells_csv(cells))))
    assert list(written[0])[-3:] == ["folder", "floor_accuracy", "warnings"]  # new ones at the end
    assert [row["floor_accuracy"] for row in written] == ["0.5", "0.6"]
    assert _outcome(cells[0], None).startswith("accuracy 0.900 (constant guess 0.500), ")
    first, second = best_scores([table], 2)
    assert first == (
        "cover, (accuracy) in percent",
        "90.0 ± 0.0",
        "ours, the best mean of 1; 55.0 by a constant guess",
    )
    assert second[2] == "ours, the best mean of 1"
    assert differences(table, "ours") is None and "constant guess & 55.0 & --" in latex([table], 2)
