"""Laws of the pages in a real browser: no complaints, no requests that leave the machine, nothing cut off, controls that work."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cnnlib.notebooks import toc_pages

pytestmark = [pytest.mark.site, pytest.mark.browser]

ROOT = Path(__file__).resolve().parent.parent
HTML = ROOT / "_build" / "html"
PAGES = toc_pages()
every_page = pytest.mark.parametrize("page", PAGES, ids=[Path(page).name for page in PAGES])
SCREENS = ("desktop", "phone")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
@every_page
def test_a_page_reads_without_complaint_request_or_sideways_scrolling(page, screen, scheme, reader):
    read = reader(screen=screen, scheme=scheme)
    opened = read.open(page)
    opened.wait_for_timeout(150)
    assert read.wrong == []
    assert opened.evaluate("document.documentElement.dataset.theme") == scheme
    wide = opened.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, opened.evaluate(
        """() => [...document.querySelectorAll('.bd-content *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1)
           .slice(0, 5).map(e => e.tagName + '.' + e.className)"""
    )
    broken = opened.evaluate(
        "() => [...document.images].filter(i => i.complete && !i.naturalWidth && i.loading != 'lazy').map(i => i.src.slice(0, 90))"
    )
    assert broken == []
    assert opened.evaluate("() => [...document.images].filter(i => !i.alt.trim()).length") == 0


@every_page
def test_a_page_reads_from_the_file_itself(page, reader):
    read = reader(start=HTML.as_uri())
    read.open(page).wait_for_timeout(150)
    assert read.wrong == []


@every_page
def test_formulas_are_set(page, reader):
    opened = reader().open(page)
    formulas = opened.locator(".math").count()
    assert opened.locator("mjx-container svg").count() >= formulas
    assert opened.locator("mjx-merror, [data-mml-node='merror']").count() == 0
    for mark in ("$$", "\\(", "{cite", "{numref", "{doc", ":::"):
        assert mark not in opened.locator("article").inner_text(), mark


@every_page
def test_figures_are_left_as_drawn_on_a_dark_page(page, reader):
    opened = reader(scheme="dark").open(page)
    seen = opened.evaluate(
        """() => [...document.querySelectorAll('article img, article .cell_output svg')].map(e => {
             const s = getComputedStyle(e); return [s.filter, s.backgroundColor]})"""
    )
    assert [style for style in seen if style != ["none", "rgba(0, 0, 0, 0)"]] == []


@every_page
def test_words_can_be_read_on_light_and_dark(page, reader):
    """Contrast of at least 4.5:1 between text and the colour behind it (WCAG AA), over all paragraphs, cells and captions."""
    for scheme in ("light", "dark"):
        opened = reader(scheme=scheme).open(page)
        faint = opened.evaluate(CONTRAST)
        assert faint == [], scheme


CONTRAST = """() => {
  const parse = c => (c.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const light = c => { const [r, g, b] = c.slice(0, 3).map(v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b };
  const behind = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > .99) return c } return parse(getComputedStyle(document.documentElement).backgroundColor) };
  const found = [];
  for (const e of document.querySelectorAll('article p, article li, article td, article th, article dd, article dt, article h1, article h2, article h3, figcaption, .cnnlib-explorer label, .cnnlib-explorer output')) {
    if (!e.innerText.trim() || !e.offsetParent) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < 4.5) found.push(ratio.toFixed(1) + ' ' + e.tagName + ' ' + e.innerText.slice(0, 40));
  }
  return found.slice(0, 5) }"""


def test_the_search_finds_lenet(reader):
    read = reader()
    opened = read.page
    opened.goto(f"{read.start}/search.html?q=LeNet", wait_until="load")
    results = opened.locator("#search-results ul.search li a")
    results.first.wait_for()
    assert results.count() >= 1
    assert "LeNet" in opened.locator("#search-results").inner_text()
    assert read.wrong == []


def test_the_front_page_leads_to_every_other_page(reader):
    opened = reader().open("book/index")
    links = {link.split("#")[0] for link in opened.evaluate("() => [...document.links].map(l => l.href)")}
    for page in PAGES[1:]:
        assert any(link.endswith(f"/{page}.html") for link in links), page


def test_the_start_address_leads_to_the_front_page(reader):
    read = reader()
    read.page.goto(f"{read.start}/", wait_until="load")
    read.page.wait_for_url("**/book/index.html")
    assert read.wrong == []


def test_the_switch_turns_the_page_dark(reader):
    read = reader()
    opened = read.open("book/index")
    for _ in range(3):
        if opened.evaluate("document.documentElement.dataset.theme") == "dark":
            break
        opened.locator("button.theme-switch-button:visible").first.click()
    assert opened.evaluate("document.documentElement.dataset.theme") == "dark"
    assert read.wrong == []


# ----------------------------------------------------------------------------------------------------------- explorers

SHOWN = """figure => [figure.innerText, ...[...figure.querySelectorAll('img, svg, canvas')].map(
  e => e.tagName == 'CANVAS' ? e.toDataURL() : e.outerHTML)].join('\\n')"""


def explorers() -> list[tuple[str, str]]:
    """(page, name) of every explorer in the built site."""
    found = []
    for page in PAGES:
        path = HTML / f"{page}.html"
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        found += [(page, name) for name in re.findall(r'<figure class="cnnlib-explorer" data-explorer="([^"]+)"', text)]
    return found


def test_every_control_of_every_explorer_moves_by_keyboard_and_changes_what_is_shown(reader):
    for page, name in explorers():
        for screen in SCREENS:
            read = reader(screen=screen)
            figure = read.open(page).locator(f'[data-explorer="{name}"]')
            figure.scroll_into_view_if_needed()
            where = f"{page}: {name}"
            controls = figure.locator("input, select, button")
            assert controls.count() >= 1, where
            for number in range(controls.count()):
                control = controls.nth(number)
                assert control.evaluate(
                    "c => !!(c.labels && c.labels.length) || !!c.getAttribute('aria-label') || !!c.innerText"
                ), where
                before = figure.evaluate(SHOWN)
                control.focus()
                kind = control.evaluate("c => c.type || c.tagName")
                if kind in ("text", "search"):
                    read.page.keyboard.type("resnet")
                elif kind in ("checkbox", "button"):
                    read.page.keyboard.press("Space")
                else:
                    value = control.evaluate("c => Number(c.value)")
                    last = control.evaluate(
                        "c => c.type == 'range' ? Number(c.max) : c.options ? c.options.length - 1 : 1"
                    )
                    read.page.keyboard.press(
                        "ArrowDown"
                        if kind.startswith("select") and value < last
                        else "ArrowUp"
                        if kind.startswith("select")
                        else "ArrowRight"
                        if value < last
                        else "ArrowLeft"
                    )
                read.page.wait_for_timeout(60)
                assert figure.evaluate(SHOWN) != before, f"{where}: control {number} on a {screen} changes nothing"
            for picture in figure.locator("img, svg").all():
                described = picture.evaluate(
                    "e => (e.alt || e.getAttribute('aria-label') || (e.closest('[aria-hidden=true]') && 'hidden') || '').trim()"
                )
                assert described, where
            assert read.wrong == [], where
