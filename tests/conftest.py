"""What the browser tests share: Chromium, the built site behind a local server, and a reader that notes what goes wrong."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

HTML = Path(__file__).resolve().parent.parent / "_build" / "html"
SCREENS = {"desktop": (1280, 800), "phone": (375, 740)}
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Two complaints that the theme's own scripts make on every page; they change nothing.
HARMLESS = (r"Identifier 'THEBE_JS_URL' has already been declared", r"Got invalid theme mode: .*\. Resetting to auto\.")


@pytest.fixture(scope="session")
def browser(chromium):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture
def alone(browser, tmp_path):
    """Opens an explorer alone on a page, with the options of a browser's context; what the page complains of fails the test."""
    pages, wrong = [], []

    def show(explorer, **options):
        file = tmp_path / f"page{len(pages)}.html"
        head = '<!doctype html><html lang="en"><meta charset="utf-8"><title>one explorer</title>'
        file.write_text(f"{head}{explorer._repr_html_()}</html>", encoding="utf-8")
        page = browser.new_page(**options)
        pages.append(page)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
        page.goto(file.as_uri())
        return page

    yield show
    for page in pages:
        page.close()
    assert wrong == []


@pytest.fixture(scope="session")
def whole():
    """Asserts what holds for each explorer, and gives its page: the same twice, nothing from elsewhere, all named in words."""

    def check(make) -> str:
        page = make()._repr_html_()
        assert page == make()._repr_html_()
        assert "http" not in page
        assert not re.search(r"(?:src|href)=[\"'](?!data:)", page)
        for key in re.findall(r'<(?:input|select)[^>]* id="([^"]+)"', page):
            assert f'<label for="{key}">' in page
        assert all('alt="' in tag for tag in re.findall(r"<img[^>]*>", page))
        assert all('aria-label="' in tag for tag in re.findall(r"<svg[^>]*>", page))
        assert json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.S)[1])
        return page

    return check


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """The site behind a server on this machine, as `make serve` shows it."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=HTML)) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class Reader:
    """A page that is open in the browser, and all that went wrong while it was read."""

    def __init__(self, browser, start: str, *, screen: str = "desktop", scheme: str = "light") -> None:
        self.wrong: list[str] = []
        self.start = start
        width, height = SCREENS[screen]
        self.context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.context.add_init_script(
            f"localStorage.setItem('mode', '{scheme}'); localStorage.setItem('theme', '{scheme}')"
        )
        self.context.route("**/*", self._only_here)
        self.page = self.context.new_page()
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self._note(f"error: {error}"))
        self.page.on("requestfailed", lambda request: self.wrong.append(f"failed: {request.url}"))
        self.page.on("response", lambda r: self.wrong.append(f"{r.status}: {r.url}") if r.status >= 400 else None)

    def _only_here(self, route) -> None:
        url = route.request.url
        if url.startswith((self.start, "data:", "blob:")):
            route.continue_()
        else:
            self.wrong.append(f"asked for {url}")
            route.abort()

    def _heard(self, message) -> None:
        if message.type in ("error", "warning"):
            self._note(f"{message.type}: {message.text}")

    def _note(self, said: str) -> None:
        if not any(re.search(harmless, said) for harmless in HARMLESS):
            self.wrong.append(said)

    def open(self, page: str):
        self.page.goto(f"{self.start}/{page}.html", wait_until="load")
        if self.page.locator(".math").count():
            self.page.wait_for_function("window.MathJax && MathJax.startup && MathJax.startup.promise")
            self.page.evaluate("() => MathJax.startup.promise.then(() => null)")
        return self.page


@pytest.fixture
def reader(browser, address):
    opened: list[Reader] = []

    def read(**options) -> Reader:
        opened.append(Reader(browser, options.pop("start", address), **options))
        return opened[-1]

    yield read
    for one in opened:
        one.context.close()
