"""Masks of several versions of a picture; pieces of enlarged pictures; the rate's warm-up."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from decur import Modality
from decur.data import Target
from decur.errors import ConfigError
from decur.transfer import FCN, FitSettings, TransferSettings
from decur.transfer.augment import Averaging, mean_colour, scale_and_flip
from decur.transfer.tasks import make_task
from decur.transfer.trainee import Trainee

MASKS = ["--data=SyntheticScenes", "--data.samples=40", "--data.size=32"]


def resized(x, size):
    """Bilinear, places of pixels at their middle, without smoothing: (C, H, W), one axis a time."""
    for axis, (old, new) in enumerate(zip(x.shape[1:], size, strict=True), start=1):
        at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low = np.minimum(at.astype(int), old - 1)
        high, share = np.minimum(low + 1, old - 1), at - low
        shape = (1, -1, 1) if axis == 1 else (1, 1, -1)
        share = share.reshape(shape)
        x = np.take(x, low, axis) * (1 - share) + np.take(x, high, axis) * share
    return x


def cmx_scores(logits_of, picture, scales, window, colour):
    """What CMX's evaluator adds up for one picture (C, H, W), written from its description."""
    size, total = picture.shape[1:], 0
    for scale in scales:
        scaled = resized(picture, [round(side * scale) for side in size])

        def scores(seen):
            return np.exp(logits_of(seen) + logits_of(seen[:, :, ::-1])[:, :, ::-1])

        height, width = scaled.shape[1:]
        if window is None:
            found = scores(scaled)
        elif height <= window[0] or width <= window[1]:  # padded with the mean colour, then cut
            full = [max(a, b) for a, b in zip((height, width), window, strict=True)]
            top, left = (full[0] - height) // 2, (full[1] - width) // 2
            padded = np.broadcast_to(np.reshape(colour, (-1, 1, 1)), (3, *full)).copy()
            padded[:, top : top + height, left : left + width] = scaled
            found = scores(padded)[:, top : top + height, left : left + width]
        else:
            step = [math.ceil(side * 2 / 3) for side in window]
            found = np.zeros((2, height, width))
            for row in range(math.ceil((height - window[0]) / step[0]) + 1):
                for column in range(math.ceil((width - window[1]) / step[1]) + 1):
                    y = min(row * step[0] + window[0], height) - window[0]
                    x = min(column * step[1] + window[1], width) - window[1]
                    at = (slice(None), slice(y, y + window[0]), slice(x, x + window[1]))
                    found[at] += scores(scaled[at])
        total = total + resized(found, size)
    return total


class Places(nn.Module):
    """Logits that depend on a pixel, its neighbours, and where it lies in what the model sees."""

    def forward(self, images, present, size):
        x = images["rgb"]
        assert size == x.shape[-2:]
        across = torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype) ** 2
        down = torch.linspace(0, 2, x.shape[-2], dtype=x.dtype)[:, None]
        blurred = torch.nn.functional.avg_pool2d(x, 3, 1, 1)
        return torch.stack([(blurred[:, 0] + across) * 5, blurred[:, 1] * 3 + x[:, 2] * down], 1)


@pytest.mark.parametrize("window", [None, (16, 24), (20, 20), (64, 64)])
def test_it_is_what_cmx_adds_up(window):
    rng = np.random.default_rng(0)
    pictures, colour = rng.random((2, 3, 32, 40)), (0.485, 0.456, 0.406)

    def logits_of(seen):
        x = torch.from_numpy(np.ascontiguousarray(seen))[None]
        return Places()({"rgb": x}, None, x.shape[-2:])[0].numpy()

    averaging = Averaging((0.75, 1.0, 1.25), True, window, {"rgb": colour})
    found = averaging.output(Places(), {"rgb": torch.from_numpy(pictures)}, None, (32, 40))
    for picture, output in zip(pictures, found, strict=True):
        expected = cmx_scores(logits_of, picture, averaging.scales, window, colour)
        np.testing.assert_allclose(output, np.log(expected), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_single_version_is_what_the_model_gives(encoders):
    model = FCN(encoders, 3).eval()
    images = {"optical": torch.rand(2, 6, 64, 48), "sar": torch.rand(2, 2, 64, 48)}
    assert not TransferSettings().averages and TransferSettings(test_flip=True).averages
    assert torch.equal(Averaging().output(model, images, None, (64, 48)), model(images))
    both = Averaging((1.0, 2.0), flip=True).output(model, images, None, (64, 48))
    assert both.shape == (2, 3, 64, 48) and torch.isfinite(both).all()
    images["sar"] = images["sar"][..., :32]
    with pytest.raises(ConfigError, match="test_window: needs pictures of one size"):
        Averaging(window=(16, 16)).output(model, images, None, (64, 48))


@pytest.mark.parametrize(
    ("modality", "colour"),
    [
        (Modality.preset("rgb"), (0.485, 0.456, 0.406)),
        (Modality("bgr", ("B2", "B3", "B4"), scaling="range"), (0.406, 0.456, 0.485)),
        (Modality.preset("hha"), (0.485, 0.456, 0.406)),
        (Modality.preset("sentinel1"), (0.5, 0.5)),
        (Modality.preset("dem"), (0.5,)),
    ],
)
def test_around_a_shrunken_picture_is_the_mean_colour(modality, colour):
    """CMX pads what is normalised by ImageNet's mean with 0."""
    assert mean_colour(modality) == colour
    images = {"x": torch.rand(4, modality.channels, 32, 32)}
    cut, mask = scale_and_flip(
        images, torch.zeros(4, 32, 32).long(), (0.5,), fill={"x": mean_colour(modality)}
    )
    around = cut["x"].movedim(1, -1)[mask == 255]  # (pixels, C)
    assert len(around) == 4 * 3 * 16 * 16
    torch.testing.assert_close(around, torch.tensor(colour).expand_as(around))


def test_pieces_of_enlarged_pictures():
    torch.manual_seed(0)
    column = torch.arange(64.0).expand(64, 64) + 1  # 0 is what lies outside
    small = column.view(32, 2, 32, 2).mean((1, 3))
    images = {"a": column.expand(24, 1, 64, 64), "b": small.expand(24, 1, 32, 32)}
    mask = column.expand(24, 64, 64).long()
    cut, found = scale_and_flip(images, mask, (0.5, 2.0), (48, 32))
    assert cut["a"].shape == (24, 1, 48, 32) and cut["b"].shape == (24, 1, 24, 16)
    assert found.shape == (24, 48, 32) and found.dtype == torch.int64
    unknown = found == 255
    shrunken = unknown.any((1, 2))
    assert 0 < shrunken.sum() < 24
    for picture, labels, outside in zip(cut["a"][:, 0], found, unknown, strict=True):
        known = ~outside
        if outside.any():  # half of 64 px fills the width of 32, and the middle of 48 rows
            assert known[8:40].all() and outside[:8].all() and outside[40:].all()
            assert (picture[outside] == 0).all()
        scale = 0.5 if outside.any() else 2
        slope = picture[24].diff()[1:-1].abs()
        torch.testing.assert_close(slope, torch.full_like(slope, 1 / scale), atol=1e-3, rtol=0)
        assert (picture[known] - labels[known]).abs().max() <= 0.51
    firsts = cut["a"][~shrunken, 0, 0]
    assert (firsts[:, 0] < firsts[:, -1]).any() and (firsts[:, 0] > firsts[:, -1]).any()
    assert len(firsts[:, 0].unique()) > 3  # pieces of many places
    halved = cut["a"][:, 0].view(24, 24, 2, 16, 2).mean((2, 4))
    inner = (slice(None), slice(6, 18), slice(1, 15))
    assert (halved[inner] - cut["b"][:, 0][inner]).abs().max() <= 0.6
    same, _ = scale_and_flip(images, mask, (1.0,))
    assert same["a"].shape == (24, 1, 64, 64)
    for picture in same["a"][:, 0]:
        rows = picture if picture[0, 0] < picture[0, -1] else picture.flip(1)
        torch.testing.assert_close(rows, column, atol=1e-3, rtol=0)


def test_the_rate_rises_and_then_falls(encoders):
    task = make_task("mask", Target("mask", ("a", "b")))
    settings = FitSettings(schedule="poly", lr=1.0).complete(task, freeze=False)
    trainee = Trainee(FCN(encoders, 2), task, settings, 100, {}, warmup=10)
    made = trainee.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(100):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rates[10:] == pytest.approx([(1 - step / 100) ** 0.9 for step in range(10, 100)])


def test_the_command_averages(transferred, run_folder, monkeypatch):
    seen = []
    whole = Averaging.output

    def watched(self, *arguments):
        seen.append((self.scales, self.flip))
        return whole(self, *arguments)

    monkeypatch.setattr(Averaging, "output", watched)
    common = [*MASKS, "--data.modalities=[optical,sar]", f"--encoders={run_folder}"]
    common += ["--target=mask", "--fit.epochs=1", "--fit.augment=false"]
    plain = transferred(*common, name="plain")
    assert not seen
    folder = transferred(*common, "--test_scales=[0.5,1]", "--test_flip=true", name="averaged")
    assert set(seen) == {((0.5, 1.0), True)}
    results = [json.loads((f / "results.json").read_text()) for f in (plain, folder)]
    assert [r["test_scales"] for r in results] == [[1], [0.5, 1]]
    assert results[0]["model"] == results[1]["model"] == "FCN"


def test_what_cannot_be_is_said(refused):
    with pytest.raises(ConfigError, match="test_scales: factors greater than 0, one at least"):
        TransferSettings(test_scales=())
    with pytest.raises(ConfigError, match=r"fit\.scales: factors"):
        FitSettings(scales=(0.0,))
    with pytest.raises(ConfigError, match=r"fit\.piece: height and width"):
        FitSettings(piece=(480, 480))
    with pytest.raises(ConfigError, match=r"fit\.warmup_epochs"):
        FitSettings(warmup_epochs=-1)
    with pytest.raises(ConfigError, match=r"not for a class; take fit\.crop"):
        FitSettings(scales=(1.0,)).complete(make_task("x", Target("class")), freeze=False)
    line = refused(*MASKS, "--target=moisture", "--test_flip=true")
    assert "test_scales, test_flip: are for masks, and 'moisture' is a scalar" in line
