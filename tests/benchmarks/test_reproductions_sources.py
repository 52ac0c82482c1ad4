"""What every source trained is trained here: sizes, initial weights, batches, decays, problems."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from numpy.random import RandomState
from torch import Tensor, nn

from benchmarks.common.data import DEVIATION, MEAN, Digits
from benchmarks.common.synthetic import seeded_generator
from benchmarks.reproductions import (
    adam_paper,
    algoperf,
    deepobs,
    glorot_bengio,
    nielsen,
    quadratic_deep,
)
from benchmarks.reproductions.case import BUDGETS, Case, Lab, Measured, unit_pixels
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
from torch_scratch_optim import ScratchOptimizer, ScratchSGD

pytestmark = pytest.mark.slow


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


def test_batches_can_be_the_same_in_all_epochs(digits: Digits) -> None:
    def orders(reshuffle: bool) -> list[list[float]]:
        net = build((784, 10), nn.ReLU, zeros, 0)
        seen: list[list[float]] = []
        first_pixels = digits.train_images.sum(1).tolist()
        net.register_forward_pre_hook(
            lambda _, inputs: seen.append(
                [first_pixels.index(s) for s in inputs[0].sum(1).tolist()]
            )
        )
        for _ in epochs_of(
            net, ScratchSGD(net.parameters()), digits.train_images, digits.train_labels,
            batch_size=150, epochs=2, seed=0, on_step=lambda: None, reshuffle=reshuffle,
        ):  # fmt: skip
            pass
        return seen

    first, second, *again = orders(reshuffle=False)
    assert [first, second] == again
    assert orders(reshuffle=True)[:2] == [first, second]
    assert orders(reshuffle=True)[2:] != again


def test_a_learning_rate_of_0_takes_no_steps(digits: Digits) -> None:
    net = build((784, 10), nn.ReLU, zeros, 0)
    epochs = epochs_of(
        net, ScratchSGD(net.parameters(), lr=0), digits.train_images, digits.train_labels,
        batch_size=128, epochs=3, seed=0, on_step=lambda: pytest.fail("a step"),
    )  # fmt: skip
    assert list(epochs) == [1, 2, 3]


def test_deepobs_stops_at_its_target(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepobs, "SIZES", (784, 16, 10))
    lab = Lab(digits)
    setting = deepobs.Setting(ScratchSGD, 0.1)
    curve = deepobs.train(lab, setting, 42, 3)
    assert len(curve) == 3
    assert deepobs.train(lab, setting, 42, 3, until=0.0) == curve[:1]
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


def test_nielsens_three_experiments_have_his_settings(digits: Digits, trainings: Trainings) -> None:
    nielsen.RATES_CASE.measure(Lab(digits), {"seeds": (0, 1), "epochs": 5})
    nielsen.INITIALISATION_CASE.measure(Lab(digits), {"seeds": (0,), "epochs": 1})
    sizes = {"seeds": (0,), "sizes": (100, 200), "images_seen": 1000}
    nielsen.SIZES_CASE.measure(Lab(digits), sizes)
    assert [(one["images"], one["batch_size"], one["epochs"]) for one in trainings] == [
        *[(250, 10, 5)] * 3, *[(250, 10, 1)] * 2, (100, 10, 10), (200, 10, 5),
    ]  # fmt: skip
    groups = [one["group"] for one in trainings]
    assert [group["lr"] for group in groups] == [0.025, 0.25, 2.5, 0.1, 0.1, 0.5, 0.5]
    assert [group["weight_decay"] for group in groups] == [5 / 250] * 5 + [1e-4] * 2


def test_nielsens_cost_has_its_penalty() -> None:
    nets = SideBySide([build((3, 2, 10), nn.Sigmoid, normal, seed) for seed in (0, 1)])
    images, labels = torch.rand(4, 3), torch.tensor([0, 1, 2, 3])
    for i, cost in enumerate(nielsen.costs(nets, images, labels, 0.5)):
        squares = sum(weight[i].square().sum().item() for weight in nets.weights)
        expected = sigmoid_cross_entropy(nets(images)[i], labels).item() + 0.25 * squares
        assert cost == pytest.approx(expected, rel=1e-6)  # roundings of float32


# DeepOBS' quadratic problem


def test_the_quadratic_problem_begins_at_the_published_loss() -> None:
    for setting in quadratic_deep.SETTINGS:
        (start, _), *_ = quadratic_deep.follow(Lab(None), setting, 2)
        assert quadratic_deep.SGD.figures["start"].holds(Measured(start))


@pytest.mark.parametrize("case", [quadratic_deep.SGD, quadratic_deep.MOMENTUM, quadratic_deep.ADAM])
def test_the_quadratic_problem_reproduces_the_published_losses(case: Case) -> None:
    measured = case.measure(Lab(None), case.budgets["full"])
    missed = [key for key, figure in case.figures.items() if not figure.holds(measured[key])]
    assert missed == []


@pytest.mark.parametrize(
    ("case", "key", "wrong"),
    [
        (quadratic_deep.SGD, "0.001, 10", "learning rate × 1.5"),
        (quadratic_deep.MOMENTUM, "0.000158489, 10", "momentum 0.1 lower"),
        (quadratic_deep.MOMENTUM, "0.000158489, 10", "momentum dampened"),
        (quadratic_deep.ADAM, "0.00251189, 10", "no bias correction"),
        (quadratic_deep.ADAM, "0.00251189, 10", "momentum 0.1 lower"),
        (quadratic_deep.ADAM, "0.00251189, 10", "never trained"),
    ],
)
def test_the_quadratic_problem_rejects_wrong_optimizers(case: Case, key: str, wrong: str) -> None:
    measured = case.measure(Lab(None, wrong=wrong), case.wrong["quick"])
    assert not case.figures[key].holds(measured[key])


def test_its_hessian_has_the_eigenvalues_that_were_drawn() -> None:
    eigenvalues = torch.linalg.eigvalsh(quadratic_deep.hessian().double())
    assert ((eigenvalues > 0) & (eigenvalues < 1)).sum() == 90
    assert ((eigenvalues > 30) & (eigenvalues < 60)).sum() == 10
    turned = torch.tensor(quadratic_deep.rotation(7, RandomState(0)))
    # Roundings of six products.
    torch.testing.assert_close(turned @ turned.T, torch.eye(7).double(), rtol=0, atol=1e-14)
    assert torch.linalg.det(turned).item() == pytest.approx(1, abs=1e-14)


def test_means_of_batches_give_the_losses_of_training_on_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quadratic_deep, "EPOCHS", 3)
    setting = quadratic_deep.SETTINGS[-1]
    found = [losses[1] for losses in quadratic_deep.follow(Lab(None), setting, 2)]
    x = quadratic_deep.data(42)
    order = torch.randperm(1000, generator=seeded_generator("batches", 1, 1))
    theta = torch.ones(100, requires_grad=True)
    optimizer = Lab(None).make(setting.optimizer, [theta], lr=setting.lr)
    expected = []
    for epoch in range(4):
        for batch in order[:896].split(128) if epoch else ():
            optimizer.zero_grad()
            quadratic_deep.loss(theta, x[batch]).mean().backward()
            optimizer.step()
        test = quadratic_deep.data(43)[:896]
        expected.append(quadratic_deep.loss(theta, test).mean().item())
    # Sums in another order, in float32.
    assert found == pytest.approx(expected, rel=1e-4)


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


Trainings = list[dict[str, Any]]


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Trainings:
    """What the cases hand to the training loop; nothing is trained."""
    seen: Trainings = []

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


def test_deepobs_drops_the_last_batch_and_pairs_its_seeds(
    digits: Digits, trainings: Trainings
) -> None:
    deepobs.MOMENTUM.measure(Lab(digits), {"seeds": (42, 43), "epochs": 1})
    deepobs.ADAM_RATES.measure(Lab(digits), {"rates": (1e-2,), "epochs": 1})
    names = ("seed", "batch_size", "drop_last", "reshuffle")
    assert [tuple(one[name] for name in names) for one in trainings] == [
        (42, 128, True, False), (43, 128, True, False), (42, 128, True, False),
    ]  # fmt: skip
    assert [one["group"]["lr"] for one in trainings] == [3.9810717055e-3, 3.9810717055e-3, 1e-2]
    assert trainings[0]["group"]["momentum"] == 0.99
    assert (trainings[0]["low"], trainings[0]["high"]) == (0, 1)


def test_algoperf_chooses_by_validation_and_looks_at_the_test_set_afterwards(
    digits: Digits, trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    validation = iter([0.5, 0.9, 0.9, 0.8] * 2)

    def evaluate(net: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
        assert len(images) == len(labels)
        looks.append(len(images))
        return 0.0, next(validation) if len(images) == 50 else 0.1 * len(looks)

    monkeypatch.setattr(algoperf, "evaluate", evaluate)
    monkeypatch.setattr(algoperf, "EPOCHS", 4)
    measured = algoperf.measure(Lab(digits), {"rates": (1e-3,), "epochs": 4})
    assert [one["images"] for one in trainings] == [250, 250]
    assert looks == [50, 100, 50, 100, 50, 50] * 2  # the test set: after a better validation
    assert measured["standardised_validation"].value == 0.9
    assert measured["standardised_test"].value == pytest.approx(0.4)  # of the second epoch
    standardised, fed = trainings
    assert standardised["high"] == digits.train_images[:250].max().item()
    assert fed["high"] == pytest.approx((255 - MEAN) / DEVIATION)


def test_in_the_adam_paper_all_rates_decay_and_one_more_adagrad_is_left_alone(
    digits: Digits, trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adam_paper, "evaluate", lambda *arguments: (2.0, 0.1))
    adam_paper.measure(Lab(digits), {"epochs": 1})
    schedules = [one["schedule"] for one in trainings]
    rates = len(adam_paper.METHODS["adagrad_alone"].rates)
    assert [schedule(4) for schedule in schedules[:-rates]] == [0.5] * (len(schedules) - rates)
    assert schedules[-rates:] == [None] * rates
    assert {one["group"]["weight_decay"] for one in trainings} == {adam_paper.PENALTY}


def test_the_adam_papers_cost_has_its_penalty(
    digits: Digits, trainings: Trainings, monkeypatch: pytest.MonkeyPatch
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


@pytest.mark.parametrize("name", CASES)
def test_every_figure_names_the_smallest_budget_that_measures_it(
    name: str, digits: Digits, trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And each case trains with the optimizers that it names."""
    case, used = CASES[name], set()
    monkeypatch.setattr(quadratic_deep, "STEPS", 1)
    monkeypatch.setattr(glorot_bengio, "WIDTH", 16)
    monkeypatch.setattr(deepobs, "SIZES", (784, 16, 10))
    make = Lab.make

    def noted(lab: Lab, optimizer: Any, params: Any, **options: Any) -> ScratchOptimizer:
        used.add(optimizer)
        return make(lab, optimizer, params, **options)

    monkeypatch.setattr(Lab, "make", noted)
    for budget, settings in case.budgets.items():
        few = {"seeds": 2} if isinstance(settings.get("seeds"), int) else {}
        measured = case.measure(Lab(digits), {**settings, **few})
        within_budget = BUDGETS[: BUDGETS.index(budget) + 1]
        assert measured.keys() == {
            key for key, figure in case.figures.items() if figure.budget in within_budget
        }
    assert used == set(case.optimizers)
