"""Wheels work outside the workspace: built, installed into a fresh environment, and used from there."""

import os
import shutil
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MEMBERS = sorted(file.parent for file in ROOT.glob("*/*/pyproject.toml"))


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheels")
    for member in MEMBERS:
        source = tmp_path_factory.mktemp(member.name) / member.name
        shutil.copytree(member, source, ignore=shutil.ignore_patterns("__pycache__", "dist"))
        subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", out], cwd=source, check=True)
    return {wheel.name.split("-")[0]: wheel for wheel in out.glob("*.whl")}


@pytest.fixture(scope="module")
def fresh(wheels, tmp_path_factory):
    """An environment with the wheels of cl-signals and its core, and without this workspace.

    The third-party packages are those of the running environment, reached by a path file: installing two gigabytes of
    torch once more would test nothing of ours.
    """
    folder = tmp_path_factory.mktemp("fresh")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip())
    third_party = packages / "third_party"
    third_party.mkdir()
    ours = tuple(wheels)
    for entry in Path(site.getsitepackages()[0]).iterdir():
        if not entry.name.startswith((*ours, "_editable_impl_", "__editable__")) and entry.suffix != ".pth":
            (third_party / entry.name).symlink_to(entry)
    (packages / "third_party.pth").write_text(f"{third_party}\n")
    for name in ("contrastive_core", "cl_signals"):
        with zipfile.ZipFile(wheels[name]) as wheel:
            wheel.extractall(packages)
    return python


def outside(python, *words, cwd):
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        [python, *words], cwd=cwd, env={**environment, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )


def test_a_wheel_carries_readme_licence_marker_and_entry_point(wheels):
    assert len(wheels) == len(MEMBERS)
    for name, path in wheels.items():
        with zipfile.ZipFile(path) as wheel:
            names = wheel.namelist()
            (metadata,) = (entry for entry in names if entry.endswith(".dist-info/METADATA"))
            text = wheel.read(metadata).decode()
            assert f"{name}/py.typed" in names
            assert any(entry.endswith("licenses/LICENSE") for entry in names)
            assert "Description-Content-Type: text/markdown" in text
            assert len(text.split("\n\n", 1)[1]) > 300
            if name != "contrastive_core":
                (points,) = (entry for entry in names if entry.endswith("entry_points.txt"))
                assert f"{name.replace('_', '-')} = {name}.cli:main" in wheel.read(points).decode()


def test_the_installed_wheel_runs_outside_the_workspace(fresh, tmp_path):
    found = outside(
        fresh, "-c", "import cl_signals, contrastive_core as c; print(cl_signals.__file__, c.__file__)", cwd=tmp_path
    )
    assert found.returncode == 0, found.stderr
    assert str(ROOT) not in found.stdout
    run = ["-c", "from cl_signals.cli import main; main()"]
    shown = outside(fresh, *run, "--help", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "mantis" in shown.stdout
    drawn = outside(
        fresh, *run, "mantis", "synth", "c.npy", "--series", "4", "--length", "64", "--workers", "1", cwd=tmp_path
    )
    assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / "c.npy").is_file()
    refused = outside(fresh, *run, "mantis", "synth", "c.npy", "--series", "4", cwd=tmp_path)
    assert refused.returncode == 2
    assert "--overwrite" in refused.stderr
