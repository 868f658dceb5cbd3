"""Works off the queue for a number of minutes: any half hour on a fast machine turns pending rows into records.

Rows are taken in their order. A row goes on where an earlier call left it, whatever ended that call, and the next epoch
is begun only if it will be over in time, by what the epochs before it took or, for the first, by `what_it_costs`.
Records and weights are written below one folder as they lie in `data/`, so that they can be brought there; nothing is
fetched from a network. Several calls may work on one folder at a time: each row is taken by one of them.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from cnnlib.data import DataSet, load_data
from cnnlib.paths import data_dir
from cnnlib.training import records
from cnnlib.training.estimates import RunCost, what_it_costs
from cnnlib.training.records import Plan, Progress

# Seconds kept at the end of a call: a part of it for the estimates of what is left, at most so many.
RESERVE, MOST_RESERVE = 0.05, 120.0
# How much longer than expected an epoch may take: one of which only a few steps were timed, one like those before it.
DOUBT, HABIT = 1.3, 1.1


@dataclass(frozen=True)
class Outcome:
    """What became of one pending row.

    `state` is recorded (now), recorded before (by an earlier call with the same folder), begun, waiting, skipped (its
    data are not here), busy (another call has it) or failed; `why` says more. Epochs are those of all seeds. `seconds`
    is an estimate of what is left, `memory` of the bytes it takes, None where there was no time to find out.
    """

    name: str
    state: str
    why: str
    epochs_done: int
    epochs: int
    seconds: float | None
    memory: int | None


class _OutOfTime(Exception):
    pass


class _Busy(Exception):
    pass


def work_queue(
    minutes: float,
    out: Path,
    *,
    folder: Path | None = None,
    device: torch.device | str | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Progress | Outcome]:
    """Work off the rows that are pending in `folder` (cnnlib's own), yielding after every epoch, at last an `Outcome` a row.

    Checkpoints lie in `out/runs` until a row is done, then its record in `out/records` and its weights in `out/weights`.
    ValueError for minutes that are no positive number, or an `out` that is the folder of the queue itself.
    """
    home = folder or data_dir()
    out = Path(out)
    if not (isinstance(minutes, int | float) and math.isfinite(minutes) and minutes > 0):
        raise ValueError(f"minutes must be a number above 0, got {minutes!r}; 30 is half an hour")
    if out.resolve() == home.resolve():
        raise ValueError(
            f"the records are to be brought from {out} to {home}, which is the same folder; name another, or use "
            "`python -m cnnlib train --pending`"
        )
    return _work(minutes, out, home, device, clock)


def _work(
    minutes: float, out: Path, home: Path, device: torch.device | str | None, clock: Callable[[], float]
) -> Iterator[Progress | Outcome]:
    call = _Call(out, home, device, clock, clock() + 60 * minutes, min(RESERVE * 60 * minutes, MOST_RESERVE))
    plans = records.pending(home)
    states: dict[str, tuple[str, str]] = {}
    for plan in plans:
        if call.recorded(plan):
            states[plan.name] = ("recorded before", "")
            continue
        try:
            yield from call.row(plan)
            states[plan.name] = ("recorded", "")
        except _OutOfTime as reason:
            states[plan.name] = ("begun" if call.epochs_done(plan) else "waiting", str(reason))
            break  # the order is one of teaching value: nothing overtakes
        except _Busy as reason:
            states[plan.name] = ("busy", str(reason))
        except FileNotFoundError as error:
            states[plan.name] = ("skipped", str(error))
        except (ValueError, ArithmeticError, RuntimeError, OSError) as error:
            states[plan.name] = ("failed", f"{type(error).__name__}: {' '.join(str(error).split())}")
    for plan in plans:
        yield call.outcome(plan, *states.get(plan.name, ("waiting", "")))


class _Call:
    """One call of `work_queue`: its folder, its end, and what it has learned of the rows."""

    def __init__(
        self,
        out: Path,
        home: Path,
        device: torch.device | str | None,
        clock: Callable[[], float],
        end: float,
        reserve: float,
    ) -> None:
        self.out, self.home, self.device, self.clock, self.end, self.reserve = out, home, device, clock, end, reserve
        self.work = out / "runs"
        self.data: dict[str, DataSet] = {}
        self.costs: dict[str, RunCost] = {}
        self.seen: dict[str, list[float]] = {}  # seconds of the epochs trained in this call
        self.longest_read = self.longest_look = 0.0  # seconds that reading a data set and timing a row took

    def recorded(self, plan: Plan) -> bool:
        """Whether `out` has a record of this row as it stands in the queue now."""
        if plan.name not in records.list_records(self.out):
            return False
        return not records._recipe_problems(records.load(plan.name, self.out), self.home)

    def epochs_done(self, plan: Plan) -> int:
        """Whole epochs of all seeds, as the checkpoints have them."""
        if self.recorded(plan):
            return plan.recipe.epochs * len(plan.seeds)
        done = 0
        for path in (self.work / plan.name).glob("seed-*.ckpt"):
            with contextlib.suppress(Exception):  # a damaged one is named when the row is worked on
                done += len(torch.load(path, map_location="cpu", weights_only=True)["history"])
        return done

    def cost(self, plan: Plan) -> RunCost:
        if plan.name not in self.costs:
            name, start = plan.recipe.data, self.clock()
            if name not in self.data:
                data = load_data(name, download=False)
                len(data.train), len(data.test)  # read now, so that no epoch is charged for it
                self.data[name] = data
                self.longest_read = max(self.longest_read, self.clock() - start)
            start = self.clock()
            self.costs[plan.name] = what_it_costs(plan.recipe, data=self.data[name], device=self.device)
            self.longest_look = max(self.longest_look, self.clock() - start)
        return self.costs[plan.name]

    def can_look(self, plan: Plan, end: float) -> bool:
        """Whether `cost` will be over by `end`, going by those before it."""
        read = 0.0 if plan.recipe.data in self.data else self.longest_read
        return plan.name in self.costs or self.clock() + read + self.longest_look < end

    def epoch_seconds(self, plan: Plan) -> float:
        """The longest of the last epochs of this row, or what `what_it_costs` says before there is one."""
        return max(self.seen.get(plan.name, [])[-3:] or [self.cost(plan).epoch_seconds])

    def check_time(self, plan: Plan) -> None:
        if not self.can_look(plan, self.end - self.reserve):
            raise _OutOfTime("no time is left to look at it")
        expected = self.epoch_seconds(plan)
        doubt = HABIT if self.seen.get(plan.name) else DOUBT
        left = self.end - self.reserve - self.clock()
        if doubt * expected > left:
            raise _OutOfTime(f"an epoch takes about {expected:.1f} s and {max(left, 0):.1f} s are left")

    def row(self, plan: Plan) -> Iterator[Progress]:
        """Train a row to its record, or until the next epoch would not fit."""
        from filelock import FileLock, Timeout

        folder = self.work / plan.name
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "row.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise _Busy("another call is at work on it") from None
        try:
            if self.recorded(plan):
                return
            self.check_time(plan)
            run = records._run_record(plan, self.out, self.work, self.device, self.data[plan.recipe.data])
            with contextlib.closing(run):
                before = self.clock()
                for step in run:
                    took = self.clock() - before
                    # An epoch that a checkpoint tells again comes at once; one that was trained took its time.
                    if took >= step.epoch.seconds:
                        self.seen.setdefault(plan.name, []).append(took)
                    yield step
                    if (step.number, step.epoch.epoch) != (step.of, plan.recipe.epochs):
                        self.check_time(plan)
                    before = self.clock()
        finally:
            lock.release()
        shutil.rmtree(folder, ignore_errors=True)

    def outcome(self, plan: Plan, state: str, why: str) -> Outcome:
        total, done = plan.recipe.epochs * len(plan.seeds), self.epochs_done(plan)
        # A look that would outlast the call is not taken.
        if state == "waiting" and self.can_look(plan, self.end):
            try:
                self.cost(plan)
            except (ValueError, ArithmeticError, RuntimeError, OSError) as error:
                state = "skipped" if isinstance(error, FileNotFoundError) else "failed"
                why = " ".join(str(error).split())
        cost = self.costs.get(plan.name)
        left = None if cost is None else (total - done) * self.epoch_seconds(plan)
        if done == total:
            left = 0.0
        return Outcome(plan.name, state, why, done, total, left, cost and cost.memory)
