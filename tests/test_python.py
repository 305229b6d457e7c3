"""decur from Python: what `import decur` offers, and what its objects say of themselves."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import decur
from decur.data import SyntheticScenes
from decur.embed.embedding import Embedded
from decur.encoders import build_encoder, register_encoder
from decur.errors import ConfigError, DataError
from decur.explain.run import Explained
from decur.pretrain import ViewSettings
from decur.runs import RunFolder
from decur.signals import STOPPING


def test_import_decur_offers_everything_and_imports_nothing():
    code = (
        "import sys, decur\n"
        "print(sorted({'torch', 'numpy', 'lightning'} & set(sys.modules)))\n"
        "print(decur.data.PairedFolder.__name__, decur.DeCUR.__name__, decur.errors.DataError)\n"
        "print([callable(getattr(decur, n)) for n in "
        "('pretrain', 'transfer', 'embed', 'explain', 'compare')])\n"
        "print(hasattr(decur, 'nonsense'))"
    )
    out = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    nothing, names, called, nonsense = out.stdout.splitlines()
    assert nothing == "[]" and names.startswith("PairedFolder DeCUR")
    assert called == str([True] * 5) and nonsense == "False"


def test_a_package_is_called_like_its_function(tmp_path):
    data = SyntheticScenes(samples=8, size=32, modalities=["optical", "sar"])
    found = decur.pretrain(
        data,
        decur.DeCUR(dim=16),
        run=str(tmp_path / "run"),
        encoder=decur.pretrain.EncoderSettings(name="test_resnet"),
        projector=decur.pretrain.ProjectorSettings(width=16),
        views=decur.pretrain.ViewSettings(size=32),
        loader=decur.pretrain.LoaderSettings(batch_size=8, workers=0),
        trainer={"max_epochs": 1, "accelerator": "cpu"},
        monitor=decur.pretrain.MonitorSettings(every_epochs=0),
    )
    assert (tmp_path / "run" / "encoders" / "sar.safetensors").is_file()
    assert "optical, sar" in repr(found) and "\n" not in repr(found)


def test_pretraining_in_a_thread_gives_the_same_and_takes_no_signals(tmp_path):
    def work(name):
        data = SyntheticScenes(samples=16, size=32, modalities=["optical", "sar"])
        decur.pretrain(
            data,
            decur.DeCUR(dim=16),
            run=str(tmp_path / name),
            encoder="test_resnet",
            projector=decur.pretrain.ProjectorSettings(width=16),
            views=decur.pretrain.ViewSettings(size=24),
            loader=decur.pretrain.LoaderSettings(batch_size=8, workers=0),
            trainer={"max_epochs": 1, "accelerator": "cpu"},
            monitor=decur.pretrain.MonitorSettings(every_epochs=0),
        )
        taken.append({number: signal.getsignal(number) for number in STOPPING})

    taken = [{number: signal.getsignal(number) for number in STOPPING}]
    work("here")
    thread = threading.Thread(target=work, args=("there",))
    thread.start()
    thread.join()
    assert len(taken) == 3 and taken[0] == taken[1] == taken[2]
    files = [
        (tmp_path / name / "encoders/sar.safetensors").read_bytes() for name in ("here", "there")
    ]
    assert files[0] == files[1]


def test_objects_say_what_they_are_in_one_line():
    data = SyntheticScenes(samples=3, size=32, modalities=["optical", "sar"])
    encoder = build_encoder("test_resnet", data.modalities["sar"])
    assert repr(data).startswith("<SyntheticScenes: 3 samples, optical (") and "32 x 32" in repr(
        data
    )
    assert repr(data.modalities["sar"]).startswith("<sar: 2 bands (")
    assert "test_resnet for <sar" in repr(encoder) and f"vectors of {encoder.dim}" in repr(encoder)
    folder = RunFolder(Path("runs/a"))
    assert repr(Explained(folder, {"shared": {}})) == f"<shared; {Path('runs/a/report.html')}>"
    assert repr(Embedded(Path("e"), {"s1": 1200}, [])) == "<rows 1,200 of s1; e>"
    assert repr(decur.DeCUR(8, common=0.75)) == "DeCUR(8 dimensions: common 6, unique 2)"
    assert not any("\n" in repr(x) for x in (data, data.modalities["sar"], encoder))


def test_a_notebook_shows_a_data_sets_sensors_and_pictures():
    html = SyntheticScenes(samples=6, size=32, modalities=["optical", "sar"])._repr_html_()
    assert html.count("<img") == 4 * 2 and "optical" in html and "32 x 32" in html


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (lambda: decur.pretrain("runs", decur.DeCUR(8)), r"str; give decur.PairedFolder\('runs'\)"),
        (lambda: decur.transfer(None, target="x"), "transfer: data is no data set but NoneType"),
        (lambda: decur.pretrain(SyntheticScenes(4, 32), "DeCUR"), "'DeCUR' is no objective"),
        (lambda: decur.embed(SyntheticScenes(2, 32), []), "encoders: is empty; give the folder"),
        (lambda: decur.embed(SyntheticScenes(2, 32), [3]), "encoders: is list; give the folder"),
        (
            lambda: decur.explain("run", "folder"),
            r"explain: data .* decur.PairedFolder\('folder'\)",
        ),
        (lambda: decur.DeCUR("8"), "dim is the width of the embeddings, .* is '8'"),
        (lambda: ViewSettings(size="a"), "views.size: must be from 1 .* is 'a'"),
        (lambda: build_encoder("test_resnet", "rgb"), "for a number of bands, not 'rgb'"),
        (lambda: register_encoder("resnet18", print), "timm has one of this name"),
        (lambda: register_encoder("of_mine", 3), "3 builds nothing"),
        (lambda: decur.PairedFolder("x", modalities=["s1"]), "a YAML file, or a mapping of names"),
    ],
)
def test_what_is_of_another_kind_is_refused_by_its_name(work, said):
    with pytest.raises(ConfigError, match=said):
        work()


def test_groups_of_settings_may_be_dictionaries(tmp_path):
    with pytest.raises(ConfigError, match=r"batch_size: 6 is more than the 4 samples"):
        decur.pretrain(
            SyntheticScenes(4, 32), decur.DeCUR(8), run=tmp_path / "r", loader={"batch_size": 6}
        )
    with pytest.raises(ConfigError, match=r"epoch: unknown option of fit of transfer; .* epochs"):
        decur.transfer(SyntheticScenes(4, 32), fit={"epoch": 3})


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, list])
def test_predict_takes_raw_pictures(kind):
    data = SyntheticScenes(samples=5, size=32, modalities=["sar"])
    sar = data.modalities["sar"]
    encoder = build_encoder("test_resnet", sar).train()
    raw = torch.stack([data[i]["images"]["sar"] for i in range(5)])  # (5, 2, 32, 32)
    given = [x.numpy() for x in raw] if kind is list else kind(raw.numpy())
    found = encoder.predict(given, batch_size=2)
    assert encoder.training and found.dtype == np.float32
    with torch.no_grad():
        right = encoder.eval()(sar.scale(raw))
    np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(encoder.predict(given[0]), right[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.astype(">f4"),
        lambda x: x[:, ::-1][:, ::-1],  # of negative strides
        lambda x: np.broadcast_to(x, x.shape),  # cannot be written to
        lambda x: np.asfortranarray(x),
    ],
)
@pytest.mark.filterwarnings("error")
def test_predict_takes_arrays_in_any_layout(change):
    sar = SyntheticScenes(samples=1, size=32, modalities=["sar"])
    encoder = build_encoder("test_resnet", sar.modalities["sar"])
    raw = sar[0]["images"]["sar"].numpy()
    np.testing.assert_array_equal(encoder.predict(change(raw)), encoder.predict(raw))


def test_masked_pixels_were_not_measured():
    sar = SyntheticScenes(samples=1, size=32, modalities=["sar"])
    encoder = build_encoder("test_resnet", sar.modalities["sar"])
    raw, masked = sar[0]["images"]["sar"].numpy(), np.arange(32) < 9
    there = np.where(masked, np.nan, raw)
    found = encoder.predict(np.ma.array(raw, mask=np.broadcast_to(masked, raw.shape)))
    np.testing.assert_array_equal(found, encoder.predict(there))
    assert not np.array_equal(found, encoder.predict(raw))


def test_a_picture_of_one_band_may_come_without_it():
    dem = SyntheticScenes(samples=1, size=32, modalities=["elevation"])
    encoder = build_encoder("test_resnet", dem.modalities["elevation"])
    raw = dem[-1]["images"]["elevation"]  # (1, 32, 32), counted from the end as in a list
    np.testing.assert_array_equal(encoder.predict(raw[0].numpy()), encoder.predict(raw))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (np.zeros((32, 32)), r"\(1, 32, 32\); 'sar' needs \(2, height, width\)"),
        ("a.tif", "raw numbers, .* str is none"),
        (None, "NoneType is none"),
        (["a.tif"], "str is none"),
        (np.zeros((2, 0, 32)), r"\(2, 0, 32\); 'sar' needs"),
        (np.zeros((2, 32, 32), complex), "complex; give their amplitude"),
    ],
)
def test_predict_refuses_what_is_no_picture(given, said):
    sar = SyntheticScenes(samples=1, size=32, modalities=["sar"]).modalities["sar"]
    with pytest.raises(DataError, match=said):
        build_encoder("test_resnet", sar).predict(given)


def test_predict_refuses_other_bands_and_an_unknown_sensor():
    sar = SyntheticScenes(samples=1, size=32, modalities=["sar"]).modalities["sar"]
    encoder = build_encoder("test_resnet", sar)
    with pytest.raises(DataError, match=r"\(32, 32, 2\); 'sar' needs \(2, height, width\)"):
        encoder.predict(np.zeros((32, 32, 2)))
    for wrong in (0, -1, 2.0):
        with pytest.raises(ConfigError, match="batch_size: is a whole number from 1"):
            encoder.predict([np.zeros((2, 32, 32))] * 3, batch_size=wrong)
    encoder.modality = None
    with pytest.raises(DataError, match="its modality is unknown"):
        encoder.predict(np.zeros((2, 32, 32)))
