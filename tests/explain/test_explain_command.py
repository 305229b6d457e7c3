"""The command from end to end on a tiny run: what it writes, reuses, redraws and refuses."""

import csv
import shutil
import sys
from html.parser import HTMLParser
from types import SimpleNamespace
from urllib.parse import urlparse

import numpy as np
import pytest
import yaml

from decur.cli import main as cli
from decur.data import SyntheticScenes
from decur.errors import BadSampleError, ConfigError, DataError
from decur.explain import ANALYSES
from decur.explain.base import Analysis, analyses, text
from decur.explain.command_explain import main
from decur.explain.run import explain
from decur.pretrain.command_pretrain import main as pretrain

SMALL = ["--samples", "40", "--loader.workers", "0"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "a<b & 'c\""
    pretrain(
        ["--data", "SyntheticScenes", "--data.samples", "64", "--data.size", "32"]
        + ["--data.modalities", "[optical, sar]", "--encoder.name", "test_resnet"]
        + ["--projector.width", "16", "--projector.layers", "2", "--objective.common", "0.75"]
        + ["--optimizer.name", "adamw", "--optimizer.lr", "0.001", "--views.size", "32"]
        + ["--loader.batch_size", "16", "--loader.workers", "0", "--monitor.every_epochs", "0"]
        + ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--run", str(run)]
    )
    return run


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / trained.name)


def with_analysis(monkeypatch, analysis):
    """Register an analysis until the test ends."""
    ANALYSES.names()
    monkeypatch.setattr(ANALYSES, "_items", {**ANALYSES._items, analysis.name: analysis})


@pytest.fixture
def counted(monkeypatch):
    """An analysis that counts how often it is computed."""
    calls = []

    def arrays(checkpoint, loader, watch=None, scale: float = 1.0, beside=()):
        """Count.

        Args:
            checkpoint: the run.
            loader: samples.
            watch: progress.
            scale: a number.
            beside: more runs.
        """
        list(watch(range(2), 2))
        calls.append([checkpoint.name, *(other.name for other in beside)])
        return {"names": text(checkpoint.name), "numbers": np.arange(3) * scale}

    def plot(arrays):
        """The numbers <as a line>."""
        from decur.plotting import subplots

        figure, axes = subplots(1, 1, 3)
        axes[0, 0].plot(arrays["numbers"])
        return figure

    analysis = Analysis(
        "counted", 'Counted <"&', "<About>", arrays, {"line": plot},
        lambda arrays: f"<p>{arrays['numbers'].sum():g}</p>", several=True, order=1,
    )  # fmt: skip
    with_analysis(monkeypatch, analysis)
    return calls


class _Page(HTMLParser):
    """Every tag closed in its order; every address and anchor; one script, that of charts."""

    VOID = frozenset(("meta", "img", "input", "br"))

    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.anchors, self.ids, self.headings = [], [], [], [], []
        self.code = 0
        self.feed(text)
        self.close()
        assert not self.open and self.code <= 1

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        assert tag not in ("link", "iframe", "object", "b&")
        self.code += tag == "script" and given.get("type") not in ("application/json", "text/plain")
        self.sources += [given[key] for key in ("src", "srcset", "data", "action") if key in given]
        self.anchors += [given["href"]] if "href" in given else []
        self.ids += [given["id"]] if "id" in given else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["h2"]:
            self.headings.append(data)
        if self.open[-1:] == ["style"]:
            assert "url(" not in data and "@import" not in data


def test_everything_from_end_to_end(run, capsys):
    done = main([str(run), *SMALL])
    assert done.arrays["shared"]["seen"] == "no"  # generated scenes go on: others are taken
    assert set(done.arrays) | set(done.inapplicable) == set(ANALYSES.names())
    assert "attention" in done.inapplicable["points"]
    page = _Page(run.joinpath("report.html").read_text())
    titles = [analysis.title for analysis in analyses() if analysis.name in done.arrays]
    assert page.headings == ["Pretraining", *titles]
    assert all(urlparse(source).scheme == "data" for source in page.sources)
    assert [a.removeprefix("#") for a in page.anchors] == page.ids  # contents, no other link
    assert run.joinpath("report.html").stat().st_size < 15e6
    for name, arrays in done.arrays.items():
        with np.load(run / f"figures/explain-{name}.npz", allow_pickle=False) as kept:
            for key, value in arrays.items():
                np.testing.assert_array_equal(kept[key], value)
        for plot in ANALYSES.get(name).plots:
            picture = run / f"figures/explain-{name}-{plot}.png"
            assert not picture.exists() or picture.read_bytes()[:4] == b"\x89PNG"
    out = capsys.readouterr().out
    assert all(f"\n{name:<12}" in out for name in ANALYSES.names())
    again = main([str(run), *SMALL])
    assert again.computed == [] and set(again.arrays) == set(done.arrays)


def test_only_what_changes_is_computed_again(run, counted):
    given = [str(run), *SMALL, "--only", "counted"]
    assert main(given).computed == ["counted"] and main(given).computed == []
    for change in (
        ["--samples", "30"],
        ["--data.seed", "5"],
        ["--size", "24"],
        ["--modalities", "sar"],
        ["--options.counted.scale", "2"],
        ["--overwrite", "true"],
    ):
        assert main([*given, *change]).computed == ["counted"], change
    assert main([*given, "--options.counted.scale", "2"]).arrays["counted"]["numbers"].sum() == 6


def test_other_weights_are_computed_anew(run, counted, tiny_checkpoint):
    from decur.explain.section import arrays_digest
    from decur.features import SampleLoader

    loader = SampleLoader(SyntheticScenes(8, 32, modalities=["optical", "sar"]))
    one, other = tiny_checkpoint(), tiny_checkpoint()
    analysis = ANALYSES.get("counted")
    assert arrays_digest(analysis, [one], loader, {}) == arrays_digest(
        analysis, [other], loader, {}
    )
    last = list(other.projectors["sar"].parameters())[-1]
    last.data[0] += 1e-3
    assert arrays_digest(analysis, [one], loader, {}) != arrays_digest(
        analysis, [other], loader, {}
    )


def test_redraws_from_what_is_kept_alone(run, counted, tmp_path):
    out = tmp_path / "elsewhere"
    before = main([str(run), *SMALL, "--only", "counted", "--out", str(out)])
    picture = out / "figures/explain-counted-line.png"
    picture.unlink()
    for name in ("encoders", "checkpoints", "config.yaml"):
        gone = run / name
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    after = main([str(run), "--only", "counted", "--out", str(out), "--redraw", "true"])
    assert picture.is_file() and len(counted) == 1
    np.testing.assert_array_equal(
        after.arrays["counted"]["numbers"], before.arrays["counted"]["numbers"]
    )
    assert 'Counted <"&' in _Page((out / "report.html").read_text()).headings
    with pytest.raises(DataError, match="nothing kept"):
        main([str(run), "--only", "counted", "--redraw", "true"])


def test_a_damaged_file_is_computed_anew(run, counted):
    given = [str(run), *SMALL, "--only", "counted"]
    main(given)
    kept = run / "figures/explain-counted.npz"
    kept.write_bytes(kept.read_bytes()[:40])
    assert main(given).computed == ["counted"] and main(given).computed == []


def test_runs_stand_beside_each_other(run, counted, tmp_path, capsys):
    twin = shutil.copytree(run, tmp_path / "twin")
    done = main([str(run), *SMALL, "--only", "counted", "--beside", str(twin)])
    assert counted == [[run.name, "twin"]]
    assert done.arrays["counted"]["seen"].tolist() == ["no", "no"]  # of each run
    assert "beside      compared in counted alone" in capsys.readouterr().out
    copy = shutil.copytree(run, tmp_path / "deeper" / run.name)
    with pytest.raises(ConfigError, match="two runs are named"):
        main([str(run), *SMALL, "--only", "counted", "--beside", str(copy)])


def test_sections_that_compare_no_runs_say_so(run, monkeypatch, tmp_path, caplog):
    alone = Analysis("alone", "Alone", "", lambda *_, **__: {}, {}, lambda arrays: "")
    with_analysis(monkeypatch, alone)
    twin = shutil.copytree(run, tmp_path / "twin")
    main([str(run), *SMALL, "--only", "alone", "--beside", str(twin)])
    said = "beside: without effect, as no chosen analysis compares runs; alignment does"
    assert said in caplog.text


def test_an_interrupted_command_goes_on(run, counted, monkeypatch):
    def interrupted(checkpoint, loader, watch=None):
        raise KeyboardInterrupt

    later = Analysis("later", "Later", "", interrupted, {}, lambda arrays: "", order=2)
    with_analysis(monkeypatch, later)
    given = [str(run), *SMALL, "--only", "counted", "later"]
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            main(given)
    assert len(counted) == 1 and "Counted" in (run / "report.html").read_text()


class _Broken(SyntheticScenes):
    def read(self, index):
        if index == 3:
            raise BadSampleError("scenes/<3>", "cut off")
        return super().read(index)


def test_bad_samples_are_listed_and_tolerated(run):
    data = _Broken(24, 32, modalities=["optical", "sar"])
    before = (run / "bad_samples.csv").exists()
    done = explain(str(run), data, only=["browser"])
    assert (
        done.bad == [("scenes/<3>", "cut off")] and "0000003" not in done.arrays["browser"]["ids"]
    )
    with (run / "explain/bad_samples.csv").open() as file:
        assert list(csv.reader(file))[1] == ["scenes/<3>", "cut off"]
    assert (run / "bad_samples.csv").exists() == before  # those of training are another matter


def test_names_of_sensors_and_samples_are_escaped(run, tmp_path):
    nasty = "<i>\"&'"
    scenes = SyntheticScenes(12, 32, modalities=["optical", "sar"])
    scenes.ids = [f"{nasty}{index}" for index in range(12)]
    explain(str(run), scenes, only=["browser"])
    page = _Page((run / "report.html").read_text())
    assert "i" not in page.open and "<i>" not in (run / "report.html").read_text()


def test_a_path_with_brackets_is_printed_whole(run, counted, tmp_path, capsys):
    out = tmp_path / "a[b]c"
    for redraw in ([], ["--redraw", "true"]):
        main([str(run), *SMALL, "--only", "counted", "--out", str(out), *redraw])
        assert f"report      {out / 'report.html'}" in capsys.readouterr().out


def test_one_sensor_says_why_there_is_nothing_to_compare(run):
    done = main([str(run), *SMALL, "--modalities", "sar", "--only", "alignment", "browser"])
    assert "one" in done.inapplicable["alignment"] and "browser" in done.arrays
    page = (run / "report.html").read_text()
    assert done.inapplicable["alignment"] in page.rpartition("<section>")[2]  # in a line at the end
    assert 'id="explain-alignment"' not in page and 'id="explain-browser"' in page


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "alinment"], "no analysis 'alinment'; did you mean alignment"),
        (["--samples", "0"], "samples: must be from 1 to"),
        (["--size", "0"], "size: must be from 1 to"),
        (["--modalities", "lidar"], "the data has no 'lidar'"),
        (["--data.seeed", "2"], "seeed"),
        (["--options.browser.shown", "0"], "options.browser.shown: from 1 to"),
        (["--options.browser.shwon", "2"], "options.browser.shwon: unknown key; did you mean"),
        (["--beside", "nowhere"], "nowhere: "),
        (["--smaples", "2"], "did you mean samples"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(run, arguments, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli(["explain", str(run), *SMALL[2:], "--only", "browser", *arguments])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and said in error.splitlines()[-1]
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("dimensions.samples", 3, "at least 8"),
        ("dimensions.perplexity", 0, "at least 1"),
        ("dimensions.seed", -1, "from 0 to 4294967295"),
        ("samples.samples", 0, "at least 1"),
        ("samples.perplexity", -1.0, "at least 1"),
        ("samples.seed", 2**32, "from 0 to 4294967295"),
        ("shared.samples", 3, "at least 40"),
        ("shared.permutations", 0, "at least 1"),
        ("shared.seed", -1, "from 0 to 4294967295"),
        ("spectral.samples", 0, "at least 1"),
        ("spectral.steps", 0, "at least 1"),
        ("spatial.examples", -1, "at least 0"),
        ("alignment.batch", -1, "at least 2"),
    ],
)
def test_an_option_out_of_range_is_named(option, value, allowed, tiny_checkpoint, tiny_loader):
    name, key = option.split(".")
    with pytest.raises(ConfigError, match=f"options.{option}: {allowed}, is {value}"):
        ANALYSES.get(name).compute(tiny_checkpoint(), tiny_loader(4), options={key: value})


def test_a_folder_that_is_no_run_is_refused(run, tmp_path, capsys):
    for folder, said in ((tmp_path / "none", "no such folder"), (tmp_path, "configuration")):
        with pytest.raises(DataError, match=said):
            main([str(folder)])
    (run / "encoders/sar.safetensors").unlink()
    (run / "encoders/optical.safetensors").unlink()
    with pytest.raises(DataError, match="finished run"):
        main([str(run), *SMALL])


def test_a_run_without_its_checkpoint_or_data_is_refused(run):
    values = yaml.safe_load((run / "config.yaml").read_text())
    values["data"] = {"class_path": "decur.data.PairedFolder", "init_args": {"root": "/gone"}}
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(DataError, match="checkpoint"):
        main([str(run), *SMALL])
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(DataError, match="/gone"):
        main([str(run), *SMALL])


def test_writes_over_nothing_of_others(run, tmp_path, monkeypatch):
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(ConfigError, match="another"):
        main([str(run), *SMALL, "--out", str(tmp_path)])
    with pytest.raises(ConfigError, match="is a file"):
        main([str(run), *SMALL, "--out", str(tmp_path / "report.html")])
    assert (tmp_path / "report.html").read_text() == "mine"
    own = SimpleNamespace(root=tmp_path)  # the data of the run, which nobody has named
    monkeypatch.setattr("decur.explain.run.own_data", lambda run: own)
    with pytest.raises(ConfigError, match="lies within the data"):
        main([str(run), "--only", "alignment", "--out", str(tmp_path / "new")])


def test_a_missing_package_is_named_before_any_work(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setattr("decur.plotting.available", lambda: False)
    with pytest.raises(ConfigError, match=r"matplotlib: pip install 'decur\[explain\]'"):
        main([str(run), *SMALL])
    monkeypatch.setattr("decur.plotting.available", lambda: True)
    monkeypatch.setattr("decur.explain.base.find_spec", lambda name: name != "captum" or None)
    with pytest.raises(ConfigError, match=r"needs captum: pip install 'decur\[explain\]'"):
        main([str(run), *SMALL, "--only", "browser"])
