"""Encoders that attend to each other, in a transfer: together where both sensors are there."""

import numpy as np
import pytest
import torch

from decur.encoders import ProjectedEncoder, Projector, build_encoder, save_encoder
from decur.encoders.attention import encode, encode_maps
from decur.features import LAST_MAPS
from decur.pretrain import LoaderSettings
from decur.transfer import FCN, LateFusion, load_model


@pytest.fixture
def crossing(scenes):
    """A ResNet for each sensor, the last stages attending to the other sensor's."""
    torch.manual_seed(0)
    made = {
        n: build_encoder("resnet18", m, attention="cross_da") for n, m in scenes.modalities.items()
    }
    for name, encoder in made.items():
        encoder.train()
        encoder(torch.rand(8, scenes.modalities[name].channels, 32, 32))
    return {name: encoder.eval() for name, encoder in made.items()}


@pytest.fixture
def pictures(scenes):
    samples = [scenes[i]["images"] for i in range(4)]
    return {
        name: modality.scale(torch.stack([sample[name] for sample in samples]))
        for name, modality in scenes.modalities.items()
    }


@torch.no_grad()
def test_vectors_of_a_late_fusion_are_those_of_both_together(crossing, pictures):
    model = LateFusion(crossing, 5).eval()
    vectors = encode(crossing, pictures)
    assert not torch.allclose(vectors["sar"], crossing["sar"](pictures["sar"]), atol=1e-3)
    expected = model.head(torch.cat(list(vectors.values()), dim=1))
    torch.testing.assert_close(model(pictures), expected)


@torch.no_grad()
def test_maps_of_an_fcn_are_those_of_both_together(crossing, pictures):
    model = FCN(crossing, 3).eval()
    maps = encode_maps(crossing, pictures)
    for name, encoder in crossing.items():
        alone = encoder.forward_features(pictures[name])
        assert [m.shape for m in maps[name]] == [m.shape for m in alone]
        assert torch.equal(maps[name][2], alone[2])  # before the first attention
        assert not torch.allclose(maps[name][-1], alone[-1], atol=1e-3)
    expected = model.classify({n: m[-LAST_MAPS:] for n, m in maps.items()}, (32, 32), batch=4)
    torch.testing.assert_close(model(pictures), expected)


@torch.no_grad()
@pytest.mark.parametrize("kind", [LateFusion, FCN])
def test_where_a_sensor_is_absent_the_other_attends_to_itself(kind, crossing, pictures):
    model = kind(crossing, 3).eval()
    has = {"optical": torch.ones(4, dtype=torch.bool), "sar": torch.tensor([1, 0, 1, 0]) > 0}
    output = model(pictures, has)
    torch.testing.assert_close(output[[0, 2]], model(pictures)[[0, 2]], atol=1e-4, rtol=1e-4)
    nowhere = model(pictures, {**has, "sar": torch.zeros(4, dtype=torch.bool)})
    torch.testing.assert_close(output[[1, 3]], nowhere[[1, 3]], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_projector_on_top_takes_the_vector_of_both(crossing, pictures):
    torch.manual_seed(1)
    projected = {
        n: ProjectedEncoder(e, Projector(e.dim, 16, layers=2), part=(4, 12)).eval()
        for n, e in crossing.items()
    }
    found = encode(projected, pictures)
    for name, h in encode(crossing, pictures).items():
        torch.testing.assert_close(found[name], projected[name].projector(h)[:, 4:12])


@torch.no_grad()
@pytest.mark.parametrize(("target", "maps"), [("cover", False), ("mask", True)])
def test_what_is_kept_of_frozen_encoders_belongs_to_both(
    target, maps, crossing, scenes, pictures, tmp_path, features_of
):
    def of(encoders):
        return features_of(scenes, target, encoders, tmp_path, LoaderSettings(workers=0), maps=maps)

    both = of(crossing)
    expected = encode_maps(crossing, pictures)
    vectors = encode(crossing, pictures)
    for name in crossing:
        key, value = (f"{name}/2", expected[name][-1]) if maps else (name, vectors[name])
        assert np.allclose(both.features[key][:4], value, atol=1e-4)
    assert both.computed and not of(crossing).computed
    alone = of({"sar": crossing["sar"]})  # is not what it is beside the other
    assert alone.computed
    key = "sar/2" if maps else "sar"
    assert not np.allclose(alone.features[key][:4], both.features[key][:4], atol=1e-3)
    assert np.allclose(
        alone.features[key][:4],
        crossing["sar"].forward_features(pictures["sar"])[-1]
        if maps
        else crossing["sar"](pictures["sar"]),
        atol=1e-4,
    )
    torch.manual_seed(5)
    for p in crossing["optical"].parameters():
        p.mul_(1.1)
    again = of(crossing)  # radar's vectors follow from the optical weights, too
    assert again.computed
    assert not np.allclose(again.features[key][:4], both.features[key][:4], atol=1e-3)


@torch.no_grad()
def test_samples_without_a_sensor_are_kept_as_those_that_attend_to_themselves(
    crossing, scenes, pictures, tmp_path, features_of
):
    scenes.present["sar"][[1, 3]] = False
    read = scenes.read
    scenes.read = lambda i: {
        **(sample := read(i)),
        "images": {n: x for n, x in sample["images"].items() if scenes.present[n][i]},
    }
    found = features_of(scenes, "mask", crossing, tmp_path, LoaderSettings(workers=0), maps=True)
    own = crossing["optical"].forward_features(pictures["optical"])[-1]
    both = encode_maps(crossing, pictures)
    assert np.allclose(found.features["optical/2"][[1, 3]], own[[1, 3]], atol=1e-4)
    assert np.allclose(found.features["optical/2"][[0, 2]], both["optical"][-1][[0, 2]], atol=1e-4)
    assert np.isnan(found.features["sar/2"][[1, 3]]).all()


@torch.no_grad()
def test_a_whole_transfer_tests_what_its_model_gives(crossing, scenes, transferred, tmp_path):
    for name, encoder in crossing.items():
        save_encoder(encoder, tmp_path / "crossed" / "encoders" / f"{name}.safetensors")
    folder = transferred(
        *("--data=SyntheticScenes", "--data.samples=60", "--data.size=32", "--target=cover"),
        *("--data.modalities=[optical,sar]", f"--encoders={tmp_path / 'crossed'}"),
    )
    model, _ = load_model(folder / "model.safetensors")
    kept = np.load(folder / "predictions.npz")
    sample = scenes[scenes.ids.index(str(kept["ids"][2]))]["images"]
    images = {n: scenes.modalities[n].scale(x)[None] for n, x in sample.items()}
    assert np.allclose(model(images)[0], kept["output"][2], atol=1e-3)
