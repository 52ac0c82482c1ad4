"""All implementations of an algorithm, each compared with torch's loop, bit by bit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common.implementations import ENGINES, maker
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.option_cases import Options, in_words
from benchmarks.common.variants import VARIANTS, variant_of
from torch_scratch_optim.equivalence import (
    FAR,
    Make,
    Mismatch,
    compare,
    random_gradients,
    random_model,
)

Comparison = dict[str, Any]

REFERENCE = "torch-loop"
UNAVAILABLE, FAILED = "not available", "failed"
DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
}
PROMISED = ("ours-default", "ours-loop", "ours-foreach")  # to have the bits of the reference


def implementations(engines: Sequence[str]) -> list[str]:
    """What is compared with the reference: our engines, all other ones of torch, variants."""
    torchs = [f"torch-{engine}" for engine in ENGINES]
    torchs.remove(REFERENCE)
    return [f"ours-{engine}" for engine in engines] + torchs + list(VARIANTS)


def compare_case(
    optimizer: str,
    options: Options,
    dtype: str,
    engines: Sequence[str],
    steps: int,
    seed: int,
    device: str = "cpu",
) -> Comparison:
    """Compare every implementation of one case with the reference.

    Of variants the parameters alone are compared: some keep another state by design.

    Returns:
        For each implementation the largest distance in ulps, over all steps; where it is not 0,
        also how many tensors differ, the largest absolute difference of two parameters (None if one
        is NaN or infinite and the other is not) and the first mismatch in words.
    """
    row: Comparison = {"optimizer": optimizer, "options": in_words(options), "dtype": dtype}
    row |= {"compared": 0, "max_ulps": {}, "max_difference": {}, "mismatches": {}, "first": {}}
    row |= {UNAVAILABLE: {}, FAILED: {}}
    reference = _maker(REFERENCE, optimizer, options)
    assert reference is not None
    for name in implementations(engines):
        try:
            make = _maker(name, optimizer, options)
            if make is None:
                continue
            result = compare(
                make,
                reference,
                random_model(DTYPES[dtype], seed=seed).to(device),
                partial(_give_gradients, dtype, seed),
                steps=steps,
                state=name not in VARIANTS,
            )
        except NotImplementedError as reason:
            row[UNAVAILABLE][name] = str(reason)
            continue
        except Exception as problem:  # whatever it is, the other implementations go on
            row[FAILED][name] = f"{type(problem).__name__}: {problem}"
            continue
        row["compared"] = max(row["compared"], result.compared)
        row["max_ulps"][name] = result.max_ulps
        if not result.equal:
            found = [d.max_difference for d in result.mismatches if d.state is None]
            row["max_difference"][name] = _largest(found)
            row["mismatches"][name] = len(result.mismatches)
            row["first"][name] = _in_short(result.mismatches[0])
    return row


def _maker(name: str, optimizer: str, options: Options) -> Make | None:
    """What makes an implementation such as `torch-fused`; None for a variant there is not.

    Raises:
        NotImplementedError: torch has no such engine for this optimizer.
    """
    if name in VARIANTS:
        kind = variant_of(name, optimizer, options)
        return None if kind is None else partial(kind, **options)
    return maker(name, OPTIMIZERS[optimizer], **options)


def _in_short(mismatch: Mismatch) -> str:
    what = mismatch.state or "parameter"
    ulps = "not comparable" if mismatch.ulps == FAR else f"{mismatch.ulps:,} ulp"
    return f"step {mismatch.step}, {what} of {mismatch.parameter}: {ulps}"


def _largest(differences: list[float]) -> float | None:
    most = max(differences, default=0.0) if not any(map(math.isnan, differences)) else math.nan
    return float(f"{most:.3g}") if math.isfinite(most) else None


@cache
def _gradients(dtype: str, seed: int, step: int) -> list[Tensor | None]:
    model = random_model(DTYPES[dtype])
    random_gradients(model, step, seed=seed)
    return [p.grad for p in model.parameters()]


def _give_gradients(dtype: str, seed: int, model: nn.Module, step: int) -> None:
    """random_gradients, drawn once for all comparisons."""
    for p, gradient in zip(model.parameters(), _gradients(dtype, seed, step), strict=True):
        p.grad = None if gradient is None else gradient.to(p.device, copy=True)
