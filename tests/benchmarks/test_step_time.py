"""Timing the steps: which implementations there are, on what, and what the report says of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import torch
from matplotlib.figure import Figure

from benchmarks.common.implementations import (
    IMPLEMENTATIONS,
    LR,
    count_denormals,
    make_parameters,
    maker,
    share_state,
    state_columns,
    state_of,
)
from benchmarks.common.memory import peak_extra_bytes
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.reading import shaped
from benchmarks.common.shapes import MODELS
from benchmarks.step_time import __main__ as step_time
from benchmarks.step_time import clocks, timer
from benchmarks.step_time.__main__ import main
from benchmarks.step_time.clocks import DeviceClock, Time, clock_of
from benchmarks.step_time.figures import TOP, draw_bars, draw_ratios
from benchmarks.step_time.report import (
    RECORDED,
    doubts,
    groups_of,
    ratio_table,
    report,
)
from benchmarks.step_time.timer import APART, SHARED, Effort, Timer, percentile
from tests.benchmarks.files import read

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
TINY = Effort(rounds=3, few_rounds=2, seconds=60.0, warm_up=1, copied_bytes=2**16)
NOT_FUSED = ("ours-default", "ours-foreach", "torch-default", "torch-fused")
SHAPES = [(3, 5), (1,), (7,)]


@pytest.mark.parametrize(
    ("model", "tensors", "parameters"),
    [
        ("mnist", 18, 664_074),
        ("resnet50", 161, 25_557_032),
        ("gpt2", 148, 124_439_808),
        ("tiny", 500, 3_500),
        ("big", 1, 25_000_000),
    ],
)
def test_the_shapes_are_those_of_the_models(model: str, tensors: int, parameters: int) -> None:
    found = MODELS[model].describe()
    assert (found["tensors"], found["parameters"]) == (tensors, parameters)


def test_the_bytes_of_a_step_follow_from_the_state() -> None:
    found = {name: state_columns(entry) for name, entry in OPTIMIZERS.items()}
    assert found == {"sgd": 0, "momentum": 1, "adagrad": 1, "rmsprop": 1, "adam": 2, "adamw": 2}


def test_values_are_of_normal_size_and_denormals_are_counted() -> None:
    parameters = make_parameters([(1000,)], 0, CPU)
    (p,) = parameters
    assert p.grad is not None
    for x in (p.detach(), p.grad):
        assert 0.5 <= x.abs().min() <= x.abs().max() <= 1.5
        assert x.min() < 0 < x.max()
    assert count_denormals([*parameters, p.grad]) == 0
    assert count_denormals([torch.tensor([0.0, 1e-40, -1e-40, 1.0])]) == 2


@pytest.mark.parametrize("name", ["adagrad", "adam"])
def test_a_shared_state_is_one_and_the_steps_are_not(name: str) -> None:
    parameters = make_parameters(SHAPES, 0, CPU)
    shared: dict[tuple[int, str], torch.Tensor] = {}
    pair = []
    for implementation in ("ours-default", "torch-foreach"):
        optimizer = maker(implementation, OPTIMIZERS[name], lr=LR)(parameters)
        optimizer.step()
        share_state(optimizer, shared)
        pair.append(optimizer)
    ours, theirs = map(state_of, pair)
    assert len(ours) == len(SHAPES) * state_columns(OPTIMIZERS[name])
    assert [x.data_ptr() for x in ours] == [x.data_ptr() for x in theirs]
    for p in parameters:
        assert pair[0].state[p]["step"] is not pair[1].state[p]["step"]


def test_each_implementation_is_asked_for_by_torchs_arguments() -> None:
    parameters = make_parameters(SHAPES, 0, CPU)
    asked = {
        name: maker(name, OPTIMIZERS["adam"], lr=LR)(parameters).defaults
        for name in IMPLEMENTATIONS
        if name != "ours-fused"
    }
    assert {name: (given["foreach"], given["fused"]) for name, given in asked.items()} == {
        "ours-default": (None, None),
        "ours-loop": (False, False),
        "ours-foreach": (True, None),
        "torch-default": (None, None),
        "torch-loop": (False, False),
        "torch-foreach": (True, None),
        "torch-fused": (None, True),
    }
    with pytest.raises(NotImplementedError, match="RMSprop has no fused=True"):
        maker("torch-fused", OPTIMIZERS["rmsprop"])


@pytest.mark.parametrize("layout", [APART, SHARED])
def test_a_group_has_a_cell_for_each_implementation(layout: str) -> None:
    effort = Effort(**{**vars(TINY), "memory_budget": 2**30 if layout == APART else 0})
    watch = Timer(CPU, effort, 0)
    cells = watch.measure("tiny", SHAPES, "adam", NOT_FUSED)
    assert [cell["implementation"] for cell in cells] == list(NOT_FUSED)
    for cell in cells:
        assert cell["status"] == "measured"
        assert cell["memory"] == layout
        assert cell["rounds"] == 3
        assert cell["steps"] == 3 * effort.steps_in_cache
        assert 0 < cell["median_ms"] <= cell["p90_ms"]
        assert cell["bytes_per_parameter"] == 28
        assert cell["denormals_in_group"] == 0
        assert cell["first_in_process"]
        share = 28 * 23 / (cell["median_ms"] / 1e3) / cell["copy_bytes_per_second"]
        assert cell["bandwidth_share"] == pytest.approx(share)
    again = watch.measure("tiny", SHAPES, "adam", NOT_FUSED)
    assert not any(cell["first_in_process"] for cell in again)


def test_what_is_not_there_or_fails_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    make = maker

    def some(name: str, *rest: Any, **options: Any) -> Callable[..., torch.optim.Optimizer]:
        if name == "ours-fused":
            raise NotImplementedError("not yet\nsecond line")
        if name == "ours-loop":
            raise RuntimeError("no compiler")
        return make(name, *rest, **options)

    monkeypatch.setattr(timer, "maker", some)
    names = ("ours-fused", "ours-loop", "torch-loop")
    cells = Timer(CPU, TINY, 0).measure("tiny", SHAPES, "sgd", names)
    assert [(cell["status"], cell.get("reason")) for cell in cells] == [
        ("not available", "not yet"),
        ("failed", "no compiler"),
        ("measured", None),
    ]


def test_results_that_differ_from_torchs_are_no_times(monkeypatch: pytest.MonkeyPatch) -> None:
    def some(name: str, *args: Any, **options: Any) -> Any:
        wrong = {"lr": 20 * LR} if name == "ours-foreach" else {}
        return maker(name, *args, **(options | wrong))

    monkeypatch.setattr(timer, "maker", some)
    cells = Timer(CPU, TINY, 0).measure("tiny", SHAPES, "sgd", NOT_FUSED)
    status = {cell["implementation"]: cell["status"] for cell in cells}
    assert status == {
        name: "failed" if name == "ours-foreach" else "measured" for name in NOT_FUSED
    }
    assert [cell.get("reason") for cell in cells if cell["status"] == "failed"] == [
        "its results differ from torch's"
    ]


def test_the_order_of_visits_changes_and_the_slow_leave_early(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    visits: list[str] = []

    def visit(self: timer.Implementation, untimed: int, timed: int) -> None:
        visits.append(self.name)
        self.rounds += 1
        seconds = 1.0 if self.name == "torch-default" else 0.001
        self.times.append(Time(seconds, seconds))

    monkeypatch.setattr(timer.Implementation, "visit", visit)
    effort = Effort(**{**vars(TINY), "rounds": 20, "few_rounds": 4, "seconds": 2.0})
    Timer(CPU, effort, 0).measure("tiny", SHAPES, "adam", NOT_FUSED)
    assert visits.count("torch-default") == 4
    assert all(visits.count(name) == 20 for name in ("ours-default", "torch-fused", "copy"))
    rounds = [tuple(visits[start : start + 5]) for start in range(0, 20, 5)]
    assert all(len(set(each)) == 5 for each in rounds)
    assert len(set(rounds)) > 1


class FakeGPU:
    """Launches of kernels, each of which takes the device 3 ms from when it is idle."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def launch(self) -> None:
        self.calls.append("cudaLaunchKernel")

    def synchronize(self) -> None:
        self.calls.append("synchronize")

    def event(self, enable_timing: bool) -> FakeEvent:
        assert enable_timing
        return FakeEvent(self)


class FakeEvent:
    def __init__(self, gpu: FakeGPU) -> None:
        self.gpu, self.at = gpu, -1

    def record(self) -> None:
        self.at = len(self.gpu.calls)
        self.gpu.calls.append("event")

    def elapsed_time(self, end: FakeEvent) -> float:
        assert self.gpu.calls[self.at - 1] == self.gpu.calls[end.at + 1] == "synchronize"
        return 3.0 * self.gpu.calls[self.at : end.at].count("cudaLaunchKernel")


class FakeProfile:
    """What happens on a GPU meanwhile, as rows of torch.profiler."""

    def __init__(self, gpu: FakeGPU) -> None:
        self.gpu, self.before = gpu, len(gpu.calls)

    def __enter__(self) -> FakeProfile:
        return self

    def __exit__(self, *problem: object) -> None:
        assert self.gpu.calls[-1] == "synchronize", "launched kernels are counted when they ran"

    def key_averages(self) -> list[SimpleNamespace]:
        launches = self.gpu.calls[self.before :].count("cudaLaunchKernel")
        counts = {"cudaLaunchKernel": launches, "cuLaunchKernelEx": 1, "cudaMemcpyAsync": 5}
        return [SimpleNamespace(key=key, count=count) for key, count in counts.items()]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGPU:
    fake = FakeGPU()
    monkeypatch.setattr(torch.cuda, "synchronize", fake.synchronize)
    monkeypatch.setattr(torch.cuda, "Event", fake.event)
    monkeypatch.setattr(clocks, "profile", lambda activities: FakeProfile(fake))
    return fake


def test_a_gpu_is_timed_by_its_events_and_the_host_apart(gpu: FakeGPU) -> None:
    def two_launches() -> None:
        gpu.launch()
        gpu.launch()

    clock = clock_of(torch.device("cuda"))
    times = [clock.time(two_launches) for _ in range(2)]
    assert [each.seconds for each in times] == [0.006, 0.006]
    # The call itself takes microseconds.
    assert all(0 < each.host_seconds < 0.003 for each in times)
    assert clock.details([Time(1, 0.002), Time(1, 0.004)], two_launches) == {
        "host_ms": pytest.approx(3.0),
        "launches": 3,  # two by the runtime, one by the driver
    }


def test_cells_and_report_of_a_gpu_have_host_times_and_launches(
    gpu: FakeGPU, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(*names: Any, **options: Any) -> Any:
        return lambda parameters: torch.optim.SGD(parameters, lr=LR)

    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: gpu.launch())
    monkeypatch.setattr(timer, "maker", make)
    monkeypatch.setattr(timer, "clock_of", lambda device: DeviceClock())
    watch = Timer(CPU, TINY, 0)
    monkeypatch.setattr(watch._target, "copy_", lambda source: gpu.launch(), raising=False)
    some = recorded() | {"cells": watch.measure("tiny", SHAPES, "sgd", ("ours-loop", "torch-loop"))}
    for cell in some["cells"]:
        assert (cell["median_ms"], cell["launches"]) == (3.0, 2)
        assert 0 < cell["host_ms"] < 3
        share = cell["bytes_per_parameter"] * 23 / (2 * TINY.copied_bytes)
        assert cell["bandwidth_share"] == pytest.approx(share)
    assert shaped(RECORDED)(some)
    text = report(some)
    assert "| bandwidth | host ms | launches |" in text
    assert f"| {some['cells'][0]['host_ms']:.3f} | 2 |" in text
    assert "the host is the limit" in text
    del some["cells"][0]["host_ms"]
    assert not shaped(RECORDED)(some), "launches without the host's time"


def test_the_recorded_report_of_a_cpu_is_as_it_was() -> None:
    results = Path(step_time.__file__).parents[1] / "results" / "step_time"
    some = read(results / "step_time.json")
    assert shaped(RECORDED)(some)
    some["settings"].setdefault("budget", "standard")  # older records do not name it
    assert not {"host_ms", "launches"} & {name for cell in some["cells"] for name in cell}
    text = report(some)
    assert "| bandwidth |\n" in text
    assert not re.search("host|launches", text)


def test_percentiles_lie_between_neighbours() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2
    assert percentile([0.0, 10.0], 0.9) == pytest.approx(9)


def test_the_peak_of_memory_sees_what_is_freed_again() -> None:
    peak = peak_extra_bytes(lambda: torch.ones(2**23), CPU)
    nothing = peak_extra_bytes(lambda: None, CPU)
    if peak is None or nothing is None:
        pytest.skip("this system does not count peaks")
    assert 0.8 * 2**25 < peak < 1.5 * 2**25
    assert nothing < 2**22


def recorded(**milliseconds: float) -> dict[str, Any]:
    cells = [
        {
            "model": "tiny", "optimizer": "adam", "implementation": name.replace("_", "-"),
            "status": "measured", "median_ms": ms, "p90_ms": ms, "rounds": 3,
            "first_step_ms": 1.0, "first_in_process": True, "peak_extra_bytes": None,
            "bytes_per_parameter": 28, "bandwidth_share": 0.5, "memory": APART,
            "denormals_in_group": 0,
        }
        for name, ms in milliseconds.items()
    ]  # fmt: skip
    return {
        "models": {"tiny": {"title": "some tensors"}},
        "settings": {"budget": "standard", "seed": 0},
        "machine": {"processor": "some processor", "torch_threads": 1, "device": "cpu"},
        "versions": {"torch": "some version"},
        "cells": cells,
    }


def test_ratios_are_ours_divided_by_torchs() -> None:
    some = recorded(ours_default=3.0, ours_fused=1.0, torch_default=6.0, torch_fused=2.0)
    (row,) = groups_of(some)
    assert row.ratio_of_bests() == 0.5
    assert row.ratio("default", "default") == 0.5
    assert row.ratio("fused", "default") == pytest.approx(1 / 6)
    assert row.ratio("loop", "loop") is None
    assert ratio_table(some).splitlines()[-1] == (
        "| some tensors | Adam | **ours, 2.00×** | 0.50 | 1 (fused) | 2 (fused) "
        "| 0.50 | - | - | 0.50 | 0.17 |"
    )


@pytest.mark.parametrize(
    ("ours", "verdict"), [(1.02, "equal"), (0.5, "**ours, 2.00×**"), (2.0, "torch, 2.00×")]
)
def test_the_verdict_names_the_faster(ours: float, verdict: str) -> None:
    (row,) = groups_of(recorded(ours_loop=ours, torch_loop=1.0))
    assert row.verdict() == verdict


def test_unsteady_times_and_denormals_are_doubted() -> None:
    some = recorded(ours_loop=1.0, torch_loop=1.0)
    assert doubts(some) is None
    some["cells"][0]["p90_ms"] = 2.5
    assert "1 of 2 measurements are unsteady" in (doubts(some) or "")
    assert "something else: some tensors, Adam, ours-loop." in (doubts(some) or "")
    some["cells"][1]["denormals_in_group"] = 1
    assert "denormal values" in report(some)


def test_a_side_that_is_missing_leaves_gaps_not_errors() -> None:
    some = recorded(ours_loop=1.0)
    assert "| some tensors | Adam | - | - |" in ratio_table(some)
    assert draw_ratios(some).startswith(b"\x89PNG")


@pytest.fixture
def tiny_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "tiny", type(MODELS["tiny"])("a few tensors", lambda: list(SHAPES)))


@pytest.mark.usefixtures("tiny_models")
def test_the_command_writes_json_table_and_chart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "job"
    names = ["--optimizers", "sgd", "rmsprop", "--engine", "default", "fused"]
    assert main(["--models", "tiny", *names, "--out", str(out)], TINY) == 0
    assert {path.name for path in out.iterdir()} == {
        "step_time.json", "step_time.md", "step_time.png",
    }  # fmt: skip
    result = read(out / "step_time.json")
    assert {"machine", "versions", "settings", "facts", "models", "cells"} <= set(result)
    assert result["settings"]["effort"]["rounds"] == 3
    assert result["models"]["tiny"] == {"title": "a few tensors", "tensors": 3, "parameters": 23}
    assert len(result["cells"]) == 8
    (absent,) = [cell for cell in result["cells"] if cell["status"] != "measured"]
    assert (absent["optimizer"], absent["implementation"]) == ("rmsprop", "torch-fused")
    assert "rmsprop, torch-fused: not available" in (out / "step_time.md").read_text()
    shown = capsys.readouterr().out
    assert "[2/2] a few tensors, RMSProp: ours-default" in shown
    assert "torch-fused not available" in shown


@pytest.mark.usefixtures("tiny_models")
def test_an_interrupted_job_keeps_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure = Timer.measure

    def interrupted(self: Timer, model: str, shapes: Any, optimizer: str, *rest: Any) -> Any:
        if optimizer == "momentum":
            assert len(read(tmp_path / "step_time.json")["cells"]) == 2, "it is written at once"
            raise KeyboardInterrupt
        return measure(self, model, shapes, optimizer, *rest)

    monkeypatch.setattr(Timer, "measure", interrupted)
    arguments = ["--models", "tiny", "--engine", "loop", "--out", str(tmp_path)]
    assert main(arguments, TINY) == 130
    assert len(read(tmp_path / "step_time.json")["cells"]) == 2
    assert (tmp_path / "step_time.png").exists()
    assert "Interrupted" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--optimizers", "foo"], "valid are sgd, momentum, adagrad, rmsprop, adam, adamw"),
        (["--models", "foo"], "valid are mnist, resnet50, gpt2, tiny, big"),
        (["--engine", "fast"], "valid are default, loop, foreach, fused"),
        (["--seed", "-1"], "'-1' is not a whole number from 0 up"),
        (["--out", "file/inside"], "file is not a directory"),
        (["--out", "full"], "full is not empty"),
        (["--device", "cuda"], "no CUDA device"),
    ],
)
def test_bad_input_is_refused_before_anything_is_timed(
    arguments: list[str],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*arguments: Any) -> NoReturn:
        raise AssertionError("something was timed")

    monkeypatch.setattr(step_time, "Timer", refuse)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as ending:
        main(arguments)
    assert ending.value.code == 2
    shown = capsys.readouterr()
    assert complaint in shown.err
    assert shown.err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_the_highest_bars_are_cut_off_and_keep_their_numbers() -> None:
    panel = Figure().subplots()
    draw_bars(panel, ["tiny"], ["sgd", "adam"], {("tiny", "sgd"): 50.0, ("tiny", "adam"): 0.5})
    assert [bar.get_height() for bar in panel.patches] == [TOP, 0.5]  # type: ignore[attr-defined]
    assert [text.get_text() for text in panel.texts][:2] == ["50.00", "0.50"]
    assert panel.get_ylim()[1] > TOP
    (gap, _) = panel.lines  # across the bar that is cut, and the line at 1
    assert gap.get_xdata() == pytest.approx([-0.43, 0])
