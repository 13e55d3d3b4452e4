"""Tiny volumes in every layout, and one trained run that the tests of the verbs share."""

import json
import math

import nibabel as nib
import numpy as np
import pytest
import torch
from cl_medical.cli import app
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

OBLIQUE = np.array([[-0.9, 0.3, 0.1, 40], [0.2, 1.4, -0.4, -30], [0.1, 0.2, 2.5, 7], [0, 0, 0, 1.0]])
"""A sheared affine."""

NETWORK = ("--network.width", "4", "--network.downsamplings", "2", "--patch", "16", "12", "16")
HARDWARE = ("--no-progress", "--accelerator", "cpu", "--log-every", "1")
TINY = (*NETWORK, "--stride", "8", "8", "8", "--batch-size", "1", "--labelled", "2", *HARDWARE)


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


def pairs(folder, count=10, unlabelled=2):
    for index in range(count):
        save(folder / "images" / f"c{index}.nii.gz", image(seed=index))
        if index < count - unlabelled:
            save(folder / "labels" / f"c{index}.nii.gz", label())
    return folder


def ball(seed, shape=(18, 14, 16)):
    """A bright ball with a dark core in a two-tone background."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"))
    distance = np.linalg.norm(grid - (np.array(shape) / 2 + rng.uniform(-1.5, 1.5, 3))[:, None, None, None], axis=0)
    mask = (distance < 5).astype(np.uint8)
    values = np.where(distance < 2, 0.3, np.where(distance < 5, 1.0, np.where(grid[0] < 8, 0.1, 0.5)))
    return (values + rng.normal(0, 0.05, shape)).astype(np.float32), mask


def dataset(folder, count=9, unlabelled=3):
    for index in range(count):
        values, mask = ball(index)
        save(folder / "images" / f"case{index}.nii.gz", values, OBLIQUE)
        if index < count - unlabelled:
            save(folder / "labels" / f"case{index}.nii.gz", mask, OBLIQUE)
    (folder / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "ball"}}))
    return folder


def tiny_mpcl(folder):
    """Nine balls, six of them labelled."""
    return dataset(folder / "balls")


def series(folder, count=5, slope=2.0, order=1, skip=(), angle=0.2, shift=lambda index: (0, 0, 0), edit=None):
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
        place = np.array([10, -20, 30]) + index * 3.0 * order * np.cross(row, column) + shift(index)
        data.ImagePositionPatient = place.tolist()
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        data.RescaleSlope, data.RescaleIntercept = slope, -1000
        data.PixelData = volume[index].tobytes()
        if edit is not None:
            edit(data)
        data.save_as(path)
    return volume


def run(*words):
    return app.run(["mpcl", *map(str, words)])


def refused(capsys, *words):
    capsys.readouterr()
    assert run(*words) == 2
    text = capsys.readouterr().err
    assert "error: " in text
    return text


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """``data`` and ``run``: MPCL after 50 steps on balls, two of them held out for testing, one for validation."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("mpcl")
    data = dataset(folder / "data")
    words = ["train", data, folder / "run", *TINY, "--steps", 50, "--test", 2, "--validation", 1]
    assert run(*words, "--validate-every", 25, "--augment", "flip", "--optim.lr", 0.005) == 0
    return folder
