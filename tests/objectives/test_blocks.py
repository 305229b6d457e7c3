"""Blocks of dimensions that some of several modalities share."""

import random
from itertools import accumulate, pairwise

import objective_references as references
import pytest
import torch
from objective_references import doubles, draw, gradients

from decur.errors import ConfigError
from decur.objectives import DeCUR
from decur.objectives.blocks import find_part, is_shared
from decur.objectives.redundancy import _Workspace
from decur.pretrain.configuration import _changes

NAMES = ["optical", "sar", "dem"]
BLOCKS = {"optical+sar+dem": 0.5, "sar+optical": 0.125, "optical+dem": 0.125}


@pytest.mark.parametrize("gram", [True, False])
@pytest.mark.parametrize("absent", [0, 0.3])
@pytest.mark.parametrize("options", [{}, {"intra": False, "lambda_common": 0.1}])
def test_blocks_agree_with_the_equations(options, absent, gram, monkeypatch):
    monkeypatch.setattr(_Workspace, "gram_is_cheaper", lambda self: gram)
    embeddings, present = draw(20, 32, names=NAMES, absent=absent)
    options = {"dim": 32, "blocks": BLOCKS, "lambda_unique": 0.3, **options}
    terms = DeCUR(**options)(embeddings, present)
    exact = doubles(embeddings)
    expected = references.decur(exact, present, **options)
    assert set(terms) == {"loss", *expected}
    for key, value in expected.items():
        assert terms[key].item() == pytest.approx(value.item(), rel=1e-5), key
    wanted = torch.cat(gradients(sum(expected.values()), exact)).float()
    found = torch.cat(gradients(terms["loss"], embeddings))
    assert (found - wanted).norm() < 1e-5 * wanted.norm()


def test_one_block_of_all_is_common_to_the_bit():
    embeddings, present = draw(20, 32, names=NAMES, absent=0.3)
    one = DeCUR(dim=32, blocks={"dem+sar+optical": 0.75})(embeddings, present)
    assert one == DeCUR(dim=32, common=0.75)(embeddings, present)


def test_dimensions_of_blocks_come_in_their_order_and_the_rest_is_unique():
    assert DeCUR(dim=32, blocks=BLOCKS).parts == {
        "optical+sar+dem": slice(0, 16),
        "sar+optical": slice(16, 20),
        "optical+dem": slice(20, 24),
        "unique": slice(24, 32),
    }
    thirds = DeCUR(dim=8, blocks={"a+b": 1 / 3, "b+c": 1 / 3, "a+c": 1 / 3}).parts
    assert [(part.start, part.stop) for part in thirds.values()] == [(0, 3), (3, 5), (5, 8)]


@pytest.mark.parametrize(
    ("dim", "shares", "expected"),
    [
        (8, [1.5 / 8, 1 / 8], [2, 1]),  # ends at 1.5 and 2.5, which both round to 2
        (10, [0.35, 0.1], [4, 1]),
        (10, [0.05, *[0.1] * 9], [0, *[1] * 9]),
        (6, [1 / 6] * 6, [1] * 6),
        (16, [1.5 / 16, 1 / 16, 1 / 16, 2.5 / 16, 10 / 16], [2, 1, 1, 2, 10]),
    ],
)
def test_a_block_that_asks_for_one_dimension_gets_it(dim, shares, expected):
    names = ["a+b", "a+c", "b+c", "a+d", "b+d", "c+d", "a+e", "b+e", "c+e", "d+e"]
    blocks = dict(zip(names, shares, strict=False))
    if 0 in expected:  # half a dimension is still refused
        with pytest.raises(
            ConfigError, match=r"objective.blocks: 'a\+b' gets fewer than one of 10"
        ):
            DeCUR(dim=dim, blocks=blocks)
    else:
        parts = DeCUR(dim=dim, blocks=blocks).parts
        assert [parts[name].stop - parts[name].start for name in blocks] == expected


def test_layouts_are_those_of_rounded_ends():
    drawn = random.Random(0)
    for _ in range(500):
        dim, few = drawn.randint(4, 64), drawn.randint(1, 4)
        shares = [drawn.randint(1, 8) / 32 for _ in range(few)]
        ends = [0, *(round(end * dim) for end in accumulate(shares))]
        wanted = [b - a for a, b in pairwise(ends)]
        if min(wanted):
            names = ["a+b", "a+c", "b+c", "a+d"]
            parts = DeCUR(dim=dim, blocks=dict(zip(names, shares, strict=False))).parts
            found = [d.stop - d.start for name, d in parts.items() if name != "unique"]
            assert found == wanted


def test_terms_are_divided_by_the_dimensions_of_their_pair():
    objective = DeCUR(dim=32, blocks=BLOCKS)
    terms = {
        "common/optical-sar": 20.0,
        "common/sar-dem": 16.0,
        "unique/optical-dem": 12.0,
        "unique/sar-dem": 16.0,
        "intra/dem": 32.0,
    }
    found = objective.normalised_terms({k: torch.tensor(v) for k, v in terms.items()})
    assert all(value == 1 for value in found.values())
    dashed = DeCUR(dim=8, blocks={"s-1+s-2": 0.5})
    assert dashed.dimensions("common", "s-1-s-2") == dashed.dimensions("unique", "s-1-s-2") == 4
    assert dashed.dimensions("unique", "s-1-other") == 8


def test_what_a_name_says():
    assert is_shared("common", "a", "b") and not is_shared("unique", "a", "b")
    assert is_shared("a+b+c", "c", "a") and not is_shared("a+b", "a", "c")
    parts = ["optical+sar", "unique"]
    assert find_part("block:sar+optical", parts) == find_part("optical+sar", parts) == parts[0]
    assert find_part("unique", parts) == "unique" and find_part("common", parts) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": "half"}, r"such as \{optical\+sar: 0.5\}; is 'half'"),
        ({"blocks": ["a+b"]}, r"such as \{optical\+sar: 0.5\}"),
        ({"blocks": {"a+b": "half"}}, "share of the dimensions"),
        ({"blocks": {"a": 0.5}}, "'a' must name two sensors or more"),
        ({"blocks": {"a+a": 0.5}}, r"'a\+a' must name two sensors or more, each once"),
        ({"blocks": {"a+": 0.5}}, r"'a\+' must name two"),
        ({"blocks": {"a + b": 0.5}}, r"^objective.blocks: 'a \+ b' has a blank .*'a '.*'a\+b'$"),
        ({"blocks": {"a+b": 0.5, "b+a": 0.1}}, r"'a\+b' and 'b\+a' are the same block"),
        ({"blocks": {"a+b": 0.75, "a+c": 0.5}}, "add up to 1.25; lower"),
        ({"blocks": {"a+b": 0.5, "a+c": 0.01}}, r"'a\+c' gets fewer than one of 8 dim.*width"),
        ({"blocks": {"a+b": 0.0}}, r"'a\+b' is a share"),
        ({"blocks": {"a+b": float("nan")}}, r"'a\+b' is a share"),
        (
            {"blocks": {"a+b": 0.5}, "common": 0.5},
            "objective.common 0.5 and objective.blocks both say.*give one",
        ),
        ({"blocks": {"a+b": 0.5}, "decouple": False}, "decouple: false"),
    ],
)
def test_blocks_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ConfigError, match=message) as error:
        DeCUR(dim=8, **options)
    assert "\n" not in str(error.value)


def test_blocks_of_unknown_sensors_are_refused():
    embeddings, _ = draw(4, 8, names=NAMES)
    with pytest.raises(ConfigError, match=r"'sar\+lidar' names lidar, which is not.*optical, sar"):
        DeCUR(dim=8, blocks={"sar+lidar": 0.5})(embeddings)


def test_a_plus_in_a_sensors_name_is_refused_beside_blocks_alone():
    names = ["a+b", "a", "b"]
    DeCUR(8).check_modalities(names)
    with pytest.raises(ConfigError, match=r"sensor 'a\+b' holds a \+.*rename") as error:
        DeCUR(8, blocks={"a+b": 0.5}).check_modalities(names)
    assert "\n" not in str(error.value)


def test_the_order_of_blocks_is_part_of_a_run():
    def configuration(*names):
        blocks = "".join(f"\n      {name}: {share}" for name, share in names)
        return f"objective:\n  init_args:\n    blocks:{blocks}\n"

    one, other = ("x+y+z", 0.5), ("y+x", 0.25)
    ((key, before, now),) = _changes(
        configuration(one, other), configuration(other, one), whole=True
    )
    assert key == "objective.init_args.blocks" and before == [one, other] == now[::-1]
    assert not list(_changes(*[configuration(one, other)] * 2, whole=True))
    (change,) = _changes(configuration(one), "objective: {init_args: {blocks: null}}", whole=True)
    assert change[1:] == ([one], None)
