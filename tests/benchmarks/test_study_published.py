"""Published cases: the mechanics and the protocols, on drawn digits; the figures need MNIST."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.command import CannotRun
from benchmarks.data import DEVIATION, MEAN, Digits
from benchmarks.study.published import __main__ as command
from benchmarks.study.published import (
    adam_paper,
    algoperf,
    deepobs,
    glorot_bengio,
    nielsen,
    running,
)
from benchmarks.study.published.case import (
    BUDGETS,
    REPORTED_EVERY,
    Case,
    Figure,
    Lab,
    Measured,
    Settings,
    among_our_seeds,
    unit_pixels,
    within,
)
from benchmarks.study.published.cases import CASES
from benchmarks.study.published.nets import (
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
from benchmarks.study.published.parts import Parts
from benchmarks.study.published.running import RESULT, run_cases
from benchmarks.study.published.teaching import epochs_of, sigmoid_cross_entropy
from tests.benchmarks.files import read
from torch_scratch_optim import ScratchSGD

TINY: dict[str, Settings] = {
    "nielsen_gradients": {"seeds": 3},
    "glorot_bengio_stuck": {"rates": (0.1,), "images": 100, "epochs": 1},
    "adam_paper_order": {"epochs": 2},
    "algoperf_target": {"rates": (1e-3, 1e-2), "epochs": 2},
    "nielsen_overfitting": {"seeds": (0,), "epochs": 2},
    "deepobs_adam": {"seeds": (42, 43), "epochs": 2},
    "deepobs_momentum": {"seeds": (42, 43), "epochs": 2, "until": 0.97},
    "deepobs_adam_rates": {"rates": (1e-3,), "epochs": 1},
}


# Verdicts and tolerances


@pytest.mark.parametrize(
    ("theirs", "margin", "ours", "verdict"),
    [
        (0.5, 0.125, 0.625, "reproduced"),
        (0.5, 0.125, 0.626, "differs"),
        (0.5, 0.125, 0.375, "reproduced"),
        (0.5, 0.125, 0.374, "differs"),
        ((2, 4), 0, 4, "reproduced"),
        ((2, 4), 1, 5, "reproduced"),
        ((2, 4), 1, 0.9, "differs"),
        ((2, 4), 1, math.inf, "differs"),
        ((2, 4), 1, math.nan, "differs"),
    ],
)
def test_a_margin_decides(theirs: Any, margin: float, ours: float, verdict: str) -> None:
    row = Figure("q", theirs, within(margin, "so")).row(Measured(ours))
    assert row["verdict"] == verdict
    assert row["theirs"] == theirs


def test_a_single_draw_of_theirs_must_be_a_possible_draw_of_ours() -> None:
    figure = Figure("q", 0.3, among_our_seeds("one seed"))
    assert figure.row(Measured(0.5, (0.2, 0.6)))["verdict"] == "reproduced"
    assert figure.row(Measured(0.5, (0.4, 0.6)))["verdict"] == "differs"
    assert figure.row(Measured(0.2, (0.1, 0.25)))["verdict"] == "differs"
    assert figure.row(Measured(0.3))["verdict"] == "differs"  # no spread, no judgement


def test_what_was_not_measured_is_not_run_and_says_why() -> None:
    row = Figure("q", 0.3, within(1, "so"), "Odd.").row(None, "no time")
    assert (row["verdict"], row["ours"], row["note"]) == ("not run", None, "Odd. no time")


def test_a_figure_that_nobody_published_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing is published for other"):
        a_case([]).rows({"other": Measured(1.0)}, "")


# What is trained


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


# All cases


def test_every_case_knows_its_budgets_and_sources() -> None:
    assert set(TINY) == set(CASES)
    for case in CASES.values():
        assert set(case.budgets) <= set(BUDGETS)
        assert "full" in case.budgets
        assert case.source
        assert case.figures


@pytest.mark.parametrize("name", CASES)
def test_every_case_measures_only_what_was_published(
    name: str, digits: Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deepobs, "SIZES", (784, 16, 10))
    monkeypatch.setattr(deepobs, "EPOCHS", 2)
    monkeypatch.setattr(nielsen, "FULL_EPOCHS", 2)
    monkeypatch.setattr(algoperf, "EPOCHS", 2)
    monkeypatch.setattr(glorot_bengio, "WIDTH", 16)
    monkeypatch.setattr(glorot_bengio, "LONG_ENOUGH", 10)
    case = replace(CASES[name], budgets={"quick": TINY[name]})
    shares: list[float] = []
    (found,) = run_cases(
        [name], tmp_path, on_progress=lambda _, share: shares.append(share),
        budget="quick", cases={name: case}, digits=digits,
    )  # fmt: skip
    assert [row["quantity"] for row in found["rows"]] == [
        figure.quantity for figure in case.figures.values()
    ]
    assert any(row["verdict"] != "not run" for row in found["rows"])
    assert shares[0] == 0
    assert shares[-1] == 1
    assert shares == sorted(shares)


# Running


def a_case(calls: list[str], **settings: Any) -> Case:
    def measure(lab: Lab, given: Settings) -> Mapping[str, Measured]:
        calls.append(str(dict(given)))
        return {"one": Measured(1.0)}

    return Case(
        "A case", "A source", {"quick": settings, "standard": settings | {"n": (1, 2)}},
        {"one": Figure("one", 1, within(0, "so")), "two": Figure("two", 2, within(0, "so"))},
        measure,
    )  # fmt: skip


def test_a_case_is_not_run_again_with_the_same_settings(digits: Digits, tmp_path: Path) -> None:
    calls: list[str] = []

    def run(case: Case, budget: str) -> str:
        (found,) = run_cases(
            ["a"], tmp_path, budget=budget, cases={"a": case, "b": case}, digits=digits
        )
        return str(found["settings"]["budget"])

    assert run(a_case(calls, m=1), "quick") == "quick"
    assert run(a_case(calls, m=1), "quick") == "quick"
    assert len(calls) == 1
    assert run(a_case(calls, m=1), "standard") == "standard"
    assert run(a_case(calls, m=1), "standard") == "standard"
    assert len(calls) == 2
    assert run(a_case(calls, m=1), "quick") == "standard"  # what took longer is kept
    assert len(calls) == 2
    assert run(a_case(calls, m=2), "quick") == "quick"  # other settings, another experiment
    assert len(calls) == 3


def test_the_file_has_what_a_report_needs(digits: Digits, tmp_path: Path) -> None:
    case = a_case([])
    run_cases(["b"], tmp_path, budget="standard", cases={"b": case}, digits=digits)
    run_cases(["a"], tmp_path, budget="standard", cases={"a": case}, digits=digits)
    content = read(tmp_path / RESULT)
    assert content["machine"]["cores"] >= 1
    assert "torch" in content["versions"]
    assert [found["case"] for found in content["cases"]] == ["b", "a"]
    found = content["cases"][0]
    assert (found["title"], found["source"]) == ("A case", "A source")
    assert found["settings"] == {"budget": "standard", "dataset": digits.name, "n": [1, 2]}
    one, two = found["rows"]
    assert (one["theirs"], one["ours"], one["verdict"]) == (1, 1.0, "reproduced")
    assert one["tolerance"] == "no margin: so"
    assert (two["ours"], two["verdict"]) == (None, "not run")
    assert two["note"] == "the budget standard does not reach it"


def test_a_budget_without_settings_runs_nothing(digits: Digits, tmp_path: Path) -> None:
    calls: list[str] = []
    (found,) = run_cases(["a"], tmp_path, budget="full", cases={"a": a_case(calls)}, digits=digits)
    assert calls == []
    assert {row["verdict"] for row in found["rows"]} == {"not run"}


def test_without_mnist_nothing_is_run_until_it_is_there(digits: Digits, tmp_path: Path) -> None:
    calls: list[str] = []
    cases = {"a": a_case(calls)}
    (found,) = run_cases(["a"], tmp_path, tmp_path / "nothing", budget="quick", cases=cases)
    assert calls == []
    assert {row["verdict"] for row in found["rows"]} == {"not run"}
    assert "no MNIST" in found["rows"][0]["note"]
    run_cases(["a"], tmp_path, budget="quick", cases=cases, digits=digits)
    assert len(calls) == 1


def test_an_interrupted_case_costs_only_itself(digits: Digits, tmp_path: Path) -> None:
    calls: list[str] = []

    def interrupted(lab: Lab, settings: Settings) -> Mapping[str, Measured]:
        raise KeyboardInterrupt

    cases = {"a": a_case(calls), "b": replace(a_case(calls), measure=interrupted)}
    threads = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        run_cases(["a", "b"], tmp_path, budget="quick", cases=cases, digits=digits)
    assert torch.get_num_threads() == threads
    assert [found["case"] for found in read(tmp_path / RESULT)["cases"]] == ["a"]
    cases["b"] = a_case(calls)
    assert len(run_cases(["a", "b"], tmp_path, budget="quick", cases=cases, digits=digits)) == 2
    assert len(calls) == 2


def test_of_an_interrupted_case_the_finished_parts_are_kept(digits: Digits, tmp_path: Path) -> None:
    calls: list[str] = []
    last: list[float] = []

    def stopping_at(stop: str | None) -> Case:
        def compute(key: str) -> list[float]:
            if key == stop:
                raise KeyboardInterrupt
            calls.append(key)
            return [1.0, math.inf]

        def measure(lab: Lab, settings: Settings) -> Mapping[str, Measured]:
            lab.expect(300)
            values = [lab.once(key, 100, partial(compute, key)) for key in ("p", "q", "r")]
            last.append(values[0][1])
            return {"one": Measured(values[0][0])}

        return replace(a_case([], m=1), measure=measure)

    def run(case: Case, budget: str = "quick") -> None:
        run_cases(["a"], tmp_path, budget=budget, cases={"a": case}, digits=digits)

    with pytest.raises(KeyboardInterrupt):
        run(stopping_at("r"))
    assert calls == ["p", "q"]
    with pytest.raises(KeyboardInterrupt):
        run(stopping_at("q"), "standard")  # other settings, other parts
    assert calls == ["p", "q", "p"]
    run(stopping_at(None), "standard")
    assert calls == ["p", "q", "p", "q", "r"]
    assert math.isnan(last[-1])  # JSON has no infinity, and NaN reaches nothing either
    assert [path.name for path in tmp_path.iterdir()] == [RESULT]  # nothing is left over


def test_finished_parts_count_as_progress(digits: Digits, tmp_path: Path) -> None:
    shares: list[float] = []
    lab = Lab(digits, shares.append, Parts(tmp_path, "a", {}))
    for _ in range(2):
        lab.expect(2 * REPORTED_EVERY)
        lab.once("p", REPORTED_EVERY, lambda: 1)
    for _ in range(REPORTED_EVERY):
        lab.step()
    assert shares == [1.0]


def test_damaged_parts_are_an_error_that_names_the_file(digits: Digits, tmp_path: Path) -> None:
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "a.json").write_text('{"settings": {}')
    with pytest.raises(CannotRun, match=r"published/a.json is damaged, remove it"):
        run_cases(["a"], tmp_path, budget="quick", cases={"a": a_case([])}, digits=digits)


def test_bad_input_is_refused_before_anything_is_run(digits: Digits, tmp_path: Path) -> None:
    calls: list[str] = []
    cases = {"a": a_case(calls)}
    with pytest.raises(CannotRun, match="no published case 'b'; there are a"):
        run_cases(["a", "b"], tmp_path, cases=cases, digits=digits)
    with pytest.raises(CannotRun, match="no budget 'huge'"):
        run_cases(["a"], tmp_path, budget="huge", cases=cases, digits=digits)
    (tmp_path / RESULT).write_text('{"cases": 3}')
    with pytest.raises(CannotRun, match="does not hold published cases"):
        run_cases(["a"], tmp_path, cases=cases, digits=digits)
    assert calls == []
    assert (tmp_path / RESULT).read_text() == '{"cases": 3}'


# The command


@pytest.fixture
def small_table(
    monkeypatch: pytest.MonkeyPatch, digits: Digits
) -> tuple[list[str], dict[str, Case]]:
    """One case in the place of all; MNIST is the drawn digits."""
    calls: list[str] = []
    cases = {"a": a_case(calls), "b": a_case(calls)}
    for module in (command, running):
        monkeypatch.setattr(module, "CASES", cases)
    monkeypatch.setattr(running, "load_digits", lambda *arguments, **options: digits)
    return calls, cases


def test_the_command_runs_and_shows_every_case(
    small_table: tuple[list[str], dict[str, Case]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--budget", "quick", "--out", str(tmp_path / "out")]
    assert command.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "[2/2] A case: 1 reproduced, 1 not run" in shown
    assert command.main(arguments) == 0
    calls, _ = small_table
    assert len(calls) == 2


def test_an_interrupted_command_says_how_to_go_on(
    small_table: tuple[list[str], dict[str, Case]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(lab: Lab, settings: Settings) -> Mapping[str, Measured]:
        raise KeyboardInterrupt

    _, cases = small_table
    cases["b"] = replace(cases["b"], measure=interrupted)
    assert command.main(["--budget", "quick", "--out", str(tmp_path)]) == 130
    shown = capsys.readouterr().out
    assert f"--budget quick --out {tmp_path}" in shown
    assert [found["case"] for found in read(tmp_path / RESULT)["cases"]] == ["a"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["other"], "no 'other' here"),
        (["--budget", "huge"], "invalid choice: 'huge'"),
        (["--out", "{}/file/deeper"], "is not a directory"),
    ],
)
def test_the_command_refuses_in_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stopped:
        command.main([argument.format(tmp_path) for argument in arguments])
    assert stopped.value.code == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
