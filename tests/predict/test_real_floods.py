"""A real flood (Sen1Floods11): trained on crops of a chip, the chip is mapped; read in place."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window, transform

from decur.data import LoaderSettings, PairedScenes
from decur.encoders import EncoderSettings
from decur.predict import predict
from decur.transfer import FitSettings, TransferSettings
from decur.transfer.run import transfer

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "sen1floods11"
CHIP = {"s1": "S1/Spain_7370579_S1Hand.tif", "s2": "S2/Spain_7370579_S2Hand.tif"}
CUT = 37  # pixels, a multiple of no stride

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(not REAL.is_dir(), reason=f"no real data at {REAL}"),
]


def cut(source, path, side):
    """Write a part of a raster, from row and column `CUT` on."""
    with rasterio.open(source) as file:
        window = Window(CUT, CUT, side, side)
        profile = file.profile | {"height": side, "width": side}
        profile["transform"] = transform(window, file.transform)
        path.parent.mkdir(parents=True, exist_ok=True)
        with rasterio.open(path, "w", **profile) as written:
            written.write(file.read(window=window))
    return path


def mirror(source, path):
    """Write a raster with its mirror image beside it, so that inner windows can move."""
    with rasterio.open(source) as file:
        pixels, profile = file.read(), file.profile
    pixels = np.concatenate([pixels, pixels[:, :, ::-1]], axis=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", **profile | {"width": pixels.shape[2]}) as written:
        written.write(pixels)
    return path


def test_a_flood_is_mapped_alike_wherever_the_scene_begins(tmp_path):
    root = tmp_path / "chip"
    for name, file in {**CHIP, "mask": "Labels/Spain_7370579_LabelHand.tif"}.items():
        (root / name).mkdir(parents=True)
        (root / name / "chip.tif").symlink_to(REAL / file)
    (root / "mask" / "classes.txt").write_text("land\nwater\n")
    (root / "modalities.yaml").write_text("s1: sentinel1\ns2: sentinel2-l1c\n")
    settings = TransferSettings(
        run=str(tmp_path / "run"),
        target="mask",
        freeze=False,
        encoder=EncoderSettings(name="test_resnet"),
        fit=FitSettings(epochs=6, lr=0.003),
        loader=LoaderSettings(batch_size=16, workers=0),
        device="cpu",
    )
    data = PairedScenes(root, window=64, stride=32)
    transfer(data, settings)
    options = {"loader": LoaderSettings(batch_size=16, workers=0), "device": "cpu"}
    small = {**options, "window": 64}
    maps = {}
    for side in (320, 280):
        scene = {n: cut(REAL / f, tmp_path / f"{side}" / f"{n}.tif", side) for n, f in CHIP.items()}
        if side == 280:  # further into the chip
            scene = {
                n: cut(tmp_path / "320" / f"{n}.tif", tmp_path / "280" / f"{n}.tif", side)
                for n in CHIP
            }
        out = str(tmp_path / f"{side}.tif")
        with rasterio.open(predict(tmp_path / "run", scene, out=out, **small).path) as file:
            maps[side] = file.read(1)
    whole = maps[320][CUT : CUT + 280, CUT : CUT + 280]
    assert 0.02 < (whole == 1).mean() < 0.98
    inner = slice(64, -64)  # a window from where the smaller scene ends
    assert (whole[inner, inner] != maps[280][inner, inner]).mean() < 0.001
    assert (whole != maps[280]).mean() < 0.02
    changes = {}
    mirrored = {
        n: mirror(tmp_path / "320" / f"{n}.tif", tmp_path / "mirrored" / f"{n}.tif") for n in CHIP
    }
    for name, how in {"default": {}, "one grid": {"overlap": 0.5, "shifts": 1}}.items():
        found = []
        for move in (0, 5):
            for file in mirrored.values():
                with rasterio.open(file, "r+") as raster:
                    raster.transform @= rasterio.Affine.translation(move, move)
            out = str(tmp_path / "moved.tif")
            path = predict(tmp_path / "run", mirrored, out=out, **options, **how).path
            with rasterio.open(path) as file:
                found.append(file.read(1))
        changes[name] = (found[0] != found[1]).mean()
    assert 0 < changes["default"] < 0.01 < changes["one grid"] < 0.05
    with rasterio.open(REAL / "Labels" / "Spain_7370579_LabelHand.tif") as file:
        truth = file.read(1)[CUT : CUT + 320, CUT : CUT + 320]
    known = truth >= 0
    both, either = ((maps[320] == 1) & (truth == 1)), ((maps[320] == 1) | (truth == 1))
    assert (both & known).sum() > 0.3 * (either & known).sum()
    assert np.isin(maps[320], (0, 1)).all()
