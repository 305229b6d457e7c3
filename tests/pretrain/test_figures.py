"""Pictures for the eye, and curves of what was measured."""

import json
import re
import shlex

import numpy as np
import pytest
import torch

from decur import Modality, plotting
from decur.data import PairedFolder, SyntheticScenes
from decur.objectives import DeCUR
from decur.objectives.alignment import alignment
from decur.pretrain import figures
from decur.pretrain.directions import Counted
from decur.pretrain.metrics import write_metrics
from decur.runs import RunFolder

pytestmark = pytest.mark.usefixtures("drawing")


@pytest.mark.parametrize(
    ("bands", "shown"),
    [
        (("B2", "B3", "B4", "B8"), (2, 1, 0)),
        (("B02", "B03", "B04", "B8A"), (2, 1, 0)),
        (("R", "G", "B"), (0, 1, 2)),
        (tuple(f"band{i + 1}" for i in range(12)), (3, 2, 1)),  # Sentinel-2, as `stats` says
        (tuple(f"band{i + 1}" for i in range(11)), (0, 0, 0)),
        (("a", "b", "c"), (0, 1, 2)),
        (("VV", "VH"), (0, 0, 0)),
        (("height",), (0, 0, 0)),
    ],
)
def test_true_colour_where_there_is_one_else_grey(bands, shown):
    modality = Modality("m", bands, scaling="range")
    image = torch.rand(len(bands), 40, 40)
    picture = plotting.render(image, modality)
    x = image[list(shown)].numpy()
    low, high = np.percentile(x, [2, 98])
    expected = np.clip((x - low) / (high - low), 0, 1).transpose(1, 2, 0)
    assert picture.shape == (40, 40, 3)
    assert np.allclose(picture, expected, atol=1e-6)


def test_a_constant_picture_is_shown_and_not_divided_by_zero():
    picture = plotting.render(torch.full((1, 8, 8), 0.3), Modality("m", ("a",), scaling="range"))
    assert np.isfinite(picture).all()


def test_names_are_shown_as_they_are():
    rows = [{"epoch": 1, "probe/$x_{$/_s1/linear": 0.1}]
    figure = figures.probe_curves(rows)
    figure.canvas.draw()
    (axis,) = figure.axes
    assert axis.get_title() == r"\$x_{\$"
    assert [entry.get_text() for entry in axis.get_legend().get_texts()] == ["_s1"]


@pytest.mark.parametrize("pairs", [64, 32, 16])
def test_a_correlation_off_the_diagonal_stands_beside_its_chance(tmp_path, pairs):
    """Of dimensions without any relation: fewer samples that have both sensors have more of it."""
    noise = torch.randn(2, 64, 500, generator=torch.Generator().manual_seed(0))
    present = {"a": torch.ones(64, dtype=torch.bool), "b": torch.arange(64) < pairs}
    views = {"a": (noise[0],) * 2, "b": (noise[1],) * 2}
    found = alignment(views, {"common": slice(0, 500)}, present=present)
    by_chance = float(found["offdiag_chance/a-b"])
    assert float(found["offdiag_rms/a-b"]) == pytest.approx(by_chance, rel=0.02)
    folder, row = RunFolder(tmp_path), {"epoch": 1, "loss": 1.0, "offdiag_rms/a-b": 0.5}
    for more in ({}, {"offdiag_chance/a-b": by_chance}):
        write_metrics(folder, [row | more])
        figures.write_report(folder, SyntheticScenes(8, 32))
        page = folder.report.read_text()
        assert (f"{by_chance:.3g}" in page) == bool(more) and "offdiag_chance" not in page


def test_curves_leave_gaps_where_nothing_was_measured():
    rows = [
        {"epoch": 1, "common/a-b/dim": 0.5, "probe/x/a/linear": 0.1},
        {"epoch": 2, "common/a-b/dim": 0.4},
        {"epoch": 3, "common/a-b/dim": 0.3, "probe/x/a/linear": 0.3},
    ]
    (line,) = figures.loss_terms(rows).axes[0].lines
    assert line.get_xydata().tolist() == [[1, 0.5], [2, 0.4], [3, 0.3]]
    (line,) = figures.probe_curves(rows).axes[0].lines
    assert line.get_xydata().tolist() == [[1, 0.1], [3, 0.3]]
    rows = [row | ({"probe/x/a/chance": 0.2} if "probe/x/a/linear" in row else {}) for row in rows]
    axis = figures.probe_curves(rows).axes[0]
    assert axis.lines[1].get_xydata().tolist() == [[1, 0.2], [3, 0.2]]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["a", "by chance"]
    assert figures.rank_curves(rows) is None


def test_the_first_screen_says_how_far_the_sensors_agree(tmp_path):
    agreed = {"diagonal/common/a-b": 0.5, "diagonal/common/a-c": 0.7, "diagonal/unique/a-b": -0.001}
    write_metrics(RunFolder(tmp_path), [{"epoch": 3, "loss": 1.0, **agreed}])
    figures.write_report(RunFolder(tmp_path), SyntheticScenes(8, 32))
    page = (tmp_path / "report.html").read_text()
    assert "for 3 epochs on 8 samples" in page and "<b>0.60</b>" in page and "<b>0.00</b>" in page
    page = re.sub("</?span.*?>", "", page)  # which hold options together
    assert f"decur transfer --encoders {tmp_path} --data.root FOLDER --target LABEL" in page


def told(tmp_path, objective):
    """Return the page of a run that was trained with an objective."""
    write_metrics(RunFolder(tmp_path), [{"epoch": 1, "loss": 1.0}])
    data = SyntheticScenes(8, 32)
    figures.write_report(RunFolder(tmp_path), data, objective=objective.about(), draw=False)
    return (tmp_path / "report.html").read_text()


def test_the_report_lists_the_parts_of_the_embedding(tmp_path):
    blocks = {"optical+sar+elevation": 0.25, "optical+sar": 0.125}
    page = told(tmp_path, DeCUR(32, blocks=blocks))
    sizes = "optical+sar+elevation 8, optical+sar 4, unique 20 of 32 dimensions"
    assert f"Parts of the embedding: {sizes}; the sensors that a block names share its" in page
    assert "common 24, unique 8 of 32 dimensions." in told(tmp_path, DeCUR(32, common=0.75))
    assert "Parts of" not in told(tmp_path, DeCUR(32, common=1.0))


@pytest.mark.parametrize(
    ("between", "within", "untold", "said"),
    [
        (30, 60, [], "That is a share of 50%; 64 of 128 dimensions are common.</p>"),
        (3, 100, [], "of 3%; 32 of 128 dimensions are common, as fewer would be too few.</p>"),
        (123, 495, [], "of 24.8%; 32 of 128 dimensions are common, as fewer"),
        (
            0,
            9,
            [],
            "of 0%; 32 of 128 dimensions are common, as fewer would be too few. Where sensors "
            "share more, train longer or give the share.</p>",
        ),
        (
            0,
            0,
            [],
            "Not even two views of a sensor agree in a direction beyond chance. So the share could "
            "not be counted, and 112 of 128 dimensions are common. Where sensors share more, train",
        ),
        (
            None,
            None,
            ["a and b occur together in no sample"],
            "a and b occur together in no sample. So the share could not be counted, and 32 of 128 "
            "dimensions are common. Give the share.</p>",
        ),
    ],
)
def test_the_report_tells_which_share_was_taken(between, within, untold, said, tmp_path):
    counted = Counted({("a", "b"): between}, {"a": within, "b": within}, 500, 200, 1, untold)
    counted.write(RunFolder(tmp_path))
    objective = DeCUR(128, common="auto")
    objective.set_share(counted.taken())
    page = told(tmp_path, objective)
    assert said in page and "by a training of 1 step in" in page


def test_commands_to_go_on_with_read_the_data_as_the_run_did(tmp_path):
    for name in ("s1/a_vv", "s2/a"):
        (tmp_path / name).parent.mkdir()
        np.save(tmp_path / f"{name}.npy", np.ones((1, 4, 4), np.uint8))
    pattern = {"s1": "{id}_vv", "s2": "{id}"}
    given = PairedFolder(tmp_path, pattern=pattern, missing="keep")
    words = shlex.split(figures.data_options(given))
    assert words == ["--data.missing", "keep", "--data.pattern", json.dumps(pattern)]
    usual = PairedFolder(tmp_path, pattern=pattern)
    assert "missing" not in figures.data_options(usual)
    scenes = figures.data_options(SyntheticScenes(samples=3))
    assert scenes == "--data SyntheticScenes --data.samples 3"
