"""What cl-bench reports: outcomes, races, refusals."""

import json

import pytest
from cl_bench import commands
from cl_bench.arms import Claim
from cl_bench.cli import app
from cl_bench.measures import race


def claim(better, baseline):
    return Claim("m: x", "a beats b", {"a": better, "b": baseline}, "a", "b", True, {}, ["a note"], 1.25)


def test_a_claim_holds_when_the_paired_mean_is_positive():
    result = claim([0.5, 0.7], [0.4, 0.5]).to_dict()
    assert result["holds"] is True
    assert result["paired_difference"]["mean"] == pytest.approx(0.15)
    assert result["paired_difference"]["sd"] == pytest.approx(0.05 * 2**0.5)
    assert result["arms"]["a"]["mean"] == pytest.approx(0.6)
    assert claim([0.4], [0.4]).to_dict()["holds"] is False


def test_a_race_alternates_and_reports_memory():
    order, kept = [], []

    def ours():
        order.append("ours")

    def theirs():
        order.append("theirs")
        kept.append(bytearray(40 * 2**20))

    result = race("r", ours, theirs, peer="p", rounds=3, notes="n").to_dict()
    assert order[2:] == ["ours", "theirs"] * 3
    assert result["ratio"] > 1
    assert result["theirs_peak_mib"] > 30 > result["ours_peak_mib"]


def test_claims_are_written_and_printed(monkeypatch, tmp_path, capsys):
    class Module:
        @staticmethod
        def claims(seeds, data):
            return [claim([0.5] * len(seeds), [0.6] * len(seeds))]

    monkeypatch.setattr(commands, "_module", lambda kind, name: Module)
    assert app.run(["claims", "mantis", "--seeds", "2", "--json", "--out", str(tmp_path)]) == 0
    (printed,) = json.loads(capsys.readouterr().out)
    assert printed["holds"] is False
    assert json.loads((tmp_path / "claims.json").read_text())["claims"] == [printed]
    assert "a note" in (tmp_path / "report.html").read_text()
    assert app.run(["claims", "mantis"]) == 0
    assert "m: x: does not hold (-0.1000" in capsys.readouterr().out


def test_every_entry_has_its_module(capsys):
    assert app.run(["list", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    for kind, names in entries.items():
        assert names
        for name in names:
            assert callable(getattr(commands._module(kind, name), kind))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["claims", "nothing"], "nothing of that name"),
        (["speed", "nothing"], "nothing of that name"),
        (["claims", "mantis", "--seeds", "0"], "--seeds"),
        (["claims", "--data", "."], "one method"),
        (["claims", "mantis", "--data", "not-there"], "missing"),
        (["speed", "core", "--rounds", "0"], "--rounds"),
    ],
)
def test_bad_options_are_refused(words, text, capsys):
    monkey = app.run(words)
    error = capsys.readouterr().err
    assert monkey == 2
    assert text in error
