"""Masks of several versions of a picture; pieces of enlarged pictures; the rate's warm-up."""

import json

import pytest
import torch
from torch.nn.functional import interpolate

from decur.data import Target
from decur.errors import ConfigError
from decur.transfer import FCN, FitSettings, TransferSettings
from decur.transfer.augment import Averaging, scale_and_flip
from decur.transfer.fit import Trainee
from decur.transfer.tasks import make_task

MASKS = ["--data=SyntheticScenes", "--data.samples=40", "--data.size=32"]


@torch.no_grad()
def test_it_is_the_mean_over_scales_and_mirrors(encoders):
    torch.manual_seed(0)
    model = FCN(encoders, 3).eval()
    images = {"optical": torch.rand(2, 6, 64, 48), "sar": torch.rand(2, 2, 64, 48)}
    found = Averaging((0.5, 1.0, 1.5), flip=True).output(model, images, None, (64, 48))
    outputs = []
    for size in ((32, 24), (64, 48), (96, 72)):
        for mirror in (False, True):
            seen = {name: interpolate(x, size, mode="bilinear") for name, x in images.items()}
            if mirror:
                seen = {name: x[..., torch.arange(size[1] - 1, -1, -1)] for name, x in seen.items()}
            output = model(seen, None, (64, 48))
            outputs.append(output[..., torch.arange(47, -1, -1)] if mirror else output)
    torch.testing.assert_close(found, sum(outputs) / 6)
    alone = Averaging()
    assert not TransferSettings().averages and TransferSettings(test_flip=True).averages
    assert torch.equal(alone.output(model, images, None, (64, 48)), model(images))


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
    settings = FitSettings(schedule="poly", lr=1.0).complete("mask", freeze=False)
    task = make_task("mask", Target("mask", ("a", "b")))
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
        FitSettings(scales=(1.0,)).complete("class", freeze=False)
    line = refused(*MASKS, "--target=moisture", "--test_flip=true")
    assert "test_scales, test_flip: are for masks, and 'moisture' is a scalar" in line
