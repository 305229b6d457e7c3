"""Packed data through the commands: the same as reading the files."""

import pytest
from make_folder import make_folder

from decur.cli import main
from decur.data import PairedFolder
from decur.data.packed import pack
from decur.encoders import load_encoder

pytest.importorskip("litdata")

FAST = ["--encoder.name", "test_resnet", "--projector.width", "16", "--loader.batch_size", "8"]
FAST += ["--views.size", "32", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"]
FAST += ["--monitor.every_epochs", "0", "--objective.common", "0.5"]


@pytest.fixture
def roots(tmp_path):
    ids = [f"{i:02}" for i in range(20)]
    root = make_folder(tmp_path / "src", {"a": ids, "b": ids[1:]}, size=32, bands={"a": 3})
    rows = [f"{id_},{'xy'[int(id_) % 2]}" for id_ in ids]
    (root / "labels.csv").write_text("\n".join(["id,kind", *rows]))
    pack(PairedFolder(root), tmp_path / "packed", chunk_mb=0.03)
    return root, tmp_path / "packed"


def test_pretraining_on_packed_data_is_pretraining_on_the_files(roots, tmp_path):
    weights = []
    for kind, root, workers in zip(("PairedFolder", "PackedPairs"), roots, "01", strict=True):
        run = tmp_path / kind
        data = ["--data", kind, "--data.root", str(root), "--loader.workers", workers]
        main(["pretrain", *data, "--run", str(run), *FAST])
        weights.append(load_encoder(run / "encoders" / "a.safetensors").state_dict())
    assert all(weights[0][key].equal(weights[1][key]) for key in weights[0])


def test_transfer_on_packed_data(roots, tmp_path, capsys):
    data = ["--data", "PackedPairs", "--data.root", str(roots[1]), "--loader.workers", "0"]
    encoders = ["--encoder.name", "test_resnet", "--run", str(tmp_path / "run"), "--device", "cpu"]
    main(["transfer", *data, *encoders, "--target", "kind"])
    assert "accuracy" in capsys.readouterr().out.lower()
