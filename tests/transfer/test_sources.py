"""What a transfer can start from besides files: timm's weights, fewer bands, projected vectors."""

import json
import shutil

import numpy as np
import pytest
import timm
import torch
import yaml
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file
from timm.models import _builder

from decur.data import SyntheticScenes
from decur.encoders import build_encoder, save_encoder
from decur.errors import ConfigError, DataError
from decur.modality import Modality
from decur.pretrain import LoaderSettings
from decur.pretrain.command_pretrain import main as pretrain
from decur.pretrain.restore import restore
from decur.transfer import load_model
from decur.transfer.sources import baseline, gather_encoders

SCENES = [
    *("--data=SyntheticScenes", "--data.samples=60", "--data.size=32"),
    *("--data.modalities=[optical,sar]", "--target=cover"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two finished runs of `decur pretrain`: `{objective: Pretrained}`."""
    folder = tmp_path_factory.mktemp("runs")
    tiny = [
        *("--config=demo", "--encoder.name=test_resnet", "--data.samples=32", "--data.size=32"),
        *("--projector.width=32", "--views.size=24", "--loader.batch_size=16"),
        *("--loader.workers=0", "--monitor.every_epochs=0", "--trainer.max_epochs=1"),
        "--trainer.accelerator=cpu",
    ]
    return {
        "DeCUR": pretrain([*tiny, f"--run={folder / 'decur'}"]),
        "CLIP": pretrain([*tiny, f"--run={folder / 'clip'}", "--objective=CLIP"]),
    }


@pytest.fixture
def copied(runs, tmp_path):
    """A copy of a run's folder, to be changed."""

    def copy(objective="DeCUR"):
        return shutil.copytree(runs[objective].folder.path, tmp_path / f"copy-{objective}")

    return copy


@pytest.fixture
def pictures(scenes):
    """Scaled pictures of four scenes."""
    samples = [scenes[i]["images"] for i in range(4)]
    return {
        name: modality.scale(torch.stack([sample[name] for sample in samples]))
        for name, modality in scenes.modalities.items()
    }


# -- runs, opened again ----------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("objective", ["DeCUR", "CLIP"])
def test_a_run_is_opened_again_without_its_data(objective, runs, copied, pictures):
    folder = copied(objective)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["data"] = {"class_path": "gone.Away", "init_args": {"root": "/no/where"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    found, model = restore(folder), runs[objective].model.cpu().eval()
    for name, z in model.embed(pictures)[1].items():
        again = found.projectors[name](found.encoders[name](pictures[name]))
        assert torch.allclose(again, z, atol=1e-5) and not found.projectors[name].training
        assert found.encoders[name].modality == model.modalities[name]
    assert type(found.objective).__name__ == objective and not found.objective.training
    assert found.objective.parts == model.objective.parts and found.objective.dim == 32
    expected = dict(model.objective.named_parameters())  # CLIP learns its temperature
    assert all(torch.equal(p, expected[k]) for k, p in found.objective.named_parameters())
    assert len(expected) == (objective == "CLIP")


def rewrite(folder, **changes):
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, **changes}))


def shake(folder):
    encoder = build_encoder("test_resnet", restore(folder).encoders["sar"].modality)
    save_encoder(encoder, folder / "encoders" / "sar.safetensors")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / "config.yaml").unlink(), r"config\.yaml: no such file"),
        (lambda f: (f / "config.yaml").write_text("a: [1"), "not the configuration of a run"),
        (lambda f: (f / "config.yaml").write_text("a: 1"), r"not the configuration .*'projector'"),
        (
            lambda f: rewrite(f, projector={"width": 16, "layers": 3}),
            r"does not fit .*config\.yaml",
        ),
        (
            lambda f: rewrite(f, objective={"class_path": "gone.Away"}),
            r"config\.yaml: names 'gone\.Away'.*--trust",
        ),
        (lambda f: shutil.rmtree(f / "checkpoints"), "holds no checkpoint"),
        (lambda f: shutil.rmtree(f / "encoders"), r"holds no encoders/\*\.safetensors"),
        (shake, r"sar\.safetensors: holds other weights than step-.*--resume --run"),
    ],
)
def test_what_is_no_finished_run_is_refused(damage, said, copied):
    folder = copied()
    damage(folder)
    with pytest.raises((ConfigError, DataError), match=said) as caught:
        restore(folder)
    assert "\n" not in str(caught.value)


# -- the same networks with fresh weights ---------------------------------------------------------


def test_a_run_is_measured_against_its_own_networks_with_fresh_weights(runs, scenes, pictures):
    run = str(runs["DeCUR"].folder.path)
    trained = gather_encoders(run, scenes.modalities)
    fresh = gather_encoders(f"random:{run}", scenes.modalities, seed=3)
    torch.manual_seed(3)
    for name, encoder in fresh.items():
        assert encoder.name == trained[name].name and encoder.options == trained[name].options
        assert encoder.modality == trained[name].modality and not encoder.training
        expected = build_encoder("test_resnet", scenes.modalities[name]).state_dict()
        mine, other = encoder.state_dict(), trained[name].state_dict()
        assert all(torch.equal(mine[key], expected[key]) for key in expected)
        assert not all(torch.equal(mine[key], other[key]) for key in expected)


def test_fresh_weights_of_a_run_are_refused_where_they_make_no_sense(runs, refused):
    run = runs["DeCUR"].folder.path
    line = refused(*SCENES, "--encoders", f"random:{run}", "timm:resnet18")
    assert f"'random:{run}' asks for fresh weights" in line and line.endswith("with encoder.name")
    for source in ("timm:resnet18", "random", "random:runs/mine", ""):
        assert "with encoder.name" in refused(*SCENES, f"--encoders=random:{source}")
    line = refused(*SCENES, f"--encoders=random:{run}", "--representation=common")
    assert f"random:{run} has fresh weights; take features" in line
    assert "nowhere: no such file or folder" in refused(*SCENES, "--encoders=random:nowhere")


@pytest.mark.parametrize(
    ("sources", "given"),
    [
        (["runs/mine"], "random:runs/mine"),
        (["a.safetensors", "runs/b"], "random:a.safetensors random:runs/b"),
        (["runs/my own"], "'random:runs/my own'"),
        (["timm:resnet18.a1_in1k"], "random --encoder.name resnet18.a1_in1k"),
        (["random"], ""),
        (["random:runs/mine"], ""),
        (["torchgeo:ResNet50_Weights.SENTINEL2_ALL_MOCO"], ""),
    ],
)
def test_the_baseline_of_encoders_is_their_own_networks(sources, given):
    assert baseline(sources) == given


# -- representations -------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(
    ("representation", "dims"),
    [("embedding", slice(0, 32)), ("common", slice(0, 24)), ("unique", slice(24, 32))],
)
def test_parts_of_the_embedding_are_probed(
    representation, dims, runs, scenes, transferred, pictures
):
    trained = runs["DeCUR"]
    folder = transferred(
        *(*SCENES, f"--encoders={trained.folder.path}", f"--representation={representation}")
    )
    results = json.loads((folder / "results.json").read_text())
    assert results["representation"] == representation and representation in results["model"]
    embeddings = trained.model.cpu().eval().embed(pictures)[1]
    for name, z in embeddings.items():
        (file,) = (folder / "cache").glob(f"{name}-*.npy")
        assert np.allclose(np.load(file)[:4], z[:, dims], atol=1e-4)

    # the saved model gives what was tested, from pictures
    model, _ = load_model(folder / "model.safetensors")
    assert model.head.in_features == 2 * (dims.stop - dims.start)
    kept = np.load(folder / "predictions.npz")
    sample = scenes[scenes.ids.index(str(kept["ids"][2]))]["images"]
    images = {n: scenes.modalities[n].scale(x)[None] for n, x in sample.items()}
    assert np.allclose(model(images)[0], kept["output"][2], atol=1e-3)


def test_vectors_of_one_representation_are_not_taken_for_another(
    runs, scenes, tmp_path, features_of
):
    def computed(objective, representation):
        run = str(runs[objective].folder.path)
        found = gather_encoders(run, scenes.modalities, representation=representation)
        return features_of(scenes, "cover", found, tmp_path, LoaderSettings(workers=0)).computed

    for representation in ("features", "embedding", "common", "unique"):
        assert computed("DeCUR", representation)
    assert not computed("DeCUR", "common")
    assert computed("CLIP", "common")
    assert not computed("CLIP", "embedding")  # all of its dimensions are common


@torch.no_grad()
def test_each_sensor_takes_the_projector_of_its_own_run(runs, copied, scenes, pictures):
    decur, clip = copied("DeCUR"), copied("CLIP")
    (decur / "encoders" / "sar.safetensors").unlink()
    (clip / "encoders" / "optical.safetensors").unlink()
    found = gather_encoders([str(clip), str(decur)], scenes.modalities, representation="common")
    for name, objective, dims in (("optical", "DeCUR", 24), ("sar", "CLIP", 32)):
        z = runs[objective].model.cpu().eval().embed(pictures)[1][name]
        assert torch.allclose(found[name](pictures[name]), z[:, :dims], atol=1e-5)
        assert found[name].dim == dims


def test_representations_are_refused_where_they_make_no_sense(runs, refused):
    run = runs["DeCUR"].folder.path
    unique = [*SCENES, "--representation=unique"]
    line = refused(*unique, f"--encoders={runs['CLIP'].folder.path}")
    assert "CLIP of" in line and "has no unique dimensions" in line
    assert "choose from features, embedding, common" in line
    assert "which random has not" in refused(*unique)
    assert "which timm:resnet18 has not" in refused(*unique, "--encoders=timm:resnet18")
    line = refused(*unique, f"--encoders={run / 'encoders' / 'sar.safetensors'}")
    assert "needs the projector of a run" in line and "give the run's folder" in line
    line = refused(*unique, f"--encoders={run}", "--freeze=false")
    assert "representation: unique is for probes, and fine-tuning" in line
    line = refused(*unique, f"--encoders={run}", "--target=mask")
    assert "a mask needs feature maps; take features" in line
    assert "representation" in refused(*SCENES, "--representation=logits")


# -- missing bands ---------------------------------------------------------------------------------


@pytest.fixture
def thirteenth(scenes, tmp_path):
    """An encoder of one band more than the optical scenes have, in its file."""
    own = scenes.modalities["optical"]
    more = ("extra", *own.bands)
    changes = {
        field: (0.5, *values)
        for field in ("mean", "std")
        if (values := getattr(own, field)) is not None
    }
    torch.manual_seed(0)
    encoder = build_encoder("test_resnet", own.with_(bands=more, **changes))
    encoder(torch.rand(8, len(more), 32, 32))
    return encoder.eval(), save_encoder(encoder, tmp_path / "thirteen.safetensors")


@torch.no_grad()
def test_a_missing_band_counts_as_empty_if_asked(
    thirteenth, scenes, pictures, transferred, refused
):
    encoder, file = thirteenth
    common = [*SCENES, "--encoders", str(file)]
    line = refused(*common)
    assert "thirteen.safetensors" in line and "differs in bands" in line
    assert "with --missing_bands empty, extra counts as empty" in line
    folder = transferred(*common, "--missing_bands=empty")
    (features,) = (folder / "cache").glob("optical-*.npy")
    x = pictures["optical"]
    inserted = torch.cat([torch.zeros_like(x[:, :1]), x], dim=1)  # after scaling, as the authors do
    assert np.allclose(np.load(features)[:4], encoder(inserted), atol=1e-4)
    model, _ = load_model(folder / "model.safetensors")
    assert model.encoder("optical").modality == scenes.modalities["optical"]


def test_bands_that_the_encoder_does_not_know_stay_refused(thirteenth, refused):
    encoder, file = thirteenth
    renamed = encoder.modality.with_(bands=("other", *encoder.modality.bands[1:]))
    data = {"optical": renamed.with_(bands=("new", *renamed.bands[1:]))}
    with pytest.raises(DataError, match="bands") as caught:
        gather_encoders(str(file), data, missing_bands="empty")
    assert "counts as empty" not in str(caught.value)


def test_statistics_are_compared_for_the_bands_that_are_left(tmp_path):
    own = Modality("x", ("a", "b", "c"), mean=(1, 2, 3), std=(4, 5, 6))
    file = str(save_encoder(build_encoder("test_resnet", own), tmp_path / "x.safetensors"))
    data = own.with_(bands=("c", "a"), mean=(3, 1), std=(6, 4))
    found = gather_encoders(file, {"x": data}, missing_bands="empty")
    assert found["x"].modality == data and not found["x"].training
    with pytest.raises(DataError, match=r"differs in mean: \(3, 1\) != \(3, 2\)"):
        gather_encoders(file, {"x": data.with_(mean=(3, 2))}, missing_bands="empty")


@torch.no_grad()
def test_a_projector_follows_an_encoder_for_fewer_bands(runs, scenes, pictures):
    own = scenes.modalities["sar"]
    one = own.with_(
        bands=own.bands[1:],
        mean=own.mean and own.mean[1:],
        std=own.std and own.std[1:],
    )
    run = str(runs["DeCUR"].folder.path)
    found = gather_encoders(*(run, {"sar": one}), representation="common", missing_bands="empty")
    x = pictures["sar"].clone()
    x[:, 0] = 0
    z = runs["DeCUR"].model.cpu().eval().embed({"sar": x})[1]["sar"]
    assert torch.allclose(found["sar"](x[:, 1:]), z[:, :24], atol=1e-5)


# -- timm's weights --------------------------------------------------------------------------------


def test_timms_weights_are_adapted_to_each_sensors_bands(scenes, monkeypatch):
    torch.manual_seed(3)
    released = timm.create_model("test_resnet").state_dict()
    monkeypatch.setattr(_builder, "load_state_dict_from_hf", lambda *a, **k: dict(released))
    found = gather_encoders("timm:test_resnet.r160_in1k", scenes.modalities)
    for name, encoder in found.items():
        assert encoder.modality == scenes.modalities[name] and not encoder.training
        state = encoder.state_dict()
        bands = encoder.modality.channels
        first = next(iter(state))
        rgb = released[first]
        # what a grey picture in all bands gives stays the same
        repeated = rgb.repeat(1, -(-bands // 3), 1, 1)[:, :bands] * (3 / bands)
        assert torch.allclose(state[first], repeated)
        others = [key for key in state if key != first]
        assert all(torch.equal(state[key], released[key]) for key in others)


def test_timms_weights_are_refused_in_one_line(refused, monkeypatch, run_folder):
    def offline(*arguments, **options):
        raise LocalEntryNotFoundError("Cannot find the file;\ncheck your connection")

    monkeypatch.setattr(_builder, "load_state_dict_from_hf", offline)
    line = refused(*SCENES, "--encoders=timm:test_resnet.r160_in1k")
    assert "pretrained weights cannot be loaded (Cannot find the file;" in line
    assert "did you mean resnet18" in refused(*SCENES, "--encoders=timm:resnet_18")
    assert "Invalid pretrained tag (no)" in refused(*SCENES, "--encoders=timm:resnet18.no")
    assert "'mlp' has no pretrained weights" in refused(*SCENES, "--encoders=timm:mlp")
    line = refused(*SCENES, "--encoders", str(run_folder), "timm:resnet18")
    assert "'timm:resnet18' is for all sensors; give nothing beside it" in line


def test_a_model_from_timms_weights_is_saved_and_comes_back(transferred, monkeypatch):
    released = timm.create_model("test_resnet").state_dict()
    monkeypatch.setattr(_builder, "load_state_dict_from_hf", lambda *a, **k: dict(released))
    folder = transferred(*SCENES, "--encoders=timm:test_resnet.r160_in1k")
    monkeypatch.undo()  # loading asks for no weights again
    model, _ = load_model(folder / "model.safetensors")
    assert model.encoder("sar").name == "test_resnet.r160_in1k"
    key = next(key for key in released if key.endswith("running_var"))
    kept = load_file(folder / "model.safetensors")[f"encoders.sar.{key}"]
    assert torch.equal(kept, released[key])
    assert (
        SyntheticScenes(1, 32, modalities=["sar"]).modalities["sar"]
        == model.encoder("sar").modality
    )


def test_an_encoder_takes_its_bands_of_data_that_has_more(tmp_path):
    few = Modality("s2", ("B4", "B2"), mean=(3.0, 1.0), std=(1.0, 2.0))
    save_encoder(build_encoder("mlp", few, width=8), tmp_path / "s2.safetensors")
    more = Modality("s2", ("B02", "B03", "B04"), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), guessed=True)
    source = str(tmp_path / "s2.safetensors")

    found = gather_encoders(source, {"s2": more}, by_name=True)["s2"]
    assert found.modality == few
    with pytest.raises(DataError, match=r"`bands: \[B4, B2\]` for it in the data's"):
        gather_encoders(source, {"s2": more})
    with pytest.raises(DataError, match="differs in bands"):
        gather_encoders(source, {"s2": more.with_(bands=("B02", "B03", "B5"))}, by_name=True)
