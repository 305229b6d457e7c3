"""Adapters against the interfaces of the tools, which are small stand-ins here.

The stand-ins hold what the adapters rely on: terratorch 1.2.13's registry of backbones, the sealed
forward of torchgeo-bench 0.4's BenchModel, and the constructor of pangaea's Encoder.
"""

import sys
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from decur import Modality
from decur.encoders import build_encoder, load_encoder, save_encoder
from decur.errors import ConfigError

S1 = Modality.preset("sentinel1").with_(name="s1", cut=0.0)
S2 = Modality.preset("sentinel2-l1c").with_(name="s2")
OPTICAL = [f"B{n:02}" for n in range(1, 9)] + ["B8A", "B09", "B11", "B12"]  # no B10, as L2A


class Registry(dict):
    def register(self, constructor):
        assert constructor.__name__ not in self
        self[constructor.__name__] = constructor
        return constructor

    def build(self, name, *arguments, **options):
        return self[name](*arguments, **options)


@dataclass(frozen=True)
class BandSpec:
    sensor: str
    name: str
    source_name: str = ""
    mean: float = 0.0
    std: float = 1.0
    min: float = 0.0
    max: float = 1.0
    wavelength_um: float | None = None


class BenchModel(nn.Module):
    def __init__(self, bands, normalization="bandspec_zscore", **_):
        super().__init__()
        assert bands and normalization == "identity"
        self.bands, self.num_channels = list(bands), len(bands)

    def forward(self, images):
        return self._forward_patch_features(images)


class PangaeaEncoder(nn.Module):
    def __init__(
        self,
        model_name,
        input_bands,
        input_size,
        embed_dim,
        output_layers,
        output_dim,
        multi_temporal,
        multi_temporal_output,
        pyramid_output,
        encoder_weights,
        download_url,
    ):
        super().__init__()
        given = {key: value for key, value in locals().items() if key not in ("self", "__class__")}
        vars(self).update(given)
        assert not download_url


@pytest.fixture
def adapter(monkeypatch):
    """An adapter, imported while its tool's stand-in is there."""

    def of(name):
        registry = Registry()
        for path, names in {
            "terratorch.registry": {"TERRATORCH_BACKBONE_REGISTRY": registry},
            "torchgeo_bench.models.interface": {"BenchModel": BenchModel},
            "pangaea.encoders.base": {"Encoder": PangaeaEncoder},
        }.items():
            parts = path.split(".")
            for end in range(1, len(parts) + 1):
                module = ModuleType(".".join(parts[:end]))
                module.__path__ = []
                monkeypatch.setitem(sys.modules, module.__name__, module)
            vars(module).update(names)
        monkeypatch.delitem(sys.modules, f"decur.integrations.{name}", raising=False)
        found = import_module(f"decur.integrations.{name}")
        found.registry = registry
        return found

    return of


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    for modality in (S1, S2):
        encoder = build_encoder("test_resnet", modality)
        save_encoder(encoder.eval(), folder / "encoders" / f"{modality.name}.safetensors")
    return folder


@pytest.fixture(scope="module")
def pictures():
    """Raw pictures of three places, and what the encoders make of them; B10 is absent."""
    rng = np.random.default_rng(0)
    s1 = torch.from_numpy(rng.normal(-15, 5, (3, 2, 64, 64)).astype(np.float32))
    s2 = torch.from_numpy(rng.integers(0, 4000, (3, 12, 64, 64)).astype(np.float32))
    return s1, s2


@torch.no_grad()
def expected(run, pictures):
    """Vectors and maps of both sensors, of scaled pictures with zeros for B10."""
    s1, s2 = pictures
    first, second = (
        load_encoder(run / "encoders" / f"{name}.safetensors") for name in ("s1", "s2")
    )
    whole = torch.zeros(3, 13, 64, 64)
    kept = [k for k, band in enumerate(S2.bands) if band != "B10"]
    raw = torch.zeros(3, 13, 64, 64)
    raw[:, kept] = s2
    whole[:, kept] = S2.scale(raw)[:, kept]
    given = (first, S1.scale(s1)), (second, whole)
    return [(e(x), e.forward_features(x)) for e, x in given]


@torch.no_grad()
def test_torchgeo_bench_gets_the_vectors_of_both_sensors(adapter, run, pictures):
    s1, s2 = pictures
    mixed = torch.cat([s2, s1.flip(1)], dim=1)  # radar as VH, VV
    bands = [BandSpec("s2", name.lower()) for name in OPTICAL]
    bands += [BandSpec("sar", "vh"), BandSpec("sar", "vv")]
    model = adapter("torchgeo_bench").DecurBench(bands=bands, encoders=str(run), name="decur")
    (one, _), (two, _) = expected(run, pictures)
    torch.testing.assert_close(model(mixed), torch.cat([one, two], 1), rtol=1e-4, atol=1e-4)
    colours = [BandSpec("aerial", name) for name in ("red", "green", "blue")]
    few = adapter("torchgeo_bench").DecurBench(bands=colours, encoders=str(run))
    assert few(s2[:, :3]).shape == (3, two.shape[1]) and few.sensors[0].columns == [2, 1, 0]
    with pytest.raises(ConfigError, match="no band of s1, s2 is in planet: thermal"):
        adapter("torchgeo_bench").DecurBench([BandSpec("planet", "thermal")], encoders=str(run))


@torch.no_grad()
def test_terratorch_gets_the_maps_of_one_sensor_or_both(adapter, run, pictures):
    s1, s2 = pictures
    (_, one), (_, two) = expected(run, pictures)
    registry = adapter("terratorch").registry
    bands = {"S2L2A": OPTICAL, "S1GRD": ["VV", "VH"]}
    both = registry.build("decur_encoders", encoders=str(run), bands=bands, pretrained=True)
    maps = both({"S1GRD": s1, "S2L2A": s2})
    assert [m.shape[1] for m in maps] == both.out_channels
    for found, a, b in zip(maps, one, two, strict=True):
        torch.testing.assert_close(found, torch.cat([a, b], 1), rtol=1e-4, atol=1e-4)
    file = str(run / "encoders" / "s1.safetensors")
    alone = registry.build("decur_encoders", encoders=file, bands=["VV", "VH"])
    torch.testing.assert_close(alone(s1)[-1], one[-1])


@torch.no_grad()
def test_pangaea_gets_the_maps_that_it_asks_for(adapter, run, pictures):
    s1, s2 = pictures
    (_, one), (_, two) = expected(run, pictures)
    encoder = adapter("pangaea").DecurEncoder(
        encoder_weights=str(run),
        input_bands={"optical": OPTICAL, "sar": ["VV", "VH"]},
        input_size=64,
        output_layers=[1, 3],
    )
    maps = encoder({"optical": s2[:, :, None], "sar": s1})
    assert [m.shape[1] for m in maps] == encoder.output_dim and encoder.pyramid_output
    for found, k in zip(maps, (1, 3), strict=True):
        joined = torch.cat([one[k], two[k]], 1)
        torch.testing.assert_close(found, joined, rtol=1e-4, atol=1e-4)
