"""Laws of the command line: the same numbers as the library, one sentence for what cannot be answered, honest exit codes."""

from __future__ import annotations

import json

import pytest
import yaml

import cnnlib
from cnnlib.__main__ import main
from cnnlib.paths import data_dir


def test_a_table_has_the_numbers_of_the_analyses_and_adds_up(capsys):
    assert main(["table", "lenet5_1998", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    cost = cnnlib.analysis.cost(cnnlib.build("lenet5_1998"), (1, 32, 32))
    assert [row["params"] for row in table["rows"]] == [row.params for row in cost]
    for quantity in ("params", "macs", "activations"):
        assert sum(row[quantity] for row in table["rows"]) == table["totals"][quantity] == getattr(cost, quantity)
    fields = {row["name"]: row["receptive_field"] for row in table["rows"]}
    assert [fields[name] for name in ("c1.0", "s2.0.avg_pool2d", "c3.0.cat", "s4.0.avg_pool2d", "c5.0")] == [
        5,
        6,
        14,
        16,
        32,
    ]


def test_a_table_takes_another_input_and_counts_its_channels(capsys):
    assert main(["table", "lenet5", "--input", "3x32x32", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert table["input_shape"] == [3, 32, 32]
    assert table["rows"][0]["params"] == 6 * (3 * 25 + 1)
    assert main(["table", "lenet5", "--input", "1x28x28"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_printed_table_shows_every_number_whole(capsys):
    assert main(["table", "lenet5"]) == 0
    said = capsys.readouterr().out
    assert "61,706" in said
    assert "…" not in said


def test_claims_that_hold_leave_with_0(capsys):
    assert main(["check", "A-007", "A-008"]) == 0
    said = capsys.readouterr().out
    assert "A-007  confirmed" in said
    assert "61,706" in said


def test_a_claim_can_be_read_by_programs(capsys):
    assert main(["check", "A-007", "--json"]) == 0
    (verdict,) = json.loads(capsys.readouterr().out)
    assert (verdict["id"], verdict["status"], verdict["found"]) == ("A-007", "confirmed", 61706)


def test_a_wrong_expectation_in_the_ledger_leaves_with_1(tmp_path, capsys):
    ledger = yaml.safe_load((data_dir() / "claims.yml").read_text())
    (row,) = [row for row in ledger["claims"] if row["id"] == "A-007"]
    assert main(["check", "A-007"]) == 0
    row["expect"] = {**row["expect"], "value": 61707}
    row["expect"].pop("ref", None)
    (tmp_path / "claims.yml").write_text(yaml.safe_dump(ledger, allow_unicode=True))
    capsys.readouterr()
    assert main(["check", "A-007", "--ledger", str(tmp_path / "claims.yml")]) == 1
    assert "61,707" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["check", "A-7"], "no claim 'A-7'"),
        (["check", "--ledger", "nowhere.yml"], "nowhere.yml"),
        (["train", "lenet5-mnst"], "no run 'lenet5-mnst'; did you mean 'lenet5-mnist'?"),
        (["train", "lenet5-mnist", "--pending"], "name runs or give --pending, not both"),
        (["run", "nowhere.ipynb"], "there is no notebook nowhere.ipynb"),
    ],
)
def test_what_cannot_be_answered_gets_one_sentence_and_2(arguments, said, capsys):
    assert main(arguments) == 2
    heard = capsys.readouterr()
    assert said in heard.err
    assert len(heard.err.strip().splitlines()) == 1


def test_the_queue_names_every_run_and_what_is_recorded_of_it(capsys):
    from cnnlib.training import records

    assert main(["train", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == [plan.name for plan in records.plans()]
    for name, row in rows.items():
        if name in records.list_records():
            assert row["test_accuracy"]["mean"] == records.load(name).test_accuracy.mean
        else:
            assert row["test_accuracy"] is None


def test_a_run_says_each_epoch_and_what_came_of_it(monkeypatch, capsys):
    """The run itself is the library's; here a recorded one is played back."""
    from cnnlib.training import records

    name = records.list_records()[0]
    record = records.load(name)

    def played(asked, *, device=None):
        assert (asked, device) == (name, "cpu")
        for number, run in enumerate(record.runs, 1):
            for epoch in run.history:
                yield records.Progress(name, run.seed, number, len(record.runs), epoch)

    monkeypatch.setattr(records, "run_record", played)
    assert main(["train", name, "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == sum(len(run.history) for run in record.runs) + 1
    assert f"{100 * record.test_accuracy.mean:.2f} % test accuracy" in lines[-1]


def test_a_stale_record_is_named_and_leaves_with_1(monkeypatch, capsys):
    from cnnlib.training import records

    def stale(name):
        raise records.StaleRecord(f"{name}: the recipe changed")

    monkeypatch.setattr(records, "verify", stale)
    name = records.list_records()[0]
    assert main(["train", name, "--verify"]) == 1
    assert f"{name}: STALE: {name}: the recipe changed" in capsys.readouterr().out


def test_the_zoo_lists_every_network_with_year_parameters_multiply_adds_and_field(capsys):
    assert main(["zoo", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == cnnlib.list_models()
    assert {name for name, row in rows.items() if not (row["year"] and row["params"] and row["macs"])} == set()
    assert {name for name, row in rows.items() if not row["receptive_field"]} == {"highway_fc"}
    assert (rows["resnet50"]["receptive_field"], rows["resnet50_v1_5"]["receptive_field"]) == (483, 427)
    assert main(["zoo"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in rows)
    assert "3,858.0" in printed
