"""The tables of the README are those of the recorded results."""

from __future__ import annotations

from benchmarks.readme import ROOT, TABLES, filled


def test_the_readmes_tables_are_those_of_the_recorded_results() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert filled(text) == text
    assert all(f"<!-- table: {name} -->" in text for name in TABLES)
