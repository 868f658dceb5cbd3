"""Records: what a run leaves behind, how it goes on after a stop, and how it is found out when it no longer holds."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

import cnnlib
from cnnlib.data import sets
from cnnlib.models import zoo
from cnnlib.paths import data_dir
from cnnlib.training import Recipe, engine, evaluate, records, run_record
from cnnlib.training.fingerprint import fingerprint

QUEUE = {
    "runs": [
        {
            "name": "tiny",
            "why": "a test",
            "seeds": [3, 4],
            "keep": 4,
            "recipe": {
                "model": "lenet5",
                "data": "fashion_mnist_mini",
                "train_images": 300,
                "epochs": 2,
                "lr": 0.02,
                "batch_size": 32,
                "preprocess": {"kind": "Preprocess", "pad": 2, "mean": [0.286], "std": [0.353]},
            },
            "differs": ["it is short"],
        },
        {"name": "later", "seeds": [0], "recipe": {"model": "lenet5", "data": "mnist"}},
    ]
}


def queue(folder: Path, runs: dict = QUEUE) -> Path:
    (folder / "records").mkdir(parents=True, exist_ok=True)
    (folder / "records" / "queue.yml").write_text(yaml.safe_dump(runs))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder in which the run `tiny` was made once."""
    folder = queue(tmp_path_factory.mktemp("made"))
    list(run_record("tiny", folder=folder, work=folder / "work"))
    return folder


@pytest.fixture
def folder(made, tmp_path):
    """A copy of it that a test may spoil."""
    queue(tmp_path)
    (tmp_path / "weights").mkdir()
    for name in ("records/tiny.json", "weights/tiny.safetensors"):
        (tmp_path / name).write_bytes((made / name).read_bytes())
    return tmp_path


def edit(folder: Path, change) -> None:
    path = folder / "records" / "tiny.json"
    plain = json.loads(path.read_text())
    change(plain)
    path.write_text(json.dumps(plain))


# --- a record


def test_a_record_says_all_that_its_numbers_depend_on(made):
    plain = json.loads((made / "records" / "tiny.json").read_text())
    assert plain["recipe"] == records.plans(made)[0].recipe.to_json()
    assert plain["data"] == {
        "name": "fashion_mnist_mini",
        "digest": sets.known_digest("fashion_mnist_mini"),
        "train": 5000,
        "test": 1000,
    }
    assert plain["network"]["parameters"] == 61706
    assert plain["versions"]["torch"] == torch.__version__
    assert {"system", "processor", "cores", "threads", "device"} <= plain["machine"].keys()
    assert plain["wall_seconds"] > 0
    assert plain["differs"] == ["it is short"]
    assert [run["seed"] for run in plain["runs"]] == [3, 4]


def test_a_record_holds_what_fit_yields_bit_for_bit(made):
    record = records.load("tiny", made)
    data = cnnlib.load_data("fashion_mnist_mini")
    for run in record.runs:
        recipe = record.recipe.but(seed=run.seed)
        assert list(cnnlib.fit(recipe.build(), data, recipe)) == list(run.history)


def test_the_summary_is_mean_and_deviation_of_the_last_epochs(made):
    record = records.load("tiny", made)
    one, two = (run.history[-1].test_accuracy for run in record.runs)
    assert record.test_accuracy.n == 2
    assert record.test_accuracy.mean == pytest.approx((one + two) / 2)
    assert record.test_accuracy.std == pytest.approx(abs(one - two) / 2**0.5)
    assert record.test_error.mean == pytest.approx(100 - 50 * (one + two))


def test_the_kept_weights_are_those_of_the_kept_seed(made):
    record = records.load("tiny", made)
    model = record.model()
    assert not model.training
    score = evaluate(model, cnnlib.load_data("fashion_mnist_mini").test, record.recipe.preprocess)
    assert score.accuracy == record.runs[1].final.test_accuracy


def test_a_record_that_holds_is_verified_check_by_check(made):
    found = records.verify("tiny", made)
    assert len(found.passed) == 5
    assert found.skipped == ()


def test_the_queue_knows_what_is_still_to_be_made(made, tmp_path):
    assert [plan.name for plan in records.pending(made)] == ["later"]
    assert [plan.name for plan in records.pending(queue(tmp_path))] == ["tiny", "later"]
    assert records.list_records(made) == ["tiny"]
    assert records.list_records(tmp_path) == []


# --- stopping and going on


def test_a_stopped_run_goes_on_at_its_seed_and_epoch(made, tmp_path, monkeypatch):
    queue(tmp_path)
    trained = []
    one_epoch = engine._one_epoch
    monkeypatch.setattr(engine, "_one_epoch", lambda *a: trained.append(a[-1]) or one_epoch(*a))
    run = run_record("tiny", folder=tmp_path, work=tmp_path / "work")
    for _ in range(3):
        step = next(run)
    run.close()
    assert (step.seed, step.number, step.of, step.epoch.epoch) == (4, 2, 2, 1)
    assert records.list_records(tmp_path) == []  # no half record
    steps = list(run_record("tiny", folder=tmp_path, work=tmp_path / "work"))
    assert [(step.seed, step.epoch.epoch) for step in steps] == [(3, 1), (3, 2), (4, 1), (4, 2)]
    assert trained == [1, 2, 1, 2]
    again, first = records.load("tiny", tmp_path), records.load("tiny", made)
    assert again.runs == first.runs
    assert again.weights == first.weights


def test_a_run_that_the_queue_does_not_have_is_answered_with_the_nearest(made):
    with pytest.raises(ValueError, match=re.escape("no run in queue.yml 'tinny'; did you mean 'tiny'?")):
        run_record("tinny", folder=made)
    with pytest.raises(ValueError, match="no record 'later'; there are tiny"):
        records.load("later", made)


# --- stale records


def test_a_changed_recipe_makes_a_record_stale(folder):
    changed = json.loads(json.dumps(QUEUE))
    changed["runs"][0]["recipe"]["lr"] = 0.05
    queue(folder, changed)
    sentence = "record 'tiny' is stale: the recipe was changed (lr is 0.02 there and 0.05 here); run"
    with pytest.raises(records.StaleRecord, match=re.escape(sentence)):
        records.verify("tiny", folder)


def test_changed_seeds_and_a_missing_row_make_a_record_stale(folder):
    changed = json.loads(json.dumps(QUEUE))
    changed["runs"][0]["seeds"] = [3, 4, 5]
    queue(folder, changed)
    with pytest.raises(records.StaleRecord, match=re.escape("it has the seeds [3, 4] and the queue wants [3, 4, 5]")):
        records.verify("tiny", folder)
    queue(folder, {"runs": changed["runs"][1:]})
    with pytest.raises(records.StaleRecord, match=r"queue\.yml has no such run"):
        records.verify("tiny", folder)


def test_a_changed_network_makes_a_record_stale(folder, monkeypatch):
    def other(num_classes, in_channels):
        model = lenet5(num_classes, in_channels)
        model.s2 = nn.AvgPool2d(2)
        return model

    from cnnlib.models import lenet

    lenet5 = lenet.lenet5
    monkeypatch.setattr(lenet, "lenet5", other)
    with pytest.raises(records.StaleRecord, match=r"the network 'lenet5' was changed \(fingerprint"):
        records.verify("tiny", folder)


def test_a_network_that_is_gone_makes_a_record_stale(folder, monkeypatch):
    monkeypatch.delitem(zoo._ROWS, "lenet5")
    with pytest.raises(records.StaleRecord, match="its network cannot be built any more"):
        records.verify("tiny", folder)


def test_changed_data_make_a_record_stale(folder):
    edit(folder, lambda plain: plain["data"].update(digest="0" * 64))
    with pytest.raises(records.StaleRecord, match="the data set 'fashion_mnist_mini' was changed"):
        records.verify("tiny", folder)


def test_changed_or_missing_weights_make_a_record_stale(folder):
    path = folder / "weights" / "tiny.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(records.StaleRecord, match=r"the weights .*tiny\.safetensors were changed"):
        records.verify("tiny", folder)
    path.unlink()
    with pytest.raises(records.StaleRecord, match=r"the weights .*tiny\.safetensors of record 'tiny' are not there"):
        records.verify("tiny", folder)


def test_weights_that_do_not_give_the_recorded_accuracy_make_a_record_stale(folder):
    def claim_more(plain):
        column = plain["runs"][1]["epochs"]["test_accuracy"]
        column[-1] += 0.01
        accuracies = [run["epochs"]["test_accuracy"][-1] for run in plain["runs"]]
        spread, error = records.Spread.of(accuracies), records.Spread.of([100 * (1 - a) for a in accuracies])
        plain["summary"].update(
            test_accuracy_mean=spread.mean,
            test_accuracy_std=spread.std,
            test_error_percent_mean=error.mean,
            test_error_percent_std=error.std,
        )

    edit(folder, claim_more)
    with pytest.raises(records.StaleRecord, match=r"the weights give 0\.\d+ test accuracy and the record says 0\.\d+"):
        records.verify("tiny", folder)


def test_a_summary_that_was_typed_over_is_found_out(folder):
    edit(folder, lambda plain: plain["summary"].update(test_accuracy_mean=0.99))
    with pytest.raises(records.StaleRecord, match="its summary is not that of its runs"):
        records.load("tiny", folder)


def test_a_run_that_is_cut_short_is_found_out(folder):
    def shorten(plain):
        for run in plain["runs"]:
            run["epochs"] = {name: column[:1] for name, column in run["epochs"].items()}
        plain["weights"] = None

    edit(folder, shorten)
    with pytest.raises(records.StaleRecord):
        records.verify("tiny", folder)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"format": 99}', '{"format": 1, "name": "tiny"}'])
def test_a_file_that_is_no_record_is_named(folder, content):
    (folder / "records" / "tiny.json").write_text(content)
    with pytest.raises(ValueError, match=r"tiny\.json cannot be read as a record"):
        records.load("tiny", folder)


def test_other_versions_and_another_machine_are_information(folder):
    edit(folder, lambda plain: (plain["versions"].update(torch="1.0"), plain["machine"].update(processor="abacus")))
    assert records.verify("tiny", folder).name == "tiny"


def test_a_set_that_is_not_here_is_said_to_be_skipped(folder, monkeypatch):
    def not_here(name, download):
        raise FileNotFoundError(name)

    monkeypatch.setattr(records, "load_data", not_here)
    found = records.verify("tiny", folder)
    assert found.skipped == ("accuracy of the weights: fashion_mnist_mini is not here",)


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"name": "x", "seeds": [0], "recipe": {"epochs": 0}}, "the row 'x' is not a run: a recipe's epochs must be"),
        ({"name": "x", "seeds": [0]}, "the row 'x' is not a run"),
        ({"name": "x", "seeds": [0], "keep": 1, "recipe": {}}, r"keeps the weights of seed 1, but runs \[0\]"),
        ({"name": "x", "seeds": [0], "recipe": {}, "diffres": []}, "no key in a row of queue.yml 'diffres'"),
    ],
)
def test_a_bad_row_of_the_queue_is_named(tmp_path, row, text):
    with pytest.raises(ValueError, match=text):
        records.plans(queue(tmp_path, {"runs": [row]}))


# --- the records of the book


@pytest.mark.parametrize("name", records.list_records())
def test_each_record_of_the_book_holds(name):
    record = records.load(name)
    assert records.verify(name).name == name
    assert record.test_accuracy.n == len(records._planned(name, None).seeds)


def test_each_weights_file_belongs_to_a_record_and_is_small():
    stated = {records.load(name).weights["file"] for name in records.list_records() if records.load(name).weights}
    files = list((data_dir() / "weights").glob("*.safetensors"))
    assert {path.name for path in files} == stated
    assert all(path.stat().st_size < 4.2e6 for path in files)


def test_each_row_of_the_queue_can_be_written_down_and_names_a_data_set():
    for plan in records.plans():
        assert Recipe.from_json(plan.recipe.to_json()) == plan.recipe
        assert plan.recipe.data in sets.list_data()
        assert plan.recipe.model
        assert plan.why


def test_the_modern_net_reaches_99_percent_on_mnist():
    accuracy = records.load("lenet5-mnist").test_accuracy
    assert accuracy.n == 5
    assert accuracy.mean >= 0.99


# --- fingerprints


def net(channels=4, kernel=3, stride=1, padding=1, eps=1e-5, p=0.5, momentum=0.1, dilation=1, last=nn.ReLU):
    return nn.Sequential(
        nn.Conv2d(3, channels, kernel, stride, padding, dilation),
        nn.BatchNorm2d(channels, eps, momentum),
        last(),
        nn.Dropout(p),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, 5),
    )


@pytest.mark.parametrize(
    "change",
    [
        {"channels": 5},
        {"kernel": 5, "padding": 2},
        {"stride": 2},
        {"padding": 0},
        {"eps": 1e-3},
        {"p": 0.1},
        {"momentum": 0.01},
        {"dilation": 2, "padding": 2},
        {"last": nn.GELU},
    ],
)
def test_a_fingerprint_tells_networks_apart(change):
    assert fingerprint(net(**change), (3, 9, 9)) != fingerprint(net(), (3, 9, 9))


def test_a_fingerprint_sees_the_wiring():
    class Wired(nn.Module):
        def __init__(self, shortcut):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.shortcut = shortcut

        def forward(self, x):
            return self.conv(x) + x if self.shortcut else self.conv(x)

    assert fingerprint(Wired(True), (3, 6, 6)) != fingerprint(Wired(False), (3, 6, 6))


def test_a_fingerprint_does_not_see_weights_modes_or_random_states():
    one = net()
    expected = fingerprint(one, (3, 9, 9))
    one(torch.randn(4, 3, 9, 9))  # moves the running statistics
    torch.manual_seed(9)
    assert fingerprint(net().eval(), (3, 9, 9)) == fingerprint(one, (3, 9, 9)) == expected


def test_taking_a_fingerprint_leaves_the_network_alone():
    model = net().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    fingerprint(model, (3, 9, 9))
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(value.dtype == before[key].dtype for key, value in model.state_dict().items())


def test_a_network_that_answers_nothing_has_no_fingerprint():
    class Silent(nn.Module):
        def forward(self, x):
            return x.flatten(1) * 0

    with pytest.raises(ValueError, match=r"answers 0\.0 to the probe"):
        fingerprint(Silent(), (1, 4, 4))
