"""What a run has kept runs no code of others, unless a person says so; whose fault an error is."""

import json
import sys

import pytest
import yaml
from safetensors.torch import save_file

from decur.cli import COMMANDS, EVERYWHERE, main
from decur.data import PackedPairs, PairedDataset
from decur.data.sample import Target
from decur.embed.parquet import read_folder_header
from decur.encoders import build_encoder, load_encoder
from decur.errors import BadSampleError, ConfigError, DataError, reading
from decur.modality import Modality
from decur.pretrain.command_pretrain import parse
from decur.registry import find_object
from decur.runs import RunFolder
from decur.transfer.tasks.base import make_task

PLAIN = {
    "data": {"class_path": "decur.data.SyntheticScenes", "init_args": {"samples": 8}},
    "objective": {"class_path": "decur.objectives.DeCUR"},
    "views": {"size": 16},
}


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Write a run's configuration; the module `planted` leaves a mark where it is imported."""
    for variable in EVERYWHERE.values():
        monkeypatch.setenv(variable, "")
    monkeypatch.setitem(sys.modules, "planted", None)  # forgotten again when the test is over
    monkeypatch.delitem(sys.modules, "planted")
    monkeypatch.syspath_prepend(tmp_path)
    mark = tmp_path / "mark"
    (tmp_path / "planted.py").write_text(f"open({str(mark)!r}, 'w')\nclass Thing: pass\n")

    def write(**changes):
        folder = RunFolder(tmp_path / "run")
        (folder.path / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder.path / "checkpoints" / "step-000000001.ckpt").write_bytes(b"")
        folder.config.write_text(yaml.safe_dump({**PLAIN, **changes}))
        return folder, mark

    return write


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"class_path": "planted.Thing"}},
        {"data": "planted.Thing"},
        {"data": {"init_args": {"x": [{"class_path": "planted.Thing"}]}}},
        {"data.class_path": "planted.Thing"},
        {"data": '{"class_path": "planted.Thing"}'},
        {"data": "class_path: planted.Thing"},
        {"data": "'class_path: \"planted.Thing\"'"},
        {"data": "\n  'planted.Thing'"},
        {"objective": "\nclass_path: planted.Thing"},
        {"encoder": {"name": "resnet18", "attention": "planted.Thing"}},
        {"encoder": {"name": "resnet18", "attention": {"layer4": "planted:Thing"}}},
        {"objective": {"class_path": "planted.Thing"}},
        {"objective": "planted:Thing"},
        {"encoder": {"name": "planted:Thing"}},
        {"encoder": {"name": {"optical": "resnet18", "radar": "planted:Thing"}}},
        {"encoder.name": "os:system"},
    ],
)  # fmt: skip
def test_a_kept_configuration_imports_nothing_of_others(kept, changes):
    folder, mark = kept(**changes)
    for use in (folder.configuration, lambda: parse(["--resume", "--run", str(folder.path)])):
        with pytest.raises(ConfigError, match=r"config\.yaml: names .* --trust"):
            use()
    assert not mark.exists()


def test_names_in_the_headers_of_data_and_weights_import_nothing(kept, tmp_path):
    _, mark = kept()
    with pytest.raises(DataError, match=r"'y'.*kind 'planted\.Thing'.*known are"):
        make_task("y", Target("planted.Thing"))
    encoder, file = build_encoder("test_resnet", 2), tmp_path / "a.safetensors"
    sensor = Modality.preset("sentinel1").to_dict()
    header = {"format": 1, "encoder": "test_resnet", "modality": sensor}
    for attention in ("planted.Thing", {"layer4": "planted:Thing"}, ["cbam"]):
        header["options"] = {"attention": attention}
        save_file(encoder.state_dict(), file, {"decur": json.dumps(header)})
        with pytest.raises(DataError, match=r"a\.safetensors: .*(attention)"):
            load_encoder(file)
    assert not mark.exists()


def test_what_it_is_based_on_and_files_of_its_groups_are_looked_at(kept, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text("encoder: {name: 'planted:Thing'}\n")
    for changes in ({"base": str(other)}, {"encoder": str(other)}):
        folder, mark = kept(**changes)
        with pytest.raises(ConfigError, match="--trust"):
            parse(["--resume", "--run", str(folder.path)])
        assert not mark.exists()


@pytest.mark.usefixtures("drawing")  # explain asks for matplotlib first
def test_trust_and_decur_import_let_it(kept, monkeypatch, capsys):
    folder, mark = kept(data={"class_path": "planted.Thing"})
    with pytest.raises(SystemExit):
        main(["explain", "--run", str(folder.path)])
    assert "--trust" in capsys.readouterr().err and not mark.exists()
    monkeypatch.setenv("DECUR_IMPORT", "planted")
    assert folder.configuration()["data"] == {"class_path": "planted.Thing"}
    monkeypatch.delenv("DECUR_IMPORT")
    with pytest.raises(SystemExit) as stopped:  # it is no data set, but it was imported
        main(["explain", "--run", str(folder.path), "--trust"])
    assert stopped.value.code == 2


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (FileNotFoundError(2, "No such file", "a.tif"), 2, "error: a.tif: No such file; see"),
        (MemoryError(), 2, "more memory is needed than there is; lower --loader.batch_size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "more memory is needed"),
        (KeyError("x"), 1, "Traceback"),
        (KeyError("x"), 1, "a fault of decur's, not yours (KeyError); please report it"),
    ],
)
def test_only_faults_of_ours_show_a_traceback(monkeypatch, capsys, error, code, said):
    def fails(arguments):
        raise error

    monkeypatch.setattr("decur.command_recipes.main", fails)
    monkeypatch.setenv("DECUR_DEBUG", "")
    assert COMMANDS["recipes"][0] == "decur.command_recipes:main"
    with pytest.raises(SystemExit) as stopped:
        main(["recipes"])
    text = capsys.readouterr().err
    assert stopped.value.code == code and said in text
    assert ("Traceback" in text) == (code == 1)
    with pytest.raises(type(error)):
        main(["recipes", "--debug"])


class Broken(PairedDataset):
    """A data set whose files raise whatever a library may think of."""

    def __init__(self, error):
        self.ids, self.modalities, self.present, self.targets = ["a"], {}, {}, {}
        self.error = error

    def read(self, index):
        raise self.error


@pytest.mark.parametrize("error", [OSError(5, "I/O error"), KeyError("band"), MemoryError()])
def test_whatever_reading_raises_makes_a_bad_sample(error):
    with pytest.raises(BadSampleError, match="a: cannot be read"):
        Broken(error)[0]
    with pytest.raises(AttributeError):
        Broken(AttributeError("a fault of code"))[0]
    with pytest.raises(IndexError):
        Broken(IndexError())[1]


@pytest.mark.parametrize("error", [RecursionError(), KeyError("modalities"), MemoryError()])
def test_whatever_opening_raises_names_the_file_and_the_remedy(error):
    said = r"^x\.json: cannot be read \(.+\); copy it anew$"
    with pytest.raises(DataError, match=said), reading("x.json", "copy it anew"):
        raise error


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", '{"format": 1}', '{"format": "x"}', "\x00"])
def test_damaged_headers_end_in_one_line(tmp_path, text):
    for name, open_it in (("embeddings.json", read_folder_header), ("decur.json", PackedPairs)):
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError) as caught:
            open_it(tmp_path)
        assert name in str(caught.value) and "\n" not in str(caught.value)


def test_what_fails_in_a_module_of_ones_own_is_told_by_its_place(tmp_path, monkeypatch, capsys):
    file = tmp_path / "failing_of_mine.py"
    file.write_text("def go(arguments):\n    raise ValueError('oops')\n")
    monkeypatch.syspath_prepend(tmp_path)
    own = find_object("failing_of_mine:go", "encoder")
    monkeypatch.setattr("decur.command_recipes.main", own)
    with pytest.raises(SystemExit) as stopped:
        main(["recipes"])
    line = capsys.readouterr().err
    assert stopped.value.code == 2 and line.count("\n") == 1
    assert line.startswith(f"error: {file}, line 2: ValueError: oops; mend that module of yours")
