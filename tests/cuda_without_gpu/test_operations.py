"""Each operation in a CUDA kernel, against exact arithmetic."""

from __future__ import annotations

import math
import random
from array import array
from fractions import Fraction

import pytest
import torch

from torch_scratch_optim import _cuda
from torch_scratch_optim._symbols import OPERATIONS

from ..cases import FLOATS
from .common import HALF, copy_gradient, cuda_kernel, signature
from .exact import FORMULAS, Exact, assert_same, fma
from .on_cpu import DEVICE, Cuda, CUresult
from .operations import CALLS, INEXACT, NUMBERS_FOR_CALLS, ZEROS, all_operations, operands

pytestmark = pytest.mark.slow


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


@pytest.mark.parametrize("rounded", [False, True], ids=["rounded at the end", "rounded each time"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_kernel_does_each_operation_by_cudas_formula(
    cuda: Cuda, dtype: torch.dtype, rounded: bool
) -> None:
    assert {name.split(",")[0] for name in CALLS} == OPERATIONS["cuda"].keys() == FORMULAS.keys()
    kernel = cuda_kernel(all_operations(dict.fromkeys("pgs", dtype), dtype, rounded))
    given = operands(dtype)
    size = given["p"].numel()
    for a in NUMBERS_FOR_CALLS:
        results = [torch.full((size,), 7.0, dtype=dtype) for _ in CALLS]
        pointers = array("q", [t.data_ptr() for t in (*given.values(), *results)])
        assert kernel(array("q", [size]), pointers, array("d", [a]), 0)
        for (name, call), result in zip(CALLS.items(), results, strict=True):
            p, g, s = (Exact(t, dtype, rounded) for t in given.values())
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
    given = {name: t[: t.numel() // 16 * 16] for name, t in operands(dtype).items()}
    for name in ALIKE:
        p, g, s = (Exact(t, dtype, False) for t in given.values())
        exact = CALLS[name](p, g, s, 0.3).value
        x, y, z = given.values()
        theirs = y if name == "copy" else CALLS[name](x, y, z, 0.3)
        assert_same(exact + 0.0, theirs + 0.0, name)


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
