"""The CUDA target without a GPU: NVRTC compiles its text, and a CPU runs it.

What is expected is worked out here once more, from CUDA's formulas and exact arithmetic, and not
from the package's table of operations.
"""

from __future__ import annotations

import ctypes
import inspect
import itertools
import math
import random
import sys
import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import lru_cache, reduce
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

from torch_scratch_optim import ScratchAdam, ScratchOptimizer, ScratchSGD, _cpp, _cuda, _fused
from torch_scratch_optim._cuda import CHUNK, FEW_WORDS, HEADER, MANY_WORDS, THREADS, CudaKernel
from torch_scratch_optim._kernels import Signature, kernel_for
from torch_scratch_optim._symbols import OPERATIONS

from .cases import CASES, FLOATS, TABLE, Case, leaves, parameters, same_bits
from .cuda_on_cpu import DEVICE, Cuda, CUresult, NvrtcResult, forget, install, on_host

HALF = (torch.float16, torch.bfloat16)
RICHEST = [Case(optimizer, table[-1]) for optimizer, table in TABLE.items()]
PROVED = [Case("Momentum", {"nesterov": True}), Case("Adam"), *RICHEST]
each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_rich_case = pytest.mark.parametrize("case", RICHEST, ids=str)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cuda")


@pytest.fixture
def cuda(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cuda]:
    """A GPU that is a CPU."""
    try:
        _cpp.require_compiler()
    except RuntimeError as problem:
        pytest.skip(f"kernels are run as C++: {problem}")
    monkeypatch.setenv("TORCH_SCRATCH_CACHE", str(folder / "cache"))
    made = Cuda(folder)
    forget()
    install(made, monkeypatch)
    yield made
    forget()


@pytest.fixture
def compiling(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cuda]:
    """The real NVRTC, with nothing on the path, and a driver that runs nothing."""
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="needs NVIDIA's cuda-bindings")
    try:
        nvrtc.nvrtcVersion()
    except RuntimeError as problem:
        pytest.skip(f"NVRTC's library cannot be loaded: {problem}")
    for name in ("CUDA_HOME", "CUDA_PATH", "CUDA_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("TORCH_SCRATCH_CACHE", str(folder / "cubins"))
    made = Cuda(folder)
    made.runs = False
    forget()
    install(made, monkeypatch, compiler=False)
    # There is nothing to be proved of a kernel that does not run.
    monkeypatch.setattr(_fused, "_has_the_bits_of_the_loop", lambda *_: True)
    yield made
    forget()


# Exact arithmetic.


def odd_sum(a: Tensor, b: Tensor) -> Tensor:
    """a + b in float64, rounded to odd: what is inexact gets an odd last bit.

    A number that is rounded so, and then to nearest in fewer digits, is as if rounded once.
    """
    s = a + b
    t = s - a
    error = (a - (s - t)) + (b - t)
    towards = torch.where(error > 0, math.inf, -math.inf).to(s)
    inexact = (error != 0) & s.isfinite() & (s.view(torch.int64) & 1 == 0)
    return torch.where(inexact, torch.nextafter(s, towards), s)


def two_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def two_product(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """a · b and its error, by Dekker's method of halves."""

    def halves(x: Tensor) -> tuple[Tensor, Tensor]:
        high = x * 134217729.0
        high = high - (high - x)
        return high, x - high

    p = a * b
    (a1, a2), (b1, b2) = halves(a), halves(b)
    return p, ((a1 * b1 - p) + a1 * b2 + a2 * b1) + a2 * b2


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a · b + c, rounded once (Boldo and Melquiond, 2008)."""
    a, b, c = torch.broadcast_tensors(a, b, c)
    if c.dtype == torch.float32:
        return odd_sum(a.double() * b.double(), c.double()).float()
    high, low = two_product(a, b)
    t_high, t_low = two_sum(c, low)
    v_high, v_low = two_sum(high, t_high)
    exact = v_high + odd_sum(t_low, v_low)
    # Nothing is rounded where the sum is zero, whose sign the parts have lost.
    return torch.where(exact.isfinite() & (exact != 0), exact, a * b + c)


def root(x: Tensor) -> Tensor:
    """The square root, correctly rounded, which torch's on a CPU need not be."""
    roots = [math.sqrt(v) if v >= 0 else math.nan for v in x.double().flatten().tolist()]
    return torch.tensor(roots, dtype=torch.float64).view(x.shape).to(x.dtype)


def one(x: Tensor) -> Tensor:
    return torch.ones_like(x)


def power(x: Tensor, exponent: Tensor) -> Tensor:
    special: dict[float, Callable[[], Tensor]] = {
        2: lambda: x * x,
        3: lambda: x * x * x,
        0.5: lambda: root(x),
        -1: lambda: one(x) / x,
        -2: lambda: one(x) / (x * x),
        -0.5: lambda: one(x) / root(x),
    }
    cheap = special.get(exponent.item())
    return cheap() if cheap else x.double().pow(exponent.double()).to(x.dtype)


def lerp(x: Tensor, end: Tensor, w: Tensor) -> Tensor:
    return torch.where(
        w.abs() < 0.5, fma(w, end - x, x), fma(-(end - x), 1 - w, end)
    )  # 1 − w is in the working precision


def addcmul(x: Tensor, a: Tensor, b: Tensor, value: Tensor) -> Tensor:
    return fma(a, b, x) if value == 1 else fma(value, a * b, x)


def through_double(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: function(x.double()).to(x.dtype)


# CUDA's formulas, on tensors of the working type.
FORMULAS: dict[str, Callable[..., Tensor]] = {
    "neg": torch.neg,
    "abs": torch.abs,
    "sign": lambda x: (x > 0).to(x) - (x < 0).to(x),
    "sqrt": root,
    "rsqrt": lambda x: one(x) / root(x),
    "reciprocal": lambda x: one(x) / x,
    "exp": through_double(torch.exp),
    "log": through_double(torch.log),
    "copy": lambda x, other: other.expand(x.shape),
    "add": lambda x, other, alpha: fma(alpha, other, x),
    "sub": lambda x, other, alpha: fma(-alpha, other, x),
    "mul": torch.mul,
    "div": torch.div,
    "div_number": lambda x, other: x * (1.0 / other.double()).to(x.dtype),
    "pow": lambda x, exponent: x.double().pow(exponent.double()).to(x.dtype),
    "pow_number": power,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "clamp_min": torch.maximum,
    "clamp_max": torch.minimum,
    "lerp": lerp,
    "addcmul": addcmul,
    "addcdiv": lambda x, a, b, value: fma(value, a / b, x),
}
NAMED = {"add": "alpha", "sub": "alpha", "addcmul": "value", "addcdiv": "value"}


def working(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


class Exact:
    """A tensor that a rule runs on, which does as CUDA's formulas say.

    Args:
        value: in the working type of `dtype`.
        dtype: of the tensor.
        rounded: round each result to `dtype`.
    """

    def __init__(self, value: Tensor, dtype: torch.dtype, rounded: bool) -> None:
        self.value, self.dtype, self.rounded = value.to(working(dtype)), dtype, rounded

    def __getattr__(self, word: str) -> Callable[..., Exact]:
        operation = word.removesuffix("_")

        def method(*others: Any, **named: Any) -> Exact:
            operands = [self, *others]
            dtypes = [o.dtype for o in operands if isinstance(o, Exact)]
            promoted = reduce(torch.promote_types, dtypes)
            dtype = self.dtype if word != operation else promoted
            meet = torch.float64 if torch.float64 in dtypes else torch.float32

            def tensor(o: Any) -> Tensor:
                value: Tensor = (
                    o.value if isinstance(o, Exact) else torch.tensor(o, dtype=torch.float64)
                )
                return value.to(meet)

            name = operation
            if operation in ("div", "pow") and not isinstance(others[0], Exact):
                name += "_number"
            if operation in NAMED:
                operands.append(named.pop(NAMED[operation], 1.0))
            assert not named
            value = FORMULAS[name](*map(tensor, operands)).to(working(dtype))
            result = Exact(value.to(dtype) if self.rounded else value, dtype, self.rounded)
            if word == operation:
                return result
            self.value = result.value
            return self

        return method


def run_exactly(
    rule: Callable[..., None],
    row: dict[str, Tensor],
    scalars: dict[str, Any],
    rounded: bool,
    *,
    inverse_scale: float | None = None,
    maximize: bool = False,
    l2: float | None = None,
) -> None:
    """Run a rule on one row, in place."""
    exact = {name: Exact(t.detach(), t.dtype, rounded) for name, t in row.items()}
    given = dict(exact)
    if inverse_scale is not None:
        given["g"] = given["g"].mul(inverse_scale)
    if maximize:
        given["g"] = given["g"].neg()
    if l2:
        given["g"] = given["g"].add(given["p"], alpha=l2)
    rule(**given, **scalars)
    with torch.no_grad():
        for name, tensor in row.items():
            if name != "g":
                tensor.copy_(exact[name].value)


def step_exactly(optimizer: Optimizer, rounded: bool, scale: float | None = None) -> None:
    """A step of one of our optimizers, whose own :meth:`step` is never called."""
    assert isinstance(optimizer, ScratchOptimizer)
    for group in optimizer.param_groups:
        symbols = optimizer.columns(group)
        # Parameters that take the same step, which are one row here.
        alike: dict[float | bool, list[dict[str, Tensor]]] = {}
        for p in group["params"]:
            if p.grad is None:
                continue
            state = optimizer.state[p]
            t: float | bool = bool(symbols) and not state  # is it the first?
            if (symbols or optimizer.counts_steps) and not state:
                state.update(optimizer.new_state(p, group))
            if optimizer.counts_steps:
                state["step"] += 1
                t = state["step"].item()
            row = {"p": p, "g": p.grad} | {k: state[name] for k, name in symbols.items()}
            alike.setdefault(t, []).append(row)
        for t, rows in alike.items():
            if optimizer.counts_steps:
                scalars = optimizer.scalars(t, group)
            else:
                scalars = optimizer.scalars(0.0, group) | {"first": t}
            whole = {k: torch.cat([row[k].detach().flatten() for row in rows]) for k in rows[0]}
            run_exactly(
                optimizer.rule,
                whole,
                {k: v.item() if isinstance(v, Tensor) else v for k, v in scalars.items()},
                rounded,
                inverse_scale=None if scale is None else float(torch.tensor(1.0) / scale),
                maximize=group["maximize"],
                l2=None if group.get("decoupled_weight_decay") else float(group["weight_decay"]),
            )
            sizes = [row["p"].numel() for row in rows]
            for k, column in whole.items():
                for row, values in zip(rows, column.split(sizes), strict=True):
                    row[k].detach().copy_(values.view(row[k].shape))


def loop_exactly(rule: Callable[..., None], table: Any, scalars: dict[str, Any]) -> None:
    """For the package's loop, which on a CPU rounds by other formulas than on a GPU."""
    for row in table.rows():
        exact = {name: Exact(t.detach(), t.dtype, True) for name, t in row.items()}
        rule(**exact, **scalars)
        for name, tensor in row.items():
            tensor.detach().copy_(exact[name].value)


def canonical(t: Tensor) -> Tensor:
    """With one NaN for all: which one, and its sign, depends on the processor."""
    return torch.where(t.isnan(), torch.full_like(t, math.nan), t)


def assert_same(a: Tensor, b: Tensor, what: object = "") -> None:
    a, b = canonical(a.detach()), canonical(b.detach())
    if not same_bits(a, b):
        where = ((a != b) & ~(a.isnan() & b.isnan())).flatten().nonzero().flatten().tolist()
        raise AssertionError(f"{what} differs at {where[:9]} ({len(where)} of {a.numel()})")


def assert_same_state(ours: Optimizer, exact: Optimizer) -> None:
    for i, (p, q) in enumerate(zip(leaves(ours), leaves(exact), strict=True)):
        assert_same(p, q, f"parameter {i}")
        mine, theirs = ours.state.get(p, {}), exact.state.get(q, {})
        assert list(mine) == list(theirs)
        for name, value in theirs.items():
            assert_same(mine[name], value, f"{name} of parameter {i}")


def test_the_exact_fma_is_the_fraction_rounded_once() -> None:
    generator = random.Random(0)
    for dtype, digits in ((torch.float32, 24), (torch.float64, 53)):
        rows = []
        for i in range(300):
            x, y = generator.gauss(0, 1), generator.gauss(0, 1)
            # Sums that cancel, that are near a tie, and ordinary ones.
            z = [-x * y, (1 + 2.0**-digits) * 2.0 ** (i % 60 - 30), generator.gauss(0, 1)][i % 3]
            rows.append((x, y, z))
        a, b, c = torch.tensor(rows, dtype=torch.float64).to(dtype).unbind(1)
        exact = [
            Fraction(x) * Fraction(y) + Fraction(z)
            for x, y, z in zip(a.tolist(), b.tolist(), c.tolist(), strict=True)
        ]
        if dtype == torch.float64:
            expected = [float(f) for f in exact]
        else:
            expected = list(map(rounded_to_float, exact))
        assert torch.equal(fma(a, b, c).double(), torch.tensor(expected, dtype=torch.float64))


def rounded_to_float(f: Fraction) -> float:
    """The float32 nearest to a fraction: of the three around its float64, the nearest."""
    near = torch.tensor(float(f)).float()
    candidates = [torch.nextafter(near, near.new_tensor(s)) for s in (-math.inf, math.inf)]
    nearest = min(
        (near, *candidates),
        key=lambda n: (abs(Fraction(n.item()) - f), int(n.view(torch.int32)) & 1),
    )
    return nearest.item()


# NVRTC.


def dense(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Leaves that a kernel takes as they are: so many and so large that several launches and
    chunks are needed."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    made = [
        normal(7, 5),
        normal(),
        normal(0, 4),
        normal(13, 6).t(),
        normal(4, 3, 5, 5).contiguous(memory_format=torch.channels_last),
        normal(CHUNK + 1),
        *map(normal, range(1, 20)),
        normal(3, 0),
    ]
    return [p.requires_grad_() for p in made]


def give_gradients(*twins: Optimizer, step: int, scale: float = 1.0) -> None:
    """Gradients of some size, laid out as the parameters, equal for all twins."""
    generator = torch.Generator().manual_seed(100 + step)
    for same in zip(*map(leaves, twins), strict=True):
        gradient = torch.randn(same[0].shape, generator=generator, dtype=torch.float64) * scale
        for p in same:
            p.grad = torch.empty_like(p).copy_(gradient)


def names(cuda: Cuda) -> set[str]:
    return {launch.name for launch in cuda.launches}


def compile_all(case: Case, dtype: torch.dtype, **options: Any) -> None:
    optimizer = case.ours(dense(dtype), **options)
    for step in range(2):  # the first of momentum is another kernel
        give_gradients(optimizer, step=step)
        optimizer.step()


# In float32 the default's kernels differ only in that they do not count.
@pytest.mark.parametrize("capability", [(8, 0), (9, 0)], ids=str)
@each_case
def test_nvrtc_compiles_every_rule_without_a_toolkit(
    compiling: Cuda, case: Case, capability: tuple[int, int]
) -> None:
    compiling.capability = capability
    compile_all(case, torch.float32, fused=True)
    assert names(compiling) == {"count", "move_few"}


@pytest.mark.parametrize("options", [{}, {"fused": True}], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_nvrtc_compiles_every_dtype(
    compiling: Cuda, dtype: torch.dtype, options: dict[str, Any]
) -> None:
    compiling.version = 12_080  # with large tables, too
    compile_all(RICHEST[-1], dtype, **options)
    assert names(compiling) == ({"count", "move_few"} if options else {"move_few"})


@pytest.mark.parametrize(
    "dtypes",
    [[torch.float64] * 3, [torch.bfloat16, torch.float16, torch.float32]],
    ids=["float64", "mixed"],
)
def test_nvrtc_compiles_all_operations(compiling: Cuda, dtypes: list[torch.dtype]) -> None:
    own = dict(zip("pgs", dtypes, strict=True))
    kernel = kernel_for(all_operations(own, torch.float32, rounded=True))
    assert isinstance(kernel, CudaKernel)


def test_nvrtc_errors_are_shown_with_the_compilers_log(compiling: Cuda) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)NVRTC could not compile.*nonsense.*undefined"):
        _cuda.compile_cubin("__global__ void f() { nonsense(); }", "sm_90")
    with pytest.raises(RuntimeError, match=r"NVRTC_ERROR_INVALID_OPTION|NVRTC could not compile"):
        _cuda.compile_cubin("__global__ void f() {}", "sm_1")


# Kernels that are called by hand.


def signature(
    rule: Callable[..., None],
    dtypes: dict[str, torch.dtype],
    scalars: dict[str, Any],
    rounded: bool = False,
) -> Signature:
    gradient = {
        "gradient.inverse_scale": None,
        "gradient.maximize": False,
        "gradient.l2": None,
    }
    flags = {k: v for k, v in scalars.items() if v is None or isinstance(v, bool)} | gradient
    return Signature(
        rule,
        rounded,
        tuple(flags.items()),
        tuple(k for k in scalars if k not in flags),
        tuple(dtypes),
        tuple((DEVICE, dtype) for dtype in dtypes.values()),
    )


def cuda_kernel(signature: Signature) -> CudaKernel:
    kernel = kernel_for(signature)
    assert isinstance(kernel, CudaKernel)
    return kernel


class Rows:
    """Rows of tensors that are views into one buffer for each column, so that a test sees also what
    is written beside them. All values are drawn, so no two tensors are alike.

    Args:
        sizes: elements of each row.
        dtypes: of each column.
        offsets: by how many elements each column's tensors are off an aligned address.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        dtypes: dict[str, torch.dtype],
        offsets: dict[str, int] | None = None,
        seed: int = 0,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.sizes, self.buffers = list(sizes), dict[str, Tensor]()
        self.columns: dict[str, list[Tensor]] = {}
        for name, dtype in dtypes.items():
            offset, starts, end = (offsets or {}).get(name, 0), [], 32
            for size in sizes:
                starts.append(end + offset)
                end += -(-(size + offset + 1) // 32) * 32
            drawn = torch.randn(end, generator=generator, dtype=torch.float64)
            # Wide steps keep numbers of half precision apart.
            buffer = (drawn * 2.0 ** torch.randint(-4, 4, (end,), generator=generator)).to(dtype)
            assert buffer.data_ptr() % 64 == 0
            self.buffers[name] = buffer
            self.columns[name] = self._views(buffer, starts)
        self._starts = {
            name: [int(t.storage_offset()) for t in column] for name, column in self.columns.items()
        }

    def _views(self, buffer: Tensor, starts: list[int]) -> list[Tensor]:
        return [buffer[s : s + size] for s, size in zip(starts, self.sizes, strict=True)]

    def clone(self) -> Rows:
        twin = object.__new__(Rows)
        twin.sizes, twin._starts = self.sizes, self._starts
        twin.buffers = {name: buffer.clone() for name, buffer in self.buffers.items()}
        twin.columns = {
            name: twin._views(buffer, self._starts[name]) for name, buffer in twin.buffers.items()
        }
        return twin

    def rows(self) -> list[dict[str, Tensor]]:
        return [
            dict(zip(self.columns, row, strict=True))
            for row in zip(*self.columns.values(), strict=True)
        ]

    def call(self, kernel: CudaKernel, numbers: Sequence[float], stride: int = 0) -> bool:
        pointers = [t.data_ptr() for column in self.columns.values() for t in column]
        return kernel(array("q", self.sizes), array("q", pointers), array("d", numbers), stride)


def assert_same_buffers(a: Rows, b: Rows) -> None:
    for name in a.columns:
        assert_same(a.buffers[name], b.buffers[name], f"column {name}")


def sample(p: Any, g: Any, m: Any, *, a: float, b: float) -> None:
    m.mul_(a).add_(g, alpha=b)
    p.sub_(m)


FLOAT = dict.fromkeys("pgm", torch.float32)
MIXED = {"p": torch.float32, "g": torch.bfloat16, "m": torch.float64}
NUMBERS = {"a": 0.9, "b": -0.3}


def check_sample(
    rows: Rows,
    dtypes: dict[str, torch.dtype],
    numbers: list[dict[str, float]] | None = None,
    rounded: bool = False,
) -> None:
    """Move rows by a kernel, and by the formulas; every byte of their buffers has to agree."""
    expected = rows.clone()
    kernel = cuda_kernel(signature(sample, dtypes, NUMBERS, rounded))
    own = numbers or [NUMBERS] * len(rows.sizes)
    for row, scalars in zip(expected.rows(), own, strict=True):
        run_exactly(sample, row, scalars, rounded)
    given = [v for scalars in (own if numbers else [NUMBERS]) for v in scalars.values()]
    assert rows.call(kernel, given, 2 if numbers else 0)
    assert_same_buffers(rows, expected)


def numbers_of(rows: int) -> list[dict[str, float]]:
    return [{"a": 0.5 + i / 7000, "b": 0.1 - i / 9000} for i in range(rows)]


def many_sizes(rows: int) -> list[int]:
    """Small rows, with empty ones at the start, in the middle and at the end."""
    sizes = [(5 * i) % 13 for i in range(1, rows + 1)]
    if rows >= 100:
        for i in (0, 1, rows // 2, rows // 2 + 1, rows - 2, rows - 1):
            sizes[i] = 0
        sizes[rows // 3] = 2 * CHUNK + 1  # rows after it start at another chunk
    return sizes


@pytest.mark.parametrize("version", [12_000, 12_010], ids=["4 KB", "32 KB"])
@pytest.mark.parametrize(
    ("rows", "stride"),
    [*itertools.product([1, 2, 3, 100, 700], [False, True]), (2000, False)],
)
def test_kernel_finds_each_row_of_many(cuda: Cuda, rows: int, version: int, stride: bool) -> None:
    cuda.version = version
    made = Rows(many_sizes(rows), FLOAT)
    check_sample(made, FLOAT, numbers_of(rows) if stride else None)
    width, shared = (7, 0) if stride else (5, 2)
    few = rows * width + shared <= FEW_WORDS
    words = FEW_WORDS if few or version < 12_010 else MANY_WORDS
    launches = math.ceil(rows / ((words - shared) // width))
    assert len(cuda.launches) == launches
    assert names(cuda) == {"move_few" if words == FEW_WORDS else "move_many"}


@pytest.mark.parametrize(
    "sizes",
    [[0, 0, 5], [5, 0, 0], [0, 3, 0, 0, 4, 0], [0, 4096, 0, 4097], [1, 0, 8192, 0, 0, 1]],
    ids=str,
)
def test_kernel_passes_empty_rows_by(cuda: Cuda, sizes: list[int]) -> None:
    check_sample(Rows(sizes, FLOAT), FLOAT, numbers_of(len(sizes)))


def test_kernel_is_not_launched_for_nothing(cuda: Cuda) -> None:
    check_sample(Rows([0, 0, 0], FLOAT), FLOAT)
    assert not cuda.launches


def test_kernel_skips_launches_whose_rows_are_all_empty(cuda: Cuda) -> None:
    cuda.version = 12_000
    check_sample(Rows([0] * 250 + [3, 0, 2] + [0] * 250, FLOAT), FLOAT)
    assert len(cuda.launches) == 1


CHUNKS = [1, 2, 3, 4, 5, 6, 7, 4095, 4096, 4097, 4098, 4099, 8192, 12289]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("offset", [0, 1, 2, 3, 4])
def test_kernel_moves_ends_of_chunks_and_fours_wherever_they_lie(
    cuda: Cuda, dtype: torch.dtype, offset: int
) -> None:
    dtypes = dict.fromkeys("pgm", dtype)
    check_sample(Rows(CHUNKS, dtypes, dict.fromkeys("pgm", offset)), dtypes, rounded=True)


@pytest.mark.parametrize("column", ["p", "g", "m"])
@pytest.mark.parametrize("offset", [1, 2, 3])
@pytest.mark.parametrize("dtypes", [FLOAT, MIXED], ids=["float32", "mixed"])
def test_kernel_takes_columns_of_which_one_is_misaligned(
    cuda: Cuda, dtypes: dict[str, torch.dtype], column: str, offset: int
) -> None:
    check_sample(Rows(CHUNKS, dtypes, {column: offset}), dtypes)


MIXTURES = [
    MIXED,
    {"p": torch.float32, "g": torch.float32, "m": torch.bfloat16},
    {"p": torch.bfloat16, "g": torch.float32, "m": torch.float32},
    {"p": torch.float16, "g": torch.bfloat16, "m": torch.float64},
    {"p": torch.float64, "g": torch.float16, "m": torch.float32},
    {"p": torch.bfloat16, "g": torch.float16, "m": torch.float16},
]


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("dtypes", MIXTURES, ids=lambda d: ",".join(map(str, d.values())))
def test_kernel_rounds_each_column_to_its_own_dtype(
    cuda: Cuda, dtypes: dict[str, torch.dtype], rounded: bool
) -> None:
    check_sample(Rows([1, 5, 4098, 130], dtypes), dtypes, numbers_of(4), rounded)


def copy_gradient(p: Any, g: Any) -> None:
    p.copy_(g)


@pytest.mark.parametrize("half", HALF, ids=str)
def test_kernel_converts_half_precision_both_ways(cuda: Cuda, half: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(half)
    exact = every.float()
    # Numbers half way between neighbours, and just beside that.
    ties = (exact[:-1].double() + exact[1:].double()).div(2).float()
    above, below = (torch.nextafter(ties, torch.tensor(s)) for s in (math.inf, -math.inf))
    floats = torch.cat([exact, ties, above, below, torch.tensor([1e30, -1e30, 65519.9, 65520.0])])
    for source, target in ((every, exact), (floats, floats.to(half))):
        rows = {"p": torch.full_like(target, 7.0), "g": source.clone()}
        kernel = cuda_kernel(signature(copy_gradient, {n: t.dtype for n, t in rows.items()}, {}))
        pointers = array("q", [t.data_ptr() for t in rows.values()])
        assert kernel(array("q", [source.numel()]), pointers, array("d"), 0)
        assert_same(rows["p"], target)


# Operations, each alone: of p, g, s and a number.
CALLS: dict[str, Callable[[Any, Any, Any, Any], Any]] = {
    **{
        word: lambda p, g, s, a, word=word: getattr(p, word)()  # type: ignore[misc]  # a lambda's default has no type
        for word, spelling in OPERATIONS["cuda"].items()
        if len(inspect.signature(spelling).parameters) == 1
    },
    "copy": lambda p, g, s, a: p.copy(g),
    "add": lambda p, g, s, a: p.add(g),
    "add, alpha": lambda p, g, s, a: p.add(g, alpha=a),
    "add, a number": lambda p, g, s, a: p.add(a),
    "sub": lambda p, g, s, a: p.sub(g),
    "sub, alpha": lambda p, g, s, a: p.sub(g, alpha=a),
    "mul": lambda p, g, s, a: p.mul(g),
    "mul, a number": lambda p, g, s, a: p.mul(a),
    "div": lambda p, g, s, a: p.div(g),
    "div_number": lambda p, g, s, a: p.div(a),
    "div_number, a literal": lambda p, g, s, a: p.div(3.0),
    **{
        f"pow_number, {n}": lambda p, g, s, a, n=n: p.pow(n)  # type: ignore[misc]  # as above
        for n in (2.0, 3.0, 0.5, -1.0, -2.0, -0.5)
    },
    "pow": lambda p, g, s, a: p.abs().pow(g),
    "pow_number": lambda p, g, s, a: p.abs().pow(a),
    "maximum": lambda p, g, s, a: p.maximum(g),
    "minimum": lambda p, g, s, a: p.minimum(g),
    "clamp_min": lambda p, g, s, a: p.clamp_min(g),
    "clamp_max": lambda p, g, s, a: p.clamp_max(g),
    "clamp_min, a number": lambda p, g, s, a: p.clamp_min(a),
    "clamp_max, a number": lambda p, g, s, a: p.clamp_max(a),
    "lerp": lambda p, g, s, a: p.lerp(g, a),
    "lerp, the other side": lambda p, g, s, a: p.lerp(g, -a),
    "addcmul": lambda p, g, s, a: p.addcmul(g, s),
    "addcmul, a value": lambda p, g, s, a: p.addcmul(g, s, value=a),
    "addcdiv": lambda p, g, s, a: p.addcdiv(g, s),
    "addcdiv, a value": lambda p, g, s, a: p.addcdiv(g, s, value=a),
}
# Where libraries of mathematics differ in the last digits.
INEXACT = {"exp", "log", "pow", "pow_number"}
# Which zero is larger is not said.
ZEROS = {"maximum", "minimum", "clamp_min", "clamp_max"}


def _every_call() -> Callable[..., None]:
    columns = [f"r{i}" for i in range(len(CALLS))]
    scope: dict[str, Any] = {"calls": list(CALLS.values())}
    lines = [f"    {c}.copy_(calls[{i}](p, g, s, a))" for i, c in enumerate(columns)]
    text = f"def every_call(p, g, s, {', '.join(columns)}, *, a):\n" + "\n".join(lines)
    exec(text, scope)
    made: Callable[..., None] = scope["every_call"]
    return made


EVERY_CALL = _every_call()


def all_operations(dtypes: dict[str, torch.dtype], result: torch.dtype, rounded: bool) -> Signature:
    columns = dtypes | {f"r{i}": result for i in range(len(CALLS))}
    return signature(EVERY_CALL, columns, {"a": 0.3}, rounded)


SPECIAL = [0.0, -0.0, 0.5, 1.5, 2.5, -0.5, -1.5, 1.0, -1.0, 3.0, -3.0, 1e-5, math.inf, math.nan]
NUMBERS_FOR_CALLS = [0.3, 0.5, 1.0, -0.7]


@lru_cache(maxsize=1)
def _operands(dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    special = torch.tensor(SPECIAL, dtype=torch.float64)
    pairs = torch.cartesian_prod(special, special)
    drawn = [torch.randn(500, generator=generator, dtype=torch.float64) for _ in range(3)]
    made = {
        "p": torch.cat([pairs[:, 0], drawn[0] * 3]),
        "g": torch.cat([pairs[:, 1], drawn[1] * 3]),
        "s": torch.cat([pairs[:, 1].flip(0), drawn[2] * 3]),
    }
    return {name: t.to(dtype) for name, t in made.items()}


@pytest.mark.parametrize("rounded", [False, True], ids=["rounded at the end", "rounded each time"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_kernel_does_each_operation_by_cudas_formula(
    cuda: Cuda, dtype: torch.dtype, rounded: bool
) -> None:
    assert {name.split(",")[0] for name in CALLS} == OPERATIONS["cuda"].keys() == FORMULAS.keys()
    kernel = cuda_kernel(all_operations(dict.fromkeys("pgs", dtype), dtype, rounded))
    operands = _operands(dtype)
    size = operands["p"].numel()
    for a in NUMBERS_FOR_CALLS:
        results = [torch.full((size,), 7.0, dtype=dtype) for _ in CALLS]
        pointers = array("q", [t.data_ptr() for t in (*operands.values(), *results)])
        assert kernel(array("q", [size]), pointers, array("d", [a]), 0)
        for (name, call), result in zip(CALLS.items(), results, strict=True):
            p, g, s = (Exact(t, dtype, rounded) for t in operands.values())
            expected = call(p, g, s, a).value.to(dtype)
            if name in INEXACT:
                # One unit in the last place, and for powf a little more.
                rtol = 4 * torch.finfo(dtype).eps
                torch.testing.assert_close(
                    result, expected, rtol=rtol, atol=0, equal_nan=True, msg=name
                )
            elif name.split(",")[0] in ZEROS:
                assert_same(result + 0.0, expected + 0.0, f"{name}, {a}")
            else:
                assert_same(result, expected, f"{name}, {a}")


# Where torch on a CPU rounds as CUDA does, or not at all, it says the same as the formulas here.
ALIKE = [
    "neg", "abs", "sign", "reciprocal", "copy", "add", "add, alpha", "add, a number", "sub",
    "sub, alpha", "mul", "mul, a number", "div", "pow_number, 2.0", "pow_number, 3.0",
    "pow_number, -1.0", "maximum", "minimum", "clamp_min", "clamp_max", "clamp_min, a number",
    "clamp_max, a number",
]  # fmt: skip


@pytest.mark.parametrize("dtype", FLOATS[:2], ids=str)
def test_formulas_of_this_file_say_what_torch_says(dtype: torch.dtype) -> None:
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("torch uses no fused multiply-add on this CPU")
    operands = {name: t[: t.numel() // 16 * 16] for name, t in _operands(dtype).items()}
    for name in ALIKE:
        p, g, s = (Exact(t, dtype, False) for t in operands.values())
        exact = CALLS[name](p, g, s, 0.3).value
        x, y, z = operands.values()
        theirs = y if name == "copy" else CALLS[name](x, y, z, 0.3)
        assert_same(exact + 0.0, theirs + 0.0, name)


# Numbers and memory that a kernel does not take.


@pytest.mark.parametrize("number", [1e39, -1e39, 3.5e38])
def test_kernel_leaves_numbers_beyond_float_to_the_loop(cuda: Cuda, number: float) -> None:
    rows = Rows([5, 9], FLOAT)
    before = rows.clone()
    kernel = cuda_kernel(signature(sample, FLOAT, NUMBERS))
    assert not rows.call(kernel, [0.5, number])
    assert not rows.call(kernel, [0.5, 0.1, 0.2, number], 2)
    assert not cuda.launches
    assert_same_buffers(rows, before)
    assert rows.call(kernel, [0.5, math.inf])
    assert rows.columns["m"][1].isinf().all()


# Where, in units of float32, two rows of 8 elements have their p, g and m; and whether that is
# harmless. None is no memory.
LAYOUTS: list[tuple[bool, list[int | None]]] = [
    (True, [0, 8, 16, 24, 32, 40]),  # side by side
    (True, [0, 8, 16, 16, 32, 40]),  # gradients are only read
    (True, [0, 8, 16, 20, 32, 40]),
    (False, [0, 0, 16, 24, 32, 40]),  # a parameter twice
    (False, [0, 7, 16, 24, 32, 40]),  # parameters overlap by one element
    (False, [7, 0, 16, 24, 32, 40]),
    (False, [0, 8, 15, 24, 32, 40]),  # a gradient and another row's parameter
    (False, [0, 8, 0, 24, 32, 40]),  # a parameter is its own gradient
    (False, [0, 8, 16, 24, 32, 32]),  # state twice
    (False, [0, 8, 16, 24, 32, 30]),
    (False, [0, 8, 16, 24, 31, 40]),  # state and a gradient
    (False, [0, 8, 16, 24, 32, 4]),  # state and a parameter
    (False, [None, 8, 16, 24, 32, 40]),
    (False, [0, 8, 16, None, 32, 40]),
    (False, [0, 8, 16, 24, 32, None]),
]


def at(buffer: Tensor, where: list[int | None]) -> array[int]:
    return array("q", [0 if w is None else buffer.data_ptr() + 4 * w for w in where])


@pytest.mark.parametrize(("harmless", "where"), LAYOUTS, ids=str)
def test_kernel_refuses_memory_that_overlaps_or_is_missing(
    cuda: Cuda, harmless: bool, where: list[int | None]
) -> None:
    kernel = cuda_kernel(signature(sample, FLOAT, NUMBERS))
    for _ in range(2):  # the second time from memory
        buffer = torch.linspace(1, 2, 64)
        before = buffer.clone()
        sizes, numbers = array("q", [8, 8]), array("d", [0.9, -0.3])
        assert kernel(sizes, at(buffer, where), numbers, 0) == harmless
        assert len(cuda.launches) == harmless
        assert torch.equal(buffer, before) != harmless
        cuda.launches.clear()


def test_kernel_asks_no_memory_of_empty_rows(cuda: Cuda) -> None:
    kernel = cuda_kernel(signature(sample, FLOAT, NUMBERS))
    buffer = torch.linspace(1, 2, 64)
    where = at(buffer, [0, None, 0, 8, None, 4, 16, None, 4])
    assert kernel(array("q", [4, 0, 0]), where, array("d", [0.9, -0.3]), 0)


def test_kernel_looks_again_when_pointers_or_sizes_change(cuda: Cuda) -> None:
    kernel = cuda_kernel(signature(sample, FLOAT, NUMBERS))
    buffer = torch.linspace(1, 2, 64)
    apart, overlapping = [0, 8, 16, 24, 32, 40], [0, 7, 16, 24, 32, 40]
    eight, seven, nine = (array("q", [n, n]) for n in (8, 7, 9))
    numbers = array("d", [0.9, -0.3])

    def call(sizes: array[int], where: list[int]) -> bool:
        return kernel(sizes, at(buffer, list(where)), numbers, 0)

    assert call(eight, apart)
    assert not call(eight, overlapping)
    assert call(eight, apart)
    assert not call(nine, apart)
    assert call(seven, overlapping)
    assert not call(eight, overlapping)
    assert call(seven, apart)
    assert not call(nine, apart)


def counting_kernel(device: Cuda) -> CudaKernel:
    """A kernel that counts on the device, as an optimizer has made it."""
    optimizer = ScratchAdam([torch.ones(3, requires_grad=True)], fused=True)
    give_gradients(optimizer, step=0)
    optimizer.step()
    (checked,) = optimizer._checked.values()
    ((kernel, _),) = checked.kernels.values()
    assert isinstance(kernel, CudaKernel)
    device.launches.clear()
    return kernel


def test_kernel_looks_again_after_a_launch_that_failed(cuda: Cuda) -> None:
    kernel = counting_kernel(cuda)
    buffer, step = torch.linspace(1, 2, 64), torch.zeros(1)
    apart, overlapping = at(buffer, [0, 16, 32, 48]), at(buffer, [0, 4, 16, 24])
    eight, four = array("q", [8]), array("q", [4])
    steps = array("q", [step.data_ptr()])
    options = array("q", array("d", [0.1, 0.9, 0.99, 1e-8]).tobytes())
    assert not kernel.overlap(eight, apart)
    kernel.move_counted(eight, apart, steps, options, 5, 0)
    cuda.failing["cuLaunchKernel"] = CUresult.CUDA_ERROR_OUT_OF_MEMORY
    assert not kernel.overlap(four, overlapping)
    with pytest.raises(RuntimeError, match="OUT_OF_MEMORY"):
        kernel.move_counted(four, overlapping, steps, options, 5, 0)
    cuda.failing.clear()
    assert kernel.overlap(eight, overlapping)


def test_kernel_may_be_called_by_another_thread_at_any_moment(cuda: Cuda) -> None:
    # Other rows of the same kernel are moved, as by another thread, before the first line of the
    # call, in another run before the second, and so on.
    kernel = cuda_kernel(signature(sample, FLOAT, NUMBERS))
    given = list(NUMBERS.values())
    starts = [Rows([1, CHUNK + 1, 2], FLOAT), Rows([CHUNK + 1, 1, 2], FLOAT, seed=1)]
    expected = [rows.clone() for rows in starts]
    for rows in expected:
        for row in rows.rows():
            run_exactly(sample, row, NUMBERS, False)
    line, lines = 0, 1
    while line < lines:
        ours, others = (rows.clone() for rows in starts)
        others.clone().call(kernel, given)  # so that nothing of ours is remembered
        lines = 0

        def interrupt(
            frame: Any, event: str, _: object, line: int = line, others: Rows = others
        ) -> Any:
            nonlocal lines
            if frame.f_code.co_filename != _cuda.__file__:
                return None
            if event == "line":
                if lines == line:
                    assert others.call(kernel, given)
                lines += 1
            return interrupt

        before = sys.gettrace()
        sys.settrace(interrupt)
        try:
            assert ours.call(kernel, given)
        finally:
            sys.settrace(before)
        if line < lines:
            assert_same_buffers(others, expected[1])
        assert_same_buffers(ours, expected[0])
        line += 1
    assert lines > 20


# Launches.


def test_launch_has_the_grid_block_stream_and_header_that_the_kernel_expects(cuda: Cuda) -> None:
    cuda.stream = 0x12340
    kernel = cuda_kernel(signature(sample, FLOAT, NUMBERS))
    sizes = [1, 0, CHUNK, CHUNK + 1, 3 * CHUNK]
    rows = Rows(sizes, FLOAT)
    assert rows.call(kernel, [0.9, 0.1])
    assert rows.call(kernel, [0.9, 0.1] * 5, 2)
    shared, own = cuda.launches
    assert shared == ("move_few", (7, 1, 1), (THREADS, 1, 1), 0, 0x12340, (5, 0, 0, 0))
    assert own == ("move_few", (7, 1, 1), (THREADS, 1, 1), 0, 0x12340, (5, 0, 2, 0))


@pytest.mark.parametrize("version", [12_000, 12_010])
def test_launch_that_counts_gives_each_part_of_the_rows_its_numbers(
    cuda: Cuda, version: int
) -> None:
    cuda.version = version
    rows = 1200
    optimizer = ScratchAdam([torch.ones(1, requires_grad=True) for _ in range(rows)], fused=True)
    give_gradients(optimizer, step=0)
    optimizer.found_inf = torch.zeros(())  # type: ignore[attr-defined]  # GradScaler's
    optimizer.step()
    counts = [launch for launch in cuda.launches if launch.name == "count"]
    moves = [launch for launch in cuda.launches if launch.name != "count"]
    assert cuda.launches == counts + moves  # numbers are there before they are used
    found_inf = optimizer.found_inf.data_ptr()  # type: ignore[attr-defined]  # as above
    start = counts[0].header[1]
    for launches in (counts, moves):
        done = 0
        for launch in launches:
            own, numbers, stride, flag = launch.header
            assert (numbers, flag) == (start + 8 * stride * done, found_inf)
            assert launch.block == (THREADS, 1, 1)
            blocks = -(-own // THREADS) if launch.name == "count" else own
            assert launch.grid == (blocks, 1, 1)
            done += own
        assert done == rows
    assert {launch.name for launch in moves} == {"move_many" if version >= 12_010 else "move_few"}


def test_launch_works_in_a_thread_that_has_never_seen_the_device(cuda: Cuda) -> None:
    ours, exact = (ScratchAdam(dense(), fused=True) for _ in range(2))
    failures: list[object] = []

    def work() -> None:
        try:
            ours.step()
        except Exception as failure:
            failures.append(failure)

    for step in range(2):
        give_gradients(ours, exact, step=step)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        step_exactly(exact, rounded=False)
    assert not failures
    assert_same_state(ours, exact)


def test_launch_tables_fit_what_drivers_take() -> None:
    # CUDA's programming guide: 4 KB, and 32,764 bytes from CUDA 12.1 on.
    assert 8 * (HEADER + FEW_WORDS) == 4096
    assert 32_764 - 8 < 8 * (HEADER + MANY_WORDS) <= 32_764


@pytest.mark.parametrize(
    ("version", "large"), [(12_010, True), (13_000, True), (12_000, False), (11_080, False)]
)
def test_launch_takes_large_tables_where_the_driver_does(
    cuda: Cuda, version: int, large: bool
) -> None:
    cuda.version = version
    rows = Rows([1] * 300, FLOAT)
    assert rows.call(cuda_kernel(signature(sample, FLOAT, NUMBERS)), [0.9, 0.1])
    assert names(cuda) == {"move_many" if large else "move_few"}


# What can go wrong.

ERRORS = [
    ("cuDriverGetVersion", CUresult.CUDA_ERROR_INVALID_VALUE),
    ("cuModuleLoadData", CUresult.CUDA_ERROR_NO_BINARY_FOR_GPU),
    ("cuModuleGetFunction", CUresult.CUDA_ERROR_OUT_OF_MEMORY),
    ("nvrtcVersion", NvrtcResult.NVRTC_ERROR_OUT_OF_MEMORY),
    ("nvrtcCreateProgram", NvrtcResult.NVRTC_ERROR_OUT_OF_MEMORY),
    ("nvrtcGetCUBINSize", NvrtcResult.NVRTC_ERROR_OUT_OF_MEMORY),
    ("nvrtcGetCUBIN", NvrtcResult.NVRTC_ERROR_OUT_OF_MEMORY),
]


@pytest.fixture
def fresh(cuda: Cuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cuda:
    """Nothing has been compiled."""
    monkeypatch.setenv("TORCH_SCRATCH_CACHE", str(tmp_path))
    return cuda


def assert_no_kernel_can_be_had(match: str) -> None:
    """fused=True says why, and remains at its first step; the default does as foreach."""
    fused = ScratchAdam(dense(), fused=True)
    give_gradients(fused, step=0)
    before = [p.detach().clone() for p in leaves(fused)]
    for _ in range(2):
        with pytest.raises(RuntimeError, match=match):
            fused.step()
    assert not any(fused.state.values())
    assert all(map(torch.equal, leaves(fused), before))
    default, foreach = ScratchAdam(dense()), ScratchAdam(dense(), foreach=True)
    for step in range(2):
        give_gradients(default, foreach, step=step)
        default.step()
        foreach.step()
    assert_same_state(default, foreach)


@pytest.mark.parametrize(("function", "error"), ERRORS, ids=str)
def test_errors_of_cuda_are_named(fresh: Cuda, function: str, error: Any) -> None:
    fresh.failing[function] = error
    assert_no_kernel_can_be_had(error.name)
    assert not fresh.launches
    fresh.failing.clear()
    forget()
    optimizer = ScratchAdam(dense(), fused=True)
    give_gradients(optimizer, step=0)
    optimizer.step()
    assert fresh.launches


@pytest.mark.parametrize("options", [{}, {"fused": True}], ids=str)
def test_errors_of_a_launch_are_raised(cuda: Cuda, options: dict[str, Any]) -> None:
    optimizer = ScratchSGD(dense(), **options)
    give_gradients(optimizer, step=0)
    optimizer.step()
    before = [p.detach().clone() for p in leaves(optimizer)]
    cuda.failing["cuLaunchKernel"] = CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(RuntimeError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        optimizer.step()
    assert all(map(torch.equal, leaves(optimizer), before))


def no_library() -> Any:
    raise RuntimeError('Failed to dlopen "libcuda.so.1"')  # as cuda.bindings does


@pytest.mark.parametrize("function", ["cuDriverGetVersion", "nvrtcVersion"])
def test_errors_where_a_library_is_missing(
    fresh: Cuda, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    monkeypatch.setattr(fresh, function, no_library)
    assert_no_kernel_can_be_had("libcuda")


@pytest.mark.parametrize("module", ["driver", "nvrtc"])
def test_errors_where_nvidias_package_is_missing(
    fresh: Cuda, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, f"cuda.bindings.{module}", None)
    assert_no_kernel_can_be_had("pip install cuda-bindings")


def test_errors_on_devices_that_are_too_old(fresh: Cuda) -> None:
    fresh.capability = (6, 1)
    assert_no_kernel_can_be_had(r"compute capability 7\.0, but cuda:0 has 6\.1")
    assert not fresh.programs


def test_errors_of_the_compiler_are_shown(fresh: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPERATIONS["cuda"], "lerp", lambda x, end, weight: f"nonsense({x})")
    assert_no_kernel_can_be_had("(?s)NVRTC could not compile.*nonsense")


def test_device_of_capability_7_0_is_served(cuda: Cuda) -> None:
    cuda.capability = (7, 0)
    rows = Rows([5], FLOAT)
    assert rows.call(cuda_kernel(signature(sample, FLOAT, NUMBERS)), [0.9, 0.1])


# Whole steps.


def check_steps(
    ours: Optimizer, exact: Optimizer, *, rounded: bool, steps: int = 2, scale: float = 1.0
) -> None:
    for step in range(steps):
        give_gradients(ours, exact, step=step, scale=scale)
        gradients = [p.grad.clone() for p in leaves(ours) if p.grad is not None]
        ours.step()
        step_exactly(exact, rounded)
        assert_same_state(ours, exact)
        for p, gradient in zip(leaves(ours), gradients, strict=True):
            assert p.grad is not None
            assert torch.equal(p.grad, gradient)


DTYPES_OF_CASES = [(c, torch.float32) for c in CASES] + [
    (c, dtype) for c in RICHEST for dtype in FLOATS[1:]
]


@pytest.mark.parametrize(("case", "dtype"), DTYPES_OF_CASES, ids=str)
def test_fused_step_counts_on_the_device_with_the_bits_of_cudas_formulas(
    cuda: Cuda, case: Case, dtype: torch.dtype
) -> None:
    ours, exact = case.ours(dense(dtype), fused=True), case.ours(dense(dtype))
    check_steps(ours, exact, rounded=False)
    assert names(cuda) == {"count", "move_few"}


# What a rule writes for its flags is compiled above.
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", PROVED, ids=str)
def test_default_step_has_the_bits_of_cudas_formulas_rounded_each_time(
    cuda: Cuda, monkeypatch: pytest.MonkeyPatch, case: Case, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(_fused, "loop", loop_exactly)  # what the kernel has to prove equal to
    ours, exact = case.ours(dense(dtype)), case.ours(dense(dtype))
    check_steps(ours, exact, rounded=True)
    assert names(cuda) <= {"move_few", "move_many"}
    # Three launches prove a kernel, and momentum has another for its first step.
    kernels = 2 if isinstance(ours, ScratchSGD) and ours.param_groups[0]["momentum"] else 1
    assert len(cuda.launches) == (3 + 2 // kernels) * kernels


@each_rich_case
def test_default_step_is_that_of_foreach_where_bits_cannot_be_proved(
    cuda: Cuda, monkeypatch: pytest.MonkeyPatch, case: Case
) -> None:
    monkeypatch.setattr(_fused, "_has_the_bits_of_the_loop", lambda *_: False)
    ours, foreach = case.ours(dense()), case.ours(dense(), foreach=True)
    for step in range(2):
        give_gradients(ours, foreach, step=step)
        ours.step()
        foreach.step()
    assert_same_state(ours, foreach)
    assert not cuda.launches


def test_default_step_compiles_nothing_while_a_graph_is_captured(cuda: Cuda) -> None:
    cuda.capturing = True
    ours, foreach = ScratchSGD(dense()), ScratchSGD(dense(), foreach=True)
    give_gradients(ours, foreach, step=0)
    ours.step()
    foreach.step()
    assert_same_state(ours, foreach)
    assert not cuda.launches
    assert not cuda.programs


@pytest.mark.parametrize("foreach", [True, False])
def test_foreach_and_loop_use_no_kernel(cuda: Cuda, foreach: bool) -> None:
    optimizer = ScratchAdam(dense(), foreach=foreach)
    give_gradients(optimizer, step=0)
    optimizer.step()
    assert not cuda.launches


@pytest.mark.parametrize("case", [Case("Momentum"), Case("Adam", {"amsgrad": True})], ids=str)
def test_fused_step_takes_layouts_that_no_kernel_can(cuda: Cuda, case: Case) -> None:
    ours, exact = case.ours(parameters(), fused=True), case.ours(parameters())
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        for p, q in zip(leaves(ours), leaves(exact), strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
        ours.step()
        step_exactly(exact, rounded=False)
        assert_same_state(ours, exact)
    assert names(cuda) == {"move_few"}  # counted on the host


def test_fused_step_raises_versions_of_what_it_writes_alone(cuda: Cuda) -> None:
    optimizer = ScratchAdam(dense(), fused=True)
    for step in range(2):
        give_gradients(optimizer, step=step)
        before = [(p._version, p.grad._version) for p in leaves(optimizer) if p.grad is not None]
        optimizer.step()
        after = [(p._version, p.grad._version) for p in leaves(optimizer) if p.grad is not None]
        for p, (old, old_g), (new, new_g) in zip(leaves(optimizer), before, after, strict=True):
            assert new > old or not p.numel()
            assert new_g == old_g


@pytest.mark.parametrize("options", [{}, {"capturable": True}], ids=str)
@pytest.mark.parametrize("name", ["AdaGrad", "RMSProp", "Adam", "AdamW"])
def test_fused_step_gives_rows_at_different_steps_their_own_numbers(
    cuda: Cuda, name: str, options: dict[str, Any]
) -> None:
    own = {"lr_decay": 0.3} if name == "AdaGrad" else {}
    case = Case(name, own)
    ours, exact = case.ours(dense(), fused=True, **options), case.ours(dense())
    for step in range(4):
        give_gradients(ours, exact, step=step)
        for twin in (ours, exact):
            for i, p in enumerate(leaves(twin)):
                if i % 4 > step:
                    p.grad = None
        ours.step()
        step_exactly(exact, rounded=False)
        assert_same_state(ours, exact)
    counts = {ours.state[p]["step"].item() for p in leaves(ours)}
    assert counts == {1.0, 2.0, 3.0, 4.0}


@pytest.mark.parametrize("rows", [FEW_WORDS + 1, 1100])
def test_fused_step_counts_more_rows_than_a_table_holds(cuda: Cuda, rows: int) -> None:
    def model() -> list[Tensor]:
        return [torch.full((1 + i % 3,), 1 + i / 7).requires_grad_() for i in range(rows)]

    ours, exact = ScratchAdam(model(), fused=True), ScratchAdam(model())
    give_gradients(ours, exact, step=0)
    for i, (p, q) in enumerate(zip(leaves(ours), leaves(exact), strict=True)):
        for optimizer, own in ((ours, p), (exact, q)):
            state = optimizer.new_state(own, optimizer.param_groups[0])
            state["step"] = torch.tensor(float(i))
            optimizer.state[own].update(state)
    ours.step()
    step_exactly(exact, rounded=False)
    assert_same_state(ours, exact)
    assert sum(launch.name == "count" for launch in cuda.launches) > 1


@pytest.mark.parametrize("option", ["lr", "weight_decay"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_fused_step_reads_options_on_the_device_by_pointer(
    cuda: Cuda, dtype: torch.dtype, option: str
) -> None:
    ours, exact = ScratchSGD(dense(), fused=True), ScratchSGD(dense())
    for twin in (ours, exact):
        twin.param_groups[0][option] = torch.tensor(0.1, dtype=dtype)
    for step in range(3):
        check_steps(ours, exact, rounded=False, steps=1)
        for twin in (ours, exact):  # changed in place, as a scheduler does: nothing is compiled
            twin.param_groups[0][option].fill_(0.1 + step / 7)
    assert len(ours._checked) == 1
    (checked,) = ours._checked.values()
    assert len(checked.kernels) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_fused_step_works_out_numbers_from_a_tensor_as_the_host_would(
    cuda: Cuda, dtype: torch.dtype
) -> None:
    for name in ("AdaGrad", "Adam", "AdamW"):
        case = Case(name)
        both: list[dict[str, Any]] = [{"fused": True}, {}]
        made = [case.ours(dense(), lr=torch.tensor(0.1, dtype=dtype), **own) for own in both]
        ours, exact = made
        for step in range(3):
            check_steps(ours, exact, rounded=False, steps=1)
            for twin in made:
                twin.param_groups[0]["lr"].mul_(0.7 + step / 10)


def test_fused_step_takes_options_that_are_tensors_on_the_host_by_value(cuda: Cuda) -> None:
    lr = on_host(torch.tensor(0.125))
    ours, exact = ScratchSGD(dense(), lr=lr, fused=True), ScratchSGD(dense(), lr=0.125)
    check_steps(ours, exact, rounded=False, steps=2)
    lr.fill_(0.5)
    exact.param_groups[0]["lr"] = 0.5
    check_steps(ours, exact, rounded=False, steps=1)


def test_fused_step_follows_options_that_are_edited(cuda: Cuda) -> None:
    ours, exact = ScratchAdam(dense(), fused=True), ScratchAdam(dense())
    edits: list[dict[str, Any]] = [
        {},
        {"lr": 0.3},
        {"lr": 0.0},
        {"weight_decay": 0.1},
        {"betas": (0.5, 0.75)},
        {"maximize": True},
    ]
    for edit in edits:
        for twin in (ours, exact):
            twin.param_groups[0].update(edit)
        check_steps(ours, exact, rounded=False, steps=2)


@each_rich_case
def test_fused_step_moves_and_counts_nothing_where_a_gradient_is_infinite(
    cuda: Cuda, case: Case
) -> None:
    ours, exact = case.ours(dense(), fused=True), case.ours(dense())
    scale = 8.0
    for step, infinite in enumerate([1.0, 0.0, 1.0, 0.0, 0.0, 1.0]):
        give_gradients(ours, exact, step=step)
        for p in leaves(ours):
            assert p.grad is not None
            p.grad.mul_(scale)
        for p in leaves(exact):
            assert p.grad is not None
            p.grad.mul_(scale)
        scaled: Any = ours
        scaled.found_inf, scaled.grad_scale = torch.tensor(infinite), torch.tensor(scale)
        ours.step()
        del scaled.found_inf, scaled.grad_scale
        if not infinite:
            step_exactly(exact, False, scale)
        assert_same_state(ours, exact)
    assert "count" in names(cuda)


def test_fused_step_divides_by_a_scale_that_is_no_power_of_two(cuda: Cuda) -> None:
    ours, exact = ScratchAdam(dense(), fused=True), ScratchAdam(dense())
    scaled: Any = ours
    scaled.grad_scale = torch.tensor(3.0)
    give_gradients(ours, exact, step=0)
    ours.step()
    step_exactly(exact, False, 3.0)
    assert_same_state(ours, exact)


def test_fused_step_works_with_a_grad_scaler(cuda: Cuda) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    ours, exact = (ScratchAdam([torch.linspace(1, 2, 5001).requires_grad_()]) for _ in range(2))
    ours.param_groups[0]["fused"] = True
    (p,), (q,) = leaves(ours), leaves(exact)
    for infinite in (True, False, False, True, False):
        slope = torch.linspace(-1, 1, 5001) * (math.inf if infinite else 1)
        p.grad = slope * scaler.get_scale()
        q.grad = p.grad.clone()
        scale = scaler.get_scale()
        scaler.scale(torch.zeros(()))  # a scaler insists on having scaled something
        scaler.step(ours)
        scaler.update()
        assert scaler.get_scale() == (scale / 2 if infinite else scale)
        if not infinite:
            step_exactly(exact, False, scale)
        assert_same_state(ours, exact)
    assert "count" in names(cuda)


def test_fused_step_counts_steps_that_parameters_share_for_each(cuda: Cuda) -> None:
    # As torch counts: the first parameter takes step 5, the second step 6.
    ours, exact = (
        ScratchAdam([torch.full((3,), 1.0 + i).requires_grad_() for i in range(20)])
        for _ in range(2)
    )
    ours.param_groups[0]["fused"] = True
    for twin in (ours, exact):
        shared = torch.tensor(4.0)
        for p in leaves(twin):
            twin.state[p].update(twin.new_state(p, twin.param_groups[0]))
            twin.state[p]["step"] = shared
    give_gradients(ours, exact, step=0)
    ours.step()
    step_exactly(exact, False)
    assert_same_state(ours, exact)


# Memory that parameters share.


def overlapping() -> list[Tensor]:
    base = torch.linspace(1, 2, 200)
    apart = [torch.full((3,), 3.0 + i) for i in range(20)]
    return [t.requires_grad_() for t in (base[:100], base[50:150], *apart)]


def test_default_step_of_parameters_that_overlap_is_the_loops(cuda: Cuda) -> None:
    ours, loop = ScratchSGD(overlapping(), lr=0.1), ScratchSGD(overlapping(), lr=0.1, foreach=False)
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        for p, q in zip(leaves(ours), leaves(loop), strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
        cuda.launches.clear()
        ours.step()
        loop.step()
        assert_same_state(ours, loop)
        if step:
            assert not cuda.launches  # the first step has proved its kernel


def test_fused_step_moves_parameters_that_overlap_as_the_loop_does(cuda: Cuda) -> None:
    ours, loop = ScratchAdam(overlapping(), fused=True), ScratchAdam(overlapping(), foreach=False)
    for step in range(2):
        give_gradients(ours, loop, step=step)
        ours.step()
        loop.step()
        assert all(map(torch.equal, leaves(ours), leaves(loop)))
        assert {s["step"].item() for s in ours.state.values() if s} == {step + 1.0}
    assert not cuda.launches


def test_default_step_sees_memory_that_comes_to_overlap(cuda: Cuda) -> None:
    def model() -> list[Tensor]:
        return [torch.full((40,), 1.0 + i).requires_grad_() for i in range(20)]

    ours, loop = ScratchSGD(model(), lr=0.1), ScratchSGD(model(), lr=0.1, foreach=False)
    for step in range(3):
        if step == 1:
            for twin in (ours, loop):
                base = torch.linspace(5, 6, 60)
                leaves(twin)[3].data = base[:40]
                leaves(twin)[4].data = base[20:]
        give_gradients(ours, loop, step=step)
        ours.step()
        loop.step()
        assert_same_state(ours, loop)


# The proof of bits.


def signature_of(case: Case, dtype: torch.dtype, rounded: bool = True) -> Signature:
    """As the engine asks for, at a second step."""
    optimizer = case.ours([torch.ones(3, requires_grad=True)])
    group = optimizer.param_groups[0]
    scalars = optimizer.scalars(2.0, group)
    if not optimizer.counts_steps:
        scalars["first"] = False
    columns = dict.fromkeys(["p", "g", *optimizer.columns(group)], dtype)
    return signature(optimizer.rule, columns, scalars, rounded)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", PROVED, ids=str)
def test_proof_accepts_a_kernel_that_has_the_bits(
    cuda: Cuda, monkeypatch: pytest.MonkeyPatch, case: Case, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(_fused, "loop", loop_exactly)
    signature = signature_of(case, dtype)
    assert _fused.proved_kernel(signature) is kernel_for(signature)


# An operation, how it is spelt wrongly, and a case whose rule uses it.
WRONG: dict[str, tuple[str, Callable[..., str], str]] = {
    "lerp from one side": ("lerp", lambda x, end, w: f"fma({w}, {end} - {x}, {x})", "Adam"),
    "lerp in two roundings": ("lerp", lambda x, end, w: f"{x} + {w} * ({end} - {x})", "Adam"),
    "addcmul as on a CPU": ("addcmul", OPERATIONS["cpu"]["addcmul"], "RMSProp"),
    "addcmul in two roundings": (
        "addcmul", lambda x, a, b, value="1": f"{x} + {value} * ({a} * {b})", "RMSProp"
    ),
    "addcdiv as on a CPU": ("addcdiv", OPERATIONS["cpu"]["addcdiv"], "AdaGrad"),
    "addcdiv by a reciprocal": (
        "addcdiv", lambda x, a, b, value="1": f"fma({value} * {a}, 1 / {b}, {x})", "AdaGrad"
    ),
    "add in two roundings": (
        "add", lambda x, other, alpha="1": f"{x} + {alpha} * {other}", "Momentum"
    ),
    "sqrt with an error": ("sqrt", lambda x: f"(float)(sqrt({x}) * 1.00000006)", "AdaGrad"),
    "div as on a CPU": ("div_number", OPERATIONS["cpu"]["div_number"], "Adam"),
    "mul with an error": ("mul", lambda x, other: f"fma({x}, {other}, 1e-9f * {x})", "Momentum"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", WRONG)
def test_proof_refuses_a_kernel_that_computes_by_another_formula(
    fresh: Cuda, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    monkeypatch.setattr(_fused, "loop", loop_exactly)
    operation, wrong, name = WRONG[mistake]
    signature = signature_of(Case(name), torch.float32)
    monkeypatch.setitem(OPERATIONS["cuda"], operation, wrong)
    assert _fused.proved_kernel(signature) is None
    assert fresh.launches  # it was compiled and run


@pytest.mark.parametrize("half", HALF, ids=str)
def test_proof_refuses_a_kernel_that_rounds_once(
    cuda: Cuda, monkeypatch: pytest.MonkeyPatch, half: torch.dtype
) -> None:
    monkeypatch.setattr(_fused, "loop", loop_exactly)
    assert _fused.proved_kernel(signature_of(Case("Adam"), half, rounded=False)) is None
    assert cuda.launches


def test_proof_refuses_a_kernel_whose_operations_the_compiler_has_contracted(
    fresh: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_fused, "loop", loop_exactly)
    monkeypatch.setattr(_cuda, "FLAGS", ("--std=c++17",))
    assert _fused.proved_kernel(signature_of(Case("Adam"), torch.float32)) is None
    assert fresh.launches


class Flawed:
    """A kernel that flips one bit of one element in one call."""

    def __init__(self, kernel: CudaKernel, call: int, column: int, row: int, element: int) -> None:
        self.kernel, self.written = kernel, kernel.written
        self.calls, self.where = 0, (call, column, row, element)

    def __call__(
        self, sizes: array[int], pointers: array[int], numbers: array[float], stride: int
    ) -> bool:
        moved = self.kernel(sizes, pointers, numbers, stride)
        call, column, row, element = self.where
        if self.calls == call:
            address = pointers[column * len(sizes) + row] + 4 * (element % sizes[row])
            if math.isnan(ctypes.c_float.from_address(address).value):  # all NaN are one
                ctypes.c_float.from_address(address).value = 1.0
            else:
                ctypes.c_int32.from_address(address).value ^= 1
        self.calls += 1
        return moved


@pytest.mark.parametrize("element", [0, 2049, -1])
@pytest.mark.parametrize("column", [0, 1, 2, 3])
def test_proof_refuses_one_bit_in_any_column(
    cuda: Cuda, monkeypatch: pytest.MonkeyPatch, column: int, element: int
) -> None:
    monkeypatch.setattr(_fused, "loop", loop_exactly)
    signature = signature_of(Case("Adam"), torch.float32)
    kernel = cuda_kernel(signature)
    for call in range(3):
        for row in range(2):
            flawed: Any = Flawed(kernel, call, column, row, element)
            assert not _fused._has_the_bits_of_the_loop(flawed, signature)
    sound: Any = Flawed(kernel, 99, column, 0, element)
    assert _fused._has_the_bits_of_the_loop(sound, signature)


def test_proof_is_given_once(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_fused, "loop", loop_exactly)
    for _ in range(3):
        optimizer = ScratchAdam(dense())
        give_gradients(optimizer, step=0)
        optimizer.step()
    assert len(cuda.launches) == 3 + 3  # three times for the proof


def test_stand_in_notes_what_would_stop_a_kernel(cuda: Cuda) -> None:
    # Four numbers at once from an address that they are not aligned to, and words beyond a table.
    base = 'struct alignas(16) Four { float at[4]; };\nextern "C" __global__ void '
    fours = base + "move_few(Table<1> t) { *(Four*)t.words[0] = Four{}; }"
    beyond = base + "move_few(Table<1> t) { *(int*)t.words[0] = t.words[t.words[0] & 3 | 4]; }"
    table = "template <int W> struct Table { long long words[W]; };\n"
    buffer = torch.zeros(16)
    for text, off, error in (
        (fours, 0, CUresult.CUDA_SUCCESS),
        (fours, 1, CUresult.CUDA_ERROR_MISALIGNED_ADDRESS),
        (beyond, 0, CUresult.CUDA_ERROR_ILLEGAL_ADDRESS),
    ):
        binary = _cuda.compile_cubin(table + text, "sm_90")
        with cuda.device(DEVICE):
            _, module = cuda.cuModuleLoadData(binary)
            _, function = cuda.cuModuleGetFunction(module, b"move_few")
            words = array("q", [buffer.data_ptr() + 4 * off, 0, 0, 0, 0, 0, 0, 0])
            parameters = array("Q", [words.buffer_info()[0]])
            (answer,) = cuda.cuLaunchKernel(
                function, 1, 1, 1, 1, 1, 1, 0, 0, parameters.buffer_info()[0], 0
            )
        assert answer == error
