"""The ledger of claims: what five lectures say, what is right, and what the code finds when it is asked.

`data/claims.yml` holds a row a claim. A row with `check` names a function of `cnnlib.checks`, its arguments (`with`) and
what it should give (`expect`: a value, or a reference into `data/papers/`); where the lecture said a number, `said_value`
is that number, and the verdict tells whether it agrees and by how much it is off. `check: cited` compares what was said
with a published table. A row without `check` says that it is not yet checked.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from cnnlib import checks, published, tables
from cnnlib.errors import unknown
from cnnlib.paths import data_dir

LECTURE_VERDICTS = {
    "OK": "right",
    "OK-COND": "right under a condition",
    "IMPRECISE": "not exact",
    "WRONG": "wrong",
    "INCONSISTENT": "contradicts another lecture or itself",
    "DATED": "was right once",
    "UNSOURCED": "no source found",
    "FIG": "a figure to rebuild",
}
METHODS = ("compute", "measure", "build", "cite", "redraw", "write")
KINDS = (
    *("name", "statement", "system", "table", "number", "figure", "ref", "training", "metric", "experiment"),
    *("equation", "quote", "code"),
)
SAID_MEANS = ("equal", "more than", "less than")

CONFIRMED, REFUTED = "confirmed", "refuted"
CITED, CITED_OTHERWISE = "cited", "cited otherwise"
RECALLED, RECALLED_OTHERWISE = "recalled", "recalled otherwise"
NOT_YET_CHECKED = "not yet checked"
DIFFERS, CONTRADICTS, ERROR = "differs", "contradicts", "error"
STATUSES = {
    CONFIRMED: "the code agrees with the lecture",
    REFUTED: "the code finds something else",
    CITED: "agrees with the cited figure",
    CITED_OTHERWISE: "the cited figure is another",
    RECALLED: "agrees with a recalled figure",
    RECALLED_OTHERWISE: "a recalled figure is another",
    NOT_YET_CHECKED: "not yet checked",
    DIFFERS: "FAILED: the code does not find what the ledger expects",
    CONTRADICTS: "FAILED: the ledger's verdict does not follow from the numbers",
    ERROR: "FAILED: the check broke",
}
FAILURES = (DIFFERS, CONTRADICTS, ERROR)

_FIELDS = {
    "id": str, "kind": str, "claim": str, "said": str, "verdict": str, "right": str, "method": (str, list), "why": str,
    "page": str, "said_value": object, "said_within": object, "said_means": str, "check": str, "with": dict,
    "expect": dict, "also": list,
}  # fmt: skip
_REQUIRED = ("id", "kind", "claim", "said", "verdict", "right", "method")
_EXPECT_FIELDS = ("value", "ref", "unit", "tolerance")
_ALSO_FIELDS = ("what", "check", "with", "expect")


@dataclass(frozen=True)
class Lecture:
    """One of the lectures that the book follows, by its letter."""

    letter: str
    title: str
    by: str


@dataclass(frozen=True)
class Expect:
    """What a check should give: `value` as written or as the references hold it, within the absolute `tolerance`."""

    value: Any
    unit: str = ""
    tolerance: float = 0.0
    refs: tuple[str, ...] = ()
    source: str = ""
    trust: str = ""


@dataclass(frozen=True)
class Check:
    """One call: a function of `cnnlib.checks`, or "cited", its arguments, and what it should give; `what` it counts."""

    function: str
    arguments: dict[str, Any]
    expect: Expect
    what: str = ""


@dataclass(frozen=True)
class Claim:
    """One row of the ledger."""

    id: str
    kind: str
    claim: str
    said: str
    verdict: str
    right: str
    method: tuple[str, ...]
    why: str = ""
    page: str = ""
    said_value: Any = None
    said_within: Any = 0.0
    said_means: str = "equal"
    check: Check | None = None
    also: tuple[Check, ...] = ()

    @property
    def lecture(self) -> str:
        """The letter of the lecture."""
        return self.id.partition("-")[0]


@dataclass(frozen=True)
class Verdict:
    """What came of one row: `status` is one of STATUSES; `expected` and `found` are None where nothing was checked."""

    id: str
    claim: str
    said: str
    lecture_verdict: str
    status: str
    expected: Any = None
    found: Any = None
    unit: str = ""
    source: str = ""
    seconds: float = 0.0
    message: str = ""

    @property
    def failed(self) -> bool:
        return self.status in FAILURES

    def __str__(self) -> str:
        return f"{self.id}  {self.status:<18}  {self.message}"


@dataclass(frozen=True)
class Ledger:
    """The lectures by letter and the claims by id, as `load` read and verified them."""

    lectures: Mapping[str, Lecture]
    claims: Mapping[str, Claim]

    def check(self, id: str) -> Verdict:
        """Check one row; an error inside the check is a verdict too, never an exception. ValueError for an unknown id."""
        if id not in self.claims:
            raise _no_claim(id, self.claims)
        claim, start = self.claims[id], time.perf_counter()
        try:
            status, expected, found, message = self._judge(claim)
        except Exception as error:
            status, expected, found = ERROR, None, None
            message = f"{id}: {claim.check and claim.check.function} broke with {type(error).__name__}: {error}"
        expect = claim.check.expect if claim.check else Expect(None)
        seconds = time.perf_counter() - start
        return Verdict(
            id, claim.claim, claim.said, claim.verdict, status, expected, found, expect.unit, expect.source, seconds, message
        )  # fmt: skip

    def value(self, id: str) -> Any:
        """What the check of a row finds. ValueError for an unknown id and for a row that has no check."""
        if id not in self.claims:
            raise _no_claim(id, self.claims)
        check = self.claims[id].check
        if check is None:
            raise ValueError(f"{id} is not yet checked; give it `check` and `expect` in data/claims.yml first")
        return self._run(check, ())

    def _run(self, check: Check, asked: tuple[str, ...]) -> Any:
        if check.function == "cited":
            return check.expect.value
        arguments = {name: self._argument(argument, asked) for name, argument in check.arguments.items()}
        return getattr(checks, check.function)(**arguments)

    def _argument(self, argument: Any, asked: tuple[str, ...]) -> Any:
        """`{claim: ID}` is what that row finds, `{ref: PATH}` a published figure, `{check:, with:}` another call."""
        if isinstance(argument, list):
            return [self._argument(one, asked) for one in argument]
        kind = _asks(argument)
        if kind == "claim":
            id = argument["claim"]
            if id in asked:
                raise ValueError(f"the claims {' -> '.join([*asked, id])} ask each other in a circle")
            return self._run(self.claims[id].check, (*asked, id))
        if kind == "ref":
            return published.find(argument["ref"]).value
        if kind == "check":
            nested = {name: self._argument(value, asked) for name, value in argument.get("with", {}).items()}
            return getattr(checks, argument["check"])(**nested)
        return argument

    def _judge(self, claim: Claim) -> tuple[str, Any, Any, str]:
        if claim.check is None:
            return NOT_YET_CHECKED, None, None, "not yet checked"
        unit, results = claim.check.expect.unit, []
        for check in (claim.check, *claim.also):
            result, wanted = self._run(check, (claim.id,)), check.expect
            results.append(result)
            if not equal(result, wanted.value, wanted.tolerance):
                what = f" ({check.what})" if check.what else ""
                message = (
                    f"{claim.id}{what}: {check.function} finds {show(result, wanted.unit)}, "
                    f"the ledger expects {show(wanted.value, wanted.unit)}"
                )
                return DIFFERS, wanted.value, result, message
        found, expected = results[0], claim.check.expect.value
        agrees = _said_agrees(claim, found)
        if claim.verdict in ("OK", "WRONG") and agrees != (claim.verdict == "OK"):
            message = (
                f"{claim.id}: the verdict is {claim.verdict}, but the lecture's {show(claim.said_value, unit)} "
                f"{'agrees' if agrees else 'does not agree'} with {show(found, unit)}"
            )
            return CONTRADICTS, expected, found, message
        trust, source = _printed(claim.check)
        if trust:
            surer = trust != "recalled"
            status = (CITED if surer else RECALLED) if agrees else (CITED_OTHERWISE if surer else RECALLED_OTHERWISE)
            message = f"{source}: {show(found, unit)}{_off(claim, found)}"
            return status, expected, found, message if surer else f"{message} (recalled, to be confirmed)"
        return (CONFIRMED if agrees else REFUTED), expected, found, f"{show(found, unit)}{_off(claim, found)}"


def _printed(check: Check) -> tuple[str, str]:
    """How the least sure figure was read, and its source, where a check only compares published figures; else "", ""."""
    if check.function == "cited":
        return check.expect.trust, check.expect.source

    def leaves(argument: Any) -> Iterator[Any]:
        if isinstance(argument, list):
            for one in argument:
                yield from leaves(one)
        else:
            yield argument

    asked = [leaf for argument in check.arguments.values() for leaf in leaves(argument)]
    if not asked or any(_asks(leaf) != "ref" for leaf in asked):
        return "", ""
    least = max((published.find(leaf["ref"]) for leaf in asked), key=lambda figure: published.TRUST.index(figure.check))
    return least.check, least.source


def _no_claim(id: str, known: Iterable[str]) -> ValueError:
    """The error for an id that does not stand in the ledger: all ids are too many to list."""
    known = list(known)
    near = get_close_matches(str(id).upper(), known, n=1)
    return ValueError(
        f"no claim {id!r}; " + (f"did you mean {near[0]!r}?" if near else f"ids go from {known[0]} to {known[-1]}")
    )


def equal(found: Any, wanted: Any, tolerance: float | Iterable[float] = 0.0) -> bool:
    """Whether two numbers, words, or lists of them are the same, numbers within the absolute tolerance."""
    if isinstance(wanted, list | tuple) or isinstance(found, list | tuple):
        if not isinstance(wanted, list | tuple) or not isinstance(found, list | tuple) or len(found) != len(wanted):
            return False
        each = tolerance if isinstance(tolerance, list | tuple) else [tolerance] * len(wanted)
        return len(each) == len(wanted) and all(map(equal, found, wanted, each))
    if isinstance(found, str) or isinstance(wanted, str) or found is None or wanted is None:
        return found == wanted
    return abs(found - wanted) <= tolerance


def show(value: Any, unit: str = "") -> str:
    """A value as the book prints it: thousands apart, floats to four significant digits or two decimals, lists in a row.

    >>> show([96, 55, 55]), show(61706, "parameters"), show(8.7111)
    ('96, 55, 55', '61,706 parameters', '8.711')
    """
    if unit == "year":
        return str(value)
    if isinstance(value, list | tuple):
        text = ", ".join(f"({show(one)})" if isinstance(one, list | tuple) else show(one) for one in value)
    elif isinstance(value, bool) or value is None or isinstance(value, str):
        text = "-" if value is None else str(value)
    elif isinstance(value, float):
        whole = value.is_integer() and abs(value) < 1e15
        text = f"{int(value):,}" if whole else f"{value:,.2f}" if abs(value) >= 100 else f"{value:.4g}"
    else:
        text = f"{value:,}"
    return f"{text} {unit}" if unit else text


def _said_agrees(claim: Claim, found: Any) -> bool:
    if claim.said_value is None:
        return claim.verdict in ("OK", "OK-COND", "FIG")
    return _agrees(claim.said_value, found, claim.said_within, claim.said_means)


def _agrees(said: Any, found: Any, within: Any, means: str) -> bool:
    if said is None:  # the lecture leaves this one of several numbers out
        return True
    if isinstance(said, list):
        if not isinstance(found, list | tuple) or len(said) != len(found):
            return False
        each = within if isinstance(within, list) else [within] * len(said)
        return all(_agrees(s, f, w, means) for s, f, w in zip(said, found, each, strict=True))
    if isinstance(said, str):
        return said.casefold() in str(found).casefold()
    if not isinstance(found, int | float):
        return False
    if means == "more than":
        return found > said
    if means == "less than":
        return found < said
    return math.isclose(said, found, rel_tol=0, abs_tol=within * abs(found) + 1e-12 * abs(found))


def _off(claim: Claim, found: Any) -> str:
    """By how much the lecture's number misses what was found, in words; nothing where it does not."""
    said = claim.said_value
    if said is None or _said_agrees(claim, found):
        return ""
    means = "" if claim.said_means == "equal" else f"{claim.said_means} "
    unit = claim.check.expect.unit if claim.check else ""
    text = f"; the lecture has {means}{show(said, unit if unit == 'year' else '')}"
    numbers = isinstance(said, int | float) and isinstance(found, int | float)
    if not numbers or means or not said or unit == "year" or (isinstance(found, int) and abs(found) < 100):
        return text
    part = said / found - 1
    much = f"{abs(part):.0%}" if abs(part) >= 0.1 else f"{abs(part):.1%}"
    return f"{text}, {much} too {'high' if part > 0 else 'low'}"


# --- reading data/claims.yml -------------------------------------------------------------------------------------


def load(path: Path | str | None = None) -> Ledger:
    """Read and verify a claims file, by default the one that travels with cnnlib.

    ValueError names the row, the rule that it breaks, what stands there and, where there is one, the nearest right name.
    """
    path = Path(path) if path else data_dir() / "claims.yml"
    if not path.is_file():
        raise FileNotFoundError(f"no claims file at {path}; the ledger of the book is data/claims.yml")
    raw = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    if not isinstance(raw, dict) or set(raw) != {"lectures", "claims"}:
        got = ", ".join(map(str, raw)) if isinstance(raw, dict) else type(raw).__name__
        raise ValueError(f"{path.name} must have exactly the top keys lectures and claims, got {got}")
    lectures = {letter: Lecture(letter, row["title"], row["by"]) for letter, row in raw["lectures"].items()}
    claims: dict[str, Claim] = {}
    for number, row in enumerate(raw["claims"], start=1):
        if not isinstance(row, dict) or not row.get("id"):
            raise ValueError(f"{path.name}, row {number}: every claim needs an id such as A-001, got {row!r:.80}")
        id = row["id"]
        if id in claims:
            raise ValueError(
                f"{path.name}, {id}: the id stands twice (again in row {number}); give one of them another"
            )
        try:
            claims[id] = _claim(row, lectures)
        except ValueError as error:
            raise ValueError(f"{path.name}, {id}: {error}") from None
    ledger = Ledger(lectures, claims)
    for claim in claims.values():
        for asked in _claims_asked(claim):
            if asked not in claims:
                raise ValueError(f"{path.name}, {claim.id}: {_no_claim(asked, claims)}")
            if claims[asked].check is None:
                raise ValueError(f"{path.name}, {claim.id}: it asks for {asked}, which has no check")
    return ledger


def _claim(row: dict[str, Any], lectures: Mapping[str, Lecture]) -> Claim:
    for field, value in row.items():
        if field not in _FIELDS:
            raise unknown("field of a claim", field, _FIELDS)
        if not isinstance(value, _FIELDS[field]):
            raise ValueError(f"{field} must be text, got {value!r}; put it in quotes" if _FIELDS[field] is str else
                             f"{field} must be a {_named(_FIELDS[field])}, got {value!r}")  # fmt: skip
    for field in _REQUIRED:
        if field not in row:
            raise ValueError(f"the field {field!r} is missing")
    letter, _, number = row["id"].partition("-")
    if letter not in lectures or len(number) != 3 or not number.isdigit():
        raise ValueError(
            f"an id is a lecture's letter ({', '.join(lectures)}), a dash and three digits; got {row['id']!r}"
        )
    method = tuple(row["method"]) if isinstance(row["method"], list) else (row["method"],)
    for kind, given, known in (
        ("kind of claim", row["kind"], KINDS),
        ("verdict", row["verdict"], LECTURE_VERDICTS),
        *(("method", one, METHODS) for one in method),
        ("meaning of said_value", row.get("said_means", "equal"), SAID_MEANS),
    ):
        if given not in known:
            raise unknown(kind, given, known)
    check = _check(row) if "check" in row else None
    if check is None:
        for field in ("with", "expect", "also", "said_within", "said_means"):
            if field in row:
                raise ValueError(
                    f"{field!r} says nothing without `check`; name a function of cnnlib.checks or leave it out"
                )
    elif "said_value" not in row and (
        check.function == "cited" or row["verdict"] not in ("OK", "OK-COND", "FIG", "WRONG")
    ):
        why = "a cited row" if check.function == "cited" else f"a checked row of the verdict {row['verdict']}"
        raise ValueError(f"{why} needs said_value, the lecture's number, to compare with")
    also = []
    for entry in row.get("also", []):
        for field in entry:
            if field not in _ALSO_FIELDS:
                raise unknown("field of an `also` entry", field, _ALSO_FIELDS)
        also.append(_check(entry))
    known = {field: row[field] for field in ("why", "page", "said_value", "said_within", "said_means") if field in row}
    plain = {field: row[field] for field in ("id", "kind", "claim", "said", "verdict", "right")}
    return Claim(**plain, method=method, check=check, also=tuple(also), **known)


def _named(kinds: Any) -> str:
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    return " or a ".join({"str": "text", "list": "list", "dict": "mapping"}[kind.__name__] for kind in kinds)


def functions() -> dict[str, Callable[..., Any]]:
    """The functions that a row may name under `check`: all public functions of `cnnlib.checks`."""
    members = vars(checks).items()
    return {
        name: member
        for name, member in members
        if inspect.isfunction(member) and member.__module__ == checks.__name__ and not name.startswith("_")
    }


def _check(row: dict[str, Any]) -> Check:
    name, arguments = row.get("check"), row.get("with", {})
    if name == "cited":
        if arguments:
            raise ValueError("`check: cited` takes no `with`; it compares said_value with the reference under expect")
    else:
        _verify_call(name, arguments)
    if "expect" not in row:
        raise ValueError(f"`check: {name}` needs `expect`: a value, or a ref into data/papers/")
    expect = _expect(row["expect"])
    if name == "cited" and not expect.refs:
        raise ValueError("`check: cited` needs `expect: {ref: ...}`, a reference into data/papers/")
    return Check(name, arguments, expect, row.get("what", ""))


def _verify_call(name: Any, arguments: dict[str, Any]) -> None:
    known = functions()
    if name not in known:
        raise unknown("check", name, [*known, "cited"])
    signature = inspect.signature(known[name])
    for argument, value in arguments.items():
        if argument not in signature.parameters:
            raise unknown(f"argument of {name}", argument, signature.parameters)
        for one in value if isinstance(value, list) else [value]:
            if _asks(one) == "check":
                _verify_call(one["check"], one.get("with", {}))
            elif _asks(one) == "ref":
                published.find(one["ref"])
    for parameter in signature.parameters.values():
        if parameter.default is parameter.empty and parameter.name not in arguments:
            raise ValueError(f"{name} needs the argument {parameter.name!r} under `with`")


def _expect(given: dict[str, Any]) -> Expect:
    for field in given:
        if field not in _EXPECT_FIELDS:
            raise unknown("field of expect", field, _EXPECT_FIELDS)
    if ("value" in given) == ("ref" in given):
        raise ValueError(f"expect has either a value or a ref into data/papers/, got {given}")
    tolerance = given.get("tolerance", 0.0)
    if "value" in given:
        return Expect(given["value"], given.get("unit", ""), tolerance)
    refs = given["ref"] if isinstance(given["ref"], list) else [given["ref"]]
    figures = [published.find(ref) for ref in refs]
    value = [figure.value for figure in figures] if isinstance(given["ref"], list) else figures[0].value
    least = max((figure.check for figure in figures), key=published.TRUST.index)
    return Expect(value, given.get("unit", figures[0].unit), tolerance, tuple(refs), figures[0].source, least)


def _asks(argument: Any) -> str:
    """What an argument stands for: "claim", "ref" or "check" for a mapping that asks for something, else ""."""
    for kind, fields in (("claim", {"claim"}), ("ref", {"ref"}), ("check", {"check", "with"})):
        if isinstance(argument, dict) and kind in argument and set(argument) <= fields:
            return kind
    return ""


def _claims_asked(claim: Claim) -> Iterator[str]:
    def walk(argument: Any) -> Iterator[str]:
        if _asks(argument) == "claim":
            yield argument["claim"]
        for inner in (
            argument.values() if isinstance(argument, dict) else argument if isinstance(argument, list) else ()
        ):
            yield from walk(inner)

    for check in (claim.check, *claim.also):
        if check is not None:
            yield from walk(check.arguments)


# --- asking ------------------------------------------------------------------------------------------------------


@functools.cache
def _default() -> Ledger:
    return load()


def check_all(ids: Iterable[str] | None = None, path: Path | str | None = None) -> Iterator[Verdict]:
    """Check all rows, or those of `ids`, one verdict after the other as they are ready.

    Ids are verified before the first check; ValueError names one that does not exist.
    """
    ledger = load(path) if path else _default()
    chosen = list(ledger.claims) if ids is None else list(ids)
    for id in chosen:
        if id not in ledger.claims:
            raise _no_claim(id, ledger.claims)
    return map(ledger.check, chosen)


@functools.cache
def value(id: str) -> Any:
    """What the check of a row finds, computed when first asked: a number, a word or a list.

    >>> value("A-007")
    61706
    """
    return _default().value(id)


@dataclass(frozen=True)
class Summary:
    """How many rows of each lecture have each value of `by` (a field of Verdict), and all together."""

    by: str
    by_lecture: Mapping[str, Mapping[str, int]]

    @property
    def total(self) -> Counter[str]:
        return sum((Counter(counts) for counts in self.by_lecture.values()), Counter())

    def rows(self) -> list[list[Any]]:
        """One row a value that occurs, in the order of the book, and the sums: value, meaning, a count a lecture, all."""
        meanings = STATUSES if self.by == "status" else LECTURE_VERDICTS
        values = [value for value in meanings if self.total[value]]
        counts = [[lecture.get(value, 0) for lecture in self.by_lecture.values()] for value in values]
        lines = [[value, meanings[value], *count, sum(count)] for value, count in zip(values, counts)]
        return [*lines, ["all", "", *map(sum, zip(*counts)), self.total.total()]]

    def _columns(self) -> list[str]:
        return ["status" if self.by == "status" else "verdict", "meaning", *self.by_lecture, "all"]

    def __str__(self) -> str:
        columns = self._columns()
        return tables.text(f"Claims by lecture and {columns[0]}", columns, self.rows(), right=columns[2:])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        columns = self._columns()
        return tables.html(f"Claims by lecture and {columns[0]}", columns, self.rows(), right=columns[2:])


def summary(verdicts: Iterable[Verdict], by: str = "status") -> Summary:
    """Count verdicts by lecture and status, or by lecture and what the ledger says of the lecture (`lecture_verdict`)."""
    if by not in ("status", "lecture_verdict"):
        raise unknown("field to count by", by, ("status", "lecture_verdict"))
    counts: dict[str, Counter[str]] = {}
    for verdict in verdicts:
        counts.setdefault(verdict.id.partition("-")[0], Counter())[getattr(verdict, by)] += 1
    return Summary(by, dict(sorted(counts.items())))


@dataclass(frozen=True)
class Lectures:
    """The lectures as a table: letter, title, by whom."""

    lectures: Mapping[str, Lecture]

    def _rows(self) -> list[list[str]]:
        return [[lecture.letter, lecture.title, lecture.by] for lecture in self.lectures.values()]

    def __repr__(self) -> str:
        return tables.text("The lectures", ["letter", "title", "by"], self._rows())

    def _repr_html_(self) -> str:
        return tables.html("The lectures", ["letter", "title", "by"], self._rows())


def lectures() -> Lectures:
    """The lectures that the book follows."""
    return Lectures(_default().lectures)


def to_json(verdicts: Iterable[Verdict]) -> str:
    """The verdicts as a JSON list, a row an object."""
    return json.dumps([asdict(verdict) for verdict in verdicts], ensure_ascii=False, indent=1)


def exit_status(verdicts: Iterable[Verdict]) -> int:
    """0 where no row failed, else 1."""
    return int(any(verdict.failed for verdict in verdicts))
