"""Laws of executing lectures: profiles, digests, what a failure leaves, and outputs in normal form."""

from __future__ import annotations

import base64
import copy
import io
import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import nbformat
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cnnlib import notebooks

code, text = nbformat.v4.new_code_cell, nbformat.v4.new_markdown_cell


def lecture(*cells, parameters="epochs = 3\nname = 'mini'", profiles=None):
    """A notebook with a title, a cell of parameters and the given sources or cells."""
    made = [text("# A lecture"), code(parameters, metadata={"tags": ["parameters"]})]
    made += [code(cell) if isinstance(cell, str) else cell for cell in cells]
    for number, cell in enumerate(made):
        cell.id = f"c{number}"
    return nbformat.v4.new_notebook(cells=made, metadata={"cnnlib": {"profiles": profiles or {}}})


def saved(folder: Path, name: str, notebook) -> Path:
    path = folder / f"{name}.ipynb"
    path.write_text(nbformat.writes(notebook))
    return path


def printed(notebook) -> str:
    return "".join(o.get("text", "") for c in notebook.cells for o in c.get("outputs", []))


def png(shade: int = 0, size: int = 4) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (shade, 0, 0)).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


# ------------------------------------------------------------------------------------------------ parameters and profiles


def test_parameters_are_the_literals_of_the_tagged_cell():
    notebook = lecture(parameters="# how long\nepochs: int = 3\nsizes = [1, -2]\nname = 'a'  # which\n")
    assert notebooks.parameters(notebook) == {"epochs": 3, "sizes": [1, -2], "name": "a"}


@pytest.mark.parametrize(
    "line", ["a = b", "a = f(1)", "a, b = 1, 2", "a = c = 1", "import os", "a += 1", "a.b = 1", "print(1)"]
)
def test_a_parameter_that_is_no_literal_is_refused_with_its_line(line):
    with pytest.raises(ValueError, match="`name = literal` only, got `"):
        notebooks.parameters(lecture(parameters=line))


def test_a_lecture_has_exactly_one_cell_of_parameters():
    notebook = lecture()
    notebook.cells.append(notebook.cells[1])
    with pytest.raises(ValueError, match="exactly one cell tagged 'parameters', this one has 2"):
        notebooks.parameters(notebook)


def test_a_profile_changes_only_parameters_that_exist():
    notebook = lecture(profiles={"smoke": {"epoch": 1}})
    with pytest.raises(ValueError, match="no parameter 'epoch'; did you mean 'epochs'"):
        notebooks.overrides(notebook, "smoke")
    assert notebooks.overrides(lecture(profiles={"gpu": {"epochs": 90}}), "gpu") == {"epochs": 90}
    assert notebooks.overrides(notebook, "gpu") == {}


@pytest.mark.parametrize(
    ("profiles", "said"),
    [
        ({"page": {"epochs": 1}}, "may change 'smoke' and 'gpu'"),
        ({"smokes": {}}, "names the profile 'smokes'"),
        ({"smoke": {"epochs": "1"}}, "its default 3 is a int"),
    ],
)
def test_a_wrong_table_of_profiles_is_refused(profiles, said):
    with pytest.raises(ValueError, match=said):
        notebooks.overrides(lecture(profiles=profiles), "smoke")


def test_an_unknown_profile_names_the_known_ones():
    with pytest.raises(ValueError, match="no profile 'pages'; did you mean 'page'"):
        notebooks.overrides(lecture(), "pages")


# ---------------------------------------------------------------------------------------------------------- the digest


def test_the_digest_follows_everything_that_outputs_depend_on():
    notebook = lecture("1 + 1", profiles={"smoke": {"epochs": 1}})
    same = copy.deepcopy(notebook)
    same.cells[2].outputs = [nbformat.v4.new_output("stream", text="2")]
    same.cells[2].execution_count = 7
    assert notebooks.digest(same, "page", "lib") == notebooks.digest(notebook, "page", "lib")
    seen = {notebooks.digest(notebook, "page", "lib"), notebooks.digest(notebook, "page", "lib2")}
    seen |= {notebooks.digest(notebook, "smoke", "lib"), notebooks.digest(notebook, "gpu", "lib")}
    for change in (
        lambda n: n.cells[2].__setitem__("source", "1 + 2"),
        lambda n: n.cells[2].metadata.__setitem__("tags", ["hide-input"]),
        lambda n: n.cells[0].__setitem__("source", "# Another title"),
        lambda n: n.cells[1].__setitem__("source", "epochs = 4\nname = 'mini'"),
    ):
        other = copy.deepcopy(notebook)
        change(other)
        seen.add(notebooks.digest(other, "page", "lib"))
    assert len(seen) == 8


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A copy of the parts of the project that the library's digest reads, in place of them."""
    import cnnlib
    from cnnlib import paths

    (tmp_path / "cnnlib").mkdir()
    (tmp_path / "data" / "cache").mkdir(parents=True)
    for name in ("cnnlib/__init__.py", "data/claims.yml", "data/cache/big", "constraints.txt", "pyproject.toml"):
        (tmp_path / name).write_text("first")
    monkeypatch.setattr(cnnlib, "__file__", str(tmp_path / "cnnlib" / "__init__.py"))
    monkeypatch.setattr(paths, "_PACKAGE", tmp_path / "cnnlib")
    return tmp_path


@pytest.mark.parametrize(
    "name", ["cnnlib/__init__.py", "cnnlib/new.py", "data/claims.yml", "data/papers/new.yml", "constraints.txt"]
)
def test_a_change_of_library_data_or_constraints_changes_the_digest(checkout, name):
    before = notebooks.library_digest()
    (checkout / name).parent.mkdir(exist_ok=True)
    (checkout / name).write_text("second")
    assert notebooks.library_digest() != before


def test_downloaded_sets_and_compiled_files_do_not_change_the_digest(checkout):
    before = notebooks.library_digest()
    (checkout / "data" / "cache" / "big").write_text("second")
    (checkout / "cnnlib" / "__pycache__").mkdir()
    (checkout / "cnnlib" / "__pycache__" / "a.pyc").write_text("x")
    assert notebooks.library_digest() == before


def test_an_upgraded_library_changes_the_digest(monkeypatch):
    before = notebooks.library_digest()
    monkeypatch.setattr(notebooks, "versions", lambda: {"torch": "0.1"})
    assert notebooks.library_digest() != before


# ----------------------------------------------------------------------------------------------------------- execution

SPY = """
import os, socket, urllib.request
print("threads", os.environ["OMP_NUM_THREADS"])
print("files", os.listdir("."), os.listdir(os.environ["CNNLIB_DATA"]))
try:
    urllib.request.urlopen("http://example.org", timeout=3)
except OSError as error:
    print("network", "refused" in str(error))
"""


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """Three lectures executed together under `smoke`, the second of which fails; then all again."""
    folder = tmp_path_factory.mktemp("book")
    out = folder / "out"
    paths = [
        saved(folder, "spy", lecture("print('epochs', epochs, name)", SPY, profiles={"smoke": {"epochs": 1}})),
        saved(folder, "broken", lecture("fine = 1", "1 / (fine - 1)", "print('never')")),
        saved(folder, "last", lecture("print('still executed')")),
    ]
    before = {path: path.read_bytes() for path in paths}
    told: list[str] = []
    runs = notebooks.run(paths, "smoke", out, say=told.append)
    again_told: list[str] = []
    again = notebooks.run(paths, "smoke", out, say=again_told.append)
    return {
        "out": out,
        "paths": paths,
        "before": before,
        "runs": runs,
        "told": told,
        "again": again,
        "again_told": again_told,
    }


def test_a_profile_reaches_the_cells_and_the_sources_stay_as_they_are(executed):
    assert "epochs 1 mini" in printed(notebooks.read(executed["out"] / "spy.ipynb"))
    assert {path: path.read_bytes() for path in executed["paths"]} == executed["before"]


def test_a_page_has_one_thread_no_files_and_no_network(executed):
    said = printed(notebooks.read(executed["out"] / "spy.ipynb"))
    assert "threads 1" in said
    assert "files [] []" in said
    assert "network True" in said


def test_a_lecture_that_fails_is_named_with_cell_and_traceback_while_the_others_go_on(executed):
    spy, broken, last = executed["runs"]
    assert (spy.ok, broken.ok, last.ok) == (True, False, True)
    assert "In [3]" in broken.error
    assert "ZeroDivisionError" in broken.error
    assert "1 / (fine - 1)" in broken.error
    assert any(line.startswith("broken: FAILED") and "1 / (fine - 1)" in line for line in executed["told"])
    assert "still executed" in printed(notebooks.read(executed["out"] / "last.ipynb"))


def test_a_lecture_that_fails_leaves_no_page_behind(executed):
    assert sorted(path.name for path in executed["out"].iterdir()) == ["last.ipynb", "spy.ipynb"]


def test_a_second_run_executes_only_what_failed(executed):
    assert [run.reused for run in executed["again"]] == [True, False, True]
    assert any(line.startswith("spy: unchanged") for line in executed["again_told"])


def test_an_executed_copy_says_when_where_and_with_what_it_was_made(executed):
    run = notebooks.recorded(executed["out"] / "spy.ipynb")
    assert run == executed["runs"][0]
    assert run.seconds > 0
    assert run.cells == 3
    assert run.started.endswith("+00:00")
    assert run.versions["python"].split(".") == [str(part) for part in sys.version_info[:3]]
    assert os.uname().nodename not in run.machine


@pytest.mark.slow
def test_an_interrupt_ends_the_kernels_too(tmp_path):
    written = tmp_path / "pid"
    path = saved(
        tmp_path,
        "long",
        lecture(f"import os, time; open({str(written)!r}, 'w').write(str(os.getpid())); time.sleep(600)"),
    )
    command = [sys.executable, "-m", "cnnlib", "run", str(path), "--out", str(tmp_path / "out")]

    def listen():  # tests that a shell runs in its background inherit deafness to Ctrl-C
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, preexec_fn=listen, **pipes) as process:
        deadline = time.monotonic() + 120
        while not written.exists() or not written.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.strip().endswith("stopped")
    assert "Traceback" not in said
    with pytest.raises(ProcessLookupError):
        os.kill(int(written.read_text()), 0)


def test_an_older_page_is_not_shown_for_a_lecture_that_now_fails(tmp_path):
    out = tmp_path / "out"
    path = saved(tmp_path, "page", lecture("print('old result')"))
    notebooks.run([path], "page", out, say=lambda _: None)
    assert "old result" in (out / "page.ipynb").read_text()
    saved(tmp_path, "page", lecture("import os; os.write(2, b'last words'); os._exit(1)"))
    (run,) = notebooks.run([path], "page", out, say=lambda _: None)
    assert "the kernel died in cell In [2]" in run.error
    assert "last words" in run.error
    assert not (out / "page.ipynb").exists()


# ---------------------------------------------------------------------------------------------- outputs in normal form


@pytest.fixture
def committed(tmp_path):
    sources = [
        "print('a')\nprint('b')",
        "import sys; sys.stdout.flush(); print('x', end='\\r'); print('y'); print(object())",
        "object()",
    ]
    return saved(tmp_path, "page", lecture(*sources))


def test_refreshing_twice_leaves_every_byte(committed):
    said: list[str] = []
    assert notebooks.refresh([committed], say=said.append) == ["page"]
    first = committed.read_bytes()
    assert notebooks.refresh([committed], say=said.append) == []
    assert committed.read_bytes() == first
    outputs = [o for c in json.loads(first)["cells"] if c["cell_type"] == "code" for o in c["outputs"]]
    assert ["".join(o["text"]) for o in outputs if "text" in o] == ["a\nb\n", "y\n<object object at 0x...>\n"]
    assert b"papermill" not in first
    assert b"execution" not in first.replace(b"execution_count", b"")


def test_check_writes_nothing_and_names_what_would_change(committed):
    before = committed.read_bytes()
    assert notebooks.refresh([committed], check=True, say=lambda _: None) == ["page"]
    assert committed.read_bytes() == before


def test_a_notebook_that_fails_keeps_its_bytes_and_the_others_are_refreshed(tmp_path, committed):
    bad = saved(tmp_path, "bad", lecture("raise RuntimeError('no')"))
    before = bad.read_bytes()
    said: list[str] = []
    with pytest.raises(ValueError, match="not refreshed, see above: bad"):
        notebooks.refresh([bad, committed], say=said.append)
    assert bad.read_bytes() == before
    assert "RuntimeError: no" in "\n".join(said)
    assert b'"a\\n"' in committed.read_bytes()


def test_a_notebook_above_two_megabytes_is_refused_and_its_fat_cell_named():
    notebook = lecture("1", "2")
    fat = copy.deepcopy(notebook)
    for cell in fat.cells[1:]:
        cell.execution_count = 1
    fat.cells[3].outputs = [nbformat.v4.new_output("stream", text="x" * 2_100_000)]
    with pytest.raises(ValueError, match=r"takes 2\.1 MB and may take 2; cell 3 \(c3\) alone takes 2\.1 MB"):
        notebooks.normalised(notebook, fat)


def test_the_set_up_cell_stands_once_and_names_the_repository():
    notebook = lecture("1")
    once = notebooks.with_setup_cell(copy.deepcopy(notebook))
    twice = notebooks.with_setup_cell(copy.deepcopy(once))
    assert once == twice
    assert [notebooks.tags(cell) for cell in once.cells][1] == ["setup", "remove-cell"]
    assert f"%pip install -q git+{notebooks.repository_url()}" in once.cells[1].source
    assert once.cells[1].source.count("%") == 1
    stale = copy.deepcopy(once)
    stale.cells[1].source = "%pip install elsewhere"
    assert notebooks.with_setup_cell(stale) == once


def test_cells_without_an_id_or_with_a_doubled_one_get_their_own():
    notebook = lecture("1", "2")
    notebook.cells[2].id = notebook.cells[3].id = "same"
    del notebook.cells[0]["id"]
    ids = [cell.id for cell in notebooks.with_setup_cell(notebook).cells]
    assert len(set(ids)) == len(ids)
    assert "same" in ids


@given(st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), st.text(max_size=20)), max_size=8))
def test_streams_are_joined_in_order_and_normal_form_is_its_own(parts):
    outputs = [nbformat.v4.new_output("stream", name=name, text=said) for name, said in parts]
    joined = notebooks.normal_outputs(outputs)
    assert all(a.name != b.name for a, b in pairwise(joined))
    assert notebooks.normal_outputs(joined) == joined
    for name in ("stdout", "stderr"):
        whole = "".join(said for stream, said in parts if stream == name)
        if "\r" not in whole and " at 0x" not in whole:
            assert "".join(o.text for o in joined if o.name == name) == whole


# ------------------------------------------------------------------------------------- stored outputs against fresh ones


def drawn(shade: int, tags=()):
    notebook = lecture(code("draw()", metadata={"tags": list(tags)}), "print(1)")
    for number, cell in enumerate(notebook.cells[1:], 1):
        cell.execution_count = number
    data = {"image/png": png(shade), "text/plain": "<Figure>"}
    notebook.cells[2].outputs = [nbformat.v4.new_output("display_data", data=data)]
    notebook.cells[3].outputs = [nbformat.v4.new_output("stream", text="1\n")]
    return notebook


def test_equal_outputs_have_no_differences():
    assert notebooks.differences(drawn(0), drawn(0)) == []


def test_one_changed_shade_is_a_difference():
    (said,) = notebooks.differences(drawn(0), drawn(1))
    assert "code cell 1 (c2): its image/png differs in 100.0% of the pixels" in said


def test_a_picture_of_another_size_is_a_difference():
    new = drawn(0)
    new.cells[2].outputs[0].data["image/png"] = png(0, size=5)
    assert "is 4x4 pixels, drawn now 5x5" in notebooks.differences(drawn(0), new)[0]


@pytest.mark.parametrize("tags", [(), ("nbval-ignore-output",)])
@pytest.mark.parametrize("junk", ["anVuaw==", "", "not base64 at all"])
def test_junk_in_place_of_a_picture_is_a_difference_everywhere(tags, junk):
    old = drawn(0, tags)
    old.cells[2].outputs[0].data["image/png"] = junk
    assert "is no picture" in notebooks.differences(old, drawn(0, tags))[0]


@pytest.mark.parametrize("tags", [(), ("nbval-ignore-output",)])
def test_a_deleted_output_is_a_difference_everywhere(tags):
    old = drawn(0, tags)
    old.cells[2].outputs = []
    assert (
        "stores nothing, executed now it gives ['image/png+text/plain']"
        in notebooks.differences(old, drawn(0, tags))[0]
    )
    old = drawn(0, tags)
    del old.cells[2].outputs[0].data["image/png"]
    assert "stores ['text/plain']" in notebooks.differences(old, drawn(0, tags))[0]


def test_what_was_trained_live_may_look_different():
    assert notebooks.differences(drawn(0, ["nbval-ignore-output"]), drawn(9, ["nbval-ignore-output"])) == []


def test_a_cell_that_was_not_executed_is_a_difference():
    old = drawn(0)
    old.cells[3].execution_count, old.cells[3].outputs = None, []
    assert "code cell 2 (c3) was not executed" in notebooks.differences(old, drawn(0))[0]


def test_other_cells_are_a_difference():
    new = drawn(0)
    new.cells[3].source = "print(2)"
    assert "has other cells" in notebooks.differences(drawn(0), new)[0]


# ------------------------------------------------------------------------------------------------- the form of a lecture


def test_a_good_lecture_has_no_faults():
    assert notebooks.faults(notebooks.with_setup_cell(lecture("x = 1\nx"))) == []


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("%matplotlib inline", "a magic or shell command"),
        ("!pip install cnnlib", "a magic or shell command"),
        ("def f():\n    pass", "a def or class outside"),
        ("class Net:\n    pass", "a def or class outside"),
        ("import warnings\nwarnings.filterwarnings('ignore')", "it hides warnings"),
        ("open('/home/me/x')", "an absolute or ../ path"),
        ("open('../x')", "an absolute or ../ path"),
    ],
)
def test_a_cell_that_breaks_the_form_is_named(cell, said):
    (fault,) = notebooks.faults(lecture("1", cell))
    assert fault.startswith("cell 3 (c3): ")
    assert said in fault


def test_an_exercise_may_define_a_function():
    assert notebooks.faults(lecture(code("def f():\n    pass", metadata={"tags": ["exercise"]}))) == []


def test_a_figure_needs_alt_text_and_nothing_may_reach_stderr():
    notebook = drawn(0)
    assert "without alt text" in notebooks.faults(notebook)[0]
    notebook.cells[2].metadata["mystnb"] = {"image": {"alt": "A black square."}}
    assert notebooks.faults(notebook) == []
    notebook.cells[3].outputs[0].name = "stderr"
    assert "written to stderr" in notebooks.faults(notebook)[0]


def test_a_live_widget_may_not_be_stored():
    notebook = drawn(0)
    notebook.cells[2].outputs[0].data = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}}
    assert "a live widget" in notebooks.faults(notebook)[0]


def test_numbers_of_pixels_are_compared_with_their_alpha():
    assert notebooks._pixels(png(3)).shape == (4, 4, 4)
    assert np.array_equal(notebooks._pixels(png(3))[0, 0], [3, 0, 0, 255])


# ----------------------------------------------------------------------------------------------------- the command line


def command(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "cnnlib", *arguments], capture_output=True, text=True, cwd=cwd)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "lenat"], "no lecture 'lenat'"),
        (["run", "nowhere.ipynb"], "there is no notebook nowhere.ipynb"),
        (["run", "--profile", "pages"], "invalid choice: 'pages'"),
        (["run", "--jobs", "0"], "a whole number of at least 1, got '0'"),
        (["table", "lenet6"], "no model 'lenet6'; did you mean 'lenet5'"),
        (["table", "lenet5", "--input", "32x32"], "written CxHxW, such as 3x224x224; got '32x32'"),
        (["zoos"], "invalid choice: 'zoos'"),
        ([], "required: COMMAND"),
    ],
)
def test_a_wrong_question_gets_one_sentence_and_exit_code_2(arguments, said):
    answer = command(*arguments)
    assert answer.returncode == 2
    assert said in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1
    assert answer.stdout == ""


def test_run_names_the_failed_lecture_and_leaves_with_1(tmp_path):
    good, bad = saved(tmp_path, "good", lecture("1")), saved(tmp_path, "bad", lecture("1 / 0"))
    answer = command("run", str(good), str(bad), "--out", str(tmp_path / "out"))
    assert answer.returncode == 1
    assert "ZeroDivisionError" in answer.stdout
    assert "1 of 2 executed" in answer.stdout
    assert "failed: bad" in answer.stdout


def test_run_refuses_to_write_over_its_sources(tmp_path):
    path = saved(tmp_path, "page", lecture("1"))
    answer = command("run", str(path), "--out", str(tmp_path))
    assert answer.returncode == 2
    assert "is where the sources lie" in answer.stderr


def test_tables_can_be_read_by_programs():
    from cnnlib import list_models

    zoo = json.loads(command("zoo", "--json").stdout)
    assert [row["name"] for row in zoo] == list_models()
    assert zoo[0]["input_shape"] == [1, 32, 32]
    assert "lenet5_1998" in command("zoo").stdout
