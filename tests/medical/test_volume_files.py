"""Reading and writing volumes: NIfTI, DICOM, HDF5, and what is refused."""

import itertools
import math
import warnings

import h5py
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
import torch
from cl_medical.volumes import (
    Preprocessing,
    dice,
    read_cases,
    read_image,
    read_label,
    read_pair,
    spacing,
    write_nifti,
)
from contrastive_core.errors import ContrastiveWarning, InputError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from tests.medical.conftest import OBLIQUE, image, label, save, series


@pytest.mark.parametrize("affine", [OBLIQUE, OBLIQUE[:, [2, 0, 1, 3]], OBLIQUE @ np.diag([1, -1, -1, 1])])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_nifti_keeps_its_place_through_the_networks_grid_and_back(tmp_path, ending, affine):
    path = save(tmp_path / f"a{ending}", image(), affine)
    volume = read_image(path)
    assert volume.shape == (1, 6, 5, 4)
    np.testing.assert_allclose(np.asarray(volume.affine), affine, atol=1e-5)
    assert spacing(volume) == pytest.approx(np.linalg.norm(affine[:3, :3], axis=0), rel=1e-5)
    plan = Preprocessing(scaling="none")
    turned = plan.image(volume)
    assert "".join(nib.aff2axcodes(np.asarray(turned.affine))) == "RAS"
    # A voxel keeps its place in space: look one up by its value.
    where = np.argwhere(turned.numpy()[0] == volume.numpy()[0, 4, 1, 2])[0]
    here = np.asarray(turned.affine) @ [*where, 1]
    np.testing.assert_allclose(here, affine @ [4, 1, 2, 1], atol=1e-4)
    back = plan.restore(turned.as_tensor(), turned, volume)
    assert torch.equal(back, volume.as_tensor())
    out = tmp_path / f"b{ending}"
    write_nifti(out, label(), volume)
    again = nib.load(out)
    np.testing.assert_array_equal(np.asarray(again.dataobj), label())
    np.testing.assert_allclose(again.affine, nib.load(path).affine, atol=1e-5)
    assert again.get_data_dtype() == np.uint8


def test_scaled_integers_are_written_as_their_values(tmp_path):
    volume = read_image(save(tmp_path / "a.nii.gz", image(), OBLIQUE))
    values = np.rint(np.random.default_rng(1).random((6, 5, 4, 2)) * 65535).astype(np.uint16)
    write_nifti(tmp_path / "p.nii.gz", values, volume, scale=1 / 65535)
    read = nib.load(tmp_path / "p.nii.gz")
    np.testing.assert_allclose(read.get_fdata(), values / 65535, atol=1e-7)
    np.testing.assert_allclose(read.affine, OBLIQUE, atol=1e-5)


@pytest.mark.parametrize(("sform", "qform"), [(1, 0), (0, 2), (2, 1)])
def test_space_codes_of_the_input_are_kept(tmp_path, sform, qform):
    """A sheared volume is placed by its sform alone: no qform can hold the shear."""
    source = nib.Nifti1Image(image(), np.eye(4))
    source.set_qform(np.diag([2, 2, 3, 1.0]), qform)
    source.set_sform(OBLIQUE, sform)
    nib.save(source, tmp_path / "a.nii.gz")
    write_nifti(tmp_path / "b.nii.gz", label(), read_image(tmp_path / "a.nii.gz"))
    before, after = (nib.load(tmp_path / name) for name in ("a.nii.gz", "b.nii.gz"))
    np.testing.assert_allclose(after.affine, before.affine, atol=1e-5)
    assert int(after.header["qform_code"]) == (qform if sform == 0 else 0)
    assert int(after.header["sform_code"]) == (sform or qform)


def test_resampling_uses_the_spacing_of_each_axis_and_comes_back(tmp_path):
    values = np.zeros((12, 12, 6), np.float32)
    values[3:9, 3:9, 2:4] = 100
    volume = read_image(save(tmp_path / "a.nii.gz", values, np.diag([1, 1, 3, 1.0])))
    plan = Preprocessing(scaling="none", spacing=(1.0, 1.0, 1.0))
    fine = plan.image(volume)
    assert fine.shape[1:3] == (12, 12)
    assert fine.shape[3] in (16, 17, 18)
    truth = plan.label(volume.to(torch.int64))
    back = plan.restore((truth.as_tensor() > 0).to(torch.uint8), fine, volume)
    assert back.shape == (1, 12, 12, 6)
    assert dice(back[0].numpy() > 0, values > 0) > 0.9


def test_intensity_scales(tmp_path):
    values = image((10, 10, 10))
    values[0, 0, 0] = 1e6
    volume = read_image(save(tmp_path / "a.nii.gz", values))
    x = Preprocessing("percentile").image(volume)
    assert (float(x.min()), float(x.max())) == (0.0, 1.0)
    assert 0.4 < float(x.mean()) < 0.6
    z = Preprocessing("z-score").image(volume).as_tensor()
    assert abs(float(z.mean())) < 1e-3
    lone = np.zeros((4, 4, 4), np.float32)
    lone[1, 1, 1] = 3
    assert torch.isfinite(
        Preprocessing("z-score").image(read_image(save(tmp_path / "b.nii.gz", lone))).as_tensor()
    ).all()
    with pytest.raises(InputError, match="intensity scale"):
        Preprocessing.from_dict({"scaling": "loud", "window": (0, 1)})
    with pytest.raises(InputError, match="--window"):
        Preprocessing.from_dict({"scaling": "ct", "window": [1]})
    ct = Preprocessing("ct", (0.0, 0.5)).image(volume)
    assert float((ct == 1).float().mean()) > 0.4


@pytest.mark.parametrize("order", [1, -1])
def test_dicom_slices_are_sorted_by_their_place(tmp_path, order):
    raw = series(tmp_path / "s", order=order)
    volume = read_image(tmp_path / "s")
    assert volume.shape == (1, 6, 4, 5)
    assert spacing(volume) == pytest.approx((0.5, 0.7, 3.0))
    expected = raw[::order].transpose(2, 1, 0) * 2.0 - 1000
    np.testing.assert_allclose(volume.numpy()[0], expected)
    # The first voxel of the first slice lies at its ImagePositionPatient, in RAS.
    first = np.array([10, -20, 30]) + (0 if order == 1 else 4 * 3.0 * order) * np.array([0, 0, 1])
    np.testing.assert_allclose(np.asarray(volume.affine)[:3, 3], first * [-1, -1, 1], atol=1e-6)
    np.testing.assert_allclose(np.asarray(volume.affine)[:3, 0], [-0.5 * math.cos(0.2), -0.5 * math.sin(0.2), 0])
    assert volume.meta["patient"] == "patient-7"


def test_a_series_and_its_label_map_make_a_case(tmp_path):
    series(tmp_path / "images" / "c0")
    scan = read_image(tmp_path / "images" / "c0")
    write_nifti(tmp_path / "labels" / "c0.nii.gz", (scan.numpy()[0] > 0).astype(np.uint8), scan)
    (case,) = read_cases(tmp_path).cases.values()
    x, y = read_pair(case.image, case.label, 2)
    assert torch.equal(x.as_tensor() > 0, y.as_tensor() == 1)


def test_broken_series_are_refused(tmp_path):
    series(tmp_path / "gap", skip=(2,))
    with pytest.raises(InputError, match="lacks slices"):
        read_image(tmp_path / "gap")
    series(tmp_path / "broken")
    (tmp_path / "broken" / "3.dcm").write_bytes(b"no dicom")
    with pytest.raises(InputError, match=r"(?s)cannot be read.*3\.dcm"):
        read_image(tmp_path / "broken")
    series(tmp_path / "short")
    path = tmp_path / "short" / "0.dcm"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="cannot be read"):
        read_image(tmp_path / "short")
    series(tmp_path / "two")
    other = pydicom.dcmread(tmp_path / "two" / "0.dcm")
    other.SeriesInstanceUID = generate_uid()
    other.save_as(tmp_path / "two" / "x.dcm")
    with pytest.raises(InputError, match="several DICOM series"):
        read_image(tmp_path / "two")
    series(tmp_path / "twice")
    (tmp_path / "twice" / "x.dcm").write_bytes((tmp_path / "twice" / "0.dcm").read_bytes())
    with pytest.raises(InputError, match="at one place"):
        read_image(tmp_path / "twice")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no DICOM"):
        read_image(tmp_path / "empty")


def test_a_slice_cut_off_before_its_header_does_not_pass_for_a_note(tmp_path):
    series(tmp_path / "s")
    for index, path in enumerate(sorted((tmp_path / "s").iterdir())):
        path.rename(path.with_name(f"IM{index:04d}"))
    (tmp_path / "s" / "notes.txt").write_text("not a slice")
    assert read_image(tmp_path / "s").shape == (1, 6, 4, 5)
    (tmp_path / "s" / "IM0004").write_bytes(b"")
    with pytest.raises(InputError, match=r"(?s)cannot be read.*IM0004"):
        read_image(tmp_path / "s")


def test_a_series_without_places_is_refused(tmp_path):
    series(tmp_path / "s")
    for path in (tmp_path / "s").iterdir():
        data = pydicom.dcmread(path)
        data.ImagePositionPatient = None
        data.save_as(path)
    with pytest.raises(InputError, match="where it lies"):
        read_image(tmp_path / "s")


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.full((4, 4, 4), np.nan, np.float32), "NaN"),
        (np.where(image() > 0.9, np.inf, 0).astype(np.float32), "infinite"),
        (np.zeros((4, 4, 4), np.float32), "zero everywhere"),
        (np.zeros((4, 4, 4, 3), np.float32), "not three-dimensional"),
    ],
)
def test_images_that_are_none_are_refused(tmp_path, array, words):
    with pytest.raises(InputError, match=words):
        read_image(save(tmp_path / "a.nii.gz", array))


def test_files_that_cannot_be_read_are_refused(tmp_path):
    path = save(tmp_path / "a.nii.gz", image((20, 20, 20)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match="NIfTI file cannot be read"):
        read_image(path)
    (tmp_path / "a.h5").write_bytes(b"nothing")
    with pytest.raises(InputError, match="HDF5 file cannot be read"):
        read_image(tmp_path / "a.h5")
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match="not a volume"):
        read_image(tmp_path / "a.png")
    with pytest.raises(InputError, match="missing"):
        read_image(tmp_path / "b.nii")
    with pytest.raises(InputError, match="whole numbers"):
        read_label(save(tmp_path / "l.nii.gz", image()))


def test_pairs_that_do_not_belong_together_are_refused(tmp_path):
    x = save(tmp_path / "x.nii.gz", image(), np.diag([1, 1, 3, 1.0]))
    shifted = np.diag([1, 1, 3, 1.0])
    shifted[0, 3] = 5
    for name, array, affine, words in (
        ("shape", label((6, 5, 3)), np.diag([1, 1, 3, 1.0]), "differ in shape"),
        ("spacing", label(), np.eye(4), "differ in spacing"),
        ("affine", label(), shifted, "different affines"),
        ("value", label() * 7, np.diag([1, 1, 3, 1.0]), "no class"),
    ):
        with pytest.raises(InputError, match=words):
            read_pair(x, save(tmp_path / f"{name}.nii.gz", array, affine), 2)
    read_pair(x, save(tmp_path / "good.nii.gz", label(), np.diag([1, 1, 3, 1.0])), 2)


def rotated(angle=0.4, sides=(0.8, 1.1, 2.5)):
    """An oblique affine without shear."""
    c, s = math.cos(angle), math.sin(angle)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * sides, [12, -7, 40]
    return affine


def agrees_with_simpleitk(path, values, affine):
    """Every corner lies where SimpleITK says, and the values stand in their places."""
    other = SimpleITK.ReadImage(str(path))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(other).transpose(2, 1, 0), values)
    for corner in itertools.product(*((0, side - 1) for side in values.shape)):
        theirs = np.array(other.TransformIndexToPhysicalPoint(corner)) * [-1, -1, 1]  # LPS
        np.testing.assert_allclose(theirs, (affine @ [*corner, 1])[:3], atol=1e-3)


@pytest.mark.parametrize("unit", ["mm", "micron", "meter", "unknown"])
@pytest.mark.parametrize("affine", [rotated(), rotated() @ np.diag([1, -1, -1, 1]), rotated()[:, [2, 0, 1, 3]]])
def test_what_is_written_lies_where_simpleitk_finds_it(tmp_path, affine, unit):
    factor = {"mm": 1.0, "unknown": 1.0, "micron": 1e-3, "meter": 1e3}[unit]
    source = nib.Nifti1Image(image(), affine)
    source.set_qform(affine, 1)
    source.header.set_xyzt_units(unit)
    nib.save(source, tmp_path / "a.nii.gz")
    volume = read_image(tmp_path / "a.nii.gz")
    scaled = np.diag([factor, factor, factor, 1]) @ affine
    np.testing.assert_allclose(np.asarray(volume.affine), scaled, rtol=1e-5, atol=1e-4 * factor)
    write_nifti(tmp_path / "b.nii.gz", label(), volume)
    assert int(nib.load(tmp_path / "b.nii.gz").header["qform_code"]) == 1
    if unit != "meter":
        agrees_with_simpleitk(tmp_path / "b.nii.gz", label(), scaled)


@pytest.mark.parametrize("order", [1, -1])
def test_a_series_is_read_as_simpleitk_reads_it(tmp_path, order):
    series(tmp_path / "s", order=order)
    volume = read_image(tmp_path / "s")
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "s")))
    other = reader.Execute()
    np.testing.assert_allclose(SimpleITK.GetArrayFromImage(other).transpose(2, 1, 0), volume.numpy()[0])
    write_nifti(tmp_path / "o.nii.gz", volume.numpy()[0], volume)
    agrees_with_simpleitk(tmp_path / "o.nii.gz", volume.numpy()[0], np.asarray(volume.affine))
    theirs = np.array(other.TransformIndexToPhysicalPoint((5, 3, 4))) * [-1, -1, 1]
    np.testing.assert_allclose(theirs, (np.asarray(volume.affine) @ [5, 3, 4, 1])[:3], atol=1e-4)


def test_gantry_tilt_is_straightened_with_a_note(tmp_path):
    """Values that grow linearly in space keep their places, whatever grid they stand on."""

    def plane(data):
        place, (row, column) = np.array(data.ImagePositionPatient), np.array(data.ImageOrientationPatient).reshape(2, 3)
        i, j = np.mgrid[: data.Rows, : data.Columns]
        points = place + i[..., None] * column * data.PixelSpacing[0] + j[..., None] * row * data.PixelSpacing[1]
        data.RescaleSlope, data.RescaleIntercept = 0.01, 0
        data.PixelData = np.rint(100 * (points @ [3.0, 5.0, 1.0] + 150)).astype(np.int16).tobytes()

    series(tmp_path / "s", count=7, angle=0.0, shift=lambda index: (0, 0.45 * index, 0), edit=plane)
    with pytest.warns(ContrastiveWarning, match=r"gantry tilt of 8\.5 degrees"):
        volume = read_image(tmp_path / "s")
    affine = np.asarray(volume.affine)
    assert volume.shape[3] == 7
    assert abs(affine[:3, 2] @ affine[:3, 1]) < 1e-9
    inside = 0
    for place in np.ndindex(*volume.shape[1:]):
        point = (affine @ [*place, 1])[:3] * [-1, -1, 1]
        low = -20 + 0.45 * place[2]
        if low <= point[1] <= low + 3 * 0.7:
            inside += 1
            assert float(volume[(0, *place)]) == pytest.approx(point @ [3.0, 5.0, 1.0] + 150, abs=0.05)
    assert inside >= 7 * 6 * 3
    write_nifti(tmp_path / "o.nii.gz", np.ones(volume.shape[1:], np.uint8), volume)
    agrees_with_simpleitk(tmp_path / "o.nii.gz", np.ones(volume.shape[1:], np.uint8), affine)


def test_slices_that_jump_are_refused(tmp_path):
    series(tmp_path / "s", shift=lambda index: (4 * (index == 2), 0, 0))
    with pytest.raises(InputError, match=r"(?s)do not lie in an even row.*slice 3 lies 4"):
        read_image(tmp_path / "s")
    series(tmp_path / "t", shift=lambda index: (0, 0, 0.8 * (index == 2)))
    with pytest.raises(InputError, match="even row"):
        read_image(tmp_path / "t")


def test_the_scale_of_a_slice_may_be_empty_a_table_or_broken(tmp_path):
    def empty(data):
        data.RescaleSlope = data.RescaleIntercept = None

    raw = series(tmp_path / "empty", edit=empty)
    np.testing.assert_array_equal(read_image(tmp_path / "empty").numpy()[0], raw.transpose(2, 1, 0))

    def table(data):
        del data.RescaleSlope, data.RescaleIntercept
        lut = Dataset()
        lut.add_new(0x00283002, "US", [1000, 0, 16])
        lut.ModalityLUTType = "HU"
        lut.add_new(0x00283006, "OW", (np.arange(1000) * 10).astype("<u2").tobytes())
        data.ModalityLUTSequence = [lut]
        data.PixelRepresentation = 0

    raw = series(tmp_path / "table", edit=table)
    np.testing.assert_array_equal(read_image(tmp_path / "table").numpy()[0], 10 * raw.transpose(2, 1, 0))
    series(tmp_path / "zero", slope=0.0)
    with pytest.raises(InputError, match="scale of a DICOM slice"):
        read_image(tmp_path / "zero")


@pytest.mark.parametrize(
    ("name", "value"),
    [("PixelSpacing", [0.0, 1.0]), ("ImageOrientationPatient", [1, 0, 0, 1, 0, 0]), ("PixelSpacing", None)],
)
def test_slices_whose_geometry_is_none_are_refused(tmp_path, name, value):
    series(tmp_path / "s", edit=lambda data: setattr(data, name, value))
    with pytest.raises(InputError, match="where it lies"):
        read_image(tmp_path / "s")


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "colours"),
        (np.ones((4, 4, 4), np.complex64), "complex"),
        (np.where(label((4, 4, 4)) > 0, 1e20, 0.0), "no class"),
        (np.full((4, 4, 4), -1, np.int16), "no class"),
        (np.full((4, 4, 4), np.nan), "whole numbers"),
    ],
)
def test_label_maps_that_are_none_are_refused(tmp_path, array, words):
    with pytest.raises(InputError, match=words):
        read_label(save(tmp_path / "l.nii.gz", array))


def test_marks_of_missing_voxels_are_no_intensities(tmp_path):
    values = image()
    values[0, 0, 0] = 1e20
    with pytest.raises(InputError, match="no scanner gives"):
        read_image(save(tmp_path / "a.nii.gz", values))
    values[0, 0, 0] = 1e7  # a square of it overflows nothing
    scaled = Preprocessing("z-score").image(read_image(save(tmp_path / "b.nii.gz", values))).as_tensor()
    assert float(scaled.std(correction=0)) == pytest.approx(1, rel=1e-3)


def test_hdf5_that_takes_its_values_from_elsewhere_is_refused(tmp_path):
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(range(64)))
    with h5py.File(tmp_path / "o.h5", "w") as file:
        file["x"] = image()
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("image", shape=(4, 4, 4), dtype="u1", external=[(str(secret), 0, 64)])
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["image"] = h5py.ExternalLink(str(tmp_path / "o.h5"), "/x")
    with h5py.File(tmp_path / "c.h5", "w", libver="latest") as file:
        layout = h5py.VirtualLayout(shape=(6, 5, 4), dtype="f4")
        layout[:] = h5py.VirtualSource(str(tmp_path / "o.h5"), "x", shape=(6, 5, 4))
        file.create_virtual_dataset("image", layout)
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file.create_group("image")
    for name in "abcd":
        with pytest.raises(InputError, match="from elsewhere"):
            read_image(tmp_path / f"{name}.h5")


def test_sizes_that_the_file_cannot_hold_are_refused_before_reading(tmp_path):
    path = save(tmp_path / "a.nii", image())
    content = bytearray(path.read_bytes())
    content[42:48] = np.array([4000, 4000, 60], "<i2").tobytes()
    path.write_bytes(content)
    with pytest.raises(InputError, match="too short"):
        read_image(path)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file.create_dataset("image", shape=(1000, 1000, 1000), dtype="f4", chunks=(50, 50, 50))
    with pytest.raises(InputError, match="too short"):
        read_image(tmp_path / "b.h5")


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    """Bytes of a valid file of each kind."""
    folder = tmp_path_factory.mktemp("valid")
    save(folder / "a.nii", image())
    save(folder / "a.nii.gz", image())
    series(folder / "s")
    with h5py.File(folder / "a.h5", "w") as file:
        file["image"] = image()
    paths = {
        ".nii": folder / "a.nii",
        ".nii.gz": folder / "a.nii.gz",
        ".h5": folder / "a.h5",
        ".dcm": folder / "s" / "0.dcm",
    }
    return {kind: path.read_bytes() for kind, path in paths.items()}


@pytest.mark.parametrize("kind", [".nii", ".nii.gz", ".h5", ".dcm"])
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_gives_a_volume_or_one_error(kind, valid, tmp_path, data):
    content = bytearray(valid[kind])
    how = data.draw(st.sampled_from(["cut", "flip", "zero", "random"]))
    # Headers are where damage is told apart worst.
    place = data.draw(st.integers(0, min(len(content), 700) - 1))
    if how == "cut":
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    elif how == "flip":
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    elif how == "zero":
        content[place : place + 8] = bytes(8)
    else:
        content[place : place + 4] = data.draw(st.binary(min_size=4, max_size=4))
    folder = tmp_path / kind[1:]
    folder.mkdir(exist_ok=True)
    path = folder / f"x{kind}"
    path.write_bytes(content)
    volume, message = None, ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            volume = read_image(folder if kind == ".dcm" else path)
    except InputError as error:
        message = str(error)
    if volume is not None:
        assert torch.isfinite(volume.as_tensor()).all()
        assert np.isfinite(np.asarray(volume.affine)).all()
    assert len(message) < 2000
