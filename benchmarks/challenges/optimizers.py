"""The optimizers of the experiments: the six, and two that differ in bias correction alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import torch

from benchmarks.common.optimizers import OPTIMIZERS as SIX
from benchmarks.common.variants import AdamUncorrected
from torch_scratch_optim import ScratchAdam

CORRECTED, UNCORRECTED = "rmsprop_corrected", "adam_uncorrected"

# RMSProp with bias correction is Adam with β₁ = 0 and β₂ = α.
OPTIMIZERS = SIX | {
    CORRECTED: replace(
        SIX["rmsprop"],
        title="RMSProp (bias-corrected)",
        scratch=partial(ScratchAdam, betas=(0.0, 0.99)),
        reference=partial(torch.optim.Adam, betas=(0.0, 0.99)),
    ),
    UNCORRECTED: replace(
        SIX["adam"], title="Adam without bias correction", scratch=AdamUncorrected
    ),
}


def with_corrected(names: Iterable[str]) -> list[str]:
    """RMSProp is followed by its bias-corrected form: its first steps are not its formula's."""
    return [
        variant
        for name in names
        for variant in ((name, CORRECTED) if name == "rmsprop" else (name,))
    ]


def titles(names: Iterable[str]) -> str:
    return ", ".join(OPTIMIZERS[name].title for name in names) or "none"
