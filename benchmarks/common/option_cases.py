"""The one table of option cases: for every optimizer, each option alone and those that interact."""

from __future__ import annotations

from typing import Any

Options = dict[str, Any]

L2, UP = {"weight_decay": 0.1}, {"maximize": True}
OPTION_CASES: dict[str, list[Options]] = {
    "sgd": [
        {},
        {"lr": 0.1},
        {"momentum": 0.5},
        {"momentum": 0.9, "dampening": 0.3},
        {"momentum": 0.9, "nesterov": True},
        L2,
        UP,
        {"momentum": 0.9, "nesterov": True} | L2,
        {"momentum": 0.9, "dampening": 0.3} | L2 | UP,
        {"momentum": 0.9, "nesterov": True} | L2 | UP,
    ],
    "momentum": [{}, {"lr": 0.1}, L2, UP, {"nesterov": True}, {"dampening": 0.3}],
    "adagrad": [
        {},
        {"lr": 0.1},
        {"lr_decay": 0.1},
        {"initial_accumulator_value": 0.1},
        {"eps": 0.1},
        L2,
        UP,
        {"lr_decay": 0.1, "initial_accumulator_value": 0.1} | L2 | UP,
    ],
    "rmsprop": [
        {},
        {"lr": 0.1},
        {"alpha": 0.9},
        {"eps": 0.1},
        {"momentum": 0.9},
        {"centered": True},
        L2,
        UP,
        {"momentum": 0.9, "centered": True},
        {"momentum": 0.9, "centered": True} | L2 | UP,
    ],
    "adam": [
        {},
        {"lr": 0.1},
        {"betas": (0.5, 0.9)},
        {"eps": 0.1},
        {"amsgrad": True},
        L2,
        UP,
        {"amsgrad": True} | L2 | UP,
        {"decoupled_weight_decay": True} | L2,
        {"decoupled_weight_decay": True, "amsgrad": True} | L2,
    ],
    "adamw": [{}, {"lr": 0.1}, L2, UP, {"amsgrad": True}, {"amsgrad": True} | L2 | UP],
}


def in_words(options: Options) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items()) or "defaults"
