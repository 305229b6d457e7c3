"""Float64 transcriptions of the published equations, for samples picked by plain indexing."""

from itertools import combinations

import torch


def draw(n, k, names=("s1", "s2"), absent=0.0, seed=0):
    """Correlated embeddings as leaves, and masks (None if nothing is absent)."""
    generator = torch.Generator().manual_seed(seed)
    scene = torch.randn(n, k, generator=generator)

    def view():
        noise = torch.randn(n, k, generator=generator)
        return (0.7 * scene + 0.6 * noise + 0.3).requires_grad_()

    embeddings = {name: (view(), view()) for name in names}
    if not absent:
        return embeddings, None
    return embeddings, {name: torch.rand(n, generator=generator) >= absent for name in names}


def leaves(embeddings):
    return [z for views in embeddings.values() for z in views]


def doubles(embeddings):
    """The same values as float64 leaves."""
    return {
        name: tuple(z.detach().double().requires_grad_() for z in views)
        for name, views in embeddings.items()
    }


def gradients(loss, embeddings):
    """Of the loss; zeros for what it does not depend on."""
    return torch.autograd.grad(
        loss, leaves(embeddings), allow_unused=True, materialize_grads=True, retain_graph=True
    )


def rows(present, *names):
    if present is None:
        return slice(None)
    keep = present[names[0]]
    for name in names[1:]:
        keep = keep & present[name]
    return keep


def pairs(embeddings, present, intra=False):
    """Key, za, zb: first views of each two modalities, or the two views of a single one.

    With `intra`, also the two views of each.
    """
    if intra and len(embeddings) > 1:
        for name, (a, b) in embeddings.items():
            keep = rows(present, name)
            yield name, a[keep], b[keep]
    if len(embeddings) == 1:
        ((name, (a, b)),) = embeddings.items()
        keep = rows(present, name)
        yield name, a[keep], b[keep]
        return
    for a, b in combinations(embeddings, 2):
        keep = rows(present, a, b)
        yield f"{a}-{b}", embeddings[a][0][keep], embeddings[b][0][keep]


def standardise(z):
    z = z - z.mean(0)
    return z / (z.square().mean(0) + 1e-5).sqrt()


def correlation(za, zb):
    return standardise(za).T @ standardise(zb) / len(za)


def towards(c, target, weight):
    off = ~torch.eye(len(c), dtype=torch.bool)
    return (target - c.diagonal()).square().sum() + weight * c[off].square().sum()


def decur(
    embeddings,
    present=None,
    *,
    dim,
    common=0.875,
    lambda_common=0.0051,
    lambda_unique=0.0051,
    lambda_intra=0.0051,
    intra=True,
    decouple=True,
    blocks=None,
):
    kc = round(common * dim) if decouple else dim

    def is_common(i, key):
        """Whether a pair of modalities is to agree in dimension i."""
        if blocks is None:
            return i < kc
        start = 0
        for name, share in blocks.items():
            stop = start + round(share * dim)
            if start <= i < stop:
                return all(sensor in name.split("+") for sensor in key.split("-"))
            start = stop
        return False

    terms = {}
    for name, (a, b) in embeddings.items():
        keep = rows(present, name)
        if intra:
            terms[f"intra/{name}"] = towards(correlation(a[keep], b[keep]), 1, lambda_intra)
    for key, za, zb in pairs(embeddings, present):
        c = correlation(za, zb)
        common_dims = torch.tensor([is_common(i, key) for i in range(dim)])
        if common_dims.any():
            terms[f"common/{key}"] = towards(c[common_dims][:, common_dims], 1, lambda_common)
        if not common_dims.all():
            terms[f"unique/{key}"] = towards(c[~common_dims][:, ~common_dims], 0, lambda_unique)
    return terms


def barlow_twins(embeddings, present=None, *, dim, lambda_=0.0051):
    term = "common" if len(embeddings) > 1 else "intra"
    return {
        f"{term}/{key}": towards(correlation(za, zb), 1, lambda_)
        for key, za, zb in pairs(embeddings, present)
    }


def vicreg(embeddings, present=None, *, dim, invariance=25, variance=25, covariance=1, intra=False):
    """Bardes et al. 2021, Eq. 1 to 6, with the halves of its reference implementation."""
    terms = {}

    def add(key, value):
        terms[key] = terms.get(key, 0) + value

    for key, za, zb in pairs(embeddings, present, intra):
        add(f"invariance/{key}", invariance * (za - zb).square().mean())
    single = len(embeddings) == 1
    for name, views in embeddings.items():
        partners = 1 if single else len(embeddings) - 1
        for z, times in zip(
            views, (partners + (intra and not single), single or intra), strict=True
        ):
            if not times:
                continue
            z = z[rows(present, name)]
            std = (z.var(0) + 1e-4).sqrt()
            c = torch.cov(z.T)
            off = c - c.diagonal().diag()
            add(f"variance/{name}", times * variance * (1 - std).clamp_min(0).mean() / 2)
            add(f"covariance/{name}", times * covariance * off.square().sum() / dim)
    return terms


def unit(z):
    return z / z.norm(dim=1, keepdim=True)


def simclr(embeddings, present=None, *, dim, temperature=0.5, intra=False):
    """Chen et al. 2020, Eq. 1, one anchor at a time."""
    terms = {}
    for key, za, zb in pairs(embeddings, present, intra):
        z, n = torch.cat([unit(za), unit(zb)]), len(za)
        losses = []
        for i in range(2 * n):
            others = [j for j in range(2 * n) if j != i]
            similar = (z[others] @ z[i] / temperature).exp()
            losses.append(
                -((z[(i + n) % (2 * n)] @ z[i] / temperature).exp() / similar.sum()).log()
            )
        terms[f"infonce/{key}"] = torch.stack(losses).mean()
    return terms


def clip(embeddings, present=None, *, dim, temperature=0.07, intra=False):
    """Radford et al. 2021, Fig. 3."""
    terms = {}
    for key, za, zb in pairs(embeddings, present, intra):
        p = (unit(za) @ unit(zb).T / temperature).exp()
        forth, back = (p / p.sum(axis, keepdim=True) for axis in (1, 0))
        terms[f"infonce/{key}"] = -(forth.diagonal().log() + back.diagonal().log()).mean() / 2
    return terms
