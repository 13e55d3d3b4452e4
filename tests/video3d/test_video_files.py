"""Videos as they come: reading, cutting, and everything that can be wrong with a file."""

import subprocess

import av
import numpy as np
import pytest
from cl_video3d.video import encoding
from cl_video3d.video.manifest import check_disjoint, read_manifest, write_manifest
from cl_video3d.video.reading import RawFormat, Window, luma, probe, read_windows, scaled_size, to_rgb
from contrastive_core.errors import InputError

from .conftest import film, planar, write


def windows(path, starts, *, length=8, raw=None, **options):
    video = probe(path) if raw is None else probe(path, raw=raw)
    return dict(read_windows(video, [Window(s) for s in starts], length=length, **options))


@pytest.fixture(scope="module")
def lossless(tmp_path_factory):
    """A video that is coded without loss, with its luma; long enough to jump in."""
    y = film(200, 64, 96)
    options = {"qp": "0", "preset": "ultrafast", "g": "20", "bf": "2"}
    return write(tmp_path_factory.mktemp("lossless") / "film.mp4", y, options=options), y


def test_windows_are_the_frames_that_were_written(lossless):
    path, y = lossless
    video = probe(path)
    assert (video.width, video.height, video.frames, video.rotation, video.transfer) == (96, 64, 200, 0, "sdr")
    assert video.fps == pytest.approx(30)
    assert not video.variable_rate
    places = [Window(150, 10, 4), Window(0, 0, 0), Window(3, 64, 32), Window(192, 2, 2)]
    found = dict(read_windows(video, places, length=8, size=32))
    assert sorted(found) == [0, 1, 2, 3]
    for number, place in enumerate(places):
        cut = y[place.start : place.start + 8, place.y : place.y + 32, place.x : place.x + 32]
        assert np.array_equal(luma(found[number]), cut)
    apart = dict(read_windows(video, places[:1], length=4, stride=3, size=32))[0]
    assert np.array_equal(luma(apart), y[150:160:3, 4:36, 10:42])


def test_windows_are_streamed(lossless, monkeypatch):
    from cl_video3d.video import reading

    path, _ = lossless
    decoded = []
    original = reading._planes
    monkeypatch.setattr(reading, "_planes", lambda *a: decoded.append(1) or original(*a))
    stream = read_windows(probe(path), [Window(s, 0, 0) for s in range(0, 192, 8)], length=8, size=32)
    next(stream)
    assert len(decoded) == 8  # nothing beyond the first window


def test_a_window_that_does_not_fit_is_refused(lossless):
    video = probe(lossless[0])
    for window in (Window(195), Window(0, 80, 0), Window(-1)):
        with pytest.raises(InputError, match="does not fit"):
            list(read_windows(video, [window], length=8, size=32))


def test_frames_are_resized_by_area(lossless):
    path, y = lossless
    small = windows(path, [0], short_side=32)[0]
    assert luma(small).shape == (8, 32, 48)
    mean = y[0].reshape(32, 2, 48, 2).mean((1, 3))
    assert np.abs(luma(small)[0] - mean).max() <= 1.5
    assert scaled_size(97, 65, 0) == (96, 64)
    assert scaled_size(1920, 1080, 272) == (484, 272)


def test_rgb_of_grey_is_grey():
    rgb = to_rgb(planar(np.full((1, 32, 32), 126.0))[0])
    assert rgb.shape == (32, 32, 3)
    assert np.ptp(rgb) <= 1
    assert abs(int(rgb[0, 0, 0]) - round((126 - 16) * 255 / 219)) <= 1


@pytest.mark.parametrize("pix_fmt", ["yuv444p", "yuv420p10le", "yuvj420p"])
def test_other_pixel_formats_give_the_same_luma(tmp_path, pix_fmt):
    y = film(10, 64, 96)
    options = {"crf": "1", "preset": "ultrafast"}
    path = write(tmp_path / "video.mp4", y, pix_fmt=pix_fmt, options=options)
    assert probe(path).pixel_format == pix_fmt
    plain = write(tmp_path / "plain.mp4", y, options=options)
    gap = luma(windows(path, [0])[0]).astype(int) - luma(windows(plain, [0])[0])
    assert np.abs(gap).mean() < 1.0


def test_odd_sizes_lose_one_pixel(tmp_path):
    y = film(10, 65, 97)
    path = write(tmp_path / "odd.mp4", y, pix_fmt="yuv444p", options={"qp": "0", "preset": "ultrafast"})
    assert (probe(path).width, probe(path).height) == (97, 65)
    assert np.array_equal(luma(windows(path, [0])[0]), y[:8, :64, :96])


def test_one_frame_is_a_video_of_one_frame(tmp_path):
    path = write(tmp_path / "one.mp4", film(1))
    assert probe(path).frames == 1
    assert luma(windows(path, [0], length=1)[0]).shape == (1, 128, 160)


def test_variable_frame_rate_is_noticed_and_read_in_order(tmp_path):
    y = film(12, 64, 96)
    times = np.cumsum([0, 10, 10, 40, 10, 10, 70, 10, 10, 10, 30, 10]).tolist()
    path = write(tmp_path / "vfr.mp4", y, times=times, options={"qp": "0", "preset": "ultrafast"})
    video = probe(path)
    assert video.variable_rate
    assert video.fps == pytest.approx(11 / (times[-1] / 300), rel=0.02)
    assert np.array_equal(luma(windows(path, [4])[4 - 4]), y[4:12])


@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_rotated_videos_are_turned_as_players_do(tmp_path, degrees):
    import imageio_ffmpeg

    y = film(10, 64, 96)
    source = write(tmp_path / "upright.mp4", y, options={"qp": "0", "preset": "ultrafast"})
    turned = tmp_path / "turned.mp4"
    words = ["-display_rotation", str(degrees), "-i", source, "-c", "copy", turned]
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", *map(str, words)], check=True)
    video = probe(turned)
    assert abs(video.rotation) == abs(degrees)
    assert (video.width, video.height) == ((64, 96) if abs(degrees) == 90 else (96, 64))
    expected = np.rot90(y[:8], video.rotation // 90, axes=(1, 2))
    assert np.array_equal(luma(windows(turned, [0])[0]), expected)
    halved = luma(windows(turned, [0], short_side=32)[0])
    assert halved.shape[1:] == ((48, 32) if abs(degrees) == 90 else (32, 48))


def test_pq_is_noticed(tmp_path):
    path = write(
        tmp_path / "hdr.mp4",
        film(4),
        pix_fmt="yuv420p10le",
        codec="libx265",
        color_trc=16,
        options={"preset": "ultrafast", "x265-params": "transfer=smpte2084:log-level=none"},
    )
    assert probe(path).transfer == "pq"


def test_damaged_packets_cost_their_windows_and_no_more(lossless, tmp_path):
    path, y = lossless
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size, p.pts) for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    order = sorted(pts for _, _, pts in packets)
    place, size, pts = packets[70]
    data[place + 30 : place + size] = np.random.default_rng(0).bytes(size - 30)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(data)
    hit = order.index(pts)
    starts = list(range(0, 193, 8))
    found = windows(broken, starts)
    lost = {number for number in range(len(starts)) if number not in found}
    assert lost
    for number in lost:  # all of them lie between the damage and the next key frame
        assert starts[number] + 8 > hit - 3
        assert starts[number] <= (hit // 20 + 1) * 20
    for number, frames in found.items():
        assert np.array_equal(luma(frames), y[starts[number] : starts[number] + 8])


def test_files_that_are_no_videos_are_named(lossless, tmp_path):
    whole = lossless[0].read_bytes()
    (tmp_path / "zero.mp4").write_bytes(b"")
    (tmp_path / "half.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.mp4").write_text("not a video")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        sound.sample_rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    for name, text in {
        "zero": "no bytes",
        "half": "no index",
        "text": "cannot be read",
        "sound": "audio",
        "gone": "missing",
    }.items():
        with pytest.raises(InputError) as error:
            probe(tmp_path / f"{name}.mp4")
        assert text in str(error.value)
        assert f"{name}.mp4" in str(error.value)


def test_raw_files_need_a_layout(tmp_path):
    y = film(10, 64, 96)
    planar(y).tofile(tmp_path / "raw.yuv")
    with pytest.raises(InputError, match=r"--raw.size"):
        probe(tmp_path / "raw.yuv")
    raw = RawFormat(size="96x64", fps=25)
    assert probe(tmp_path / "raw.yuv", raw=raw).fps == pytest.approx(25)
    assert np.array_equal(luma(windows(tmp_path / "raw.yuv", [2], raw=raw)[0]), y[2:10])
    with pytest.raises(InputError, match="cannot be read like this"):
        probe(tmp_path / "raw.yuv", raw=RawFormat(size="wide"))


def test_a_missing_codec_names_those_that_are_there(monkeypatch):
    monkeypatch.setattr(encoding, "_has", lambda name, mode: name not in ("libsvtav1",))
    with pytest.raises(InputError) as error:
        encoding.encode(planar(film(4, 64, 64)), encoding.EncodeSetting("av1", "8"))
    assert "libsvtav1" in str(error.value)
    assert "h264, hevc, vp9" in str(error.value)


# --- lists ------------------------------------------------------------------------------------------------------------


def test_lists_of_videos(videos, tmp_path):
    entries = read_manifest(videos)
    assert [entry.video_id for entry in entries] == ["v0", "v1", "v2", "v3", "v4"]
    assert entries == read_manifest(videos / "manifest.csv")
    write_manifest(tmp_path / "again.csv", entries)
    assert [e.path.resolve() for e in read_manifest(tmp_path / "again.csv")] == [e.path.resolve() for e in entries]
    (one,) = read_manifest(videos / "v0.mp4")
    assert (one.video_id, one.group) == ("v0", "v0")
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "x.mkv").write_bytes(b"1")
    assert [entry.group for entry in read_manifest(tmp_path / "flat")] == ["x"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path\nx.mp4\n", "there is no video_id"),
        ("video_id,path\n", "empty"),
        ("video_id,path\na,\n", "path is empty"),
        ("video_id,path\na,x.mp4\na,y.mp4\n", "two videos have one id"),
        ("video_id,path,group,split\na,x.mp4,g,train\nb,y.mp4,g,test\n", "a group is in two splits"),
        ("video_id,path,start\na,x.mp4,-3\n", "no number of frames"),
        ("video_id,path,frames\na,x.mp4,0\n", "no number of frames"),
    ],
)
def test_bad_lists_are_refused(tmp_path, text, message):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_manifest(tmp_path / "list.csv")


def test_empty_folders_and_missing_lists_are_refused(tmp_path):
    with pytest.raises(InputError, match="no videos"):
        read_manifest(tmp_path)
    with pytest.raises(InputError, match="missing"):
        read_manifest(tmp_path / "gone.csv")
    check_disjoint(["a", "a", "b"], ["x", "x", "y"])
