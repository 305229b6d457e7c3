"""What a base install does without extras: everything from PNG pairs on, and the rest says what."""

import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image

import decur

ROOT = Path(decur.__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OLD = Path(__file__).parent / "fixtures" / "v0.1"

# Each extra but those for tests, with what asks for it: code that has to end with its name.
ASKS = {
    "eo": "decur.PairedFolder(here / 'rasters')[0]",
    "rgbd": "decur.data.files.read_image(here / 'a.h5')",
    "vector": "decur.data.vectors._read_package(here / 'a.gpkg')",
    "pack": "main(['pack', '--data.root', 'pairs', '--out', 'packed'])",
    "mit": "decur.build_encoder('mit_b0', 3)",
    "export": "main(['export', encoder, '--format', 'onnx', '--out', 'a.onnx'])",
    "embed": "main(['embed', '--encoders', 'run', '--data.root', 'pairs', '--out', 'emb'])",
    "geo": "decur.build_encoder('torchgeo:dofa_base_patch16_224', 2, wavelengths=[1, 2])",
    "explain": "main(['explain', 'run', '--only', 'points'])",
}
WORK = """
import sys
from pathlib import Path
import decur
from decur.cli import main
here, encoder = Path.cwd(), "run/encoders/rgb.safetensors"
small = ["--encoder.name", "test_resnet", "--views.size", "32", "--projector.width", "8"]
fast = ["--loader.batch_size", "4", "--loader.workers", "0", "--trainer.accelerator", "cpu"]
main(["pretrain", "--data.root", "pairs", "--run", "run", *small, *fast,
      "--trainer.max_epochs", "1"])
main(["transfer", "--encoders", "run", "--data.root", "pairs", "--target", "cover",
      "--run", "fit", *fast[:4]])
main(["export", "run", "--format", "hub", "--out", "hub", "--scores", "fit"])
main(["export", encoder, "--format", "timm", "--out", "rgb.pth"])
main(["stats", "pairs"])
for extra, ask in {asks!r}.items():
    try:
        exec(ask)
    except decur.errors.DecurError as error:
        print("ASKED", extra, error)
    except SystemExit as error:
        print("ASKED", extra, "see above", error.code, file=sys.stderr)
    else:
        print("ASKED", extra, "did not need it")
print("LOADED", *sorted({{name.partition(".")[0] for name in sys.modules}}))
"""


def needed(requirements: list[str]) -> Iterator[str]:
    """The distributions that requirements bring with them."""
    stack, seen = [Requirement(text) for text in requirements], set()
    while stack:
        wanted = stack.pop()
        key = (wanted.name.lower(), *sorted(wanted.extras))
        applies = wanted.marker is None or any(
            wanted.marker.evaluate({"extra": extra}) for extra in (*wanted.extras, "")
        )
        if key in seen or not applies:
            continue
        seen.add(key)
        try:
            found = distribution(wanted.name)
        except PackageNotFoundError:  # for another system
            continue
        yield wanted.name
        for text in found.requires or ():
            inner = Requirement(text)
            if inner.marker is None or any(
                inner.marker.evaluate({"extra": extra}) for extra in (*wanted.extras, "")
            ):
                inner.marker = None
                stack.append(inner)


# Hides packages from a process, as if they were not installed.
HIDE = """
import sys
modules, distributions = {modules!r}, {distributions!r}
class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, *others):
        if name.partition(".")[0] not in modules:
            return self.finder.find_spec(name, *others)
    def find_distributions(self, context, *others):
        found = getattr(self.finder, "find_distributions", lambda *wanted: [])(context, *others)
        return [each for each in found if each.name not in distributions]
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = map(Hiding, sys.meta_path)
"""


def in_this_environment(folder: Path) -> tuple[list[str], dict[str, str]]:
    """Python and its variables, with all packages hidden that a base install does not bring."""
    base = {name.lower().replace("_", "-") for name in needed(PROJECT["dependencies"])}
    hidden = {
        module: names
        for module, names in packages_distributions().items()
        if base.isdisjoint(name.lower().replace("_", "-") for name in names)
    }
    del hidden["decur"]
    names = {name for each in hidden.values() for name in each}
    hook = HIDE.format(modules={*hidden}, distributions=names)
    (folder / "sitecustomize.py").write_text(hook)
    path = [str(folder), str(Path(decur.__file__).parents[1])]
    return [sys.executable], {"PYTHONPATH": os.pathsep.join(path)}


def in_a_new_environment(folder: Path) -> tuple[list[str], dict[str, str]]:
    """Python of a new environment into which pip has installed decur without extras."""
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = str(folder / "venv" / "bin" / "python")
    done = subprocess.run([python, "-m", "pip", "install", "-q", ROOT], capture_output=True)
    if done.returncode:
        pytest.skip("pip has no packages here")
    return [python], {}


@pytest.fixture(
    scope="module",
    params=[in_this_environment, pytest.param(in_a_new_environment, marks=pytest.mark.slow)],
)
def worked(request, tmp_path_factory):
    """What a process without the extras says of the work, and where it has done it."""
    python, variables = request.param(tmp_path_factory.mktemp("packages"))
    here = tmp_path_factory.mktemp("work")
    rng = np.random.default_rng(0)
    for sensor, shape in (("rgb", (32, 32, 3)), ("dem", (32, 32))):
        for number in range(12):
            path = here / "pairs" / sensor / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, shape, np.uint8)).save(path)
    rows = [f"{number:02},{'ab'[number % 2]}" for number in range(12)]
    (here / "pairs" / "labels.csv").write_text("\n".join(["id,cover", *rows]))
    for name in ("rasters/rgb/a.tif", "rasters/dem/a.tif", "a.h5", "a.gpkg"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(b"II*\0 and more")  # an empty file is none
    plain = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*python, "-c", WORK.format(asks=ASKS)],
        cwd=here,
        env=plain | variables,
        text=True,
        capture_output=True,
    )
    return done, here


def test_png_pairs_are_trained_transferred_and_exported(worked):
    done, here = worked
    assert done.returncode == 0, done.stderr[-2000:]
    assert (here / "run" / "report.html").is_file() and (here / "fit" / "results.json").is_file()
    assert "accuracy of cover" in (here / "hub" / "README.md").read_text()
    assert (here / "hub" / "dem" / "model.safetensors").is_file() and (here / "rgb.pth").is_file()


def test_extras_are_not_there_and_each_is_named_with_its_command(worked):
    done, _ = worked
    loaded = next(line for line in done.stdout.splitlines() if line.startswith("LOADED")).split()
    assert not {"rasterio", "matplotlib", "pyarrow", "onnx", "faiss", "captum"} & {*loaded}
    extras = PROJECT["optional-dependencies"].keys() - {"dev", "docs"}
    assert extras == ASKS.keys()
    said = f"{done.stdout}\n{done.stderr}"
    for extra in extras:
        assert f"pip install 'decur[{extra}]'" in said, extra
    assert "did not need it" not in said
