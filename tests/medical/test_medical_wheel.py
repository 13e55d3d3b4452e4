"""The wheel of cl-medical with that of its core, in a fresh environment: from sample data to a segmentation."""

import os
import shutil
import site
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]

# One process, so that torch is imported once.
CODE = """
import cl_medical, contrastive_core
from cl_medical.cli import app
print(cl_medical.__file__, contrastive_core.__file__)
for words in (
    "sample-data scans --cases 4 --unlabelled 1",
    "train scans run --labelled 1 --test 1 --network.width 4 --network.downsamplings 2 --patch 16 16 16"
    " --stride 16 16 16 --steps 3",
    "predict run scans/images/simulated_003.nii.gz out",
):
    assert app.run(["mpcl", *words.split()]) == 0, words
"""


def test_the_installed_wheel_goes_from_sample_data_to_a_segmentation(tmp_path):
    wheels = tmp_path / "wheels"
    for member in ("shared/contrastive-core", "packages/cl-medical"):
        source = tmp_path / "source" / Path(member).name
        shutil.copytree(ROOT / member, source, ignore=shutil.ignore_patterns("__pycache__", "dist"))
        build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels)]
        subprocess.run(build, cwd=source, check=True, capture_output=True)
    python = _environment(tmp_path / "fresh", wheels)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [python, "-c", CODE], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**environment, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert str(ROOT) not in done.stdout.splitlines()[0]
    assert "1 of 1" in done.stdout
    assert (tmp_path / "out" / "simulated_003.nii.gz").is_file()
    assert (tmp_path / "run" / "report.html").is_file()


def _environment(folder, wheels):
    """Our wheels unpacked, third-party packages those of the running environment, nothing of this workspace."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip())
    third_party = packages / "third_party"
    third_party.mkdir()
    ours = ("contrastive_core", "cl_", "_editable_impl_", "__editable__")
    for entry in Path(site.getsitepackages()[0]).iterdir():
        if not entry.name.startswith(ours) and entry.suffix != ".pth":
            (third_party / entry.name).symlink_to(entry)
    (packages / "third_party.pth").write_text(f"{third_party}\n")
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(packages)
    return python
