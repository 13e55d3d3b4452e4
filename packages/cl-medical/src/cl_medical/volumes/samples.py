"""Simulated MR volumes with labels, made from the MNI152 template and tissue maps in nilearn's wheel.

The template (ICBM 2009a nonlinear symmetric, 1 mm, in the public domain by its own terms) is warped by a smooth random
deformation, resampled to coarse voxels, and given its own contrast, bias field and noise. These are simulated volumes:
all subjects share one anatomy, which makes them far easier than real ones.
"""

from pathlib import Path

import numpy as np
import torch
from contrastive_core.data import packaged
from contrastive_core.errors import InputError
from contrastive_core.files import write_json
from jaxtyping import Float
from monai.data.meta_tensor import MetaTensor
from scipy import ndimage

from cl_medical.volumes.nifti import write_nifti

CLASSES = ("background", "grey matter", "white matter")
_SIDES = (48, 56, 48)
_VOXEL = 4.0


def write_samples(
    out: Path | str, *, cases: int = 16, unlabelled: int = 6, seed: int = 0, overwrite: bool = False
) -> list[Path]:
    """Write simulated cases as ``images/``, ``labels/`` and ``dataset.json``.

    Args:
        out: Folder to write to.
        cases: Volumes, 48 x 56 x 48 voxels of 4 mm.
        unlabelled: How many of them get no label map.
        seed: Seed of all volumes.
        overwrite: Replace volumes that are already there.

    Returns:
        The images.

    Raises:
        InputError: nilearn is not installed, the numbers make no set, or volumes are already there.
    """
    out = Path(out)
    if cases < 1 or not 0 <= unlabelled < cases:
        raise InputError(
            "the numbers make no data set", where="--cases, --unlabelled", why=f"got {cases} and {unlabelled}"
        )
    names = [f"simulated_{index:03d}" for index in range(cases)]
    paths = [out / "images" / f"{name}.nii.gz" for name in names]
    if not overwrite:
        for path in paths:
            if path.exists():
                raise InputError("a volume is already there", where=path, remedy="pass --overwrite, or another folder")
    maps = _template()
    for index, (name, path) in enumerate(zip(names, paths, strict=True)):
        image, label, affine = simulate(maps, np.random.default_rng([seed, index]))
        reference = _reference(affine)
        write_nifti(path, image, reference)
        target = out / "labels" / f"{name}.nii.gz"
        if index < cases - unlabelled:
            write_nifti(target, label, reference)
        else:
            target.unlink(missing_ok=True)
    write_json(
        out / "dataset.json",
        {
            "name": "simulated brain MR",
            "description": "Simulated: MNI152 (ICBM 2009a) warped, with bias field, noise and contrast of their own.",
            "labels": {str(index): name for index, name in enumerate(CLASSES)},
            "settings": {"patch": [32, 32, 32], "stride": [16, 16, 16], "scaling": "percentile", "augment": "none"},
        },
    )
    return paths


def simulate(
    maps: tuple[Float[np.ndarray, "x y z"], Float[np.ndarray, "x y z"], Float[np.ndarray, "x y z"]],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One simulated subject.

    Args:
        maps: Template T1 and its grey and white matter maps, 1 mm, over one grid.
        rng: Draws everything.

    Returns:
        ``float32`` image, ``uint8`` label map, affine (oblique by up to 5 degrees).
    """
    t1, grey, white = maps
    turn = _rotation(rng.uniform(-5, 5, 3))
    scale = rng.uniform(0.92, 1.08, 3)
    grid = np.stack(np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * _VOXEL for n in _SIDES], indexing="ij"))
    # A smooth field from a coarse grid of random vectors, up to about 8 mm.
    knots = rng.normal(0, 3.5, (3, 5, 5, 5))
    field = np.stack([ndimage.zoom(knot, np.array(_SIDES) / 5, order=3, mode="nearest") for knot in knots])
    world = np.einsum("ij,jxyz->ixyz", turn * scale, grid) + field
    centre = (np.array(t1.shape) - 1) / 2
    places = world + centre[:, None, None, None]
    tissue = [ndimage.map_coordinates(values, places, order=1, mode="constant") for values in (grey, white)]
    intensity = ndimage.map_coordinates(t1, places, order=1, mode="constant")
    head = intensity > 0.05
    label = np.where(tissue[1] > np.maximum(tissue[0], 0.35), 2, np.where(tissue[0] > 0.35, 1, 0)).astype(np.uint8)
    label[~head] = 0
    image = intensity ** rng.uniform(0.7, 1.4)
    image *= np.exp(ndimage.zoom(rng.normal(0, 0.15, (3, 3, 3)), np.array(_SIDES) / 3, order=2, mode="nearest"))
    sigma = rng.uniform(0.015, 0.04)
    image = np.hypot(image + rng.normal(0, sigma, image.shape), rng.normal(0, sigma, image.shape))  # Rician
    image *= rng.uniform(200, 2000)
    affine = np.eye(4)
    affine[:3, :3] = turn * _VOXEL
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(_SIDES) - 1) / 2)
    return image.astype(np.float32), label, affine


def _template() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """T1, grey and white matter from the installed package's files; nothing is downloaded."""
    import nibabel as nib

    files = [
        packaged("nilearn", f"datasets/data/mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz")
        for kind in ("t1", "gm", "wm")
    ]
    if None in files:
        raise InputError(
            "the template of the sample data is not installed",
            why="it comes with the package nilearn",
            remedy="pip install 'cl-medical[samples]'",
        )
    maps = [np.asarray(nib.load(file).dataobj, dtype=np.float32) for file in files]  # type: ignore[attr-defined,arg-type]
    t1, grey, white = (values / values.max() for values in maps)
    return t1, grey, white


def _reference(affine: np.ndarray) -> MetaTensor:
    return MetaTensor(torch.zeros(1, 1, 1, 1), affine=torch.from_numpy(affine))


def _rotation(degrees: np.ndarray) -> np.ndarray:
    a, b, c = np.deg2rad(degrees)
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return x @ y @ z
