"""What version 0.1 left behind is still read: fixtures/v0.1 was written by its commit 3b1f05a."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from decur.cli import main
from decur.data import PackedPairs, PairedFolder
from decur.embed import read_vectors
from decur.encoders import load_encoder
from decur.pretrain.command_pretrain import parse
from decur.transfer import command_transfer, load_model

OLD = Path(__file__).parent / "fixtures" / "v0.1"


@pytest.fixture
def old(tmp_path, monkeypatch):
    """A copy to work in: its configurations name folders relative to it."""
    shutil.copytree(OLD, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old"


@pytest.mark.parametrize("sensor", ["dem", "rgb"])
def test_an_encoder_file_gives_the_features_it_gave(sensor):
    encoder = load_encoder(OLD / "run" / "encoders" / f"{sensor}.safetensors")
    data = PairedFolder(OLD / "pairs")
    vectors = read_vectors(OLD / "embeddings", sensor, part="features")
    with torch.no_grad():
        for row, sample in enumerate(data[i] for i in range(3)):
            given = encoder(encoder.modality.scale(sample["images"][sensor])[None])[0]
            np.testing.assert_allclose(given, vectors.values[row], rtol=1e-4, atol=1e-6)


def test_an_interrupted_run_goes_on_to_the_weights_that_it_ended_with(old):
    wanted = {file.stem: load_file(file) for file in (old / "run" / "encoders").iterdir()}
    shutil.rmtree(old / "run" / "encoders")
    (old / "run" / "checkpoints" / "step-000000006.ckpt").unlink()
    main(["pretrain", "--resume", "--run", "run"])
    for sensor, state in wanted.items():
        found = load_file(old / "run" / "encoders" / f"{sensor}.safetensors")
        torch.testing.assert_close(found, state, rtol=1e-5, atol=1e-6)


def test_a_run_goes_on_with_the_views_and_the_attention_that_it_began_with(old):
    config = Path("run/config.yaml")
    config.write_text(config.read_text().replace("attention: null", "attention: {layer4: rda}"))
    _, settings = parse(["--resume", "--run", "run"])
    assert (settings.encoder.geometry, settings.views.recipes) == ("centred", "0.1")
    with pytest.raises(SystemExit, match="2"):  # and whoever names the settings anew is told
        main(["pretrain", "--config", "run/config.yaml", "--run", "run"])


def test_a_run_is_probed_with_its_projector(old):
    main(
        ["transfer", "--encoders", "run", "--data.root", "pairs", "--target", "cover"]
        + ["--run", "new", "--folds", "3", "--loader.workers", "0", "--bootstrap", "0"]
        + ["--representation", "common"]
    )
    assert (old / "new" / "results.json").is_file()


@pytest.mark.parametrize("folder", ["transfer", "fit"])
def test_a_model_of_a_transfer_opens(folder):
    model, about = load_model(OLD / folder / "model.safetensors")
    assert set(model.encoders) == {"dem", "rgb"}
    assert about["target"] == "cover"


@pytest.mark.parametrize("more", [[], ["--fit.augment", "true"]])
def test_a_transfer_is_done_again_by_the_configuration_that_it_kept(old, more, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "decur.transfer.run.transfer", lambda _, settings, **__: seen.append(settings)
    )
    command_transfer.main(["--config", "transfer/config.yaml", "--run", "new", *more])
    assert seen[0].fit.augment is (True if more else None)  # it wrote true where nothing was said


def test_packed_data_holds_the_pictures_of_its_folder():
    packed, pairs = PackedPairs(OLD / "packed"), PairedFolder(OLD / "pairs")
    assert sorted(packed.ids) == pairs.ids
    for row, sample in enumerate(packed[i] for i in range(len(packed))):
        wanted = pairs[pairs.ids.index(packed.ids[row])]
        assert sample["images"].keys() == wanted["images"].keys()
        for sensor, picture in sample["images"].items():
            torch.testing.assert_close(picture, wanted["images"][sensor])


def test_the_cells_of_a_comparison_are_not_run_again(old, capsys):
    main(["compare", "--config", "compare.yaml", "--dry_run", "true"])
    assert "3: 3 done, 0 to do" in capsys.readouterr().out
