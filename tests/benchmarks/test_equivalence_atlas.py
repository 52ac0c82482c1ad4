"""The atlas of equivalence: what it compares, what it leaves behind and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.common.implementations import ENGINES
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.option_cases import OPTION_CASES
from benchmarks.common.variants import AVERAGING, EPS_INSIDE, LR_IN_VELOCITY, VARIANTS, variant_of
from benchmarks.equivalence import __main__ as equivalence
from benchmarks.equivalence import atlas
from benchmarks.equivalence.__main__ import DEFAULT_ENGINES, main
from benchmarks.equivalence.atlas import DTYPES, PROMISED, compare_case, implementations
from benchmarks.equivalence.figures import draw_atlas
from benchmarks.equivalence.report import report, summary, verdict
from tests.benchmarks.files import read
from torch_scratch_optim import ScratchAdam
from torch_scratch_optim.equivalence import FAR, random_model

pytestmark = pytest.mark.slow

Atlas = Callable[..., int]
CPU = torch.device("cpu")
SMALL = ("--optimizers", "adam", "--dtypes", "float32", "--steps", "4")


@pytest.fixture
def run(tmp_path: Path) -> Atlas:
    def run(*arguments: str, out: Path = tmp_path / "atlas") -> int:
        return main([*SMALL, "--out", str(out), *arguments], processes=1)

    return run


def compared(optimizer: str, options: dict[str, Any], dtype: str = "float32") -> dict[str, Any]:
    return compare_case(optimizer, options, dtype, DEFAULT_ENGINES, steps=5, seed=0)


def test_a_quick_run_leaves_json_tables_and_a_picture(
    run: Atlas, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--budget", "quick") == 0
    found = read(tmp_path / "atlas" / "equivalence.json")
    assert found["settings"]["implementations"] == implementations(DEFAULT_ENGINES)
    assert (found["settings"]["steps"], found["settings"]["budget"]) == (4, "quick")
    first, last = found["rows"]
    assert first["options"] == "defaults"
    assert last["options"] == "decoupled_weight_decay=True, amsgrad=True, weight_decay=0.1"
    for row, columns in ((first, 4), (last, 5)):  # step, m, v and, with AMSGrad, v_max; p
        assert (row["optimizer"], row["dtype"]) == ("adam", "float32")
        assert row["compared"] == 4 * 19 * columns
        assert all(row["max_ulps"][name] == 0 for name in PROMISED)
        assert row["max_ulps"][EPS_INSIDE] > 1e6
        assert row["mismatches"][EPS_INSIDE] == 4 * 17
        assert row["first"][EPS_INSIDE].startswith("step 1, parameter of matrix: ")
    assert (tmp_path / "atlas" / "equivalence.png").read_bytes().startswith(b"\x89PNG")
    assert "## First mismatches" in (tmp_path / "atlas" / "equivalence.md").read_text()
    shown = capsys.readouterr().out
    assert "[2/2] Adam, decoupled_weight_decay=True" in shown
    assert "ours-foreach: 0 mismatches (cases: 2, tensors: 684)" in shown


def test_everything_is_compared_unless_told_otherwise() -> None:
    parser = equivalence.build_parser()
    cases = equivalence._cases(parser.read([]))
    assert len(cases) == 4 * sum(map(len, OPTION_CASES.values()))
    assert {case[0] for case in cases} == set(OPTIMIZERS)
    assert {case[2] for case in cases} == set(DTYPES)
    assert equivalence._begin(parser.read([]), CPU)["settings"]["steps"] >= 200


def test_implementations_are_ours_torchs_and_variants_but_not_the_reference() -> None:
    names = implementations(["loop", "fused"])
    assert names[:2] == ["ours-loop", "ours-fused"]
    assert names[2:5] == ["torch-default", "torch-foreach", "torch-fused"]
    assert names[5:] == list(VARIANTS)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_ours_have_the_bits_and_torchs_fused_is_told_apart(optimizer: str, dtype: str) -> None:
    row = compared(optimizer, OPTION_CASES[optimizer][-1], dtype)
    assert row["failed"] == {}
    assert all(row["max_ulps"][name] == 0 for name in PROMISED)
    if optimizer == "rmsprop":
        assert row["not available"]["torch-fused"] == "RMSprop has no fused=True"
    elif dtype == "bfloat16":
        assert row["max_ulps"]["torch-fused"] > 0


def test_an_engine_that_is_not_there_is_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(params: Any, fused: bool = False, **options: Any) -> torch.optim.Optimizer:
        if fused:
            raise NotImplementedError("fused=True is not supported yet")
        return ScratchAdam(params, **options)

    monkeypatch.setitem(OPTIMIZERS, "adam", _with_scratch(refuse))
    row = compare_case("adam", {}, "float32", ["loop", "fused"], steps=2, seed=0)
    assert row["not available"] == {"ours-fused": "fused=True is not supported yet"}
    assert "ours-fused" not in row["max_ulps"]
    assert row["failed"] == {}


def _with_scratch(make: Any) -> Any:
    entry = OPTIMIZERS["adam"]
    return type(entry)(**{**vars(entry), "scratch": make})


@pytest.mark.parametrize("breach", ["differs", "fails"])
def test_a_broken_promise_ends_with_status_1(
    run: Atlas, breach: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(params: Any, **options: Any) -> torch.optim.Optimizer:
        if breach == "fails":
            raise RuntimeError("out of order")
        return ScratchAdam(params, **options | {"eps": 2e-8})

    monkeypatch.setitem(OPTIMIZERS, "adam", _with_scratch(broken))
    assert run("--budget", "quick", "--engine", "loop") == 1
    shown = " ".join(capsys.readouterr().out.split())
    if breach == "fails":
        assert "adam, defaults, float32, ours-loop failed: RuntimeError: out of order" in shown
    else:
        assert "ours-loop: 136 mismatches (cases: 2, " in shown


def test_variants_differ_as_their_formula_says() -> None:
    averaging = compared("momentum", {})
    assert averaging["max_difference"][AVERAGING] > 1e-2
    # The same mathematics as torch's, rounded elsewhere.
    assert 0 < averaging["max_difference"][LR_IN_VELOCITY] < 1e-5
    assert averaging["first"][LR_IN_VELOCITY].startswith("step 1, parameter of ")  # not its state
    # In float16, ε = 1e-10 is no number.
    assert compared("adagrad", {}, "float16")["max_ulps"][EPS_INSIDE] == 0
    assert compared("adagrad", {}, "float32")["max_difference"][EPS_INSIDE] > 1e-3


def test_there_is_a_variant_only_where_it_differs() -> None:
    assert variant_of(AVERAGING, "sgd", {}) is None
    assert variant_of(AVERAGING, "sgd", {"momentum": 0.9}) is not None
    assert variant_of(AVERAGING, "adam", {}) is None
    assert {name for kinds in VARIANTS.values() for name in kinds} == set(OPTIMIZERS)


def test_gradients_are_drawn_once_and_come_as_copies() -> None:
    models = [random_model(), random_model()]
    for model in models:
        atlas._give_gradients("float32", 0, model, 1)
    one, other = ([p.grad for p in model.parameters()] for model in models)
    for a, b in zip(one, other, strict=True):
        assert a is not None
        assert b is not None
        assert torch.equal(a, b)
        assert a.data_ptr() != b.data_ptr()


def test_an_interrupted_run_keeps_what_it_has(
    run: Atlas,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    done: list[Any] = []

    def interrupted(*case: Any, **settings: Any) -> Any:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(case)
        return compare_case(*case, **settings)

    monkeypatch.setattr(equivalence, "compare_case", interrupted)
    assert run() == 130
    assert len(read(tmp_path / "atlas" / "equivalence.json")["rows"]) == 3
    assert (tmp_path / "atlas" / "equivalence.png").exists()
    assert "Interrupted; finished comparisons are kept" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--optimizers", "adan"], "no 'adan' here; valid are sgd, momentum, adagrad"),
        (["--dtypes", "float8"], "no 'float8' here; valid are bfloat16, float16, float32, float64"),
        (["--engine", "magic"], f"no 'magic' here; valid are {', '.join(ENGINES)}"),
        (["--steps", "0"], "'0' is not a whole number from 1 up"),
        (["--seed", "-1"], "'-1' is not a whole number from 0 up"),
    ],
)
def test_wrong_options_are_explained_before_anything_is_done(
    run: Atlas,
    arguments: list[str],
    problem: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as end:
        run(*arguments)
    assert end.value.code == 2
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "atlas").exists()


def test_a_directory_that_cannot_be_used_is_refused(
    run: Atlas, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for out, problem in ((file / "out", "is not a directory"), (tmp_path, "is not empty")):
        with pytest.raises(SystemExit):
            run(out=out)
        assert problem in capsys.readouterr().err
    assert file.read_text() == "mine"


def test_a_nan_against_a_number_is_null_in_json_and_drawn() -> None:
    row = compared("rmsprop", {"lr": 1e30, "momentum": 0.9}, "float32")
    row["max_ulps"]["torch-foreach"] = FAR
    row["max_difference"]["torch-foreach"] = atlas._largest([1.0, float("nan")])
    row["mismatches"]["torch-foreach"] = 1
    assert row["max_difference"]["torch-foreach"] is None
    assert "torch-foreach far" in summary([row])
    recorded = {
        "settings": {
            "optimizers": ["rmsprop"],
            "dtypes": ["float32"],
            "implementations": implementations(DEFAULT_ENGINES),
            "steps": 5,
            "seed": 0,
        },
        "machine": {"processor": "abacus"},
        "versions": {"torch": "2"},
        "rows": [row],
    }
    assert "| far |" in report(recorded)
    assert "mismatches (cases: 1, " in verdict(recorded)
    assert draw_atlas(recorded).startswith(b"\x89PNG")
