"""The page of `decur explore`: its numbers against brute force, its pictures, and its refusals."""

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from decur.cli import main
from decur.data import PairedFolder
from decur.embed import read_vectors
from decur.embed.parquet import HEADER
from decur.errors import ConfigError, DataError
from decur.explain.base import unwatched
from decur.explore import explore
from decur.explore.run import _chosen, _seen_in_training, lay_out_sensors, rank_rows
from decur.plotting import small_pictures
from decur.verdicts import Verdict


class Scripts(HTMLParser):
    """The texts of a page's scripts by their names, as a browser sees them."""

    def __init__(self, page):
        super().__init__()
        self.texts, self.name, self.links = {}, None, []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.name = attrs.get("id", "code") if tag == "script" else None
        self.links += [attrs[key] for key in ("src", "href") if key in attrs]

    def handle_endtag(self, tag):
        self.name = None

    def handle_data(self, data):
        if self.name:
            self.texts[self.name] = self.texts.get(self.name, "") + data


def numbers(text, dtype, *shape):
    return np.frombuffer(base64.b64decode(text), dtype=dtype).reshape(*shape)


@pytest.fixture(scope="module")
def unit():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 40, 6))
    y = x + y
    for z in (x, y):
        z /= np.linalg.norm(z, axis=1, keepdims=True)
    x[3], y[5] = np.nan, np.nan  # samples that lack a sensor
    return x.astype(np.float32), y.astype(np.float32)


def test_neighbours_and_ranks_are_those_of_brute_force(unit):
    x, y = unit
    found = rank_rows(x, y, 4, itself=True)
    assert found.searched == 39 and (found.rows[3] == -1).all() and found.partner[3] == 0
    assert found.partner[5] == 0 and 5 not in found.rows
    for i in (0, 10, 39):
        cosine = np.nan_to_num(y @ x[i], nan=-2)
        assert found.rows[i].tolist() == np.argsort(-cosine)[:4].tolist()
        np.testing.assert_allclose(found.cosine[i], np.sort(cosine)[::-1][:4], atol=1e-6)
        assert found.partner[i] == (cosine >= cosine[i]).sum()
    alone = rank_rows(x, x, 60, itself=False)
    assert alone.rows.shape == (40, 38) and all(i not in row for i, row in enumerate(alone.rows))


def test_a_collapsed_embedding_finds_no_partner():
    same = np.full((30, 4), 0.5, np.float32)
    assert (rank_rows(same, same, 3, itself=True).partner == 30).all()


def test_maps_keep_what_is_near_and_part_what_cannot_be_compared(unit):
    rng = np.random.default_rng(1)
    two = np.repeat(np.eye(2, 8), 20, axis=0) + 0.05 * rng.normal(size=(40, 8))
    two = two.astype(np.float32)
    for layout in ("pca", "tsne"):
        placed = lay_out_sensors({"a": two}, layout, together=True, watch=unwatched)["a"]
        one, other = placed[:20].mean(0), placed[20:].mean(0)
        assert np.linalg.norm(one - other) > 2 * placed[:20].std(0).max()
    x, y = unit
    apart = lay_out_sensors({"x": x, "y": y}, "pca", together=False, watch=unwatched)
    assert np.nanmax(apart["x"][:, 0]) < np.nanmin(apart["y"][:, 0])
    assert np.isnan(apart["x"][3]).all() and np.isnan(apart["y"][5]).all()


def test_the_page_holds_what_was_embedded(embedded, pairs, tmp_path):
    labels = ["</script>", "b"]
    rows = [f"{id_},{labels[k % 2]},{k}" for k, id_ in enumerate(pairs.ids[:-1])]
    pairs.root.joinpath("labels.csv").write_text("\n".join(["id,kind,height", *rows]))
    data = type(pairs)(pairs.root, modalities=pairs.modalities)
    page = explore(embedded.folder, data, out=tmp_path / "page.html", layout="pca", neighbors=3)
    html = page.read_text()
    found = Scripts(html)
    assert not found.links and "://" not in re.sub(r"http://www.w3.org", "", html)
    code = base64.b64encode(hashlib.sha256(found.texts["code"].encode()).digest()).decode()
    assert f"script-src &#39;sha256-{code}&#39;;" in html and "img-src data: blob:;" in html
    about = json.loads(found.texts["about"])
    assert about["ids"] == sorted(pairs.ids) and about["part"] == "common" and about["together"]
    assert about["total"] == 22 and about["trained"].startswith("Whether the encoders were trained")
    s1, s2 = (read_vectors(embedded.folder, name, part="common") for name in ("s1", "s2"))
    told = about["ranking"]["s1>s2"]
    nearest = numbers(told["rows"], "<i4", 22, 3)
    unit = [v.values / np.linalg.norm(v.values, axis=1, keepdims=True) for v in (s1, s2)]
    cosine = unit[1] @ unit[0][s1.ids.index("0007")]
    assert [about["ids"][row] for row in nearest[7]] == [s2.ids[i] for i in np.argsort(-cosine)[:3]]
    rank = numbers(told["rank"], "<i4", 22)
    assert rank[7] == (cosine >= cosine[s2.ids.index("0007")] - 1e-6).sum()
    assert rank[3] == rank[4] == rank[9] == 0  # without a partner
    kind, height = about["labels"]
    classes = numbers(kind["values"], "<i2", 22)
    assert classes[-1] == -1 and kind["classes"][classes[0]] == "</script>"
    assert np.isnan(numbers(height["values"], "<f4", 22)[-1])
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(found.texts["sheet-s2-0"]))))
    side = about["side"]
    shown = sheet[:side, 5 * side : 6 * side].astype(int)
    away = [
        np.abs(shown - small_pictures(data[i]["images"]["s2"][None], data.modalities["s2"], side))
        for i in (5, 6, 7)
    ]
    assert 2 * away[0].mean() < min(away[1].mean(), away[2].mean())  # of JPEG alone
    assert (sheet[:side, 3 * side : 4 * side] < 40).all()  # absent


@pytest.mark.parametrize("part", [None, "block:s1+s2", "unique", "common"])
def test_sensors_are_compared_by_what_they_share(part, embedded, tmp_path):
    header, name = embedded.folder / HEADER, "common" if part == "common" else "s2+s1"
    header.write_text(header.read_text().replace('"common"', json.dumps(name)))
    for file in embedded.folder.glob("part-*.parquet"):
        table = pq.read_table(file)
        names = [name if column == "common" else column for column in table.column_names]
        pq.write_table(table.rename_columns(names), file)
    page = explore(embedded.folder, out=tmp_path / "page.html", part=part, layout="pca")
    about = json.loads(Scripts(page.read_text()).texts["about"])
    assert about["together"] == ("s1>s2" in about["ranking"]) == (part != "unique")


def test_large_maps_take_no_minutes_unless_they_are_asked_to(caplog, monkeypatch):
    caplog.set_level("INFO")
    assert _chosen(None, 5_000) == "tsne" and not caplog.messages
    assert _chosen(None, 5_001) == "pca" and "--layout tsne takes some minutes" in caplog.text
    assert _chosen("tsne", 20_000) == "tsne"
    monkeypatch.setattr("decur.explore.run.find_spec", lambda name: None)
    assert _chosen(None, 10) == "pca" and "pip install 'decur[explain]'" in caplog.messages[-1]
    with pytest.raises(ConfigError, match="--layout tsne needs openTSNE: pip install"):
        _chosen("tsne", 10)


def test_the_page_tells_whether_its_samples_were_trained_on(pairs, tmp_path):
    run, other = tmp_path / "run", tmp_path / "other" / "s1"
    run.mkdir()
    other.mkdir(parents=True)
    for id_ in pairs.ids:
        np.save(other / f"{id_}.npy", np.random.default_rng(9).normal(size=(1, 32, 32)))
    named = {"class_path": "PairedFolder", "init_args": {"root": str(pairs.root)}}
    (run / "config.yaml").write_text(yaml.safe_dump({"data": named, "views": {}}))
    for encoders, data, verdict in (
        ([str(run)], pairs, Verdict.YES),
        (["random", str(run)], pairs, Verdict.YES),
        ([str(run)], PairedFolder(other.parent), Verdict.NO),
        (["random:runs/any"], None, Verdict.NO),
        ([str(run)], None, Verdict.UNTOLD),
        (["timm:resnet18"], pairs, Verdict.UNTOLD),
        ([str(run), "timm:resnet18"], PairedFolder(other.parent), Verdict.UNTOLD),
        ([], pairs, Verdict.UNTOLD),  # of a header that does not say
    ):
        assert _seen_in_training(encoders, data, pairs.ids[:9]) == verdict


def test_the_command(embedded, pairs, tmp_path, capsys, refused):
    folder = str(embedded.folder)
    main(["explore", folder, "--part", "unique", "--layout", "pca", "--samples", "10"])
    assert "look at" in capsys.readouterr().out
    html = (embedded.folder / "explore.html").read_text()
    about = json.loads(Scripts(html).texts["about"])
    assert about["total"] == 22 and "10 of 22 samples" in html
    assert sorted(about["ranking"]) == ["s1>s1", "s2>s2"] and len(about["ids"]) == 10
    assert not about["pictured"] and not about["labels"]
    assert "--samples: must be from 2 to 20,000" in refused("explore", folder, "--samples", "20001")
    assert "holds no embeddings" in refused("explore", str(tmp_path))
    scenes = ("--data", "SyntheticScenes", "--data.samples", "abc")
    assert "data.samples: expected int, got 'abc'" in refused("explore", folder, *scenes)
    with pytest.raises(ConfigError, match="is a folder; give a file in it"):
        explore(folder, out=tmp_path)
    pairs.ids = pairs.ids[:-1]
    with pytest.raises(DataError, match=r"--data: lacks 1 of 22 samples, the first '0021'"):
        explore(folder, pairs, layout="pca")
