"""Embeddings on disk are what the encoders give, each sample once, whatever happened meanwhile."""

import json
import os
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from decur.cli import main
from decur.data import LinearGaussianFactors
from decur.embed import embed
from decur.embed.neighbors import read_vectors
from decur.embed.parts import PartWriter
from decur.encoders import EncoderSettings, load_encoder, save_encoder
from decur.errors import ConfigError, DataError
from decur.objectives import DeCUR
from decur.pretrain import LoaderSettings
from decur.pretrain.restore import restore
from decur.pretrain.run import pretrain
from decur.pretrain.settings import MonitorSettings, ProjectorSettings, ViewSettings

BATCH = LoaderSettings(batch_size=4, workers=0, max_bad=0.2)
CPU = {"accelerator": "cpu"}


def rows_of(folder):
    """`{(id, modality): {column: vector}}`, refusing a row that is there twice."""
    found = {}
    for path in sorted(folder.glob("part-*.parquet")):
        for row in pq.read_table(path).to_pylist():
            key = (row.pop("id"), row.pop("modality"))
            assert key not in found
            found[key] = {name: np.array(v, np.float32) for name, v in row.items()}
    return found


def assert_same(rows, others):
    assert rows.keys() == others.keys()
    for key, columns in rows.items():
        assert columns.keys() == others[key].keys()
        for name, vector in columns.items():
            np.testing.assert_allclose(vector, others[key][name], rtol=1e-5, atol=1e-6)


def by_hand(data, run, size=None):
    """One sample after the other through what `restore` gives."""
    restored, found = restore(run), {}
    for index in range(len(data)):
        sample = data[index]
        for name, image in sample["images"].items():
            x = data.modalities[name].scale(image)[None]
            if size is not None:
                x = torch.nn.functional.interpolate(
                    x, (size, size), mode="bilinear", antialias=True
                )
            with torch.no_grad():
                h = restored.encoders[name](x)
                z = restored.projectors[name](h)[0].numpy()
            vectors = {"features": h[0].numpy(), "common": z[:12], "unique": z[12:]}
            found[sample["id"], name] = vectors
    return found


def test_rows_are_what_encoder_and_projector_give(pairs, run, embedded):
    expected = by_hand(pairs, run)
    assert ("0003", "s2") not in expected and ("0009", "s1") not in expected
    assert_same(rows_of(embedded.folder), expected)
    assert embedded.rows == {"s1": 21, "s2": 20} and embedded.bad == []


def test_pictures_are_resized_where_asked(pairs, run, tmp_path):
    out = embed(pairs, str(run), out=str(tmp_path / "small"), loader=BATCH, size=24, trainer=CPU)
    assert_same(rows_of(out.folder), by_hand(pairs, run, 24))


def test_each_file_says_what_it_holds(embedded):
    path = min(embedded.folder.glob("part-*.parquet"))
    layout = pq.read_schema(path)
    about = json.loads(layout.metadata[b"decur"])
    assert about["parts"] == {"common": [0, 12], "unique": [12, 16]}
    assert about["modalities"]["s2"]["bands"] == ["a", "b", "c"]
    assert layout.field("common").type.list_size == 12


def test_encoder_files_have_features_alone(pairs, run, tmp_path):
    files = [str(run / "encoders" / f"{name}.safetensors") for name in ("s1", "s2")]
    out = embed(pairs, files, out=str(tmp_path / "files"), loader=BATCH, trainer=CPU)
    expected = {k: {"features": v["features"]} for k, v in by_hand(pairs, run).items()}
    assert_same(rows_of(out.folder), expected)


def test_a_killed_command_goes_on_after_the_last_whole_part(
    pairs, run, embedded, tmp_path, monkeypatch
):
    out, write, calls = tmp_path / "killed", PartWriter._write, []

    def dies(self, job):
        calls.append(job["part"])
        if len(calls) == 4:
            raise KeyboardInterrupt
        write(self, job)

    monkeypatch.setattr(PartWriter, "_write", dies)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        embed(pairs, str(run), out=str(out), loader=BATCH, trainer=CPU)
    left = sorted(out.glob("part-*.parquet"))
    assert 0 < len(left) < 6
    (out / ".part-000005.parquet.1.tmp").write_bytes(b"half")  # as a kill leaves it
    times = {path: path.stat().st_mtime_ns for path in left}
    monkeypatch.setattr(PartWriter, "_write", write)
    again = embed(pairs, str(run), out=str(out), loader=BATCH, trainer=CPU)
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert_same(rows_of(out), rows_of(embedded.folder))
    assert again.rows == embedded.rows and not list(out.glob(".*"))


def test_a_finished_folder_is_left_as_it_is(pairs, run, embedded):
    again = embed(pairs, str(run), out=str(embedded.folder), loader=BATCH, trainer=CPU)
    assert again.rows == embedded.rows
    first = min(embedded.folder.glob("part-*.parquet"))
    first.write_bytes(first.read_bytes()[:100])
    with pytest.raises(DataError, match=f"{first.name}.*delete it"):
        embed(pairs, str(run), out=str(embedded.folder), loader=BATCH, trainer=CPU)


def test_bad_samples_are_listed_and_left_out(pairs, run, tmp_path):
    file = pairs.root / "s1" / "0007.npy"
    file.write_bytes(b"no picture")
    out = embed(pairs, str(run), out=str(tmp_path / "bad"), loader=BATCH, trainer=CPU)
    assert [path for path, _ in out.bad] == [str(file)]
    assert not {key for key in rows_of(out.folder) if key[0] == "0007"}
    assert str(file) in (out.folder / "bad_samples.csv").read_text()
    for i in range(10, 20):
        (pairs.root / "s1" / f"{i:04d}.npy").write_bytes(b"no picture")
    with pytest.raises(DataError, match="max_bad"):
        embed(pairs, str(run), out=str(tmp_path / "worse"), loader=BATCH, trainer=CPU)


def test_repeating_the_command_allows_no_more_bad_samples(pairs, run, tmp_path):
    for i in range(0, 22, 2):  # half of each part
        (pairs.root / "s1" / f"{i:04d}.npy").write_bytes(b"no picture")
    for _ in range(4):  # each finishes a part or two before it ends
        with pytest.raises(DataError, match="max_bad"):
            embed(pairs, str(run), out=str(tmp_path / "bad"), loader=BATCH, trainer=CPU)
    generous = LoaderSettings(batch_size=4, workers=0, max_bad=0.5)
    out = embed(pairs, str(run), out=str(tmp_path / "bad"), loader=generous, trainer=CPU)
    assert len(out.bad) == 11
    with pytest.raises(DataError, match=r"^11 samples could not be read"):  # nothing left to do
        embed(pairs, str(run), out=str(tmp_path / "bad"), loader=BATCH, trainer=CPU)


def test_an_id_that_is_no_text_is_refused_before_any_work(pairs, tmp_path):
    pairs.ids[7] = "t\udce9st"  # as a name of a file in Latin-1 is read
    with pytest.raises(DataError, match=r"'t\\udce9st' is no UTF-8; rename"):
        embed(pairs, "random", out=str(tmp_path / "none"), loader=BATCH, trainer=CPU)
    assert not (tmp_path / "none").exists()


def test_a_trainer_that_cannot_be_made_leaves_no_folder(pairs, run, tmp_path, monkeypatch):
    def missing(*args, **options):
        raise ModuleNotFoundError("transformer_engine is not installed")

    with monkeypatch.context() as without:
        without.setattr("decur.embed.embedding.L.Trainer", missing)
        other = {**CPU, "precision": "transformer-engine"}
        with pytest.raises(ConfigError, match=r"^trainer: transformer_engine is not"):
            embed(pairs, str(run), out=str(tmp_path / "out"), loader=BATCH, trainer=other)
    # with what is kept from that call, this one would be "of other precision"
    assert embed(pairs, str(run), out=str(tmp_path / "out"), loader=BATCH, trainer=CPU).rows


def test_other_contents_of_the_folder_are_refused(pairs, run, embedded, tmp_path):
    with pytest.raises(ConfigError, match="other size"):
        embed(pairs, str(run), out=str(embedded.folder), loader=BATCH, size=24, trainer=CPU)
    with pytest.raises(ConfigError, match="holds no embeddings"):
        embed(pairs, str(run), out=str(run), loader=BATCH, trainer=CPU)
    with pytest.raises(ConfigError, match="within the data"):
        embed(pairs, str(run), out=str(pairs.root / "out"), loader=BATCH, trainer=CPU)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--encoders", "nowhere"), "nowhere: no such file or folder"),
        (("--encoders", "random", "--size", "0"), "size"),
        (("--encoders", "random", "--modalities", "radar"), "radar"),
        (("--encoders", "random", "--trainer.precision", "7"), "precision"),
        ((), "encoders"),
    ],
)
def test_what_cannot_be_embedded_is_refused_in_a_line(refused, tmp_path, arguments, says):
    data = ("--data", "SyntheticScenes", "--data.samples", "8", "--data.size", "32")
    assert says in refused("embed", *data, "--out", str(tmp_path / "none"), *arguments)


def test_columns_bear_the_names_of_blocks_whose_sensors_may_be_asked_in_any_order(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("decur.plotting.available", lambda: False)  # pictures take seconds
    data = LinearGaussianFactors(6, 2, dim=12, sensors=("x", "y", "z"), pair_dims=2)
    run = pretrain(
        data,
        DeCUR(8, blocks={"x+y+z": 0.25, "y+x": 0.5}),
        run=str(tmp_path / "run"),
        encoder=EncoderSettings("mlp"),
        projector=ProjectorSettings(8, 1),
        views=ViewSettings(1, augment={"all": {"crop_scale": [0.2, 1.0]}}),
        config=(
            "projector: {width: 8, layers: 1}\n"
            "objective: {class_path: DeCUR, init_args: {blocks: {x+y+z: 0.25, y+x: 0.5}}}\n"
        ),
        loader=LoaderSettings(batch_size=6, workers=0),
        monitor=MonitorSettings(every_epochs=0),
        trainer={"max_epochs": 1, **CPU},
    )
    out = embed(data, run, out=str(tmp_path / "out"), loader=BATCH, trainer=CPU)
    layout = pq.read_schema(min(out.folder.glob("part-*.parquet")))
    parts = {"x+y+z": [0, 2], "y+x": [2, 6], "unique": [6, 8]}
    assert json.loads(layout.metadata[b"decur"])["parts"] == parts
    restored, rows = restore(tmp_path / "run"), rows_of(out.folder)
    for name, modality in data.modalities.items():
        x = modality.scale(data[3]["images"][name])[None]
        with torch.no_grad():
            z = restored.projectors[name](restored.encoders[name](x))[0].numpy()
        row = rows[data.ids[3], name]
        assert list(row) == ["features", *parts]
        for part, (start, stop) in parts.items():
            np.testing.assert_allclose(row[part], z[start:stop], rtol=1e-5, atol=1e-6)
    named = read_vectors(out.folder, "y", part="y+x").values
    assert named.shape == (6, 4)
    for asked in ("block:x+y", "block:y+x", "x+y"):
        assert (read_vectors(out.folder, "y", part=asked).values == named).all()
    capsys.readouterr()
    main(["neighbors", str(out.folder), "--from=x", "--to=y", "--part=block:x+y"])
    assert "x to y, block:x+y, 6 searched" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"--part block:x\+z: .* y\+x, unique; choose one"):
        read_vectors(out.folder, "y", part="block:x+z")


@pytest.mark.slow
@pytest.mark.parametrize("samples", [3, 48])
def test_two_processes_write_what_one_does(tmp_path, samples):
    def command(name, *more):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        data = ("--data", "SyntheticScenes", "--data.samples", str(samples), "--data.size", "32")
        subprocess.run(
            [
                *(sys.executable, "-m", "decur.cli", "embed", *data, "--encoders", "random"),
                *("--encoder.name", "test_resnet", "--loader.batch_size", "4"),
                *("--loader.workers", "0", "--out", str(tmp_path / name)),
                *("--trainer.accelerator", "cpu", *more),
            ],
            check=True,
            env=environment,
            timeout=200,
        )
        return rows_of(tmp_path / name)

    two = command("two", "--trainer.devices", "2", "--trainer.strategy", "ddp")
    assert len(two) >= 2 * samples
    assert_same(two, command("one"))


def test_a_flipped_bit_in_a_part_is_found(pairs, run, embedded):
    path = sorted(embedded.folder.glob("part-*.parquet"))[0]
    vector = next(iter(rows_of(embedded.folder).values()))["features"].tobytes()
    content = bytearray(path.read_bytes())
    content[content.index(vector) + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{path}: .*CRC.*embed again"):
        read_vectors(embedded.folder, "s1")
    with pytest.raises(DataError, match=rf"{path}: .*CRC.*embed again"):
        embed(pairs, str(run), out=str(embedded.folder), loader=BATCH, trainer=CPU)


def test_vectors_that_are_not_finite_are_neither_written_nor_searched(pairs, run, tmp_path):
    encoder = load_encoder(run / "encoders" / "s1.safetensors")
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(1e20)
    file = save_encoder(encoder, tmp_path / "s1.safetensors")
    with pytest.raises(DataError, match="features of 's1': not finite"):
        embed(pairs, str(file), out=str(tmp_path / "out"), loader=BATCH, trainer=CPU)
    assert not list((tmp_path / "out").glob("part-*"))
