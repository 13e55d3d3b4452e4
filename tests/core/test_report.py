"""The report: one file, nothing loaded from elsewhere, everything escaped."""

import re

import pytest
from contrastive_core.report import Report


def test_page_is_self_contained_and_escaped(tmp_path):
    report = Report("A <script>alert(1)</script> title")
    report.facts({"seed": 0, "data": "<b>"})
    report.table("T", ["set", "a", "b"], [["x<y", 0.5, 0.75], ["z", None, 0.25]], best=[1, 2])
    report.curve("Loss", {"train": ([0, 1], [2.0, 1.0]), "val": ([0, 1], [2.0, 1.5])}, "step", "loss")
    page = report.write(tmp_path / "r.html").read_text()
    assert "<script>" not in page
    assert "x&lt;y" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert page.count("data:image/png;base64,") == 1
    assert re.findall(r'best">([\d.]+)<', page) == ["0.750", "0.250"]


def test_ragged_tables_are_refused():
    with pytest.raises(ValueError, match="cells"):
        Report("t").table("T", ["a", "b"], [[1]])
