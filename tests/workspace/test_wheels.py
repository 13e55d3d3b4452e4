"""Wheels work outside the workspace: built, installed into a fresh environment, and used from there."""

import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MEMBERS = sorted(file.parent for file in ROOT.glob("*/*/pyproject.toml"))


@pytest.fixture(scope="module")
def wheels(build_wheel):
    return {wheel.name.split("-")[0]: wheel for wheel in map(build_wheel, MEMBERS)}


@pytest.fixture(scope="module")
def fresh(wheels, install):
    return install([wheels["contrastive_core"], wheels["cl_signals"]])


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
    where = "import cl_signals, contrastive_core as c; print(cl_signals.__file__, c.__file__)"
    found = fresh.run(where, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert str(ROOT) not in found.stdout
    main = "from cl_signals.cli import main; main()"
    shown = fresh.run(main, "--help", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "mantis" in shown.stdout
    synth = ("mantis", "synth", "c.npy", "--series", "4")
    drawn = fresh.run(main, *synth, "--length", "64", "--workers", "1", cwd=tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / "c.npy").is_file()
    refused = fresh.run(main, *synth, cwd=tmp_path)
    assert refused.returncode == 2
    assert "--overwrite" in refused.stderr
