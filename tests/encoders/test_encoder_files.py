"""Encoder files: weights and modality go together, and nothing else is let in."""

import json
import math
import os
import pickle
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from decur import Modality
from decur.encoders import build_encoder, load_encoder, save_encoder
from decur.encoders.header import build_to_fit
from decur.encoders.stored import is_finite
from decur.errors import ConfigError, DataError

S1, S2 = Modality.preset("sentinel1"), Modality.preset("sentinel2-l1c")


@pytest.fixture
def file(tmp_path):
    return save_encoder(build_encoder("test_resnet", S1), tmp_path / "sub" / "s1.safetensors")


def test_an_encoder_comes_back_with_its_modality(tmp_path):
    encoder = build_encoder("vit_tiny_patch16_224", S1, img_size=64).eval()
    loaded = load_encoder(save_encoder(encoder, tmp_path / "e.safetensors"), S1)
    assert loaded.modality == S1 and not loaded.training
    x = torch.rand(2, 2, 64, 64)
    assert torch.equal(loaded(x), encoder(x))


def test_loading_takes_no_random_numbers_and_copies_the_file(file):
    before, written = torch.get_rng_state(), load_file(file)
    loaded = load_encoder(file)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(weight.requires_grad for weight in loaded.parameters())
    written = {key: value.clone() for key, value in written.items()}
    with open(file, "r+b") as opened:  # in place, not as decur writes
        opened.write(bytes(file.stat().st_size))
    assert all(torch.equal(value, written[key]) for key, value in loaded.state_dict().items())


@pytest.mark.parametrize("keep", ["buffer", "attribute", "list"])
def test_what_a_network_does_not_save_is_there_after_loading(keep):
    def build():
        network = torch.nn.Linear(2, 2)
        table = torch.arange(3.0)
        if keep == "buffer":
            network.register_buffer("table", table, persistent=False)
        else:
            network.table = table if keep == "attribute" else [table]
        return network

    state = {"weight": torch.ones(2, 2, dtype=torch.float16), "bias": torch.zeros(2)}
    found = build_to_fit(Path("file"), build, state, what="a network")
    table = found.table[0] if keep == "list" else found.table
    assert table.tolist() == [0, 1, 2]
    assert torch.equal(found.weight, torch.ones(2, 2))


def test_the_file_loads_into_plain_timm(file):
    plain = timm.create_model("test_resnet", in_chans=2, num_classes=0)
    plain.load_state_dict(load_file(file), strict=True)


def test_an_encoder_for_other_bands_is_refused(file):
    with pytest.raises(DataError, match=r"s1\.safetensors.*sentinel2-l1c.*bands"):
        load_encoder(file, S2)
    with pytest.raises(DataError, match="mean"):
        load_encoder(file, S1.with_(mean=(0.0, 0.0)))


def test_files_that_are_no_encoders_are_refused(file, tmp_path):
    with pytest.raises(DataError, match="no such encoder file"):
        load_encoder(tmp_path / "nothing")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match="not a whole safetensors file"):
        load_encoder(cut)
    bare = tmp_path / "bare.safetensors"
    save_file({"x": torch.zeros(1)}, bare)
    with pytest.raises(DataError, match="no modality"):
        load_encoder(bare)
    pickled = tmp_path / "pickle.safetensors"
    pickled.write_bytes(pickle.dumps({"x": 1}))
    with pytest.raises(DataError, match="not a whole safetensors file"):
        load_encoder(pickled)


def test_weights_of_another_architecture_are_refused(file, tmp_path):
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    metadata["decur"] = metadata["decur"].replace("test_resnet", "resnet18")
    wrong = tmp_path / "wrong.safetensors"
    save_file(load_file(file), wrong, metadata)
    with pytest.raises(DataError, match="do not fit a 'resnet18'"):
        load_encoder(wrong)


def with_header(file, change):
    """A copy of an encoder file whose header is changed."""
    with safe_open(file, "pt") as opened:
        header = json.loads(opened.metadata()["decur"])
    text = change(header)
    made = file.with_name("changed.safetensors")
    save_file(
        load_file(file), made, {"decur": text if isinstance(text, str) else json.dumps(header)}
    )
    return made


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header.update(format="1"),
        lambda header: header.update(format=True),
        lambda header: header.update(options=[1]),
        lambda header: header.update(encoder=None),
        lambda header: header.update(modality=[1]),
        lambda header: header["modality"].update(bands=7),
        lambda header: header["modality"].update(name="../../x"),
        lambda header: header.update(encoder="projected", options={"encoder": 5, "options": {}}),
        lambda header: header.update(encoder="adapted", options={"rows": "x"}),
        lambda header: header.update(encoder="torchgeo:croma_x", options={"sensor": []}),
        lambda header: header.update(encoder="vit_tiny_patch16_224", options={"depth": 2000}),
        lambda header: header.update(encoder="resnet18", options={"layers": [300, 300]}),
        lambda header: header.pop("encoder"),
        lambda header: "[" * 100_000,
        lambda header: "[1]",
        lambda header: "\x00",
    ],
)
def test_a_damaged_header_ends_in_one_line(file, change):
    with pytest.raises(DataError, match=r"changed\.safetensors: ") as caught:
        load_encoder(with_header(file, change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"pretrained": True},
        {"features_only": True},
        {"num_classes": 10},
        {"scriptable": True},
        {"img_size": 10**9},
        {"drop_rate": float("nan")},
        {"norm_layer": "x" * 1000},
    ],
)
def test_a_header_asks_for_nothing_but_layers(file, options):
    with pytest.raises(DataError, match="its header gives"):
        load_encoder(with_header(file, lambda header: header["options"].update(options)))
    around = {"encoder": "test_resnet", "options": options, "width": 8, "layers": 1, "part": [0, 8]}
    inside = with_header(file, lambda header: header.update(encoder="projected", options=around))
    with pytest.raises(DataError, match="its header gives"):
        load_encoder(inside)


def test_a_header_asks_for_no_more_memory_than_its_weights_take(file, monkeypatch):
    """65,536 squared weights would be 17 GB: they are refused by their shapes alone."""
    monkeypatch.setattr(torch.nn.Conv2d, "reset_parameters", lambda self: sizes.add(self.weight))
    sizes = set()
    for name, options in (("mlp", {"width": 65_536, "layers": 3}), ("vit_7b_patch16_dinov3", {})):
        if name != "mlp" and not timm.is_model(name):
            continue
        big = with_header(file, lambda h, n=name, o=options: h.update(encoder=n, options=o))
        with pytest.raises(DataError, match="do not fit"):
            load_encoder(big)
    assert all(weight.is_meta for weight in sizes)


def test_an_encoder_that_started_from_a_file_does_not_need_it_again(tmp_path):
    start = tmp_path / "start.pth"
    torch.save(timm.create_model("test_resnet", num_classes=0).state_dict(), start)
    encoder = build_encoder("test_resnet", Modality.preset("rgb"), checkpoint_path=str(start))
    file = save_encoder(encoder, tmp_path / "trained.safetensors")
    start.unlink()
    # and files of version 0.1, which say what they started from
    old = with_header(file, lambda h: h["options"].update(checkpoint_path=str(start)))
    for each in (file, old):
        loaded = load_encoder(each).state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in load_file(file).items())


def test_an_encoder_without_a_modality_is_not_saved(tmp_path):
    with pytest.raises(ConfigError, match="modality"):
        save_encoder(build_encoder("test_resnet", 2), tmp_path / "e.safetensors")
    assert not list(tmp_path.iterdir())


TENSOR = "conv1.0.weight"


def flipped(file, tensor, value):
    """Flip a bit of a value of a tensor, or of a text."""
    data = bytearray(file.read_bytes())
    place = data.index(value)
    data[place] ^= 1
    copy = file.with_name(f"{tensor}.safetensors")
    copy.write_bytes(data)
    return copy


def test_flipped_bits_are_found_in_weights_and_in_the_header(file):
    weight = load_file(file)[TENSOR].numpy().tobytes()
    with pytest.raises(DataError, match="is damaged"):
        load_encoder(flipped(file, "weight", weight))
    with pytest.raises(DataError, match="is damaged"):
        load_encoder(flipped(file, "header", b"2.548"))  # of the sensor's mean


def test_weights_that_are_not_finite_are_named(file, tmp_path):
    from safetensors import safe_open

    state = load_file(file)
    state[TENSOR][0] = torch.inf
    with safe_open(file, "pt") as opened:
        header = json.loads(opened.metadata()["decur"])
    del header["sha256"]  # as version 0.1 wrote it
    metadata = {"decur": json.dumps(header)}
    bad = tmp_path / "bad.safetensors"
    save_file(state, bad, metadata)
    with pytest.raises(DataError, match=rf"bad.*{TENSOR} is not finite"):
        load_encoder(bad)
    encoder = load_encoder(file)
    encoder.load_state_dict(state)
    with pytest.raises(DataError, match=TENSOR):
        save_encoder(encoder, tmp_path / "new.safetensors")
    assert not (tmp_path / "new.safetensors").exists()


@pytest.mark.parametrize("values", [[6e4, 6e4], [6e4, torch.nan], [torch.inf, -torch.inf], []])
def test_values_are_finite_whatever_their_sum_is(values):
    half = torch.tensor(values, dtype=torch.float16)
    assert is_finite(half) == all(map(math.isfinite, values))
    assert is_finite(torch.tensor([2**62, 2**62]))


def test_the_same_encoder_gives_the_same_bytes(file, tmp_path):
    again = save_encoder(load_encoder(file), tmp_path / "again.safetensors")
    assert again.read_bytes() == file.read_bytes()


def test_others_may_read_the_file_as_the_umask_says(file):
    mask = os.umask(0o022)
    os.umask(mask)
    assert file.stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.complex64])
def test_weights_of_an_unknown_type_are_refused(file, kind):
    with safe_open(file, framework="pt") as opened:
        header = opened.metadata()
    state = load_file(file)
    name = next(key for key, value in state.items() if value.is_floating_point())
    save_file({**state, name: state[name].to(kind)}, file, metadata=header)
    with pytest.raises(DataError, match=f"{name} is {kind}"):
        load_encoder(file)


def test_weights_that_are_too_large_for_the_network_are_refused(file):
    with safe_open(file, framework="pt") as opened:
        header = opened.metadata()
    state = load_file(file)
    name = next(key for key, value in state.items() if value.is_floating_point())
    save_file({**state, name: state[name].double() + 1e300}, file, metadata=header)
    with pytest.raises(DataError, match=f"{name} is not finite"):
        load_encoder(file)
