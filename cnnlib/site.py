"""Builds the website: executed copies of the lectures in `_build/src`, made into `_build/html` by Jupyter Book."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import yaml

from cnnlib import notebooks
from cnnlib.notebooks import Run, home, repository_url

RUNS, LECTURES = "<!-- runs -->", "<!-- lectures -->"
FRONT = ("alexnet", "zfnet", "vgg_d", "googlenet", "inception_v3", "resnet152", "densenet121")
BUILDERS = ("jupyter-book", "sphinx", "myst-nb", "sphinx-book-theme", "pydata-sphinx-theme", "sphinx-design")


class BuildError(ValueError):
    """The site was not built; the message says why in one sentence."""


def build(*, force: bool = False, jobs: int | None = None, say: Callable[[str], None] = print) -> Path:
    """Execute what changed, build the site strictly and return its first page.

    BuildError where a lecture fails or Sphinx warns; then no page of an earlier build is left that could pass for new.
    """
    root = home()
    paths = notebooks.lectures()
    say(f"Executing {_many(len(paths), 'lecture')} (profile page: files of the repository, one thread, no network)")
    runs = notebooks.run(paths, "page", root / "_build" / "src" / "book", force=force, jobs=jobs, say=_indented(say))
    html, manifest = root / "_build" / "html", root / "_build" / "site.json"
    failed = [run.lecture for run in runs if not run.ok]
    if failed:
        _forget(html, manifest)
        raise BuildError(f"the site was not built, since {', '.join(failed)} failed; the traceback stands above")
    lay_out(runs)
    wanted = sources_digest()
    first = html / "index.html"
    if not force and first.is_file() and built_digest() == wanted:
        say("The site is up to date.")
    else:
        _forget(html, manifest)
        begun = time.monotonic()
        say("Building the site (warnings are errors)")
        _sphinx(root, _indented(say))
        manifest.write_text(json.dumps({"sources": wanted}) + "\n", encoding="utf-8")
        say(f"  built in {time.monotonic() - begun:.1f} s")
    say(f"Read it: {first.relative_to(root)}")
    return first


def lay_out(runs: Sequence[Run]) -> Path:
    """Bring `_build/src` up to date with what stands beside the executed lectures, and remove what the book dropped."""
    root = home()
    source = root / "_build" / "src"
    book = source / "book"
    book.mkdir(parents=True, exist_ok=True)
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    config.setdefault("repository", {})["url"] = repository_url()
    _put(source / "_config.yml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    _put(source / "_toc.yml", (root / "_toc.yml").read_text(encoding="utf-8"))
    kept = {book / f"{run.lecture}.ipynb" for run in runs}
    for path in sorted((root / "book").rglob("*")):
        if path.is_dir() or path.suffix in (".ipynb", ".py", ".pyc") or ".ipynb_checkpoints" in path.parts:
            continue
        target = book / path.relative_to(root / "book")
        kept.add(target)
        if path.suffix == ".md":
            _put(target, filled(path, runs))
        else:
            _put(target, path.read_bytes())
    mathjax = resources.files("mathjax") / "static" / "mathjax" / "es5" / "tex-svg-full.js"
    kept.add(book / "_static" / "mathjax" / "tex-svg-full.js")
    _put(book / "_static" / "mathjax" / "tex-svg-full.js", mathjax.read_bytes())
    front = book / "_static" / "front.svg"
    kept.add(front)
    _draw_once(front, root / "_build" / "front.sha256")
    for path in sorted(book.rglob("*")):
        if path.is_file() and path not in kept:
            path.unlink()
    return source


def filled(path: Path, runs: Sequence[Run]) -> str:
    """The text of a Markdown page with what is known only after execution: the runs, the lectures that there are."""
    text = path.read_text(encoding="utf-8")
    for mark, table in ((RUNS, run_table), (LECTURES, lecture_cards)):
        if mark in text:
            text = text.replace(mark, table(runs))
    return text


def lecture_cards(runs: Sequence[Run]) -> str:
    """A card for each lecture that exists: its title, and the question that it starts from, linked to its page.

    The question is the first paragraph under the title, or `cnnlib.question` of the notebook's metadata.
    """
    lines = ["::::{grid} 1 1 2 2", ":gutter: 3", ""]
    for run in runs:
        notebook = notebooks.read(home() / "book" / f"{run.lecture}.ipynb")
        lines += [
            f":::{{grid-item-card}} {title(notebook)}",
            f":link: {run.lecture}",
            ":link-type: doc",
            ":class-card: lecture",
        ]
        lines += ["", question(notebook), ":::", ""]
    return "\n".join([*lines, "::::", ""]) if runs else ""


def title(notebook: Any) -> str:
    """The first heading of a notebook."""
    lines = [line for cell in notebook.cells if cell.cell_type == "markdown" for line in cell.source.splitlines()]
    return next((line.removeprefix("# ").strip() for line in lines if line.startswith("# ")), "(without a title)")


def question(notebook: Any) -> str:
    """What the lecture starts from, in one paragraph of Markdown."""
    text = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    paragraphs = [
        part.strip() for part in text.split("\n\n") if part.strip() and not part.lstrip().startswith(("#", "("))
    ]
    return notebook.metadata.get("cnnlib", {}).get("question") or next(iter(paragraphs), "").replace("\n", " ")


def draw_front(path: Path) -> None:
    """The figure of the first page: the challenge's winning errors, and the size of the networks of those years."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    from cnnlib.models.zoo import card, list_models, papers
    from cnnlib.plots.style import INK, PALETTE, STYLE

    winners = papers()["ilsvrc_winners"]
    rows = [dict(zip(winners["columns"], row)) for row in winners["rows"]]
    cards = [card(name) for name in FRONT if name in list_models()]
    sized = []
    for c in cards:
        params = c.published.get("params_without_heads") or c.published.get("params")
        if params:
            sized.append((c.title, c.year, params["value"] / 1e6))
    with plt.rc_context({**STYLE, "svg.fonttype": "path", "font.size": 12}):
        figure, (above, below) = plt.subplots(2, 1, figsize=(8, 7), sharex=True, height_ratios=(1, 1.2))
        convolutional = [PALETTE["blue"] if row["year"] >= 2012 else INK for row in rows]
        bars = above.bar([r["year"] for r in rows], [r["error"] for r in rows], color=convolutional, width=0.62)
        labels = []
        for row in rows:
            known = [f"{row['error']:g}", row["layers"] and f"{row['layers']} layers"]
            labels.append("\n".join(filter(None, [*known, row["year"] in winners["recalled"] and "(recalled)"])))
        above.bar_label(bars, labels, color=INK, fontsize=10.5, padding=2)
        above.set(ylabel="top-5 error (%)", ylim=(0, 38), title="Winners; from 2012 on, convolutional networks (blue)")
        above.grid(axis="x", visible=False)
        for title, year, millions in sized:
            below.plot(year, millions, "o", color=PALETTE["orange"], markersize=9)
            below.annotate(title, (year, millions), (0, 8), textcoords="offset points", ha="center")
        below.set(yscale="log", ylabel="parameters (millions)", ylim=(4, 320), xlim=(2009.4, 2017.8))
        below.set_yticks([5, 10, 20, 50, 100, 200], ["5", "10", "20", "50", "100", "200"])
        below.minorticks_off()
        figure.savefig(path, format="svg", metadata={"Date": None})
        plt.close(figure)


def _draw_once(path: Path, stamp: Path) -> None:
    """Draw the front figure again only where cnnlib or its data changed since."""
    wanted = notebooks.library_digest()
    if not path.is_file() or not stamp.is_file() or stamp.read_text() != wanted:
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_front(path)
        stamp.write_text(wanted)


def run_table(runs: Sequence[Run]) -> str:
    """The status page's table in Markdown, from what the executed copies say of their own runs."""
    if not runs:
        return "No lecture has been executed yet.\n"
    lines = ["| lecture | executed (UTC) | took | code cells |", "| --- | --- | ---: | ---: |"]
    for run in runs:
        when = datetime.fromisoformat(run.started).strftime("%Y-%m-%d %H:%M")
        lines.append(f"| [](/book/{run.lecture}) | {when} | {run.seconds:.1f} s | {run.cells} |")
    lines += ["", f"Together {sum(run.seconds for run in runs):.0f} s.", ""]
    for where in dict.fromkeys((run.machine, tuple(run.versions.items())) for run in runs):
        whose = [run.lecture for run in runs if (run.machine, tuple(run.versions.items())) == where]
        with_versions = ", ".join(f"{name} {version}" for name, version in where[1])
        who = "All lectures" if len(whose) == len(runs) else ", ".join(whose)
        lines += [f"{who}: {where[0]}; {with_versions}.", ""]
    return "\n".join(lines)


def sources_digest() -> str:
    """sha256 over every file of `_build/src` and the versions of what makes HTML of them."""
    source = home() / "_build" / "src"
    seen = hashlib.sha256()
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        seen.update(f"{path.relative_to(source)}\0".encode())
        seen.update(hashlib.sha256(path.read_bytes()).digest())
    seen.update(repr([(name, metadata.version(name)) for name in BUILDERS]).encode())
    return seen.hexdigest()


def built_digest() -> str | None:
    """What `sources_digest` said when the present site was built, or None where there is none."""
    manifest = home() / "_build" / "site.json"
    try:
        return json.loads(manifest.read_text(encoding="utf-8"))["sources"]
    except (OSError, KeyError, json.JSONDecodeError):
        return None


def stale() -> list[str]:
    """Why the site in `_build/html` does not show what the present sources compute, one sentence each; [] if it does."""
    root = home()
    found = []
    library = notebooks.library_digest()
    runs = []
    for path in notebooks.lectures():
        run = notebooks.recorded(root / "_build" / "src" / "book" / path.name)
        if run is None:
            found.append(f"{path.stem} was not executed")
        elif run.digest != notebooks.digest(notebooks.read(path), "page", library):
            found.append(f"{path.stem} was executed before its cells, cnnlib, data/ or the versions changed")
        else:
            runs.append(run)
    for path in sorted((root / "book").rglob("*.md")):
        copy = root / "_build" / "src" / "book" / path.relative_to(root / "book")
        if not found and (not copy.is_file() or copy.read_text(encoding="utf-8") != filled(path, runs)):
            found.append(f"{path.name} changed after the site was built")
    if built_digest() != sources_digest():
        found.append("_build/html was not built from the present _build/src")
    return found


def _sphinx(root: Path, say: Callable[[str], None]) -> None:
    """Jupyter Book in a process of its own: progress to `say`, everything to _build/site.log, warnings as they come."""
    shutil.rmtree(root / "_build" / ".doctrees", ignore_errors=True)
    command = [
        sys.executable,
        "-c",
        "from jupyter_book.cli.main import main; main()",
        "build",
        "_build/src",
        "--path-output",
        ".",
    ]
    command += ["-n", "-W", "--keep-going", "--all"]
    log = root / "_build" / "site.log"
    complaints, before = [], ""
    with (
        open(log, "w", encoding="utf-8") as file,
        subprocess.Popen(
            command,
            cwd=root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        for line in process.stdout:
            line = re.sub(r"\x1b\[[0-9;]*m", "", line)
            file.write(line)
            after_error, before = before.startswith("Sphinx error"), line
            if after_error or any(word in line for word in ("WARNING:", "ERROR:", "CRITICAL:")):
                complaints.append(line.strip())
                say(line.strip())
            elif "[100%]" in line:
                say(line.split("...", 1)[0].strip() + " ... done")
    if process.returncode or complaints or not (root / "_build" / "html" / "index.html").is_file():
        _forget(root / "_build" / "html", root / "_build" / "site.json")
        why = f"Sphinx has {_many(len(complaints), 'complaint')}" if complaints else "Sphinx stopped"
        raise BuildError(f"the site was not built: {why}; everything it said is in {log.relative_to(root)}")


def _forget(html: Path, manifest: Path) -> None:
    manifest.unlink(missing_ok=True)
    shutil.rmtree(html, ignore_errors=True)


def _put(target: Path, content: str | bytes) -> None:
    """Write only what differs, so that times of change mean something."""
    content = content.encode() if isinstance(content, str) else content
    if not target.is_file() or target.read_bytes() != content:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _indented(say: Callable[[str], None]) -> Callable[[str], None]:
    return lambda text: say("\n".join(f"  {line}" for line in text.splitlines()))


def serve(port: int = 8000, say: Callable[[str], None] = print) -> None:
    """Show the built site at http://127.0.0.1:port until interrupted; ValueError where it is not built or the port is taken."""
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    html = home() / "_build" / "html"
    if not (html / "index.html").is_file():
        raise BuildError("there is no site in _build/html yet; run `make book` first")
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), partial(Quiet, directory=html))
    except OSError as error:
        raise BuildError(
            f"port {port} cannot be used ({error.strerror}); take another: make serve PORT={port + 1}"
        ) from None
    with server:
        say(f"The book is at http://127.0.0.1:{server.server_port}/ (stop with Ctrl-C)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("")
