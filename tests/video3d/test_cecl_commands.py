"""The verbs of ``cl-video3d cecl`` from end to end, and what they refuse."""

import contextlib
import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from cl_video3d.cli import app
from cl_video3d.video import probe, read_manifest
from cl_video3d.video.samples import packaged_photographs, packaged_videos

from .conftest import film, write

CLIPS = ["--frames", 8, "--size", 64, "--clips", 4]
SHORT = ["--steps", 3, "--batch-size", 8, "--log-every", 1, "--threads", 1, "--no-progress"]


def run(*words):
    return app.run(["cecl", *map(str, words)])


def refused(capsys, *words):
    capsys.readouterr()
    assert run(*words) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    return text


@pytest.fixture(scope="module")
def place(videos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cecl")
    shares = ["--shares", 1, 0.5]
    assert run("encode-echo", videos, folder / "echo", *CLIPS, *shares, "--no-progress") == 0
    assert run("train", folder / "echo", folder / "run", *SHORT) == 0
    assert run("embed", folder / "run", folder / "echo", folder / "z.npz") == 0
    words = ["--run", folder / "run", "--clusters", 3]
    assert run("cluster", folder / "echo", folder / "clusters", *words) == 0
    return folder


def test_every_verb_leaves_what_it_promises(place):
    assert {"echo.parquet", "clips.parquet", "skipped.csv", "settings.json"} <= {
        path.name for path in (place / "echo").iterdir()
    }
    assert {"model.safetensors", "report.html", "results.json"} <= {path.name for path in (place / "run").iterdir()}
    assert json.loads((place / "run" / "results.json").read_text())["split"] == "train"
    page = (place / "clusters" / "report.html").read_text()
    for text in ("Rate and quality", "Examples", "Variance of log2 rate", "Clusters"):
        assert text in page
    with np.load(place / "z.npz") as file:
        assert file["z"].shape == (20, 128)
        assert set(file["videos"].tolist()) == {"v0", "v1", "v2", "v3", "v4"}
    rows = list(csv.DictReader((place / "clusters" / "assignment.csv").open()))
    assert len(rows) == 20
    mean = {name: np.mean([int(r["cluster"]) for r in rows if r["video_id"] == name]) for name in ("v0", "v3")}
    assert mean["v0"] < mean["v3"]


def test_evaluation_compares_with_baselines(place, tmp_path, capsys):
    words = ["--clusters", 2, "--folds", 2, "--out", tmp_path / "out"]
    assert run("evaluate", place / "run", place / "echo", *words) == 0
    text = capsys.readouterr().out
    for word in ("siti", "trial", "Rung error", "true clusters", "curves predicted by", "BD-rate", "hull", "too good"):
        assert word in text
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert set(found["scores"]) == {"siti", "trial", str(place / "run")}
    hull = [row["BD-rate, %"] for row in found["ladders"] if row["ladder"] == "hull"]
    assert len(hull) == 3
    assert all(row is not None and row <= 1e-9 for row in hull)
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/png") == 3
    words = ["--baselines", "siti", "--test-split", "test", "--clusters", 2, "--json"]
    assert run("evaluate", place / "run", place / "echo", *words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["folds"] == 1
    assert found["notes"] == []  # it was trained on another split


def test_ladders_for_new_videos(place, videos, tmp_path, capsys):
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    shutil.copy(videos / "v1.mp4", mixed / "good.mp4")
    (mixed / "bad.mp4").write_bytes(b"")
    assert run("predict-ladder", place / "clusters", mixed, tmp_path / "out") == 1  # one of two
    text = capsys.readouterr().out
    assert "bad.mp4" in text
    assert "confidence" in text
    (row,) = csv.DictReader((tmp_path / "out" / "predictions.csv").open())
    assert row["video"] == "good"
    assert 0 < float(row["confidence"]) <= 1
    rates = [float(row[f"kbps@CRF{crf}"]) for crf in (20, 26, 32, 38)]
    assert rates == sorted(rates, reverse=True)
    plan = json.loads((tmp_path / "out" / "ladders.json").read_text())["good"]
    kbps = [step["kbps"] for step in plan["steps"]]
    assert len(kbps) >= 3
    assert kbps == sorted(kbps)
    for step in plan["steps"]:
        assert 0 <= step["crf"] <= 51
        assert step["low"] <= step["expected_quality"] <= step["high"]
        assert (step["width"], step["height"]) in ((160, 128), (80, 64))
        assert step["command"].startswith(f"ffmpeg -i {mixed / 'good.mp4'} ")
    words = [
        "predict-ladder",
        place / "clusters",
        mixed / "good.mp4",
        tmp_path / "one",
        "--json",
        "--qualities",
        30,
        35,
    ]
    assert run(*words) == 0
    assert len(json.loads(capsys.readouterr().out)["ladders"]["good"]["steps"]) == 2


def test_ladders_of_clusters(place, tmp_path, capsys):
    words = [place / "clusters", tmp_path / "ladder.json", "--size", "1280x720", "--fps", 25, "--json"]
    assert run("ladder", *words) == 0
    plan = json.loads((tmp_path / "ladder.json").read_text())
    assert set(plan) == {"0", "1", "2"}
    assert all(step["width"] in (1280, 640) for steps in plan.values() for step in steps)
    rows = json.loads(capsys.readouterr().out)
    assert [row["kbps"] for row in rows] == [step["kbps"] for steps in plan.values() for step in steps]


def test_a_video_is_nearest_to_itself(place, videos, capsys):
    assert run("embed", place / "run", videos, place / "videos.npz", "--per-video", "--overwrite") == 0
    capsys.readouterr()
    assert run("search", place / "run", place / "videos.npz", videos / "v3.mp4", "--top", 2, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found) == 2
    assert found[0]["video"] == "v3"


def test_embedding_videos_is_embedding_their_clips(place, videos, tmp_path):
    assert run("embed", place / "run", videos, tmp_path / "fresh.npz") == 0
    with np.load(tmp_path / "fresh.npz") as fresh, np.load(place / "z.npz") as known:
        order = [known["ids"].tolist().index(name) for name in fresh["ids"].tolist()]
        np.testing.assert_allclose(fresh["z"], known["z"][order], atol=1e-5)


def test_bjontegaard_of_two_files(tmp_path, capsys):
    a, b = tmp_path / "a.csv", tmp_path / "b.csv"
    a.write_text("kbps,psnr\n100,30\n200,33\n400,36\n800,39\n")
    b.write_text("rate,quality\n80,30\n160,33\n320,36\n640,39\n")
    assert run("bdrate", a, b) == 0
    text = capsys.readouterr().out
    assert "saves 20.0 %" in text
    assert "dB" in text
    b.write_text("rate,quality\n80,80\n160,83\n320,86\n640,89\n")
    assert run("bdrate", a, b, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bd_rate"]["value"] is None
    assert "share no quality" in found["bd_rate"]["reason"]
    b.write_text("bpp,psnr\n0.02,30\n0.04,33\n0.08,36\n0.16,39\n")
    assert "differ in rate" in refused(capsys, "bdrate", a, b)
    assert "vmaf" in refused(capsys, "bdrate", a, a, "--quality", "vmaf")


def test_info_names_paper_and_codecs(capsys):
    assert run("info") == 0
    text = capsys.readouterr().out
    assert "2606.29166" in text
    assert "h264" in text


def test_samples_are_real_files_with_groups(tmp_path):
    out = tmp_path / "samples"
    assert run("sample-data", out, "--photographs", 1, "--generated", 3) == 0
    entries = read_manifest(out)
    kinds = {kind: [e for e in entries if e.video_id.startswith(kind)] for kind in ("real", "photo", "generated")}
    assert [len(found) for found in kinds.values()] == [3, 12, 3]
    assert {entry.group for entry in kinds["real"]} == {"bikes", "bbb", "carphone"}
    for entry in entries:
        assert probe(entry.path).frames >= 16
    bpp = [probe(entry.path).bpp for entry in kinds["generated"]]
    assert bpp == sorted(bpp)  # graded
    assert bpp[-1] > 5 * bpp[0]
    assert set(packaged_videos()) == {"bikes", "bbb", "carphone"}
    assert len(packaged_photographs()) == 12


def test_bad_input_is_refused_in_one_block(place, videos, tmp_path, capsys):
    samples = tmp_path / "filled"
    samples.mkdir()
    (samples / "mine.txt").write_text("keep")
    assert "something else" in refused(capsys, "sample-data", samples)
    assert (samples / "mine.txt").read_text() == "keep"
    assert "missing" in refused(capsys, "encode-echo", tmp_path / "none.csv", tmp_path / "o")
    assert not (tmp_path / "o").exists()
    assert "--workers" in refused(capsys, "encode-echo", videos, tmp_path / "o", "--workers", 0)
    assert "--crf" in refused(capsys, "encode-echo", videos, tmp_path / "o", "--crf", 70)
    (tmp_path / "zero.mp4").write_bytes(b"")
    assert "zero.mp4" in refused(capsys, "encode-echo", tmp_path / "zero.mp4", tmp_path / "o", "--no-progress")
    assert "holds no echoes" in refused(capsys, "train", videos, tmp_path / "r")
    assert "already holds a run" in refused(capsys, "train", place / "echo", place / "run", *SHORT)
    assert "--batch-size" in refused(capsys, "train", place / "echo", tmp_path / "r1", "--batch-size", 1)
    assert not (tmp_path / "r1").exists()
    assert "one codec" in refused(capsys, "train", place / "echo", tmp_path / "r2", "--echo", "residual", *SHORT)
    assert not (tmp_path / "r2").exists()
    assert "unknown split" in refused(capsys, "train", place / "echo", tmp_path / "r2", "--split", "banana", *SHORT)
    assert ".npz" in refused(capsys, "embed", place / "run", videos, tmp_path / "z.csv")
    assert "exists already" in refused(capsys, "embed", place / "run", place / "echo", place / "z.npz")
    assert "holds files" in refused(capsys, "cluster", place / "echo", place / "clusters")
    assert "something else" in refused(capsys, "cluster", place / "echo", place / "run", "--overwrite")
    assert "--clusters" in refused(capsys, "cluster", place / "echo", tmp_path / "c", "--clusters", 99)
    assert not (tmp_path / "c").exists()
    evaluate = ["evaluate", place / "run", place / "echo"]
    assert "unknown backbone" in refused(capsys, *evaluate, "--baselines", "magic")
    assert "one side" in refused(capsys, *evaluate, "--test-split", "val")
    assert run("cluster", place / "echo", tmp_path / "plain", "--clusters", 2) == 0
    assert "--run" in refused(capsys, "predict-ladder", tmp_path / "plain", videos / "v0.mp4", tmp_path / "p")
    assert "cecl-ladders" in refused(capsys, "predict-ladder", place / "run", videos / "v0.mp4", tmp_path / "p")
    assert "--size" in refused(capsys, "ladder", place / "clusters", tmp_path / "l.json", "--size", "big")
    assert "--top" in refused(capsys, "search", place / "run", place / "z.npz", videos / "v0.mp4", "--top", 0)
    (tmp_path / "z.npz").write_bytes(b"PK none")
    assert "index" in refused(capsys, "search", place / "run", tmp_path / "z.npz", videos / "v0.mp4")
    small = write(tmp_path / "small.mp4", film(20, 48, 48))
    assert "smaller than a clip" in refused(capsys, "predict-ladder", place / "clusters", small, tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_strict_extraction_says_so_in_its_status(videos, tmp_path, capsys):
    folder = tmp_path / "some"
    folder.mkdir()
    shutil.copy(videos / "v0.mp4", folder / "good.mp4")
    (folder / "bad.mp4").write_text("no video")
    words = ["encode-echo", folder, tmp_path / "out", "--frames", 8, "--size", 64, "--clips", 1, "--no-progress"]
    assert run(*words) == 0
    assert "left out: bad" in capsys.readouterr().out
    assert run(*words, "--strict") == 1


def test_workers_die_with_their_parent(tmp_path):
    """SIGKILL leaves no time to tell them."""
    write(tmp_path / "videos" / "v.mp4", film(200))
    code = (
        "from cl_video3d.cecl import ClipSettings, EchoSettings, measure_videos\n"
        "from cl_video3d.video import read_manifest\n"
        f"measure_videos(read_manifest({str(tmp_path / 'videos')!r}), {str(tmp_path / 'o')!r}, workers=2,\n"
        "               clips=ClipSettings(clips=400), echo=EchoSettings(('hevc',), ('veryslow',)), progress=False)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)

    def alive():
        return [path for path in Path("/proc").iterdir() if path.name.isdigit() and _session(path) == parent.pid]

    try:
        _wait_for(lambda: len(alive()) >= 4)  # itself, two workers, and what watches over semaphores
        time.sleep(1)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    _wait_for(lambda: not alive())
    assert len(alive()) == 0


def _session(process):
    with contextlib.suppress(OSError):
        state, _, _, session = (process / "stat").read_text().rpartition(")")[2].split()[:4]
        return int(session) if state != "Z" else None
    return None


def _wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    assert condition()
