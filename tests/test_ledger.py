"""The ledger of claims: its rows hold, what is wrong in it is named, and no check ignores what it is asked."""

from __future__ import annotations

import inspect
import itertools
import json
import re
from pathlib import Path

import pytest
import yaml

from cnnlib import checks, ledger, published
from cnnlib.models import zoo
from cnnlib.paths import checkout, data_dir

CLAIMS = data_dir() / "claims.yml"
RAW = yaml.safe_load(CLAIMS.read_text(encoding="utf-8"))
BOOK = ledger.load()
LETTERS = {"A": 108, "B": 91, "C": 36, "D": 88, "E": 118}  # claims of each lecture, numbered without gaps

ROW = {
    "id": "A-001", "kind": "number", "claim": "two 3x3 see 5x5", "said": "5", "verdict": "OK", "right": "5",
    "method": "compute", "check": "receptive_field_of_stack", "with": {"kernels": [3, 3]}, "expect": {"value": 5},
    "said_value": 5,
}  # fmt: skip


def written(tmp_path: Path, *rows: dict) -> Path:
    path = tmp_path / "claims.yml"
    lectures = {letter: {"title": f"lecture {letter}", "by": "someone"} for letter in LETTERS}
    path.write_text(yaml.safe_dump({"lectures": lectures, "claims": list(rows)}), encoding="utf-8")
    return path


def judged(tmp_path: Path, **changed: object) -> ledger.Verdict:
    row = {field: value for field, value in (ROW | changed).items() if value is not None}
    (verdict,) = ledger.check_all(path=written(tmp_path, row))
    return verdict


@pytest.fixture(scope="module")
def verdicts() -> dict[str, ledger.Verdict]:
    return {verdict.id: verdict for verdict in ledger.check_all()}


# --- the rows ----------------------------------------------------------------------------------------------------


def test_every_claim_of_the_five_lectures_has_its_row():
    expected = [f"{letter}-{n:03d}" for letter, count in LETTERS.items() for n in range(1, count + 1)]
    assert list(BOOK.claims) == expected
    assert list(BOOK.lectures) == list(LETTERS)


@pytest.mark.slow
def test_every_row_with_a_check_holds(verdicts):
    assert [str(verdict) for verdict in verdicts.values() if verdict.failed] == []
    assert ledger.exit_status(verdicts.values()) == 0


@pytest.mark.slow
def test_rows_without_a_check_say_so_and_no_others_do(verdicts):
    unchecked = {id for id, verdict in verdicts.items() if verdict.status == ledger.NOT_YET_CHECKED}
    assert unchecked == {id for id, claim in BOOK.claims.items() if claim.check is None}
    assert unchecked
    assert all(verdicts[id].found is None for id in unchecked)


@pytest.mark.slow
def test_a_recalled_source_never_confirms_a_claim(verdicts):
    recalled = [
        c
        for c in BOOK.claims.values()
        if c.check and c.check.function == "cited" and c.check.expect.trust == "recalled"
    ]
    assert recalled
    for claim in recalled:
        assert verdicts[claim.id].status in (ledger.RECALLED, ledger.RECALLED_OTHERWISE)
        assert "recalled" in verdicts[claim.id].message


@pytest.mark.slow
def test_the_summaries_count_every_row_once(verdicts):
    for by in ("status", "lecture_verdict"):
        summary = ledger.summary(verdicts.values(), by=by)
        assert {letter: sum(counts.values()) for letter, counts in summary.by_lecture.items()} == LETTERS
        assert summary.rows()[-1] == ["all", "", *LETTERS.values(), sum(LETTERS.values())]
    assert json.loads(ledger.to_json(verdicts.values()))[0]["id"] == "A-001"


@pytest.mark.parametrize("id", [id for id, claim in BOOK.claims.items() if claim.page == "lenet"])
def test_every_row_about_lenet_is_checked(id):
    assert BOOK.claims[id].check is not None


def test_rows_that_are_not_right_say_why_one_says_it_and_what_is_right():
    wrong = [claim for claim in BOOK.claims.values() if claim.verdict not in ("OK", "OK-COND", "FIG")]
    assert {claim.verdict for claim in wrong} == {"WRONG", "IMPRECISE", "INCONSISTENT", "DATED", "UNSOURCED"}
    assert [claim.id for claim in wrong if not claim.why.strip() or len(claim.right) < 4] == []


@pytest.mark.parametrize("method", ["build", "compute"])
def test_every_row_that_is_to_be_built_or_computed_is_checked(method):
    rows = [claim for claim in BOOK.claims.values() if method in claim.method]
    assert rows
    assert [claim.id for claim in rows if {check.function for check in _checks(claim)} <= {"cited"}] == []


def test_pages_that_rows_name_exist():
    root = checkout() or pytest.skip("the pages are in a checkout")
    pages = {path.stem for path in (root / "book").glob("*.ipynb")}
    assert {claim.page for claim in BOOK.claims.values() if claim.page} - {"lenet"} <= pages


def test_numbers_with_thousands_in_checked_rows_are_those_that_were_found():
    """A count of seven digits and more in the prose of a row is an expected value of that row, or of one it refers to."""
    numbers = {n for claim in BOOK.claims.values() for check in _checks(claim) for n in _numbers(check.expect.value)}
    missing = [
        f"{claim.id}: {text}" for claim in BOOK.claims.values() if claim.check
        for text in re.findall(r"(?<![\d,])\d{1,3}(?:,\d{3}){2,3}(?![\d,])", claim.right) if int(text.replace(",", "")) not in numbers
    ]  # fmt: skip
    assert missing == []


def _checks(claim):
    return [check for check in (claim.check, *claim.also) if check is not None]


def _numbers(value):
    if isinstance(value, list):
        return [n for one in value for n in _numbers(one)]
    return [value] if isinstance(value, int | float) else []


# --- what is wrong is named --------------------------------------------------------------------------------------


@pytest.mark.parametrize("id", ["A-007", "A-041", "B-074", "D-040", "E-047"])
def test_a_wrong_expectation_fails_and_names_its_row(tmp_path, id):
    raw = yaml.safe_load(CLAIMS.read_text(encoding="utf-8"))
    row = next(row for row in raw["claims"] if row["id"] == id)
    found = BOOK.claims[id].check.expect.value
    row["expect"] = {"value": [n + 1 for n in found] if isinstance(found, list) else found + 1}
    path = tmp_path / "claims.yml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    (verdict,) = ledger.check_all([id], path=path)
    assert verdict.status == ledger.DIFFERS
    assert verdict.failed
    assert verdict.message.startswith(f"{id}: ")
    assert ledger.exit_status([verdict]) == 1


def test_a_wrong_further_number_fails_and_says_which(tmp_path):
    also = [
        {
            "what": "three layers",
            "check": "receptive_field_of_stack",
            "with": {"kernels": [3, 3, 3]},
            "expect": {"value": 8},
        }
    ]
    verdict = judged(tmp_path, also=also)
    assert verdict.status == ledger.DIFFERS
    assert verdict.message == "A-001 (three layers): receptive_field_of_stack finds 7, the ledger expects 8"


@pytest.mark.parametrize(("verdict", "said"), [("OK", 6), ("WRONG", 5)])
def test_a_verdict_that_does_not_follow_from_the_numbers_fails(tmp_path, verdict, said):
    found = judged(tmp_path, verdict=verdict, said_value=said)
    assert found.status == ledger.CONTRADICTS
    assert found.message.startswith(f"A-001: the verdict is {verdict}, but the lecture's {said} ")


def test_a_check_that_breaks_is_a_failure_with_its_reason(tmp_path):
    verdict = judged(tmp_path, check="output_size", **{"with": {"size": 3, "kernel": 11}})
    assert verdict.status == ledger.ERROR
    assert verdict.message == (
        "A-001: output_size broke with ValueError: a window of 11 does not fit into 3 pixels with padding 0"
    )


def test_claims_that_ask_each_other_in_a_circle_fail(tmp_path):
    one = ROW | {"check": "ratio", "with": {"top": {"claim": "A-002"}, "bottom": 1}}
    two = ROW | {"id": "A-002", "check": "ratio", "with": {"top": {"claim": "A-001"}, "bottom": 1}}
    verdicts = list(ledger.check_all(path=written(tmp_path, one, two)))
    assert [verdict.status for verdict in verdicts] == [ledger.ERROR] * 2
    assert "A-001 -> A-002 -> A-001" in verdicts[0].message


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"expct": {}}, "A-001: no field of a claim 'expct'; did you mean 'expect'?"),
        ({"verdict": "WRNG"}, "A-001: no verdict 'WRNG'; "),
        ({"method": "compte"}, "A-001: no method 'compte'; did you mean 'compute'?"),
        ({"kind": "numbr"}, "A-001: no kind of claim 'numbr'; did you mean 'number'?"),
        ({"said": 5}, "A-001: said must be text, got 5; put it in quotes"),
        ({"right": None}, "A-001: the field 'right' is missing"),
        ({"id": "F-001"}, "F-001: an id is a lecture's letter (A, B, C, D, E), a dash and three digits; got 'F-001'"),
        ({"id": None}, "row 1: every claim needs an id such as A-001"),
        ({"check": "receptive_field_of_stac"}, "A-001: no check 'receptive_field_of_stac'; did you mean 'receptive_field_of_stack'?"),
        ({"check": "math"}, "A-001: no check 'math'; "),
        ({"with": {"kernel": [3]}}, "A-001: no argument of receptive_field_of_stack 'kernel'; did you mean 'kernels'?"),
        ({"with": {}}, "A-001: receptive_field_of_stack needs the argument 'kernels' under `with`"),
        ({"expect": None}, "A-001: `check: receptive_field_of_stack` needs `expect`: a value, or a ref into data/papers/"),
        ({"expect": {"value": 5, "ref": "lenet5.params"}}, "A-001: expect has either a value or a ref into data/papers/, got "),
        ({"expect": {"value": 5, "tolerence": 1}}, "A-001: no field of expect 'tolerence'; did you mean 'tolerance'?"),
        ({"expect": {"ref": "lenet5_1998.parms"}}, "A-001: no published figure 'parms'; did you mean 'params'?"),
        ({"expect": {"ref": "lenet5_1998.stages[c9].params"}}, "A-001: no row of lenet5_1998.stages 'c9'; "),
        ({"expect": {"ref": "lenet5_1998"}}, "A-001: 'lenet5_1998' is a table, not a figure; go on with one of "),
        ({"check": "cited", "with": None}, "A-001: `check: cited` needs `expect: {ref: ...}`, a reference into data/papers/"),
        ({"check": "cited"}, "A-001: `check: cited` takes no `with`"),
        ({"check": None}, "A-001: 'with' says nothing without `check`"),
        ({"verdict": "IMPRECISE", "said_value": None}, "A-001: a checked row of the verdict IMPRECISE needs said_value"),
        ({"said_means": "more"}, "A-001: no meaning of said_value 'more'; did you mean 'more than'?"),
        ({"check": "ratio", "with": {"top": {"claim": "A-999"}, "bottom": 1}}, "A-001: no claim 'A-999'; ids go from A-001 to A-001"),
    ],
)  # fmt: skip
def test_a_row_that_breaks_a_rule_is_named_with_the_rule_and_the_nearest_right_name(tmp_path, changed, message):
    row = {field: value for field, value in (ROW | changed).items() if value is not None}
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        ledger.load(written(tmp_path, row))
    assert str(caught.value).startswith("claims.yml, ")


def test_an_id_that_stands_twice_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"claims.yml, A-001: the id stands twice \(again in row 2\)"):
        ledger.load(written(tmp_path, ROW, ROW))


def test_another_top_key_and_a_missing_file_are_errors(tmp_path):
    path = tmp_path / "claims.yml"
    with pytest.raises(FileNotFoundError, match=r"no claims file at .*claims\.yml"):
        ledger.load(path)
    path.write_text("claims: []\nrows: []\n", encoding="utf-8")
    with pytest.raises(ValueError, match="exactly the top keys lectures and claims, got claims, rows"):
        ledger.load(path)


def test_an_unknown_id_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"no claim 'd-040'; did you mean 'D-040'\?"):
        ledger.check_all(["d-040"])
    with pytest.raises(ValueError, match="no claim 'seven'; ids go from A-001 to E-118"):
        ledger.value("seven")


def test_a_value_that_nobody_has_checked_is_refused():
    with pytest.raises(ValueError, match="A-001 is not yet checked; give it `check` and `expect`"):
        ledger.value("A-001")


# --- values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("id", "value"), [("A-007", 61706), ("A-008", 340908), ("A-041", 5), ("B-077", 13), ("A-006", 1989)]
)
def test_a_page_can_ask_for_the_number_of_a_claim(id, value):
    assert ledger.value(id) == value


@pytest.mark.parametrize(
    ("said", "within", "means", "agrees"),
    [(5, None, None, True), (5.2, None, None, False), (5.2, 0.05, None, True), (4, None, "more than", True),
     (5, None, "more than", False), (6, None, "less than", True)],
)  # fmt: skip
def test_what_was_said_agrees_as_far_as_the_row_allows(tmp_path, said, within, means, agrees):
    verdict = judged(tmp_path, verdict="OK-COND", said_value=said, said_within=within, said_means=means)
    assert verdict.status == (ledger.CONFIRMED if agrees else ledger.REFUTED)


@pytest.mark.parametrize(("said", "status"), [(18.2, ledger.CITED), (18.0, ledger.CITED_OTHERWISE)])
def test_a_cited_row_compares_what_was_said_with_the_table(tmp_path, said, status):
    verdict = judged(tmp_path, verdict="OK-COND", check="cited", said_value=said, **{"with": None},
                     expect={"ref": "vgg_table7[Krizhevsky 1 net].top5_val"})  # fmt: skip
    assert verdict.status == status
    assert verdict.message.startswith("Simonyan, Zisserman 2014, arXiv:1409.1556, table 7: 18.2 % error")


def test_the_message_says_by_how_much_a_lecture_is_off():
    (verdict,) = ledger.check_all(["D-040"])
    assert verdict.status == ledger.REFUTED
    assert verdict.message == "15,237,608 values; the lecture has 24,000,000, 58% too high"


def test_a_check_that_only_compares_published_figures_is_cited(tmp_path):
    errors = {"first": {"ref": "resnet_table2[34].plain"}, "second": {"ref": "resnet_table2[18].plain"}}
    verdict = judged(tmp_path, check="higher_or_lower", said_value=None, expect={"value": "higher"}, **{"with": errors})
    assert verdict.status == ledger.CITED
    assert verdict.message == "He et al. 2015, arXiv:1512.03385, table 2: higher"
    errors["second"] = 27.94
    verdict = judged(tmp_path, check="higher_or_lower", said_value=None, expect={"value": "higher"}, **{"with": errors})
    assert verdict.status == ledger.CONFIRMED


# --- equations, and blocks of the zoo ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "block", "right", "wrong"),
    [
        ("resnet34", "layer1.1", "relu(F(x) + x)", "relu(F(x))"),
        ("plain34", "layer1.1", "relu(F(x))", "relu(F(x) + x)"),
        ("resnet50", "layer1.1", "relu(F(x) + x)", "relu(F(x))"),
    ],
)
def test_a_block_follows_its_own_equation_and_no_other(model, block, right, wrong):
    assert checks.against_equation(model, block, right) < 1e-12
    assert checks.against_equation(model, block, wrong) > 0.1


def test_no_grouped_block_is_the_sum_of_some_of_its_paths():
    for form in ("sum", "concatenate"):
        assert checks.grouped_against_paths(form) < 1e-10
        assert all(checks.grouped_against_paths(form, paths) > 0.1 for paths in (1, 16, 31))


def test_a_budget_holds_its_own_network_and_no_larger_one():
    assert checks.networks_within("resnet20", 3) == 27
    assert checks.networks_within("resnet20", 4) < 64
    assert checks.networks_within("resnet56", 9) == 9**3


def test_parts_and_equations_that_do_not_exist_are_named():
    with pytest.raises(ValueError, match="no part of resnet34 'layer9'"):
        checks.block_steps("resnet34", "layer9")
    with pytest.raises(ValueError, match="one way only: it adds and concatenates nothing"):
        checks.ways("plain20", "layer1.0")
    with pytest.raises(ValueError, match=r"no equation 'F\(x\)'"):
        checks.against_equation("resnet34", "layer1.1", "F(x)")


# --- the published tables ----------------------------------------------------------------------------------------


def _figures(table, path):
    if isinstance(table, dict):
        if "value" in table:
            yield path
        elif not {"columns", "rows"} <= set(table):
            for name, inner in table.items():
                yield from _figures(inner, f"{path}.{name}")


def test_every_published_figure_says_how_it_was_read():
    refs = [ref for name, table in zoo.papers().items() for ref in _figures(table, name) if "[" not in ref]
    assert len(refs) > 100
    assert {published.find(ref).check for ref in refs} <= set(published.TRUST)


def test_vggs_table_in_words_is_the_network_that_the_zoo_builds():
    for letter in "ABCDE":
        assert checks.table_parameters(f"vgg_table1.{letter}") == checks.parameters(f"vgg_{letter.lower()}")
        assert checks.table_macs(f"vgg_table1.{letter}") == checks.macs(f"vgg_{letter.lower()}")


@pytest.mark.parametrize(("letter", "name"), [("A", "vgg11"), ("B", "vgg13"), ("D", "vgg16"), ("E", "vgg19")])
def test_vggs_table_in_words_is_torchvisions_network(letter, name):
    import torch
    import torchvision

    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
    assert checks.table_parameters(f"vgg_table1.{letter}") == sum(p.numel() for p in model.parameters())
    shapes = []
    for module in model.features:
        if isinstance(module, torch.nn.Conv2d | torch.nn.MaxPool2d):
            module.register_forward_hook(lambda _module, _args, out: shapes.append(list(out.shape[1:])))
    with torch.no_grad():
        model.eval()(torch.empty(1, 3, 224, 224, device="meta"))
    kinds = ("conv", "pool")
    assert shapes == [list(row.shape) for row in checks._some(f"vgg_table1.{letter}", kinds)]


def test_alexnets_and_googlenets_tables_are_the_networks_that_the_zoo_builds():
    assert checks.table_parameters("alexnet_layers") == checks.parameters("alexnet")
    assert checks.table_macs("alexnet_layers") == checks.macs("alexnet")
    assert checks.googlenet_parameters() == checks.parameters("googlenet", {"aux_logits": False})
    assert checks.googlenet_parameters(heads=["4a", "4d"]) == checks.parameters("googlenet")
    assert checks.googlenet_macs() == checks.macs("googlenet")


# --- no check ignores what it is asked ---------------------------------------------------------------------------


def _calls(argument):
    """Every call that stands in the ledger, as (function, arguments), arguments that ask for something filled in."""
    if isinstance(argument, dict):
        if argument.get("check") in ledger.functions():
            yield argument["check"], argument.get("with", {})
        for inner in argument.values():
            yield from _calls(inner)
    elif isinstance(argument, list):
        for inner in argument:
            yield from _calls(inner)


def _plain(arguments):
    return {name: BOOK._argument(value, ()) for name, value in arguments.items()}


CALLS: dict[str, list[dict]] = {}
for _name, _arguments in _calls(RAW["claims"]):
    CALLS.setdefault(_name, []).append(_arguments)


# Values that differ from those of the rows, for functions that one row alone calls.
CONTRASTS = {
    "googlenet_macs": {"rows": ["3a"]},
    "stage_shape": {"stage": "c1"},
    "table_macs": {"net": "vgg_table1.A"},
    "pointwise_against_linear": {"kernel": 3},
    "grouped_against_paths": {"paths": 16},
    "gate_at_start": {"gate_bias": -4.0},
    "parts_ratio": {"over": "conv1"},
    "ways": {"block": "block5"},
    "block_steps": {"block": "block2"},
    "differing": {"b": "plain18"},
    "blocks_that_refine": {"images": 2},
}


def _others(name, argument, value):
    """Other values for one argument: those of other rows first, then small changes of this one."""
    if argument in CONTRASTS.get(name, {}):
        yield CONTRASTS[name][argument]
    for arguments in CALLS[name]:
        if argument in arguments and arguments[argument] != value:
            yield arguments[argument]
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield value + 1
        yield -value
    elif isinstance(value, list) and value:
        yield value[:-1]
        yield [value[0], *value]
        for other in _others(name, argument, value[0]):
            if not isinstance(other, list):
                yield [other, *value[1:]]
    elif isinstance(value, str):
        yield from (
            "lenet5_1998",
            "alexnet",
            "densenet121",
            "resnet50",
            "googlenet",
            "conv1",
            "pool1",
            "ceil",
            "Linear",
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CALLS))
def test_no_check_ignores_its_arguments(name):
    arguments = min(CALLS[name], key=lambda arguments: len(str(arguments)))
    signature = inspect.signature(getattr(checks, name)).parameters
    defaults = {p.name: p.default for p in signature.values() if p.default not in (p.empty, None, "", ())}
    contrasted = {
        a: signature[a].default for a in CONTRASTS.get(name, {}) if signature[a].default is not inspect.Parameter.empty
    }
    full = defaults | contrasted | _plain(arguments)
    if not signature:
        return
    function, before = getattr(checks, name), getattr(checks, name)(**full)
    for argument, value in full.items():
        for other in itertools.islice(_others(name, argument, value), 12):
            try:
                after = function(**(full | {argument: BOOK._argument(other, ())}))
            except Exception:  # a value that the function refuses says nothing here
                continue
            if after != before:
                return
    pytest.fail(f"{name} gives {before} whatever its arguments are")


def test_every_check_is_used_by_a_row_or_a_page():
    prose = "".join(path.read_text(encoding="utf-8") for path in (checkout() / "book").glob("*.ipynb"))
    told = {
        name for call in re.findall(r'data-(?:check|calc)=\\"([^"]*)"', prose) for name in re.findall(r"(\w+)\(", call)
    }
    assert set(ledger.functions()) - set(CALLS) - told == set()


def test_checks_without_arguments_read_the_table(monkeypatch):
    bare = [name for name in CALLS if not inspect.signature(getattr(checks, name)).parameters]
    assert bare == ["inception_widths"]
    before = checks.inception_widths()
    true_rows = published.rows

    def doubled(table):
        return [row | ({"conv5": 2 * row["conv5"]} if row.get("conv5") else {}) for row in true_rows(table)]

    checks._googlenet.cache_clear()
    monkeypatch.setattr(published, "rows", doubled)
    try:
        assert all(after > width for after, width in zip(checks.inception_widths(), before))
    finally:
        monkeypatch.undo()
        checks._googlenet.cache_clear()
    assert checks.inception_widths() == before


# --- the page ----------------------------------------------------------------------------------------------------


def test_the_explorer_holds_every_row_and_leaves_nothing_to_a_server():
    from cnnlib.explorers import explore_claims

    some = list(ledger.check_all(["A-007", "A-041", "D-040", "E-108"]))
    html = explore_claims(some)._repr_html_()
    assert re.findall(r'<tr id="([A-E]-\d{3})"', html) == ["A-007", "A-041", "D-040", "E-108"]
    assert "15,237,608" in html
    assert "not yet checked" in html
    assert "Stanford" in BOOK.lectures["D"].by
    assert "http" not in html
    assert html == explore_claims(some)._repr_html_()


def test_every_control_of_the_explorer_has_a_label():
    from cnnlib.explorers import explore_claims

    html = explore_claims(list(ledger.check_all(["A-041"])))._repr_html_()
    controls = re.findall(r'<(?:select|input)[^>]* id="([^"]+)"', html)
    assert len(controls) == 4
    assert [f'for="{control}"' in html for control in controls] == [True] * 4
