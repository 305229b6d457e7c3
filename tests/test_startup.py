"""Commands answer at once: what a question needs is imported, and nothing more.

`python benchmarks/startup.py` measures what this is worth.
"""

import subprocess
import sys

import pytest

HEAVY = (
    *("lightning", "timm", "torchvision", "sklearn", "scipy", "pandas", "matplotlib", "captum"),
    *("litdata", "pyarrow", "rasterio", "faiss", "torchmetrics", "submitit", "onnx", "plotly"),
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
import contextlib, importlib, io, sys
from decur.cli import main
for kind, questions in {questions!r}.items():
    for question in questions:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            with contextlib.suppress(SystemExit):
                main(question)
    print(*[f"{{name}} for {{kind}}" for name in {names!r} if name in sys.modules], sep=chr(10))
for module in {modules!r}:
    importlib.import_module(module)
    there = [name for name in {training!r} if name in sys.modules]
    print(*[f"{{name}} for {{module}}" for name in there], sep=chr(10))
"""
READERS = ("decur.explain.run", "decur.explain.model", "decur.pretrain.restore")  # of a run


def imported(questions, names, modules=()):
    """Those of some packages that a process imports to answer questions, or with modules."""
    code = CODE.format(
        questions=questions, names=names, modules=modules, training=("lightning", "torchmetrics")
    )
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    return done.stdout.split("\n")[:-1]


def test_nothing_heavy_is_imported_for_an_answer_and_nothing_of_training_to_read_a_run():
    assert set(imported(QUESTIONS, HEAVY, READERS)) == {""}


@pytest.mark.parametrize("question", [["--help"], ["recipes"], ["--version"], ["pretran"]])
def test_torch_is_not_imported_for(question):
    assert set(imported({"it": [question]}, ("torch", "numpy", *HEAVY))) == {""}
