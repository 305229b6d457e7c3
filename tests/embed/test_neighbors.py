"""Neighbours against all pairs of cosines in numpy, and the picture of them."""

import csv

import numpy as np
import pytest
import torch

from decur.cli import main
from decur.data import PairedFolder
from decur.data.sample import Target
from decur.embed import Vectors, embed, nearest, read_vectors
from decur.embed.command_neighbors import main as main_of_neighbors
from decur.encoders import load_encoder, save_encoder
from decur.errors import ConfigError, DataError
from decur.modality import Modality
from decur.pretrain import LoaderSettings

BATCH = LoaderSettings(batch_size=4, workers=0)
CPU = {"accelerator": "cpu"}


def cosines(a, b):
    a, b = (x.astype(np.float64) for x in (a, b))
    return (a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)


@pytest.fixture
def vectors():
    rng = np.random.default_rng(0)
    ids = [f"p{i}" for i in range(60)]
    first = rng.normal(size=(60, 16)).astype(np.float32) * rng.uniform(0.1, 9, (60, 1))
    second = first + 0.1 * rng.normal(size=(60, 16))
    return Vectors(ids, first.astype(np.float32)), Vectors(ids, second.astype(np.float32))


def test_hits_are_those_of_brute_force(vectors):
    radar, optical = vectors
    hits = nearest(radar, optical, k=5)
    table = cosines(radar.values, optical.values)
    for row, (ids, scores) in enumerate(zip(hits.ids, hits.similarity, strict=True)):
        order = np.argsort(-table[row])[:5]
        assert ids == [optical.ids[i] for i in order]
        np.testing.assert_allclose(scores, table[row][order], atol=1e-5)


def test_the_true_partner_comes_first(vectors):
    hits = nearest(*vectors, k=1)
    assert np.mean([ids == [q] for q, ids in zip(vectors[0].ids, hits.ids, strict=True)]) > 0.95


def test_a_query_is_no_hit_of_its_own(vectors):
    radar, _ = vectors
    hits = nearest(radar, radar, k=4, same=True)
    table = cosines(radar.values, radar.values)
    np.fill_diagonal(table, -2)
    for row, ids in enumerate(hits.ids):
        assert ids == [radar.ids[i] for i in np.argsort(-table[row])[:4]]


def test_more_than_there_are_gives_all(vectors):
    radar, optical = vectors
    few = Vectors(optical.ids[:3], optical.values[:3])
    assert all(sorted(ids) == ["p0", "p1", "p2"] for ids in nearest(radar, few, k=9).ids)
    assert all(len(ids) == 2 for ids in nearest(few, few, k=9, same=True).ids)


def test_an_approximate_index_agrees_mostly(vectors):
    exact, near = nearest(*vectors, k=1), nearest(*vectors, k=1, index="HNSW32")
    assert np.mean([a == b for a, b in zip(exact.ids, near.ids, strict=True)]) > 0.9


def test_what_cannot_be_searched_is_refused(vectors):
    radar, optical = vectors
    with pytest.raises(DataError, match="16 wide"):
        nearest(radar, Vectors(optical.ids, optical.values[:, :8]))
    with pytest.raises(ConfigError, match="faiss refuses"):
        nearest(radar, optical, index="Nonsense")
    with pytest.raises(ConfigError, match="--k"):
        nearest(radar, optical, k=0)


def test_the_embedding_is_its_parts_side_by_side(embedded):
    common, unique, whole = (
        read_vectors(embedded.folder, "s2", part=part) for part in ("common", "unique", "embedding")
    )
    assert common.ids == whole.ids and len(set(whole.ids)) == 20
    np.testing.assert_array_equal(whole.values, np.hstack([common.values, unique.values]))


def test_two_sensors_that_see_the_same_find_each_other(pairs, run, tmp_path):
    """One encoder and one picture for both sensors: each place must find itself."""
    file = str(run / "encoders" / "s1.safetensors")
    (pairs.root / "s0").symlink_to(pairs.root / "s1")
    like = pairs.modalities["s1"]
    twins = PairedFolder(
        pairs.root,
        modalities={"s1": like, "s0": Modality.from_dict({**like.to_dict(), "name": "s0"})},
    )
    encoder = load_encoder(file)
    encoder.modality = twins.modalities["s0"]
    other = save_encoder(encoder, tmp_path / "s0.safetensors")
    out = embed(twins, [file, str(other)], out=str(tmp_path / "twins"), loader=BATCH, trainer=CPU)
    vectors = [read_vectors(out.folder, name) for name in ("s0", "s1")]
    hits = nearest(*vectors, k=1)
    assert [ids[0] for ids in hits.ids] == vectors[0].ids


def test_ids_in_the_picture_are_no_formulas(pairs):
    pytest.importorskip("matplotlib")
    from decur.embed.neighbors import Hits, neighbors_sheet

    for file in pairs.root.glob("s*/0001.npy"):
        file.rename(file.with_stem("$x_{$"))
    data = PairedFolder(pairs.root, modalities=pairs.modalities)
    hits = Hits([["$x_{$"]], [[1.0]])
    neighbors_sheet(data, ["$x_{$"], hits=hits, source="s1", target="s2").canvas.draw()


def test_the_partner_has_its_rank_among_all(vectors):
    from decur.embed.neighbors import choose, find_partners

    radar, optical = vectors
    less = Vectors(optical.ids[1:], optical.values[1:])
    found = find_partners(choose(radar, ["p0", "p7"]), less)
    table = cosines(radar.values, less.values)
    assert list(found) == ["p7"]  # p0 has no other picture
    assert found["p7"].rank == 1 + (table[7] > table[7, 6]).sum() and found["p7"].searched == 59
    same = find_partners(optical, Vectors(optical.ids, np.ones((60, 16), np.float32)))
    assert {partner.rank for partner in same.values()} == {60}  # a collapse finds nothing


def test_the_picture_shows_labels_and_the_partner(pairs):
    pytest.importorskip("matplotlib")
    from decur.embed.neighbors import Hits, Partner, neighbors_sheet

    (pairs.root / "labels.csv").write_text("id,kind\n0001,water\n0002,forest\n")
    data = PairedFolder(pairs.root, modalities=pairs.modalities)
    figure = neighbors_sheet(
        data,
        ["0001"],
        hits=Hits([["0002", "0001"]], [[0.9, 0.8]]),
        source="s1",
        target="s2",
        partners={"0001": Partner(2, 0.8, 20)},
    )
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[1:] == [
        "its partner, s2\nrank 2 of 20, 0.800",
        "1: 0002\n0.900",
        "2: 0001\n0.800",
    ]
    assert [axis.get_xlabel() for axis in figure.axes] == ["water", "water", "forest", "water"]
    assert [axis.spines["top"].get_visible() for axis in figure.axes] == [False, True, False, True]


@pytest.mark.parametrize(
    ("target", "value", "words"),
    [
        (Target("class", ("a", "b")), 1, "b"),
        (Target("class", ("a", "b")), -1, "unknown"),
        (Target("multilabel", ("a", "b", "c")), [1.0, 0.0, 1.0], "a, c"),
        (Target("multilabel", ("a", "b")), [0.0, 0.0], "none of them"),
        (Target("scalar"), 0.12345, "0.123"),
        (Target("scalar"), float("nan"), "unknown"),
        (Target("mask", ("a", "b")), [[0, 1], [1, 255]], "b 67 %"),
    ],
)
def test_a_label_in_words(target, value, words):
    assert target.in_words(torch.tensor(value)) == words


def test_the_command_prints_writes_and_draws(embedded, pairs, tmp_path, capsys, caplog):
    table, picture = tmp_path / "hits.csv", tmp_path / "hits.png"
    (pairs.root / "modalities.yaml").write_text(
        "s1: {bands: [a], scaling: range, value_range: [-3, 3]}\n"
        "s2: {bands: [a, b, c], scaling: range, value_range: [-3, 3]}\n"
    )
    main(
        [
            *("neighbors", str(embedded.folder), "--from", "s1", "--to", "s2", "--k", "3"),
            *("--query", "0001", "0003", "--out", str(table), "--picture", str(picture)),
            *("--data.root", str(pairs.root)),
        ]
    )
    said = capsys.readouterr().out
    assert "s1 to s2, common, 20 searched" in said and "0003" in said
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    radar, optical = (read_vectors(embedded.folder, name, part="common") for name in ("s1", "s2"))
    expected = cosines(radar.values, optical.values)[radar.ids.index("0003")]
    best = optical.ids[int(expected.argmax())]
    assert next(r["hit"] for r in rows if r["query"] == "0003") == best and len(rows) == 6
    assert picture.stat().st_size > 5000
    main(["neighbors", str(embedded.folder), "--k", "3"])
    said = capsys.readouterr().out
    assert "own place among the first 3" in said and "by chance 0.1500" in said
    assert "pairs that the encoders were trained on are found more easily" in said
    assert "does not align" not in caplog.text
    assert "--data: without effect" not in caplog.text
    main(["neighbors", str(embedded.folder), "--part", "unique", "--data.root", "nowhere"])
    assert "--data: without effect, as pictures alone are read from it" in caplog.text
    assert "unique: training does not align these numbers of s1 with those of s2" in caplog.text


@pytest.fixture
def embed_random(tmp_path, capsys):
    """`decur embed` with fresh encoders: the folder, and what the command printed."""

    def of(root, name="out"):
        about = "{bands: [a], scaling: range, value_range: [-3, 3]}\n"
        sensors = [folder.name for folder in root.iterdir() if folder.is_dir()]
        (root / "modalities.yaml").write_text("".join(f"{s}: {about}" for s in sorted(sensors)))
        encoders = ("--encoders", "random", "--encoder.name", "test_resnet")
        here = ("--loader.workers=0", "--trainer.accelerator=cpu", "--out", str(tmp_path / name))
        main(["embed", "--data.root", str(root), *encoders, *here])
        return tmp_path / name, capsys.readouterr().out

    return of


def test_only_places_that_both_sensors_have_count(make_pairs, embed_random, capsys):
    root = make_pairs({"s1": 1, "s2": 1}, samples=8, size=32)
    for i in range(4, 8):
        (root / "s2" / f"{i:04d}.npy").unlink()
    folder, _ = embed_random(root)
    main(["neighbors", str(folder), "--part", "features", "--k", "4"])  # all that there are
    said = capsys.readouterr().out
    assert "the first 4: 1.0000 of 4 queries, by chance 1.0000 (4 more have no s2)" in said


def test_no_place_that_both_sensors_have(make_pairs, embed_random, capsys):
    root = make_pairs({"s1": 1, "s2": 1, "s3": 1}, samples=4, size=32)
    for i in range(4):
        (root / ("s1", "s2")[i % 2] / f"{i:04d}.npy").unlink()
    folder, _ = embed_random(root)
    main(["neighbors", str(folder), "--part=features", "--from=s1", "--to=s2", "--k=1"])
    assert "first 1: 0 queries (2 more have no s2)" in capsys.readouterr().out


def test_names_are_printed_as_they_are(make_pairs, embed_random, tmp_path, capsys):
    root, name = make_pairs({"s1": 1, "s2": 1}, samples=3, size=32), "tile[red]:cat:"
    for sensor in ("s1", "s2"):
        (root / sensor / "0001.npy").rename(root / sensor / f"{name}.npy")
    folder, said = embed_random(root, "e[red]")
    assert f"written     {folder}" in said
    table = tmp_path / "hits[red].csv"
    main(["neighbors", str(folder), "--to", "s1", "--query", name, "--out", str(table)])
    said = capsys.readouterr().out
    assert name in said and f"written     {table}" in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--query", "nobody"), "nobody: no such id"),
        (("--from", "radar"), "no 'radar'"),
        (("--picture", "x.png"), "give --data.root"),
        (("--picture", "x.png", "--data.root", "/nowhere"), "/nowhere: no such folder"),
        (("--picture", "x.png", "--data", "Nothing"), "Nothing"),
        (("--k", "0"), "--k"),
        (("--index", "Nonsense"), "Nonsense"),
    ],
)
def test_a_wrong_question_is_refused_in_a_line(embedded, refused, arguments, says):
    assert says in refused("neighbors", str(embedded.folder), *arguments)


def test_no_embeddings_no_search(refused, tmp_path):
    assert "holds no embeddings" in refused("neighbors", str(tmp_path))


def test_a_picture_without_matplotlib_is_refused(pairs, tmp_path, monkeypatch):
    monkeypatch.setattr("decur.plotting.available", lambda: False)
    words = ["embeddings", "--data.root", str(pairs.root), "--picture", str(tmp_path / "a.png")]
    with pytest.raises(ConfigError, match=r"--picture needs matplotlib: .*decur\[explain\]"):
        main_of_neighbors(words)
