"""Numbers in prose: found, computed again, and refused when they are off by one printed digit."""

from __future__ import annotations

import nbformat
import pytest

from cnnlib import ledger, pages
from cnnlib.paths import checkout

BOOK = (checkout() or pytest.skip("the pages are in a checkout", allow_module_level=True)) / "book"
PAGES = sorted([*BOOK.glob("*.ipynb"), *BOOK.glob("*.md")])


def prose(path) -> str:
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    notebook = nbformat.read(path, as_version=4)
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_every_sourced_number_of_a_page_is_what_its_source_gives(path):
    wrong = []
    for number in pages.numbers(prose(path)):
        if not pages.agrees(number):
            wrong.append(f"{number.text!r} from {number.kind} {number.source}, which gives {pages.value_of(number)}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_no_number_of_a_page_stands_without_a_source(path):
    assert pages.bare_numbers(prose(path)) == []


@pytest.mark.parametrize(
    ("text", "right"),
    [("60,000", True), ("60,001", False), ("60000", True), ("59,999", False), ("60 thousand", False)],
)
def test_a_printed_number_agrees_to_its_last_digit(text, right):
    (number,) = pages.numbers(f'has <span data-ref="lenet5_1998.params">{text}</span> parameters')
    assert pages.agrees(number) is right


@pytest.mark.parametrize(
    ("text", "right"), [("0.95", True), ("1.0", True), ("0.9", True), ("0.96", False), ("1", True)]
)
def test_a_rounded_number_agrees_at_the_printed_precision(text, right):
    assert pages.agrees(pages.Number(text, "ref", "lenet5_1998.test_error")) is right


def test_an_unknown_source_names_the_step_that_is_missing():
    with pytest.raises(ValueError, match=r"'parms'.*params"):
        pages.value_of(pages.Number("1", "ref", "lenet5_1998.parms"))


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_no_calculation_starts_from_a_copied_result(path):
    copied = {n.source: pages.typed_numbers(n.source) for n in pages.numbers(prose(path)) if n.kind == "calc"}
    assert not {source: numbers for source, numbers in copied.items() if numbers}


@pytest.mark.parametrize(
    ("source", "copied"),
    [
        ("100 * 48120 / 60000", [48120, 60000]),
        ("resnet50.macs / 10 ** 9", []),
        ("5 / 1e9 + 10000 * 65536 - 1e10", []),
        ("4089184256 - 3857973248", [3857973248, 4089184256]),
    ],
)
def test_a_copied_result_is_told_from_a_unit(source, copied):
    assert pages.typed_numbers(source) == copied


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("6 * 28 * 28", 4704),
        ("(1 + 3) / 2 ** 2 - 1", 0),
        ("resnet50_v1_5.macs - resnet50.macs", 231211008),
        ("100 * parameters_of(model='vgg_d', kind='Linear') / 123642856", 100),
    ],
)
def test_arithmetic_is_done_again(source, value):
    assert pages.value_of(pages.Number("1", "calc", source)) == value


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("1 + exit()", "no check 'exit'"),
        ("1 + os.system", "'os'"),
        ("-(1)", r"and brackets only, got '-1'"),
        ("lenet5.parms / 2", "'parms'.*params"),
    ],
)
def test_arithmetic_takes_numbers_figures_and_checks_only(source, message):
    with pytest.raises(ValueError, match=message):
        pages.value_of(pages.Number("1", "calc", source))


def test_a_span_without_a_number_is_an_error():
    with pytest.raises(ValueError, match="'many' has no number in it"):
        pages.agrees(pages.Number("many", "ref", "lenet5_1998.params"))


def test_years_code_mathematics_links_and_sourced_numbers_are_not_bare():
    text = (
        "In 1998, `build(12345)` and $x = 4704$ gave [a figure](page.md#n-999) of 5 by 5, "
        '<span data-ref="lenet5_1998.params">60,000</span>; arXiv:1512.03385.'
    )
    assert pages.bare_numbers(text) == []


@pytest.mark.parametrize(
    ("text", "bare"), [("has 60,000 weights", "60,000"), ("an error of 0.95 %", "0.95"), ("all 784", "784")]
)
def test_a_number_that_names_no_source_is_found(text, bare):
    assert pages.bare_numbers(text) == [bare]


def test_source_is_shown_as_it_stands_in_the_package():
    from cnnlib.models import lenet

    shown = pages.show_source(lenet.Subsampling).data
    assert shown.startswith("```python\nclass Subsampling(nn.Module):")
    assert "return self.coefficient * window_sum + self.bias" in shown


def test_the_table_of_claims_has_every_row_of_the_page_in_it_or_above_it():
    table = pages.claims_told("lenet")
    rows = [claim for claim in ledger.load().claims.values() if claim.page == "lenet"]
    assert rows
    assert sorted([*table.right, *(told.id for told in table.told)]) == sorted(claim.id for claim in rows)
    (told,) = (told for told in table.told if told.id == "A-005")
    assert (told.judged, told.found) == ("not exact", "confirmed")
    for shown in (repr(table), table._repr_html_()):
        assert all(claim.id in shown for claim in rows)
    assert told.right.split()[0] in repr(table)


def test_what_lectures_say_is_text_in_the_table_of_claims():
    row = pages.Told("X-001", "a < b & c", "wrong", "refuted", "b <= a", "")
    assert "a &lt; b &amp; c" in pages.ClaimsTold("x", (), (row,))._repr_html_()


def test_a_page_without_claims_is_refused():
    with pytest.raises(ValueError, match="no page that tells claims 'lenett'; did you mean 'lenet'"):
        pages.claims_told("lenett")
