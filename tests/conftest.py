"""What tests of installed packages share: wheels built from the members, and environments that hold nothing else."""

import os
import shutil
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def build_wheel(tmp_path_factory):
    """Build the wheel of a member, named by its folder."""

    def build(member: Path) -> Path:
        folder = tmp_path_factory.mktemp("wheel")
        source = folder / member.name
        shutil.copytree(member, source, ignore=shutil.ignore_patterns("__pycache__", "dist"))
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
        subprocess.run(command, cwd=source, check=True, capture_output=True)
        (wheel,) = folder.glob("*.whl")
        return wheel

    return build


class Installed:
    """A fresh environment with wheels of ours, and without this workspace.

    The third-party packages are those of the running environment, reached by a path file: installing gigabytes of
    torch once more would test nothing of ours.
    """

    def __init__(self, folder: Path, wheels: list[Path]) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        self.python = folder / "bin" / "python"
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        found = subprocess.run([self.python, "-c", code], capture_output=True, text=True, check=True)
        packages = Path(found.stdout.strip())
        third_party = packages / "third_party"
        third_party.mkdir()
        ours = ("contrastive_core", "cl_", "_editable_impl_", "__editable__")
        for entry in Path(site.getsitepackages()[0]).iterdir():
            if not entry.name.startswith(ours) and entry.suffix != ".pth":
                (third_party / entry.name).symlink_to(entry)
        (packages / "third_party.pth").write_text(f"{third_party}\n")
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(packages)

    def run(self, code: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run a line of Python there, one thread, outside the workspace's environment."""
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        return subprocess.run(
            [self.python, "-c", code, *words],
            cwd=cwd,
            env={**environment, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )


@pytest.fixture(scope="session")
def install(tmp_path_factory):
    """Make a fresh environment of some wheels."""
    return lambda wheels: Installed(tmp_path_factory.mktemp("fresh"), wheels)
