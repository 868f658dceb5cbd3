"""python -m cnnlib: the zoo and its tables, training runs, the claims, the lectures and the site.

Exit codes: 0 all is well, 1 something that ran has failed (a lecture, a claim, the site), 2 a wrong question.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, NoReturn

from cnnlib.errors import listed, unknown


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{message}; see `{self.prog} --help`\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; what goes wrong is said in one sentence on stderr (with CNNLIB_DEBUG=1 as a traceback)."""
    chosen = _parser().parse_args(arguments)
    try:
        return chosen.command(chosen) or 0
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        if os.environ.get("CNNLIB_DEBUG"):
            raise
        print(error, file=sys.stderr)
        return 1 if type(error).__name__ == "BuildError" else 2


def _parser() -> _Parser:
    from cnnlib.notebooks import PROFILES

    parser = _Parser(
        prog="python -m cnnlib", description="From LeNet to DenseNet: the networks and the book around them."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, does: Callable[[Any], int | None], summary: str, *, as_json: bool = False) -> _Parser:
        sub = commands.add_parser(name, help=summary, description=summary)
        if as_json:
            sub.add_argument("--json", action="store_true", help="print JSON in place of a table")
        sub.set_defaults(command=does)
        return sub

    command("zoo", _zoo, "list the networks with year, input and published size", as_json=True)

    sub = command("table", _table, "one network's layers: shapes, parameters, MACs, receptive field", as_json=True)
    sub.add_argument("name", metavar="NAME", help="a network of `python -m cnnlib zoo`")
    sub.add_argument("--input", metavar="CxHxW", help="input shape (the paper's, where it is left out)")

    sub = command(
        "train", _train, "train a run of the queue and record it; without a name, list the queue", as_json=True
    )
    sub.add_argument("name", nargs="*", metavar="RUN", help="runs of data/records/queue.yml")
    sub.add_argument("--pending", action="store_true", help="every run that has no record yet, in order")
    sub.add_argument("--verify", action="store_true", help="train nothing: say whether the records still hold")
    sub.add_argument("--device", help="cpu, cuda, cuda:1, ... (picked by itself, where it is left out)")

    sub = command(
        "work-queue",
        _work_queue,
        "train the runs that have no record yet, in their order, for some minutes; the next call goes on",
        as_json=True,
    )
    sub.add_argument(
        "--minutes", metavar="N", type=_minutes, required=True, help="stop cleanly before so many are over"
    )
    sub.add_argument(
        "--out", metavar="DIR", required=True, help="where records/ and weights/ go, to be brought to data/"
    )
    sub.add_argument("--device", help="cpu, cuda, cuda:1, ... (picked by itself, where it is left out)")

    sub = command("check", _check, "ask the code about the claims; exit code 1 where the ledger is wrong", as_json=True)
    sub.add_argument("id", nargs="*", metavar="CLAIM", help="claims by id, such as A-007 (all, where none is named)")
    sub.add_argument("--ledger", metavar="FILE", help="another ledger than data/claims.yml")

    sub = command("run", _run, "execute lectures under a profile into a build folder; the sources are not touched")
    sub.add_argument("lecture", nargs="*", help="lectures by name, or notebooks by path (all, where none is named)")
    sub.add_argument(
        "--profile",
        choices=PROFILES,
        default="page",
        help="smoke: minimal; page: as on the site (default); gpu: full length",
    )
    sub.add_argument("--out", metavar="FOLDER", help="where executed copies go (_build/run/PROFILE)")
    sub.add_argument("--force", action="store_true", help="execute what has not changed, too")
    sub.add_argument("--jobs", type=_positive, help="lectures at a time (2)")

    sub = command(
        "refresh", _refresh, "execute the committed notebooks in place and store their outputs in normal form"
    )
    sub.add_argument("lecture", nargs="*")
    sub.add_argument("--check", action="store_true", help="write nothing; exit code 1 where something would change")
    sub.add_argument("--jobs", type=_positive, help="lectures at a time (2)")

    sub = command("book", _book, "execute what changed and build the site into _build/html")
    sub.add_argument("--force", action="store_true", help="execute and build all, whatever has not changed")
    sub.add_argument("--jobs", type=_positive, help="lectures at a time (2)")

    sub = command("serve", _serve, "show the built site on this machine")
    sub.add_argument("--port", type=_port, default=8000)
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return minutes


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"must be a port from 0 to 65535, got {text!r}")
    return int(text)


def _shape(text: str) -> tuple[int, int, int]:
    sizes = text.lower().split("x")
    if len(sizes) != 3 or not all(size.isdigit() and int(size) for size in sizes):
        raise ValueError(f"an input shape is written CxHxW, such as 3x224x224; got {text!r}")
    return tuple(int(size) for size in sizes)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], total: Sequence[Any] | None = None
) -> None:
    """A table of text and numbers; numbers stand to the right and carry thousands commas."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE, show_footer=total is not None)
    for number, column in enumerate(columns):
        numeric = any(isinstance(row[number], int | float) for row in rows)
        footer = _cell(total[number]) if total is not None else ""
        table.add_column(column, footer=footer, justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(_cell, row))
    # On a pipe there is no width to keep to: a cut number would be a wrong number.
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _zoo(chosen: argparse.Namespace) -> None:
    from cnnlib.models.zoo import overview

    rows = overview()
    if chosen.json:
        _print_json([asdict(row) for row in rows])
        return
    _print_table(
        "Networks; MACs in millions of multiply-adds, field in pixels, * at 3x224x224",
        ("name", "year", "input", "parameters", "MACs", "field"),
        [
            (
                *(row.name, str(row.year), listed(row.input_shape), row.params),
                f"{row.macs / 1e6:,.1f}{' *'[row.macs_at != row.input_shape]}".rjust(9),
                row.receptive_field,
            )
            for row in rows
        ],
    )


def _table(chosen: argparse.Namespace) -> None:
    from cnnlib import analysis
    from cnnlib.models.zoo import build, card

    known = card(chosen.name)
    shape = _shape(chosen.input) if chosen.input else known.input_shape
    model = (
        build(chosen.name).eval()
        if shape[0] == known.input_shape[0]
        else build(chosen.name, in_channels=shape[0]).eval()
    )
    cost = analysis.cost(model, shape)
    fields = {row.name: row for row in analysis.receptive_field(model, shape)}
    keys = ("name", "kind", "output_shape", "params", "macs", "activations")
    rows = []
    for layer in cost:
        row = {key: getattr(layer, key) for key in keys}
        field = fields.get(layer.name)
        rows.append(row | {"receptive_field": field and field.size, "stride": field and field.stride})
    totals = {"params": cost.params, "macs": cost.macs, "activations": cost.activations}
    if chosen.json:
        _print_json({"model": chosen.name, "input_shape": shape, "rows": rows, "totals": totals})
        return
    _print_table(
        f"{known.title} ({known.year}) at {listed(shape)}; MAC = one multiply-add; field and stride in pixels",
        ("layer", "kind", "output", "parameters", "MACs", "activations", "field", "stride"),
        [
            (
                *(row["name"], row["kind"], listed(row["output_shape"])),
                *(row[key] for key in keys[3:]),
                *(_field(row["receptive_field"]), _field(row["stride"])),
            )
            for row in rows
        ],
        ("total", "", "", cost.params, cost.macs, cost.activations, "", ""),
    )


def _field(size: Any) -> str:
    """A size along one axis or along both, as the analyses give it: one number where both agree."""
    if size is None:
        return ""
    sizes = size if isinstance(size, tuple | list) else (size,)
    return str(sizes[0]) if len(set(sizes)) == 1 else listed(sizes)


def _train(chosen: argparse.Namespace) -> int:
    from cnnlib.training import records

    if chosen.name and chosen.pending:
        raise ValueError("name runs or give --pending, not both")
    plans = {plan.name: plan for plan in records.plans()}
    names = [plan.name for plan in records.pending()] if chosen.pending else chosen.name
    for name in names:
        if name not in plans:
            raise unknown("run", name, plans)
    if chosen.verify:
        return _verify(names or records.list_records(), chosen.json)
    if not names and not chosen.pending:
        _queue(list(plans.values()), chosen.json)
        return 0
    for name in names:
        for at in records.run_record(name, device=chosen.device):
            epoch, whole = at.epoch, plans[name].recipe.epochs
            if chosen.json:
                print(json.dumps({"run": name, "seed": at.seed, **asdict(epoch)}), flush=True)
                continue
            print(_progress(at, whole), flush=True)
        if not chosen.json:
            print(_outcome(records.load(name)), flush=True)
    return 0


def _progress(at: Any, epochs: int) -> str:
    epoch = at.epoch
    return (
        f"{at.name}  seed {at.seed} ({at.number} of {at.of})  epoch {epoch.epoch} of {epochs}  "
        f"loss {epoch.train_loss:.4f}  test accuracy {epoch.test_accuracy:.4f}  {epoch.seconds:.1f} s"
    )


def _outcome(record: Any) -> str:
    spread = record.test_accuracy
    runs = "one run" if spread.n == 1 else f"mean of {spread.n} seeds, standard deviation {100 * spread.std:.2f}"
    return f"{record.name}: {100 * spread.mean:.2f} % test accuracy ({runs}), trained in {record.seconds:.0f} s"


def _queue(plans: Sequence[Any], as_json: bool) -> None:
    from cnnlib.training import records

    done = {name: records.load(name) for name in records.list_records()}
    rows = []
    for plan in plans:
        spread = done[plan.name].test_accuracy if plan.name in done else None
        accuracy = spread and {"n": spread.n, "mean": spread.mean, "std": spread.std}
        found = {"model": plan.recipe.model, "data": plan.recipe.data, "epochs": plan.recipe.epochs}
        rows.append({"name": plan.name, "why": plan.why, **found, "seeds": list(plan.seeds), "test_accuracy": accuracy})
    if as_json:
        _print_json(rows)
        return
    _print_table(
        "Runs; accuracy is the mean of the seeds in % of the test set, with the standard deviation over them",
        ("name", "network", "data", "epochs", "seeds", "recorded"),
        [
            (row["name"], row["model"], row["data"], row["epochs"], len(row["seeds"]), _spread(row["test_accuracy"]))
            for row in rows
        ],
    )


def _work_queue(chosen: argparse.Namespace) -> int:
    from pathlib import Path

    from cnnlib.training import records
    from cnnlib.training.estimates import duration
    from cnnlib.training.queue import Outcome, work_queue

    epochs = {plan.name: plan.recipe.epochs for plan in records.plans()}
    rows = []
    for step in work_queue(chosen.minutes, Path(chosen.out), device=chosen.device):
        if isinstance(step, Outcome):
            rows.append(step)
        elif not chosen.json:
            print(_progress(step, epochs[step.name]), flush=True)
    failed = [row for row in rows if row.state == "failed"]
    if chosen.json:
        _print_json([asdict(row) for row in rows])
        return 1 if failed else 0
    _print_table(
        "The runs that had no record; epochs over all seeds, what is left at this machine's speed",
        ("name", "state", "epochs", "of", "left", "memory, MB"),
        [
            (
                *(row.name, row.state, row.epochs_done, row.epochs),
                *(row.seconds and duration(row.seconds), row.memory and round(row.memory / 1e6)),
            )
            for row in rows
        ],
    )
    for row in rows:
        if row.why:
            print(f"{row.name}: {row.why}")
    if any(row.state in ("recorded", "recorded before") for row in rows):
        print(f"Bring {chosen.out}/records and {chosen.out}/weights to data/ and commit them there.")
    return 1 if failed else 0


def _spread(accuracy: dict[str, Any] | None) -> str:
    if accuracy is None:
        return "not yet"
    around = "one run" if accuracy["std"] is None else f"+- {100 * accuracy['std']:.2f}"
    return f"{100 * accuracy['mean']:.2f} {around}"


def _verify(names: Sequence[str], as_json: bool) -> int:
    from cnnlib.training import records

    found, stale = [], 0
    for name in names:
        try:
            verified = records.verify(name)
            found.append({"name": name, "holds": True, "passed": verified.passed, "skipped": verified.skipped})
            said = "holds" + "".join(f"; not looked at: {why}" for why in verified.skipped)
        except records.StaleRecord as error:
            stale += 1
            found.append({"name": name, "holds": False, "wrong": str(error)})
            said = f"STALE: {error}"
        if not as_json:
            print(f"{name}: {said}", flush=True)
    if as_json:
        _print_json(found)
    return 1 if stale else 0


def _check(chosen: argparse.Namespace) -> int:
    from cnnlib import ledger

    verdicts = []
    for verdict in ledger.check_all(chosen.id or None, chosen.ledger):
        verdicts.append(verdict)
        if not chosen.json:
            print(verdict, flush=True)
    if chosen.json:
        print(ledger.to_json(verdicts))
    else:
        print(f"\n{ledger.summary(verdicts)}")
    return ledger.exit_status(verdicts)


def _run(chosen: argparse.Namespace) -> int:
    from pathlib import Path

    from cnnlib import notebooks

    paths = notebooks.lectures(chosen.lecture)
    out = Path(chosen.out) if chosen.out else notebooks.home() / "_build" / "run" / chosen.profile
    if any(path.parent == out.resolve() for path in paths):
        raise ValueError(f"--out {out} is where the sources lie, which stay as they are; name another folder")
    runs = notebooks.run(paths, chosen.profile, out, force=chosen.force, jobs=chosen.jobs)
    failed = [run.lecture for run in runs if not run.ok]
    print(
        f"{len(runs) - len(failed)} of {len(runs)} executed into {out}"
        + (f"; failed: {', '.join(failed)}" if failed else "")
    )
    return 1 if failed else 0


def _refresh(chosen: argparse.Namespace) -> int:
    from cnnlib import notebooks

    changed = notebooks.refresh(notebooks.lectures(chosen.lecture), check=chosen.check, jobs=chosen.jobs)
    return 1 if chosen.check and changed else 0


def _book(chosen: argparse.Namespace) -> None:
    from cnnlib import site

    site.build(force=chosen.force, jobs=chosen.jobs)


def _serve(chosen: argparse.Namespace) -> None:
    from cnnlib import site

    site.serve(chosen.port)


if __name__ == "__main__":
    sys.exit(main())
