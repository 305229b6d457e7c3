"""Encoders over a data set: every row is what the encoder gives, and is computed once."""

import multiprocessing
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from decur.data import LoaderSettings, PairedFolder, SyntheticScenes
from decur.encoders import Projector, build_encoder
from decur.encoders.backbone import TimmEncoder
from decur.encoders.base import refuse_size
from decur.errors import DataError, RunLostError
from decur.features import (
    FeatureModel,
    SampleLoader,
    cached_features,
    compute_features,
    each_batch,
    iterate,
)
from decur.locks import holding

HERE = LoaderSettings(batch_size=5, workers=0)


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    root = tmp_path / "data"
    for name, bands in (("s1", 2), ("s2", 3)):
        (root / name).mkdir(parents=True)
        for i in range(12):
            if (name, i) not in {("s1", 3), ("s2", 7)}:
                np.save(root / name / f"{i:04}.npy", rng.random((bands, 32, 32), np.float32))
    (root / "mask").mkdir()
    for i in range(11):
        mask = np.full((32, 32), i % 2, np.uint8)
        mask[: i + 1] = 255
        Image.fromarray(mask).save(root / "mask" / f"{i:04}.png")
    kinds = "".join(f"{i:04},{'ab'[i % 2]}\n" for i in range(10))
    (root / "labels.csv").write_text(f"id,kind:class\n{kinds}")
    return root


@pytest.fixture
def model(root):
    torch.manual_seed(0)
    data = PairedFolder(root)
    encoders = {n: build_encoder("test_resnet", m).eval() for n, m in data.modalities.items()}
    projectors = {n: Projector(e.dim, 16, layers=2).eval() for n, e in encoders.items()}
    return FeatureModel(encoders, projectors=projectors)


@torch.no_grad()
def by_hand(model, data, name, index):
    x = data.modalities[name].scale(data[index]["images"][name])[None]
    features = model.encoders[name](x)
    return features[0], model.projectors[name](features)[0]


@pytest.mark.parametrize("on_disk", [False, True])
def test_each_row_is_what_encoder_and_projector_give(root, model, on_disk):
    data = PairedFolder(root)
    model.encoders["s1"].train()
    state, modes = torch.get_rng_state(), [m.training for m in model.modules()]
    found = compute_features(model, SampleLoader(data, settings=HERE), on_disk=on_disk)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == modes
    model.eval()
    assert isinstance(found.features["s1"], np.memmap) == on_disk
    for name, absent in (("s1", 3), ("s2", 7)):
        there = [i for i in range(12) if i != absent]
        assert found.present(name).tolist() == [i in there for i in range(12)]
        for i in there:
            h, z = by_hand(model, data, name, i)
            np.testing.assert_allclose(found.features[name][i], h, atol=1e-5)
            np.testing.assert_allclose(found.embeddings[name][i], z, atol=1e-5)
        assert np.isnan(found.features[name][absent]).all()
        assert np.isnan(found.embeddings[name][absent]).all()
        mean, std = found.statistics(name)
        np.testing.assert_allclose(mean, found.embeddings[name][there].mean(0), atol=1e-6)
        np.testing.assert_allclose(std, found.embeddings[name][there].std(0), atol=1e-6)
    assert found.present("s1", "s2").sum() == 10
    assert found.labels["kind"].tolist() == [0, 1] * 5 + [-1] * 2
    assert found.labels["mask"][4].tolist() == [32 * 27, 0] and not found.labels["mask"][11].any()


def test_samples_stream_evenly_spaced_and_in_order(root, model):
    data = PairedFolder(root).only(["s2"], targets=["kind"])
    few = FeatureModel({"s2": model.encoders["s2"]}, size=24)
    loader = SampleLoader(data, samples=7, settings=HERE)
    batches = list(iterate(few, loader))
    assert [len(rows.ids) for rows in batches] == [5, 2]
    assert (
        [i for rows in batches for i in rows.ids]
        == loader.ids
        == [data.ids[i] for i in loader.indices]
    )
    assert loader.indices[0] == 0 and loader.indices[-1] == 11 and len(loader.indices) == 7
    assert batches[0].embeddings == {} and set(batches[0].target) == {"kind"}
    assert loader.some(3).indices == [0, loader.indices[3], 11]
    none = compute_features(model, SampleLoader(data, among=[]))
    assert none.features["s2"].shape == (0, few.encoder("s2").dim)


def test_each_module_is_in_the_mode_that_it_was_in(root, model):
    encoder = model.encoder("s1").train()
    encoder.backbone.layer1.eval()  # statistics that stay as they are
    before = [module.training for module in model.modules()]
    assert len(set(before)) == 2
    loader = SampleLoader(PairedFolder(root).only(["s1", "s2"]), settings=HERE)

    def make(batch):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
        return len(batch["ids"])

    batches = each_batch(model, loader, make=make)
    assert next(batches) == 5 and torch.is_grad_enabled()
    batches.close()  # before the end
    assert [module.training for module in model.modules()] == before
    assert sum(each_batch(model, loader, make=make)) == 12
    encoder.predict(torch.rand(2, encoder.modality.channels, 32, 32))
    refuse_size(encoder, encoder.modality, size=(32, 32))
    assert [module.training for module in model.modules()] == before


def test_a_sample_that_cannot_be_read_is_listed_and_has_no_row(root, model):
    (root / "s2" / "0005.npy").write_bytes(b"")
    loader = SampleLoader(PairedFolder(root), settings=HERE)
    found = compute_features(model, loader)
    assert [path for path, _ in found.bad] == [str(root / "s2" / "0005.npy")] and loader.bad
    assert np.isnan(found.features["s1"][5]).all() and found.labels["kind"][5] == -1


def test_maps_and_masks_are_kept(root, model, tmp_path):
    data, few = PairedFolder(root), FeatureModel(model.encoders)
    loader = SampleLoader(data.only(targets=["mask"]), settings=HERE)
    found = cached_features(few, loader, cache=tmp_path / "cache", maps=True)
    assert set(found.features) == {f"{n}/{i}" for n in ("s1", "s2") for i in range(3)}
    with torch.no_grad():
        x = data.modalities["s1"].scale(data[4]["images"]["s1"])[None]
        for key, expected in zip(
            few.map_names("s1"), few.encoder("s1").forward_features(x)[-3:], strict=True
        ):
            np.testing.assert_allclose(found.features[key][4], expected[0], rtol=1e-4, atol=1e-5)
    assert np.isnan(found.features["s1/2"][3]).all()
    np.testing.assert_array_equal(found.masks["mask"][4], data[4]["target"]["mask"])
    assert not cached_features(few, loader, cache=tmp_path / "cache", maps=True).computed
    assert cached_features(few, loader, cache=tmp_path / "cache").masks == {}


@pytest.fixture
def pictures_seen(monkeypatch):
    calls = []
    real = TimmEncoder.forward
    monkeypatch.setattr(
        TimmEncoder, "forward", lambda self, x: (calls.append(len(x)), real(self, x))[1]
    )

    def counted(model, loader, cache):
        calls.clear()
        cached_features(model, loader, cache=cache)
        return sum(calls)

    return counted


def test_features_are_computed_once_for_weights_pictures_scaling_and_size(
    root, model, tmp_path, pictures_seen
):
    encoders, cache = model.encoders, tmp_path / "cache"

    def seen(names=("s1", "s2"), target="kind", size=None, **options):
        data = PairedFolder(root, **options)
        made = FeatureModel({n: encoders[n] for n in names}, data.modalities, size=size)
        return pictures_seen(
            made, SampleLoader(data.only(list(names), [target]), settings=HERE), cache
        )

    assert seen() == 22
    assert seen() == 0 and seen(names=("s1",)) == 0 and seen(target="mask") == 0
    assert seen(size=48) == 22
    file = root / "s2" / "0004.npy"
    os.utime(file, (1, 1))  # as if written again, in place
    assert seen() == 11  # of one sensor
    with torch.no_grad():
        next(encoders["s1"].parameters()).add_(1e-3)
    assert seen() == 11 and seen() == 0
    changed = encoders["s1"].modality.with_(value_range=(0.0, 2.0))
    narrow = PairedFolder(root).only(["s1"], ["kind"])
    again = FeatureModel({"s1": encoders["s1"]}, {"s1": changed})
    assert pictures_seen(again, SampleLoader(narrow, settings=HERE), cache) == 11
    assert not list(cache.glob(".*.tmp"))


def test_what_one_label_makes_unreadable_is_computed_for_another(root, model, tmp_path):
    (root / "mask" / "0002.png").write_bytes(b"")
    loader = {
        target: SampleLoader(
            PairedFolder(root).only(targets=[target]), settings=LoaderSettings(5, 0, 0.2)
        )
        for target in ("mask", "kind")
    }

    def found(target):
        return cached_features(
            FeatureModel(model.encoders), loader[target], cache=tmp_path / "cache"
        )

    assert np.isnan(found("mask").features["s1"][2]).all() and found("mask").bad
    assert np.isfinite(found("kind").features["s1"][2]).all() and not found("kind").bad
    assert not found("mask").computed and np.isnan(found("mask").features["s1"][2]).all()
    strict = SampleLoader(PairedFolder(root).only(targets=["mask"]), settings=HERE)
    with pytest.raises(DataError, match=r"more than loader\.max_bad.*0002\.png"):
        cached_features(FeatureModel(model.encoders), strict, cache=tmp_path / "cache")


def test_two_calls_at_one_time_compute_once(tmp_path):
    data = SyntheticScenes(40, 32, modalities=["sar"])
    model = FeatureModel({"sar": build_encoder("test_resnet", data.modalities["sar"]).eval()})
    with ThreadPoolExecutor() as pool:
        both = [
            pool.submit(cached_features, model, SampleLoader(data, settings=HERE), cache=tmp_path)
            for _ in "12"
        ]
    assert sorted(one.result().computed for one in both) == [False, True]


def compute_apart(folder, start, told):
    """What a cell of a comparison does in a process of its own."""
    torch.set_num_threads(1)  # OpenMP's threads do not live on in a fork, and would be waited for
    data = SyntheticScenes(40, 32, modalities=["sar"])
    torch.manual_seed(0)
    model = FeatureModel({"sar": build_encoder("test_resnet", data.modalities["sar"]).eval()})
    start.wait()  # all at one time, whatever their imports took
    found = cached_features(model, SampleLoader(data, settings=HERE), cache=folder)
    told.put((found.computed, float(found.features["sar"].sum())))


def test_two_processes_at_one_time_compute_once(tmp_path):
    context = multiprocessing.get_context("fork")
    start, told = context.Barrier(2), context.Queue()
    both = [context.Process(target=compute_apart, args=(tmp_path, start, told)) for _ in "12"]
    for process in both:
        process.start()
    (one, first), (two, second) = sorted(told.get(timeout=60) for _ in both)
    for process in both:
        process.join(60)
    assert (one, two) == (False, True) and first == second


def test_what_cannot_be_told_is_computed_each_time(root, model, tmp_path, pictures_seen, caplog):
    data = PairedFolder(root)
    data.lock = threading.Lock()
    arguments = FeatureModel(model.encoders), SampleLoader(data, settings=HERE), tmp_path / "cache"
    assert pictures_seen(*arguments) == pictures_seen(*arguments) == 22
    assert "not cached: a _thread.lock cannot be told" in caplog.text
    assert not list(tmp_path.glob("cache/*"))


def test_an_interruption_leaves_nothing_half_done(root, model, tmp_path, monkeypatch):
    def fail(self, x):
        raise KeyboardInterrupt

    monkeypatch.setattr(TimmEncoder, "forward", fail)
    with pytest.raises(KeyboardInterrupt):
        cached_features(
            model, SampleLoader(PairedFolder(root), settings=HERE), cache=tmp_path / "cache"
        )
    assert {file.suffix for file in (tmp_path / "cache").iterdir()} == {".lock"}


def test_a_lost_folder_is_not_made_anew_for_the_cache(root, model, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(RunLostError), holding(run):
        shutil.rmtree(run)
        cached_features(model, SampleLoader(PairedFolder(root), settings=HERE), cache=run / "cache")
    assert not run.exists()


def test_a_full_disk_is_told_in_a_line(root, model, tmp_path, monkeypatch):
    def full(self, batch):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("decur.features.rows.Columns.add", full)
    with pytest.raises(
        DataError, match="cannot be written \\(No space left on device\\); make room"
    ):
        cached_features(
            model, SampleLoader(PairedFolder(root), settings=HERE), cache=tmp_path / "cache"
        )


def test_a_damaged_file_of_the_cache_is_computed_anew(root, model, tmp_path, caplog):
    cache = tmp_path / "cache"
    loader = SampleLoader(PairedFolder(root), settings=HERE)
    first = cached_features(model, loader, cache=cache)
    rows = np.array(first.features["s1"])
    del first
    for pattern in ("s1-*.npy", "labels-*.npz"):
        (path,) = (p for p in cache.glob(pattern) if "-embedding" not in p.name)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        again = cached_features(model, loader, cache=cache)
        assert again.computed and f"{path} is damaged" in caplog.text
        np.testing.assert_array_equal(again.features["s1"], rows)
        assert not cached_features(model, loader, cache=cache).computed


def test_rows_that_are_not_finite_are_refused_by_sample_and_sensor(root, model):
    with torch.no_grad():
        next(model.encoders["s2"].parameters()).mul_(1e38)
    with pytest.raises(DataError, match=r"features of 's2': not finite .* the first '0000'"):
        compute_features(model, SampleLoader(PairedFolder(root), settings=HERE))
