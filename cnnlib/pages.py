"""What pages need besides figures: the tested source of a block, and numbers in prose that are checked.

A number in the prose of a page stands in a span that says where it comes from; a reader of the notebook sees the number
alone, a test computes it again:

    <span data-ref="lenet5_1998.params">60,000</span>              a published figure of data/papers/
    <span data-claim="A-007">61,706</span>                          what the check of a ledger row found
    <span data-check="output_size(size=32, kernel=5)">28</span>    a call of a function in cnnlib.checks
    <span data-calc="6 * 28 * 28">4,704</span>                      arithmetic, also with published figures and checks:
    <span data-calc="resnet50.macs / 1e9">3.86</span>
    <span data-calc="100 * parameters_of(model='vgg_d', kind='Linear') / vgg_d.params">89</span>
    <span data-record="lenet5-mnist.summary.test_accuracy_mean">99 %</span>   a figure of a recorded run
"""

from __future__ import annotations

import ast
import html
import inspect
import math
import operator
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cnnlib import published
from cnnlib.errors import unknown

_SPAN = re.compile(r'<span data-(ref|claim|check|calc|record)="([^"]*)">([^<]*)</span>')
_NUMBER = re.compile(r"-?\d[\d,\u202f ]*(?:\.\d+)?")


def show_source(*objects: Any) -> Any:
    """The source of functions or classes as highlighted Markdown, read from the installed package, never retyped."""
    from IPython.display import Markdown

    blocks = [inspect.getsource(o).rstrip() for o in objects]
    return Markdown("\n".join(f"```python\n{block}\n```" for block in blocks))


@dataclass(frozen=True)
class Told:
    """A claim of the lectures as a page tells it: what was said, how it is judged, what the code finds, what is right."""

    id: str
    said: str
    judged: str
    found: str
    right: str
    why: str


@dataclass(frozen=True, repr=False)
class ClaimsTold:
    """The claims of a page: `right` are the ids of those that hold as they stand, `told` the others."""

    page: str
    right: tuple[str, ...]
    told: tuple[Told, ...]

    def _above(self) -> str:
        number = len(self.right) + len(self.told)
        return f"{number} rows of the ledger belong to this page. Right as they stand, or figures redrawn here:"

    def __repr__(self) -> str:
        lines = [self._above(), textwrap.fill(", ".join(self.right) or "none", 84)]
        for row in self.told:
            said = f"{row.id}  {row.said} ({row.judged}; the code: {row.found})"
            rest = [f"right: {row.right}"] if row.right != "-" else []
            rest += [f"why: {row.why}"] if row.why else []
            lines += ["", textwrap.fill(said, 84, subsequent_indent="       ")]
            lines += [textwrap.fill(text, 84, initial_indent="       ", subsequent_indent="       ") for text in rest]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from html import escape

        def cell(label: str, text: str) -> str:
            return f'<td data-label="{label}" style="text-align:left;vertical-align:top">{escape(text)}</td>'

        labels = ("said", "judged", "what is right", "why people say it")
        head = "".join(f'<th scope="col" style="text-align:left">{label}</th>' for label in ("row", *labels))
        body = "".join(
            f'<tr><th scope="row" style="text-align:left;vertical-align:top;white-space:nowrap">{row.id}</th>'
            + "".join(map(cell, labels, (row.said, f"{row.judged}; {row.found}", row.right, row.why)))
            + "</tr>"
            for row in self.told
        )
        above = f"<p>{self._above()} {', '.join(self.right) or 'none'}.</p>"
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if self.told else ""
        return f'<div class="claims-told">{above}{table}</div>'


def claims_told(page: str) -> ClaimsTold:
    """What five lectures say of the subject of `page`, as a table to show: each claim that is not plainly right.

    Every claim of the page is checked while the table is made. ValueError for a page that tells no claim, RuntimeError
    where a check of the ledger fails.
    """
    from cnnlib import ledger

    rows = [claim for claim in ledger.load().claims.values() if claim.page == page]
    if not rows:
        pages = sorted({claim.page for claim in ledger.load().claims.values() if claim.page})
        raise unknown("page that tells claims", page, pages)
    verdicts = {verdict.id: verdict for verdict in ledger.check_all(claim.id for claim in rows)}
    for verdict in verdicts.values():
        if verdict.failed:
            raise RuntimeError(f"the ledger fails at {verdict.id}: {verdict.message}")
    right = [claim.id for claim in rows if claim.verdict in ("OK", "FIG")]
    told = [
        Told(
            claim.id,
            claim.claim if claim.said == "-" else f"{claim.claim}: {claim.said}",
            ledger.LECTURE_VERDICTS[claim.verdict],
            verdicts[claim.id].status,
            claim.right,
            claim.why,
        )
        for claim in rows
        if claim.id not in right
    ]
    return ClaimsTold(page, tuple(right), tuple(told))


@dataclass(frozen=True)
class Number:
    """A number of the prose: its text as printed, and the `kind` and `source` that it claims to come from."""

    text: str
    kind: str
    source: str


def numbers(markdown: str) -> Iterator[Number]:
    """Every number of `markdown` that names its source."""
    for kind, source, text in _SPAN.findall(markdown):
        yield Number(html.unescape(text), kind, html.unescape(source))


def bare_numbers(markdown: str) -> list[str]:
    """Numbers of three digits and more, or with decimals, that name no source (years, code, mathematics, links aside)."""
    for pattern in (
        r"```.*?```",
        r"`[^`]*`",
        r"\$\$.*?\$\$",
        r"\$[^$]*\$",
        r"<span data-[^>]*>[^<]*</span>",
        r"\]\([^)]*\)",
        r"\{[a-z:]+\}",
        r"<[^>]*>",
        r"^:[a-z-]+:.*$",
        r"^\([\w-]+\)=$",
        r"(?i)\b(?:arxiv|doi)[:\s]\S+",
        r"Python \d\.\d+",
    ):
        markdown = re.sub(pattern, " ", markdown, flags=re.S | re.M)
    found = re.findall(r"(?<![\w.-])(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![\w-])", markdown)
    return [n for n in found if ("." in n or len(n.replace(",", "")) >= 3) and not re.fullmatch(r"(19|20)\d\d", n)]


def value_of(number: Number) -> float:
    """The number's value, from the place that it names; an error says which place is not there."""
    if number.kind == "ref":
        return float(published.find(number.source).value)
    if number.kind == "claim":
        from cnnlib import ledger

        return float(ledger.value(number.source))
    if number.kind == "check":
        return float(_call(number.source))
    if number.kind == "calc":
        return float(_calculate(ast.parse(number.source, mode="eval").body))
    from cnnlib.training import records

    name, _, path = number.source.partition(".")
    return float(records.figure(name, path))


def agrees(number: Number) -> bool:
    """Whether the printed text is the value, rounded to the digits that are printed (a `%` multiplies by 100)."""
    text = number.text.strip()
    match = _NUMBER.search(text)
    if match is None:
        raise ValueError(f"{text!r} has no number in it; put the span around the number alone")
    printed = match.group().replace(",", "").replace("\u202f", "").replace(" ", "")
    decimals = len(printed.partition(".")[2])
    value = value_of(number) * (100 if number.kind == "record" and text.endswith("%") else 1)
    return abs(float(printed) - value) <= 0.5 * 10**-decimals + 1e-9 * abs(value)


_OPERATIONS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


def _calculate(tree: ast.expr) -> float:
    """The value of an expression of numbers, figures of data/papers/, calls of checks, + - * / ** and brackets."""
    if isinstance(tree, ast.Constant) and isinstance(tree.value, int | float):
        return tree.value
    if isinstance(tree, ast.BinOp) and type(tree.op) in _OPERATIONS:
        return _OPERATIONS[type(tree.op)](_calculate(tree.left), _calculate(tree.right))
    if isinstance(tree, ast.Attribute):
        return float(published.find(ast.unparse(tree)).value)
    if isinstance(tree, ast.Call):
        return float(_call(ast.unparse(tree)))
    raise ValueError(
        f"a calculation has numbers, published figures, checks, + - * / ** and brackets only, got {ast.unparse(tree)!r}"
    )


def typed_numbers(source: str) -> list[int | float]:
    """The numbers in a calculation that look copied from a result: five digits and more, powers of 2 and 10 aside."""
    constants = [node.value for node in ast.walk(ast.parse(source, mode="eval")) if isinstance(node, ast.Constant)]
    numbers = [value for value in constants if isinstance(value, int | float)]
    return sorted(n for n in numbers if n >= 1e4 and math.log2(n) % 1 and math.log10(n) % 1)


def _call(source: str) -> float:
    """Evaluate `function(keyword=literal, ...)` with a function of cnnlib.checks."""
    from cnnlib import checks

    call = ast.parse(source, mode="eval").body
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
        raise ValueError(f"a check is written function(keyword=literal, ...), got {source!r}")
    function = getattr(checks, call.func.id, None)
    if function is None:
        raise unknown("check", call.func.id, [n for n in vars(checks) if not n.startswith("_")])
    return function(**{k.arg: ast.literal_eval(k.value) for k in call.keywords})
