"""What cl-bench measures and prints: verdicts, tables, races, refusals; no method is trained here."""

import json
import math

import numpy as np
import pytest
from cl_bench import commands
from cl_bench.arms import Result, Statement, Table, compare, measure
from cl_bench.cli import app
from cl_bench.measures import processor, race
from cl_bench.verdicts import paired_interval
from scipy import stats

BASELINE = {0: 0.40, 1: 0.50, 2: 0.45}
GAIN = {0: 0.10, 1: 0.12, 2: 0.11}


def score_baseline(seed):
    return Result({"accuracy": BASELINE[seed], "error": 1 - BASELINE[seed]})


def score_ours(seed):
    accuracy = BASELINE[seed] + GAIN[seed]
    return Result({"accuracy": accuracy, "error": 1 - accuracy, "only ours": 1.0}, details=[{"set": "s", "seed": seed}])


def table(seeds=(0, 1, 2), condition=""):
    return measure("toy", {"ours": score_ours, "theirs": score_baseline}, seeds, condition=condition)


def outcome(seeds=(0, 1, 2), **options):
    claim = Statement(**{"statement": "s", "metric": "accuracy", "better": "ours", "baseline": "theirs"} | options)
    (result,) = compare("toy", [claim], table(seeds), notes=["a note"])
    return result.to_dict()


def test_students_interval_is_scipys():
    result = outcome()["paired_difference"]
    reference = stats.ttest_rel([BASELINE[s] + GAIN[s] for s in range(3)], [BASELINE[s] for s in range(3)])
    expected = reference.confidence_interval(0.95)
    assert result["interval"] == pytest.approx([expected.low, expected.high])
    assert result["mean"] == pytest.approx(0.11)
    assert result["sd"] == pytest.approx(np.std(list(GAIN.values()), ddof=1))
    assert (result["n"], result["test"]) == (3, "t over 3 seeds")


def test_the_bootstrap_over_items_is_scipys():
    items = np.random.default_rng(1).normal(0.1, 1.0, (1, 200))
    interval = paired_interval([float(items.mean())], items)
    reference = stats.bootstrap((items[0],), np.mean, n_resamples=20_000, method="percentile", random_state=2)
    assert interval.low == pytest.approx(reference.confidence_interval.low, abs=0.01)
    assert interval.high == pytest.approx(reference.confidence_interval.high, abs=0.01)
    assert interval.test == "bootstrap over 200 items of one seed"


def test_the_bootstrap_over_items_and_seeds_sees_both_spreads():
    draw = np.random.default_rng(0)
    seeds, items = draw.normal(0, 1, (8, 1)), draw.normal(0, 1, (1, 50))
    between = paired_interval((seeds + 0 * items).mean(1), seeds + 0 * items)
    across = paired_interval((0 * seeds + items).mean(1), 0 * seeds + items)
    both = paired_interval((seeds + items).mean(1), seeds + items)
    widths = [each.high - each.low for each in (between, across, both)]
    assert widths[0] == pytest.approx(2 * 1.96 * seeds.std() / 8**0.5, rel=0.1)
    assert widths[1] == pytest.approx(2 * 1.96 * items.std() / 50**0.5, rel=0.1)
    assert widths[2] == pytest.approx(math.hypot(*widths[:2]), rel=0.1)


def test_items_of_both_arms_decide_with_one_seed():
    wins = (np.arange(100) < 70).astype(float)

    def arm(scores):
        return lambda seed: Result({"hit": float(scores.mean())}, items={"hit": scores})

    rows = measure("toy", {"ours": arm(wins), "theirs": arm(1 - wins)}, [0])
    claims = [Statement("beats", "hit", "ours", "theirs"), Statement("beats half", "hit", "ours", 0.5)]
    for result in compare("toy", claims, rows, notes=[]):
        assert result.interval.verdict == "holds"
        assert "100 items" in result.interval.test
    (other,) = compare("toy", [Statement("beats by 0.35", "hit", "ours", "theirs", 0.35)], rows, notes=[])
    assert other.interval.verdict == "undecided"


def test_a_metric_that_is_no_mean_over_its_items_is_a_mistake():
    with pytest.raises(ValueError, match="mean over its items"):
        Result({"hit": 0.5}, items={"hit": [1.0, 1.0]})


@pytest.mark.parametrize(
    ("options", "verdict"),
    [
        ({}, "holds"),
        ({"margin": 0.05}, "holds"),
        ({"margin": 0.10}, "undecided"),
        ({"margin": 0.2}, "fails"),
        ({"factor": 1.1}, "holds"),
        ({"factor": 2.0}, "fails"),
        ({"better": "theirs", "baseline": "ours"}, "fails"),
        ({"better": "theirs", "baseline": "ours", "margin": -0.2}, "holds"),
        ({"metric": "error", "lower": True}, "holds"),
        ({"metric": "error", "lower": True, "margin": 0.2}, "fails"),
        ({"metric": "error"}, "fails"),
        ({"baseline": 0.4}, "holds"),
        ({"baseline": 0.5}, "undecided"),
        ({"metric": "error", "lower": True, "baseline": 0.8}, "holds"),
    ],
)
def test_verdicts_over_margins_factors_and_levels(options, verdict):
    result = outcome(**options)
    assert result["verdict"] == verdict
    assert result["holds"] is (verdict == "holds")


def test_the_difference_is_what_the_inequality_says():
    result = outcome(factor=0.5, margin=0.01)
    ours, theirs = (result["arms"][arm]["values"] for arm in ("ours", "theirs"))
    expected = [a - 0.5 * b - 0.01 for a, b in zip(ours, theirs, strict=True)]
    assert result["paired_difference"]["values"] == pytest.approx(expected)
    assert result["statement"] == "ours > 0.5 x theirs + 0.01"
    lower = outcome(metric="error", lower=True, factor=2.0, margin=0.01)
    ours, theirs = (lower["arms"][arm]["values"] for arm in ("ours", "theirs"))
    expected = [2 * b - 0.01 - a for a, b in zip(ours, theirs, strict=True)]
    assert lower["paired_difference"]["values"] == pytest.approx(expected)
    assert lower["statement"] == "ours < 2 x theirs - 0.01"
    assert outcome(baseline=0.4)["statement"] == "ours > 0.4"


def test_one_seed_decides_only_what_is_deterministic():
    result = outcome(seeds=[0])
    assert (result["verdict"], result["holds"]) == ("undecided", False)
    assert result["paired_difference"]["interval"] is None
    assert result["paired_difference"]["test"] == "one seed gives no interval"
    assert outcome(seeds=[0], deterministic=True)["verdict"] == "holds"
    assert outcome(seeds=[0], deterministic=True, margin=0.2)["verdict"] == "fails"


def test_equal_differences_decide_and_nothing_is_no_gain():
    assert paired_interval([0.1, 0.1]).verdict == "holds"
    assert paired_interval([0.0, 0.0]).verdict == "fails"


def test_what_is_not_finite_decides_nothing():
    interval = paired_interval([0.1, float("nan"), 0.2])
    assert interval.verdict == "undecided"
    assert interval.test == "1 of 3 differences are not finite: no interval"


def test_a_table_keeps_conditions_apart():
    rows = table(condition="few") + table(seeds=[0], condition="many")
    assert rows.conditions() == ["few", "many"]
    assert rows.values("accuracy", "theirs", "few") == [0.40, 0.50, 0.45]
    assert rows.values("accuracy", "theirs", "many") == [0.40]
    lines = rows.curves(["accuracy", "error"], {1: "few", 2: "many"})
    assert lines["ours"][0] == [1, 2]
    assert lines["ours"][1] == pytest.approx([0.5, 0.5])
    few, *_ = rows.summary()
    assert few["condition"] == "few"
    assert few["accuracy"] == pytest.approx(0.56)
    assert rows.details()[0] == {"condition": "few", "arm": "ours", "seed": 0, "set": "s"}
    with pytest.raises(KeyError, match="no arm"):
        compare("toy", [Statement("s", "accuracy", "ours", "other", condition="few")], rows, notes=[])


def test_arms_are_measured_seed_by_seed_with_a_line_each(capsys):
    order = []

    def arm(name):
        def score(seed):
            order.append((seed, name))
            return Result({"m": 0.25})

        return score

    assert isinstance(measure("toy", {"a": arm("a"), "b": arm("b")}, [3, 4], condition="small"), Table)
    assert order == [(3, "a"), (3, "b"), (4, "a"), (4, "b")]
    lines = capsys.readouterr().err.splitlines()
    assert lines[1].startswith("toy: b, small, seed 3: m 0.250 (")
    assert len(lines) == 4


class Toy:
    """A claim module."""

    @staticmethod
    def claims(seeds, data):
        claims = [
            Statement("ours beats theirs", "accuracy", "ours", "theirs", 0.05, gate=True),
            Statement("ours is much better", "accuracy", "ours", "theirs", 0.3),
        ]
        rows = table(seeds)
        return compare("toy", claims, rows, notes=["a note"], curves={"curve": {"ours": ([1, 2], [0.1, 0.2])}})


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setattr(commands, "_module", lambda kind, name: Toy)


@pytest.mark.usefixtures("toy")
def test_claims_are_written_and_printed(tmp_path, capsys):
    assert app.run(["claims", "mantis", "--seeds", "3", "--json", "--out", str(tmp_path)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [each["verdict"] for each in printed] == ["holds", "fails"]
    assert [each["holds"] for each in printed] == [True, False]
    assert [each["gate"] for each in printed] == [True, False]
    assert printed[0]["arms"]["ours"]["values"] == pytest.approx([0.5, 0.62, 0.56])
    assert set(printed[0]["details"]) == {"toy: means over seeds", "toy: every arm and seed", "toy: details"}
    assert printed[1]["details"] == {}
    assert json.loads((tmp_path / "claims.json").read_text())["claims"] == printed
    page = (tmp_path / "report.html").read_text()
    assert "a note" in page
    assert "undecided" not in page


@pytest.mark.usefixtures("toy")
def test_the_text_says_verdict_difference_interval_and_test(capsys):
    assert app.run(["claims", "mantis"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "toy: ours beats theirs: holds"
    assert lines[1].startswith("  ours > theirs + 0.05: exceeded by +0.0600, 95 % interval +0.0352 to +0.0848")
    assert lines[1].endswith("(t over 3 seeds), gate")
    assert lines[2] == "toy: ours is much better: fails"
    assert lines[3].endswith("reported")
    assert any(line.split() == ["accuracy", "ours", "0.560", "0.060", "3"] for line in lines)
    assert app.run(["claims", "mantis", "--seeds", "1"]) == 0
    out = capsys.readouterr().out
    assert "toy: ours beats theirs: undecided" in out
    assert "one seed gives no interval" in out


@pytest.mark.usefixtures("toy")
def test_only_strict_turns_gates_into_an_exit_status(capsys):
    assert app.run(["claims", "mantis", "--strict"]) == 0  # the one that fails is only reported
    assert app.run(["claims", "mantis", "--seeds", "1"]) == 0
    assert app.run(["claims", "mantis", "--seeds", "1", "--strict"]) == 1


def test_a_race_alternates_and_reports_memory():
    order, kept = [], []

    def ours():
        order.append("ours")

    def theirs():
        order.append("theirs")
        kept.append(bytearray(40 * 2**20))

    result = race("r", ours, theirs, peer="p", rounds=3, notes="n", threads=7).to_dict()
    assert order[2:] == ["ours", "theirs"] * 3
    assert result["ratio"] > 1
    assert result["ratios"][0] <= result["ratio"] <= result["ratios"][1]
    assert result["theirs_peak_mib"] > 30 > result["ours_peak_mib"]
    assert (result["rounds"], result["threads"]) == (3, 7)


def test_every_printed_ratio_names_threads_and_rounds(monkeypatch, tmp_path, capsys):
    class Module:
        @staticmethod
        def speed(rounds):
            return [race("r", int, int, peer="p", rounds=rounds, notes="64 rows x 128")]

    monkeypatch.setattr(commands, "_module", lambda kind, name: Module)
    assert app.run(["speed", "core", "--rounds", "2", "--threads", "1", "--out", str(tmp_path)]) == 0
    first, line = capsys.readouterr().out.splitlines()
    assert first == f"{processor()}, 1 thread"
    assert "x p (1 thread; 2 rounds from " in line
    assert line.endswith("; 64 rows x 128)")
    written = json.loads((tmp_path / "speed.json").read_text())
    assert (written["threads"], written["processor"]) == (1, processor())
    assert app.run(["speed", "core", "--rounds", "1", "--threads", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["speed"][0]["rounds"] == 1


def test_every_entry_has_its_module(capsys):
    assert app.run(["show", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    for kind, names in entries.items():
        assert names
        for name in names:
            assert callable(getattr(commands._module(kind, name), kind))
    assert app.run(["show"]) == 0
    assert "promptgnn-sim" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["claims", "nothing"], "nothing of that name"),
        (["speed", "nothing"], "nothing of that name"),
        (["claims", "mantis", "--seeds", "0"], "--seeds"),
        (["claims", "--data", "."], "one method"),
        (["claims", "mantis", "--data", "not-there"], "missing"),
        (["speed", "core", "--rounds", "0"], "--rounds"),
        (["speed", "core", "--threads", "0"], "--threads"),
    ],
)
def test_bad_options_are_refused(words, text, capsys):
    status = app.run(words)
    assert status == 2
    assert text in capsys.readouterr().err
