"""Readers: every format, aeon as oracle, every refusal."""

import io
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aeon.datasets import load_from_ts_file
from cl_signals.series import find_sets, read_labelled, read_series, read_split, to_batch
from cl_signals.series.samples import benchmark_sets, write_samples
from contrastive_core.data import packaged
from contrastive_core.errors import ContrastiveWarning, InputError

HEADER = "@problemName x\n@timestamps false\n@univariate true\n@classLabel true a b\n@data\n"


@pytest.mark.parametrize("name", ["GunPoint", "BasicMotions", "JapaneseVowels", "PickupGestureWiimoteZ"])
def test_ts_equals_aeon(name):
    path = packaged("aeon", "datasets/data") / name / f"{name}_TRAIN.ts"
    ours = read_series(path)
    x, y = load_from_ts_file(str(path))
    assert [label.lower() for label in ours.y] == [str(label) for label in y]  # aeon lowers the case
    for series, theirs in zip(ours.x, x, strict=True):
        theirs = theirs[:, ~np.isnan(theirs).all(0)]
        np.testing.assert_allclose(series, theirs, rtol=1e-6)


def test_every_format_reads_the_same(tmp_path):
    x = np.random.default_rng(0).normal(size=(4, 2, 9)).astype(np.float32)
    y = np.array(["a", "b", "a", "b"])
    rows = [(i, c, t, float(x[i, c, t]), y[i]) for i in range(4) for c in range(2) for t in range(9)]
    table = pa.table(dict(zip(["series_id", "channel", "t", "value", "label"], zip(*rows, strict=True), strict=True)))
    pq.write_table(table, tmp_path / "a.parquet")
    import pyarrow.csv as pc

    pc.write_csv(table, tmp_path / "a.csv")
    np.savez(tmp_path / "a.npz", X=x, y=y)
    nested = pa.table({"target": [each.tolist() for each in x], "label": y.tolist()})
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, nested.schema) as writer:
        writer.write_table(nested)
    lines = [":".join(",".join(map(str, c)) for c in s) + f":{label}" for s, label in zip(x.tolist(), y, strict=True)]
    (tmp_path / "a.ts").write_text(HEADER + "\n".join(lines) + "\n")
    for suffix in ("parquet", "csv", "npz", "arrow", "ts"):
        read = read_series(tmp_path / f"a.{suffix}")
        np.testing.assert_allclose(np.stack(read.x), x, rtol=1e-6)
        assert read.y == y.tolist()
    np.save(tmp_path / "X_train.npy", x)
    np.save(tmp_path / "y_train.npy", np.arange(4))
    np.save(tmp_path / "X_test.npy", x)
    train, test = read_split(tmp_path)
    assert train.y == ["0", "1", "2", "3"]
    assert test.y is None
    np.savez(tmp_path / "both.npz", X_train=x, y_train=y, X_test=x, y_test=y)
    assert read_split(tmp_path / "both.npz")[1].y == y.tolist()
    (tmp_path / "u.tsv").write_text("1\t0.5\t1.5\tNaN\n2\t1\t2\t3\n")
    read = read_series(tmp_path / "u.tsv")
    assert [each.tolist() for each in read.x] == [[[0.5, 1.5]], [[1, 2, 3]]]
    assert read.y == ["1", "2"]


def test_gaps_are_filled_and_padding_is_cut(tmp_path):
    (tmp_path / "a.ts").write_text(HEADER + "?,1,?,3,NaN,NaN:a\n5,5,5:b\n")
    read = read_series(tmp_path / "a.ts")
    assert read.x[0].tolist() == [[1, 1, 2, 3]]
    assert to_batch(read, 64).shape == (2, 1, 64)
    (tmp_path / "b.ts").write_text(HEADER + "1,2:?,?:a\n")
    with pytest.warns(ContrastiveWarning, match="zeros"):
        assert read_series(tmp_path / "b.ts").x[0].tolist() == [[1, 2], [0, 0]]


def test_labels_and_ids_are_strings_as_written(tmp_path):
    (tmp_path / "a.csv").write_bytes(
        b"\xef\xbb\xbfseries_id,t,value,label\n007,0,1,01\n007,1,,01\n1_1,0,2,\xe2\x80\xa8x\n1_1,1,3,\xe2\x80\xa8x\n"
    )
    read = read_series(tmp_path / "a.csv")
    assert read.ids == ["007", "1_1"]
    assert read.y == ["01", "x"]
    np.savez(tmp_path / "a.npz", X=np.zeros((2, 3)), y=np.array([1.0, 2.0]))
    assert read_series(tmp_path / "a.npz").y == ["1", "2"]


def test_header_lines_mean_the_same_in_any_case(tmp_path):
    for word in ("True", "TRUE", "true"):
        (tmp_path / "a.TS").write_text(HEADER.replace("@classLabel true", f"@ClassLabel {word}") + "1,2:a\n3,4:b\n")
        read = read_series(tmp_path / "a.TS")
        assert (read.channels, read.y) == (1, ["a", "b"])
    (tmp_path / "r.ts").write_text(HEADER.replace("@classLabel true a b", "@targetLabel true") + "1,2:0.5\n3,4:1\n")
    with pytest.warns(ContrastiveWarning, match="targets"):
        read = read_series(tmp_path / "r.ts")
    assert (read.channels, read.y) == (1, None)


def test_empty_fields_at_the_start_are_gaps(tmp_path):
    (tmp_path / "a.tsv").write_text("1\t\t\t3\t4\n2\t1\t2\t3\t4\n")
    (tmp_path / "a.ts").write_text(HEADER + ",,3,4:a\n1,2,3,4:b\n")
    for name in ("a.tsv", "a.ts"):
        assert read_series(tmp_path / name).x[0].tolist() == [[3, 3, 3, 4]]


def test_parts_are_known_in_any_case_and_what_is_left_out_is_named(tmp_path):
    for part in ("Train", "Test"):
        (tmp_path / "one").mkdir(exist_ok=True)
        (tmp_path / "one" / f"gun_{part}.ts").write_text(HEADER + "1,2:a\n3,4:b\n")
    assert read_split(tmp_path / "one")[0].name == "gun"
    assert read_labelled(tmp_path / "one" / "gun_Train.ts")[1] is not None
    assert read_labelled(tmp_path / "one" / "gun_Test.ts")[1] is None
    (tmp_path / "notes").mkdir()
    with pytest.warns(ContrastiveWarning, match="no set in notes"):
        assert find_sets(tmp_path) == [tmp_path / "one"]


def test_a_small_file_cannot_claim_much_memory(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6)})
    (tmp_path / "a.npy").write_bytes(header.getvalue())
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("X.npy", header.getvalue())
    for name in ("a.npy", "a.npz"):
        with pytest.raises(InputError, match="claims"):
            read_series(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.ts", "", "empty"),
        ("a.ts", "@problemName x\n", "no @data"),
        ("a.ts", HEADER, "no series"),
        ("a.ts", HEADER + "1,2,3:a\n1,2", "lacks its class"),
        ("a.ts", HEADER + "1,2:3,4:a\n1,2:b\n", "differ in channels"),
        ("a.ts", HEADER + "1,x,3:a\n", "not a number"),
        ("a.ts", HEADER + "1,inf,3:a\n", "infinite"),
        ("a.ts", HEADER + ":a\n", "no values"),
        ("a.ts", HEADER + "?,?:a\n", "nothing but NaN"),
        ("a.ts", HEADER.replace("timestamps false", "timestamps true"), "time stamps"),
        ("a.ts", "1,2,3:a\n", "header"),
        ("a.ts", b"\xff\xfe@data", "UTF-8"),
        ("a.npz", b"PK\x03\x04cut", "cannot be read"),
        ("a.npy", b"\x93NUMPY", "cannot be read"),
        ("a.parquet", b"PAR1", "cannot be read"),
        ("a.arrow", b"ARROW1", "cannot be read"),
        ("a.csv", "series_id,t\n1,2\n", "lacks a column"),
        ("a.csv", "series_id,t,value\n1,0,1,9\n", "line 2"),
        ("a.csv", "series_id,t,value\n1,nan,1\n", "time is missing"),
        ("a.csv", "series_id,channel,t,value\n1,a,0,1\n1,b,1,2\n", "other times"),
        ("a.csv", "series_id,t,value,label\n1,0,1,\n", "no class"),
        ("a.csv", "series_id,t,value\n,0,1\n", "an id"),
        ("a.csv", "series_id,t,value\n1,0,1_1\n", "not a number"),
        ("a.ts", HEADER + "1,2,3:1,2:a\n", "differ in length"),
        ("a.ts", HEADER + "1,1e20,3:a\n", "fill value"),
        ("a.ts", HEADER.replace("true a b", "maybe") + "1:a\n", "neither true nor false"),
        ("a.tsv", "nan\t1\t2\n\t1\t2\n", "no class"),
        ("a.csv", "series_id,t,value\n1,0,x\n", "not a number"),
        ("a.csv", "series_id,t,value\n1,0,1\n1,0,2\n", "given twice"),
        ("a.csv", "series_id,channel,t,value\n1,a,0,1\n1,b,0,2\n2,a,0,1\n", "channel is missing"),
        ("a.csv", "series_id,t,value,label\n1,0,1,a\n1,1,2,b\n", "two labels"),
        ("a.xyz", "1", "unknown file format"),
    ],
)
def test_damaged_files_are_refused(tmp_path, name, content, text):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=text) as caught:
        read_series(path)
    assert name in str(caught.value)


def test_arrays_that_do_not_fit_are_refused(tmp_path):
    for arrays in ({"X": np.zeros(3)}, {"X": np.zeros((2, 3)), "y": np.zeros(3)}, {"z": np.zeros((2, 3))}):
        np.savez(tmp_path / "a.npz", **arrays)
        with pytest.raises(InputError):
            read_series(tmp_path / "a.npz")
    np.save(tmp_path / "o.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(InputError, match="pickled"):
        read_series(tmp_path / "o.npy")
    for labels, text in (([0.0, np.nan], "no class"), ([0.0, 0.5], "whole number")):
        np.savez(tmp_path / "a.npz", X=np.zeros((2, 3)), y=np.array(labels))
        with pytest.raises(InputError, match=text):
            read_series(tmp_path / "a.npz")


def test_folders_that_hold_no_set_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(InputError):
            read_split(path)
        with pytest.raises(InputError):
            find_sets(path)
    (tmp_path / "a_TRAIN.ts").write_text(HEADER + "1,2:a\n")
    with pytest.raises(InputError, match="test part"):
        read_split(tmp_path)
    (tmp_path / "a_TEST.ts").write_text(HEADER + "1,2:3,4:a\n")
    with pytest.raises(InputError, match="differ in channels"):
        read_split(tmp_path)


def test_samples_are_the_original_files(tmp_path):
    folders = write_samples(tmp_path / "s")
    assert len(find_sets(tmp_path / "s")) == len(folders) == 5
    source = packaged("aeon", "datasets/data") / "GunPoint" / "GunPoint_TRAIN.ts"
    assert (tmp_path / "s" / "GunPoint" / "GunPoint_TRAIN.ts").read_bytes() == source.read_bytes()
    with pytest.raises(InputError, match="--overwrite"):
        write_samples(tmp_path / "s")


def test_benchmark_sets_say_what_is_left_out(tmp_path):
    sets, skipped = benchmark_sets()
    assert {"GunPoint", "Trace", "JapaneseVowels"} <= set(sets)
    assert set(skipped) == {"GestureMidAirD1", "EyesOpenShut"}
    x, y = np.random.default_rng(0).normal(size=(4, 10)), np.array([0, 1, 0, 1])
    (tmp_path / "gesture_mid_air_d1").mkdir()
    np.savez(tmp_path / "gesture_mid_air_d1" / "g.npz", X_train=x, y_train=y, X_test=x, y_test=y)
    assert "GestureMidAirD1" in benchmark_sets(tmp_path)[0]
