"""What a long run leaves behind, and whether it still holds.

A record is a JSON file in `data/records/`: recipe, seeds, digests of data set and network, versions, machine, the
history of every seed, and the digest of one seed's weights in `data/weights/`. Which runs there are to be, and with
which recipe, stands in `data/records/queue.yml`. A record is stale, and `verify` raises, when its recipe is no longer
the one in the queue, when network or data set are no longer those that it was made with, or when its weights no longer
give the accuracy that it states. Versions and machine are information.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

import cnnlib
from cnnlib.data import DataSet, load_data
from cnnlib.data.sets import known_digest
from cnnlib.errors import unknown
from cnnlib.models import zoo
from cnnlib.paths import cache_dir, checkout, data_dir
from cnnlib.training.checkpoint import write_whole
from cnnlib.training.engine import Epoch, evaluate, fit
from cnnlib.training.fingerprint import fingerprint
from cnnlib.training.recipe import Recipe, differences

FORMAT = 1


class StaleRecord(ValueError):
    """A record that no longer holds; the message says in what."""


@dataclass(frozen=True)
class Plan:
    """One row of the queue: a run of several seeds, and why it is wanted.

    `keep` is the seed whose weights are kept, or None; `differs` says where the recipe departs from the paper's.
    """

    name: str
    why: str
    recipe: Recipe
    seeds: tuple[int, ...]
    keep: int | None
    differs: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """One seed: an `Epoch` after another, and the seconds that the training took."""

    seed: int
    history: tuple[Epoch, ...]

    @property
    def seconds(self) -> float:
        return sum(epoch.seconds for epoch in self.history)

    @property
    def final(self) -> Epoch:
        return self.history[-1]


@dataclass(frozen=True)
class Spread:
    """`n` values, their mean and standard deviation (n - 1; None for one value)."""

    n: int
    mean: float
    std: float | None

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        return cls(len(values), statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


@dataclass(frozen=True)
class Record:
    """A record as read from its file; `data`, `network`, `versions`, `machine` and `weights` are as they stand there."""

    name: str
    recipe: Recipe
    differs: tuple[str, ...]
    runs: tuple[Run, ...]
    data: dict[str, Any]
    network: dict[str, Any]
    versions: dict[str, str]
    machine: dict[str, Any]
    weights: dict[str, Any] | None
    folder: Path

    @property
    def test_accuracy(self) -> Spread:
        """Of the last epoch, from 0 to 1, over the seeds."""
        return Spread.of([run.final.test_accuracy for run in self.runs])

    @property
    def test_error(self) -> Spread:
        """100 * (1 - accuracy) of the last epoch, in %, over the seeds."""
        return Spread.of([100 * (1 - run.final.test_accuracy) for run in self.runs])

    @property
    def seconds(self) -> float:
        """What the training of all seeds took."""
        return sum(run.seconds for run in self.runs)

    def model(self) -> nn.Module:
        """The network with the kept weights, in evaluation mode; ValueError if they are not those of the record."""
        from safetensors.torch import load_file

        model = self.recipe.build()
        model.load_state_dict(load_file(_checked_weights(self)))
        return model.eval()


# --- the queue


def plans(folder: Path | None = None) -> list[Plan]:
    """The rows of `queue.yml`, in their order; `folder` holds `records/` and `weights/` and is cnnlib's own by default."""
    path = (folder or data_dir()) / "records" / "queue.yml"
    if not path.is_file():
        return []
    found = [_plan(row, path) for row in yaml.safe_load(path.read_text(encoding="utf-8"))["runs"]]
    names = [plan.name for plan in found]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{path} has {name!r} twice; give each run its own name")
    return found


def _plan(row: dict[str, Any], path: Path) -> Plan:
    keys = ("name", "why", "recipe", "seeds", "keep", "differs")
    for key in row:
        if key not in keys:
            raise unknown(f"key in a row of {path.name}", key, keys)
    try:
        recipe = Recipe.from_json(row["recipe"])
        seeds = tuple(row["seeds"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: the row {row.get('name')!r} is not a run: {error}") from error
    keep = row.get("keep")
    if keep is not None and keep not in seeds:
        raise ValueError(f"{path}: the row {row['name']!r} keeps the weights of seed {keep}, but runs {list(seeds)}")
    return Plan(row["name"], row.get("why", ""), recipe, seeds, keep, tuple(row.get("differs") or ()))


def pending(folder: Path | None = None) -> list[Plan]:
    """The rows of the queue that have no record yet, in their order."""
    done = list_records(folder)
    return [plan for plan in plans(folder) if plan.name not in done]


def _planned(name: str, folder: Path | None) -> Plan:
    rows = {plan.name: plan for plan in plans(folder)}
    if name not in rows:
        raise unknown("run in queue.yml", name, rows)
    return rows[name]


# --- reading


def list_records(folder: Path | None = None) -> list[str]:
    """The names of all records."""
    return sorted(path.stem for path in ((folder or data_dir()) / "records").glob("*.json"))


def load(name: str, folder: Path | None = None) -> Record:
    """The record `name`; ValueError for a name that has none, or a file that is none."""
    folder = folder or data_dir()
    if name not in list_records(folder):
        raise unknown("record", name, list_records(folder))
    path = folder / "records" / f"{name}.json"
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        if plain["format"] != FORMAT:
            raise ValueError(f"its format is {plain['format']} and this cnnlib reads {FORMAT}")
        record = Record(
            name=plain["name"],
            recipe=Recipe.from_json(plain["recipe"]),
            differs=tuple(plain["differs"]),
            runs=tuple(_run(run) for run in plain["runs"]),
            **{key: plain[key] for key in ("data", "network", "versions", "machine", "weights")},
            folder=folder,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a record ({error}); run it again") from error
    if plain["summary"] != _summary(record):
        raise StaleRecord(f"record {name!r} is stale: its summary is not that of its runs; run it again")
    return record


def figure(name: str, path: str, folder: Path | None = None) -> Any:
    """What the file of a record has at `path`, such as "summary.test_accuracy_mean" or "runs.0.seed".

    Errors as `load`, which must find the record whole, and ValueError for a step that leads nowhere.
    """
    found = json.loads((load(name, folder).folder / "records" / f"{name}.json").read_text(encoding="utf-8"))
    for step in path.split("."):
        try:
            found = found[int(step)] if isinstance(found, list) else found[step]
        except (KeyError, IndexError, ValueError, TypeError):
            known = ", ".join(map(str, found)) if isinstance(found, dict) else f"{len(found)} rows"
            raise ValueError(f"no {step!r} on the way to {path!r}; there are {known}") from None
    return found


def _run(plain: dict[str, Any]) -> Run:
    columns = plain["epochs"]
    names = [f.name for f in fields(Epoch)]
    history = tuple(Epoch(**dict(zip(names, row))) for row in zip(*(columns[name] for name in names), strict=True))
    if not history:
        raise ValueError(f"seed {plain['seed']} has no epochs")
    return Run(plain["seed"], history)


def _summary(record: Record) -> dict[str, Any]:
    accuracy, error = record.test_accuracy, record.test_error
    return {
        "seeds": accuracy.n,
        "test_accuracy_mean": accuracy.mean,
        "test_accuracy_std": accuracy.std,
        "test_error_percent_mean": error.mean,
        "test_error_percent_std": error.std,
    }


# --- verifying


@dataclass(frozen=True)
class Verification:
    """What `verify` found in order: a sentence a check, and `skipped`, what could not be looked at here."""

    name: str
    passed: tuple[str, ...]
    skipped: tuple[str, ...]


def verify(name: str, folder: Path | None = None) -> Verification:
    """Look whether a record still holds; StaleRecord, with all that is wrong, if not.

    The weights are tried on the test set where that is here; nothing is downloaded.
    """
    record = load(name, folder)
    wrong, passed, skipped = [], [], []

    def note(problems: list[str], fine: str) -> None:
        wrong.extend(problems)
        if not problems:
            passed.append(fine)

    note(_recipe_problems(record, folder), "the recipe is that of the queue")
    note(_network_problems(record), f"the network is the same ({record.network['fingerprint']})")
    problems, data = _data_problems(record)
    note(problems, f"the data set is the same ({record.data['name']})")
    if record.weights is not None and not wrong:
        try:
            _checked_weights(record)
        except ValueError as error:
            wrong.append(str(error))
        else:
            passed.append("the weights are the recorded file")
            if data is None:
                skipped.append(f"accuracy of the weights: {record.data['name']} is not here")
            else:
                note(*_accuracy_problems(record, data))
    if wrong:
        raise StaleRecord(f"record {name!r} is stale: {'; '.join(wrong)}; run `python -m cnnlib train {name}` again")
    return Verification(name, tuple(passed), tuple(skipped))


def _recipe_problems(record: Record, folder: Path | None) -> list[str]:
    plan = next((plan for plan in plans(folder) if plan.name == record.name), None)
    if plan is None:
        return ["queue.yml has no such run"]
    # The seed of a row is that of each run in turn.
    differs = differences(record.recipe.but(seed=0).to_json(), plan.recipe.but(seed=0).to_json())
    problems = [f"the recipe was changed ({', '.join(differs)})"] if differs else []
    if tuple(run.seed for run in record.runs) != plan.seeds:
        problems.append(f"it has the seeds {[run.seed for run in record.runs]} and the queue wants {list(plan.seeds)}")
    if any(len(run.history) != record.recipe.epochs for run in record.runs):
        problems.append(f"a run has not the {record.recipe.epochs} epochs of the recipe")
    return problems


def _network_problems(record: Record) -> list[str]:
    try:
        now = _fingerprint(record.recipe)
    except ValueError as error:
        return [f"its network cannot be built any more ({error})"]
    then = record.network["fingerprint"]
    return [] if now == then else [f"the network {record.recipe.model!r} was changed (fingerprint {then}, now {now})"]


def _fingerprint(recipe: Recipe) -> str:
    card = zoo.card(recipe.model)
    channels = recipe.options.get("in_channels", card.input_shape[0])
    return fingerprint(recipe.build(), (channels, *card.input_shape[1:]))


def _data_problems(record: Record) -> tuple[list[str], DataSet | None]:
    name, then = record.data["name"], record.data["digest"]
    try:
        data = load_data(name, download=False)
    except FileNotFoundError:
        data = None
    except ValueError as error:
        return [str(error)], None
    now = known_digest(name) or (data.digest if data else then)
    return ([] if now == then else [f"the data set {name!r} was changed (digest {then[:12]}, now {now[:12]})"]), data


def _checked_weights(record: Record) -> Path:
    if record.weights is None:
        raise ValueError(
            f"record {record.name!r} has no weights; name a seed under `keep` in queue.yml and run it again"
        )
    path = record.folder / "weights" / record.weights["file"]
    if not path.is_file():
        raise StaleRecord(f"the weights {path} of record {record.name!r} are not there")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != record.weights["sha256"]:
        raise StaleRecord(
            f"the weights {path} were changed (sha256 {found[:12]}, recorded {record.weights['sha256'][:12]})"
        )
    return path


def _accuracy_problems(record: Record, data: DataSet) -> tuple[list[str], str]:
    score = evaluate(record.model(), data.test, record.recipe.preprocess, record.recipe.criterion, device="cpu")
    stated = next(run for run in record.runs if run.seed == record.weights["seed"]).final.test_accuracy
    # Other processors round otherwise, which turns an image or two that stand on the edge.
    tolerance = max(2 / score.images, 0.0005)
    if abs(score.accuracy - stated) > tolerance:
        return [f"the weights give {score.accuracy:.4f} test accuracy and the record says {stated:.4f}"], ""
    return [], f"the weights give {score.accuracy:.4f} test accuracy, as recorded"


# --- running


@dataclass(frozen=True)
class Progress:
    """Where a run of several seeds is: seed `number` of `of`, and the epoch that it just finished."""

    name: str
    seed: int
    number: int
    of: int
    epoch: Epoch


def run_record(
    name: str,
    *,
    folder: Path | None = None,
    work: Path | None = None,
    device: torch.device | str | None = None,
) -> Iterator[Progress]:
    """Run the row `name` of the queue, yielding after every epoch; the record is written when the last seed is done.

    Stopped at any moment, it goes on after the last whole epoch of the seed that it was at: checkpoints lie in `work`
    (by default `_build/runs` of a checkout, else in the cache), record and weights go to `records/` and `weights/` of
    `folder`. ValueError for a name that the queue does not have.
    """
    return _run_record(_planned(name, folder), folder or data_dir(), work, device)


def _run_record(
    plan: Plan, folder: Path, work: Path | None, device: torch.device | str | None, data: DataSet | None = None
) -> Iterator[Progress]:
    root = checkout()
    work = work or (root / "_build" / "runs" if root else cache_dir() / "runs")
    data = data or load_data(plan.recipe.data)
    runs, kept = [], None
    for number, seed in enumerate(plan.seeds, 1):
        recipe = plan.recipe.but(seed=seed)
        model = recipe.build()
        history = []
        for epoch in fit(model, data, recipe, device=device, checkpoint=work / plan.name / f"seed-{seed}.ckpt"):
            history.append(epoch)
            yield Progress(plan.name, seed, number, len(plan.seeds), epoch)
        runs.append(Run(seed, tuple(history)))
        if seed == plan.keep:
            kept = model
    _write(plan, data, tuple(runs), kept, next(model.parameters()).device, folder)


def _write(
    plan: Plan, data: DataSet, runs: tuple[Run, ...], kept: nn.Module | None, device: torch.device, folder: Path
) -> None:
    import numpy
    import torchvision
    from safetensors.torch import save

    weights = None
    if kept is not None:
        content = save({key: value.cpu().contiguous() for key, value in kept.state_dict().items()})
        path = folder / "weights" / f"{plan.name}.safetensors"
        write_whole(path, lambda stream: stream.write(content))
        weights = {"file": path.name, "seed": plan.keep, "sha256": hashlib.sha256(content).hexdigest()}
    recipe = plan.recipe
    record = Record(
        name=plan.name,
        recipe=recipe,
        differs=plan.differs,
        runs=runs,
        data={"name": data.name, "digest": data.digest, "train": len(data.train), "test": len(data.test)},
        network={
            "fingerprint": _fingerprint(recipe),
            "parameters": sum(p.numel() for p in recipe.build().parameters() if p.requires_grad),
        },
        versions={
            "cnnlib": cnnlib.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "numpy": numpy.__version__,
        },
        machine={
            "system": f"{platform.system()} {platform.machine()}",
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        },
        weights=weights,
        folder=folder,
    )
    names = [f.name for f in fields(Epoch)]
    plain = {
        "format": FORMAT,
        "name": record.name,
        "recipe": recipe.to_json(),
        "differs": list(record.differs),
        "data": record.data,
        "network": record.network,
        "versions": record.versions,
        "machine": record.machine,
        "wall_seconds": round(record.seconds, 1),
        "summary": _summary(record),
        "weights": record.weights,
        "runs": [
            {
                "seed": run.seed,
                "wall_seconds": round(run.seconds, 1),
                "epochs": {name: [getattr(epoch, name) for epoch in run.history] for name in names},
            }
            for run in runs
        ],
    }
    text = _pretty(plain) + "\n"
    write_whole(folder / "records" / f"{plan.name}.json", lambda stream: stream.write(text.encode()))


def _processor() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _pretty(value: Any, indent: str = "") -> str:
    """JSON in which a list of plain values stays on one line, so that a diff of a record is read at a glance."""
    inner = indent + "  "
    if isinstance(value, dict) and value:
        rows = [f"{inner}{json.dumps(key)}: {_pretty(item, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(rows) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return "[\n" + ",\n".join(f"{inner}{_pretty(item, inner)}" for item in value) + f"\n{indent}]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
