"""Training with activations computed again: the weights and statistics of keeping them."""

import torch
from safetensors.torch import load_file


def test_a_run_ends_the_same_with_checkpointed_activations(tiny, ready):
    kept = ready("--trainer.max_epochs=1", name="kept")
    again = tiny("--trainer.max_epochs=1", "--encoder.checkpointing=true", name="again")
    for path in sorted((kept / "encoders").iterdir()):
        a, b = load_file(path), load_file(again / "encoders" / path.name)
        for key in a:  # running statistics among them
            assert torch.allclose(a[key], b[key], rtol=1e-3, atol=1e-5), key
