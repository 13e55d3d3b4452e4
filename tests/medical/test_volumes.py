"""Reading and writing volumes, finding and splitting cases, windows, metrics."""

import json
import math

import h5py
import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from cl_medical.volumes import (
    Preprocessing,
    Split,
    case_metrics,
    dice,
    find_volumes,
    jaccard,
    largest_component,
    make_split,
    read_cases,
    read_image,
    read_label,
    read_pair,
    slide,
    spacing,
    surface_distances,
    write_nifti,
)
from cl_medical.volumes.reading import case_name
from contrastive_core.errors import InputError
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

OBLIQUE = np.array([[-0.9, 0.3, 0.1, 40], [0.2, 1.4, -0.4, -30], [0.1, 0.2, 2.5, 7], [0, 0, 0, 1.0]])


def save(path, array, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def image(shape=(6, 5, 4), seed=0):
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def label(shape=(6, 5, 4)):
    values = np.zeros(shape, np.uint8)
    values[1:3, 1:3, 1:3] = 1
    return values


def series(folder, count=5, slope=2.0, order=1, skip=(), angle=0.2):
    """A CT series, its slices written in a shuffled order of names."""
    folder.mkdir(parents=True)
    volume = np.random.default_rng(0).integers(0, 1000, (count, 4, 6)).astype(np.int16)
    row = np.array([math.cos(angle), math.sin(angle), 0])
    column = np.array([-math.sin(angle), math.cos(angle), 0])
    uid = generate_uid()
    for index in range(count):
        if index in skip:
            continue
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"{(index * 3) % 7}.dcm"
        data = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        data.SeriesInstanceUID, data.PatientID, data.Modality = uid, "patient-7", "CT"
        data.Rows, data.Columns = 4, 6
        data.PixelSpacing, data.SliceThickness = [0.7, 0.5], 3.0
        data.ImageOrientationPatient = [*row, *column]
        data.ImagePositionPatient = (np.array([10, -20, 30]) + index * 3.0 * order * np.cross(row, column)).tolist()
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        data.RescaleSlope, data.RescaleIntercept = slope, -1000
        data.PixelData = volume[index].tobytes()
        data.save_as(path)
    return volume


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
    """A sheared volume placed by its sform alone must not get a qform, which cannot hold the shear."""
    source = nib.Nifti1Image(image(), np.eye(4))
    source.set_qform(np.diag([2, 2, 3, 1.0]), qform)
    source.set_sform(OBLIQUE, sform)
    nib.save(source, tmp_path / "a.nii.gz")
    write_nifti(tmp_path / "b.nii.gz", label(), read_image(tmp_path / "a.nii.gz"))
    before, after = (nib.load(tmp_path / name) for name in ("a.nii.gz", "b.nii.gz"))
    np.testing.assert_allclose(after.affine, before.affine, atol=1e-5)
    assert int(after.header["qform_code"]) == qform
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


def pairs(folder, count=10, unlabelled=2):
    for index in range(count):
        save(folder / "images" / f"c{index}.nii.gz", image(seed=index))
        if index < count - unlabelled:
            save(folder / "labels" / f"c{index}.nii.gz", label())
    return folder


def test_cases_without_label_file_are_unlabelled(tmp_path):
    data = read_cases(pairs(tmp_path))
    assert len(data.cases) == 10
    split = make_split(data, labelled=3, validation=1, test=2, seed=0)
    assert [len(part) for part in (split.labelled, split.unlabelled, split.validation, split.test)] == [3, 4, 1, 2]
    assert {"c8", "c9"} <= set(split.unlabelled)
    assert make_split(data, labelled=3, validation=1, test=2, seed=0) == split
    assert make_split(data, labelled=3, validation=1, test=2, seed=1) != split
    with pytest.raises(InputError, match="fewer labelled cases"):
        make_split(data, labelled=8, seed=0)
    with pytest.raises(InputError, match="needs a labelled case"):
        make_split(data, labelled=0)


def test_lists_fix_the_parts_they_name_and_no_others(tmp_path):
    pairs(tmp_path)
    (tmp_path / "train_unlab.txt").write_text("c0\nc1\n")
    split = make_split(read_cases(tmp_path), labelled=2, validation=1, test=2)
    assert {"c0", "c1", "c8", "c9"} <= set(split.unlabelled)
    assert [len(part) for part in (split.labelled, split.validation, split.test)] == [2, 1, 2]
    (tmp_path / "train_lab.txt").write_text("c2\nc3\nc4\nc5\n")
    data = read_cases(tmp_path)
    assert make_split(data, labelled=2) == Split(("c2", "c3"), ("c4", "c5", "c0", "c1"), (), ())
    assert make_split(data, labelled=2, validation=1) == Split(("c2", "c3"), ("c4", "c0", "c1"), ("c5",), ())
    with pytest.raises(InputError, match="fewer labelled"):
        make_split(data, labelled=3, validation=2)
    with pytest.raises(InputError, match=r"(?s)lists fix this part.*--test.*train_lab"):
        make_split(data, labelled=2, test=1)
    (tmp_path / "val.txt").write_text("c6\n")
    with pytest.raises(InputError, match=r"(?s)lists fix this part.*--validation.*val\.txt"):
        make_split(read_cases(tmp_path), labelled=2, validation=1)
    (tmp_path / "val.txt").write_text("c9\n")
    with pytest.raises(InputError, match=r"(?s)has no label.*c9"):
        make_split(read_cases(tmp_path), labelled=2)


@pytest.mark.parametrize(
    "text",
    [
        "[1]",
        '{"patients": ["c0"]}',
        '{"settings": 3}',
        '{"labels": 3}',
        '{"labels": {"0": "a", "2": "b"}}',
        '{"labels": {"background": 0, "thing": "x"}}',
        "{",
    ],
)
def test_malformed_descriptions_are_refused(tmp_path, text):
    pairs(tmp_path)
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(InputError, match=r"dataset\.json"):
        read_cases(tmp_path)


def test_classes_may_be_numbered_by_value_or_by_name(tmp_path):
    pairs(tmp_path)
    for labels in ({"0": "nothing", "1": "thing"}, {"nothing": 0, "thing": 1}, ["nothing", "thing"]):
        (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
        assert read_cases(tmp_path).classes == ("nothing", "thing")


def test_no_labelled_case_at_all(tmp_path):
    data = read_cases(pairs(tmp_path, unlabelled=10))
    with pytest.raises(InputError, match="no labelled case"):
        make_split(data, labelled=1)


def test_a_label_without_its_image_is_refused(tmp_path):
    pairs(tmp_path)
    (tmp_path / "images" / "c3.nii.gz").unlink()
    with pytest.raises(InputError, match=r"(?s)no image.*c3"):
        read_cases(tmp_path)
    with pytest.raises(InputError, match="no cases"):
        read_cases(tmp_path / "labels")


def test_patients_stay_in_one_part(tmp_path):
    pairs(tmp_path, count=10, unlabelled=0)
    about = {"labels": {"0": "background", "1": "thing"}, "patients": {f"c{i}": f"p{i // 2}" for i in range(10)}}
    (tmp_path / "dataset.json").write_text(json.dumps(about))
    data = read_cases(tmp_path)
    assert data.classes == ("background", "thing")
    split = make_split(data, labelled=2, validation=2, test=2, seed=3)
    for part in (split.labelled, split.validation, split.test):
        assert len({data.cases[name].patient for name in part}) == 1
    (tmp_path / "train_lab.txt").write_text("c0\nc2\n")
    (tmp_path / "test.txt").write_text("c1\n")
    with pytest.raises(InputError, match="patient stands in two splits"):
        make_split(read_cases(tmp_path), labelled=2)
    (tmp_path / "test.txt").write_text("c2\n")
    with pytest.raises(InputError, match="two splits"):
        make_split(read_cases(tmp_path), labelled=2)
    (tmp_path / "test.txt").write_text("c99\n")
    with pytest.raises(InputError, match="not there"):
        read_cases(tmp_path)


@pytest.mark.parametrize("nested", [True, False])
def test_published_hdf5_layouts_with_their_lists(tmp_path, nested):
    for index in range(6):
        path = tmp_path / f"P{index}" / "mri_norm2.h5" if nested else tmp_path / f"P{index}.h5"
        path.parent.mkdir(exist_ok=True)
        with h5py.File(path, "w") as file:
            file["image"] = image(seed=index)
            if index != 5:
                file["label"] = label()
    lists = {"train_lab": [0, 1], "train_unlab": [2, 5], "test": [3, 4]}
    for name, cases in lists.items():
        (tmp_path / f"{name}.txt").write_text("".join(f"P{i}{'' if nested else '.h5'}\n" for i in cases))
    data = read_cases(tmp_path)
    split = make_split(data, labelled=1)
    assert split == Split(("P0",), ("P1", "P2", "P5"), (), ("P3", "P4"))
    assert data.settings == {"scaling": "none"}  # published scaled
    volumes = {case_name(path): path for path in find_volumes([tmp_path])}
    assert volumes == {name: case.image for name, case in data.cases.items()}
    x, y = read_pair(data.cases["P0"].image, data.cases["P0"].label, 2)
    np.testing.assert_array_equal(x.numpy()[0], image(seed=0))
    assert y.dtype == torch.int64
    with pytest.raises(InputError, match="no dataset `label`"):
        read_label(data.cases["P5"].image)
    with pytest.raises(InputError, match="fewer labelled"):
        make_split(data, labelled=3)


def test_volumes_of_a_folder(tmp_path):
    save(tmp_path / "b.nii", image())
    save(tmp_path / "a.nii.gz", image())
    series(tmp_path / "scan")
    (tmp_path / "notes.txt").write_text("x")
    assert [path.name for path in find_volumes([tmp_path])] == ["a.nii.gz", "b.nii", "scan"]
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="no volume"):
        find_volumes([tmp_path / "none"])


def test_one_window_is_one_forward_pass():
    torch.manual_seed(0)
    network = torch.nn.Conv3d(1, 3, 3, padding=1)
    volume = torch.rand(1, 8, 8, 8)
    with torch.no_grad():
        ((start, slab),) = list(slide(volume, network, patch=(8, 8, 8), stride=(3, 3, 3)))
        assert start == 0
        assert torch.equal(slab, network(volume[None])[0])


@pytest.mark.parametrize("shape", [(8, 8, 8), (9, 14, 11), (23, 8, 10), (5, 12, 3), (3, 3, 3)])
@pytest.mark.parametrize("batch", [1, 3])
def test_slabs_equal_the_average_over_all_windows(shape, batch):
    torch.manual_seed(0)
    calls = []

    def network(x):
        calls.append(len(x))
        return torch.cat([x.cumsum(2), x.square().cumsum(4)], 1)

    volume = torch.rand(1, *shape, dtype=torch.float64)
    patch, stride = (8, 8, 8), (5, 3, 4)
    slabs = list(slide(volume, network, patch=patch, stride=stride, batch=batch))
    ours = torch.cat([slab for _, slab in slabs], 1)
    assert [start for start, _ in slabs] == np.cumsum([0, *[s.shape[1] for _, s in slabs]])[:-1].tolist()
    padding = [(max(8 - side, 0) // 2, max(8 - side, 0) - max(8 - side, 0) // 2) for side in shape]
    padded = torch.nn.functional.pad(volume, [n for pair in reversed(padding) for n in pair])
    total, count, windows = torch.zeros(2, *padded.shape[1:], dtype=torch.float64), torch.zeros(padded.shape[1:]), 0
    starts = [sorted({min(i, side - 8) for i in range(0, side, s)}) for side, s in zip(padded.shape[1:], stride)]
    for i in starts[0]:
        for j in starts[1]:
            for k in starts[2]:
                where = (slice(i, i + 8), slice(j, j + 8), slice(k, k + 8))
                part = padded[(slice(None), *where)][None]
                total[(slice(None), *where)] += torch.cat([part.cumsum(2), part.square().cumsum(4)], 1)[0]
                count[where] += 1
                windows += 1
    cut = [slice(before, before + side) for (before, _), side in zip(padding, shape)]
    torch.testing.assert_close(ours, (total / count)[(slice(None), *cut)])
    assert sum(calls) == windows
    assert max(calls) <= batch
    assert max(calls) - min(calls) <= 1  # a slab's windows are divided evenly


def test_prediction_holds_one_slab_of_classes_only():
    """Whatever the length of the volume, no tensor larger than a slab of all classes is made."""
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.untyped_storage().nbytes() != volume.untyped_storage().nbytes():
                sizes.append(out.untyped_storage().nbytes())
            return out

    volume, classes = torch.rand(1, 160, 16, 16), 12
    found = torch.empty(volume.shape[1:], dtype=torch.uint8)
    with Watch():
        for start, slab in slide(volume, lambda x: x.expand(-1, classes, -1, -1, -1), patch=(16,) * 3, stride=(8,) * 3):
            found[start : start + slab.shape[1]] = slab.argmax(0)
    slab_bytes = classes * 16 * 16 * 16 * 4
    assert max(sizes) <= slab_bytes
    assert slab_bytes < classes * volume.numel() * 4 / 9


@pytest.mark.parametrize("stride", [(0, 4, 4), (9, 4, 4)])
def test_strides_out_of_range(stride):
    with pytest.raises(InputError, match="--stride"):
        list(slide(torch.rand(1, 8, 8, 8), lambda x: x, patch=(8, 8, 8), stride=stride))


def test_overlap_and_distances_of_boxes():
    a, b = np.zeros((20, 20, 20), bool), np.zeros((20, 20, 20), bool)
    a[5:10, 5:10, 5:10] = True
    b[7:12, 5:10, 5:10] = True
    assert dice(a, b) == pytest.approx(0.6)
    assert jaccard(a, b) == pytest.approx(3 / 7)
    voxels = surface_distances(a, b)
    assert voxels.hd95 == voxels.hd95_max == 2
    metres = surface_distances(a, b, (3.0, 3.0, 3.0))
    assert metres.hd95 == 6
    assert metres.assd == pytest.approx(3 * voxels.assd)
    same = surface_distances(a, a)
    assert (same.hd95, same.assd) == (0, 0)


def test_distances_agree_with_monai_and_with_their_definition():
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

    rng = np.random.default_rng(0)
    a, b = (np.pad(rng.random((9, 8, 7)) > 0.6, 2) for _ in range(2))
    ours = surface_distances(a, b, (1.0, 1.5, 2.0))
    tensors = [torch.from_numpy(x[None, None].astype(np.float32)) for x in (a, b)]
    options = {"include_background": True, "spacing": [1.0, 1.5, 2.0]}
    hd = compute_hausdorff_distance(*tensors, percentile=95, **options)
    assert ours.hd95_max == pytest.approx(float(hd), abs=1e-5)
    directed = [float(compute_average_surface_distance(*pair, **options)) for pair in (tensors, tensors[::-1])]
    assert ours.asd_directed == pytest.approx(directed[0], abs=1e-5)
    assert min(directed) <= ours.assd <= max(directed)
    assert ours.hd95 <= ours.hd95_max


def test_empty_masks_are_flagged_and_measured_by_the_diagonal():
    full = np.zeros((3, 4, 12), np.uint8)
    full[1, 1, 1] = 1
    (row,) = case_metrics(np.zeros_like(full), full, ("background", "thing"), (1.0, 1.0, 2.0))
    assert row["empty"]
    assert row["dice"] == row["jaccard"] == 0
    assert row["hd95_vox"] == pytest.approx(13)
    assert row["hd95_mm"] == pytest.approx(math.dist((0, 0, 0), (3, 4, 24)))
    (row,) = case_metrics(np.zeros_like(full), np.zeros_like(full), ("background", "thing"), (1.0, 1.0, 1.0))
    assert (row["dice"], row["hd95_mm"], row["empty"]) == (1.0, 0.0, True)


def test_largest_component_of_every_structure():
    labels = np.zeros((9, 5, 5), np.uint8)
    labels[0:3] = 1
    labels[6, 0, 0] = 1
    labels[4, 1, 1] = 2
    kept = largest_component(labels, 3)
    assert kept[6, 0, 0] == 0
    assert kept[4, 1, 1] == 2
    assert (kept[0:3] == 1).all()
    corner = np.zeros((4, 4, 4), np.uint8)
    corner[0, 0, 0] = corner[1, 1, 1] = corner[3, 3, 3] = 1
    assert largest_component(corner, 2).sum() == 2  # corners touch, as in the published code
    assert (largest_component(np.zeros_like(labels), 3) == 0).all()
