"""Every claim of the ledger in one table that can be filtered by lecture, verdict, status and text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from cnnlib import ledger
from cnnlib.explorers.html import Choice, Explorer
from cnnlib.plots.style import INK, PALETTE

_COLOURS = {
    ledger.CONFIRMED: PALETTE["green"],
    ledger.CITED: PALETTE["blue"],
    ledger.RECALLED: PALETTE["teal"],
    ledger.REFUTED: PALETTE["orange"],
    ledger.CITED_OTHERWISE: PALETTE["orange"],
    ledger.RECALLED_OTHERWISE: PALETTE["orange"],
    ledger.NOT_YET_CHECKED: INK,
}

_CSS = """
.cnnlib-explorer[data-explorer=claims]{max-width:none}
.cnnlib-explorer[data-explorer=claims] input[type=search]{font:inherit;color:inherit;background:transparent;
border:1px solid color-mix(in srgb,currentColor 40%,transparent);border-radius:.25rem;padding:.2rem .4rem;width:100%;
box-sizing:border-box;min-width:0}
.cnnlib-claims{width:100%;border-collapse:collapse;table-layout:fixed;font-size:.9em;margin:.6rem 0 0;color:inherit}
.cnnlib-claims caption{text-align:left;caption-side:top}
.cnnlib-claims th,.cnnlib-claims td{text-align:left;vertical-align:top;padding:.45rem .5rem;overflow-wrap:anywhere;
white-space:normal;color:inherit;background:transparent}
.cnnlib-claims tr{border-top:1px solid color-mix(in srgb,currentColor 25%,transparent);background:transparent}
.cnnlib-claims tr[hidden]{display:none}
.cnnlib-claims th:first-child,.cnnlib-claims td:first-child{width:5.6em}
.cnnlib-claims p{margin:0 0 .3rem}
.cnnlib-claims .tag{display:inline-block;border-left:.35em solid;padding-left:.4em;font-weight:600}
.cnnlib-claims .soft{opacity:.85}
.cnnlib-claims ul{margin:.2rem 0 0;padding-left:1.1em}
@media(max-width:44rem){.cnnlib-claims thead{display:none}.cnnlib-claims,.cnnlib-claims tbody,.cnnlib-claims tr,
.cnnlib-claims td,.cnnlib-claims td:first-child{display:block;width:auto}.cnnlib-claims td{padding:.15rem 0}
.cnnlib-claims caption{display:block}.cnnlib-claims td:empty{display:none}.cnnlib-claims tr{padding:.6rem 0}
.cnnlib-explorer[data-explorer=claims] .controls>*{grid-column:1/-1}.cnnlib-explorer[data-explorer=claims] .controls
span{display:none}.cnnlib-claims td[data-head]::before{content:attr(data-head) ": ";font-weight:600}}
""".replace("\n", "")

_SCRIPT = """
var wanted={};["lecture","verdict","status"].forEach(function(name){wanted[name]=data[name][value(name)];});
var words=figure.querySelector('[name="search"]').value.toLowerCase().split(/\\s+/).filter(Boolean);
var rows=figure.querySelectorAll("tbody tr"),shown=0;
rows.forEach(function(row){
var fits=["lecture","verdict","status"].every(function(name){return !wanted[name]||row.dataset[name]===wanted[name];});
if(fits&&words.length){var text=row.textContent.toLowerCase();
fits=words.every(function(word){return text.indexOf(word)>=0;});}
row.hidden=!fits;if(fits)shown++;});
show("search",shown+" of "+rows.length);
""".replace("\n", "")


@dataclass(frozen=True)
class Search:
    """A labelled text field; its output says how many rows are left."""

    name: str
    label: str
    count: int

    def html(self, prefix: str) -> str:
        key = f"{prefix}-{self.name}"
        return (
            f'<label for="{key}">{escape(self.label)}</label>'
            f'<input type="search" id="{key}" name="{self.name}" autocomplete="off">'
            f'<output for="{key}" data-for="{self.name}" aria-live="polite">{self.count} of {self.count}</output>'
        )


def explore_claims(verdicts: Iterable[ledger.Verdict] | None = None) -> Explorer:
    """The claims with the values that the code found: selects for lecture, verdict and status, and a text search.

    `verdicts` default to a check of the whole ledger. Without scripts the whole table stands there.
    """
    verdicts = list(ledger.check_all() if verdicts is None else verdicts)
    book = ledger.load()
    used = {
        "lecture": [letter for letter in book.lectures if any(v.id.startswith(f"{letter}-") for v in verdicts)],
        "verdict": [name for name in ledger.LECTURE_VERDICTS if any(v.lecture_verdict == name for v in verdicts)],
        "status": [name for name in ledger.STATUSES if any(v.status == name for v in verdicts)],
    }
    titles = {letter: f"{letter}: {lecture.title}" for letter, lecture in book.lectures.items()}
    meanings = {name: f"{name}: {meaning}" for name, meaning in ledger.LECTURE_VERDICTS.items()}
    controls = [
        Choice("lecture", "Lecture", ["all", *(titles[letter] for letter in used["lecture"])]),
        Choice("verdict", "The lecture is", ["all", *(meanings[name] for name in used["verdict"])]),
        Choice("status", "The code says", ["all", *(f"{name}: {ledger.STATUSES[name]}" for name in used["status"])]),
        Search("search", "Search", len(verdicts)),
    ]
    rows = "".join(_row(book.claims[verdict.id], verdict) for verdict in verdicts)
    head = "".join(
        f'<th scope="col">{name}</th>' for name in ("Claim", "The lecture", "What is right", "What the code finds")
    )
    table = (
        f'<style>{_CSS}</style><table class="cnnlib-claims"><caption>Claims, one a row</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )
    data = {name: ["", *values] for name, values in used.items()}
    return Explorer("claims", "The claims of the lectures", controls, table, data, _SCRIPT)


def _row(claim: ledger.Claim, verdict: ledger.Verdict) -> str:
    page = f'<p><a href="{escape(claim.page)}.html">{escape(claim.page)}</a></p>' if claim.page else ""
    said = f'<p class="soft">said: {escape(claim.said)}</p>' if claim.said not in ("", "-") else ""
    right = f"<p>{escape(claim.right)}</p>" if claim.right not in ("", "-") else ""
    why = f'<p class="soft">Why one says it: {escape(claim.why)}</p>' if claim.why else ""
    colour = _COLOURS.get(verdict.status, PALETTE["red"])
    tag = f'<p><span class="tag" style="border-color:{colour}">{escape(verdict.status)}</span></p>'
    found = "" if verdict.status == ledger.NOT_YET_CHECKED else f"<p>{escape(verdict.message)}</p>"
    return (
        f'<tr id="{claim.id}" data-lecture="{claim.lecture}" data-verdict="{claim.verdict}" data-status="{verdict.status}">'
        f'<td><p><strong>{claim.id}</strong></p><p class="soft">{claim.verdict}</p>{page}</td>'
        f'<td data-head="The lecture"><p>{escape(claim.claim)}</p>{said}</td>'
        f'<td data-head="What is right">{right}{why}</td>'
        f'<td data-head="What the code finds">{tag}{found}{_further(claim.also)}</td></tr>'
    )


def _further(also: Sequence[ledger.Check]) -> str:
    """The further numbers of a row, which the check of the row has found too."""
    if not also:
        return ""
    items = (f"<li>{escape(check.what)}: {escape(ledger.show(check.expect.value))}</li>" for check in also)
    return f"<ul>{''.join(items)}</ul>"
