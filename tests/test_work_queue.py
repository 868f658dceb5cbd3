"""Laws of the queue's worker: the order is kept, no epoch is begun that would not fit, and a stop costs one epoch at most."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest
import yaml

from cnnlib.__main__ import main
from cnnlib.training import engine, records
from cnnlib.training.queue import Outcome, work_queue

RECIPE = {
    "model": "lenet5",
    "data": "fashion_mnist_mini",
    "train_images": 100,
    "epochs": 2,
    "lr": 0.02,
    "batch_size": 50,
    "preprocess": {"kind": "Preprocess", "pad": 2, "mean": [0.286], "std": [0.353]},
}
FIRST = {"name": "first", "seeds": [3, 4], "keep": 4, "recipe": RECIPE}
AWAY = {"name": "away", "seeds": [0], "recipe": {**RECIPE, "data": "cifar100"}}
LAST = {"name": "last", "seeds": [0], "recipe": {**RECIPE, "train_images": 50}}


def queue(folder: Path, *rows: dict) -> Path:
    (folder / "records").mkdir(parents=True, exist_ok=True)
    (folder / "records" / "queue.yml").write_text(yaml.safe_dump({"runs": list(rows)}))
    return folder


@pytest.fixture(autouse=True)
def no_data_but_our_own(tmp_path, monkeypatch):
    monkeypatch.setenv("CNNLIB_DATA", str(tmp_path / "nothing"))


@pytest.fixture
def home(tmp_path):
    return queue(tmp_path / "data", FIRST, AWAY, LAST)


def work(home: Path, out: Path, minutes: float = 10, **options) -> tuple[list, dict[str, Outcome]]:
    found = list(work_queue(minutes, out, folder=home, **options))
    steps = [step for step in found if not isinstance(step, Outcome)]
    return steps, {outcome.name: outcome for outcome in found[len(steps) :]}


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def slow_epochs(monkeypatch):
    """A clock on which every trained epoch takes 100 s."""
    clock = Clock()
    one_epoch = engine._one_epoch

    def trained(*arguments):
        clock.now += 100.0
        return one_epoch(*arguments)

    monkeypatch.setattr(engine, "_one_epoch", trained)
    return clock


def test_rows_become_records_in_their_order_and_a_set_that_is_not_here_is_no_end(home, tmp_path):
    steps, outcomes = work(home, tmp_path / "out")
    assert [step.name for step in steps] == ["first"] * 4 + ["last"] * 2
    assert list(outcomes) == ["first", "away", "last"]
    assert [outcome.state for outcome in outcomes.values()] == ["recorded", "skipped", "recorded"]
    assert "data set 'cifar100' is not under" in outcomes["away"].why
    assert (outcomes["away"].epochs_done, outcomes["away"].epochs) == (0, 2)
    assert outcomes["first"].seconds == 0
    assert records.list_records(tmp_path / "out") == ["first", "last"]
    assert records.list_records(home) == []


def test_what_it_leaves_is_what_a_run_by_hand_leaves_and_holds_when_it_is_brought_home(home, tmp_path):
    out = tmp_path / "out"
    work(home, out)
    list(records.run_record("first", folder=queue(tmp_path / "hand", FIRST), work=tmp_path / "work"))
    mine, by_hand = records.load("first", out), records.load("first", tmp_path / "hand")
    assert mine.runs == by_hand.runs
    assert mine.weights == by_hand.weights
    for path in [*out.glob("records/*.json"), *out.glob("weights/*")]:
        target = home / path.relative_to(out)
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
    assert len(records.verify("first", home).passed) == 5
    assert [plan.name for plan in records.pending(home)] == ["away"]


def test_a_row_that_is_recorded_is_not_trained_again(home, tmp_path):
    work(home, tmp_path / "out")
    steps, outcomes = work(home, tmp_path / "out")
    assert steps == []
    assert [outcome.state for outcome in outcomes.values()] == ["recorded before", "skipped", "recorded before"]


def test_a_record_of_another_recipe_is_made_anew(home, tmp_path):
    work(home, tmp_path / "out")
    queue(home, {**LAST, "recipe": {**LAST["recipe"], "lr": 0.01}})
    steps, outcomes = work(home, tmp_path / "out")
    assert len(steps) == 2
    assert outcomes["last"].state == "recorded"
    assert records.load("last", tmp_path / "out").recipe.lr == 0.01


def test_no_epoch_is_begun_that_would_not_be_over_in_time(home, tmp_path, slow_epochs):
    out, minutes = tmp_path / "out", 6.5
    steps, outcomes = work(home, out, minutes, clock=slow_epochs)
    assert slow_epochs.now <= 60 * minutes
    assert [(step.seed, step.epoch.epoch) for step in steps] == [(3, 1), (3, 2), (4, 1)]
    assert outcomes["first"].state == "begun"
    assert (outcomes["first"].epochs_done, outcomes["first"].epochs) == (3, 4)
    assert outcomes["first"].seconds == 100
    assert re.fullmatch(r"an epoch takes about 100\.0 s and 70\.5 s are left", outcomes["first"].why)
    assert outcomes["last"].state == "waiting"
    assert records.list_records(out) == []
    assert not list(out.rglob("*.part"))


def test_the_next_call_goes_on_with_the_next_epoch_and_ends_in_the_same_record(home, tmp_path, slow_epochs):
    work(home, tmp_path / "whole", 1000, clock=slow_epochs)
    trained = slow_epochs.now
    seen = []
    for _ in range(5):
        start = slow_epochs.now
        _, outcomes = work(home, tmp_path / "parts", 9, clock=slow_epochs)
        assert slow_epochs.now - start <= 9 * 60
        seen.append(outcomes["first"].epochs_done)
        if outcomes["last"].state in ("recorded", "recorded before"):
            break
    assert seen == sorted(seen)
    assert seen[-1] == 4
    assert trained == 600
    for name in ("first", "last"):
        whole, parts = (records.load(name, tmp_path / folder) for folder in ("whole", "parts"))
        assert whole.runs == parts.runs
        assert whole.weights == parts.weights


def test_a_row_that_fails_is_named_and_the_next_is_trained(home, tmp_path):
    wild = {"name": "wild", "seeds": [0], "recipe": {**RECIPE, "lr": 1e30}}
    queue(home, wild, LAST)
    _, outcomes = work(home, tmp_path / "out")
    assert outcomes["wild"].state == "failed"
    assert outcomes["wild"].why.startswith("FloatingPointError: the loss became ")
    assert outcomes["last"].state == "recorded"


def test_a_damaged_checkpoint_is_named_and_the_next_row_is_trained(home, tmp_path):
    path = tmp_path / "out" / "runs" / "first" / "seed-3.ckpt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no checkpoint")
    _, outcomes = work(home, tmp_path / "out")
    assert outcomes["first"].state == "failed"
    assert "cannot be read" in outcomes["first"].why
    assert outcomes["last"].state == "recorded"


def test_two_calls_share_the_rows_of_one_folder(home, tmp_path):
    queue(home, FIRST, LAST)
    one = work_queue(10, tmp_path / "out", folder=home)
    step = next(one)
    assert step.name == "first"
    _, outcomes = work(home, tmp_path / "out")
    assert [outcome.state for outcome in outcomes.values()] == ["busy", "recorded"]
    rest = list(one)
    assert [outcome.state for outcome in rest if isinstance(outcome, Outcome)] == ["recorded", "recorded before"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_call_that_is_killed_goes_on_at_the_next(home, tmp_path, monkeypatch):
    """SIGKILL, which nothing can catch, within the fourth epoch."""
    out = tmp_path / "out"
    one_epoch, trained = engine._one_epoch, []

    def killed_in_the_fourth(*arguments):
        trained.append(arguments[-1])
        epoch = one_epoch(*arguments)
        if len(trained) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return epoch

    child = os.fork()
    if child == 0:
        try:
            monkeypatch.setattr(engine, "_one_epoch", killed_in_the_fourth)
            list(work_queue(10, out, folder=home))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert records.list_records(out) == []
    monkeypatch.setattr(engine, "_one_epoch", lambda *a: trained.append(a[-1]) or one_epoch(*a))
    work(home, out)
    assert trained == [2, 1, 2]  # the second epoch of seed 4, and the row behind
    work(home, tmp_path / "whole")
    assert records.load("first", out).runs == records.load("first", tmp_path / "whole").runs


def test_the_command_says_what_was_done_and_what_is_left(home, tmp_path, monkeypatch, capsys):
    queue(home, LAST, AWAY)
    for module in ("cnnlib.training.queue", "cnnlib.training.records"):
        monkeypatch.setattr(f"{module}.data_dir", lambda: home)
    out = tmp_path / "out"
    assert main(["work-queue", "--minutes", "5", "--out", str(out), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert said.count("epoch 2 of 2") == 1
    assert re.search(r"last +recorded +2 +2", said)
    assert re.search(r"away +skipped +0 +2", said)
    assert "away: data set 'cifar100' is not under" in said
    assert f"Bring {out}/records and {out}/weights to data/" in said
    assert main(["work-queue", "--minutes", "5", "--out", str(out), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["state"]) for row in rows] == [("last", "recorded before"), ("away", "skipped")]
    queue(home, {"name": "wild", "seeds": [0], "recipe": {**RECIPE, "lr": 1e30}})
    assert main(["work-queue", "--minutes", "5", "--out", str(out)]) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--minutes", "0", "--out", "x"], "must be a number above 0, got '0'"),
        (["--minutes", "soon", "--out", "x"], "must be a number above 0, got 'soon'"),
        (["--minutes", "3"], "--out"),
    ],
)
def test_a_wrong_call_gets_one_sentence(arguments, said, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["work-queue", *arguments])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_minutes_and_folder_are_checked_before_anything_is_done(home, tmp_path):
    with pytest.raises(ValueError, match="minutes must be a number above 0, got -1"):
        work_queue(-1, tmp_path / "out", folder=home)
    with pytest.raises(ValueError, match="which is the same folder; name another"):
        work_queue(1, home, folder=home)
