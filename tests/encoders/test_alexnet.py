"""AlexNet against torchvision's."""

import pytest
import torch
from torchvision.models import alexnet

from decur.encoders import build_encoder, list_encoders
from decur.errors import ConfigError


def test_it_is_torchvisions_with_any_number_of_bands():
    encoder, plain = build_encoder("alexnet", 3).eval(), alexnet(weights=None).eval()
    plain.features.load_state_dict(encoder.features.state_dict(), strict=True)
    x = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        maps, vector, expected = encoder.forward_features(x), encoder(x), plain.features(x)
    assert torch.equal(maps[-1], expected)
    torch.testing.assert_close(vector, expected.mean((2, 3)))
    assert [m.shape[1] for m in maps] == encoder.channels and vector.shape == (2, encoder.dim)
    assert [round(224 / m.shape[2]) for m in maps] == [4, 8, 17, 37]  # no padding at the pooling
    assert build_encoder("alexnet", 13)(torch.rand(1, 13, 64, 64)).shape == (1, 256)
    assert "alexnet" in list_encoders("alex*")


def test_what_it_cannot_do_is_said():
    with pytest.raises(ConfigError, match="63 px"):
        build_encoder("alexnet", 3)(torch.rand(1, 3, 62, 80))
    with pytest.raises(ConfigError, match="no options"):
        build_encoder("alexnet", 3, width=2)
    with pytest.raises(ConfigError, match="pretrained"):
        build_encoder("alexnet", 3, pretrained=True)
