"""Heads against hand computations; frozen is frozen."""

import pytest
import torch
from torch.nn.functional import interpolate

from decur.errors import DataError
from decur.transfer import FCN, LateFusion, load_model
from decur.transfer.augment import crop_and_flip, scale_and_flip
from decur.transfer.heads import save_model


@pytest.fixture
def pictures():
    torch.manual_seed(1)
    return {"optical": torch.rand(4, 6, 64, 64), "sar": torch.rand(4, 2, 32, 32)}


@torch.no_grad()
def test_late_fusion_is_one_linear_layer_on_the_concatenated_vectors(encoders, pictures):
    model = LateFusion(encoders, 5).eval()
    vectors = torch.cat([encoders[name](x) for name, x in pictures.items()], dim=1)
    expected = vectors @ model.head.weight.T + model.head.bias
    assert torch.allclose(model(pictures), expected, atol=1e-6)


@torch.no_grad()
def test_the_fcn_is_the_papers(encoders, pictures):
    """Concatenate the sensors' maps, upsample them, classify each of the three, add (B.2)."""
    pictures["sar"] = interpolate(pictures["sar"], 64)
    model = FCN(encoders, 3).eval()
    model.bias.copy_(torch.randn(3))
    maps = [encoders[name].forward_features(x)[-3:] for name, x in pictures.items()]
    expected = model.bias[:, None, None]
    for level in range(3):
        both = torch.cat([m[level] for m in maps], dim=1)  # (B, sum of channels, h, w)
        both = interpolate(both, (64, 64), mode="bilinear")
        weight = torch.cat([model.heads[name][level].weight for name in pictures], dim=1)
        expected = expected + torch.einsum("kc,bchw->bkhw", weight[:, :, 0, 0], both)
    assert torch.allclose(model(pictures), expected, atol=1e-4)
    assert model(pictures, size=(40, 24)).shape == (4, 3, 40, 24)


@torch.no_grad()
@pytest.mark.parametrize("kind", [LateFusion, FCN])
def test_an_absent_sensor_is_zeros_whatever_its_pixels_hold(kind, encoders, pictures):
    model = kind(encoders, 3).eval()
    present = {"optical": torch.ones(4, dtype=torch.bool), "sar": torch.tensor([1, 0, 1, 0]) > 0}
    output = model(pictures, present)
    pictures["sar"][[1, 3]] = torch.nan
    again = model(pictures, present)
    assert torch.equal(output, again) and not again.isnan().any()
    assert torch.allclose(output[[0, 2]], model(pictures)[[0, 2]], atol=1e-5)
    nowhere = {**present, "sar": torch.zeros(4, dtype=torch.bool)}
    assert torch.allclose(model(pictures, nowhere)[[1, 3]], output[[1, 3]], atol=1e-5)


@pytest.mark.parametrize("kind", [LateFusion, FCN])
def test_frozen_encoders_keep_every_bit(kind, encoders, pictures):
    model = kind(encoders, 3)
    model.freeze()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9, weight_decay=0.1)
    for _ in range(2):
        model.train()
        model(pictures).square().mean().backward()
        optimizer.step()
    after = model.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed and not any(key.startswith("encoders.") for key in changed)


def test_encoders_that_are_not_frozen_learn(encoders, pictures):
    model = LateFusion(encoders, 3).train()
    model(pictures).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@torch.no_grad()
@pytest.mark.parametrize("kind", [LateFusion, FCN])
def test_a_saved_model_comes_back(kind, encoders, pictures, tmp_path):
    model = kind(encoders, 3).eval()
    path = save_model(model, tmp_path / "model.safetensors", {"target": "x", "classes": ["a"]})
    again, about = load_model(path)
    assert about["classes"] == ["a"] and about["target"] == "x"
    assert torch.equal(again(pictures), model(pictures))
    assert again.encoder("sar").modality == encoders["sar"].modality
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="not a whole safetensors"):
        load_model(path)


@pytest.mark.parametrize(
    "augment",
    [
        lambda images, mask: crop_and_flip(images, mask, (0.2, 1.0)),
        lambda images, mask: scale_and_flip(images, mask, (0.5, 1.75), (40, 56)),
    ],
)
def test_half_precision_moves_no_pixel_of_what_is_augmented(augment):
    images = {"a": torch.rand(4, 3, 64, 96), "b": torch.rand(4, 1, 32, 48)}
    mask, found = torch.randint(5, (4, 64, 96)), []
    for half in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            pictures, labels = augment(images, mask)
        found.append([*pictures.values(), labels])
    for exact, halved in zip(*found, strict=True):
        assert torch.equal(exact, halved)


def test_pictures_of_all_sizes_and_the_mask_are_cropped_alike():
    torch.manual_seed(0)
    column = torch.arange(64.0).expand(64, 64)
    small = column.view(32, 2, 32, 2).mean((1, 3))
    images = {"a": column.expand(16, 1, 64, 64), "b": small.expand(16, 1, 32, 32)}
    mask = column.expand(16, 64, 64).long()
    cropped, mask = crop_and_flip(images, mask, (0.2, 1.0))
    assert cropped["a"].shape == (16, 1, 64, 64) and cropped["b"].shape == (16, 1, 32, 32)
    assert (cropped["a"][:, 0] - mask).abs().max() <= 0.51
    halved = cropped["a"].view(16, 1, 32, 2, 32, 2).mean((3, 5))
    assert (halved - cropped["b"]).abs().max() <= 0.6
    slope = cropped["a"][:, 0, 0].diff(dim=1).sum(1)
    assert (slope > 0).any() and (slope < 0).any()  # some are mirrored
    same, _ = crop_and_flip(images, None, (1.0, 1.0))
    for picture in same["a"]:
        assert torch.allclose(picture[0], column, atol=1e-3) or torch.allclose(
            picture[0].flip(1), column, atol=1e-3
        )
