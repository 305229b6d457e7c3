"""The sample browser: neighbours against brute force, and what its cards say."""

import re

import numpy as np
import pytest
from markupsafe import escape

from decur.encoders import Projector, build_encoder
from decur.errors import ConfigError
from decur.explain import Checkpoint, encoded
from decur.explain.browser import browser, findings, overlay


def _expected(z: dict[str, np.ndarray], a: str, b: str, row: int) -> list[int]:
    """Rows by falling cosine of standardised embeddings, in float64 and without chunks."""
    unit = {}
    for name, x in z.items():
        x = (x - np.nanmean(x, 0)) / np.nanstd(x, 0)
        unit[name] = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosine = unit[b] @ unit[a][row]
    order = [i for i in np.argsort(-cosine) if not np.isnan(cosine[i])]
    return [int(i) for i in order if a != b or i != row]


@pytest.mark.parametrize("parts", [{"common": slice(0, 12), "unique": slice(12, 16)}, None])
def test_neighbours_are_those_of_brute_force(tiny_checkpoint, tiny_loader, monkeypatch, parts):
    monkeypatch.setattr("decur.explain.browser._CHUNK", 7)
    parts = parts or {"whole": slice(0, 16)}
    checkpoint, loader = tiny_checkpoint(parts=parts), tiny_loader(40)
    read = loader.data.read

    def patchy(index):
        sample = read(index)
        if index % 5 == 3:
            del sample["images"]["sar"]
        return sample

    loader.data.read = patchy
    arrays = browser(checkpoint, loader, shown=6, neighbors=3)
    whole = encoded(checkpoint, loader)
    dims = parts.get("common", slice(None))
    z = {name: x[:, dims].astype(np.float64) for name, x in whole.embeddings.items()}
    rows = [loader.ids.index(name) for name in arrays["ids"]]
    assert arrays["searched"].tolist() == [40, 32]
    for a in z:
        for b in z:
            for number, row in enumerate(rows):
                if np.isnan(z[a][row]).any():
                    assert (arrays[f"{a}-{b}/nearest"][number] == -1).all()
                    continue
                expected = _expected(z, a, b, row)
                near = arrays[f"{b}/neighbor_ids"][arrays[f"{a}-{b}/nearest"][number]]
                assert [loader.ids.index(name) for name in near] == expected[:3]
                if a != b:
                    own = expected.index(row) + 1 if row in expected else 0
                    assert arrays[f"{a}-{b}/rank"][number] == own


def test_pictures_that_are_all_alike_do_not_find_their_partners(tiny_checkpoint, tiny_loader):
    checkpoint, loader = tiny_checkpoint(), tiny_loader(20)
    whole = encoded(checkpoint, loader)
    for x in whole.embeddings.values():
        x[:] = x[0]
    arrays = browser(checkpoint, loader, shown=5)
    assert (arrays["optical-sar/rank"] == 20).all()
    said = "for 0 of 5, its median rank 20 (by chance 0.25 of 5, and 10.5)"  # 5 / 20, 21 / 2
    assert said in findings(arrays)


def test_cards_hold_small_pictures_and_escaped_names(tiny_checkpoint, tiny_loader):
    loader = tiny_loader(20)
    loader.data.ids = [f"<i>&\"'{index}" for index in range(20)]
    arrays = browser(tiny_checkpoint(), loader, shown=5)
    page = findings(arrays)
    assert page.count('<details class="card">') == 5 and "<i>" not in page
    assert str(escape(loader.data.ids[0])) in page
    pictures = re.findall(r'src="([^"]*)"', page)
    assert all(src.startswith("data:image/jpeg;base64,") for src in pictures)
    # two sensors of a card: twice its picture, two maps, four neighbours in each of two
    assert len(pictures) == 5 * 2 * (1 + 1 + 2 + 2 * 4)
    assert "common dimensions" in page and "salient for unique" in page


def test_a_sensor_without_places_may_be_absent_from_a_whole_batch(tiny_checkpoint, tiny_loader):
    loader = tiny_loader(32)  # in batches of 16
    sensors = loader.data.modalities
    encoders = {
        name: build_encoder(kind, sensors[name])
        for name, kind in (("optical", "test_resnet"), ("sar", "mlp"))
    }
    projectors = {name: Projector(encoder.dim, 16, layers=2) for name, encoder in encoders.items()}
    run = Checkpoint(
        "run", encoders, projectors=projectors, modalities=sensors, parts=tiny_checkpoint().parts
    )
    read = loader.data.read

    def late(index):
        sample = read(index)
        if index < 20:
            del sample["images"]["sar"]
        return sample

    loader.data.read = late
    arrays = browser(run, loader, shown=32)
    assert arrays["sar/present"].sum() == 12 and "optical/common/saliency" not in arrays
    assert "salient for" not in findings(arrays)


def test_a_picture_shows_its_colour_where_it_is_salient():
    picture = np.full((4, 4, 3), 100, np.uint8)
    saliency = np.zeros((4, 4), np.uint8)
    saliency[0, 0] = 255
    mixed = overlay(picture, saliency, "#0072B2").astype(int)
    assert mixed[0, 0, 2] - mixed[0, 0, 0] > 100
    assert (mixed[1:] == 70).all()


def test_numbers_out_of_range_are_refused(tiny_checkpoint, tiny_loader):
    for given in ({"shown": 0}, {"neighbors": 99}):
        with pytest.raises(ConfigError, match="from 1 to"):
            browser(tiny_checkpoint(), tiny_loader(4), **given)
