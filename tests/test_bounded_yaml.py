"""YAML of others: a small file asks for little time and memory, and says each key once."""

import pytest
import yaml

from decur.bounded_yaml import parse_json, parse_yaml, read_text
from decur.compare.command_compare import main as compare
from decur.config import Parser
from decur.errors import ConfigError
from decur.layers import loaded
from decur.modality import load_modalities

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "more than 100,000 values"),
        ("a: &a [1, *a]", r"\*a holds itself"),
        ("a: " + "[" * 60 + "]" * 60, "more than 50 deep"),
        ("[" * 200_000, "more than 50 deep"),
        ("a: 1\nb: {c: 1, c: 2}", "line 2: key 'c' comes twice"),
        ("a: " + "x" * 200_000, "too long"),
        ("a: " + "9" * 5000, "not valid YAML"),
        ("a: 2024-13-45", "not valid YAML"),
        ("a: !!python/name:os.system", "not valid YAML"),
    ],
)
def test_what_no_configuration_holds_is_refused(text, said):
    with pytest.raises(ConfigError, match=f"^c.yaml: .*{said}") as caught:
        parse_yaml(text, "c.yaml")
    assert "\n" not in str(caught.value)


def test_all_else_is_read_as_pyyaml_reads_it():
    text = (
        "a: &a {x: 1, y: [2, 3]}\nb: {<<: *a, z: 1e4}\nc: *a\n? [k]\n: v\nd: {a: 1, b: a}\n? 5\n: a"
    )
    assert parse_yaml(text.replace("? [k]\n: v\n", ""), "c") == yaml.safe_load(
        text.replace("? [k]\n: v\n", "")
    )
    with pytest.raises(ConfigError, match="unhashable"):
        parse_yaml(text, "c")


def test_every_way_to_read_a_file_of_keys_is_bounded(tmp_path):
    large = tmp_path / "large.yaml"
    large.write_text("# " + "x" * 1_000_000 + "\na: 1\n")
    bomb = tmp_path / "bomb.yaml"
    bomb.write_text(BOMB)
    with pytest.raises(ConfigError, match=r"large\.yaml: has more than 1,000,000 bytes"):
        read_text(large)
    for file in (large, bomb):
        with pytest.raises(ConfigError, match=file.name):
            load_modalities(file)
    assert loaded(BOMB) == BOMB  # a text within a configuration stays a text
    parser = Parser("decur test")
    parser.add_argument("--options", type=dict)
    with pytest.raises(ConfigError, match="options"):
        parser.parse(["--options", BOMB])
    for value in ("{a: 1, a: 2}", "&a [*a]", "2024-13-45"):
        with pytest.raises(ConfigError, match=r"^--pretrain\.encoder\.options: "):
            compare(["--config=compare-demo", f"--pretrain.encoder.options={value}"])


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '[{"b": {"c": 1, "d": 2, "c": 1}}]'])
def test_a_key_that_json_names_twice_is_refused(text):
    with pytest.raises(ValueError, match=r"'[ac]' stands there twice"):
        parse_json(text)
    assert parse_json('{"a": {"b": 1}, "b": [1.5, null]}') == {"a": {"b": 1}, "b": [1.5, None]}
