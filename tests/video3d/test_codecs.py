"""Encoders, bits of slices, quality, Bjøntegaard deltas."""

import math

import numpy as np
import pytest
import torch
from cl_video3d.video import bitstream, quality
from cl_video3d.video.bjontegaard import bd_quality, bd_rate, in_words, increasing, read_curves
from cl_video3d.video.encoding import DEFAULT_PRESET, EncodeSetting, available_codecs, command_line, encode
from cl_video3d.video.reading import luma
from contrastive_core.errors import InputError

from .conftest import film, moving, planar, texture, write

CODECS = ("h264", "hevc", "av1", "vp9")


@pytest.mark.parametrize("codec", CODECS)
def test_encoders_are_deterministic_and_give_frames_in_order(codec):
    assert codec in available_codecs()
    clip = moving(12)
    setting = EncodeSetting(codec, DEFAULT_PRESET[codec], "crf", 28)
    first, second = encode(clip, setting), encode(clip, setting)
    assert np.array_equal(first.frame_bits, second.frame_bits)
    assert np.array_equal(first.frames, second.frames)
    assert first.frame_types[0] == "I"
    assert (first.frame_types[1:] != "I").all()  # one closed group
    # Each frame is nearest to its own source, not to a neighbour's: nothing was put in the order of packets.
    for index in range(12):
        errors = [np.abs(luma(first.frames)[index].astype(int) - luma(clip)[other]).mean() for other in range(12)]
        assert int(np.argmin(errors)) == index


@pytest.mark.parametrize("side", [64, 96])
@pytest.mark.parametrize("codec", CODECS)
def test_bits_do_not_depend_on_where_frames_lie_in_memory(codec, side):
    """Smooth clips and frames of one coding tree unit are those whose bits changed from run to run."""
    smooth = moving(8, side, picture=16 + texture(side + 24, blur=8.0) * 219 / 255)
    setting, between, found = EncodeSetting(codec, DEFAULT_PRESET[codec], "crf", 22), [], set()
    for turn in range(12):
        between.append(np.random.default_rng(turn).bytes(10_000 + 997 * turn))
        found.add(int(encode(smooth, setting).frame_bits.sum()))
    assert len(found) == 1


def test_rates_and_resolutions():
    clip = moving(16)
    bits = {kbps: encode(clip, EncodeSetting(control="kbps", value=kbps)).frame_bits.sum() for kbps in (100, 400)}
    assert bits[400] > 2 * bits[100]
    half = encode(clip, EncodeSetting(share=0.5))
    assert half.frames.shape == clip.shape
    assert half.frame_bits.sum() < encode(clip, EncodeSetting()).frame_bits.sum()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"codec": "mpeg2"}, "--codec"),
        ({"preset": "warp"}, "--preset"),
        ({"codec": "av1", "preset": "veryfast"}, "0 to 13"),
        ({"value": 60.0}, "0 to 51"),
        ({"control": "kbps", "value": 0.0}, "--kbps"),
        ({"share": 1.5}, "--shares"),
    ],
)
@pytest.mark.unchecked
def test_operating_points_that_cannot_be_are_refused(settings, text):
    with pytest.raises(InputError) as error:
        EncodeSetting(**settings)
    assert text in str(error.value)


def test_frames_too_small_for_an_encoder_are_refused():
    with pytest.raises(InputError, match="too small"):
        encode(planar(np.zeros((4, 32, 32))), EncodeSetting("av1", "8"))


def test_frames_that_are_no_planes_are_refused():
    for shape in ((0, 96, 64), (4, 95, 64), (4, 96, 63)):
        with pytest.raises(InputError, match=r"planar 4:2:0"):
            encode(np.zeros(shape, dtype=np.uint8), EncodeSetting())


@pytest.mark.parametrize("codec", CODECS)
def test_commands_encode_at_their_size_and_rate(codec, tmp_path):
    import shlex
    import subprocess

    import imageio_ffmpeg
    from cl_video3d.video import probe

    source = write(tmp_path / "a film.mp4", film(20, 128, 160))
    crf = 24 if codec in ("h264", "hevc") else 30
    out = tmp_path / ("out.webm" if codec == "vp9" else "out.mp4")
    setting = EncodeSetting(codec, DEFAULT_PRESET[codec], "crf", crf)
    words = shlex.split(command_line(setting, str(source), str(out), size=(80, 64), kbps=500))
    assert words[0] == "ffmpeg"
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", *words[1:]], check=True)
    video = probe(out)
    assert (video.codec.removeprefix("lib"), video.width, video.height, video.frames) == (
        {"av1": "dav1d"}.get(codec, codec),
        80,
        64,
        20,
    )


# --- bits -------------------------------------------------------------------------------------------------------------


def test_slices_of_h264_and_hevc():
    start = b"\0\0\0\1"
    h264 = start + b"\x67abc" + start + b"\x68de" + b"\0\0\1\x06" + b"x" * 600 + b"\0\0\1\x65" + b"y" * 40 + b"\0\0"
    assert bitstream.slice_bytes(h264, "h264") == 41
    hevc = (
        start
        + bytes([32 << 1, 1])
        + b"vps"
        + start
        + bytes([39 << 1, 1])
        + b"sei"
        + start
        + bytes([19 << 1, 1])
        + b"zz"
    )
    assert bitstream.slice_bytes(hevc, "hevc") == 4
    assert bitstream.slice_bytes(b"anything", "vp9") == 8
    for packet, codec in ((b"\1\2\3", "h264"), (b"", "mpeg2")):
        with pytest.raises(ValueError, match=r"start code|codec is"):
            bitstream.slice_bytes(packet, codec)


def test_frames_of_av1():
    def unit(kind, payload):
        size = len(payload)
        length = bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])
        return bytes([kind << 3 | 2]) + length + payload

    packet = unit(2, b"") + unit(1, b"seq") + unit(6, b"f" * 300) + unit(5, b"meta")
    assert list(bitstream.obu_sizes(packet)) == [(2, 2), (1, 5), (6, 303), (5, 6)]
    assert bitstream.slice_bytes(packet, "av1") == 303
    with pytest.raises(ValueError, match="over the end"):
        bitstream.slice_bytes(packet[:-1], "av1")


def test_the_message_of_x264_does_not_count():
    """A flat clip costs almost nothing, though its first packet carries some 670 bytes of options."""
    coded = encode(planar(np.full((16, 96, 96), 128.0)), EncodeSetting())
    assert coded.frame_bits.sum() / 8 < 300


# --- quality ----------------------------------------------------------------------------------------------------------


def test_psnr_is_that_of_torchmetrics_with_a_floor():
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (3, 32, 32), dtype=np.uint8)
    b = np.clip(a + rng.normal(0, 5, a.shape), 0, 255).astype(np.uint8)
    x, y = torch.from_numpy(a).float(), torch.from_numpy(b).float()
    expected = [float(peak_signal_noise_ratio(y[i], x[i], data_range=255.0)) for i in range(3)]
    np.testing.assert_allclose(quality.psnr_frames(a, b), expected, rtol=1e-5)
    np.testing.assert_allclose(quality.psnr_frames(a, a), 10 * np.log10(255**2 / 0.05))
    ssim = structural_similarity_index_measure(y[:, None], x[:, None], data_range=255.0)
    assert quality.ssim(a, b) == pytest.approx(float(ssim), abs=1e-6)
    assert quality.ssim(a, a) == pytest.approx(1, abs=1e-6)


def test_vmaf_falls_with_quality_or_says_what_to_install(monkeypatch):
    clip = moving(6, 192)
    good, bad = (quality.vmaf(clip, encode(clip, EncodeSetting(value=crf)).frames) for crf in (16, 45))
    assert 0 <= bad < good <= 100
    quality.find_vmaf.cache_clear()
    monkeypatch.setattr(quality.shutil, "which", lambda name: "/bin/true")
    monkeypatch.setitem(__import__("sys").modules, "imageio_ffmpeg", None)
    with pytest.raises(InputError, match="without libvmaf"):
        quality.find_vmaf()
    monkeypatch.setattr(quality.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="no ffmpeg was found"):
        quality.find_vmaf()


# --- Bjøntegaard ------------------------------------------------------------------------------------------------------

CURVE = np.array([[100.0, 30.0], [200.0, 33.5], [400.0, 36.0], [900.0, 39.0], [1500.0, 40.5]])


@pytest.mark.parametrize("kind", ["pchip", "cubic", "akima"])
def test_identities_of_the_deltas(kind):
    assert bd_rate(CURVE, CURVE, interpolation=kind).value == pytest.approx(0, abs=1e-9)
    assert bd_rate(CURVE, CURVE * [2, 1], interpolation=kind).value == pytest.approx(100)
    assert bd_quality(CURVE, CURVE + np.array([0, 1]), interpolation=kind).value == pytest.approx(1)
    other = CURVE * [1.3, 1] + np.array([0, 0.4])
    a, b = (bd_rate(*pair, interpolation=kind).value / 100 for pair in ((CURVE, other), (other, CURVE)))
    assert (1 + a) * (1 + b) == pytest.approx(1)


def test_rate_delta_is_the_integral():
    from scipy.integrate import quad
    from scipy.interpolate import PchipInterpolator

    other = np.array([[80.0, 29.0], [190.0, 33.0], [420.0, 36.8], [800.0, 38.0]])
    f, g = (PchipInterpolator(c[:, 1], np.log(c[:, 0])) for c in (CURVE, other))
    mean = quad(lambda q: g(q) - f(q), 30, 38)[0] / 8
    found = bd_rate(CURVE, other)
    assert found.value == pytest.approx(100 * (math.exp(mean) - 1), rel=1e-6)
    assert found.overlap == pytest.approx(8 / 11.5)


def test_curves_without_a_delta_say_why():
    apart = bd_rate(CURVE, CURVE + np.array([0, 50]))
    assert math.isnan(apart.value)
    assert "share no quality" in apart.reason
    assert "share no rate" in bd_quality(CURVE, CURVE * [1e4, 1]).reason
    assert "3 points" in bd_rate(CURVE[:3], CURVE).reason
    assert "not finite" in bd_rate(CURVE * [1, np.nan], CURVE).reason
    assert "not positive" in bd_rate(CURVE * [0, 1], CURVE).reason
    assert "no difference" in in_words(apart, apart)


def test_equal_qualities_and_worse_points_are_merged():
    messy = np.vstack([CURVE, [250.0, 33.5], [500.0, 35.0], [100.0, 28.0]])
    assert np.array_equal(increasing(messy), CURVE)
    assert bd_rate(CURVE, messy).value == pytest.approx(0, abs=1e-9)


def test_words_say_what_signs_mean():
    cheaper = CURVE * [0.8, 1]
    assert "saves 20.0 %" in in_words(bd_rate(CURVE, cheaper), bd_quality(CURVE, cheaper))
    assert "costs 25.0 %" in in_words(bd_rate(cheaper, CURVE), bd_quality(cheaper, CURVE))
    assert "gains" in in_words(bd_rate(CURVE, cheaper), bd_quality(CURVE, cheaper))


# --- curves from files ------------------------------------------------------------------------------------------------


def curve_file(folder, name, text):
    (folder / name).write_text(text)
    return folder / name


def test_curves_are_of_one_unit_and_measure(tmp_path):
    both = "kbps,psnr,vmaf\n1000,30,60\n2000,33,70\n4000,36,80\n8000,39,90\n"
    a = curve_file(tmp_path, "a.csv", both)
    b = curve_file(tmp_path, "b.csv", both.replace("30,60", "31,55").replace("33,70", "34,65"))
    with pytest.raises(InputError, match="several columns of quality"):
        read_curves(a, b)
    first, second, unit = read_curves(a, b, quality="VMAF")
    assert unit == "points of VMAF"
    np.testing.assert_array_equal(first, [[1000, 60], [2000, 70], [4000, 80], [8000, 90]])
    assert second[0, 1] == 55
    assert read_curves(a, b, quality="psnr")[0][0, 1] == 30
    plain = curve_file(tmp_path, "plain.csv", "rate,quality\n1,30\n2,33\n4,36\n8,39\n")
    assert read_curves(plain, plain)[2] == "of quality"
    for text, message in (
        ("bpp,psnr\n0.02,30\n0.04,33\n", "differ in rate"),
        ("kbps,vmaf\n1000,30\n2000,33\n", "differ in quality"),
    ):
        alone = curve_file(tmp_path, "alone.csv", "kbps,psnr\n1000,30\n2000,33\n")
        with pytest.raises(InputError, match=message):
            read_curves(alone, curve_file(tmp_path, "other.csv", text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "lacks a column"),
        ("kbps,psnr\n", "lacks a column"),
        ("kbps,psnr\nmany,good\n", "line 2"),
        ("kbps,psnr\n1,30\n0,33\n", "line 3"),
        ("kbps,psnr\n1,30\n2,nan\n", "line 3"),
        ("kbps,psnr\n-1,30\n", "line 2"),
        ("kbps,psnr\n1000,25,30,10\n", "4 cells, 2 columns"),
    ],
)
def test_curves_that_are_none_are_refused(tmp_path, text, message):
    path = curve_file(tmp_path, "curve.csv", text)
    with pytest.raises(InputError) as error:
        read_curves(path, path)
    assert message in str(error.value)
    assert "curve.csv" in str(error.value)
