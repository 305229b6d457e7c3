"""A run whose sensors share blocks of dimensions, from its command to its probes."""

import json

import pytest
from safetensors import safe_open

from decur.cli import main
from decur.data import LinearGaussianFactors
from decur.errors import ConfigError
from decur.pretrain import LoaderSettings
from decur.pretrain.callbacks import epoch_line
from decur.pretrain.metrics import agreements, read_metrics
from decur.runs import RunFolder
from decur.transfer import TransferSettings, transfer
from decur.transfer.sources import gather_encoders

BLOCKS = {"x+y+z": 0.5, "y+x": 0.25}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blocks") / "run"
    main(
        ["pretrain", "--config", "gaussian", "--run", str(folder), "--trainer.max_epochs", "1"]
        + ["--data.samples", "64", "--data.dim", "12", "--data.sensors", '["x", "y", "z"]']
        + ["--projector.width", "16", "--loader.batch_size", "32", "--loader.workers", "0"]
        + ["--objective.common", "0.875", "--objective.blocks", json.dumps(BLOCKS)]
        + ["--trainer.accelerator", "cpu"]
    )
    return folder


def test_blocks_are_named_in_metrics_and_headers(run):
    (row,) = read_metrics(RunFolder(run))
    parts = {key.split("/")[1] for key in row if key.startswith("diagonal/")}
    assert parts == {"intra", "x+y+z", "y+x", "unique"}
    assert "common diagonal" in epoch_line(row, 1) and "unique diagonal" in epoch_line(row, 1)
    shared = [row[f"diagonal/x+y+z/{pair}"] for pair in ("x-y", "x-z", "y-z")]
    shared.append(row["diagonal/y+x/x-y"])
    assert sorted(agreements(row)["common"]) == pytest.approx(sorted(shared))
    assert len(agreements(row)["unique"]) == 5 and len(agreements(row)["intra"]) == 3
    page = (run / "report.html").read_text()
    assert "agreement of sensors, common dimensions" in page
    with safe_open(run / "encoders" / "z.safetensors", "pt") as file:
        header = json.loads(file.metadata()["decur"])
    assert header["objective"] == {
        "name": "DeCUR",
        "dim": 16,
        "parts": {"x+y+z": [0, 8], "y+x": [8, 12], "unique": [12, 16]},
    }


def test_what_is_refused_leaves_no_folder(tmp_path, capsys):
    for options, message in (
        (
            ['--objective.blocks={"x+w": 0.5}', "--objective.common=0.875"],
            "blocks: 'x+w' names w, which is not trained on",
        ),
        (["--objective.common=some"], "objective.common: expected float or auto, got 'some'"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["pretrain", "--config", "gaussian", "--run", str(tmp_path / "run"), *options])
        assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("run/*.yaml"))


def test_a_block_is_probed(run, tmp_path, caplog):
    data = LinearGaussianFactors(40, dim=12, sensors=("x", "y", "z"))
    modalities = data.modalities
    for given in ("block:x+y", "block:y+x"):
        encoders = gather_encoders(str(run), modalities, representation=given)
        assert {encoder.dim for encoder in encoders.values()} == {4}
    caplog.clear()
    results = transfer(
        data,
        encoders=str(run),
        target=next(iter(data.targets)),
        representation="block:x+y",
        modalities=["x", "z"],
        run=str(tmp_path),
        loader=LoaderSettings(workers=0),
    ).results
    assert results["representation"] == "block:y+x"  # as the run calls it
    assert results["model"] == "linear head (ridge) on the y+x dimensions"
    said = "representation: block:y+x does not name z, whose dimensions there are its own"
    assert [line for line in caplog.messages if "does not name" in line] == [said]
    with pytest.raises(ConfigError, match=r"no common dimensions; .*block:x\+y\+z, block:y\+x, un"):
        gather_encoders(str(run), modalities, representation="common")
    with pytest.raises(ConfigError, match=r"'all' is none; choose from features.*block:NAME"):
        TransferSettings(representation="all")
    with pytest.raises(ConfigError, match=r"'block:unique' is none; give --representation unique$"):
        TransferSettings(representation="block:unique")
