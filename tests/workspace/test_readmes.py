"""What the READMEs show works: every Python example runs, every command exists, every option is known."""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
READMES = [
    path
    for name in subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    if name and (path := ROOT / name).name == "README.md" and path.is_file()
]


def blocks(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), flags=re.MULTILINE | re.DOTALL)


def identify(path):
    return str(path.parent.relative_to(ROOT))


@pytest.mark.parametrize("path", [path for path in READMES if blocks(path, "python")], ids=identify)
def test_python_examples_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for code in blocks(path, "python"):
        result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
        assert result.returncode == 0, f"{code}\n{result.stderr[-2000:]}"


def commands(path):
    for block in blocks(path, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and re.fullmatch(r"(?:\.venv/bin/)?cl-[a-z0-9]+", words[0]):
                yield [words[0].removeprefix(".venv/bin/"), *words[1:]]


SHOWN = {(tuple(words), path) for path in READMES for words in commands(path)}


@pytest.mark.parametrize("words", sorted({words for words, _ in SHOWN}), ids=" ".join)
def test_commands_and_options_exist(words, capsys):
    """The verb's own help answers, and names every option shown."""
    package = words[0].replace("-", "_")
    verb = []
    for word in words[1:]:
        if (
            word.startswith("-")
            or not re.fullmatch(r"[a-z][a-z0-9-]*", word)
            or len(verb) == (1 if package == "cl_bench" else 2)
        ):
            break
        verb.append(word)
    # In this process: the libraries behind the verbs take longer to import than everything else here.
    code = importlib.import_module(f"{package}.cli").app.run([*verb, "--help"])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    options = {word.split("=")[0] for word in words if word.startswith("--")} - {"--help", "--version"}
    assert options <= set(re.findall(r"--[a-z0-9.-]+", shown.out)), shown.out


def test_the_first_command_of_the_root_readme_runs(tmp_path):
    """The example of the command line, with nothing but what it says."""
    lines = [words for words in commands(ROOT / "README.md") if words[1:3] != ["mantis", "demo"]]
    assert lines
    for words in lines:
        package = words[0].replace("-", "_")
        code = f"from {package}.cli import main; main()"
        result = subprocess.run([sys.executable, "-c", code, *words[1:]], cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-2000:]


def test_relative_links_lead_somewhere():
    for path in READMES:
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            if not re.match(r"[a-z]+:", target):
                assert (path.parent / target).exists(), f"{path}: {target}"
