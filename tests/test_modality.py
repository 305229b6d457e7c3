import json

import numpy as np
import pytest
import torch
import yaml
from torch.utils._python_dispatch import TorchDispatchMode

from decur import Modality
from decur.errors import ConfigError, DataError
from decur.modality import PRESETS, load_modalities
from decur.scaling import percentiles

RNG = np.random.default_rng(0)


def plain(**changes):
    fields = {"name": "x", "bands": ("a", "b"), "mean": (1.0, 20.0), "std": (2.0, 5.0)}
    return Modality(**{**fields, **changes})


@pytest.mark.parametrize(
    ("name", "bands", "augmentation"),
    [
        ("sentinel1", 2, "sar"),
        ("sentinel2-l1c", 13, "optical"),
        ("sentinel2-l2a", 12, "optical"),
        ("rgb", 3, "optical"),
        ("dem", 1, "dem"),
        ("hha", 3, "hha"),
        ("depth", 1, "hha"),
    ],
)
def test_presets(name, bands, augmentation):
    preset = Modality.preset(name)
    assert (preset.channels, preset.augmentation) == (bands, augmentation)
    assert len(set(preset.bands)) == bands
    if preset.scaling == "standard":
        assert len(preset.mean) == len(preset.std) == bands
        assert min(preset.std) > 0


def test_sentinel2_presets_differ_in_the_cirrus_band():
    l1c, l2a = Modality.preset("sentinel2-l1c"), Modality.preset("sentinel2-l2a")
    assert set(l1c.bands) - set(l2a.bands) == {"B10"}
    assert l1c.mean[l1c.bands.index("B10")] == 22.104


@pytest.mark.parametrize("preset", list(PRESETS.values()), ids=list(PRESETS))
def test_round_trip_through_yaml_and_json(preset):
    assert Modality.from_dict(yaml.safe_load(yaml.safe_dump(preset.to_dict()))) == preset
    assert Modality.from_dict(json.loads(json.dumps(preset.to_dict()))) == preset


def test_standard_scaling_is_that_of_the_paper():
    x = RNG.normal((1, 20), (4, 10), (3, 8, 8, 2)).transpose(0, 3, 1, 2)
    mean, std = np.array([1.0, 20.0])[:, None, None], np.array([2.0, 5.0])[:, None, None]
    expected = np.clip((x - mean + 2 * std) / (4 * std), 0, 1)
    torch.testing.assert_close(
        plain().scale(torch.from_numpy(x)), torch.from_numpy(expected).float()
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float64])
def test_range_scaling_of_any_type(dtype):
    x = torch.tensor([[[0, 51, 255]]], dtype=dtype)
    scaled = plain(bands=("a",), mean=None, std=None, scaling="range").scale(x)
    assert scaled.dtype == torch.float32
    torch.testing.assert_close(scaled, torch.tensor([[[0, 0.2, 1]]]))


@pytest.mark.parametrize("cut", [2.0, 10.0])
def test_cut_clips_each_image_and_band_to_its_percentiles(cut):
    x = RNG.gamma(1, 5, (3, 2, 20, 20)).astype(np.float32)
    limits = [cut / 2, 100 - cut / 2]
    low, high = np.percentile(x, limits, axis=(2, 3), keepdims=True, method="nearest")
    mean, std = np.array([1.0, 20.0])[:, None, None], np.array([2.0, 5.0])[:, None, None]
    expected = np.clip((np.clip(x, low, high) - mean + 2 * std) / (4 * std), 0, 1)
    torch.testing.assert_close(
        plain(cut=cut).scale(torch.from_numpy(x)), torch.from_numpy(expected).float()
    )


def test_cut_takes_no_account_of_missing_pixels():
    x = RNG.normal(size=(1, 20, 20)).astype(np.float32)
    x[0, :7] = np.nan
    low, high = (p.item() for p in percentiles(torch.from_numpy(x), 1, 99))
    expected = np.percentile(x[~np.isnan(x)], [1, 99], method="nearest")
    np.testing.assert_allclose([low, high], expected)


@pytest.mark.parametrize("side", [1, 3, 40])
def test_percentiles_are_those_of_all_pixels_sorted(side):
    x = RNG.normal(size=(4, 2, side, side)).astype(np.float32).round(1)
    for picture, share in zip(x, (0, 0.3, 0.97, 1), strict=True):
        picture[RNG.random(picture.shape) < share] = np.nan
    percents = (0, 0.1, 1, 10, 50, 97.5, 99, 100)
    found = np.stack([p.numpy() for p in percentiles(torch.from_numpy(x), *percents)])
    for place in np.ndindex(x.shape[:2]):
        valid = np.sort(x[place][~np.isnan(x[place])])
        ranks = [round((len(valid) - 1) * p / 100) for p in percents]  # to even, as torch does
        expected = [valid[rank] if len(valid) else np.nan for rank in ranks]
        np.testing.assert_array_equal(found[(slice(None), *place)].ravel(), expected)


def test_few_pixels_are_sorted_for_the_percentiles_of_radar():
    seen = []

    class Sorted(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if "sort" in str(func) or "topk" in str(func):
                seen.append(args[1] if "topk" in str(func) else args[0].shape[-1])
            return func(*args, **(kwargs or {}))

    with Sorted():
        Modality.preset("sentinel1").scale(torch.randn(1, 2, 100, 100))
    assert seen and max(seen) <= 102  # one per cent at either end of 10,000


def test_image_scaling_spans_each_image():
    x = torch.stack([torch.linspace(100, 900, 64), torch.linspace(-5, 5, 64)]).reshape(2, 1, 8, 8)
    image = plain(bands=("a",), mean=None, std=None, scaling="image").scale(x)
    torch.testing.assert_close(image[0], image[1])
    assert (image.amin().item(), image.amax().item()) == (0, 1)
    flat = plain(bands=("a",), mean=None, std=None, scaling="image").scale(torch.ones(1, 8, 8))
    assert flat.isfinite().all()


def test_missing_pixels_become_one_half():
    x = torch.tensor([[[1.0, torch.nan, -9999.0]], [[20.0, 20.0, 20.0]]])
    scaled = plain(nodata=-9999.0).scale(x)
    assert scaled[0].tolist() == [[0.5, 0.5, 0.5]]
    nothing = plain(cut=2.0).scale(torch.full((2, 4, 4), torch.nan))
    assert (nothing == 0.5).all()


def test_several_values_can_mean_no_measurement():
    modality = plain(nodata=[0, 65535])
    again = Modality.from_dict(modality.to_dict())
    assert again == modality and not again.differences(modality)
    assert again.differences(plain(nodata=0))
    x = torch.tensor([0.0, 65535.0, 1.0, 65534.0]).reshape(1, 2, 2).repeat(modality.channels, 1, 1)
    missing = (modality.scale(x) != plain(nodata=None).scale(x))[0].flatten()
    assert missing.tolist() == [True, True, False, False]
    assert (modality.scale(x)[0].flatten()[:2] == 0.5).all()


def test_scaling_other_bands_is_refused():
    with pytest.raises(DataError, match=r"'x' has 2 bands \(a, b\).*\(3, 4, 4\)"):
        plain().scale(torch.zeros(3, 4, 4))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"bands": ()}, "at least one band"),
        ({"scaling": "log"}, "choose from standard, range, image"),
        ({"mean": None}, "decur stats"),
        ({"mean": (1.0,)}, "1 values in mean for 2 bands"),
        ({"std": (1.0, 2.0, 3.0)}, "3 values in std for 2 bands"),
        ({"std": (1.0, 0.0)}, "std 0"),
        ({"value_range": (1.0, 1.0)}, "must rise"),
        ({"cut": 100.0}, "percentage"),
    ],
)
def test_contradictions(changes, match):
    with pytest.raises(ConfigError, match=match) as caught:
        plain(**changes)
    assert "'x'" in str(caught.value)


def test_unknown_keys_and_presets():
    with pytest.raises(ConfigError, match="unknown key 'bnads'"):
        Modality.from_dict({"name": "x", "bnads": ["a"]})
    with pytest.raises(ConfigError, match="'bands' is missing"):
        Modality.from_dict({"name": "x"})
    with pytest.raises(ConfigError, match="no modality preset 'sentinel9'; choose from sentinel1"):
        Modality.preset("sentinel9")


def test_differences_name_what_matters():
    assert plain().differences(plain(name="other", size=(8, 8), augmentation="sar")) == []
    assert plain().differences(plain(value_range=(0.0, 1.0))) == []
    assert plain().differences(plain(cut=2.0)) == ["cut: 0.0 != 2.0"]
    assert plain().differences(plain(bands=("b", "a"))) == ["bands: ('a', 'b') != ('b', 'a')"]
    rgb = Modality.preset("rgb")
    assert rgb.differences(rgb.with_(mean=(1.0, 1.0, 1.0))) == []
    assert len(rgb.differences(rgb.with_(value_range=(0.0, 1.0)))) == 1


def test_load_modalities_from_a_mapping_and_a_file(tmp_path):
    given = {"s1": "sentinel1", "s2": {"preset": "rgb", "size": [8, 8]}, "dem": PRESETS["dem"]}
    loaded = load_modalities(given)
    assert list(loaded) == [m.name for m in loaded.values()] == ["s1", "s2", "dem"]
    assert loaded["s1"] == PRESETS["sentinel1"].with_(name="s1")
    assert loaded["s2"].size == (8, 8)
    path = tmp_path / "m.yaml"
    path.write_text(yaml.safe_dump({name: m.to_dict() for name, m in loaded.items()}))
    assert load_modalities(path) == load_modalities(str(path))
    assert load_modalities(None) == {}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("s1: [1", "not valid YAML"),
        ("- s1", "must hold a mapping"),
        ("s1: 5", "'s1': needs a preset's name"),
        ("s1: {colour: red}", "'s1': unknown key 'colour'"),
    ],
)
def test_wrong_files_of_modalities(tmp_path, text, match):
    path = tmp_path / "m.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=match) as caught:
        load_modalities(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="no such file of modalities"):
        load_modalities(tmp_path / "other.yaml")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("bands: 1", "bands is a list of names"),
        ("bands: VV", "bands is a list of names"),
        ("bands: [no, VV]", "bands: False is no name"),
        ("mean: 0.5", "mean is a list of numbers"),
        ("mean: [0, x]", "mean takes a number, not 'x'"),
        ("mean: [0, .nan]", "mean takes a finite number"),
        ("std: [1, .inf]", "std takes a finite number"),
        ("std: [1, yes]", "std takes a number, not True"),
        ("value_range: 255", "value_range is a list of numbers"),
        ("value_range: [255]", "value_range is two numbers"),
        ("value_range: null", "value_range is a list of numbers"),
        ("cut: [2]", "cut takes a number"),
        ("nodata: none", "nodata takes a number, not 'none'"),
        ("size: 16", "size is height and width"),
        ("size: [16, 0]", "size is height and width"),
        ("size: [16.5, 16]", "size is height and width"),
        ("augmentation: 1", "augmentation is a name"),
        ("scaling: [range]", "scaling is"),
        ("preset: [rgb]", "preset is a name"),
        ("{1: x, colour: red}", "unknown key 1"),
    ],
)
def test_wrong_types_name_modality_and_field(text, match):
    fields = {"bands": ["a", "b"], "mean": [0, 0], "std": [1, 1], **yaml.safe_load(text)}
    with pytest.raises(ConfigError, match=match) as caught:
        load_modalities({"s1": fields})
    assert "'s1'" in str(caught.value)


def test_names_of_sensors_are_texts():
    for name in (1, True):
        with pytest.raises(ConfigError, match=f"modality {name}: a name is a text"):
            load_modalities({name: "rgb"})
        with pytest.raises(ConfigError, match=f"modality {name}: a name is a text"):
            plain(name=name)


def test_numbers_that_yaml_reads_as_texts(tmp_path):
    path = tmp_path / "m.yaml"
    path.write_text(
        "s1: {bands: [VV, é], mean: [1e2, 0], std: [1e-3, 1], value_range: [0, 1e4], cut: '2', "
        "nodata: -1e4, size: ['16', 16]}\n",
        encoding="utf-8",
    )
    made = load_modalities(path)["s1"]
    assert made == Modality(
        name="s1",
        bands=("VV", "é"),
        mean=(100.0, 0),
        std=(0.001, 1),
        value_range=(0, 10000.0),
        cut=2.0,
        nodata=-10000.0,
        size=(16, 16),
    )


def test_what_was_right_is_kept_as_it_was():
    # Digests are of these values, in which 1 and 1.0 differ.
    made = plain(mean=[1, 2.5], value_range=[0, 255], cut=2, size=[8, 8])
    assert str(made.to_dict()) == (
        "{'name': 'x', 'bands': ['a', 'b'], 'mean': [1, 2.5], 'std': [2.0, 5.0], "
        "'scaling': 'standard', 'value_range': [0, 255], 'cut': 2, 'size': [8, 8], "
        "'augmentation': 'optical'}"
    )
    assert repr(plain(nodata=0).nodata) == "0.0"
    assert plain(nodata=[0, float("nan")]) == plain(nodata=(0.0,))
    assert plain(nodata=float("nan")) == plain()  # NaN always is no measurement


@pytest.mark.parametrize(
    "name",
    ["/etc/x", "../x", "a\\b", "a.b", "", " a", "a ", "-a", "--run", "a\n", "a\x00", "a\u202eb"]
    + ["C:", "a*", "x" * 101],
)
def test_names_that_would_become_paths_or_options_are_refused(name):
    with pytest.raises(ConfigError, match="rename it") as caught:
        Modality(name=name, bands=("a",), scaling="range")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["s1", "höhe", "rgb 2", "VV+VH", "depth_m", "可见光", "nDSM (m)"])
def test_names_of_sensors_may_be_of_any_language(name):
    assert Modality(name=name, bands=("a",), scaling="range").name == name


def test_numbers_of_files_become_raw_units():
    power = Modality(
        name="s1", bands=("VV",), mean=(-10.0,), std=(5.0,), nodata=7, factor=0.1, to_db=True
    )
    images = torch.tensor([[[100.0, 7.0, 0.0]]])
    assert power.convert(images).nan_to_num(99).tolist() == [[[10.0, 99.0, 99.0]]]
    shifted = Modality(name="s2", bands=("B4",), scaling="range", nodata=7, offset=-1000)
    raw = shifted.convert(torch.tensor([[[1007, 7]]], dtype=torch.int16))
    assert raw.nan_to_num(99).tolist() == [[[7.0, 99.0]]]
    assert shifted.scale(raw)[0, 0].tolist() == pytest.approx([7 / 255, 0.5])  # 7 is measured
    plain = Modality.preset("rgb")
    assert plain.convert(images) is images


def test_units_and_picked_bands_are_read_from_yaml_and_written_only_where_set():
    fields = {"bands": {"red": "B04", "green": 3}, "scaling": "range", "scale": "1e4"}
    modality = Modality.from_dict({"name": "s2", **fields})
    assert (modality.bands, modality.picks) == (("red", "green"), ("B04", 3))
    assert modality.factor == 1e4
    assert Modality.from_dict(modality.to_dict()) == modality
    assert modality.to_dict()["scale"] == 1e4
    new = {"scale", "offset", "to_db", "picks", "variable", "factor"}
    assert not new & set(Modality.preset("depth").to_dict())
    some = Modality.from_dict(
        {"name": "s2", "preset": "sentinel2-l2a", "bands": {"B4": 4, "B3": 3, "B2": 2}}
    )
    whole = Modality.preset("sentinel2-l2a")
    assert whole.mean is not None
    assert some.mean == whole.mean[3:0:-1]
    for wrong in ({"scale": 0}, {"to_db": "yes"}, {"bands": {"a": 0}}, {"offset": "x"}):
        with pytest.raises(ConfigError, match="'s2'"):
            Modality.from_dict({"name": "s2", "bands": ["a"], "scaling": "range", **wrong})
