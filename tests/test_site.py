"""Laws of the site: built from what was executed just now, whole, and readable with no connection."""

from __future__ import annotations

import json
import re
import socket
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from cnnlib import notebooks, site
from cnnlib.notebooks import Run

ROOT = Path(__file__).resolve().parent.parent
HTML = ROOT / "_build" / "html"
PAGES = notebooks.toc_pages()
every_page = pytest.mark.parametrize("page", PAGES, ids=[Path(page).name for page in PAGES])


class Elements(HTMLParser):
    """All elements of a page as (tag, attributes)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.all: list[tuple[str, dict[str, str]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.all.append((tag, {key: value or "" for key, value in attrs}))


def elements(page: str) -> list[tuple[str, dict[str, str]]]:
    return Elements((HTML / f"{page}.html").read_text(encoding="utf-8")).all


# ---------------------------------------------------------------------------------------------------- the built site


@pytest.mark.site
def test_the_site_shows_what_the_present_code_computes():
    assert site.stale() == [], "run `make book`"


@pytest.mark.site
@every_page
def test_every_page_was_built_and_every_lecture_executed(page):
    assert (HTML / f"{page}.html").is_file()
    if (ROOT / f"{page}.ipynb").is_file():
        run = notebooks.recorded(ROOT / "_build" / "src" / f"{page}.ipynb")
        assert run is not None
        assert run.ok
        assert run.profile == "page"


@pytest.mark.site
@every_page
def test_nothing_is_loaded_from_elsewhere(page):
    loads = {
        "script": "src",
        "img": "src",
        "iframe": "src",
        "source": "src",
        "video": "src",
        "image": "href",
        "use": "href",
    }
    fetched = []
    for tag, attributes in elements(page):
        if tag in loads:
            fetched.append(attributes.get(loads[tag], ""))
        if tag == "link" and not {"next", "prev", "search", "index", "canonical"} & set(
            attributes.get("rel", "").split()
        ):
            fetched.append(attributes.get("href", ""))
    assert [address for address in fetched if re.match(r"(https?:)?//", address)] == []
    assert len(fetched) > 5


@pytest.mark.site
def test_style_sheets_load_nothing_from_elsewhere():
    sheets = list(HTML.rglob("*.css"))
    assert len(sheets) > 5
    for sheet in sheets:
        found = re.findall(
            r"""(?:@import\s+|url\()\s*["']?((?:https?:)?//[^"')\s]+)""", sheet.read_text(encoding="utf-8")
        )
        assert found == [], sheet.name


@pytest.mark.site
@every_page
def test_every_picture_has_words_for_those_who_do_not_see_it(page):
    pictures = [attributes for tag, attributes in elements(page) if tag == "img"]
    for picture in pictures:
        assert picture.get("alt", "").strip(), picture.get("src", "")[:80]
        if "_images" in picture.get("src", ""):
            assert len(picture["alt"]) > 15, picture["alt"]
            assert not picture["alt"].startswith("../"), "the path in place of a description"


@pytest.mark.site
@every_page
def test_every_link_inside_the_book_leads_to_something(page):
    here = HTML / f"{page}.html"
    for tag, attributes in elements(page):
        target = attributes.get("href", "")
        if tag != "a" or not target or re.match(r"[a-z]+:|//", target):
            continue
        path, _, fragment = target.partition("#")
        other = (here.parent / path).resolve() if path else here
        assert other.exists(), target
        if fragment and other.suffix == ".html":
            ids = {a.get("id") or a.get("name") for _, a in Elements(other.read_text(encoding="utf-8")).all}
            assert fragment in ids, target


@pytest.mark.site
@every_page
def test_a_lecture_has_a_button_that_opens_it_on_colab(page):
    links = [attributes.get("href", "") for tag, attributes in elements(page) if tag == "a"]
    address = notebooks.repository_url()
    on_colab = [link for link in links if link.startswith("https://colab.research.google.com/")]
    if (ROOT / f"{page}.ipynb").is_file():
        assert on_colab == [
            f"https://colab.research.google.com/github/{address.removeprefix('https://github.com/')}/blob/main/{page}.ipynb"
        ]
    assert any(link.startswith(address) for link in links)


@pytest.mark.site
def test_the_set_up_cell_is_not_on_the_page():
    for page in PAGES:
        assert "google.colab" not in (HTML / f"{page}.html").read_text(encoding="utf-8")


@pytest.mark.site
def test_the_status_page_names_every_lecture_with_its_time():
    text = (HTML / "book" / "status.html").read_text(encoding="utf-8")
    for path in notebooks.lectures():
        run = notebooks.recorded(ROOT / "_build" / "src" / "book" / path.name)
        assert f"{run.seconds:.1f} s" in text
        assert f'href="{path.stem}.html"' in text
    assert site.RUNS not in text
    assert site.LECTURES not in (HTML / "book" / "index.html").read_text(encoding="utf-8")


@pytest.mark.site
def test_lectures_that_are_planned_are_not_there_yet():
    (planned,) = re.findall(r"Planned, in this order: (.*?)\.", (ROOT / "book/index.md").read_text().replace("\n", " "))
    titles = {site.title(notebooks.read(path)) for path in notebooks.lectures()}
    for name in planned.split("; "):
        assert name not in titles, f"{name} is a lecture now; take it off the list on the front page"


@pytest.mark.site
def test_every_network_of_the_front_figure_has_a_published_size():
    from cnnlib import card

    assert all("params" in card(name).published for name in site.FRONT)
    assert (HTML / "_images" / "front.svg").is_file()


# ------------------------------------------------------------------------------------------- never what older code said


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A small book of its own: one Markdown page and one lecture; execution and Sphinx only count their calls."""
    import cnnlib
    from cnnlib import paths

    for name in ("cnnlib", "data", "book/_static"):
        (tmp_path / name).mkdir(parents=True)
    for name, text in {
        "cnnlib/__init__.py": "",
        "pyproject.toml": '[project.urls]\nRepository = "https://github.com/some/book"\n',
        "constraints.txt": "",
        "_config.yml": "title: T\nexecute: {execute_notebooks: 'off'}\nrepository: {branch: main}\n",
        "_toc.yml": "format: jb-book\nroot: book/index\nparts: [{chapters: [{file: book/page}]}]\n",
        "book/index.md": f"# Index\n\n{site.LECTURES}\n\n{site.RUNS}\n",
        "book/_static/book.css": "",
    }.items():
        (tmp_path / name).write_text(text)
    cells = [{"cell_type": "markdown", "id": "a", "metadata": {}, "source": "# The title\n\nWhy\nso?"}]
    for key, tags, source in (("b", ["parameters"], "a = 1"), ("c", [], "a")):
        cell = {"cell_type": "code", "id": key, "metadata": {"tags": tags}, "source": source, "outputs": []}
        cells.append(cell | {"execution_count": None})
    lecture = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "book" / "page.ipynb").write_text(json.dumps(lecture))
    made = SimpleNamespace(root=tmp_path, built=0, executed=0, error=None, make=lambda: site.build(say=lambda _: None))

    def sphinx(root, say):
        made.built += 1
        (root / "_build" / "html").mkdir()
        (root / "_build" / "html" / "index.html").write_text("")

    def execute(notebook, profile, on_cell=None):
        made.executed += 1
        return notebook, made.error

    monkeypatch.setattr(cnnlib, "__file__", str(tmp_path / "cnnlib" / "__init__.py"))
    monkeypatch.setattr(paths, "_PACKAGE", tmp_path / "cnnlib")
    monkeypatch.setattr(site, "draw_front", lambda path: path.write_text("<svg/>"))
    made.sphinx = site._sphinx
    monkeypatch.setattr(site, "_sphinx", sphinx)
    monkeypatch.setattr(notebooks, "execute", execute)
    return made


def test_a_second_build_does_nothing(house):
    assert "the site was not built" not in str(house.make())
    assert site.stale() == []
    house.make()
    assert (house.executed, house.built) == (1, 1)


@pytest.mark.parametrize("name", ["cnnlib/part.py", "data/claims.yml", "constraints.txt"])
def test_a_page_of_older_code_data_or_versions_is_stale_and_is_executed_again(house, name):
    house.make()
    (house.root / name).write_text("changed = True")
    assert site.stale() == ["page was executed before its cells, cnnlib, data/ or the versions changed"]
    house.make()
    assert (house.executed, house.built) == (2, 2)
    assert site.stale() == []


def test_a_page_of_older_cells_is_stale_and_is_executed_again(house):
    house.make()
    path = house.root / "book" / "page.ipynb"
    path.write_text(path.read_text().replace('"a = 1"', '"a = 2"'))
    assert "page was executed before" in site.stale()[0]
    house.make()
    assert house.executed == 2


def test_a_page_that_was_never_executed_is_stale(house):
    house.make()
    (house.root / "_build" / "src" / "book" / "page.ipynb").unlink()
    assert site.stale()[0] == "page was not executed"


@pytest.mark.parametrize("name", ["book/index.md", "book/_static/book.css", "_config.yml"])
def test_a_changed_page_or_style_is_built_again_without_executing(house, name):
    house.make()
    with open(house.root / name, "a") as file:
        file.write("\nlogo: {}\n")
    if name.endswith(".md"):
        assert site.stale() == ["index.md changed after the site was built"]
    house.make()
    assert (house.executed, house.built) == (1, 2)
    assert site.stale() == []


def test_a_page_that_left_the_book_leaves_the_build(house):
    house.make()
    old = house.root / "_build" / "src" / "book" / "old.md"
    old.write_text("# Old")
    assert site.stale() == ["_build/html was not built from the present _build/src"]
    house.make()
    assert not old.exists()


def test_a_lecture_that_fails_stops_the_build_and_takes_the_old_site_away(house):
    house.make()
    (house.root / "cnnlib" / "part.py").write_text("broken = True")
    house.error = "cell In [2] of the lecture raised ValueError: no"
    with pytest.raises(site.BuildError, match="the site was not built, since page failed"):
        house.make()
    assert not (house.root / "_build" / "html").exists()
    assert site.stale()


def test_the_address_of_the_buttons_comes_from_pyproject(house):
    house.make()
    config = yaml.safe_load((house.root / "_build" / "src" / "_config.yml").read_text())
    assert config["repository"] == {"branch": "main", "url": "https://github.com/some/book"}


def test_the_front_page_has_a_card_for_each_lecture_with_its_question(house):
    house.make()
    text = (house.root / "_build" / "src" / "book" / "index.md").read_text()
    assert ":::{grid-item-card} The title\n:link: page\n" in text
    assert "\nWhy so?\n" in text


@pytest.mark.slow
def test_a_broken_link_fails_the_build_and_leaves_no_site(house, monkeypatch):
    (house.root / "book" / "index.md").write_text("# Index\n\n[nowhere](nowhere.md)\n")
    monkeypatch.setattr(site, "_sphinx", house.sphinx)
    with pytest.raises(site.BuildError, match=r"Sphinx has \d+ complaints?; everything it said is in _build/site\.log"):
        house.make()
    assert "nowhere.md" in (house.root / "_build" / "site.log").read_text()
    assert not (house.root / "_build" / "html").exists()
    assert site.built_digest() is None


def test_the_table_of_runs_gives_time_place_and_versions():
    made = {
        "profile": "page",
        "digest": "x",
        "cells": 3,
        "machine": "A processor, 2 cores, Linux",
        "versions": {"torch": "2"},
    }
    runs = [
        Run("lenet", started="2026-01-02T03:04:05+00:00", seconds=12.34, **made),
        Run("vgg", started="2026-01-02T03:05:05+00:00", seconds=2.0, **made),
    ]
    table = site.run_table(runs)
    assert "| [](/book/lenet) | 2026-01-02 03:04 | 12.3 s | 3 |" in table
    assert "Together 14 s." in table
    assert table.count("A processor, 2 cores, Linux; torch 2.") == 1
    assert datetime.fromisoformat(runs[0].started).year == 2026
    runs[1].versions = {"torch": "3"}
    assert "lenet: A processor, 2 cores, Linux; torch 2." in site.run_table(runs)
    assert "No lecture has been executed yet." in site.run_table([])


def test_the_front_figure_is_the_same_twice(tmp_path):
    site.draw_front(tmp_path / "a.svg")
    site.draw_front(tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert b"<dc:date>" not in (tmp_path / "a.svg").read_bytes()


def test_serving_a_site_that_is_not_there_says_so(house):
    with pytest.raises(site.BuildError, match="run `make book` first"):
        site.serve()


def test_a_taken_port_is_told_with_another(house):
    house.make()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(site.BuildError, match=f"port {port} cannot be used .*make serve PORT={port + 1}"):
            site.serve(port)
