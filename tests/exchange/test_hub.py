"""Folders that timm loads, their cards, and the hub that they are pushed to and read from."""

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
import yaml
from small_hub import SmallHub

from decur import Modality
from decur.cli import main
from decur.encoders import EncoderSettings, build_encoder, load_encoder, save_encoder
from decur.encoders.files import encoder_files, read_objective
from decur.errors import ConfigError, DataError
from decur.exchange.hub import export_hub
from decur.pretrain.directions import Counted
from decur.runs import RunFolder
from decur.transfer.sources import gather_encoders

RUN = Path(__file__).parents[1] / "fixtures" / "v0.1" / "run"
S1, RGB = Modality.preset("sentinel1").with_(name="s1"), Modality.preset("rgb")
DEM = Modality("dem", ("height",), scaling="range", value_range=(0, 100))
NORMALISATION = {"mean": [0.4, 0.5, 0.6], "std": [0.1, 0.2, 0.3]}


@pytest.fixture
def make(tmp_path):
    """An encoder whose every number matters, and its file."""

    def make(name="test_resnet", modality=S1, **options):
        torch.manual_seed(0)
        encoder = build_encoder(name, modality, **options)
        for value in encoder.parameters():
            torch.nn.init.normal_(value, std=0.1)
        encoder(torch.rand(4, modality.channels, 64, 64))  # running means of batch norms
        file = tmp_path / "run" / "encoders" / f"{modality.name}.safetensors"
        return encoder.eval(), save_encoder(encoder, file)

    return make


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub of this machine that huggingface_hub talks to, with a cache of its own."""
    from huggingface_hub import constants

    server = SmallHub()
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    yield server
    server.shutdown()
    server.server_close()


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "modality", "options"),
    [
        ("test_resnet", S1, {}),
        ("test_resnet", DEM, {"global_pool": "max"}),
        ("test_vit.r160_in1k", S1, {}),  # any size; its tag names weights
        ("test_vit", RGB, {"img_size": 64, "class_token": False, "global_pool": "avg"}),
        ("test_efficientnet", RGB, {"normalisation": NORMALISATION}),
    ],
)
def test_timm_loads_the_folder(name, modality, options, make, tmp_path):
    encoder, file = make(name, modality, **options)
    config, weights, card = export_hub(file, tmp_path / "out")
    plain = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    x = torch.rand(2, modality.channels, 64, 64)
    mean, std = (torch.tensor(plain.pretrained_cfg[k])[:, None, None] for k in ("mean", "std"))
    torch.testing.assert_close(plain((x - mean) / std), encoder(x))
    state = encoder.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in plain.state_dict().items())
    maps = timm.create_model(
        f"local-dir:{tmp_path / 'out'}", pretrained=True, features_only=True, out_indices=[-1]
    ).eval()
    expected = encoder.backbone.forward_intermediates(x, indices=1, intermediates_only=True)[-1]
    torch.testing.assert_close(maps((x - mean) / std)[-1], expected)
    torch.testing.assert_close(load_encoder(weights)(x), encoder(x))
    assert json.loads(config.read_text())["pretrained_cfg"]["input_size"][0] == modality.channels
    export_hub(file, tmp_path / "out")  # over itself
    assert [card.name] == [p.name for p in (tmp_path / "out").glob("*.md")]


def test_what_timm_has_not_is_read_by_decur_alone(make, tmp_path, caplog):
    caplog.set_level("INFO")
    encoder, file = make(attention={"layer4": "rda"})
    config, weights, card = export_hub(file, tmp_path / "out")
    assert "timm has no such attention: decur reads the s1 encoder" in caplog.text
    assert "architecture" not in json.loads(config.read_text())
    assert "timm has no architecture for the s1 encoder" in card.read_text()
    x = torch.rand(1, 2, 64, 64)
    assert torch.equal(load_encoder(weights)(x), encoder(x))


def test_the_card_of_a_run_tells_what_it_was_made_from(tmp_path):
    card = export_hub(RUN, tmp_path / "mine", licence="cc-by-4.0", scores=[RUN.with_name("fit")])[
        -1
    ]
    front, text = card.read_text().split("---\n", 2)[1:]
    about = yaml.safe_load(front)
    assert about["license"] == "cc-by-4.0" and {"dem", "rgb"} < set(about["tags"])
    for told in (
        "### rgb\n\nmlp, ",
        "| data | PairedFolder, pairs |",
        "| objective | DeCUR: common 0.5, ",
        "| epochs | 2 |",
        "one encoder for each sensor, trained without\nlabels by DeCUR (",
        " cover, dem+rgb, fine-tuned, 100 % of the labels | 0.250 (0.000 to 0.500) | – |",
        "| late fusion, linear head; 8 samples to train; 4 samples to test; of run: whether these",
        "| training: diagonal/common/dem-rgb | 0.158 | 0 |",
        "| training: offdiag_rms/dem-rgb | 0.571 | – |",  # version 0.1 measured no chance
        "timm has no architecture for the rgb encoder (mlp)",
        "\ncc-by-4.0\n",
        "@inproceedings{wang2024decur,",
    ):
        assert told in text, told
    assert sorted(encoder_files(str(tmp_path / "mine"))) == ["dem", "rgb"]
    for name, file in encoder_files(str(tmp_path / "mine")).items():
        assert file == tmp_path / "mine" / name / "model.safetensors"


@pytest.mark.parametrize(
    ("options", "directions", "told"),
    [
        ({"common": 0.875, "blocks": {"s1+s2": 0.5}}, None, "blocks {'s1+s2': 0.5}, intra True"),
        ({"common": "auto"}, 12, "common 0.6 (counted), intra True"),
        ({"common": "auto"}, 2, "common 0.25 (counted 0.1, too few), intra True"),
        ({"common": "auto"}, None, "common 0.25 (could not be counted), intra True"),
    ],
)
def test_the_card_tells_which_dimensions_were_shared(options, directions, told, make, tmp_path):
    encoder, file = make()
    about = {"name": "DeCUR", "dim": 16, "parts": {"s1+s2": [0, 8], "unique": [8, 16]}}
    save_encoder(encoder, file, objective=about)
    run = RunFolder(file.parents[1])
    options |= {"intra": True}
    objective = {"class_path": "decur.objectives.DeCUR", "init_args": options}
    run.config.write_text(yaml.safe_dump({"objective": objective}))
    if options.get("common") == "auto":
        Counted({("s1", "s2"): directions}, {"s1": 20, "s2": 20}, looked=24).write(run)
    _, weights, card = export_hub(file, tmp_path / "out")
    assert f"| objective | DeCUR: {told} |" in card.read_text()
    assert read_objective(weights) == about


@pytest.fixture
def scored(tmp_path):
    """The folder of a transfer, of which only the results are there."""

    def scored(name, **results):
        told = {"target": "cover", "modalities": ["s1"], "freeze": True, "warnings": []}
        told["metrics"] = {"accuracy": {"value": 1.0, "interval": [0.6, 1.0], "floor": 0.625}}
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "results.json").write_text(json.dumps(told | results))
        return tmp_path / name

    return scored


def test_a_card_claims_only_what_is_known(make, scored, tmp_path):
    file = make()[1].rename(tmp_path / "mine.safetensors")
    first = {"label_fraction": 0.1, "train": 3, "test": 8, "warnings": ["few | samples", "so so"]}
    folders = [
        scored("a", encoders=[str(file)], model="linear head (ridge)", **first),
        scored("b", encoders=["torchgeo:X"], label_fraction=1.0, representation="common"),
        scored("old"),
    ]
    text = export_hub(file, tmp_path / "out", scores=folders)[-1].read_text()
    assert "s1: an encoder; how it was trained is not known ([decur]" in text
    assert "without" not in text and "self-supervised-learning" not in text.split("---")[1]
    start, floor = "| accuracy of cover, s1, frozen", "1.000 (0.600 to 1.000) | 0.625 | the best"
    guess, unknown = f"{floor} constant guess |", "whether these are the ones here is not known |"
    for line in (
        f"{start}, 10 % of the labels | {guess} linear head (ridge); 3 samples to train; "
        "8 samples to test; warnings 1, 2 |",
        f"{start}, 100 % of the labels | {guess} on common; of torchgeo:X: {unknown}",
        f"{start} | {guess} –; of unknown encoders: {unknown}",
        "\n\nWarnings, which rows name by number:\n\n1. few \\| samples\n2. so so\n\n## Licence",
    ):
        assert line in text, line


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ({"encoders": ["random"]}, r"are of fresh weights, not of what is exported"),
        ({"encoders": ["random:mine"]}, r"are of fresh weights, not of what is exported"),
        ({"encoders": ["mine"], "modalities": ["s1", "s2"]}, r"s1 and s2, and s2 is not exported"),
        ({"encoders": ["OTHER"]}, r"whose s1 encoder has other weights than the one exported"),
    ],
)
def test_scores_of_other_encoders_are_refused(results, said, make, scored, tmp_path):
    encoder, file = make()
    file = file.rename(tmp_path / "mine.safetensors")
    with torch.no_grad():
        next(encoder.parameters())[0] += 1
    save_encoder(encoder, other := tmp_path / "other.safetensors")
    results["encoders"] = [x.replace("OTHER", str(other)) for x in results["encoders"]]
    with pytest.raises(ConfigError, match=rf"^--scores .*: .*{said}") as refused:
        export_hub(file, tmp_path / "out", scores=[scored("t", **results)])
    assert "\n" not in str(refused.value) and not (tmp_path / "out").exists()


def test_scores_of_what_is_exported_are_known_by_its_weights(make, scored, tmp_path):
    file = make()[1]
    export_hub(file, tmp_path / "before")
    for source in (file, file.parent.parent, tmp_path / "before"):
        card = export_hub(file, tmp_path / "out", scores=[scored("t", encoders=[str(source)])])[-1]
        assert "is not known |" not in card.read_text()


def test_a_repository_goes_up_and_comes_down(hub, make, tmp_path):
    encoder, file = make()
    main(
        [
            *("export", str(file), "--format=hub", f"--out={tmp_path / 'out'}"),
            *("--push=me/radar", "--license=apache-2.0"),
        ]
    )
    assert sorted(hub.repositories["me/radar"]) == ["README.md", "config.json", "model.safetensors"]
    assert (
        b'timm.create_model("hf-hub:me/radar", pretrained'
        in hub.repositories["me/radar"]["README.md"]
    )
    x = torch.rand(2, 2, 64, 64)
    found = gather_encoders("hf-hub:me/radar", {"s1": S1})["s1"]
    with torch.no_grad():
        assert torch.equal(found(x), encoder(x))
        plain = timm.create_model("hf-hub:me/radar", pretrained=True, cache_dir=tmp_path / "c")
        assert torch.equal(plain.eval()(x), encoder(x))
    settings = EncoderSettings("test_resnet", weights="hf-hub:me/radar")
    continued = settings.build("s1", S1).state_dict()
    assert all(torch.equal(value, continued[key]) for key, value in encoder.state_dict().items())
    with pytest.raises(ConfigError, match=r"me/radar: has encoders of s1 alone; give \{s2: FILE\}"):
        settings.build("s2", S1.with_(name="s2"))
    with pytest.raises(ConfigError, match="common needs the projector of a run"):
        gather_encoders("hf-hub:me/radar", {"s1": S1}, representation="common")
    commit = hub.revision("me/radar")
    main(["export", str(file), "--format=hub", f"--out={tmp_path / 'out'}", "--push=me/radar"])
    assert hub.revision("me/radar") != commit  # its licence is gone
    before = encoder_files(f"hf-hub:me/radar@{commit}")["s1"]  # of the cache
    assert before.parent.name == commit


def test_a_run_is_one_repository(hub, make, tmp_path):
    for modality in (S1, RGB):
        make(modality=modality)
    export_hub(tmp_path / "run", tmp_path / "out", push="me/both")
    files = hub.repositories["me/both"]
    assert {"rgb/config.json", "s1/model.safetensors"} < files.keys()
    assert sorted(encoder_files("hf-hub:me/both")) == ["rgb", "s1"]
    card = files["README.md"].decode()
    assert "`hf download me/both --local-dir both` comes first" in card
    assert 'timm.create_model("local-dir:both/s1", pretrained=True)' in card


def test_refusals_of_the_hub_are_one_line(hub, make, tmp_path, monkeypatch, capsys):
    file = make()[1]
    with pytest.raises(ConfigError, match=r"^hf-hub:me/none: cannot be had from the hub \(") as no:
        encoder_files("hf-hub:me/none")
    assert "\n" not in str(no.value)
    hub.repositories["me/empty"] = {"README.md": b"nothing"}
    with pytest.raises(DataError, match=r"^encoders: hf-hub:me/empty holds no encoders"):
        gather_encoders("hf-hub:me/empty", {"s1": S1})
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no"))
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(file), "--format=hub", f"--out={tmp_path / 'o'}", "--push=me/radar"])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and "--push me/radar: the hub does not take it" in error
    assert "hf auth login" in error and error.count("error: ") == 1


def test_wrong_folders_are_refused(make, tmp_path):
    file = make()[1]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match=r"^--out .*out: holds thesis.tex; choose another folder"):
        export_hub(file, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"^--out .*: is a file; give a folder"):
        export_hub(file, file)
    with pytest.raises(DataError, match="holds no encoders"):
        export_hub(tmp_path, tmp_path / "new")
    with pytest.raises(ConfigError, match=r"^--scores .*: holds no results.json"):
        export_hub(file, tmp_path / "new", scores=[tmp_path])
    assert not (tmp_path / "new").exists()
    twice = tmp_path / "twice"
    for name in ("a", "b"):
        (twice / name).mkdir(parents=True)
        shutil.copy(file, twice / name / "model.safetensors")
    with pytest.raises(DataError, match=r"a/model.safetensors and b/model.safetensors are both"):
        encoder_files(str(twice))


def test_options_of_other_formats_are_refused(make, tmp_path, capsys):
    file = str(make()[1])
    for wrong, said in (
        (["--format=hub", f"--out={tmp_path / 'o'}", "--scaling=true"], "--scaling: is of a graph"),
        (["--format=timm", "--out=o.pth", "--push=a/b"], "--push: is of a folder with a card"),
    ):
        with pytest.raises(SystemExit):
            main(["export", file, *wrong])
        assert said in capsys.readouterr().err
