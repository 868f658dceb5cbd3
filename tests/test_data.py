"""Data sets and augmentation: right bytes or a clear no; augmentation that cuts what it says, as often as it says."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnlib.data import (
    Batches,
    Cutout,
    DataSet,
    HorizontalFlip,
    Preprocess,
    RandomCrop,
    Split,
    augment,
    crop,
    cutout,
    flip,
    list_data,
    load_data,
    sets,
)
from cnnlib.paths import data_dir

ROOT = Path(__file__).parents[1]


def real(name: str) -> DataSet:
    """The real data set, or a skip that says why; where CI provides real data, a missing set is a failure."""
    try:
        return load_data(name, download=False)
    except FileNotFoundError as error:
        if os.environ.get("CI") and os.environ.get("CNNLIB_DATA") and name not in ("cifar100", "imagenette"):
            raise
        pytest.skip(str(error))


def images(n: int = 16, channels: int = 3, height: int = 12, width: int = 10) -> torch.Tensor:
    size = (n, channels, height, width)
    return torch.randint(1, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(7))


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes())


def tiny_mnist(folder: Path, per_class: tuple[int, int] = (3, 2)) -> None:
    """The four files of an MNIST with a few random images, in torchvision's layout."""
    draw = np.random.RandomState(0)
    for prefix, count in zip(("train", "t10k"), per_class):
        labels = draw.permutation(np.repeat(np.arange(10), count)).astype(np.uint8)
        pictures = draw.randint(0, 256, (10 * count, 28, 28)).astype(np.uint8)
        write_idx(folder / f"{prefix}-images-idx3-ubyte", pictures)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte", labels)


def tiny_row(folder: Path) -> sets.Row:
    """MNIST's row with the checksums of the tiny files in `folder`/MNIST/raw."""
    row = sets._ROWS["mnist"]
    files = {path: "sha256:" + hashlib.sha256((folder / path).read_bytes()).hexdigest() for path in row.files}
    return replace(row, files=files)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """An empty cache, and a table whose `mnist` is a tiny one; its files lie in the folder that is returned."""
    source = tmp_path / "source"
    tiny_mnist(source / "MNIST" / "raw")
    monkeypatch.setitem(sets._ROWS, "mnist", tiny_row(source))
    monkeypatch.setenv("CNNLIB_DATA", str(tmp_path / "cache"))
    return source


def copying(source: Path):
    """A download that copies `source`."""

    def fetch(row, folder):
        for path in row.files:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes((source / path).read_bytes())

    return fetch


# --- the embedded set


def test_the_embedded_set_is_balanced_and_needs_no_network(monkeypatch, tmp_path):
    monkeypatch.setenv("CNNLIB_DATA", str(tmp_path / "nothing"))
    data = load_data("fashion_mnist_mini")
    assert data.train.images.shape == (5000, 1, 28, 28)
    assert data.test.images.shape == (1000, 1, 28, 28)
    assert data.train.images.dtype == torch.uint8
    assert data.train.labels.bincount().tolist() == [500] * 10
    assert data.test.labels.bincount().tolist() == [100] * 10
    assert not (tmp_path / "nothing").exists()


def test_the_embedded_file_has_the_checksum_that_the_readme_states():
    found = hashlib.sha256((data_dir() / "fashion_mnist_mini.npz").read_bytes()).hexdigest()
    assert f"`{found}`" in (data_dir() / "README.md").read_text(encoding="utf-8")


def test_the_embedded_set_is_small():
    assert (data_dir() / "fashion_mnist_mini.npz").stat().st_size < 2.7e6


def test_a_damaged_embedded_file_is_refused_by_name_and_checksum(monkeypatch, tmp_path):
    content = bytearray((data_dir() / "fashion_mnist_mini.npz").read_bytes())
    content[1000] ^= 1
    (tmp_path / "fashion_mnist_mini.npz").write_bytes(content)
    monkeypatch.setattr(sets, "data_dir", lambda: tmp_path)
    with pytest.raises(ValueError, match=r"fashion_mnist_mini.npz is damaged: its sha256 should be 1064eff4") as caught:
        load_data("fashion_mnist_mini")
    assert str(tmp_path) in str(caught.value)


def test_the_making_script_takes_the_first_of_each_class_and_repeats_itself(tmp_path):
    tiny_mnist(tmp_path / "official", (501, 101))
    outs = [tmp_path / "one.npz", tmp_path / "two.npz"]
    for out in outs:
        command = [
            sys.executable,
            str(ROOT / "data" / "make_fashion_mnist_mini.py"),
            str(tmp_path / "official"),
            str(out),
        ]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert printed.split()[0] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert outs[0].read_bytes() == outs[1].read_bytes()
    labels = np.frombuffer((tmp_path / "official" / "train-labels-idx1-ubyte").read_bytes(), np.uint8, offset=8)
    pixels = np.frombuffer((tmp_path / "official" / "train-images-idx3-ubyte").read_bytes(), np.uint8, offset=16)
    taken, seen = [], dict.fromkeys(range(10), 0)
    for index, label in enumerate(labels.tolist()):
        seen[label] += 1
        if seen[label] <= 500:
            taken.append(index)
    with np.load(outs[0]) as made:
        assert np.array_equal(made["train_labels"], labels[taken])
        assert np.array_equal(made["train_images"], pixels.reshape(-1, 28, 28)[taken])
        assert len(made["test_labels"]) == 1000


@pytest.mark.realdata
def test_the_embedded_set_is_what_the_script_makes_of_the_official_files(tmp_path):
    real("fashion_mnist")
    folder = Path(os.environ["CNNLIB_DATA"]) / "FashionMNIST" / "raw"
    out = tmp_path / "again.npz"
    script = str(ROOT / "data" / "make_fashion_mnist_mini.py")
    subprocess.run([sys.executable, script, str(folder), str(out)], check=True, capture_output=True)
    with np.load(out) as made, np.load(data_dir() / "fashion_mnist_mini.npz") as kept:
        assert made.files == kept.files
        for name in kept.files:
            assert np.array_equal(made[name], kept[name])


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "train", "test", "shape"),
    [
        ("mnist", 60000, 10000, (1, 28, 28)),
        ("fashion_mnist", 60000, 10000, (1, 28, 28)),
        ("cifar10", 50000, 10000, (3, 32, 32)),
        ("cifar100", 50000, 10000, (3, 32, 32)),
    ],
)
def test_a_real_set_has_its_published_size(name, train, test, shape):
    data = real(name)
    for split, size in ((data.train, train), (data.test, test)):
        assert split.images.shape == (size, *shape)
        assert len(split.labels.unique()) == len(data.classes)
    assert data.digest == sets.known_digest(name)


@pytest.mark.realdata
@pytest.mark.slow
def test_imagenette_at_128_pixels_is_a_folder_of_images():
    data = real("imagenette128")
    assert data.test.images.shape == (3925, 3, 128, 128)
    assert data.test.labels.bincount().tolist() == [387, 395, 357, 386, 409, 394, 389, 419, 399, 390]
    assert len(data.digest) == 64


# --- where a set comes from


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=re.escape("no data set 'cifar1O'; did you mean 'cifar10'?")):
        load_data("cifar1O")


@pytest.mark.parametrize("name", [name for name in list_data() if name != "fashion_mnist_mini"])
def test_a_missing_set_says_where_it_looked_and_what_to_do(name, tmp_path, monkeypatch):
    monkeypatch.setenv("CNNLIB_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError) as caught:
        load_data(name, download=False)
    text = str(caught.value)
    assert f"data set {name!r} is not under {tmp_path}" in text
    assert "set CNNLIB_DATA to a folder that holds" in text
    assert "load_data('fashion_mnist_mini')" in text
    first = sets._ROWS[name].folder or next(iter(sets._ROWS[name].files))
    assert first in text


def test_a_failed_download_says_so_and_never_gives_another_set(tiny, monkeypatch, tmp_path):
    def no_network(row, folder):
        raise RuntimeError("Name or service not known")

    monkeypatch.setattr(sets, "_fetch", no_network)
    with pytest.raises(FileNotFoundError, match="could not be fetched \\(Name or service not known\\)"):
        load_data("mnist")
    assert [path.name for path in (tmp_path / "cache").iterdir()] in ([".mnist.lock"], [])


def test_a_set_is_fetched_once_and_found_after(tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(sets, "_fetch", copying(tiny))
    first = load_data("mnist")
    monkeypatch.setattr(sets, "_fetch", lambda row, folder: pytest.fail("fetched again"))
    again = load_data("mnist")
    assert torch.equal(first.train.images, again.train.images)
    assert first.digest == again.digest
    assert not (tmp_path / "cache" / ".mnist.part").exists()


def test_splits_are_read_when_they_are_asked_for(tiny, monkeypatch):
    monkeypatch.setattr(sets, "_fetch", copying(tiny))
    data = load_data("mnist")
    monkeypatch.setattr(sets, "_read_idx", lambda row, root, train: pytest.fail("read too early"))
    assert data.name == "mnist"
    assert len(data.digest) == 64


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_file_is_named_with_the_checksum_that_it_should_have(tiny, monkeypatch, tmp_path, damage):
    monkeypatch.setattr(sets, "_fetch", copying(tiny))
    load_data("mnist")
    path = tmp_path / "cache" / "MNIST" / "raw" / "train-images-idx3-ubyte"
    content = path.read_bytes()
    path.write_bytes(content[:-10] if damage == "truncated" else content[:-1] + bytes([content[-1] ^ 1]))
    expected = sets._ROWS["mnist"].files["MNIST/raw/train-images-idx3-ubyte"].split(":")[1]
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))} is damaged: its sha256 should be {expected}"):
        load_data("mnist")


def test_a_download_that_arrives_damaged_never_reaches_the_target(tiny, monkeypatch, tmp_path):
    def cut_short(row, folder):
        copying(tiny)(row, folder)
        path = folder / "MNIST/raw/t10k-labels-idx1-ubyte"
        path.write_bytes(path.read_bytes()[:-1])

    monkeypatch.setattr(sets, "_fetch", cut_short)
    with pytest.raises(ValueError, match="t10k-labels-idx1-ubyte is damaged"):
        load_data("mnist")
    assert not (tmp_path / "cache" / "MNIST").exists()


def test_a_folder_with_images_missing_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("CNNLIB_DATA", str(tmp_path))
    (tmp_path / "imagenette2-128" / "train" / "n01440764").mkdir(parents=True)
    with pytest.raises(ValueError, match="should hold 9,469 images and holds 0"):
        load_data("imagenette128")


def test_a_damaged_photo_is_named(tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.setenv("CNNLIB_DATA", str(tmp_path))
    monkeypatch.setitem(sets._ROWS, "imagenette128", replace(sets._ROWS["imagenette128"], counts=(2, 1)))
    for split, name in (("train", "a"), ("train", "b"), ("val", "a")):
        path = tmp_path / "imagenette2-128" / split / "n01440764" / f"{name}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images(1, 3, 16, 20)[0].permute(1, 2, 0).numpy()).save(path, "JPEG")
    data = load_data("imagenette128")
    assert data.train.images.shape == (2, 3, 16, 16)
    path = tmp_path / "imagenette2-128" / "train" / "n01440764" / "b.JPEG"
    before = data.digest
    path.write_bytes(path.read_bytes()[:200])
    damaged = load_data("imagenette128")
    assert damaged.digest != before
    with pytest.raises(ValueError, match=r"b\.JPEG is damaged"):
        _ = damaged.train


FETCHER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_data
from cnnlib.data import load_data, sets

source, log = Path({source!r}), Path({log!r})
sets._ROWS["mnist"] = test_data.tiny_row(source)

def slowly(row, folder):
    with open(log, "a") as stream:
        stream.write("fetched\\n")
    for path in row.files:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        content = (source / path).read_bytes()
        with open(folder / path, "wb") as stream:
            stream.write(content[: len(content) // 2])
            stream.flush()
            time.sleep({pause})
            stream.write(content[len(content) // 2 :])

sets._fetch = slowly
print(len(load_data("mnist").train))
"""


def fetching(source: Path, log: Path, pause: float) -> subprocess.Popen:
    code = FETCHER.format(tests=str(ROOT / "tests"), source=str(source), log=str(log), pause=pause)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_two_processes_that_ask_at_once_fetch_once(tiny, tmp_path):
    log = tmp_path / "log"
    processes = [fetching(tiny, log, 0.3) for _ in range(2)]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert (out, process.returncode) == ("30\n", 0), err
    assert log.read_text() == "fetched\n"


@pytest.mark.slow
def test_a_killed_download_leaves_nothing_that_could_be_taken_for_the_set(tiny, tmp_path, monkeypatch):
    log = tmp_path / "log"
    process = fetching(tiny, log, 30)
    part = tmp_path / "cache" / ".mnist.part"
    deadline = time.monotonic() + 60
    while not list(part.glob("MNIST/raw/*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert list(part.glob("MNIST/raw/*"))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with pytest.raises(FileNotFoundError, match="download=False"):
        load_data("mnist", download=False)
    monkeypatch.setattr(sets, "_fetch", copying(tiny))
    assert len(load_data("mnist").train) == 30
    assert not part.exists()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_named(tiny, tmp_path, monkeypatch):
    (tmp_path / "cache").mkdir(mode=0o500)
    monkeypatch.setattr(sets, "_fetch", copying(tiny))
    with pytest.raises(FileNotFoundError, match="nothing can be written"):
        load_data("mnist")


# --- splits


def test_a_split_wants_bytes_and_one_label_an_image():
    with pytest.raises(ValueError, match="scaling to floats belongs to Preprocess"):
        Split(images().float(), torch.zeros(16, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"labels are \(16,\) int64"):
        Split(images(), torch.zeros(15, dtype=torch.int64))


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=6), share=st.floats(0.01, 1), seed=st.integers(0, 2**31)
)
def test_a_stratified_subset_keeps_the_shares_of_the_classes(counts, share, seed):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    pictures = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1)
    n = max(1, int(share * len(labels)))
    part = Split(pictures, labels).subset(n, seed=seed)
    assert len(part) == n
    assert len(part.images.unique()) == n  # nothing drawn twice
    assert torch.equal(labels[part.images.view(-1).long()], part.labels)
    for taken, count in zip(part.labels.bincount(minlength=len(counts)).tolist(), counts):
        assert abs(taken - count * n / len(labels)) < 1


def test_a_subset_is_repeatable_and_another_seed_gives_another():
    split = load_data("fashion_mnist_mini").train
    assert torch.equal(split.subset(100, seed=1).images, split.subset(100, seed=1).images)
    assert not torch.equal(split.subset(100, seed=1).images, split.subset(100, seed=2).images)
    assert not torch.equal(split.subset(100, stratified=False).labels.bincount(), torch.full((10,), 10))
    with pytest.raises(ValueError, match=r"a subset has 1 \.\. 5000 images of this split, got 5001"):
        split.subset(5001)


def test_a_set_of_ones_own_has_a_digest_of_its_content():
    def make(value):
        split = Split(torch.full((2, 1, 4, 4), value, dtype=torch.uint8), torch.tensor([0, 1]))
        return DataSet("mine", train=split, test=split, classes=("a", "b"))

    assert make(1).digest == make(1).digest != make(2).digest


# --- augmentation


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 4),
    st.integers(0, 2**31),
    st.sampled_from([torch.uint8, torch.float32]),
)
def test_every_crop_equals_the_slice_of_the_padded_image(n, channels, height, width, padding, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (n, channels, height, width), generator=generator).to(dtype)
    offsets = torch.randint(0, 2 * padding + 1, (n, 2), generator=generator)
    padded = torch.nn.functional.pad(x, (padding,) * 4)
    wanted = torch.stack(
        [image[:, top : top + height, left : left + width] for image, (top, left) in zip(padded, offsets.tolist())]
    )
    assert torch.equal(crop(x, offsets, padding), wanted)
    # the way that other devices take
    assert torch.equal(augment._cut_by_gather(padded, torch.arange(n), offsets, (height, width)), wanted)


@pytest.mark.parametrize(
    "steps", [(), (HorizontalFlip(),), (RandomCrop(2), HorizontalFlip(), Cutout(3)), (Cutout(3), RandomCrop(1))]
)
@pytest.mark.parametrize("mirrored_up_to", [0, 2**30])
def test_batches_are_what_one_step_after_the_other_makes(steps, mirrored_up_to, monkeypatch):
    monkeypatch.setattr(Batches, "MIRRORED_UP_TO", mirrored_up_to)
    x = images()
    batches = Batches(x, steps)
    for seed in range(5):
        places = torch.randint(0, 16, (9,), generator=torch.Generator().manual_seed(seed))
        one_by_one = x[places]
        generator = torch.Generator().manual_seed(seed)
        for step in steps:
            one_by_one = step(one_by_one, generator)
        assert torch.equal(batches(places, torch.Generator().manual_seed(seed)), one_by_one)


def test_a_crop_keeps_a_gradient():
    x = torch.ones(2, 1, 4, 4, requires_grad=True)
    crop(x, torch.tensor([[0, 0], [2, 1]]), 1).sum().backward()
    assert x.grad.sum() == 9 + 12


def test_a_flip_mirrors_the_chosen_images_only():
    x, which = images(), torch.arange(16) % 3 == 0
    flipped = flip(x, which)
    assert torch.equal(flipped[which], x[which].flip(3))
    assert torch.equal(flipped[~which], x[~which])
    assert torch.equal(flip(flipped, which), x)
    assert torch.equal(flip(x.bfloat16(), which), flipped.bfloat16())


def test_cutout_blanks_the_square_and_nothing_else():
    x = images(3, 2, 9, 7)
    cut = cutout(x, torch.tensor([[4, 3], [0, 0], [8, 6]]), 4)
    blank = [(slice(2, 6), slice(1, 5)), (slice(0, 2), slice(0, 2)), (slice(6, 9), slice(4, 7))]
    for image, old, (rows, columns) in zip(cut, x, blank):
        expected = old.clone()
        expected[:, rows, columns] = 0
        assert torch.equal(image, expected)


def chi_square(counts: torch.Tensor) -> float:
    expected = counts.sum() / counts.numel()
    return float(((counts - expected) ** 2 / expected).sum())


def test_each_crop_offset_is_equally_likely():
    # 81 cells, 80 degrees of freedom: above 146 in one of 100,000 fair draws
    draws = RandomCrop(4).draw(torch.empty(81000, 1, 32, 32, dtype=torch.uint8), torch.Generator().manual_seed(0))
    counts = (draws[:, 0] * 9 + draws[:, 1]).bincount(minlength=81).double()
    assert counts.numel() == 81
    assert chi_square(counts) < 146


def test_rows_and_columns_of_a_crop_are_drawn_each_on_its_own():
    draws = (
        RandomCrop(2).draw(torch.empty(50000, 1, 4, 4, dtype=torch.uint8), torch.Generator().manual_seed(1)).double()
    )
    assert abs(float(torch.corrcoef(draws.T)[0, 1])) < 0.02


@pytest.mark.parametrize("p", [0.5, 0.2, 1.0])
def test_flips_come_as_often_as_they_should(p):
    n = 40000
    which = HorizontalFlip(p).draw(torch.empty(n, 1, 2, 2, dtype=torch.uint8), torch.Generator().manual_seed(2))
    assert abs(int(which.sum()) - n * p) <= 4.5 * (n * p * (1 - p)) ** 0.5


def test_cutout_centres_are_equally_likely_everywhere():
    draws = Cutout(3).draw(torch.empty(60000, 1, 6, 10, dtype=torch.uint8), torch.Generator().manual_seed(3))
    counts = (draws[:, 0] * 10 + draws[:, 1]).bincount(minlength=60).double()
    assert chi_square(counts) < 117  # 59 degrees of freedom, one in 100,000


@pytest.mark.parametrize("step", [RandomCrop(2), HorizontalFlip(), Cutout(4)])
def test_augmentation_is_a_function_of_images_and_generator(step):
    x = images()
    before = x.clone()
    state = torch.get_rng_state()
    one = step(x, torch.Generator().manual_seed(5))
    two = step(x, torch.Generator().manual_seed(5))
    assert torch.equal(one, two)
    assert not torch.equal(one, step(x, torch.Generator().manual_seed(6)))
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert one.dtype == x.dtype
    assert one.shape == x.shape


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: RandomCrop(0), "padding must be a whole number of at least 1, got 0"),
        (lambda: HorizontalFlip(1.5), "must be a probability above 0, got 1.5"),
        (lambda: Cutout(-1), "size must be a whole number of at least 1, got -1"),
        (lambda: crop(images(), torch.zeros(3, 2, dtype=torch.int64), 1), r"\(16, 2\) int64, got \(3, 2\) int64"),
        (lambda: crop(images(), torch.full((16, 2), 3), 1), r"must lie in 0 \.\. 2, got 3 \.\. 3"),
        (lambda: flip(images(), torch.ones(16)), r"\(16\) bool, got \(16,\) float32|\(16,\) bool"),
        (lambda: Preprocess(std=(0.0,)), "std must be above 0"),
        (lambda: Preprocess(pad=-1), "pad must be a whole number of at least 0, got -1"),
        (lambda: Preprocess(mean=("a",)), "mean must be one number a channel"),
        (lambda: Preprocess(mean=(0.5, 0.5))(images()), "has 2 means and 1 standard deviations"),
        (lambda: Preprocess.between(1, 0), "low < high"),
    ],
)
def test_a_bad_value_gives_the_rule_and_the_value(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_preprocess_pads_with_black_before_it_scales():
    x = Preprocess(pad=2, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))(images())
    assert x.shape == (16, 3, 16, 14)
    assert x.dtype == torch.float32
    corner = torch.tensor([-0.5 / 0.2, -0.4 / 0.3, -0.3 / 0.4])
    assert torch.allclose(x[:, :, 0, 0], corner.expand(16, 3))
    inside = (images().double() / 255 - torch.tensor([0.5, 0.4, 0.3]).double().view(-1, 1, 1)) / torch.tensor(
        [0.2, 0.3, 0.4]
    ).double().view(-1, 1, 1)
    assert torch.allclose(x[:, :, 2:-2, 2:-2].double(), inside, atol=1e-5)


def test_the_scaling_of_1998_puts_paper_at_minus_a_tenth_and_ink_at_1_175():
    x = Preprocess.between(-0.1, 1.175, pad=2)(torch.tensor([[[[0, 255]]]], dtype=torch.uint8))
    assert x.shape == (1, 1, 5, 6)
    assert torch.allclose(x[0, 0, 2], torch.tensor([-0.1, -0.1, -0.1, 1.175, -0.1, -0.1]))


def test_loading_data_brings_in_no_plotting_and_no_torchvision_for_the_embedded_set():
    code = (
        "import sys, cnnlib; cnnlib.load_data('fashion_mnist_mini').train; "
        "print([m for m in ('torchvision', 'matplotlib') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.strip() == "[]"
