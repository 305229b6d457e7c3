"""The commands of the README and of the tutorials run as written, on tiny data."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import rasterio
from make_folder import write
from make_ombria import make_ombria
from rasterio.transform import from_origin

from decur.cli import main
from decur.recipes import recipes

HOME = Path(__file__).parent.parent
# What makes each command short; it comes last, so it wins.
SHORT = {
    "pretrain": ["--encoder.name=test_resnet", "--projector.width=16", "--views.size=24"]
    + ["--loader.batch_size=4", "--trainer.max_epochs=1", "--monitor.every_epochs=0"],
    "transfer": ["--fit.epochs=1", "--bootstrap=0", "--device=cpu"],
    "explain": ["--only=alignment", "--samples=8", "--device=cpu"],
}
WEST, NORTH = 500_000, 5_000_000  # of a scene
GENERATED = ["--data.samples=24", "--data.size=32"]


def ombria(root):
    make_ombria(root / "OMBRIA", {"train": range(1, 7), "test": [7]}, {"ITALY": range(1, 4)})


def rooms(root):
    rng = np.random.default_rng(0)
    for number in range(8):
        pixels = rng.integers(0, 255, (3, 32, 32)).astype("uint8")
        write(root / f"rooms/rgb/{number}.png", pixels)
        write(root / f"rooms/depth/{number}.png", (1000 + 9 * pixels[:1].astype("uint16")))
        write(root / f"rooms/mask/{number}.png", pixels[:1] // 100)


def on_scenes(words):
    return "PairedScenes" in words or words[:2] == ["decur", "predict"]


def commands(page):
    """The command lines of a page's bash blocks, without what only shows a form."""
    code = re.findall(r"```bash\n(.*?)```", (HOME / page).read_text(), re.S)
    lines = "".join(code).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def run(page, wanted=lambda words: words[0] == "decur"):
    for _, command, *arguments in filter(wanted, commands(page)):
        generated = "demo" in arguments or "SyntheticScenes" in arguments
        main([command, *arguments, *SHORT.get(command, []), *(GENERATED if generated else [])])


def test_the_readmes_commands_on_a_clone_of_ombria(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ombria(tmp_path)
    assert ["git", "clone", "https://github.com/geodrak/OMBRIA"] in commands("README.md")
    run("README.md", lambda words: "Ombria" in words)
    results = json.loads(Path("runs/ombria-flood/results.json").read_text())
    assert (results["target"], results["modalities"]) == ("flood", ["s1", "s2"])
    assert (results["train"], results["test"]) == (6, 3)  # pictures from after a flood
    assert results["encoders"] == ["runs/ombria"]


def test_the_tutorial_on_rooms(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rooms(tmp_path)
    (own,) = re.findall(r"```yaml\n(.*?)```", (HOME / "docs/tutorials/rgbd.md").read_text(), re.S)
    Path("rooms/modalities.yaml").write_text(own)
    run("docs/tutorials/rgbd.md", lambda words: words[:2] not in (["decur", "stats"],))
    assert json.loads(Path("runs/rooms-dark/results.json").read_text())["modalities"] == ["depth"]


@pytest.mark.slow
def test_the_page_on_scenes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name, bands in (("s1", 2), ("s2", 3)):
        Path(f"scenes/{name}").mkdir(parents=True)
        profile = {"driver": "GTiff", "count": bands, "height": 96, "width": 96}
        place = {"crs": "EPSG:32632", "transform": from_origin(WEST, NORTH, 10, 10)}
        options = {**profile, **place, "dtype": "float32", "tiled": True}
        with rasterio.open(f"scenes/{name}/summer.tif", "w", **options) as file:
            file.write(rng.normal(100, 20, (bands, 96, 96)).astype("float32"))
    ring = [[0, 0], [0, -960], [480, -960], [480, 0], [0, 0]]
    halves = [[[WEST + x + shift, NORTH + y] for x, y in ring] for shift in (0, 480)]
    shapes = [
        {
            "type": "Feature",
            "properties": {"crop": crop, "name": f"field {crop}"},
            "geometry": {"type": "Polygon", "coordinates": [half]},
        }
        for crop, half in zip(("wheat", "maize"), halves, strict=True)
    ]
    crs = {"type": "name", "properties": {"name": "EPSG:32632"}}
    fields = {"type": "FeatureCollection", "crs": crs, "features": shapes}
    Path("fields.geojson").write_text(json.dumps(fields))
    monkeypatch.setitem(SHORT, "transfer", [*SHORT["transfer"], "--folds=2"])
    for name in ("pretrain", "transfer", "embed", "pack"):
        monkeypatch.setitem(SHORT, name, [*SHORT.get(name, []), "--data.window=16"])
    run("docs/scenes.md")
    assert commands("docs/scenes.md")[:5] == [c for c in commands("README.md") if on_scenes(c)]
    with rasterio.open("crops.tif") as made, rasterio.open("scenes/s2/summer.tif") as scene:
        assert (made.crs, made.transform, made.shape) == (scene.crs, scene.transform, scene.shape)
    assert Path("embeddings/item.json").is_file() and Path("packed").is_dir()


@pytest.mark.slow
@pytest.mark.usefixtures("drawing")  # explain needs it
@pytest.mark.parametrize(
    ("page", "left"),
    [
        ("floods", ["floods", "floods-both", "floods-random", "floods-s1"]),
        ("three-sensors", ["three", "three-all", "three-elevation", "three-moisture"]),
    ],
)
def test_the_longer_tutorials(page, left, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ombria(tmp_path)
    run(f"docs/tutorials/{page}.md")
    assert set(left) <= {path.name for path in Path("runs").iterdir()}


def test_the_page_of_results_repeats_numbers_of_its_tables_only():
    front = (HOME / "docs/results.md").read_text()
    pages = {page.name: page.read_text() for page in sorted((HOME / "docs/results").iterdir())}
    scores = re.compile(r"\d+\.\d ± \d+\.\d")
    told = set(scores.findall(front))
    assert told and told <= set(scores.findall("".join(pages.values())))
    shipped = recipes()
    for name, text in pages.items():
        assert f"(results/{name})" in front, "a page that is not linked"
        assert "**" not in "".join(line for line in text.splitlines() if line.startswith("|"))
        named = re.findall(r"decur compare --config (\S+)", text)
        scripts = re.findall(r"python (benchmarks/\S+\.py)", text)
        assert named or scripts, "a page without the command that makes it"
        assert set(named) <= set(shipped) and all((HOME / script).is_file() for script in scripts)
        assert "version 0." in text
    for line in [*front.splitlines(), *"".join(pages.values()).splitlines()]:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", line):
            assert any((HOME / home / target).is_file() for home in ("docs", "docs/results")), line


def test_tables_of_results_say_what_a_constant_guess_gives():
    score = re.compile(r"^\|.*\d\.\d ± \d+\.\d", re.M)
    floor = re.compile(
        r"^\|.*constant guess|constant\s+guess\s+(gives|has)\s+\d|chance( is)? \d", re.M
    )
    for page in (HOME / "docs/results.md", *sorted((HOME / "docs/results").iterdir())):
        text = page.read_text()
        for part in re.split(r"^## ", text, flags=re.M):
            # what the page says above its parts holds for all of them
            above = text.partition("\n### ")[0].partition("\n## ")[0]
            first = part.partition("\n")[0]
            assert not score.search(part) or floor.search(part) or floor.search(above), (
                page,
                first,
            )


def test_the_questions_quote_messages_that_there_are():
    """What stands in quotation marks in bold; what a message fills in is "..." there."""
    files = sorted((HOME / "src/decur").rglob("*.py"))
    code = re.sub(r'""".*?"""', "", "".join(file.read_text() for file in files), flags=re.S)
    code = re.sub(r'"\s*\n\s*f?"', "", code)  # a string over several lines
    bold = re.findall(r"\*\*(.+?)\*\*", (HOME / "docs/faq.md").read_text(), re.S)
    quoted = re.findall(r'"([^"]+)"', "".join(bold))
    assert len(quoted) > 20
    for text in quoted:
        words = [re.escape(part.strip()) for part in text.strip(". ").split("...")]
        assert re.search(r'[^"\n]*'.join(words), code), text
