"""A scene of two sensors and models that were never trained, in fractions of a second."""

import pytest
import torch
from make_raster import write_placed
from predict_rasters import SENSORS, noise

from decur.encoders import build_encoder
from decur.transfer.heads import build_model, save_model


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def scene(tmp_path):
    """Words of `--scene` for two rasters of 100 x 130 pixels that coincide."""
    words = []
    for seed, (name, modality) in enumerate(SENSORS.items()):
        pixels = noise(modality.channels, 100, 130, seed)
        words.append(f"{name}={write_placed(tmp_path / 'in' / f'{name}.tif', pixels)}")
    return words


@pytest.fixture
def make_model(tmp_path):
    """Write a model of `decur transfer` with fresh weights; return its folder."""

    def make(head="fcn", kind="mask", classes=("dry", "wet", "wood"), name="test_resnet", **about):
        torch.manual_seed(0)
        encoders = {}
        for sensor, modality in SENSORS.items():
            encoder = build_encoder(name, modality)
            if name == "test_resnet":  # statistics of a batch that are not at their start
                encoder.train()(torch.rand(8, modality.channels, 32, 32))
            encoders[sensor] = encoder.eval()
        model = build_model(head, encoders, max(1, len(classes)))
        for parameter in model.parameters():
            if parameter.ndim > 1 and parameter.shape[0] == model.outputs:
                parameter.data *= 5  # decided classes
        header = {"target": "cover", "kind": kind, "classes": list(classes), "size": None, **about}
        folder = tmp_path / "model"
        folder.mkdir(exist_ok=True)
        save_model(model, folder / "model.safetensors", header)
        return folder

    return make
