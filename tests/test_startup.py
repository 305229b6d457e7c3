"""Commands answer at once: what a question needs is imported, and nothing more.

`python benchmarks/startup.py` measures what this is worth.
"""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    *("lightning", "timm", "torchvision", "sklearn", "scipy", "pandas", "matplotlib", "captum"),
    *("litdata", "pyarrow", "rasterio", "faiss", "torchmetrics", "submitit", "onnx"),
)
QUESTIONS = {
    "help of every command": [
        [command, "--help"]
        for command in (
            *("pretrain", "transfer", "explain", "embed", "neighbors", "stats", "import", "export"),
            *("explore", "pack", "bench", "plan", "compare", "demo", "predict"),
        )
    ],
    "a wrong key": [["pretrain", "--encoder.nam", "resnet18"], ["transfer", "--frezee", "true"]],
    "a missing folder": [["pretrain", "--data.root", "nowhere"]],
}
CODE = """
import contextlib, io, sys
from decur.cli import main
for question in {questions!r}:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        with contextlib.suppress(SystemExit):
            main(question)
print(*[name for name in {names!r} if name in sys.modules])
"""


def imported(questions, names):
    """Those of some packages that are imported once a process has answered questions."""
    code = CODE.format(questions=questions, names=names)
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize("kind", QUESTIONS)
def test_nothing_heavy_is_imported_for(kind):
    assert imported(QUESTIONS[kind], HEAVY) == []


def test_what_only_reads_a_run_needs_no_lightning(tmp_path):
    old, page = Path(__file__).parent / "fixtures/v0.1", tmp_path / "runs.html"
    explain = ["explain", f"{old}/run", f"--out={tmp_path}/explained", "--only", "alignment"]
    explain += [f"--data.root={old}/pairs", "--loader.workers=0"]
    questions = [explain, ["runs", f"{old}/run", f"--out={page}"]]
    assert imported(questions, ("lightning", "torchmetrics", "sklearn", "captum")) == []
    assert (tmp_path / "explained/report.html").is_file() and page.is_file()


@pytest.mark.parametrize("question", [["--help"], ["recipes"], ["--version"], ["pretran"]])
def test_torch_is_not_imported_for(question):
    assert imported([question], ("torch", "numpy", *HEAVY)) == []
