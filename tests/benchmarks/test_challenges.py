"""The troubles of optimization: the facts are those that mathematics and lectures expect."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from benchmarks.challenges import (
    gallery,
    generalization,
    local_minima,
    saddle_points,
    traps,
    vanishing_gradients,
)
from benchmarks.challenges.lessons import curve_of, learn
from benchmarks.challenges.setup import Facts, Finding, Setup, Sizes
from benchmarks.challenges.walks import SCHEDULES, first_step, walk
from benchmarks.common.data import Digits, load_digits
from benchmarks.common.landscapes import LANDSCAPES
from benchmarks.common.nets import build_net, weights_by_layer
from benchmarks.common.optimizers import OPTIMIZERS

pytestmark = pytest.mark.slow

SMALL = Sizes(
    rates=21, steps=150, escape_steps=160, repeats=40, seeds=2, depths=(5, 20), width=64,
    images=200, epochs=1, few_images=100, few_epochs=60, batches=(16, 64), plateau_steps=10,
    test_images=100,
)  # fmt: skip
Measured = dict[str, Facts]


def silent(stage: str, share: float) -> None:
    assert 0 <= share <= 1, stage


@pytest.fixture(scope="module")
def many_digits() -> Digits:
    return load_digits(
        "synthetic", Path("nowhere"), torch.device("cpu"), SMALL.train_images(), SMALL.test_images
    )


@pytest.fixture(scope="module")
def setup(many_digits: Digits) -> Setup:
    return Setup(("sgd", "momentum", "adagrad", "rmsprop", "adam"), 0, many_digits, SMALL)


def theory_of(findings: list[Finding]) -> dict[str, bool | None]:
    return {found.claim: found.holds for found in findings if found.theory}


# Walks


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_walks_side_by_side_know_nothing_of_each_other(name: str) -> None:
    valley, make = LANDSCAPES["rosenbrock"], OPTIMIZERS[name].make_scratch
    starts, rates = [(-1.5, 2.0), (0.3, -0.7)], [1e-4, 1e-3]
    together = walk(valley, make, rates, starts, 10)
    for i, lr in enumerate(rates):
        for j, start in enumerate(starts):
            alone = walk(valley, make, [lr], [start], 10)
            assert torch.equal(together[:, i, j], alone[:, 0, 0])


def test_a_walk_is_what_torchs_optimizer_does_under_its_scheduler() -> None:
    p = torch.nn.Parameter(torch.tensor([-0.9], dtype=torch.float64))
    optimizer = torch.optim.Adam([p], lr=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    for _ in range(20):
        optimizer.zero_grad()
        LANDSCAPES["wavy"].at(p).backward()
        optimizer.step()
        scheduler.step()
    found = walk(
        LANDSCAPES["wavy"], OPTIMIZERS["adam"].make_scratch, [0.1], [(-0.9,)], 20,
        schedule=SCHEDULES["cosine"],
    )  # fmt: skip
    assert found[-1].item() == p.item()


def test_the_first_step_is_nan_where_there_is_none() -> None:
    reached = torch.tensor([[False, False], [False, True], [False, True]])
    steps = first_step(reached).tolist()
    assert math.isnan(steps[0])
    assert steps[1] == 1


# Local minima


@pytest.fixture(scope="module")
def minima() -> Facts:
    return local_minima.measure(Setup(("sgd", "momentum", "rmsprop"), sizes=SMALL), silent)


def test_momentum_escapes_in_a_band_of_rates_and_sgd_at_none(minima: Facts) -> None:
    bands, outcomes = minima["bands"]["constant"], minima["outcomes"]["constant"]
    assert bands["sgd"]["rates"] == 0
    assert bands["momentum"]["rates"] >= 3
    assert bands["momentum"]["pieces"] == 1
    assert 0.01 < bands["momentum"]["low"] < bands["momentum"]["high"] < 0.2
    assert outcomes["sgd"][-1] == local_minima.LEFT
    assert outcomes["momentum"][0] == local_minima.LOCAL
    assert minima["paths"]["momentum"]["outcome"] == local_minima.GLOBAL
    assert minima["paths"]["momentum"]["x"][-1] == pytest.approx(1.0904, abs=1e-3)


def test_a_schedule_settles_rmsprop_which_cycles_without_one(minima: Facts) -> None:
    cycles = {s: row["rmsprop"].count(local_minima.CYCLES) for s, row in minima["outcomes"].items()}
    assert cycles.pop("constant") > 1
    assert set(cycles) == {"exponential", "step", "cosine"}
    assert not any(cycles.values())


def test_the_minima_are_those_of_the_equation_and_the_risks_differ(minima: Facts) -> None:
    assert minima["minima"]["global"]["x"] == pytest.approx(1.0904082, abs=1e-6)
    assert minima["minima"]["local"]["x"] == pytest.approx(-0.2738527, abs=1e-6)
    found = minima["risks"]["empirical"]["global"]["x"]
    assert found == pytest.approx(1.0169834, abs=1e-6)
    theory = theory_of(local_minima.findings(minima))
    assert len(theory) == 2
    assert all(theory.values())


def test_every_outcome_is_told_apart() -> None:
    minima = local_minima.minima_of(LANDSCAPES["wavy"])
    steps = torch.arange(101)
    walks = {
        local_minima.LOCAL: torch.full((101,), minima["local"]["x"]),
        local_minima.GLOBAL: torch.full((101,), minima["global"]["x"]),
        local_minima.LEFT: torch.where(steps == 3, 2.5, minima["global"]["x"]),
        local_minima.CYCLES: torch.where(steps % 2 == 0, -0.5, 0.1),
        local_minima.ON_THE_WAY: -0.9 + 0.003 * steps,
    }
    positions = torch.stack(list(walks.values()), 1)[:, :, None].double()
    assert [row[0] for row in local_minima.outcomes_of(positions, minima)] == list(walks)


# Saddle points


@pytest.fixture(scope="module")
def saddles(setup: Setup) -> Facts:
    return saddle_points.measure(setup, silent)


def test_sgd_leaves_the_saddle_by_its_closed_form(saddles: Facts) -> None:
    found = saddles["escape_steps"]["saddle"]["sgd"]
    for lr in (0.1, 0.3):
        for exponent in (1, 4, 12):
            exact = math.log(10**exponent) / math.log(1 + 2 * lr)
            assert found[f"{lr:g}"][exponent - 1] == math.ceil(exact - 1e-9)
    assert all(theory_of(saddle_points.findings(saddles)).values())


def test_adaptive_methods_hardly_mind_the_start_and_the_others_do(saddles: Facts) -> None:
    for name, by_rate in saddles["escape_steps"]["saddle"].items():
        more = by_rate["0.1"][11] - by_rate["0.1"][1]  # from y₀ = 1e-12 than from 1e-2
        assert more <= 3 if name in ("adagrad", "rmsprop", "adam") else more > 40, name


def test_nobody_leaves_the_saddle_from_the_ridge_but_noise_frees_all(saddles: Facts) -> None:
    for by_rate in saddles["escape_steps"]["saddle"].values():
        assert all(math.isnan(steps[-1]) for steps in by_rate.values())
    for by_batch in saddles["noise"]["steps"].values():
        assert all(row["escaped"] == 1 for row in by_batch.values())


def test_momentum_is_carried_through_the_monkey_saddle(saddles: Facts) -> None:
    from_ridge = {name: row["0.1"][-1] for name, row in saddles["escape_steps"]["monkey"].items()}
    assert math.isfinite(from_ridge["momentum"])
    assert math.isnan(from_ridge["sgd"])


def test_a_batchs_variance_falls_as_one_over_its_size(saddles: Facts) -> None:
    small, large = saddles["deep_net"]["by_batch"].values()
    assert small["gradient_variance"] / large["gradient_variance"] == pytest.approx(4, rel=0.4)


# Vanishing gradients


@pytest.fixture(scope="module")
def gradients(setup: Setup) -> Facts:
    return vanishing_gradients._gradients(setup, silent)


def test_a_sigmoid_layer_hands_on_what_theory_says(gradients: Facts) -> None:
    plain = gradients["nets"]["sigmoid"]["default"]["plain"]
    for by_depth in plain.values():
        low, high = min(by_depth["factors"]), max(by_depth["factors"])
        assert pytest.approx(0.1443, abs=1e-4) == vanishing_gradients.FACTOR
        assert low * 0.95 < vanishing_gradients.FACTOR < high * 1.1


def test_what_keeps_the_gradient_and_what_does_not(gradients: Facts) -> None:
    def factor(activation: str, initialisation: str, wiring: str) -> float:
        value: float = gradients["nets"][activation][initialisation][wiring]["20"]["factor"]
        return value

    assert factor("sigmoid", "chosen", "plain") < 0.3
    assert factor("relu", "default", "plain") < 0.6
    for kept in (
        ("tanh", "chosen", "plain"), ("relu", "chosen", "plain"),
        ("sigmoid", "default", "batch_norm"), ("sigmoid", "default", "residual"),
    ):  # fmt: skip
        assert 0.8 < factor(*kept) < 1.2, kept
    he = gradients["nets"]["relu"]["chosen"]
    assert he["residual"]["20"]["norms"][0] > 100 * he["plain"]["20"]["norms"][0]


def test_tanh_holds_sgd_for_as_long_as_computed() -> None:
    setup = Setup(("sgd", "adam"), sizes=SMALL)
    tanh = vanishing_gradients._tanh(setup)
    assert tanh["sgd_in_theory"] == pytest.approx(3746, abs=1)
    steps = {name: its["steps_to_0"] for name, its in tanh["by_optimizer"].items()}
    assert steps["sgd"] == pytest.approx(tanh["sgd_in_theory"], rel=0.01)
    assert steps["adam"] < 50


def test_adam_is_scale_free_until_epsilon() -> None:
    scale = vanishing_gradients._scale(Setup(("adam",), sizes=SMALL))
    moved = dict(zip(scale["scales"], scale["moved"]["adam"], strict=True))
    assert moved[1e-4] == pytest.approx(moved[1.0], rel=0.01)
    # Far below ε the step is γ·g/ε: a hundredth of the scale, a hundredth of the way.
    assert moved[1e-12] == pytest.approx(moved[1e-10] / 100, rel=0.05)


def test_adams_first_step_does_not_move_the_first_layers_of_a_deep_net(setup: Setup) -> None:
    by_depth = vanishing_gradients._adam_in_depth(setup)["by_depth"]
    assert by_depth["5"]["move"][0] > 0.5
    assert by_depth["20"]["move"][0] < 1e-6
    assert by_depth["20"]["move"][-1] == pytest.approx(1, abs=0.01)


def test_a_residual_block_adds_and_a_chosen_initialisation_has_its_spread() -> None:
    net = build_net("tanh", 3, 64, 0, "chosen", "residual")
    block = dict(net.named_children())["block_2"]
    assert isinstance(block, torch.nn.Sequential)
    layer, activation = block
    x = torch.randn(4, 64)
    assert torch.equal(block(x), x + activation(layer(x)))
    weights = weights_by_layer(build_net("relu", 3, 64, 0, "chosen"))["layer_2"]
    assert weights.std().item() == pytest.approx(math.sqrt(2 / 64), rel=0.1)


# Generalization


def test_the_test_loss_turns_while_the_training_loss_falls(many_digits: Digits) -> None:
    setup = Setup(("adam",), 0, many_digits, dataclasses.replace(SMALL, seeds=1))
    facts = generalization.measure(setup, silent)
    turn = facts["optimizers"]["adam"]["turn"]
    assert turn["end"]["test_loss"] > 1.05 * turn["at"]["test_loss"]
    assert turn["end"]["train_loss"] < 0.2 * turn["at"]["train_loss"]
    assert abs(turn["end"]["test_accuracy"] - turn["at"]["test_accuracy"]) < 0.1
    cures = {name: its["end"]["test_loss"] for name, its in facts["cures"].items()}
    assert cures["5 × the data"] < cures["none"]
    assert cures["early stopping"] <= cures["none"]
    assert all(theory_of(generalization.findings(facts)).values())
    fit = facts["fit"]
    assert 3 < fit["best_degree"] < 12
    assert fit["test_error"][19] > 100 * fit["test_error"][fit["best_degree"]]


def test_equal_training_loss_is_met_between_two_looks() -> None:
    curve = {
        "step": [0.0, 10.0], "train_loss": [0.1, 0.001], "test_loss": [0.5, 0.7],
        "test_accuracy": [0.8, 0.9],
    }  # fmt: skip
    found = generalization._at_loss(curve, 0.01)  # half-way, in the logarithm
    assert found is not None
    assert found["step"] == pytest.approx(5)
    assert found["gap"] == pytest.approx(0.59)
    assert generalization._at_loss(curve, 1e-6) is None


# Traps


def test_epsilon_in_the_root_stops_small_gradients() -> None:
    moved = traps._constant_gradients()["moved"]["rmsprop"]
    ratios = [a / b for a, b in zip(moved["outside"], moved["inside"], strict=True)]
    assert ratios[0] == pytest.approx(1, abs=0.1)
    assert ratios[-1] > 500
    # There ε is all that is under the root: 100 steps of g / √ε.
    assert moved["inside"][-1] == pytest.approx(100 * 1e-6 / math.sqrt(traps.EPS), rel=0.01)


def test_a_momentum_with_the_rate_in_its_velocity_parts_when_the_rate_falls() -> None:
    facts = traps._momenta()
    torchs, averaged, sutskevers = facts["height"].values()
    falls_at = facts["falls_at"]
    assert torchs[: falls_at + 1] == pytest.approx(sutskevers[: falls_at + 1], rel=1e-3)
    assert torchs[-1] != pytest.approx(sutskevers[-1], rel=1e-3)
    assert averaged[falls_at] != pytest.approx(torchs[falls_at], rel=1e-2)


def test_a_loss_divided_twice_stops_sgd_and_not_adam(many_digits: Digits) -> None:
    sizes = dataclasses.replace(SMALL, images=600, epochs=8)
    loss = traps._divided_twice(Setup(("sgd", "adam"), 0, many_digits, sizes))["loss"]
    end = {name: {kind: one["loss"][-1] for kind, one in its.items()} for name, its in loss.items()}
    assert end["sgd"]["divided"] > 2 > end["sgd"]["right"]
    assert end["adam"]["divided"] == pytest.approx(end["adam"]["right"], rel=0.2)


def test_clipping_is_torchs() -> None:
    gradients = torch.tensor([[[3.0, 4.0], [0.3, 0.4]]], dtype=torch.float64)
    for before, after in zip(gradients[0], traps.clip(gradients)[0], strict=True):
        p = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
        p.grad = before.clone()
        torch.nn.utils.clip_grad_norm_([p], traps.CLIPPED_AT)
        assert after.tolist() == pytest.approx(p.grad.tolist(), rel=1e-5)


# Gallery


def test_the_gallery_shows_walks_that_stay_inside_and_end_low() -> None:
    sizes = dataclasses.replace(SMALL, rates=6)
    facts = gallery.measure(Setup(("sgd", "adam"), sizes=sizes), silent)
    assert set(facts["landscapes"]) == set(LANDSCAPES)
    for key, by_name in facts["landscapes"].items():
        for its in by_name.values():
            assert its["lr"] in facts["rates"]
            assert LANDSCAPES[key].holds(torch.tensor(its["path"], dtype=torch.float64)).all()
            assert its["height"][-1] < its["height"][0]


# Lessons


def test_a_lesson_ends_when_enough_is_learnt_or_the_steps_are_over(many_digits: Digits) -> None:
    images, labels = many_digits.train_images[:200], many_digits.train_labels[:200]

    def lesson(until: float, steps: int) -> tuple[int, bool]:
        net = build_net("relu", 1, 32)
        optimizer = OPTIMIZERS["adam"].make_scratch(net.parameters(), 0.01)
        found = learn(
            net, optimizer, images, labels, batch_size=50, steps=steps, seed=0, until=until
        )
        return found.steps, found.reached

    assert lesson(0.0, 7) == (7, False)
    steps, reached = lesson(1.0, 200)
    assert reached
    assert 10 <= steps < 200


def test_a_curve_is_made_of_means() -> None:
    assert curve_of([1.0, 3.0, 5.0], size=2) == {"step": [2, 3], "loss": [2.0, 5.0]}
