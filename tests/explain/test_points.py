"""Deformable points: the component against scikit-learn, and the points against the modules."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from decur.data import SyntheticScenes
from decur.encoders import Projector, build_encoder
from decur.encoders.attention import DeformableAttention
from decur.errors import ConfigError
from decur.explain import Checkpoint, DoesNotApply, SampleLoader
from decur.explain.points import component, findings, plot_points, points
from decur.pretrain import LoaderSettings


def _checkpoint(
    attention: str, modalities: int = 2, geometry: str = "dat"
) -> tuple[Checkpoint, SampleLoader]:
    names = ["optical", "sar", "elevation"][:modalities]
    data = SyntheticScenes(12, 64, modalities=names)
    torch.manual_seed(0)
    encoders = {
        name: build_encoder("test_resnet", modality, attention=attention, geometry=geometry)
        for name, modality in data.modalities.items()
    }
    for encoder in encoders.values():
        for module in encoder.modules():
            if isinstance(module, DeformableAttention):
                torch.nn.init.normal_(module.offset[-1].weight, std=0.05)
    projectors = {name: Projector(encoder.dim, 8, layers=2) for name, encoder in encoders.items()}
    checkpoint = Checkpoint(
        "run",
        encoders,
        projectors=projectors,
        modalities=data.modalities,
        parts={"common": slice(0, 8)},
    )
    return checkpoint, SampleLoader(data, settings=LoaderSettings(workers=0))


def test_the_component_is_that_of_scikit_learn():
    feature = np.random.default_rng(0).normal(size=(5, 6, 7)) + np.arange(5)[:, None, None]
    scores, share = component(feature)
    model = PCA(1, svd_solver="full").fit(feature.reshape(5, -1).T)
    theirs = model.transform(feature.reshape(5, -1).T)[:, 0]
    theirs = theirs / theirs.std()
    assert min(np.abs(scores.ravel() - s * theirs).max() for s in (-1, 1)) < 1e-6
    assert share == pytest.approx(model.explained_variance_ratio_[0])
    long = np.linalg.norm(feature, axis=0).ravel()
    assert np.corrcoef(scores.ravel(), long)[0, 1] > 0


def test_its_sign_does_not_depend_on_that_of_the_solver():
    feature = np.random.default_rng(1).normal(size=(4, 5, 5)) + 3
    order = np.random.default_rng(2).permutation(4)
    mirrored, _ = component(feature[:, ::-1])
    np.testing.assert_allclose(mirrored[::-1], component(feature)[0], atol=1e-5)
    np.testing.assert_allclose(component(feature[order])[0], component(feature)[0], atol=1e-5)
    scores, share = component(np.ones((3, 4, 4)))
    assert not scores.any() and share == 0


@pytest.mark.parametrize(
    ("attention", "geometry"), [("rda", "centred"), ("da", "centred"), ("rda", "dat")]
)
def test_points_are_those_of_the_modules(attention, geometry):
    checkpoint, loader = _checkpoint(attention, geometry=geometry)
    arrays = points(checkpoint, loader, ids="0000002, 0000007")
    raw = torch.stack([loader.data[i]["images"]["sar"] for i in (2, 7)])
    x = checkpoint.modalities["sar"].scale(raw)
    backbone = checkpoint.encoder("sar").backbone
    x = backbone.maxpool(backbone.act1(backbone.bn1(backbone.conv1(x))))
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        for layer in getattr(backbone, stage).children():
            if isinstance(layer, DeformableAttention):
                side = x.shape[-1]
                x, inspection = layer.inspect(x)
                at, offsets = (t.detach().numpy() for t in inspection[:2])
                starts = (at - offsets).clip(-1, 1)
                inside = (np.abs(at) < 1) & (np.abs(at - offsets) <= 1)
                if geometry == "dat":  # there the outermost places are at -1 and 1
                    at, starts = (places * (side - 1) / side for places in (at, starts))
                np.testing.assert_allclose(arrays[f"sar/{stage}/points"], at, atol=1e-5)
                found = arrays[f"sar/{stage}/starts"]
                assert inside.any() or geometry == "dat"
                np.testing.assert_allclose(found[inside], starts[inside], atol=1e-5)
                if attention != "da":  # whose map is next to constant here
                    theirs, _ = component(x[1].detach().numpy())
                    ours = arrays[f"sar/{stage}/component"][1]
                    np.testing.assert_allclose(ours, theirs, atol=1e-3)
            else:
                x = layer(x)
    assert arrays["sar/stages"].tolist() == ["layer3", "layer4"]


def test_draws_what_is_kept_of_crossing_encoders_and_absent_sensors(tmp_path):
    checkpoint, loader = _checkpoint("cross_da")
    read = loader.data.read

    def without(index):
        sample = read(index)
        if index == 1:
            del sample["images"]["sar"]
        return sample

    loader.data.read = without
    arrays = points(checkpoint, loader)
    assert len(arrays["ids"]) == 4 and np.isnan(arrays["sar/picture"]).any() == (
        "0000001" in arrays["ids"]
    )
    np.savez(tmp_path / "kept.npz", **arrays)
    with np.load(tmp_path / "kept.npz") as file:
        kept = dict(file)
    kept["ids"] = np.array(["$x_{$"] * 4)  # would raise ValueError, read as a formula
    figure = plot_points(kept)
    figure.savefig(tmp_path / "p.png")
    assert figure.get_size_inches()[0] <= 9 and "layer4" in findings(kept)


def test_where_points_start_is_what_their_strength_is_held_against():
    checkpoint, loader = _checkpoint("rda", 1)
    loader.data.groups = [f"place {row // 4}" for row in range(12)]
    for module in checkpoint.encoder("optical").modules():
        if isinstance(module, DeformableAttention):
            torch.nn.init.zeros_(module.offset[-1].weight)  # so no point moves
    arrays = points(checkpoint, loader)
    assert arrays["groups"].tolist() == ["place 0", "place 1", "place 1", "place 2"]
    for stage in ("layer3", "layer4"):
        there, everywhere, before = arrays[f"optical/{stage}/strength"].T
        np.testing.assert_array_equal(there, before)
        assert (everywhere != there).any()
    assert findings(arrays).count("cannot be told") == 2


@pytest.mark.parametrize(
    ("there", "before", "said"),
    [
        ([1.3, 1.2, 1.35, 1.25], [1.1, 1.05, 1.12, 1.02], "yes"),
        ([1.0, 0.9, 1.1, 1.0], [1.2, 1.08, 1.32, 1.21], "no"),
        ([1.11, 1.08, 1.1, 1.12], [1.1, 1.1, 1.08, 1.12], "cannot be told"),
        ([1.3, 1.2, 1.35, 1.25], None, "cannot be told"),  # as decur 0.1 kept it
    ],
)
def test_points_go_where_the_map_is_strong_only_beyond_their_starts(there, before, said):
    columns = [there, np.ones(4), before] if before else [there, np.ones(4)]
    strength = np.array(columns).T
    strength = np.vstack([strength, np.full_like(strength[:1], np.nan)])  # the sensor is absent
    arrays = {
        "ids": np.array(list("abcde")),
        "modalities": np.array(["s1"]),
        "s1/stages": np.array(["layer4"]),
        "s1/layer4/points": np.zeros((5, 1, 4, 2)),
        "s1/layer4/starts": np.zeros((5, 1, 4, 2)),
        "s1/layer4/share": np.full(5, 0.5),
        "s1/layer4/strength": strength,
    }
    html = findings(arrays)
    assert [x for x in ("yes", "no", "cannot be told") if f">{x}<" in html] == [said]
    assert "nan" not in html
    arrays["groups"] = np.array(["one"] * 5)
    assert ">cannot be told<" in findings(arrays)


def test_says_why_it_does_not_apply(tiny_checkpoint, tiny_loader):
    with pytest.raises(DoesNotApply, match="deformable"):
        points(tiny_checkpoint(), tiny_loader(8))
    checkpoint, loader = _checkpoint("rda", 1)
    assert points(checkpoint, loader)["optical/picture"].shape[0] == 4
    for ids, said in ((["nowhere"], "no sample 'nowhere'"), ([], "from 1 to")):
        with pytest.raises(ConfigError, match=said):
            points(checkpoint, loader, ids=ids)


@pytest.mark.parametrize("given", ["0000002,0000007", "0000002", "a b"])
def test_ids_of_the_command_line_stay_text(given):
    from decur.explain.command_explain import build_parser

    settings = build_parser().parse(["run", "--options.points.ids", given])
    assert settings.options.points.ids == given
