"""A model of half precision sees pictures as they were read, and the views of any other."""

import pytest
import torch

from decur.data import LoaderSettings, SyntheticScenes
from decur.embed import embed
from decur.embed.model import EmbeddingModel
from decur.encoders import build_encoder, save_encoder
from decur.modality import Modality
from decur.objectives import DeCUR
from decur.pretrain import PairedData, Pretrainer
from decur.pretrain.settings import ProjectorSettings, ViewSettings
from decur.pretrain.trainer import make_trainer

HALF = ("bf16-true", "16-true")
QUIET = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
SIZE = 24  # a bfloat16 cannot tell all places of such a view apart


def train(precision):
    """The raw pictures of a training of one step, and the views that it makes of them."""
    data = SyntheticScenes(samples=8, size=32, modalities=["optical", "elevation"])
    torch.manual_seed(0)
    model = Pretrainer(
        data.modalities,
        DeCUR(dim=8),
        encoder="mlp",
        projector=ProjectorSettings(8),
        views=ViewSettings(SIZE),
    )
    seen, make = {}, model.make_views

    def keep(batch, epoch):
        seen["images"], seen["views"] = batch["images"], make(batch, epoch)
        return seen["views"]

    model.make_views = keep
    trainer = make_trainer(
        {"precision": precision, "max_steps": 1}, accelerator="cpu", **dict.fromkeys(QUIET, False)
    )
    trainer.fit(model, PairedData(data, LoaderSettings(8, workers=0)))
    assert model.dtype == {"bf16-true": torch.bfloat16, "16-true": torch.float16}.get(
        precision, torch.float32
    )
    return seen


@pytest.mark.parametrize("precision", HALF)
def test_a_training_of_half_precision_has_the_pictures_and_views_of_any_other(precision):
    found, expected = train(precision), train("32-true")
    for name, pictures in expected["images"].items():
        assert torch.equal(found["images"][name], pictures), name
        for view in (0, 1):
            assert torch.equal(found["views"][name][view], expected["views"][name][view]), name


def test_embeddings_of_half_precision_are_of_the_pictures_as_they_were_read(
    tmp_path, make_pairs, monkeypatch
):
    from decur.data import PairedFolder

    sensor = Modality("s1", ("a",), scaling="range", value_range=(-3, 3))
    data = PairedFolder(make_pairs({"s1": 1}, samples=4, size=32), modalities={"s1": sensor})
    file = tmp_path / "s1.safetensors"
    encoder = build_encoder("test_resnet", sensor)
    encoder.modality = sensor
    save_encoder(encoder, file)
    seen, predict = [], EmbeddingModel.predict_step

    def keep(self, batch, batch_idx):
        seen.append(batch["images"]["s1"])
        return predict(self, batch, batch_idx)

    monkeypatch.setattr(EmbeddingModel, "predict_step", keep)
    embed(
        data,
        str(file),
        out=str(tmp_path / "out"),
        loader=LoaderSettings(4, workers=0),
        trainer={"accelerator": "cpu", "precision": "bf16-true"},
    )
    (pictures,) = seen
    assert pictures.dtype == torch.float32
    assert torch.equal(pictures, torch.stack([data[i]["images"]["s1"] for i in range(4)]))
