"""Pictures of the built pages, to look at: `python tools/screenshot.py [page ...]` writes PNG files to _build/shots.

A page is named as in the table of contents (`lenet`); all pages, where none is named. Each is taken on a desktop and a
phone screen, light and dark, from top to bottom.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from conftest import CHROMIUM  # noqa: E402

SCREENS = {"desktop": (1440, 900), "phone": (375, 740)}
TALLEST = 16_000  # pixels; Chromium takes no larger picture
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def main(names: list[str]) -> int:
    from playwright.sync_api import sync_playwright

    html = ROOT / "_build" / "html"
    pages = [html / "book" / f"{name}.html" for name in names] or sorted(html.glob("book/*.html"))
    missing = [page.name for page in pages if not page.is_file()]
    if missing or CHROMIUM is None:
        print(f"no {', '.join(missing)} in _build/html/book" if missing else "no Chromium found", file=sys.stderr)
        return 2
    out = ROOT / "_build" / "shots"
    out.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for screen, (width, height) in SCREENS.items():
            for scheme in ("light", "dark"):
                context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
                context.add_init_script(
                    f"localStorage.setItem('mode', '{scheme}'); localStorage.setItem('theme', '{scheme}')"
                )
                for page in pages:
                    view = context.new_page()
                    view.goto(page.as_uri())
                    view.wait_for_timeout(600)
                    target = out / f"{page.stem}-{screen}-{scheme}.png"
                    whole = min(view.evaluate("document.documentElement.scrollHeight"), TALLEST)
                    clip = {"x": 0, "y": 0, "width": width, "height": whole}
                    view.screenshot(path=target, full_page=True, clip=clip)
                    print(target.relative_to(ROOT))
                    view.close()
                context.close()
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
