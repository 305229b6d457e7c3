"""Facts about every objective; a new one is tested by being listed (and given its reference)."""

from itertools import combinations

import objective_references as references
import pytest
import torch
from objective_references import doubles, draw, gradients, leaves

from decur.errors import ConfigError
from decur.objectives import CLIP, DeCUR, Objective, list_objectives
from decur.objectives.redundancy import _Workspace

OBJECTIVES = list_objectives()
SHAPES = {"N<K": (12, 40), "N>K": (50, 16)}


@pytest.fixture(params=OBJECTIVES)
def method(request):
    return request.param


def close(found, expected, tolerance=1e-5):
    """Relative to the norm, in float64."""
    error = (found.detach().double() - expected.detach().double()).norm()
    assert error <= tolerance * expected.norm() + 1e-12, f"off by {error / expected.norm():.1e}"


def agree(method, embeddings, present, **options):
    """Every term, the loss and its gradient, against the transcription."""
    dim = leaves(embeddings)[0].shape[1]
    terms = OBJECTIVES[method](dim=dim, **options)(embeddings, present)
    exact = doubles(embeddings)
    expected = getattr(references, method)(exact, present, dim=dim, **options)
    assert set(terms) == {"loss", *expected}
    for key, value in expected.items():
        assert terms[key].dtype == torch.float32 and terms[key].shape == ()
        close(terms[key], value)
        wanted = torch.stack(gradients(value, exact))
        close(torch.stack(gradients(terms[key], embeddings)), wanted)
    total = sum(expected.values())
    close(terms["loss"], total)
    close(torch.stack(gradients(terms["loss"], embeddings)), torch.stack(gradients(total, exact)))


@pytest.mark.parametrize("absent", [0, 0.3])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("names", [["s1", "s2"], ["s1", "s2", "dem"], ["s1"]])
def test_agrees_with_the_equations(method, names, shape, absent):
    if len(names) < OBJECTIVES[method].least_modalities:
        pytest.skip("needs two modalities")
    agree(method, *draw(*SHAPES[shape], names=names, absent=absent))


@pytest.mark.parametrize("absent", [0, 0.3])
@pytest.mark.parametrize("names", [["s1", "s2"], ["s1", "s2", "dem"], ["s1"]])
@pytest.mark.parametrize("name", ["simclr", "clip", "vicreg"])
def test_contrast_also_within_each_modality(name, names, absent):
    if len(names) < OBJECTIVES[name].least_modalities:
        pytest.skip("needs two modalities")
    agree(name, *draw(12, 40, names=names, absent=absent), intra=True)


@pytest.mark.parametrize("gram", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("absent", [0, 0.3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"common": 0.5, "lambda_common": 0.1, "lambda_unique": 2.0, "lambda_intra": 0.0},
        {"common": 1.0},
        {"common": 0.0},
        {"intra": False},
        {"decouple": False},
    ],
)
def test_decur_in_both_forms(options, absent, shape, gram, monkeypatch):
    monkeypatch.setattr(_Workspace, "gram_is_cheaper", lambda self: gram)
    agree("decur", *draw(*SHAPES[shape], absent=absent), **options)


@pytest.mark.parametrize("gram", [True, False])
@pytest.mark.parametrize(("n", "k"), [(96, 100), (200, 100)])
def test_near_the_optimum(n, k, gram, monkeypatch):
    """Where the off-diagonal is a small difference of large numbers: like views, white columns."""
    monkeypatch.setattr(_Workspace, "gram_is_cheaper", lambda self: gram)
    white = torch.linalg.qr(torch.randn(max(n, k), max(n, k), dtype=torch.float64)).Q[:n, :k]
    white *= max(n, k) ** 0.5
    views = [(white + 0.1 * torch.randn(n, k)).float().requires_grad_() for _ in range(4)]
    embeddings = {"s1": tuple(views[:2]), "s2": tuple(views[2:])}
    agree("decur", embeddings, None, lambda_common=1e-4, lambda_intra=1e-4)


def test_intra_and_decouple_off_is_cross_modal_barlow_twins():
    embeddings, present = draw(12, 40, absent=0.2)
    plain = OBJECTIVES["barlow_twins"](dim=40)(embeddings, present)
    ablated = DeCUR(dim=40, intra=False, decouple=False)(embeddings, present)
    assert {k: v.item() for k, v in plain.items()} == {k: v.item() for k, v in ablated.items()}


def test_small_batches_never_make_k_by_k_matrices(method):
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return out

    embeddings, _ = draw(4, 1000)
    with Watch():
        OBJECTIVES[method](dim=1000)(embeddings)["loss"].backward()
    assert largest <= 2 * 4 * 1000


def test_the_form_is_chosen_by_cost(monkeypatch):
    chosen = []
    for name in ("squares_by_gram", "off_diagonal_squares"):
        original = getattr(_Workspace, name)
        monkeypatch.setattr(
            _Workspace, name, lambda *a, n=name, f=original: chosen.append(n) or f(*a)
        )
    for n, k in ((8, 100), (100, 8)):
        DeCUR(dim=k)(draw(n, k)[0])
    assert chosen == ["squares_by_gram"] * 4 + ["off_diagonal_squares"] * 4


def test_as_in_the_architecture():
    z1, z1b, z2, z2b = torch.randn(4, 4, 8192, requires_grad=True)
    terms = DeCUR(dim=8192, common=0.875)({"s1": (z1, z1b), "s2": (z2, z2b)})
    terms["loss"].backward()
    assert list(terms) == ["loss", "intra/s1", "intra/s2", "common/s1-s2", "unique/s1-s2"]


def test_loss_is_the_sum_of_terms(method):
    terms = OBJECTIVES[method](dim=24)(draw(12, 24, names=("a", "b", "c"))[0])
    loss = terms.pop("loss")
    torch.testing.assert_close(loss, torch.stack(list(terms.values())).sum())


@pytest.mark.parametrize("shape", SHAPES)
def test_all_present_equals_none(method, shape):
    embeddings, _ = draw(*SHAPES[shape])
    n, k = SHAPES[shape]
    objective = OBJECTIVES[method](dim=k)
    everyone = {name: torch.ones(n, dtype=torch.bool) for name in embeddings}
    with_mask, without = objective(embeddings, everyone), objective(embeddings)
    for key in without:
        assert with_mask[key].item() == without[key].item()


@pytest.mark.parametrize("filling", [torch.nan, torch.inf, -1e30, 1e3])
@pytest.mark.parametrize("shape", SHAPES)
def test_absent_samples_do_not_leak(method, shape, filling):
    embeddings, present = draw(*SHAPES[shape], absent=0.3)
    objective = OBJECTIVES[method](dim=SHAPES[shape][1])
    filled = {
        name: tuple(
            torch.where(present[name][:, None], z.detach(), filling).requires_grad_() for z in views
        )
        for name, views in embeddings.items()
    }
    clean, dirty = objective(embeddings, present), objective(filled, present)
    for key in clean:
        assert clean[key].item() == dirty[key].item()
    wanted, found = gradients(clean["loss"], embeddings), gradients(dirty["loss"], filled)
    for w, f in zip(wanted, found, strict=True):
        assert torch.equal(w, f)
    for name, views in zip(filled, (found[:2], found[2:]), strict=True):
        assert all((g[~present[name]] == 0).all() for g in views)


@pytest.mark.parametrize("both", [0, 1])
def test_fewer_than_two_samples_make_a_term_zero(method, both):
    """s1 is there 4 times, s2 `both` times."""
    embeddings, _ = draw(6, 10)
    present = {"s1": torch.tensor([1, 1, 1, 1, 0, 0]) > 0, "s2": torch.arange(6) < both}
    objective = OBJECTIVES[method](dim=10)
    terms = objective(embeddings, present)
    for key, value in terms.items():
        assert value.isfinite()
        if "s2" in key:
            assert value == 0
            assert all((g == 0).all() for g in gradients(value, embeddings))
        elif "s1" in key:
            assert value != 0
    terms["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in objective.parameters())
    assert all(z[0].grad is not None and z[0].grad.isfinite().all() for z in embeddings.values())


@pytest.mark.parametrize("n", [0, 1, 2])
def test_tiny_batches_are_finite(method, n):
    embeddings, _ = draw(n, 5)
    terms = OBJECTIVES[method](dim=5)(embeddings)
    terms["loss"].backward()
    assert all(value.isfinite() for value in terms.values())
    assert n == 2 or terms["loss"] == 0
    assert all(z.grad is None or z.grad.isfinite().all() for z in leaves(embeddings))


def test_constant_embeddings_are_finite(method):
    embeddings = {name: tuple(torch.ones(2, 6, 4, requires_grad=True).unbind()) for name in "ab"}
    loss = OBJECTIVES[method](dim=4)(embeddings)["loss"]
    assert loss.isfinite() and all(g.isfinite().all() for g in gradients(loss, embeddings))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_float32_inside_under_autocast(method, shape, dtype):
    n, k = SHAPES[shape]
    embeddings, _ = draw(n, k)
    embeddings = {
        name: tuple(z.detach().to(dtype).requires_grad_() for z in views)
        for name, views in embeddings.items()
    }
    expected = getattr(references, method)(doubles(embeddings), dim=k)
    with torch.autocast("cpu", dtype=dtype):
        terms = OBJECTIVES[method](dim=k)(embeddings)
        found = gradients(terms["loss"], embeddings)
    for key, value in expected.items():
        assert terms[key].dtype == torch.float32
        close(terms[key], value)
    exact = doubles(embeddings)
    wanted = gradients(sum(getattr(references, method)(exact, dim=k).values()), exact)
    step = torch.finfo(dtype).eps  # of the gradient as it leaves, in the inputs' own type
    for f, w in zip(found, wanted, strict=True):
        assert f.dtype == dtype and (w.norm() == 0 or (f - w).norm() < step * w.norm())


def test_clip_learns_its_temperature():
    embeddings, _ = draw(12, 8)
    objective = CLIP(dim=8, temperature=0.1)
    objective(embeddings)["loss"].backward()
    scale = torch.tensor(10.0, dtype=torch.float64, requires_grad=True)
    references.clip(doubles(embeddings), dim=8, temperature=1 / scale)["infonce/s1-s2"].backward()
    close(objective.log_scale.grad, scale.grad * 10)  # of the logarithm


def test_clip_clamps_its_scale_and_keeps_its_gradient():
    embeddings, _ = draw(12, 8)
    objective = CLIP(dim=8)
    with torch.no_grad():
        objective.log_scale.fill_(10.0)
    objective(embeddings)["loss"].backward()
    assert objective.log_scale.exp().item() == pytest.approx(100)
    assert objective.log_scale.grad != 0


def test_normalised_terms():
    terms = {
        "loss": torch.ones(()),
        "intra/s1": torch.tensor(8.0, requires_grad=True),
        "common/s1-s2": torch.tensor(6.0),
        "unique/s1-s2": torch.tensor(4.0),
    }
    found = DeCUR(dim=8, common=0.75).normalised_terms(terms)
    assert found == {"intra/s1": 1, "common/s1-s2": 1, "unique/s1-s2": 2}
    assert not found["intra/s1"].requires_grad
    assert CLIP(dim=8).normalised_terms({"infonce/s1-s2": torch.tensor(3.0)}) == {
        "infonce/s1-s2": 3
    }


@pytest.mark.parametrize(
    ("common", "parts"),
    [
        (0.875, {"common": slice(0, 7), "unique": slice(7, 8)}),
        (1.0, {"common": slice(0, 8)}),
        (0.0, {"unique": slice(0, 8)}),
    ],
)
def test_parts(common, parts):
    assert DeCUR(dim=8, common=common).parts == parts
    assert DeCUR(dim=8, common=common, decouple=False).parts == {"common": slice(0, 8)}


def test_every_objective_describes_itself(method):
    objective = OBJECTIVES[method](dim=6)
    assert isinstance(objective, Objective)
    assert objective.dim == 6 and objective.parts
    assert "batch" in objective.needs_whole_batch


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("decur", {"common": 1.2}, r"common .* \[0, 1\]; is 1.2"),
        ("decur", {"common": float("nan")}, r"common .* \[0, 1\]"),
        ("decur", {"lambda_unique": -1.0}, "lambda_unique"),
        ("barlow_twins", {"lambda_": -1.0}, "lambda_"),
        ("vicreg", {"covariance": -1.0}, "covariance"),
        ("simclr", {"temperature": 0.0}, "temperature"),
        ("clip", {"temperature": 0.001}, "temperature"),
        ("simclr", {"dim": 0}, "dim"),
    ],
)
def test_bad_options(method, options, message):
    with pytest.raises(ConfigError, match=message) as error:
        OBJECTIVES[method](**options)
    assert "\n" not in str(error.value)


def test_bad_embeddings(method):
    objective = OBJECTIVES[method](dim=4)
    z, mask = torch.randn(3, 4), torch.ones(3, dtype=torch.bool)
    good = {"s1": (z, z), "s2": (z, z)}
    for embeddings, present, message in (
        ({}, None, "at least"),
        ({"s1": (z, z), "s2": (z[:, :3], z)}, None, r"'s2' have shape \(3, 3\).*\(N, 4\)"),
        ({"s1": (z, z), "s2": (z[:2], z[:2])}, None, "'s2' hold 2 samples, others 3"),
        ({"s1": (z, z), "s2": (z,)}, None, "'s2': needs two views"),
        (good, {"s1": mask}, "lacks modality 's2'"),
        (good, {"s1": mask, "s2": mask.float()}, "'s2' must be bool"),
        (good, {"s1": mask, "s2": mask[:2]}, r"'s2' must be bool of shape \(3,\)"),
    ):
        with pytest.raises(ConfigError, match=message):
            objective(embeddings, present)


@pytest.mark.parametrize("method", ["decur", "clip"])
def test_cross_modal_methods_refuse_one_modality(method):
    z = torch.randn(3, 4)
    with pytest.raises(ConfigError, match=r"at least 2, got s1; .* train on one"):
        OBJECTIVES[method](dim=4)({"s1": (z, z)})


def test_clip_can_have_one_direction_and_a_temperature_that_stays():
    """The formula of the authors' clip.py: cross entropy of the first sensor's rows."""
    torch.manual_seed(0)
    a, b = torch.randn(2, 6, 4)
    objective = CLIP(dim=4, temperature=1.0, symmetric=False, learned=False)
    assert not list(objective.parameters())
    za, zb = (x / x.norm(dim=1, keepdim=True) for x in (a, b))
    expected = -(za @ zb.T).log_softmax(1).diagonal().mean()
    terms = objective({"s1": (a, a), "s2": (b, b)})
    torch.testing.assert_close(terms["infonce/s1-s2"], expected)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["a", "b-c", "a-b", "c"],
            r"'a' and 'b-c' would have .* as 'a-b' and 'c', 'a-b-c'; rename",
        ),
        (["a", "b", "a-b"], r"'a-b' would have the same name as 'a' and 'b', 'a-b'; rename"),
        (["a-b", "b-a", "a"], r"'a-b' and 'a' would .* as 'a' and 'b-a', 'a-b-a'; rename"),
        (["s-1", "s-2", "s-1-b", "a-a", "a"], None),
    ],
)
def test_names_by_which_a_pair_would_be_lost_are_refused(method, names, message):
    objective = OBJECTIVES[method](dim=8)
    if message is None:
        terms = objective(draw(6, 8, names=names)[0])
        pairs = {f"{a}-{b}" for a, b in combinations(names, 2)}
        assert pairs <= {key.partition("/")[2] for key in terms}
        return
    with pytest.raises(ConfigError, match=message) as error:
        objective(draw(6, 8, names=names)[0])
    assert "\n" not in str(error.value)
