"""The site: built without a warning, links lead somewhere, examples run, figures are right."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import FunctionType
from typing import Any
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

import torch_scratch_optim
from torch_scratch_optim import equivalence

from .examples import ROOT, examples

for package in ("tensorboard", "matplotlib", "rich", "scipy", "jinja2"):
    pytest.importorskip(package, reason=f"the figures of the site need {package}: '.[docs]'")
facts: Any = importlib.import_module("benchmarks.facts")

DOCS, PACKAGE = ROOT / "docs", torch_scratch_optim.__name__
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if "_build" not in page.parts]
PUBLIC = {name: getattr(torch_scratch_optim, name) for name in torch_scratch_optim.__all__} | {
    name: value
    for name, value in vars(equivalence).items()
    if getattr(value, "__module__", None) == equivalence.__name__ and not name.startswith("_")
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("sphinx", "furo", "myst_parser", "latex2mathml"):
        pytest.importorskip(package, reason=f"the site is built with {package}: '.[docs]'")
    out = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "sphinx", "-W", "-n", "-q", "--keep-going", str(DOCS), str(out)]
    done = subprocess.run(build, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return out


class Page(HTMLParser):
    """What a page links to, what it loads by itself, and the places in it that links may name."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.places: set[str] = set()
        self.equations = 0
        self.images: list[tuple[str, str | None]] = []  # each with the link around it
        self._link: str | None = None
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value is not None}
        self.equations += tag == "math"
        self.places.update(given[name] for name in ("id", "name") if name in given)
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
            self._link = given["href"]
        elif tag == "img":
            self.images.append((given["src"], self._link))
        elif tag == "link" and given.get("rel") not in ("canonical", "index", "search"):
            self.loads += [given[name] for name in ("href",) if name in given]
        if tag != "a" and "src" in given:
            self.loads.append(given["src"])

    def handle_endtag(self, tag: str) -> None:
        if tag == "a":
            self._link = None


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {file: Page(file) for file in site.rglob("*.html")}


@pytest.mark.slow
def test_every_page_is_there(pages: dict[Path, Page], site: Path) -> None:
    made = {file.relative_to(site).with_suffix("") for file in pages}
    assert made >= {page.relative_to(DOCS).with_suffix("") for page in PAGES}


@pytest.mark.slow
def test_links_within_the_site_lead_somewhere(pages: dict[Path, Page]) -> None:
    lost = []
    for file, page in pages.items():
        for link in page.links:
            where, place = urldefrag(link)
            if urlsplit(where).scheme:
                continue
            target = (file.parent / unquote(where)).resolve() if where else file
            inside = pages[target].places if target in pages else set()
            if not target.is_file() or (place and unquote(place) not in inside):
                lost.append(f"{file.name}: {link}")
    assert not lost
    assert sum(len(page.links) for page in pages.values()) > 100


@pytest.mark.slow
def test_the_site_needs_no_network(pages: dict[Path, Page]) -> None:
    for file, page in pages.items():
        for load in page.loads:
            url = urlsplit(load)
            assert not url.netloc, f"{file.name} loads {load}"
            assert url.scheme == "data" or (file.parent / unquote(url.path)).is_file(), load


@pytest.mark.slow
def test_every_image_opens_in_full_size(pages: dict[Path, Page]) -> None:
    images = [image for page in pages.values() for image in page.images if "_images/" in image[0]]
    assert len(images) > 20
    assert all(source == link for source, link in images)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sgd", "adagrad", "rmsprop", "adam"])
def test_a_page_of_an_optimizer_has_equations_once_and_before_the_code(
    name: str, pages: dict[Path, Page], site: Path
) -> None:
    file = site / "optimizers" / f"{name}.html"
    text = file.read_text(encoding="utf-8")
    assert text.index("<math") < text.index(f'<span class="nf">{name}</span>')
    assert pages[file].equations == (2 if name == "adam" else 1)  # AdamW stands on Adam's page
    assert r"\theta" not in text  # MathML, which a browser draws by itself


def test_the_sidebar_links_to_the_repository_once_its_address_is_set() -> None:
    import jinja2

    template = jinja2.Template((DOCS / "templates/sidebar/repository.html").read_text())
    address = "https://example.org/owner/name"
    assert f'href="{address}"' in template.render(repository=address)
    assert template.render(repository="").strip() == ""


@pytest.mark.slow
def test_the_reference_has_every_public_name(pages: dict[Path, Page]) -> None:
    places = set().union(*(page.places for page in pages.values()))
    for name, value in PUBLIC.items():
        home = equivalence if vars(equivalence).get(name) is value else torch_scratch_optim
        assert f"{home.__name__}.{name}" in places


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_says_what_it_is_and_takes(name: str) -> None:
    value = PUBLIC[name]
    assert value.__doc__
    family = [c for c in getattr(value, "__mro__", [value]) if c.__module__.startswith(PACKAGE)]
    documented = "".join(inspect.getdoc(member) or "" for member in family)
    for argument in inspect.signature(value).parameters:
        assert f"\n    {argument}: " in documented, argument
    for method, of in vars(value).items():
        if not method.startswith("_") and isinstance(of, (FunctionType, property)):
            # What a subclass overrides is described in the base.
            assert inspect.getdoc(getattr(value, method)), method


def in_docs(page: Path) -> str:
    return page.relative_to(DOCS).with_suffix("").as_posix()


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if examples(p)], ids=in_docs)
def test_examples_run_and_print_what_the_page_shows(
    page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scope: dict[str, Any] = {}
    for code, shown in examples(page):
        if not scope or page.stem == "recipes":  # each of which runs by itself
            scope = {"__name__": "example"}
        exec(compile(code, str(page), "exec"), scope)
        assert capsys.readouterr().out == shown


def test_your_own_optimizer_takes_about_fifteen_lines() -> None:
    (code, _), *_ = examples(DOCS / "own.md")
    body = code[code.index("class") :]
    assert len([line for line in body.splitlines() if line.strip()]) <= 15


ADAPTIVE = ("adagrad", "rmsprop", "adam")


def test_on_the_sigmoid_net_only_the_adaptive_methods_train() -> None:
    runs = facts.read_json(facts.RESULTS / "mnist" / "summary.json")["runs"]
    accuracy = {r["optimizer"]: r["test_accuracy"] for r in runs if r["net"] == "sigmoid"}
    assert all(accuracy[name] > 0.7 for name in ADAPTIVE)
    assert all(accuracy[name] < 0.15 for name in ("sgd", "momentum"))


@pytest.mark.parametrize("name", facts.OPTIMIZERS)
def test_the_cost_of_a_step_is_what_the_stopwatch_counts(name: str) -> None:
    recorded = facts.read_json(facts.RESULTS / "step_time" / "step_time.json")["cells"]
    counted = {c["bytes_per_parameter"] for c in recorded if c["optimizer"] == name
               and c["status"] == "measured"}  # fmt: skip
    _, by_default = next(facts.variants(name))
    assert counted == {facts.bytes_per_parameter(by_default)}
