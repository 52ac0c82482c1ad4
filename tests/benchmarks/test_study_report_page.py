"""The report of a study as files, and as it looks in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest

from benchmarks import facts as recorded_facts
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.study.report import write
from benchmarks.study.report.__main__ import main
from benchmarks.study.report.page import SIGNS
from benchmarks.study.report.texts import LIMITS_TITLE
from tests.benchmarks.files import read
from tests.benchmarks.made_up_study import SEEDS, made_up_trials, trial, write_made_up_study

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
# A window is at least 500 pixels wide, a frame may be a phone. What is found there is left where
# --dump-dom shows it.
FRAME = """<body><iframe src="probed.html" style="border: 0; width: {width}px; height: 900px">
</iframe><script>addEventListener("message", (event) => {{
  document.body.dataset.found = encodeURIComponent(event.data);
}});</script>"""
# Runs in the page after it has loaded.
PROBE = """<script>
const errors = [];
window.addEventListener("error", (event) => errors.push(event.message));
window.addEventListener("load", () => {
  const widest = document.documentElement.scrollWidth;
  const hidden = (switched) => {
    document.querySelector("#show-adam").checked = !switched;
    return getComputedStyle(document.querySelector("figure .of-adam")).display;
  };
  const cells = (column) => [...document.querySelectorAll("#trials tbody tr")]
    .filter((row) => !row.hidden).map((row) => row.cells[column].textContent);
  document.querySelectorAll("#trials th")[8].click();
  const losses = cells(8);
  const filter = document.querySelector("#filter");
  filter.value = "relu adam final";
  filter.dispatchEvent(new Event("input"));
  const found = {
    errors, widest, width: innerWidth, losses, filtered: cells(1),
    display: [hidden(false), hidden(true)],
    figures: [...document.querySelectorAll("figure svg")].map((svg) => {
      const box = svg.getBoundingClientRect();
      return [box.width, box.height, svg.querySelectorAll("[class^=of-] :is(path, text)").length];
    }),
    text: Math.min(...[...document.querySelectorAll("figure svg text")].map(
      (text) => text.getBoundingClientRect().height).filter((height) => height > 0)),
    ranking: [...document.querySelector("main table").rows[1].cells].slice(0, 3).map(
      (cell) => cell.getBoundingClientRect().right),
    outside: performance.getEntriesByType("resource").map((entry) => entry.name),
  };
  parent.postMessage(JSON.stringify(found), "*");
});
</script>"""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write_made_up_study(folder)
    write(folder)
    return folder


def in_browser(out: Path, tmp_path: Path, width: int) -> dict[str, Any]:
    assert CHROMIUM is not None
    text = (out / "report.html").read_text(encoding="utf-8")
    probed = text.replace("<head>", f"<head>{PROBE}", 1)
    (tmp_path / "probed.html").write_text(probed, encoding="utf-8")
    page = tmp_path / "frame.html"
    page.write_text(FRAME.format(width=width), encoding="utf-8")
    shown = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}",
         "--window-size=1400,900", "--virtual-time-budget=10000", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip
    (found,) = re.findall(r'data-found="([^"]*)"', shown)
    return dict(json.loads(unquote(found)))


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to show the page")
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_works_in_a_browser(out: Path, tmp_path: Path, width: int) -> None:
    found = in_browser(out, tmp_path, width)
    assert found["errors"] == found["outside"] == []
    assert found["width"] == width
    assert found["widest"] <= width  # wide tables scroll in their own boxes
    assert max(found["ranking"]) <= width  # optimizer, accuracy and difference are in view
    assert len(found["figures"]) == 16
    for figure_width, height, drawn in found["figures"]:
        assert min(width - 40, 340) <= figure_width <= width
        assert height > 100
        assert drawn > 0
    assert found["text"] > 8  # pixels
    assert found["display"] == ["inline", "none"]
    assert found["losses"][-1] == "∞"
    finite = [float(loss) for loss in found["losses"] if loss != "∞"]
    assert finite == sorted(finite)
    assert sorted(found["filtered"]) == ["Adam"] * len(SEEDS) + ["AdamW"] * len(SEEDS)


def test_the_page_needs_nothing_else(out: Path) -> None:
    text = (out / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?!#|data:,)[^"]*"|url\((?!#)|@import', text)


def test_ids_on_the_page_are_unique(out: Path) -> None:
    text = (out / "report.html").read_text(encoding="utf-8")
    names = re.findall(r'\sid="([^"]+)"', text)
    assert len(names) == len(set(names))


def test_both_reports_say_on_what_with_what_and_by_which_command(out: Path) -> None:
    for name in ("report.html", "report.md"):
        text = (out / name).read_text(encoding="utf-8")
        for words in (
            "synthetic digits (not MNIST)", "An Imaginary Processor", "torch 2.15.0",
            "python -m benchmarks.study --budget quick --epochs 7", LIMITS_TITLE,
            "Anything about MNIST.",
        ):  # fmt: skip
            assert words in text, (name, words)


def test_the_figures_of_the_paper_are_there(out: Path) -> None:
    links = re.findall(r"!\[.+\]\((.+)\)", (out / "report.md").read_text(encoding="utf-8"))
    assert len(links) == 16
    for link in links:
        assert ElementTree.parse(out / link).getroot().tag.endswith("svg")


def test_every_trial_is_in_the_table(out: Path) -> None:
    rows = re.findall(r"^\| (?:relu|sigmoid) \|.*$", (out / "report.md").read_text("utf-8"), re.M)
    assert len(rows) == len(made_up_trials())


def test_a_report_made_again_is_the_same(out: Path) -> None:
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    write(out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_the_summary_is_json_without_curves(out: Path) -> None:
    summary = read(out / "summary.json")
    entry = summary["comparisons"][1]["ranking"][3]
    assert entry["targets"]["0.97"]["step"]["median"] is None  # infinite, which JSON cannot say
    assert "curves" not in entry


def test_the_table_of_the_site_is_made_of_the_summary(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(out, tmp_path / "study", ignore=shutil.ignore_patterns("trials"))
    monkeypatch.setattr(recorded_facts, "RESULTS", tmp_path)
    table = recorded_facts.study_table()
    assert "synthetic digits" in table
    assert "| relu | 2. AdamW | 98.00 (97.96\u00a0…\u00a098.04) | 0.00 (" in table
    (sgd,) = [line for line in table.splitlines() if line.startswith("| relu | 4. SGD")]
    assert sgd.endswith("| 97.00 | 0 of 10 | ∞ | 1 of 6 | 1 of 6 | lr\u00a00.1 |")
    assert "* Deep ReLU net 784-16×2-10: learning rate tuned, 2 epochs. Adam has the best" in table
    assert "50,000 images for training" in table


@pytest.mark.parametrize(
    "trials",
    [
        [],
        [trial("relu", "sgd", "search", 0.1, 0, None)],
        [trial("relu", "sgd", "final", 0.1, 42, None)],
        [trial("relu", "sgd", "final", 0.1, 42, 1.0)],
        [trial("relu", "sgd", "search", 0.1, 0, 0.9, search_space="all")],
    ],
    ids=["none", "one that diverged", "a final that diverged", "no error", "space all"],
)
def test_any_number_of_trials_makes_a_report(trials: list[Any], tmp_path: Path) -> None:
    write_made_up_study(tmp_path, trials)
    assert main([str(tmp_path)]) == 0
    assert (tmp_path / "report.html").exists()


def test_finals_without_gradients_make_a_report(tmp_path: Path) -> None:
    one = trial("relu", "sgd", "final", 0.1, 42, 0.9)
    one["result"]["gradient_norms"] = {}
    write_made_up_study(tmp_path, [one])
    write(tmp_path)
    assert "Gradient flow" not in (tmp_path / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("content", ["{", "[]", '{"protocol": 2}', '{"protocol": 1}'])
def test_a_file_that_is_no_trial_of_the_study_is_named(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_made_up_study(tmp_path, [])
    (tmp_path / "trials").mkdir()
    (tmp_path / "trials" / "broken.json").write_text(content)
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert "broken.json" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_a_folder_without_a_study_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert "holds no study" in capsys.readouterr().err


def test_every_marker_has_a_sign_on_the_page() -> None:
    assert {entry.marker for entry in OPTIMIZERS.values()} <= SIGNS.keys()
