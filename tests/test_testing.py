"""Testing as the papers do: what a crop is, how answers are averaged, and how far a share of a sample can be trusted."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import cnnlib
from cnnlib.analysis import centre_crop, ensemble, predict, price, score, ten_crops, top_k, wilson


@pytest.fixture
def images():
    return torch.randn(5, 3, 12, 14, generator=torch.Generator().manual_seed(0))


def net(seed: int = 0, classes: int = 7) -> nn.Module:
    """Convolution, batch norm with statistics of its own, dropout: what folding and evaluation must get right."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, classes),
    )
    model(torch.randn(16, 3, 12, 12))
    return model


def test_ten_crops_are_four_corners_the_centre_and_their_mirror_images(images):
    crops = ten_crops(images, 8)
    x = images
    five = (x[..., :8, :8], x[..., :8, -8:], x[..., -8:, :8], x[..., -8:, -8:], x[..., 2:10, 3:11])
    assert torch.equal(crops[:, :5], torch.stack(five, 1))
    mirrored = {tuple(c.flatten().tolist()) for c in crops[0, :5].flip(-1)}
    assert mirrored == {tuple(c.flatten().tolist()) for c in crops[0, 5:]}
    assert torch.equal(centre_crop(images, 8)[:, 0], crops[:, 4])


def test_ten_crops_of_a_mirrored_image_are_the_same_ten(images):
    once, twice = ten_crops(images, 8), ten_crops(images.flip(-1), 8)
    for a, b in zip(once, twice, strict=True):
        assert {tuple(c.flatten().tolist()) for c in a} == {tuple(c.flatten().tolist()) for c in b}


def test_a_prediction_is_the_mean_of_the_probabilities_of_the_crops(images):
    model = net().double()
    found = predict(model, images.double(), lambda x: ten_crops(x, 10), batch=30)
    twin = copy.deepcopy(model).eval()
    one_by_one = torch.stack(
        [torch.stack([twin(crop[None])[0].softmax(0) for crop in ten]) for ten in ten_crops(images.double(), 10)]
    ).mean(1)
    torch.testing.assert_close(found, one_by_one)
    torch.testing.assert_close(found.sum(1), torch.ones(5, dtype=torch.float64))


def test_the_size_of_the_batches_changes_nothing(images):
    model = net().double()
    ways = [predict(model, images.double(), lambda x: ten_crops(x, 9), batch=b) for b in (1, 20, 1000)]
    torch.testing.assert_close(ways[0], ways[1])
    torch.testing.assert_close(ways[0], ways[2])


def test_a_network_that_does_not_see_the_mirror_gains_nothing_from_it(images):
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4)).double()
    ten = predict(model, images.double(), lambda x: ten_crops(x, 8))
    five = predict(model, images.double(), lambda x: ten_crops(x, 8)[:, :5])
    torch.testing.assert_close(ten, five)


def test_an_ensemble_of_equals_is_each_of_them_and_its_order_does_not_matter():
    a, b = (torch.rand(6, 4, generator=torch.Generator().manual_seed(s)).softmax(1) for s in (0, 1))
    torch.testing.assert_close(ensemble([a, a, a]), a)
    torch.testing.assert_close(ensemble([a, b]), ensemble([b, a]))


def test_the_loss_of_an_ensemble_is_at_most_the_mean_loss_of_its_members():
    """The logarithm is concave, so this holds whatever the networks answer."""
    labels = torch.arange(6) % 4
    members = [torch.randn(6, 4, generator=torch.Generator().manual_seed(s)).softmax(1) for s in range(5)]
    loss = [-p.gather(1, labels[:, None]).log().mean() for p in members]
    together = -ensemble(members).gather(1, labels[:, None]).log().mean()
    assert together < torch.stack(loss).mean()


def test_top_k_agrees_with_sorting():
    p = torch.randn(200, 10, generator=torch.Generator().manual_seed(0)).softmax(1)
    labels = torch.randint(10, (200,), generator=torch.Generator().manual_seed(1))
    for k in range(1, 11):
        chosen = p.topk(k).indices
        assert top_k(p, labels, k).correct == int((chosen == labels[:, None]).any(1).sum())
    assert top_k(p, labels, 10).accuracy == 1


def test_top_k_never_falls_with_k_and_ties_are_broken_by_number():
    equal = torch.full((4, 4), 0.25)
    assert [top_k(equal, range(4), k).correct for k in (1, 2, 3, 4)] == [1, 2, 3, 4]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_the_interval_holds_the_share_mirrors_and_widens_with_confidence(drawn, confidence):
    correct, n = drawn
    low, high = wilson(correct, n, confidence)
    assert 0 <= low <= correct / n <= high <= 1
    mirrored = wilson(n - correct, n, confidence)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-12)
    wider = wilson(correct, n, 0.9995)
    assert wider[0] <= low + 1e-12
    assert high <= wider[1] + 1e-12


def test_the_ends_of_the_interval_solve_its_equation():
    """Wilson's interval holds the shares p with |share - p| <= z sqrt(p (1 - p) / n); at its ends both sides are equal."""
    for correct, n in ((3, 10), (50, 60), (820, 1000)):
        for p in wilson(correct, n):
            assert abs(correct / n - p) == pytest.approx(1.959964 * (p * (1 - p) / n) ** 0.5, rel=1e-6)


def test_about_95_of_100_samples_have_the_true_share_in_their_interval():
    draws = torch.rand(4000, 150, generator=torch.Generator().manual_seed(0)) < 0.3
    held = [low <= 0.3 <= high for low, high in (wilson(int(c), 150) for c in draws.sum(1))]
    assert 0.935 < sum(held) / len(held) < 0.965


def test_a_table_of_scores_has_each_network_by_one_crop_and_ten_and_all_together(images):
    labels = torch.tensor([0, 1, 2, 3, 4])
    members = {"a": net(0), "b": net(1)}
    table = score(members, images, labels, 10, ks=(1, 5))
    assert [(r.name, r.crops) for r in table] == [
        (name, crops) for name in ("a", "b", "all 2 together") for crops in (1, 10)
    ]
    alone = predict(members["a"], images, lambda x: ten_crops(x, 10))
    assert table["a", 10].top[5] == top_k(alone, labels, 5)
    both = ensemble([alone, predict(members["b"], images, lambda x: ten_crops(x, 10))])
    assert table["all 2 together", 10].top[1] == top_k(both, labels, 1)
    assert "top-5 error" in table._repr_html_()
    assert "all 2 together" in repr(table)
    with pytest.raises(ValueError, match="c, 1 crops"):
        table["c", 1]


def test_a_trained_network_of_the_book_scores_as_its_record_says():
    from cnnlib.training import records

    record = records.load("lenet5-fashion_mnist_mini")
    data = cnnlib.load_data("fashion_mnist_mini")
    found = predict(record.model(), record.recipe.preprocess(data.test.images))
    kept = next(run for run in record.runs if run.seed == record.weights["seed"])
    assert top_k(found, data.test.labels).accuracy == pytest.approx(kept.final.test_accuracy, abs=0.002)


@pytest.mark.parametrize("fails", [False, True])
def test_the_network_is_left_as_it_was_also_after_an_error(fails, images):
    model = net()
    model[1].eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    model[2].register_forward_hook(lambda *_: None)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    random = torch.get_rng_state()

    calls = []

    def crops(x):
        calls.append(len(x))
        if fails and len(calls) == 3:
            raise RuntimeError("in the middle")
        return ten_crops(x, 10)

    if fails:
        with pytest.raises(RuntimeError, match="in the middle"):
            predict(model, images, crops, batch=20)
    else:
        predict(model, images, crops, batch=20)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert bool((model[0].weight.grad == 1).all())
    assert len(model[2]._forward_hooks) == 1


def test_the_price_counts_every_crop(images):
    assert price(predict, net(), images, lambda x: ten_crops(x, 10)).forward == 50
    assert price(predict, net(), images).forward == 5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_network_on_the_gpu_answers_the_same(images):
    model = net()
    here = predict(model, images)
    torch.testing.assert_close(predict(model.cuda(), images), here, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: ten_crops(x, 13), r"fit into the image, 12x14, got 13x13"),
        (lambda x: ten_crops(x[0], 5), r"images must be \(N, C, H, W\), got \(3, 12, 14\)"),
        (lambda x: predict(net(), x[:0]), r"N >= 1, got \(0, 3, 12, 14\)"),
        (lambda x: predict(net(), x, lambda y: y), r"crops must make \(N, n, C, h, w\)"),
        (lambda x: predict(net()[:3], x), r"must return scores \(N, classes\), it returned \(5, 8, 10, 12\)"),
        (lambda x: ensemble([]), "one or more tables .* got none"),
        (lambda x: ensemble([torch.ones(2, 3), torch.ones(2, 4)]), r"\(2, 3\), \(2, 4\)"),
        (lambda x: top_k(torch.ones(2, 3), [0, 1], 4), r"k = 4 and \(2, 3\)"),
        (lambda x: top_k(torch.ones(2, 3), [0, 3]), "classes 0 .. 2, got 0 to 3"),
        (lambda x: top_k(torch.ones(2, 3), [0]), "one an image: 2"),
        (lambda x: top_k(torch.full((2, 3), torch.nan), [0, 1]), "finite"),
        (lambda x: wilson(5, 4), "got 5 of 4"),
        (lambda x: wilson(1, 4, 95), "got 95; 0.95 is usual"),
    ],
)
def test_what_cannot_be_tested_is_refused_with_the_rule(call, message, images):
    with pytest.raises(ValueError, match=message):
        call(images)
