"""Layers of a configuration: what overrides what, and what is refused in one line."""

import logging
from copy import deepcopy

import pytest

from decur.compare.command_compare import build_parser as compare_parser
from decur.compare.settings import MethodSettings
from decur.config import Parser
from decur.embed.settings import EmbedSettings
from decur.errors import ConfigError
from decur.layers import override
from decur.pretrain.configuration import build_parser
from decur.transfer.command_transfer import shared_parser

SCENES = {"data": {"class_path": "SyntheticScenes", "init_args": {"samples": 64}}}


@pytest.fixture(scope="module")
def parser() -> Parser:
    return build_parser()


@pytest.mark.parametrize(
    ("layers", "merged"),
    [
        ([{"views": {"size": 3}}, {"views": {"shared_geometry": True}}], {"size": 3}),
        ([{"views.size": 3}, {"views": {"shared_geometry": True}}], {"size": 3}),
        ([{"views.size": 3, "views": {"size": 4, "shared_geometry": True}}], {"size": 3}),
        ([{"views": {"size": 3}}, {"views.size": 4, "views.shared_geometry": True}], {"size": 4}),
    ],
)
def test_groups_are_merged_and_dotted_keys_belong_to_them(parser, layers, merged):
    assert parser.merge(layers) == {"views": {**merged, "shared_geometry": True}}


def test_values_are_replaced_even_where_they_are_mappings_or_lists(parser):
    old = {"encoder": {"options": {"a": 1}, "name": "x"}, "modalities": ["s1", "s2"]}
    new = {"encoder.options": {"b": 2}, "modalities": "s1"}
    merged = parser.merge([old, new])
    assert merged == {"encoder": {"options": {"b": 2}, "name": "x"}, "modalities": ["s1"]}
    merged = parser.merge([old, {"encoder.options.b": 2}])  # one key of the mapping
    assert merged["encoder"]["options"] == {"a": 1, "b": 2}
    assert old["encoder"]["options"] == {"a": 1}


def test_what_has_a_default_need_not_be_given():
    settings = build_parser().parse(["--data.root", "folder"])
    assert settings.objective.class_path == "decur.objectives.DeCUR"


def test_reading_changes_no_layer():
    parser = Parser("decur")
    parser.add_class_arguments(MethodSettings)
    clip = {"class_path": "decur.objectives.CLIP", "init_args": {"temperature": 1.0}}
    layer = {"pretrain": {"objective": clip}}
    before = deepcopy(layer)
    parser.read([layer])
    assert layer == before and type(layer["pretrain"]["objective"]) is dict


def test_a_wrong_key_beside_a_class_is_refused(parser):
    with pytest.raises(ConfigError, match=r"data\.init_arg: unknown key .* did you mean init_args"):
        parser.merge([{"data": {"class_path": "PairedFolder", "init_arg": {"root": "r"}}}])


@pytest.mark.parametrize("given", ["BarlowTwins", {"class_path": "decur.BarlowTwins"}])
def test_another_objective_has_its_own_defaults(parser, given, caplog):
    caplog.set_level(logging.INFO)
    old = {"objective": {"class_path": "DeCUR", "init_args": {"common": 0.5}}}
    settings = parser.read([SCENES, old, {"objective": given}])
    assert settings.objective.class_path == "decur.objectives.BarlowTwins"
    assert settings.objective.init_args.as_dict() == {"dim": 8192, "lambda_": 0.0051}


def test_options_that_mean_something_else_are_not_taken_over(parser):
    """`intra` of DeCUR is on by default, that of SimCLR is off; temperatures differ, too."""
    old = {"objective": {"class_path": "CLIP", "init_args": {"temperature": 0.3}}}
    settings = parser.read([SCENES, old, {"objective": "SimCLR"}])
    assert settings.objective.init_args.temperature == 0.5
    assert settings.objective.init_args.intra is False
    old = {"data": {"class_path": "PairedFolder", "init_args": {"root": "r", "missing": "drop"}}}
    settings = parser.read([old, {"data": "Ombria"}])
    assert settings.data.init_args.as_dict() == {"root": "r", "split": None, "size": 256}


def test_what_is_dropped_is_said(caplog):
    caplog.set_level(logging.INFO)
    parser = build_parser()
    settings = parser.parse(["--config=demo", "--objective=VICReg", "--objective.covariance=2"])
    assert "objective: VICReg in place of DeCUR; objective.common dropped" in caplog.text
    found = settings.objective.init_args.as_dict()
    assert found == {**found, "dim": 256, "covariance": 2.0, "invariance": 25.0}


def test_a_later_configuration_overrides_an_earlier_option_and_class():
    parser = build_parser()
    settings = parser.parse(["--views.size=3", "--objective=CLIP", "--config=demo", "--seed=5"])
    assert settings.views.size == 48 and settings.seed == 5
    assert settings.objective.class_path == "decur.objectives.DeCUR"
    assert settings.objective.init_args.common == 0.75


def test_values_on_the_command_line_are_typed_by_their_key(tmp_path):
    given = ["--config=demo", "--run=2024", "--optimizer.lr=1e-3", "--views.augment.sar={blur: 1}"]
    settings = build_parser().parse([*given, "--modalities", "optical", "sar", "--resume"])
    assert (settings.run, settings.optimizer.lr, settings.resume) == ("2024", 0.001, True)
    assert settings.modalities == ["optical", "sar"]
    listed = build_parser().parse([*given, "--modalities=[optical, sar]"])  # as YAML has it
    assert listed.modalities == ["optical", "sar"]
    assert settings.views.augment == {"sar": {"blur": 1}}


@pytest.mark.parametrize(
    ("words", "key", "meant"),
    [
        (["--freeze_modalities", "s1"], "freeze_modalities", ["s1"]),
        (["--freeze_modalities=s1"], "freeze_modalities", ["s1"]),
        (["--freeze_modalities", "s1", "s2"], "freeze_modalities", ["s1", "s2"]),
        (["--freeze_modalities", "[s1, s2]"], "freeze_modalities", ["s1", "s2"]),
        (["--freeze_modalities", "null"], "freeze_modalities", None),
        (["--modalities", "s1"], "modalities", ["s1"]),
        (["--test_scales", "2"], "test_scales", (2.0,)),
        (["--test_window", "48", "64"], "test_window", (48, 64)),
        (["--fit.milestones", "0.5"], "fit.milestones", (0.5,)),
        (["--fit.crop", "0.5", "1"], "fit.crop", (0.5, 1.0)),
    ],
)
def test_one_word_or_several_make_a_list_as_yaml_does(words, key, meant):
    parsed = shared_parser().parse(["--data=SyntheticScenes", *words, "--seed=5"])
    assert (parsed[key], parsed.seed) == (meant, 5)


def test_a_list_in_brackets_is_whole():
    parser = Parser("decur x")
    parser.add_argument("file")
    parser.add_argument("--size", type=tuple[int, int] | None, default=None)
    for words in (["--size", "[2, 3]", "a"], ["--size=[2, 3]", "a"], ["a", "--size", "[2, 3]"]):
        parsed = parser.parse(words)
        assert (parsed.size, parsed.file) == ((2, 3), "a")


def test_one_word_makes_a_list_in_a_file_and_in_a_mapping():
    tasks = {"a": {"transfer": {}, "label_fractions": 0.5}}
    parser = compare_parser()
    read = parser.read([{"seeds": 3, "backbones": "resnet18", "tasks": tasks, "methods": {}}])
    assert (read.seeds, read.backbones) == ([3], ["resnet18"])
    assert read.tasks["a"].label_fractions == [0.5]


@pytest.mark.parametrize("option", ["--overwrite", "--views.shared_geometry"])  # order and value
@pytest.mark.parametrize(
    ("given", "meant"),
    [(["{}"], True), (["{}", "true"], True), (["{}=false"], False), (["{}", "False"], False)],
)
def test_a_switch_may_stand_alone_or_be_told_true_or_false(option, given, meant):
    words = [word.format(option) for word in given]
    settings = build_parser().parse(["--config=demo", *words, "--seed=5"])
    assert (settings[option.removeprefix("--")], settings.seed) == (meant, 5)


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        ({"view.size": 3}, "view.size: unknown key; did you mean views.size?"),
        ({"views": {"sizee": 3}}, "views.sizee: unknown key; did you mean views.size?"),
        ({"views": 3}, "views: has keys of its own, such as views.size; 3 is no mapping"),
        ({"data": "/some"}, "data: names a class, not a folder; give --data.root /some"),
        ({"data": [1]}, "data: names a class; [1] is none"),
        ({"data": {"init_args": "x"}}, "data.init_args: must be options by name, is 'x'"),
        ({"data": "SyntheticScene"}, "no class 'SyntheticScene'; did you mean SyntheticScenes?"),
        ({"data": "no.such.Class"}, "data: no class 'no.such.Class': module 'no.such' cannot be"),
        ({"data.sample": 3}, "data.sample: SyntheticScenes takes no such key; did you mean data.s"),
        ({"data.samples": "many"}, "data.samples: expected int, got 'many'"),
        ({"trainer.max_epochs": "x"}, "trainer.max_epochs: expected int or null, got 'x'"),
        ({"optimizer.name": "sgd"}, "optimizer.name: expected one of lars, adamw, got 'sgd'"),
        ({"data": "PairedFolder"}, "data.root: is required by PairedFolder"),
        ({"objective.dim": 3}, "objective.dim: is 3, but projector.width, which it follows, is 8"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(parser, layer, said):
    with pytest.raises(ConfigError) as error:
        parser.read([SCENES, layer])
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_file_of_keys_may_stand_for_a_group(parser, tmp_path):
    path = tmp_path / "views.yaml"
    path.write_text("size: 7\n")
    assert parser.merge([{"views": str(path)}]) == {"views": {"size": 7}}


@pytest.mark.parametrize(
    "arguments", [["--views.size"], ["--modalities"], ["extra"], ["--overwrite=maybe"]]
)
def test_words_that_make_no_sense_are_refused(arguments):
    with pytest.raises(ConfigError, match=arguments[0].removeprefix("--").split("=")[0]):
        build_parser().parse(["--config=demo", *arguments])


def test_options_by_name_replace_fields_of_settings():
    settings = EmbedSettings(out="here", seed=3)
    assert override(settings, {"seed": 4}, "embed") == EmbedSettings(out="here", seed=4)
    assert settings.seed == 3


def test_an_option_that_is_no_field_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"^sed: unknown option of embed; did you mean seed\?$"):
        override(EmbedSettings(), {"sed": 4}, "embed")
