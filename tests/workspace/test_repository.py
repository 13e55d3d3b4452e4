"""What holds for every tracked file: no address in the lock, no path of a machine, nothing large."""

import re
import runpy
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def tracked() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    return [ROOT / name for name in listing.decode().split("\0") if name and (ROOT / name).is_file()]


def test_lock_holds_no_address_and_every_hash():
    text = (ROOT / "uv.lock").read_text()
    assert not re.search(r"[a-z]+://", text)
    packages = tomllib.loads(text)["package"]
    assert len(packages) > 50
    for package in packages:
        for wheel in package.get("wheels", []):
            assert wheel["hash"].startswith("sha256:")


def test_lock_names_every_member():
    members = {package["name"] for package in tomllib.loads((ROOT / "uv.lock").read_text())["package"]}
    for file in ROOT.glob("*/*/pyproject.toml"):
        assert tomllib.loads(file.read_text())["project"]["name"] in members


def test_rewriting_the_lock_drops_addresses_and_nothing_else():
    neutralise = runpy.run_path(str(ROOT / "scripts" / "neutral_lock.py"))["neutralise"]
    scheme = "https" + "://"
    fresh = (
        f'source = {{ registry = "{scheme}some.index.example/simple" }}\n'
        f'    {{ url = "{scheme}files.example/ab/cd/x-1.0.whl", hash = "sha256:12", size = 3, '
        'upload-time = "2026-01-01T00:00:00Z" },\n'
    )
    neutral = neutralise(fresh)
    assert neutral == ('source = { registry = "locked" }\n    { path = "x-1.0.whl", hash = "sha256:12", size = 3 },\n')
    assert neutralise(neutral) == neutral


@pytest.mark.parametrize(
    "pattern", [r"/(?:home|root|Users)/[A-Za-z0-9_.-]+", rf"{re.escape(str(ROOT.parent))}/(?:{ROOT.name}|shared)/"]
)
def test_no_tracked_file_names_a_path_of_a_machine(pattern):
    offenders = []
    for path in tracked():
        if path == Path(__file__):
            continue
        if re.search(pattern, path.read_bytes().decode("utf-8", errors="ignore")):
            offenders.append(str(path.relative_to(ROOT)))
    assert offenders == []


def test_no_large_file_is_tracked():
    large = [path.name for path in tracked() if path.stat().st_size > 200_000 and path.name != "uv.lock"]
    assert large == []


@pytest.mark.parametrize("folder", [str(file.parent.relative_to(ROOT)) for file in ROOT.glob("*/*/pyproject.toml")])
def test_every_member_carries_readme_licence_and_type_marker(folder):
    member = ROOT / folder
    project = tomllib.loads((member / "pyproject.toml").read_text())["project"]
    assert len((member / "README.md").read_text()) > 300
    assert "Apache License" in (member / "LICENSE").read_text()
    assert list(member.glob("src/*/py.typed"))
    versions = re.findall(r'^version = "', (member / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert len(versions) == 1
    module = next(member.glob("src/*/__init__.py")).read_text()
    assert f'version("{project["name"]}")' in module
