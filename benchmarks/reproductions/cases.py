"""The table of all cases, the quickest first."""

from __future__ import annotations

from benchmarks.reproductions import (
    adam_paper,
    algoperf,
    deepobs,
    glorot_bengio,
    nielsen,
    quadratic_deep,
)
from benchmarks.reproductions.case import Case

CASES: dict[str, Case] = {
    "quadratic_sgd": quadratic_deep.SGD,
    "quadratic_momentum": quadratic_deep.MOMENTUM,
    "quadratic_adam": quadratic_deep.ADAM,
    "nielsen_gradients": nielsen.NORM_CASE,
    "adam_paper_order": adam_paper.CASE,
    "nielsen_overfitting": nielsen.OVERFITTING_CASE,
    "glorot_bengio_stuck": glorot_bengio.CASE,
    "algoperf_target": algoperf.CASE,
    "nielsen_initialisation": nielsen.INITIALISATION_CASE,
    "nielsen_rates": nielsen.RATES_CASE,
    "nielsen_sizes": nielsen.SIZES_CASE,
    "deepobs_adam": deepobs.ADAM,
    "deepobs_momentum": deepobs.MOMENTUM,
    "deepobs_adam_rates": deepobs.ADAM_RATES,
}
