"""Executes the lectures: under a profile into a build folder, or in place for the committed copies.

A lecture has one cell tagged `parameters` that holds literals only; its values are the *page* profile. The notebook's
own metadata holds what the other profiles change: `cnnlib.profiles = {"smoke": {...}, "gpu": {...}}`.
An executed copy carries in its metadata what was run, when, where and with which versions, and a digest of all that
its outputs depend on, so that no page can show what older code computed.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import platform
import re
import signal
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from cnnlib.errors import unknown
from cnnlib.paths import checkout, data_dir

PROFILES = ("smoke", "page", "gpu")
CELL_SECONDS = 300
MOST_BYTES = 2_000_000
LIBRARIES = ("torch", "torchvision", "numpy", "matplotlib", "ipython", "ipywidgets", "papermill")
IGNORED = "nbval-ignore-output"
EXERCISE = "exercise"

SETUP_TAGS = ["setup", "remove-cell"]
SETUP_CELL = """\
# On Colab this installs cnnlib and keeps what Colab ships; elsewhere it does nothing.
import sys

if "google.colab" in sys.modules:
    %pip install -q git+{url}"""


# --------------------------------------------------------------------------------------------- which lectures there are


def home() -> Path:
    """The root of the checkout; FileNotFoundError where cnnlib was installed without the book."""
    root = checkout()
    if root is None:
        raise FileNotFoundError(
            "the lectures are not part of the installed package; clone the book's repository and run this inside it, "
            "or name the notebook's file"
        )
    return root


def repository_url() -> str:
    """The one place that says where the book lives: `project.urls.Repository` in pyproject.toml."""
    with open(home() / "pyproject.toml", "rb") as file:
        return tomllib.load(file)["project"]["urls"]["Repository"]


def toc_pages() -> list[str]:
    """The pages of `_toc.yml` in reading order, as paths without suffix (`book/lenet`)."""
    toc = yaml.safe_load((home() / "_toc.yml").read_text(encoding="utf-8"))
    chapters = [chapter for part in toc.get("parts", []) for chapter in part["chapters"]]
    return [toc["root"], *(chapter["file"] for chapter in chapters)]


def lectures(names: Iterable[str] = ()) -> list[Path]:
    """The notebooks of the table of contents in reading order, or those named (`lenet`, or the path of a notebook)."""
    named = list(names)
    if named and all(name.endswith(".ipynb") for name in named):
        for name in named:
            if not Path(name).is_file():
                raise FileNotFoundError(f"there is no notebook {name}; give the path of one, or a lecture's name")
        return [Path(name).resolve() for name in named]
    found = {Path(page).name: home() / f"{page}.ipynb" for page in toc_pages()}
    found = {name: path for name, path in found.items() if path.is_file()}
    wanted = [name.removesuffix(".ipynb").removeprefix("book/") for name in named]
    for name in wanted:
        if name not in found:
            raise unknown("lecture", name, found)
    return [path for name, path in found.items() if not wanted or name in wanted]


# -------------------------------------------------------------------------------------------- parameters and structure


def tags(cell: dict[str, Any]) -> list[str]:
    """The tags of a cell, [] where it has none."""
    return list(cell["metadata"].get("tags", []))


def parameters(notebook: dict[str, Any]) -> dict[str, Any]:
    """Names and values of the cell tagged `parameters`; ValueError unless there is exactly one and it holds literals."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code" and "parameters" in tags(cell)]
    if len(cells) != 1:
        raise ValueError(f"a lecture has exactly one cell tagged 'parameters', this one has {len(cells)}")
    values: dict[str, Any] = {}
    for statement in ast.parse(cells[0]["source"]).body:
        try:
            if isinstance(statement, ast.AnnAssign):
                targets, value = [statement.target], ast.literal_eval(statement.value)
            else:
                targets, value = statement.targets, ast.literal_eval(statement.value)
            (target,) = targets
            values[target.id] = value
        except (AttributeError, TypeError, ValueError):
            line = ast.unparse(statement).splitlines()[0]
            raise ValueError(f"the cell tagged 'parameters' may hold `name = literal` only, got `{line}`") from None
    return values


def overrides(notebook: dict[str, Any], profile: str) -> dict[str, Any]:
    """What `profile` changes in the parameters; ValueError for a name the lecture lacks or a value of another type."""
    if profile not in PROFILES:
        raise unknown("profile", profile, PROFILES)
    table = notebook["metadata"].get("cnnlib", {}).get("profiles", {})
    for name in table:
        if name not in PROFILES or name == "page":
            raise ValueError(f"the notebook's metadata names the profile {name!r}; it may change 'smoke' and 'gpu'")
    defaults = parameters(notebook)
    changed = table.get(profile, {})
    for name, value in changed.items():
        if name not in defaults:
            raise unknown("parameter", name, defaults)
        number = isinstance(value, int | float) and isinstance(defaults[name], int | float)
        if defaults[name] is not None and not number and type(value) is not type(defaults[name]):
            raise ValueError(
                f"profile {profile!r} sets {name} to {value!r}, but its default {defaults[name]!r} is a "
                f"{type(defaults[name]).__name__}"
            )
    return dict(changed)


def faults(notebook: dict[str, Any]) -> list[str]:
    """What breaks the rules of a lecture's form, one sentence each: cells, tags, parameters, alt texts, size."""
    found = []
    try:
        for profile in PROFILES:
            overrides(notebook, profile)
    except ValueError as error:
        found.append(str(error))
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code":
            found += [f"cell {number} ({cell.get('id')}): {fault}" for fault in _cell_faults(cell)]
    ids = [cell.get("id") for cell in notebook["cells"]]
    if None in ids or len(set(ids)) < len(ids):
        found.append("cells need ids that differ from each other; `python -m cnnlib refresh` gives them")
    return found


def _cell_faults(cell: dict[str, Any]) -> list[str]:
    found = []
    source, labels = cell["source"], tags(cell)
    is_setup, is_exercise = "setup" in labels, any(label.startswith(EXERCISE) for label in labels)
    if not is_setup:
        if re.search(r"^\s*[%!]", source, re.MULTILINE):
            found.append("a magic or shell command; only the set-up cell has one")
        else:
            tree = ast.walk(ast.parse(source))
            if not is_exercise and any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in tree):
                found.append("a def or class outside a cell tagged 'exercise'; move it to cnnlib")
        if "filterwarnings" in source or "simplefilter" in source:
            found.append("it hides warnings; remove their cause")
    if re.search(r"""["'](/|\.\./)\w""", source):
        found.append("an absolute or ../ path; ask cnnlib for the file")
    for output in cell.get("outputs", []):
        if output.get("name") == "stderr":
            found.append(f"something was written to stderr: {''.join(output['text'])[:80]!r}")
        data = output.get("data", {})
        if any(kind.startswith("application/vnd.jupyter.widget") for kind in data):
            found.append("a live widget in the stored outputs, which no page without a kernel can show")
        if any(kind.startswith("image/") for kind in data) and not _alt(cell):
            found.append("a figure without alt text (metadata mystnb.image.alt)")
    return found


def _alt(cell: dict[str, Any]) -> str:
    return cell["metadata"].get("mystnb", {}).get("image", {}).get("alt", "").strip()


def differences(stored: dict[str, Any], fresh: dict[str, Any]) -> list[str]:
    """Where the stored outputs are not what a new execution gave, one sentence a cell; nbval compares the texts.

    Each cell must have run and put out the same kinds of things; pictures must be equal pixel by pixel, except in cells
    tagged `nbval-ignore-output`, where they must be pictures.
    """
    ours = [cell for cell in stored["cells"] if cell["cell_type"] == "code"]
    theirs = [
        cell for cell in fresh["cells"] if cell["cell_type"] == "code" and "injected-parameters" not in tags(cell)
    ]
    found = []
    if [cell["source"] for cell in ours] != [cell["source"] for cell in theirs]:
        return ["the executed copy has other cells than the notebook; run `make book`"]
    for number, (old, new) in enumerate(zip(ours, theirs)):
        where = f"code cell {number} ({old.get('id')})"
        if old["execution_count"] is None or new["execution_count"] is None:
            found.append(f"{where} was not executed; `python -m cnnlib refresh` does it")
        elif (had := _kinds(old)) != (has := _kinds(new)):
            found.append(f"{where} stores {had or 'nothing'}, executed now it gives {has or 'nothing'}")
        else:
            found += [f"{where}: {fault}" for fault in _picture_faults(old, new, exact=IGNORED not in tags(old))]
    return found


def _kinds(cell: dict[str, Any]) -> list[str]:
    outputs = normal_outputs(cell["outputs"])
    return [output.get("name") or "+".join(sorted(output.get("data", [output.output_type]))) for output in outputs]


def _picture_faults(old: dict[str, Any], new: dict[str, Any], *, exact: bool) -> Iterator[str]:
    import numpy as np

    pairs = zip(normal_outputs(old["outputs"]), normal_outputs(new["outputs"]))
    for was, now in pairs:
        for kind in ("image/png", "image/jpeg"):
            if kind not in was.get("data", {}):
                continue
            try:
                before, after = _pixels(was["data"][kind]), _pixels(now["data"][kind])
            except (OSError, ValueError):
                yield f"its {kind} is no picture"
                continue
            if exact and before.shape != after.shape:
                yield f"its {kind} is {before.shape[1]}x{before.shape[0]} pixels, drawn now {after.shape[1]}x{after.shape[0]}"
            elif exact and not np.array_equal(before, after):
                share = (before != after).any(axis=2).mean()
                yield f"its {kind} differs in {share:.1%} of the pixels from the one drawn now"


def _pixels(encoded: str) -> Any:
    """(H, W, 4): the colours of a picture in base64."""
    import base64
    import io

    import numpy as np
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGBA"))


# ----------------------------------------------------------------------------------------------------------- the digest


def _files(folder: Path, suffixes: tuple[str, ...] = ()) -> list[Path]:
    skipped = {"__pycache__", "cache", ".ipynb_checkpoints"}
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not skipped & set(path.relative_to(folder).parts[:-1])
        and (not suffixes or path.suffix in suffixes)
    )


def library_digest() -> str:
    """sha256 over cnnlib's sources, its data without the cache, the constraints and the versions that are installed."""
    import cnnlib

    package = Path(cnnlib.__file__).parent
    seen = hashlib.sha256()
    for folder, suffixes in ((package, (".py", ".js", ".css", ".html")), (data_dir(), ())):
        for path in _files(folder, suffixes):
            seen.update(f"{path.relative_to(folder)}\0".encode())
            seen.update(hashlib.sha256(path.read_bytes()).digest())
    root = checkout()
    if root:
        seen.update((root / "constraints.txt").read_bytes())
    seen.update(json.dumps(versions(), sort_keys=True).encode())
    return seen.hexdigest()


def digest(notebook: dict[str, Any], profile: str, library: str | None = None) -> str:
    """sha256 over all that the outputs of a lecture under a profile depend on (its cells, parameters, the library)."""
    cells = [
        [
            cell["cell_type"],
            cell["source"],
            {key: cell["metadata"][key] for key in sorted(cell["metadata"]) if key in _KEPT},
        ]
        for cell in notebook["cells"]
        if "injected-parameters" not in tags(cell)
    ]
    whole = [profile, overrides(notebook, profile), cells, library or library_digest()]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


_KEPT = ("tags", "mystnb")


@cache
def versions() -> dict[str, str]:
    """The versions that decide what a lecture prints: Python's and those of the libraries under it."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return dict(sorted(found.items()))


def machine() -> str:
    """The processor and the number of cores, without the machine's name."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    return f"{model}, {os.cpu_count()} cores, {platform.system()}"


# ------------------------------------------------------------------------------------------------------------ execution


def page_environment(scratch: Path | str) -> dict[str, str]:
    """The environment of a kernel under the page and smoke profiles: one CPU thread, no data sets, no network.

    `scratch` is an empty folder, which stands where data sets would be looked for.
    """
    nowhere = "http://127.0.0.1:9"  # the discard port: whoever tries the network is refused at once
    return {
        **os.environ,
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
        **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), nowhere),
        "CNNLIB_DATA": str(scratch),
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "PYTHONHASHSEED": "0",
        "TQDM_DISABLE": "1",  # a bar would stay behind on the page
    }


@dataclass
class Run:
    """One execution of one lecture: what the status page and the exit code are made of. `seconds` is wall time."""

    lecture: str
    profile: str
    digest: str
    started: str = ""
    seconds: float = 0.0
    cells: int = 0
    machine: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    reused: bool = field(default=False, compare=False)
    error: str | None = None

    @property
    def ok(self) -> bool:
        return self.error is None


def recorded(path: Path) -> Run | None:
    """The run that wrote an executed copy, or None where there is no copy or no run in it."""
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))["metadata"]["cnnlib"]["run"]
    except (OSError, KeyError, json.JSONDecodeError):
        return None
    return Run(**noted)


def run(
    paths: Sequence[Path],
    profile: str,
    out: Path,
    *,
    force: bool = False,
    jobs: int | None = None,
    say: Callable[[str], None] = print,
) -> list[Run]:
    """Execute lectures under a profile into `out`, only those whose digest changed; the sources are not touched.

    A lecture that fails is named with its cell and traceback through `say`, and the others go on; its run has `error`
    and no copy of it is left in `out`.
    """
    out.mkdir(parents=True, exist_ok=True)
    library = library_digest()
    progress = _Progress(say)
    todo: list[tuple[Path, Any, Run]] = []
    runs: dict[Path, Run] = {}
    for path in paths:
        notebook = read(path)
        try:
            wanted = digest(notebook, profile, library)
        except ValueError as error:
            raise ValueError(f"{path.name}: {error}") from None
        before = recorded(out / path.name)
        if before and before.digest == wanted and not force:
            before.reused = True
            runs[path] = before
            progress.done(f"{path.stem}: unchanged, executed before in {before.seconds:.1f} s")
        else:
            (out / path.name).unlink(missing_ok=True)
            todo.append((path, notebook, Run(path.stem, profile, wanted)))

    def one(job: tuple[Path, Any, Run]) -> None:
        path, notebook, record = job
        runs[path] = _execute_into(notebook, record, out / path.name, progress)

    _side_by_side(one, todo, jobs)
    return [runs[path] for path in paths]


_KERNELS: set[int] = set()


def _side_by_side(work: Callable[[Any], Any], items: Sequence[Any], jobs: int | None) -> list[Any]:
    """Two lectures at a time, or `jobs`; when interrupted, their kernels end with this process."""
    with ThreadPoolExecutor(max_workers=jobs or min(2, os.cpu_count() or 1)) as pool:
        waiting = [pool.submit(work, item) for item in items]
        try:
            return [one.result() for one in waiting]
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for kernel in _KERNELS:
                with suppress(ProcessLookupError):
                    os.kill(kernel, signal.SIGKILL)
            raise


def _execute_into(notebook: Any, record: Run, target: Path, progress: _Progress) -> Run:
    import nbformat

    record.started = datetime.now(UTC).isoformat(timespec="seconds")
    record.machine, record.versions = machine(), versions()
    begun = time.monotonic()
    executed, record.error = execute(notebook, record.profile, progress.cells(record.lecture))
    record.seconds = round(time.monotonic() - begun, 1)
    record.cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    if record.error:
        progress.done(f"{record.lecture}: FAILED after {record.seconds:.1f} s\n{record.error}")
        return record
    noted = {key: value for key, value in asdict(record).items() if key not in ("reused", "error")}
    executed.metadata.setdefault("cnnlib", {})["run"] = noted
    for cell in executed.cells:
        if cell.cell_type == "code":
            cell.outputs = normal_outputs(cell.outputs)
    _write(target, nbformat.writes(executed) + "\n")
    progress.done(f"{record.lecture}: {record.cells} cells in {record.seconds:.1f} s")
    return record


def read(path: Path) -> Any:
    """A notebook of format 4; ValueError with the file's name where it is not one."""
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, KeyError) as error:
        raise ValueError(f"{path.name} is not a notebook of format 4: {str(error).splitlines()[0]}") from None


def execute(
    notebook: Any, profile: str = "page", on_cell: Callable[[int, int], None] | None = None
) -> tuple[Any, str | None]:
    """The notebook executed by papermill in an empty folder, and None or the text of what went wrong.

    `on_cell(done, all)` is told after each code cell. The given notebook stays as it is.
    """
    import copy

    import papermill
    from ipykernel.kernelspec import RESOURCES, get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    class Kernel(AsyncKernelManager):
        """The interpreter that runs this, whatever kernels are installed elsewhere, with our environment."""

        @property
        def kernel_spec(self) -> KernelSpec:
            return KernelSpec(resource_dir=str(RESOURCES), **get_kernel_dict())

        async def start_kernel(self, **options: Any) -> None:
            await super().start_kernel(**{**options, "cwd": str(folder), "stderr": heard, **environment})
            _KERNELS.add(self.provisioner.pid)
            stack.callback(_KERNELS.discard, self.provisioner.pid)

    source = copy.deepcopy(notebook)
    codes = [number for number, cell in enumerate(source.cells) if cell.cell_type == "code"]
    changed = overrides(source, profile) if profile != "page" else {}
    count = len(codes) + bool(changed)
    done = 0

    def told(**_: Any) -> None:
        nonlocal done
        done += 1
        if on_cell:
            on_cell(done, count)

    source.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="lecture-"))
        folder, empty, asked = (Path(scratch) / name for name in ("here", "no-data", "asked.ipynb"))
        folder.mkdir()
        empty.mkdir()
        environment = {} if profile == "gpu" else {"env": page_environment(empty)}
        _write(asked, json.dumps(source))
        heard = stack.enter_context(open(Path(scratch) / "stderr", "w+", errors="replace"))
        try:
            executed = papermill.execute_notebook(
                asked,
                None,
                parameters=changed,
                kernel_name="python3",
                progress_bar=False,
                execution_timeout=None if profile == "gpu" else CELL_SECONDS,
                kernel_manager_class=Kernel,
                on_cell_executed=told,
            )
            return executed, None
        except papermill.PapermillExecutionError as error:
            trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
            return None, f"cell In [{error.exec_count}] of the lecture raised {error.ename}: {error.evalue}\n{trace}"
        except CellTimeoutError:
            return None, f"cell In [{done + 1}] of the lecture ran longer than {CELL_SECONDS} s"
        except DeadKernelError:
            heard.seek(0)
            last = "".join(line for line in heard if "IPKernelApp" not in line)[-2000:]
            return None, f"the kernel died in cell In [{done + 1}] of the lecture (out of memory?)\n{last}".strip()


class _Progress:
    """Lines for a log; on a terminal also one line that moves, with the cells of each lecture under way."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.lock, self.at = say, threading.Lock(), {}
        self.moving = sys.stderr.isatty()

    def cells(self, lecture: str) -> Callable[[int, int], None]:
        if not self.moving:
            self.say(f"{lecture}: executing")

        def on_cell(done: int, count: int) -> None:
            with self.lock:
                self.at[lecture] = f"{lecture} {done}/{count} cells"
                self._show()

        return on_cell

    def done(self, line: str) -> None:
        with self.lock:
            self.at.pop(line.split(":", 1)[0], None)
            if self.moving:
                sys.stderr.write("\r\x1b[K")
                sys.stderr.flush()
            self.say(line)
            self._show()

    def _show(self) -> None:
        if self.moving and self.at:
            sys.stderr.write("\r\x1b[K" + "   ".join(self.at.values()))
            sys.stderr.flush()


# -------------------------------------------------------------------------------------- the committed copies, in place


def normal_outputs(outputs: Sequence[Any]) -> list[Any]:
    """Outputs without what differs from run to run: streams joined, object addresses and execution counts blanked."""
    import nbformat

    joined: list[Any] = []
    for output in outputs:
        output = nbformat.from_dict(output)
        if output.output_type == "stream" and joined and joined[-1].get("name") == output.name:
            joined[-1].text += output.text
            continue
        joined.append(output)
    for output in joined:
        if output.output_type == "stream":
            output.text = _ADDRESS.sub(" at 0x...", _overwritten(output.text))
        for kind, value in output.get("data", {}).items():
            if kind.startswith("text/") and isinstance(value, str):
                output.data[kind] = _ADDRESS.sub(" at 0x...", value)
    return joined


_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]{6,}")


def _overwritten(text: str) -> str:
    """What a terminal would show: of each line, what stands after its last carriage return."""
    return "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n"))


def normalised(notebook: Any, executed: Any) -> str:
    """The text of `notebook` with the outputs of its executed copy, in a form that depends on nothing else.

    ValueError where it is larger than 2 MB, naming the cell that takes most.
    """
    import nbformat

    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            ran = executed.cells[number]
            cell.execution_count = ran.execution_count
            cell.outputs = normal_outputs(ran.outputs)
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = ran.execution_count
        for volatile in ("execution", "papermill", "collapsed", "scrolled", "id", "colab", "outputId"):
            cell.metadata.pop(volatile, None)
    kept = {key: value for key, value in notebook.metadata.items() if key == "cnnlib"}
    notebook.metadata = nbformat.from_dict(
        {
            **kept,
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    text = nbformat.writes(notebook) + "\n"
    size = len(text.encode())
    if size > MOST_BYTES:
        sizes = [len(json.dumps(cell)) for cell in notebook.cells]
        fat = max(range(len(sizes)), key=sizes.__getitem__)
        raise ValueError(
            f"it takes {size / 1e6:.1f} MB and may take {MOST_BYTES / 1e6:g}; cell {fat} ({notebook.cells[fat].id}) "
            f"alone takes {sizes[fat] / 1e6:.1f} MB: draw less in it"
        )
    return text


def with_setup_cell(notebook: Any) -> Any:
    """The notebook with the current Colab set-up cell, which stands after the title; every cell has an id."""
    import nbformat

    source = SETUP_CELL.format(url=repository_url())
    present = [cell for cell in notebook.cells if "setup" in tags(cell)]
    if present:
        present[0].source, present[0].metadata["tags"] = source, list(SETUP_TAGS)
    else:
        cell = nbformat.v4.new_code_cell(source, metadata={"tags": list(SETUP_TAGS)}, id="setup")
        notebook.cells.insert(1 if notebook.cells and notebook.cells[0].cell_type == "markdown" else 0, cell)
    taken: set[str] = set()
    for number, cell in enumerate(notebook.cells):
        if not cell.get("id") or cell.id in taken:
            cell.id = f"cell-{number:03d}" if f"cell-{number:03d}" not in taken else f"cell-{number:03d}-again"
        taken.add(cell.id)
    return notebook


def refresh(
    paths: Sequence[Path], *, check: bool = False, jobs: int | None = None, say: Callable[[str], None] = print
) -> list[str]:
    """Execute the committed notebooks and store their outputs in normal form; returns the names of those that changed.

    With `check` nothing is written. A notebook whose outputs are as they were keeps every byte. ValueError, after all
    were tried, with what went wrong in each.
    """
    progress = _Progress(say)

    def one(path: Path) -> tuple[str, bool, str | None]:
        begun = time.monotonic()
        before = path.read_text(encoding="utf-8")
        notebook = with_setup_cell(read(path))
        executed, wrong = execute(notebook, "page", progress.cells(path.stem))
        if wrong is None:
            try:
                after = normalised(notebook, executed)
                broken = faults(notebook)
                wrong = "\n".join(broken) or None
            except ValueError as error:
                wrong = str(error)
        if wrong:
            progress.done(f"{path.stem}: FAILED\n{wrong}")
            return path.stem, False, wrong
        if after != before and not check:
            _write(path, after)
        word = "unchanged" if after == before else "would change" if check else "refreshed"
        progress.done(f"{path.stem}: {word}, {time.monotonic() - begun:.1f} s")
        return path.stem, after != before, None

    results = _side_by_side(one, paths, jobs)
    failed = [name for name, _, wrong in results if wrong]
    if failed:
        raise ValueError(f"not refreshed, see above: {', '.join(failed)}")
    return [name for name, changed, _ in results if changed]


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
