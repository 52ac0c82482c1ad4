"""What every source trained is trained here: sizes, initial weights, batches, decays."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.common.data import DEVIATION, MEAN, Digits
from benchmarks.reproductions import adam_paper, algoperf, deepobs, glorot_bengio, nielsen
from benchmarks.reproductions.case import Lab, unit_pixels
from benchmarks.reproductions.cases import CASES
from benchmarks.reproductions.nets import (
    CUT_DEVIATION,
    Initialise,
    SideBySide,
    build,
    large_normal,
    lecun_truncated,
    normal,
    truncated_normal,
    uniform,
    zeros,
)
from benchmarks.reproductions.training import epochs_of, sigmoid_cross_entropy
from torch_scratch_optim import ScratchSGD


@pytest.mark.parametrize(
    ("initialise", "deviation", "largest", "bias"),
    [
        (truncated_normal(0.03), 0.03 * CUT_DEVIATION, 0.06, 0.0),
        (lecun_truncated, 400**-0.5, 2 * 400**-0.5 / CUT_DEVIATION, 0.0),
        (normal, 400**-0.5, 6 * 400**-0.5, 1.0),
        (large_normal, 1.0, 6.0, 1.0),
        (uniform, (3 * 400) ** -0.5, 400**-0.5, 0.0),
        (zeros, 0.0, 0.0, 0.0),
    ],
)
def test_initial_weights_have_the_stated_distribution(
    initialise: Initialise, deviation: float, largest: float, bias: float
) -> None:
    net = build((400, 300, 10), nn.ReLU, initialise, seed=1)
    layer = net[0]
    assert isinstance(layer, nn.Linear)
    weights = layer.weight.detach()
    # 120,000 weights: their deviation is known to 1/√240,000 = 0.2 %, their mean to 0.3 % of it.
    assert weights.std().item() == pytest.approx(deviation, rel=0.02)
    assert abs(weights.mean().item()) <= 0.02 * deviation
    assert weights.abs().max().item() <= largest
    # 300 biases: to 4 %.
    assert layer.bias.std().item() == pytest.approx(bias, rel=0.2)


def test_initial_weights_depend_on_the_seed_alone() -> None:
    before = torch.random.get_rng_state()

    def weights(seed: int) -> Tensor:
        net = build((20, 10, 5), nn.Sigmoid, normal, seed)
        return torch.nn.utils.parameters_to_vector(net.parameters()).detach()

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("sizes", "parameters"),
    [
        (deepobs.SIZES, 785 * 1000 + 1001 * 500 + 501 * 100 + 101 * 10),
        (algoperf.SIZES, 785 * 128 + 129 * 10),
        ((784, nielsen.WIDTH, 10), 23_860),  # Nielsen counts them himself
    ],
)
def test_nets_have_the_published_sizes(sizes: tuple[int, ...], parameters: int) -> None:
    net = build(sizes, nn.ReLU, zeros, 0)
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert isinstance(net[-1], nn.Linear)  # scores, without an activation


def test_pixels_are_exactly_those_of_the_files() -> None:
    pixels = torch.arange(256, dtype=torch.float32) / 255
    assert torch.equal(unit_pixels((pixels - MEAN) / DEVIATION), pixels)
    assert torch.equal(unit_pixels(pixels.clone().sub_(MEAN).div_(DEVIATION)), pixels)


def test_each_output_is_judged_by_itself() -> None:
    scores = torch.randn(7, 10, requires_grad=True, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 4, 5, 9])
    (gradient,) = torch.autograd.grad(sigmoid_cross_entropy(scores, labels), scores)
    wanted = torch.nn.functional.one_hot(labels, 10)
    # A few roundings of torch's own derivative.
    torch.testing.assert_close(gradient, (scores.sigmoid() - wanted) / 7, rtol=1e-13, atol=1e-15)


def steps_of(digits: Digits, **options: Any) -> tuple[list[int], list[float], int]:
    """The sizes of the batches, the learning rates of the steps, and the number of epochs."""
    sizes: list[int] = []
    rates: list[float] = []
    net = build((784, 10), nn.ReLU, zeros, 0)
    optimizer = ScratchSGD(net.parameters(), lr=0.5)
    net.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    epochs = list(
        epochs_of(
            net, optimizer, digits.train_images, digits.train_labels, batch_size=128, epochs=2,
            seed=0, on_step=lambda: rates.append(optimizer.param_groups[0]["lr"]), **options,
        )
    )  # fmt: skip
    return sizes, rates, len(epochs)


def test_the_last_batch_is_dropped_where_the_publication_drops_it(digits: Digits) -> None:
    assert steps_of(digits)[0] == [128, 128, 44] * 2
    assert steps_of(digits, drop_last=True)[0] == [128, 128] * 2


def test_a_schedule_counts_steps_over_all_epochs(digits: Digits) -> None:
    _, rates, epochs = steps_of(digits, schedule=lambda step: step**-0.5)
    assert epochs == 2
    assert rates == [0.5 * step**-0.5 for step in range(1, 7)]


def test_deepobs_stops_at_its_target(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepobs, "SIZES", (784, 16, 10))
    lab = Lab(digits)
    curve = deepobs.train(lab, ScratchSGD, 0.1, 42, 3)
    assert len(curve) == 3
    assert deepobs.train(lab, ScratchSGD, 0.1, 42, 3, until=0.0) == curve[:1]
    low = min(point["test_accuracy"] for point in curve)
    assert deepobs.first_epoch(curve, low) >= 1
    assert deepobs.first_epoch(curve, 1.01) == math.inf


def test_nielsens_weights_decay_and_his_biases_do_not(
    digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One epoch of one batch against his formula, w (1 − η λ/n) − η ∇w."""
    decay = 40.0
    monkeypatch.setattr(nielsen, "IMAGES", 10)
    trained: list[SideBySide] = []

    def kept(nets: Sequence[nn.Sequential]) -> SideBySide:
        trained.append(SideBySide(nets))
        return trained[-1]

    monkeypatch.setattr(nielsen, "SideBySide", kept)
    nielsen.overfit(Lab(digits), decay, [0], 1)
    expected = build(nielsen.SIZES, nn.Sigmoid, large_normal, 0)
    images, labels = unit_pixels(digits.train_images[:10]), digits.train_labels[:10]
    sigmoid_cross_entropy(expected(images), labels).backward()
    for ours, theirs in zip(layers_of(trained[0], 0), expected.parameters(), strict=True):
        assert theirs.grad is not None
        shrunk = theirs * (1 - 0.5 * decay / 10) if theirs.ndim == 2 else theirs
        # The order of the images in the batch and of the products differs: roundings.
        torch.testing.assert_close(ours, shrunk - 0.5 * theirs.grad, rtol=1e-4, atol=1e-6)


def layers_of(nets: SideBySide, one: int) -> list[Tensor]:
    """Weight and bias of each layer of one of the nets, as nn.Linear has them."""
    pairs = zip(nets.weights, nets.biases, strict=True)
    return [p for weight, bias in pairs for p in (weight[one].T, bias[one, 0])]


def test_nets_side_by_side_are_trained_as_if_alone(digits: Digits) -> None:
    nets = [build((784, 20, 10), nn.Sigmoid, normal, seed) for seed in (1, 2, 3)]
    together = SideBySide(nets)

    def train(net: nn.Module) -> None:
        for _ in epochs_of(
            net, ScratchSGD(net.parameters(), lr=0.5, weight_decay=0.01), digits.train_images,
            digits.train_labels, batch_size=30, epochs=3, seed=0, on_step=lambda: None,
            loss=sigmoid_cross_entropy,
        ):  # fmt: skip
            pass

    for net in (together, *nets):
        train(net)
    scores = together(digits.test_images)
    for one, net in enumerate(nets):
        # A product of stacked matrices adds in another order.
        torch.testing.assert_close(scores[one], net(digits.test_images), rtol=1e-4, atol=1e-4)
        for ours, alone in zip(layers_of(together, one), net.parameters(), strict=True):
            torch.testing.assert_close(ours, alone, rtol=1e-4, atol=1e-5)


def test_gradients_vanish_on_the_way_to_the_first_layer_as_nielsen_found(digits: Digits) -> None:
    """Drawn digits have other norms than MNIST, but backwards the layers are the same."""
    found = nielsen.measure_norms(Lab(digits), {"seeds": 40})
    ratios = [found[f"ratio_{hidden}"].value for hidden in (2, 3, 4)]
    assert 3 < ratios[0] < 9
    assert all(3 < deeper / shallower < 9 for shallower, deeper in pairwise(ratios))
    for hidden in (2, 3, 4):
        row = CASES["nielsen_gradients"].figures[f"ratio_{hidden}"].row(found[f"ratio_{hidden}"])
        assert row["verdict"] == "reproduced"


def test_a_sigmoid_at_rest_gives_a_half(digits: Digits) -> None:
    net = build((784, 20, 20, 10), nn.Sigmoid, zeros, 0)
    assert glorot_bengio.top_activation(net, digits.train_images) == 0.5


Batches = list[dict[str, Any]]


@pytest.fixture
def lessons(monkeypatch: pytest.MonkeyPatch) -> Batches:
    """What the cases hand to the training loop; nothing is trained."""
    seen: Batches = []

    def pretend(
        net: nn.Module, optimizer: Any, images: Tensor, labels: Tensor, **options: Any
    ) -> Iterator[int]:
        assert len(images) == len(labels)
        options |= {"images": len(images), "group": dict(optimizer.param_groups[0])}
        options |= {"low": images.min().item(), "high": images.max().item()}
        seen.append(options)
        yield from range(1, options["epochs"] + 1)

    for module in (adam_paper, algoperf, deepobs, glorot_bengio, nielsen):
        monkeypatch.setattr(module, "epochs_of", pretend)
    return seen


def test_deepobs_drops_the_last_batch_and_pairs_its_seeds(digits: Digits, lessons: Batches) -> None:
    deepobs.MOMENTUM.measure(Lab(digits), {"seeds": (42, 43), "epochs": 1})
    deepobs.ADAM_RATES.measure(Lab(digits), {"rates": (1e-2,), "epochs": 1})
    assert [(one["seed"], one["batch_size"], one["drop_last"]) for one in lessons] == [
        (42, 128, True), (43, 128, True), (42, 128, True),
    ]  # fmt: skip
    assert [one["group"]["lr"] for one in lessons] == [3.9810717055e-3, 3.9810717055e-3, 1e-2]
    assert lessons[0]["group"]["momentum"] == 0.99
    assert (lessons[0]["low"], lessons[0]["high"]) == (0, 1)


def test_algoperf_trains_on_five_sixths_and_must_hold_on_both_others(
    digits: Digits, lessons: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []

    def evaluate(net: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
        assert len(images) == len(labels)
        looks.append(len(images))
        return 0.0, 0.9 if len(images) == 50 else 0.8

    monkeypatch.setattr(algoperf, "evaluate", evaluate)
    found = algoperf.measure(Lab(digits), {"rates": (1e-3,), "epochs": 10})
    assert [one["images"] for one in lessons] == [250, 250]
    assert looks == [50, 100] * 20  # validation, test
    assert found["standardised"].value == found["fed"].value == 0.8
    standardised, fed = lessons
    assert standardised["high"] == digits.train_images[:250].max().item()
    assert fed["high"] == pytest.approx((255 - MEAN) / DEVIATION)


def test_in_the_adam_paper_all_rates_decay_and_one_more_adagrad_is_left_alone(
    digits: Digits, lessons: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adam_paper, "evaluate", lambda *arguments: (2.0, 0.1))
    adam_paper.measure(Lab(digits), {"epochs": 1})
    schedules = [one["schedule"] for one in lessons]
    rates = len(adam_paper.METHODS["adagrad_alone"].rates)
    assert [schedule(4) for schedule in schedules[:-rates]] == [0.5] * (len(schedules) - rates)
    assert schedules[-rates:] == [None] * rates
    assert {one["group"]["weight_decay"] for one in lessons} == {adam_paper.PENALTY}


def test_the_adam_papers_cost_has_its_penalty(
    digits: Digits, lessons: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ones(*arguments: Any) -> nn.Sequential:
        net = build((784, 10), nn.Identity, zeros, 0)
        for parameter in net.parameters():
            nn.init.ones_(parameter)
        return net

    monkeypatch.setattr(adam_paper, "build", ones)
    (cost,) = adam_paper.costs(
        Lab(digits), unit_pixels(digits.train_images), adam_paper.METHODS["adam"], 0.1, 1
    )
    # Equal scores: the loss of guessing, to float32. Its 7,850 parameters are all one.
    assert cost == pytest.approx(math.log(10) + 7850 * adam_paper.PENALTY / 2, rel=1e-6)
