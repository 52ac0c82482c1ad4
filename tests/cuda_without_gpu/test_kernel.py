"""CUDA kernels that are called by hand: rows, chunks, columns, launches."""

from __future__ import annotations

import itertools
import math
import sys
import threading
from array import array
from typing import Any

import pytest
import torch
from torch import Tensor

from torch_scratch_optim import ScratchAdam, _cuda
from torch_scratch_optim._cuda import CHUNK, FEW_WORDS, HEADER, MANY_WORDS, THREADS, CudaKernel

from ..cases import FLOATS
from .common import (
    FLOAT,
    MIXED,
    NUMBERS,
    Rows,
    assert_same_buffers,
    check_sample,
    cuda_kernel,
    dense,
    give_gradients,
    many_sizes,
    names,
    numbers_of,
    sample,
    signature,
)
from .exact import assert_same_state, run_exactly, step_exactly
from .on_cpu import Cuda, CUresult

pytestmark = pytest.mark.slow


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
