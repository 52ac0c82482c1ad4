"""The table of all published cases."""

from __future__ import annotations

from benchmarks.reproductions import adam_paper, algoperf, deepobs, glorot_bengio, nielsen
from benchmarks.reproductions.case import Case

CASES: dict[str, Case] = {
    "nielsen_gradients": nielsen.NORM_CASE,
    "glorot_bengio_stuck": glorot_bengio.CASE,
    "adam_paper_order": adam_paper.CASE,
    "algoperf_target": algoperf.CASE,
    "nielsen_overfitting": nielsen.OVERFITTING_CASE,
    "deepobs_adam": deepobs.ADAM,
    "deepobs_momentum": deepobs.MOMENTUM,
    "deepobs_adam_rates": deepobs.ADAM_RATES,
}
