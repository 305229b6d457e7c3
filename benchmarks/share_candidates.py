"""Ways to find the share of common dimensions, against each other and against a grid of shares.

    python benchmarks/share_candidates.py                    # one seed
    python benchmarks/share_candidates.py --seeds 0 1 2 --out candidates.json

Of 100 Gaussian factors of each of two sensors 10, 25, 50, 75 and 90 are shared. The same MLP is
trained with the same number of steps in every row:

* with a share of the grid from the first step to the last;
* counted: a training with all dimensions common comes first, of 15 % of the epochs, as
  `objective.common: auto` has it; the share is counted, a quarter at least, and training starts
  anew (the one row that takes more steps, 12 %);
* counted on the way, early: all dimensions common for a tenth of the epochs, then the share is
  counted, and training goes on from the same weights;
* counted on the way: the same after a third of the epochs;
* tested: all common for a tenth of the epochs; then, until a third of them, a dimension becomes
  unique where its correlation between the sensors is within what permutations give in two epochs
  on end, and common again where it is beyond twice that;
* gated: all common for a tenth of the epochs; then each dimension and sensor has a gate, which is
  trained with the rest; it closes as the temperature falls, and is rounded after a third.

Scores are R2 of a linear regression on embeddings of pairs that were not trained on, of the shared
and of a sensor's own factors, as means over both sensors; "all factors" is the mean over the 100
factors of a sensor, so shared ones weigh more where there are more of them. No share of the grid is
known beforehand: its best is the best of five whole runs.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LinearRegression
from torch import Tensor, nn

from decur.data import LinearGaussianFactors
from decur.data.generated.gaussian import VARIANCE
from decur.objectives import DeCUR
from decur.objectives.decur import SHARE
from decur.objectives.redundancy import standardise
from decur.pretrain.directions import count_directions
from decur.pretrain.share import counting_epochs

FACTORS, WIDTH, BATCH = 100, 128, 256
SHARED = (10, 25, 50, 75, 90)
GRID = (0.125, 0.25, 0.5, 0.75, 0.875)
LAMBDA = 0.0051
TENTH = 0.1  # of the epochs
RATE = 1e-3
HELD_OUT, PROBED = 2000, 4000  # pairs that find the share; that fit, and as many that test, a probe
SENSORS = ("x", "y")


class Pairs:
    """Factors and measurements of pairs, drawn as `LinearGaussianFactors` describes them."""

    def __init__(self, shared: int, seed: int) -> None:
        own = FACTORS - shared
        made = LinearGaussianFactors(8, shared, unique_dims=own, dim=FACTORS, seed=seed)
        self.own, self.shared, self.noise = own, shared, made.noise
        self.mixing = {name: torch.from_numpy(made.mixing[name]) for name in SENSORS}
        self.rng = torch.Generator().manual_seed(seed)

    def draw(self, count: int) -> dict[str, Tensor]:
        """Return factors of new pairs: `{"x": (N, own), "y": (N, own), "shared": (N, shared)}`."""
        sizes = {"x": self.own, "y": self.own, "shared": self.shared}
        scale = VARIANCE**0.5
        return {n: scale * torch.randn(count, k, generator=self.rng) for n, k in sizes.items()}

    def measure(self, factors: dict[str, Tensor], name: str, *, times: int = 1) -> Tensor:
        """Return a sensor's measurement of some pairs, the mean of so many: (N, 100)."""
        clean = torch.cat([factors[name], factors["shared"]], 1) @ self.mixing[name]
        noise = torch.randn(clean.shape, generator=self.rng)
        measured: Tensor = (clean + self.noise / times**0.5 * noise) / 4  # about unit variance
        return measured


class Networks(nn.Module):
    """An MLP and a linear projector for each sensor."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for name in SENSORS:
            layers: list[nn.Module] = []
            for columns in (FACTORS, width):
                layers += [nn.Linear(columns, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True)]
            self.add_module(name, nn.Sequential(*layers, nn.Linear(width, WIDTH, bias=False)))

    def embed(self, name: str, x: Tensor) -> Tensor:
        """Return the embedding (N, K) of measurements (N, 100)."""
        found: Tensor = self.get_submodule(name)(x)
        return found


def loss_of(views: dict[str, tuple[Tensor, Tensor]], common: Tensor) -> Tensor:
    """Return DeCUR's loss with a weight between common (1) and unique (0) for each dimension.

    Args:
        views: `{sensor: embeddings of both views}`, (N, K) each.
        common: (K,). With ones and zeros it is DeCUR (Eq. 6).
    """

    def correlation(a: Tensor, b: Tensor) -> Tensor:
        return standardise(a).T @ standardise(b) / len(a)  # (K, K)

    def off_diagonal(squares: Tensor) -> Tensor:
        return squares.sum() - squares.diagonal().sum()

    terms = []
    for first, second in views.values():
        c = correlation(first, second)
        terms.append((1 - c.diagonal()).square().sum() + LAMBDA * off_diagonal(c.square()))
    c = correlation(views["x"][0], views["y"][0])
    diagonal, unique = c.diagonal(), 1 - common
    terms.append((common * (1 - diagonal).square() + unique * diagonal.square()).sum())
    both = torch.outer(common, common) + torch.outer(unique, unique)  # (K, K)
    terms.append(LAMBDA * off_diagonal(both * c.square()))
    return torch.stack(terms).sum()


@dataclass
class Training:
    """A training, and what a way to find the share may look at and change.

    Args:
        pairs: that are drawn.
        networks: that are trained.
        optimizer: that trains them.
        epochs: in all.
        common: (K,) weights of the dimensions.
    """

    pairs: Pairs
    networks: Networks
    optimizer: torch.optim.Optimizer
    epochs: int
    common: Tensor

    def __post_init__(self) -> None:
        self.fresh = {name: value.clone() for name, value in self.networks.state_dict().items()}

    def set_share(self, share: float) -> None:
        """Make the first dimensions common, and the others unique."""
        self.common = (torch.arange(WIDTH) < round(share * WIDTH)).float()

    def start_anew(self) -> None:
        """Give the networks the weights that they had at first."""
        self.networks.load_state_dict(self.fresh)
        self.optimizer.state.clear()

    @torch.no_grad()
    def held_out(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return the embeddings of two measurements of pairs that are not trained on."""
        factors = self.pairs.draw(HELD_OUT)
        self.networks.eval()
        found = {}
        for name in SENSORS:
            a, b = (
                self.networks.embed(name, self.pairs.measure(factors, name)).numpy()
                for _ in range(2)
            )
            found[name] = (a, b)
        self.networks.train()
        return found


class Way:
    """A way to find the share: it is asked before each epoch.

    Args:
        share: from the first epoch on; by default all dimensions are common.
    """

    def __init__(self, share: float = 1.0) -> None:
        self.share = share

    def before(self, epochs: int) -> int:
        """Return how many epochs it trains before those that all ways have."""
        return 0

    def rate(self, epoch: float) -> float:
        """Return the factor of the learning rate after so many epochs."""
        return 1.0

    def begin(self, training: Training, epoch: int) -> None:
        """Change the weights of the dimensions before an epoch, from 0."""
        if epoch == 0:
            training.set_share(self.share)

    def parameters(self) -> list[nn.Parameter]:
        """Return what is trained beside the networks."""
        return []

    def weights(self, training: Training) -> Tensor:
        """Return the weights of the dimensions in a step: (K,)."""
        return training.common


class Apart(Way):
    """Count directions at the end of a short training, and start anew."""

    def before(self, epochs: int) -> int:
        """Return as many epochs as `auto` takes, of which an epoch here has 19 steps."""
        self.short = counting_epochs(epochs, 19)
        return self.short

    def begin(self, training: Training, epoch: int) -> None:
        """Count once."""
        super().begin(training, epoch)
        if epoch == self.short:
            training.set_share(count_directions(training.held_out(), None, 0).taken() or SHARE)
            training.start_anew()

    def rate(self, epoch: float) -> float:
        """Return half a cosine until directions are counted."""
        return 0.5 * (1 + math.cos(math.pi * epoch / self.short)) if epoch < self.short else 1.0


class OnTheWay(Way):
    """Count directions once, when all dimensions have been common for a part of the epochs."""

    def __init__(self, part: float) -> None:
        super().__init__()
        self.part = part

    def begin(self, training: Training, epoch: int) -> None:
        """Count after the warm-up."""
        super().begin(training, epoch)
        if epoch == max(1, round(self.part * training.epochs)):
            training.set_share(count_directions(training.held_out(), None, 0).share() or SHARE)


class Test(Way):
    """Test each dimension's correlation against permutations, until a third of the epochs."""

    def begin(self, training: Training, epoch: int) -> None:
        """Make dimensions unique that agree no more than by chance, twice on end."""
        super().begin(training, epoch)
        if epoch == 0:
            self.doubted = torch.zeros(WIDTH, dtype=torch.bool)
        if not max(1, round(TENTH * training.epochs)) <= epoch <= training.epochs // 3:
            return
        found = training.held_out()
        a, b = (torch.from_numpy(found[name][0]) for name in SENSORS)
        a, b = standardise(a), standardise(b)
        rng = torch.Generator().manual_seed(epoch)
        orders = [torch.randperm(len(a), generator=rng) for _ in range(20)]
        null = torch.stack([(a * b[order]).mean(0).abs() for order in orders]).amax(0)  # (K,)
        size = (a * b).mean(0).abs()
        within = size <= null
        common = training.common.bool()
        training.common = ((common & ~(within & self.doubted)) | (size > 2 * null)).float()
        self.doubted = within


class Gate(Way):
    """Train a gate for each dimension and sensor, and round it after a third of the epochs."""

    START, COLDEST, PENALTY = 1.0, 0.05, 0.3

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.Parameter(torch.full((2, WIDTH), self.START))
        self.temperature: float | None = None

    def parameters(self) -> list[nn.Parameter]:
        """Return the gates."""
        return [self.gates]

    def begin(self, training: Training, epoch: int) -> None:
        """Cool the gates, and round them at the end."""
        super().begin(training, epoch)
        first, last = max(1, round(TENTH * training.epochs)), training.epochs // 3
        if epoch == last:
            training.common = (self.open().detach() > 0.5).float()
        part = (epoch - first) / max(1, last - 1 - first)
        self.temperature = self.COLDEST**part if first <= epoch < last else None

    def open(self) -> Tensor:
        """Return how far each dimension is common: the product of the gates of both sensors."""
        return torch.sigmoid(self.gates / (self.temperature or self.COLDEST)).prod(0)

    def weights(self, training: Training) -> Tensor:
        """Return the gates while they are trained."""
        return training.common if self.temperature is None else self.open()


WAYS: dict[str, Callable[[], Way]] = {
    **{f"grid {share:.1%}": partial(Way, share) for share in GRID},
    "counted": Apart,
    "counted on the way, early": partial(OnTheWay, 0.1),
    "counted on the way": partial(OnTheWay, 1 / 3),
    "tested": Test,
    "gated": Gate,
}


def train(way: Way, shared: int, seed: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Train once; return the share in the end and the scores, in percent."""
    torch.manual_seed(seed)
    pairs = Pairs(shared, seed)
    factors = pairs.draw(arguments.samples)
    networks = Networks(arguments.width)
    optimizer = torch.optim.AdamW(networks.parameters(), lr=RATE)
    training = Training(pairs, networks, optimizer, arguments.epochs, torch.ones(WIDTH))
    gates = torch.optim.Adam(way.parameters(), lr=0.05) if way.parameters() else None
    steps = arguments.samples // BATCH
    for epoch in range(way.before(arguments.epochs) + arguments.epochs):
        way.begin(training, epoch)
        order = torch.randperm(arguments.samples, generator=pairs.rng)
        for step, rows in enumerate(order.split(BATCH)[:steps]):
            optimizer.param_groups[0]["lr"] = RATE * way.rate(epoch + step / steps)
            chosen = {name: f[rows] for name, f in factors.items()}
            views = {}
            for name in SENSORS:
                a, b = (networks.embed(name, pairs.measure(chosen, name)) for _ in range(2))
                views[name] = (a, b)
            weights = way.weights(training)
            loss = loss_of(views, weights)
            if weights.requires_grad:
                loss = loss + Gate.PENALTY * weights.sum()
            for each in filter(None, (optimizer, gates)):
                each.zero_grad()
            loss.backward()
            for each in filter(None, (optimizer, gates)):
                each.step()
    return {"share": 100 * float(training.common.mean()), **score(training)}


@torch.no_grad()
def score(training: Training) -> dict[str, float]:
    """Return R2 in percent: of shared factors and of own ones, by all dimensions and by a part."""
    training.networks.eval()
    factors = training.pairs.draw(2 * PROBED)
    common = training.common.bool().numpy()
    found: dict[str, list[float]] = {}
    for name in SENSORS:
        measured = training.pairs.measure(factors, name, times=16)
        z = training.networks.embed(name, measured).numpy()
        for factor, of, part in (
            ("shared", "shared", common),
            ("own", name, ~common),
        ):
            y = factors[of].numpy()
            for dims, key in ((np.ones(WIDTH, bool), factor), (part, f"{factor}, own part")):
                r2 = 0.0
                if dims.any():
                    line = LinearRegression().fit(z[:PROBED, dims], y[:PROBED])
                    r2 = float(line.score(z[PROBED:, dims], y[PROBED:]))
                found.setdefault(key, []).append(100 * r2)
    return {key: float(np.mean(values)) for key, values in found.items()}


def check_loss() -> None:
    """End where the loss with ones and zeros is not that of `DeCUR`."""
    z = torch.randn(4, 64, WIDTH)
    views = {"x": (z[0], z[1]), "y": (z[2], z[3])}
    common = (torch.arange(WIDTH) < 32).float()
    torch.testing.assert_close(loss_of(views, common), DeCUR(WIDTH, common=0.25)(views)["loss"])


def show(found: list[dict[str, float | str | int]], seeds: list[int]) -> None:
    """Print a table a true share, and how far each way is from the best of the grid."""

    def of(shared: int, way: str, key: str) -> np.ndarray:
        rows = [r for r in found if r["true"] == shared and r["way"] == way]
        return np.array([r[key] for r in sorted(rows, key=lambda r: int(r["seed"]))])

    def cell(values: np.ndarray) -> str:
        if len(values) == 1:
            return f"{values[0]:.1f}"
        return f"{values.mean():.1f} ± {values.std(ddof=1):.1f}"

    keys = ("share", "shared", "own", "shared, own part", "own, own part")
    for shared in SHARED:
        print(f"\n{shared} of {FACTORS} factors are shared\n")
        print("| way | share | shared factors | own factors | shared by common | own by unique |")
        print("| --- " + "| --: " * 5 + "|")
        for way in WAYS:
            print(f"| {way} | " + " | ".join(cell(of(shared, way, key)) for key in keys) + " |")
    print("\nHow far each way is behind the best share of the grid, by what is scored\n")
    print(
        "| way | error of the share | shared factors | own factors | mean of both | all factors |"
    )
    print("| --- | --: | --: | --: | --: | --: |")
    for way in WAYS:
        wrong = [abs(of(s, way, "share") - 100 * s / FACTORS).mean() for s in SHARED]
        behind = []
        for weight in (lambda s: 1.0, lambda s: 0.0, lambda s: 0.5, lambda s: s / FACTORS):

            def mean(s: int, name: str, weight: Callable[[int], float] = weight) -> float:
                both = weight(s) * of(s, name, "shared") + (1 - weight(s)) * of(s, name, "own")
                return float(both.mean())

            gaps = [max(mean(s, f"grid {g:.1%}") for g in GRID) - mean(s, way) for s in SHARED]
            behind.append(f"{np.mean(gaps):.1f} (at most {max(gaps):.1f})")
        print(f"| {way} | {np.mean(wrong):.1f} | " + " | ".join(behind) + " |")
    print(f"\nR2 and shares in percent; seeds {', '.join(map(str, seeds))}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--width", type=int, default=256, help="of the MLP's layers")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, help="JSON of all runs; what it holds is not run again")
    arguments = parser.parse_args()
    check_loss()
    found = []
    if arguments.out and arguments.out.exists():
        found = json.loads(arguments.out.read_text())
    done = {(r["seed"], r["true"], r["way"]) for r in found}
    for seed in arguments.seeds:
        for shared in SHARED:
            for name, make in WAYS.items():
                if (seed, shared, name) in done:
                    continue
                started = time.process_time()
                result = train(make(), shared, seed, arguments)
                seconds = time.process_time() - started
                found.append(
                    {"seed": seed, "true": shared, "way": name, "seconds": seconds, **result}
                )
                said = "  ".join(f"{key} {value:.1f}" for key, value in result.items())
                print(
                    f"seed {seed}  {shared} % shared  {name}: {said}  ({seconds:.0f} s)", flush=True
                )
                if arguments.out:
                    arguments.out.write_text(json.dumps(found, indent=1))
    show(found, arguments.seeds)


if __name__ == "__main__":
    main()
