"""Laws of the house: imports go downwards, versions agree, one place says each thing, and installing fails in one sentence."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from cnnlib.notebooks import repository_url, toc_pages

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

FLOORS = (
    {"__init__", "errors", "lazy", "paths", "progress", "tables"},
    {"models", "data", "published"},
    {"graph", "tracing", "operations"},
    {"analysis", "training"},
    {"checks", "ledger", "plots", "pages"},
    {"explorers", "notebooks", "site"},
    {"__main__"},
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}


def tracked() -> list[Path]:
    """The files of the project: those that git knows, or in an unpacked archive those outside of build folders."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0:
        return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    hidden = {".venv", "_build", ".git", ".ruff_cache", ".pytest_cache", "cache", "__pycache__"}
    return [path for path in ROOT.rglob("*") if path.is_file() and not hidden & set(path.parts)]


def texts() -> dict[str, str]:
    found = {}
    for path in tracked():
        try:
            found[str(path.relative_to(ROOT))] = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
    return found


def part(module: str) -> str:
    """The part of cnnlib that a module belongs to: `cnnlib.models.zoo` is of `models`."""
    steps = module.split(".")
    return steps[1] if len(steps) > 1 else "__init__"


def imported(path: Path) -> set[str]:
    """The parts of cnnlib that a file imports anywhere, also inside functions; imports for types alone do not count."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {part(alias.name) for alias in node.names if alias.name.split(".")[0] == "cnnlib"}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "cnnlib":
            inside = node.module == "cnnlib"
            found |= (
                {alias.name if alias.name in FLOOR else "__init__" for alias in node.names}
                if inside
                else {part(node.module)}
            )
    return found


def test_imports_go_downwards_only():
    wrong = []
    for path in sorted((ROOT / "cnnlib").rglob("*.py")):
        inside = path.relative_to(ROOT / "cnnlib")
        home = inside.parts[0].removesuffix(".py")
        assert home in FLOOR, f"cnnlib/{inside} stands on no floor; give {home!r} one in FLOORS"
        wrong += [f"cnnlib/{inside} imports {other}" for other in imported(path) if FLOOR[other] > FLOOR[home]]
    assert wrong == []


def test_an_import_upwards_is_seen(tmp_path):
    source = (
        "def f():\n    from cnnlib import plots\n    import cnnlib.training.engine\n    from cnnlib.models import zoo\n"
    )
    (tmp_path / "a.py").write_text(source)
    assert imported(tmp_path / "a.py") == {"plots", "training", "models"}


def test_the_code_is_clean_for_ruff():
    for arguments in (["check"], ["format", "--check"]):
        found = subprocess.run(
            [sys.executable, "-m", "ruff", *arguments, "."], cwd=ROOT, capture_output=True, text=True
        )
        assert found.returncode == 0, found.stdout + found.stderr


# ------------------------------------------------------------------------------------------------------------ versions


def constraints() -> dict[str, list[Requirement]]:
    pinned: dict[str, list[Requirement]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            pinned.setdefault(requirement.name.lower(), []).append(requirement)
    return pinned


def wanted(*extras: str) -> list[Requirement]:
    lists = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] for extra in extras)]
    return [Requirement(line) for requirements in lists for line in requirements]


def test_each_dependency_is_pinned_to_a_version_that_pyproject_admits():
    pinned = constraints()
    for requirement in wanted("book", "test"):
        assert requirement.name.lower() in pinned, f"constraints.txt lacks {requirement.name}"
        for pin in pinned[requirement.name.lower()]:
            (only,) = pin.specifier
            assert only.operator == "=="
            assert only.version in requirement.specifier, f"{pin} is not {requirement}"


def test_what_colab_ships_need_not_be_replaced():
    ships = {"torch": "2.11.0", "torchvision": "0.26.0", "numpy": "2.1.3", "matplotlib": "3.10.0", "pyyaml": "6.0.2"}
    ships |= {"ipykernel": "6.17.1", "ipywidgets": "7.7.1"}
    for requirement in wanted("book"):
        if requirement.name in ships:
            assert requirement.specifier.contains(ships[requirement.name]), requirement
    assert "3.13" in PROJECT_PYTHON
    assert "3.12" in PROJECT_PYTHON


PROJECT_PYTHON = Requirement(f"python{PROJECT['requires-python']}").specifier


def test_conda_installs_what_pyproject_says_at_the_pinned_versions():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, from_pip = environment["dependencies"]
    assert Requirement(python).specifier == PROJECT_PYTHON
    assert pip == "pip"
    assert from_pip == {"pip": ["-c constraints.txt", '-e ".[book,test]"']}
    assert set(PROJECT["optional-dependencies"]) >= {"book", "test"}


def test_the_oldest_python_is_the_same_everywhere():
    (oldest,) = PROJECT_PYTHON
    said = f"({', '.join(oldest.version.split('.'))})"
    for name in ("Makefile", "tools/install.py"):
        found = set(re.findall(r"version_info < (\([\d, ]+\))", (ROOT / name).read_text()))
        assert found == {said}, name
    for name in ("Makefile", "README.md", "book/how-to-run.md"):
        assert set(re.findall(r"Python (?:>= )?`?(\d\.\d+)", (ROOT / name).read_text())) == {oldest.version}, name


def test_the_citation_has_the_version_licence_and_address_of_the_package():
    import cnnlib

    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert Version(cited["version"]) == Version(cnnlib.__version__)
    assert cited["license"] == PROJECT["license"]
    assert cited["repository-code"] == repository_url()


# ------------------------------------------------------------------------------------------------- one place for a thing


def test_the_address_of_the_repository_stands_in_one_place():
    """Set-up cells and the citation are other formats; tests say that they agree."""
    address = repository_url()
    holders = {name for name, content in texts().items() if address in content}
    generated = {name for name in holders if name.endswith(".ipynb")}
    assert holders - generated == {"pyproject.toml", "CITATION.cff"}


def test_only_the_ci_script_knows_the_folder_of_real_data():
    here = "tests/test_house.py"
    assert {name for name, content in texts().items() if "shared" + "/data" in content} == {".ci/run"}
    paths = re.compile(r"(?<![\w.])/(?:root|home|work)/\w")
    allowed = {here, "tests/test_notebooks.py"}  # the latter holds a made-up path that must be refused
    assert {name for name, content in texts().items() if paths.search(content)} <= allowed


def test_ci_and_the_reader_run_the_same_command():
    lines = (ROOT / ".ci" / "run").read_text().strip().splitlines()
    assert lines[-1] == "exec make test </dev/null"
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    steps = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["test"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == ["bash .ci/run"]


def test_help_names_every_target():
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE).group(1).split()
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True).stdout
    assert [target for target in targets if target not in ("help", "install") and f"make {target}" not in said] == []


def test_every_page_of_the_table_of_contents_exists_and_every_lecture_is_in_it():
    pages = toc_pages()
    assert len(set(pages)) == len(pages)
    there = {
        str(path.relative_to(ROOT).with_suffix(""))
        for path in (ROOT / "book").glob("*")
        if path.suffix in (".md", ".ipynb")
    }
    assert set(pages) == there


def bibliography() -> dict[str, str]:
    entries = re.findall(
        r"^@\w+\{(\w+),\n(.*?)^\}", (ROOT / "book/references.bib").read_text(), re.MULTILINE | re.DOTALL
    )
    assert len({key for key, _ in entries}) == len(entries)
    return dict(entries)


def test_every_network_cites_an_entry_of_the_bibliography():
    from cnnlib import card, list_models

    cited = {card(name).reference for name in list_models()}
    assert cited - set(bibliography()) == set()


def test_entries_of_the_bibliography_have_what_finds_the_paper():
    for key, entry in bibliography().items():
        fields = dict(re.findall(r"^  (\w+) = \{(.*)\},$", entry, re.MULTILINE))
        assert {"author", "title", "year"} <= set(fields), key
        assert {"doi", "eprint", "booktitle", "journal", "institution"} & set(fields), key
        assert key.startswith(re.sub(r"\W", "", fields["author"].split(",")[0].split()[-1].lower())[:3]), key
        assert fields["year"] in key, key
        assert re.fullmatch(r"\d{4}\.\d{4,5}", fields.get("eprint", "1234.12345")), key
        assert fields.get("doi", "10.").startswith("10."), key


# ---------------------------------------------------------------------------------------------------------- installing


@pytest.fixture
def copy(tmp_path):
    """What `make install` needs of the project, in a folder of its own."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "tools/install.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def make(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "UV_", "MAKE"))}
    return subprocess.run(
        ["make", *arguments],
        cwd=folder,
        env={**environment, **settings},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def sentence(answer: subprocess.CompletedProcess[str]) -> str:
    """What was said on stderr beside make's own last line; no traceback anywhere."""
    assert answer.returncode != 0
    assert "Traceback" not in answer.stdout + answer.stderr
    (said,) = [line for line in answer.stderr.splitlines() if not line.startswith("make")]
    return said


@pytest.fixture
def only_old_python(tmp_path):
    """A PATH on which every Python is of 2019."""
    folder = tmp_path / "old"
    folder.mkdir()
    for name in ("python", "python3", "python3.11", "python3.12", "python3.13", "python3.14"):
        (folder / name).write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.7.3" && exit 0\nexit 1\n')
        (folder / name).chmod(0o755)
    return folder


def test_an_old_python_is_told_so_in_one_sentence(copy, only_old_python):
    said = sentence(make(copy, "install", PATH=f"{only_old_python}:{os.environ['PATH']}"))
    assert "needs Python 3.11 or newer, and Python 3.7.3 was found" in said
    said = sentence(make(copy, "install", f"PYTHON={only_old_python}/python3"))
    assert "is not that (Python 3.7.3)" in said
    assert not (copy / ".venv").exists()


def test_a_missing_python_is_told_so_in_one_sentence(copy, tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "make", "touch", "echo"):
        (tools / name).symlink_to(shutil.which(name))
    said = sentence(make(copy, "install", PATH=str(tools)))
    assert "needs Python 3.11 or newer, and no Python was found" in said


@pytest.mark.slow
def test_no_network_is_told_so_in_one_sentence(copy):
    settings = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "UV_NO_CONFIG": "1"}
    said = sentence(make(copy, "install", f"PYTHON={sys.executable}", **settings))
    assert "no connection to the package index" in said
    assert not (copy / ".venv" / ".installed").exists()
    said = sentence(make(copy, "install", f"PYTHON={sys.executable}", **settings))
    assert "no connection to the package index" in said, "a half-made environment must not pass for a whole one"


@pytest.fixture
def install(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("install", ROOT / "tools" / "install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "LOG", tmp_path / "_build" / "install.log")
    return module


def test_a_full_disk_is_told_so_before_anything_is_made(install, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(install.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**11, 10**11, 1.5e9))
    assert install.main(".venv") == 1
    assert "needs 9 GB of free disk" in capsys.readouterr().err
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("error: failed to write: No space left on device (os error 28)", "The disk is full"),
        ("OSError: [Errno 122] Disk quota exceeded", "The disk is full"),
        ("error: Failed to fetch: `x`\n  dns error: failed to lookup address", "no connection"),
        ("ERROR: No matching distribution found for uv", "no connection"),
    ],
)
def test_the_disk_and_the_network_are_named_as_what_they_are(install, told, said):
    install.LOG.parent.mkdir()
    install.LOG.write_text(told)
    assert said in install._reason()


def test_another_trouble_is_told_with_its_first_error(install):
    install.LOG.parent.mkdir()
    install.LOG.write_text("Resolved 3 packages\nerror: torch has no wheels for this platform\n  hint: none\n")
    assert install._reason() is None
    assert install._last_error() == "error: torch has no wheels for this platform"


def test_every_file_of_data_has_a_row_that_says_where_it_is_from():
    rows = re.findall(r"^\| `([^`]+)` \|", (ROOT / "data" / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    files = [path.relative_to(ROOT / "data") for path in tracked() if (ROOT / "data") in path.parents]
    described = [path for path in files if str(path) == "README.md" or any(path.match(row) for row in rows)]
    assert [str(path) for path in files if path not in described] == []
    assert [row for row in rows if not any(path.match(row) for path in files)] == []
