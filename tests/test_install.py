"""Laws of the wheel: it holds everything that a lecture needs, and a lecture runs from it in an empty folder, as on Colab."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow


def run(*command: object, cwd: Path = ROOT, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "CNNLIB_DATA")}
    return subprocess.run(
        [str(word) for word in command], cwd=cwd, env={**environment, **settings}, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from the working tree, from uv's cache where the builder is in it, else over the network."""
    out = tmp_path_factory.mktemp("dist")
    ways: list[tuple[object, ...]] = [(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", out, ".")]
    if importlib.util.find_spec("uv"):
        build = (sys.executable, "-m", "uv", "build", "-q", "--wheel", "--python", sys.executable, "-o", out)
        ways = [(*build, "--offline"), build, *ways]
    if importlib.util.find_spec("hatchling"):
        ways.insert(0, (*ways[-1], "--no-build-isolation"))
    answers = []
    for way in ways:
        answers.append(run(*way))
        if answers[-1].returncode == 0:
            (built,) = out.glob("*.whl")
            return built
    said = answers[-1].stderr.strip().splitlines()[-1:]
    if os.environ.get("CI"):
        pytest.fail(f"no wheel could be built: {said}")
    pytest.skip(f"no wheel could be built, since its builder hatchling is neither here nor to be fetched: {said}")


def tracked(folder: str) -> set[str]:
    listed = run("git", "ls-files", "-z", folder)
    if listed.returncode == 0:
        return {name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()}
    return {
        str(path.relative_to(ROOT))
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "cache" not in path.parts
    }


def test_the_wheel_holds_the_library_and_its_data_without_the_cache(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in tracked("data"):
        assert f"cnnlib/_data/{name.removeprefix('data/')}" in names
    assert tracked("cnnlib") <= names
    assert [
        name for name in names if "/cache/" in name or "__pycache__" in name or name.startswith(("tests", "book"))
    ] == []
    assert {"cnnlib/_data/claims.yml", "cnnlib/_data/fashion_mnist_mini.npz"} <= names


@pytest.fixture(scope="module")
def elsewhere(wheel, tmp_path_factory) -> Path:
    """The Python of a clean environment with the wheel in it; the other packages are those of this environment."""
    folder = tmp_path_factory.mktemp("environment")
    assert run(sys.executable, "-m", "venv", "--without-pip", folder).returncode == 0
    (site,) = folder.glob("lib/python*/site-packages")
    python = folder / "bin" / "python"
    if importlib.util.find_spec("uv"):
        install = (sys.executable, "-m", "uv", "pip", "install", "--offline", "--no-deps", "--python", python, wheel)
    else:
        install = (sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--no-deps", wheel)
    installed = run(*install)
    assert installed.returncode == 0, installed.stderr
    # A path line adds a folder but not the path files inside it, so the checkout itself stays out.
    (site / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return python


def test_the_installed_package_knows_its_data_and_no_checkout(elsewhere, tmp_path):
    script = (
        "import json, cnnlib; from cnnlib import paths; from pathlib import Path;"
        "print(json.dumps([cnnlib.__file__, paths.checkout() is None, str(paths.data_dir()), cnnlib.list_models(),"
        "cnnlib.card('lenet5_1998').published['params']['value'], len(cnnlib.load_data('fashion_mnist_mini').train.labels)]))"
    )
    answer = run(elsewhere, "-c", script, cwd=tmp_path, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert answer.returncode == 0, answer.stderr
    home, no_checkout, data, models, params, images = json.loads(answer.stdout)
    assert str(elsewhere.parent.parent) in home
    assert no_checkout
    assert str(elsewhere.parent.parent) in data
    assert (params, images) == (60000, 5000)
    assert "lenet5" in models


def test_the_commands_say_that_the_book_is_not_in_the_package(elsewhere, tmp_path):
    answer = run(elsewhere, "-m", "cnnlib", "run", cwd=tmp_path)
    assert answer.returncode == 2
    assert "the lectures are not part of the installed package" in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1
    assert run(elsewhere, "-m", "cnnlib", "zoo", cwd=tmp_path).returncode == 0


def test_a_lecture_runs_from_an_empty_folder(elsewhere, tmp_path):
    shutil.copy(ROOT / "book" / "lenet.ipynb", tmp_path)
    command = (elsewhere, "-m", "cnnlib", "run", "lenet.ipynb", "--profile", "smoke", "--out", "out")
    answer = run(*command, cwd=tmp_path, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert answer.returncode == 0, answer.stdout + answer.stderr
    executed = json.loads((tmp_path / "out" / "lenet.ipynb").read_text())
    assert all(cell["execution_count"] for cell in executed["cells"] if cell["cell_type"] == "code")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == ["lenet.ipynb", "out"]
