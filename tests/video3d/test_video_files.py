"""Videos as they come: reading, cutting, and everything that can be wrong with a file."""

import dataclasses
import io
import struct
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest
from cl_video3d.video import RawFormat, Window, encoding, luma, probe, read_windows, to_rgb
from cl_video3d.video.manifest import check_disjoint, read_manifest, write_manifest
from cl_video3d.video.planes import scaled_size
from contrastive_core.errors import ContrastiveWarning, InputError

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
    assert (video.width, video.height, video.frames, video.transfer) == (96, 64, 200, "sdr")
    assert not any(dataclasses.astuple(video.orientation))
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
    from cl_video3d.video import windows

    path, _ = lossless
    decoded = []
    original = windows.planes_of
    monkeypatch.setattr(windows, "planes_of", lambda *a: decoded.append(1) or original(*a))
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


def raw_video(path, planes, pix_fmt, *, color_range=None, repeats=4):
    """A lossless video of one picture, its planes as they are given."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width = planes[0].shape
        stream.pix_fmt = pix_fmt
        stream.codec_context.thread_count = 1
        if color_range is not None:
            stream.codec_context.color_range = color_range
        for _ in range(repeats):
            frame = av.VideoFrame(stream.width, stream.height, pix_fmt)
            for plane, values in zip(frame.planes, planes, strict=True):
                rows = np.zeros((plane.height, plane.line_size // values.itemsize), values.dtype)
                rows[:, : values.shape[1]] = values
                plane.update(rows)
            if color_range is not None:
                frame.color_range = color_range
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("depth", [8, 10, 12, 16])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("layout", ["420", "422", "444"])
def test_samples_are_rounded_from_their_declared_range(tmp_path, depth, full, layout):
    """Every value once: no dithering, no clamping, whatever the depth, range and layout."""
    rng = np.random.default_rng(depth)
    dtype = np.uint8 if depth == 8 else np.uint16
    scale = 2 ** (depth - 8)
    y = rng.integers(0, 2**depth, (32, 64)).astype(dtype)
    blocks = rng.integers(0, 2**depth, (2, 16, 32)).astype(dtype)  # chroma is constant over 2 x 2
    finer = {"420": (1, 1), "422": (2, 1), "444": (2, 2)}[layout]
    chroma = [np.repeat(np.repeat(each, finer[0], 0), finer[1], 1) for each in blocks]
    name = f"yuv{layout}p" + ("" if depth == 8 else f"{depth}le")
    path = raw_video(tmp_path / "v.mkv", [y, *chroma], name, color_range=2 if full else 1)
    frames = windows(path, [0], length=1)[0][0]
    exact = y / scale if not full else y * (219 / (2**depth - 1)) + 16
    assert np.array_equal(luma(frames), np.clip(np.floor(exact + 0.5), 0, 255))
    exact = blocks / scale if not full else (blocks - 128.0 * scale) * (224 / (2**depth - 1)) + 128
    got = frames[32:].reshape(2, 16, 32)
    assert np.abs(got - np.clip(np.floor(exact + 0.5), 0, 255)).max() <= (1 if full else 0)  # halves in float32


@pytest.mark.parametrize("pix_fmt", ["nv12", "p010le", "gray", "gray10le"])
def test_other_layouts_give_the_same_luma(tmp_path, pix_fmt):
    y = film(4, 64, 96)
    deep = pix_fmt in ("p010le", "gray10le")
    shift = {"p010le": 8, "gray10le": 2}.get(pix_fmt, 0)
    data = (y.astype(np.uint16) << shift) if deep else y
    grey = np.full((4, 32, 96), 128 << shift if deep else 128, data.dtype)
    parts = [data, grey] if pix_fmt in ("nv12", "p010le") else [data]
    np.concatenate([part.reshape(4, -1) for part in parts], 1).tofile(tmp_path / "v.yuv")
    raw = RawFormat(size="96x64", pix_fmt=pix_fmt)
    frames = windows(tmp_path / "v.yuv", [0], length=4, raw=raw)[0]
    assert np.array_equal(luma(frames), y)
    assert (frames[:, 64:] == 128).all()


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


@pytest.mark.parametrize(
    ("words", "turned"),
    [
        (["-display_rotation", "90"], lambda y: np.rot90(y, 1, (1, 2))),
        (["-display_rotation", "180"], lambda y: np.rot90(y, 2, (1, 2))),
        (["-display_rotation", "-90"], lambda y: np.rot90(y, -1, (1, 2))),
        (["-display_hflip"], lambda y: y[:, :, ::-1]),
        (["-display_vflip"], lambda y: y[:, ::-1]),
        (["-display_rotation", "90", "-display_hflip"], lambda y: np.rot90(y, 1, (1, 2))[:, :, ::-1]),
    ],
    ids=["90", "180", "-90", "mirrored", "flipped", "90 mirrored"],
)
def test_turned_and_mirrored_videos_are_shown_as_players_do(tmp_path, words, turned):
    y = film(10, 64, 96)
    source = write(tmp_path / "upright.mp4", y, options={"qp": "0", "preset": "ultrafast"})
    path = remuxed(source, tmp_path / "turned.mp4", words)
    expected = turned(y)
    video = probe(path)
    assert (video.height, video.width) == expected.shape[1:]
    assert np.array_equal(luma(windows(path, [0])[0]), expected[:8])
    halved = luma(windows(path, [0], short_side=32)[0])
    assert halved.shape[1:] == tuple(side // 2 for side in expected.shape[1:])


def remuxed(source, path, words):
    import imageio_ffmpeg

    program = imageio_ffmpeg.get_ffmpeg_exe()
    done = [program, "-loglevel", "error", *words, "-i", str(source), "-c", "copy", str(path)]
    subprocess.run(done, check=True)
    return path


def test_a_slanted_video_is_refused(tmp_path):
    source = write(tmp_path / "upright.mp4", film(4, 64, 96))
    with pytest.raises(InputError, match="right angle"):
        probe(remuxed(source, tmp_path / "slanted.mp4", ["-display_rotation", "45"]))


def test_names_that_look_like_addresses_are_files(tmp_path, monkeypatch):
    source = write(tmp_path / "x.mp4", film(4, 64, 96))
    monkeypatch.chdir(tmp_path)
    for name in ("12:30 take.mp4", "http:x.mp4", "-i.mp4", "%03d.mp4"):
        Path(name).write_bytes(source.read_bytes())
        assert probe(Path(name)).frames == probe(tmp_path / name).frames == 4


def test_a_playlist_is_no_video(tmp_path):
    """It would name other files, or addresses, to be read."""
    write(tmp_path / "other.mp4", film(4, 64, 96))
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.mp4\n#EXT-X-ENDLIST\n")
    (tmp_path / "concat.mp4").write_text("ffconcat version 1.0\nfile other.mp4\n")
    for name in ("list.mp4", "concat.mp4"):
        with pytest.raises(InputError, match="cannot be read"):
            probe(tmp_path / name)


def test_titles_that_are_not_utf_8_do_not_matter(tmp_path):
    path = tmp_path / "v.mp4"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "CafX-video"
        stream = container.add_stream("libx264", rate=25, width=64, height=64)
        stream.pix_fmt = "yuv420p"
        for y in film(4, 64, 64):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(planar(y[None].astype(float))[0], format="yuv420p")))
        container.mux(stream.encode(None))
    path.write_bytes(path.read_bytes().replace(b"CafX-video", b"Caf\xe9-video"))
    assert probe(path).frames == 4


def test_cover_art_before_the_video_is_passed_over(tmp_path):
    from PIL import Image

    def box(kind, body):
        return struct.pack(">I", len(body) + 8) + kind + body

    y = film(8, 64, 96)
    plain = write(tmp_path / "plain.mp4", y, options={"qp": "0", "preset": "ultrafast"}).read_bytes()
    picture = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(picture, "PNG")
    data = box(b"data", struct.pack(">II", 14, 0) + picture.getvalue())
    hdlr = box(b"hdlr", bytes(8) + b"mdirappl" + bytes(9))
    udta = box(b"udta", box(b"meta", bytes(4) + hdlr + box(b"ilst", box(b"covr", data))))
    at = plain.index(b"moov") - 4
    size, first = (struct.unpack(">I", plain[k : k + 4])[0] for k in (at, at + 8))
    head = at + 8 + first
    path = tmp_path / "cover.mp4"
    path.write_bytes(plain[:at] + struct.pack(">I", size + len(udta)) + plain[at + 4 : head] + udta + plain[head:])
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "png"
    assert (probe(path).codec, probe(path).frames) == ("h264", 8)
    assert np.array_equal(luma(windows(path, [0])[0]), y)


def test_intra_refresh_loses_no_window(tmp_path):
    """After a jump to a recovery point frames decode only later: those windows are read from the start."""
    y = film(200, 64, 96)
    options = {"preset": "veryfast", "crf": "18", "x264-params": "intra-refresh=1:keyint=40"}
    path = write(tmp_path / "refresh.mkv", y, options=options)
    with av.open(str(path)) as container:
        whole = np.stack([frame.to_ndarray()[:64] for frame in container.decode(video=0)])
    video = probe(path)
    for start in (70, 111, 150, 192):
        (frames,) = dict(read_windows(video, [Window(start)], length=8)).values()
        assert np.array_equal(luma(frames), whole[start : start + 8])


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
    for size, pix_fmt in (("60x48", "yuv420p"), ("96x64", "yuv422p10le"), ("97x64", "yuv420p")):
        with pytest.raises(InputError, match="of another size or pixel format"):
            probe(tmp_path / "raw.yuv", raw=RawFormat(size=size, pix_fmt=pix_fmt))


@pytest.mark.parametrize(
    ("settings", "option"),
    [
        ({"size": "wide"}, "--raw.size"),
        ({"size": "96x8"}, "--raw.size"),
        ({"size": "96x64", "pix_fmt": "magic"}, "--raw.pix-fmt"),
        ({"fps": float("nan")}, "--raw.fps"),
        ({"fps": 0.0}, "--raw.fps"),
    ],
)
def test_layouts_that_cannot_be_are_refused(settings, option):
    with pytest.raises(InputError) as error:
        RawFormat(**settings)
    assert option in str(error.value)


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
    (tmp_path / "list.csv").write_bytes(
        "\ufeffID,File,Title,SET\n007,a b.mp4,Ünï,Training\n1_1,x.mp4,1e3,valid\n".encode()
    )
    rows = [(e.video_id, e.path.name, e.group, e.split) for e in read_manifest(tmp_path / "list.csv")]
    assert rows == [("007", "a b.mp4", "Ünï", "train"), ("1_1", "x.mp4", "1e3", "val")]
    (tmp_path / "list.csv").write_text("video_id,path,mood\na,x.mp4,sad\n")
    with pytest.warns(ContrastiveWarning, match="not used: mood"):
        read_manifest(tmp_path / "list.csv")


def test_folders_are_read_whole(tmp_path):
    """Upper case, nested and linked folders, links to one file, broken links; what is no video is named."""
    flat, far = tmp_path / "flat", tmp_path / "far"
    for folder in (flat / "deep", far):
        folder.mkdir(parents=True)
    (flat / "x.MKV").write_bytes(b"1")
    (flat / "deep" / "y.mp4").write_bytes(b"1")
    (far / "z.mp4").write_bytes(b"1")
    (flat / "linked").symlink_to(far)
    (flat / "again.mp4").symlink_to(flat / "deep" / "y.mp4")
    (flat / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    (flat / "round").symlink_to(flat)
    entries = {entry.video_id: entry.group for entry in read_manifest(flat)}
    assert set(entries) == {"x", "deep/y", "linked/z", "again", "gone"}
    assert entries["again"] == entries["deep/y"]
    (flat / "notes.txt").write_text("no video")
    with pytest.warns(ContrastiveWarning, match=r"1 files that are no videos, such as notes\.txt"):
        assert len(read_manifest(flat)) == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path\nx.mp4\n", "there is no video_id"),
        ("", "empty"),
        ("video_id,path\n", "empty"),
        ("video_id,path\n1,take 1, final.mp4\n", "another number of cells"),
        ('video_id,path\na,"x.mp4\nb,y.mp4\n', "cannot be read"),
        ("video_id,path,split\na,x.mp4,banana\n", "unknown split"),
        ("video_id,path,split\na,x.mp4,train\nb,y.mp4,\n", "lacks its split"),
        ("video_id,path,split\na,x.mp4,train\nb,./x.mp4,test\n", "in two splits"),
        ("video_id,path,id\na,x.mp4,b\n", "mean the same"),
        ("video_id,path\n a,x.mp4\n", "space"),
        ("video_id,path,start\na,x.mp4,²\n", "no number of frames"),
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
