"""The echo: what it answers to, what it does not, and that it is measured once."""

import contextlib
import csv
import resource
import shutil
import sqlite3

import numpy as np
import pytest
from cl_video3d.cecl import echo as echo_room
from cl_video3d.cecl import extraction as extraction_room
from cl_video3d.cecl.cache import EchoCache
from cl_video3d.cecl.clips import ClipSettings, plan_clips
from cl_video3d.cecl.data import measure_clips
from cl_video3d.cecl.echo import EchoSettings, cache_key, echo_vectors, frames_digest, measure, residual_map
from cl_video3d.cecl.extraction import measure_videos
from cl_video3d.cecl.folder import folder_lock, read_echoes
from cl_video3d.video.encoding import EncodeSetting
from cl_video3d.video.manifest import Entry, read_manifest
from cl_video3d.video.reading import luma, probe
from contrastive_core.errors import InputError

from .conftest import film, moving, planar, texture, write

SMALL = ClipSettings(frames=8, size=64, clips=3)


def log_bpp(clip, crf):
    return float(np.log2(measure(clip, EncodeSetting(value=crf))[0].bpp))


def still(noise=0.0, *, picture=None, frames=16, side=96):
    rng = np.random.default_rng(1)
    y = texture(side) if picture is None else picture
    return planar(np.stack([y + (rng.normal(0, noise, y.shape) if noise else 0) for _ in range(frames)]))


# --- invariants 3 to 5 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blur", [0.6, 1.2, 4.0])
def test_rate_and_quality_fall_with_crf(blur):
    clip = moving(picture=texture(140, blur=blur))
    points = [measure(clip, EncodeSetting(value=crf))[0] for crf in (20, 26, 32, 38)]
    assert (np.diff([point.bpp for point in points]) < 0).all()
    assert (np.diff([point.psnr for point in points]) <= 0).all()
    for point in points:
        assert point.bits == point.bits_i + point.bits_p + point.bits_b
        assert point.n_i + point.n_p + point.n_b == 16
        assert point.bpp == point.bits / (16 * 96 * 96)


def test_motion_and_noise_cost_bits():
    """Motion costs bits at every quality; noise where it is not quantised away."""
    for crf in (20, 26):
        assert log_bpp(moving(), crf) - log_bpp(still(), crf) >= 0.3
    assert log_bpp(still(5.0), 20) - log_bpp(still(), 20) >= 0.5
    flat = np.full((96, 96), 128.0)
    assert log_bpp(still(5.0, picture=flat), 20) - log_bpp(still(picture=flat), 20) >= 4


def test_flips_keep_the_echo_and_resizing_does_not():
    clip = moving(picture=texture(240, blur=1.5), side=96, frames=16)
    y = luma(clip)
    for crf in (20, 26, 32):
        assert abs(log_bpp(planar(y[:, :, ::-1].astype(float)), crf) - log_bpp(clip, crf)) < 0.15
    large = moving(picture=texture(480, blur=3.0), side=192, frames=16, step=(4, 2))
    half = luma(large).reshape(16, 96, 2, 96, 2).mean((2, 4))
    assert log_bpp(planar(half), 26) - log_bpp(large, 26) > 0.4


def test_static_clips_have_a_floor():
    vectors = echo_vectors(np.array([[0.0, 1e-9]]), np.array([[61.0, 61.0]]))
    assert np.isfinite(vectors).all()
    assert vectors[0, 0] == np.log2(echo_room.BPP_FLOOR)


def test_vectors_by_kind():
    bpp, psnr = np.array([[0.5, 0.25]]), np.array([[36.0, 30.0]])
    np.testing.assert_allclose(echo_vectors(bpp, psnr), [[-1, -2, 6, 5]])
    np.testing.assert_allclose(echo_vectors(bpp, psnr, kind="rate"), [[-1, -2]])
    np.testing.assert_allclose(echo_vectors(bpp, psnr, kind="quality"), [[6, 5]])
    wide = echo_vectors(bpp, psnr, kind="extended", psnr_std=np.ones((1, 2)), frame_bpp=np.full((1, 2, 3), 0.125))
    np.testing.assert_allclose(wide, [[-1, -2, 6, 5, 1 / 6, 1 / 6, *[-3] * 6]])


def test_residual_maps_are_block_means():
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 256, (2, 18, 16), dtype=np.uint8) for _ in range(2))
    found = residual_map(a, b)
    assert found.shape == (2, 4, 4)
    block = np.abs(a[1, 4:8, 8:12].astype(int) - b[1, 4:8, 8:12]).mean()
    assert found[1, 1, 2] == pytest.approx(np.log1p(block), rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"preset": ("fast", "fast")}, "--preset"),
        ({"crf": (20.0, 20.0)}, "given twice"),
        ({"shares": (0.5,)}, "share 1"),
        ({"crf": (99.0,)}, "--crf"),
    ],
)
def test_echoes_that_cannot_be_measured_are_refused(settings, text):
    with pytest.raises(InputError) as error:
        EchoSettings(**settings)
    assert text in str(error.value)


# --- clips ------------------------------------------------------------------------------------------------------------


def test_clips_are_spread_and_repeat(videos):
    video, entry = probe(videos / "v0.mp4"), Entry("v0", videos / "v0.mp4", "a")
    first = plan_clips(video, entry, SMALL, 0)
    assert first == plan_clips(video, entry, SMALL, 0)
    assert [window.start for window in first] == [8, 16, 24]
    assert len({(window.x, window.y) for window in first}) == 3
    assert all(w.x % 2 == w.y % 2 == 0 and w.x <= 96 and w.y <= 64 for w in first)
    late = plan_clips(video, Entry("v0", videos / "v0.mp4", "a", start=20, frames=10), SMALL, 0)
    assert all(20 <= window.start <= 22 for window in late)
    other = plan_clips(video, entry, ClipSettings(frames=8, size=64, clips=3, seed=1), 0)
    assert [w.x for w in other] != [w.x for w in first]
    (whole,) = plan_clips(video, entry, ClipSettings(frames=8, size=0, clips=1), 0)
    assert (whole.x, whole.y) == (0, 0)


@pytest.mark.parametrize(
    "settings",
    [
        {"frames": 2},
        {"size": 63},
        {"clips": 0},
        {"stride": -1},
        {"short_sides": ()},
        {"short_sides": (48,), "size": 96},
        {"short_sides": (144, 144)},
    ],
)
def test_clips_that_cannot_be_are_refused(settings):
    with pytest.raises(InputError, match="out of range"):
        ClipSettings(**settings)


# --- extraction -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(videos, tmp_path_factory):
    out = tmp_path_factory.mktemp("echo") / "out"
    entries = read_manifest(videos)
    return measure_videos(entries, out, clips=SMALL, progress=False), out, entries


def test_extraction_measures_every_clip_once(measured):
    found, out, entries = measured
    assert (found.videos, found.clips, found.encoded, found.cached) == (5, 15, 60, 0)
    assert found.skipped == ()
    echoes = read_echoes(out).at()
    assert [setting.value for setting in echoes.settings] == [20, 26, 32, 38]
    clip = echoes.clips[4]
    frames = echoes.pixels([4])[0]
    assert frames_digest(frames) == clip.digest
    direct = measure(frames, EncodeSetting(value=26), fps=clip.fps)[0]
    assert echoes.measured["bpp"][4, 1] == direct.bpp
    assert echoes.measured["psnr"][4, 1] == pytest.approx(direct.psnr)
    # From smooth to fine textures rates rise.
    rates = [np.log2(echoes.measured["bpp"][[c.video_id == f"v{k}" for c in echoes.clips], 1]).mean() for k in range(4)]
    assert (np.diff(rates) > 0).all()
    before = {path.name: path.read_bytes() for path in out.glob("*.parquet")}
    again = measure_videos(entries, out, clips=SMALL, progress=False)
    assert (again.encoded, again.cached) == (0, 60)
    assert {path.name: path.read_bytes() for path in out.glob("*.parquet")} == before


def test_another_setting_or_library_is_another_measurement(measured, monkeypatch):
    _, out, entries = measured
    with_one_more = EchoSettings(crf=(20, 26, 29, 32, 38))
    found = measure_videos(entries[:1], out.parent / "other", clips=SMALL, echo=with_one_more, progress=False)
    assert found.encoded == 15
    args = ("digest", EncodeSetting(), 30.0, EchoSettings())
    key = cache_key(*args)
    assert key == cache_key(*args)
    assert key != cache_key("digest", EncodeSetting(value=27), 30.0, EchoSettings())
    assert key != cache_key("digest", EncodeSetting(), 30.0, EchoSettings(ssim=True))
    monkeypatch.setattr(echo_room, "library_versions", lambda: "libavcodec-99")
    assert key != cache_key(*args)


def test_two_workers_give_what_one_gives(measured, tmp_path):
    _, out, entries = measured
    found = measure_videos(entries[:2], tmp_path / "out", clips=SMALL, workers=2, progress=False)
    assert found.encoded == 24
    one, two = read_echoes(out), read_echoes(tmp_path / "out")
    assert two.ids == one.ids[:6]
    for name, values in two.measured.items():
        np.testing.assert_array_equal(values, one.measured[name][:6])


def test_an_interrupted_extraction_continues(measured, tmp_path, monkeypatch):
    _, out, entries = measured
    calls = []
    original = extraction_room.measure

    def dies(*args, **kwargs):
        calls.append(1)
        if len(calls) > 30:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(extraction_room, "measure", dies)
    with pytest.raises(KeyboardInterrupt):
        measure_videos(entries, tmp_path / "out", clips=SMALL, progress=False)
    assert not (tmp_path / "out" / "echo.parquet").exists()
    assert len(EchoCache(tmp_path / "out" / "cache.sqlite")) == 24  # two videos were whole
    monkeypatch.undo()
    found = measure_videos(entries, tmp_path / "out", clips=SMALL, progress=False)
    assert (found.encoded, found.cached) == (36, 24)
    np.testing.assert_array_equal(read_echoes(tmp_path / "out").measured["bpp"], read_echoes(out).measured["bpp"])


def test_videos_that_cannot_be_used_are_left_out_and_listed(videos, tmp_path):
    folder = tmp_path / "mixed"
    good = write(folder / "good.mp4", film())
    whole = good.read_bytes()
    (folder / "zero.mp4").write_bytes(b"")
    (folder / "half.mp4").write_bytes(whole[: len(whole) // 2])
    write(folder / "one.mp4", film(1))
    write(folder / "tiny.mp4", film(20, 48, 48))
    write(folder / "odd.mp4", film(20, 97, 99), pix_fmt="yuv444p")
    found = measure_videos(read_manifest(folder), tmp_path / "out", clips=SMALL, progress=False)
    assert found.clips == 6
    assert {each.video_id for each in found.skipped} == {"zero", "half", "one", "tiny"}
    with (tmp_path / "out" / "skipped.csv").open() as file:
        reasons = {row["video_id"]: row["what"] + row["why"] for row in csv.DictReader(file)}
    assert "no bytes" in reasons["zero"]
    assert "1 frames, a clip spans 8" in reasons["one"]
    assert "48x48" in reasons["tiny"]
    assert set(read_echoes(tmp_path / "out").videos) == {"good", "odd"}
    (folder / "good.mp4").unlink()
    (folder / "odd.mp4").unlink()
    with pytest.raises(InputError, match="no video could be measured"):
        measure_videos(read_manifest(folder), tmp_path / "none", clips=SMALL, progress=False)


def test_pq_is_refused_without_the_flag(tmp_path):
    path = write(
        tmp_path / "hdr.mp4",
        film(10),
        pix_fmt="yuv420p10le",
        codec="libx265",
        color_trc=16,
        options={"preset": "ultrafast", "x265-params": "transfer=smpte2084:log-level=none"},
    )
    with pytest.raises(InputError, match="PQ"):
        measure_videos([Entry("v", path, "v")], tmp_path / "out", clips=SMALL, progress=False)
    allowed = ClipSettings(frames=8, size=64, clips=1, allow_pq=True)
    assert measure_videos([Entry("v", path, "v")], tmp_path / "out", clips=allowed, progress=False).clips == 1


def test_a_full_disk_stops_with_what_was_measured_kept(measured, tmp_path):
    """A limit on the size of files stands in for the full disk: the same errors come from the same calls."""
    _, _, entries = measured
    out = tmp_path / "out"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # less than one shard of pixels
    try:
        with pytest.raises(InputError, match=r"could not be written|cannot be used"):
            measure_videos(entries, out, clips=SMALL, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(out.glob("*.parquet"))
    assert not [path for path in out.rglob("*") if ".tmp" in path.name]
    assert measure_videos(entries, out, clips=SMALL, progress=False).clips == 15


def test_a_cache_is_whole_or_not_there(measured, tmp_path, monkeypatch):
    """A process that is killed as the file appears leaves none, or one that can be gone on from."""
    _, _, entries = measured
    for content in (None, b""):
        folder = tmp_path / f"out{content is None}"
        folder.mkdir()
        if content is not None:
            (folder / "cache.sqlite").write_bytes(content)
        assert measure_videos(entries[:1], folder, clips=SMALL, progress=False).encoded == 12

    def killed(*_):
        raise SystemExit

    cache = EchoCache(tmp_path / "new" / "cache.sqlite")
    monkeypatch.setattr("cl_video3d.cecl.cache.sqlite3.connect", killed)
    with pytest.raises(SystemExit):
        cache.put({"a": ({}, None)})
    assert not cache.path.exists()


def test_damaged_caches_and_tables_are_named(measured, tmp_path):
    _, _, entries = measured
    out = tmp_path / "out"
    out.mkdir()
    (out / "cache.sqlite").write_bytes(b"no database at all, but long enough to be looked at" * 40)
    with pytest.raises(InputError, match="cache is damaged"):
        measure_videos(entries[:1], out, clips=SMALL, progress=False)
    (out / "cache.sqlite").unlink()
    measure_videos(entries[:1], out, clips=SMALL, progress=False)
    for row in ("{}", "[1]", "nonsense", '{"bits": "many"}', "[" * 100_000):
        with sqlite3.connect(out / "cache.sqlite") as connection:
            connection.execute("UPDATE echo SET row = ? WHERE key = (SELECT MIN(key) FROM echo)", (row,))
        with pytest.raises(InputError, match="cache is damaged"):
            measure_videos(entries[:1], out, clips=SMALL, progress=False)
    with pytest.raises(InputError, match="holds no echoes"):
        read_echoes(tmp_path)


@pytest.mark.parametrize("name", ["echo.parquet", "clips.parquet", "settings.json", "pixels"])
@pytest.mark.parametrize("how", ["cut", "one byte"])
def test_what_was_changed_is_not_read_and_a_rerun_repairs_it(measured, tmp_path, name, how):
    _, out, entries = measured
    folder = tmp_path / "out"
    shutil.copytree(out, folder)
    path = next((folder / "pixels").glob("*.npy")) if name == "pixels" else folder / name
    before = path.read_bytes()
    middle = len(before) // 2
    path.write_bytes(
        before[:middle] if how == "cut" else before[:middle] + bytes([before[middle] ^ 1]) + before[middle + 1 :]
    )

    def read():
        echoes = read_echoes(folder)
        return echoes.pixels(range(len(echoes)))

    if name == "settings.json" and how == "one byte":  # whatever the byte meant: it is refused or means the same
        with contextlib.suppress(InputError):
            read()
    else:
        with pytest.raises(InputError, match="again"):
            read()
    assert measure_videos(entries, folder, clips=SMALL, progress=False).encoded == 0
    assert path.read_bytes() == before
    assert len(read()) == 15


def test_a_folder_has_one_writer_and_no_reader_meanwhile(measured, tmp_path, monkeypatch):
    _, out, entries = measured
    with folder_lock(out):
        with pytest.raises(InputError, match="in use"):
            measure_videos(entries, out, clips=SMALL, progress=False)
        monkeypatch.setattr("cl_video3d.cecl.folder.READ_WAIT", 0.1)
        with pytest.raises(InputError, match="in use"):
            read_echoes(out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("keep")
    with pytest.raises(InputError, match="something else"):
        measure_videos(entries, tmp_path / "mine", clips=SMALL, progress=False)


def test_clips_in_memory_have_the_echoes_of_clips_on_disk(measured):
    _, out, _ = measured
    echoes = read_echoes(out)
    frames = echoes.pixels([0, 4])
    held = measure_clips(frames, fps=echoes.clips[0].fps, groups=["a", "b"])
    for name in ("bpp", "psnr", "bits_i"):
        np.testing.assert_allclose(held.measured[name], echoes.measured[name][[0, 4]], rtol=1e-6)
    assert held.groups == ["a", "b"]
    np.testing.assert_array_equal(held.take([1]).pixels([0])[0], frames[1])
    assert held.clip_shape() == (8, 64, 64)


def test_codecs_and_settings_are_checked_before_work(measured, tmp_path):
    _, out, entries = measured
    with pytest.raises(InputError, match="too small for the encoder"):
        measure_videos(entries, tmp_path / "out", clips=ClipSettings(size=48), echo=EchoSettings(codec=("av1",)))
    assert not (tmp_path / "out").exists()
    echoes = read_echoes(out)
    with pytest.raises(InputError, match="no measurements of that codec"):
        echoes.at("av1")
    with pytest.raises(InputError, match="not kept"):
        echoes.residuals([0])
    with pytest.raises(InputError, match="no clips of that split"):
        echoes.part("validation")
    assert len(echoes.part("train")) == 9


def test_several_codecs_shares_and_residuals(videos, tmp_path):
    echo = EchoSettings(codec=("h264", "vp9"), crf=(24, 36), shares=(1.0, 0.5), residuals=True, ssim=True)
    found = measure_videos(read_manifest(videos)[:1], tmp_path / "out", clips=SMALL, echo=echo, progress=False)
    assert found.encoded == 3 * 8
    echoes = read_echoes(tmp_path / "out")
    assert echoes.residuals([0, 2]).shape == (2, 8, 8, 16, 16)
    assert [s.value for s in echoes.at("vp9", 0.5).settings] == [24, 36]
    full, half = echoes.at("h264"), echoes.at("h264", 0.5)
    assert (half.measured["bpp"] < full.measured["bpp"]).all()
    assert ((full.measured["ssim"] > 0.5) & (full.measured["ssim"] <= 1)).all()
    assert echoes.at("h264").vectors("extended").shape == (3, 2 + 2 + 2 + 6)
    again = measure_videos(read_manifest(videos)[:1], tmp_path / "out", clips=SMALL, echo=echo, progress=False)
    assert again.encoded == 0
