"""Scenes are mapped on another device as they are on the CPU."""

import os

import numpy as np
import rasterio

from decur.data import LoaderSettings
from decur.encoders import save_encoder
from decur.transfer.heads import load_model
from other_device import Other, register


def maps(folder, rasters):
    device = register()  # before what predicts is imported, since it replaces a decorator
    from decur.predict import predict
    from decur.predict import scene as mapping

    os.environ["DECUR_DEBUG"] = "1"
    for name, model, options in (
        ("classes", "model", {"probabilities": True}),
        ("pca", "run", {"features": "pca"}),
    ):
        found = []
        for where in ("cpu", str(device)):
            mapping.choose_device = lambda name, where=where: where
            out = f"{folder}/{name}-{where[:3]}.tif"
            loader = LoaderSettings(8, workers=0)
            with Other():
                predict(f"{folder}/{model}", rasters, out=out, loader=loader, tile=64, **options)
            with rasterio.open(out) as file:
                found.append(file.read().astype(float))
        np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-4, err_msg=name)


def test_maps_are_those_of_a_cpu(apart, tmp_path, make_model, scene):
    model, _ = load_model(make_model() / "model.safetensors")
    for name in model.encoders:
        save_encoder(model.encoder(name), tmp_path / "run" / "encoders" / f"{name}.safetensors")
    process = apart(maps, str(tmp_path), dict(word.split("=", 1) for word in scene))
    code, out, error = process.end(120)
    assert code == 0, f"{out}\n{error[-3000:]}"
