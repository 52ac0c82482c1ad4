"""One page of traps."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.challenges.setup import Facts
from benchmarks.challenges.slides import Pictures, label, look, slide
from benchmarks.common.optimizers import OPTIMIZERS
from benchmarks.common.plots import TICK, finish, legend_of

DASHES: Any = (0, (2, 1.2))


def draw(facts: Facts) -> Pictures:
    return {"traps": _page(facts)}


def _page(facts: Facts) -> Figure:
    figure = slide(9.2)
    panels = figure.subplots(2, 3)
    eps = facts["eps"]
    for name, moved in eps["moved"].items():
        panels[0, 0].plot(eps["gradients"], moved["outside"], **look(name))
        panels[0, 0].plot(eps["gradients"], moved["inside"], **look(name), ls=DASHES)
    panels[0, 0].set_xscale("log")
    panels[0, 0].set_yscale("log")
    panels[0, 0].invert_xaxis()
    label(panels[0, 0], f"ε = {eps['eps']:g} in the root (dashed)\nor beside it (solid)",
          "constant gradient", "way ÷ learning rate")  # fmt: skip

    for name, by_place in facts["eps_deep_net"]["loss"].items():
        for place, style in (("outside", "-"), ("inside", DASHES)):
            curve = by_place[place]
            panels[0, 1].plot(curve["step"], curve["loss"], **look(name), ls=style)
    label(panels[0, 1], "The same on\nthe deep sigmoid net", "step", "training loss")
    panels[0, 1].set_ylim(0, 2.7)

    momenta = facts["momenta"]
    styles: tuple[Any, ...] = ("-", (0, (1, 1)), DASHES)
    for (name, heights), style, shade in zip(
        momenta["height"].items(), styles, ("0.0", "0.35", "0.6"), strict=True
    ):
        panels[0, 2].plot(heights, color=shade, lw=3.5, ls=style, label=name)
    panels[0, 2].axvline(momenta["falls_at"], ymax=0.45, color="0.4", lw=1.5)
    panels[0, 2].text(momenta["falls_at"] + 1, 6.6, "γ falls to γ/10", fontsize=TICK)
    panels[0, 2].set_ylim(4.8, 9)
    panels[0, 2].legend(fontsize=TICK, frameon=False, loc="upper right")
    label(panels[0, 2], "Three formulas,\none name: momentum", "step", "height (Rosenbrock)")

    divided = facts["divided_twice"]
    for name, by_kind in divided["loss"].items():
        for kind, style in (("right", "-"), ("divided", DASHES)):
            curve = by_kind[kind]
            panels[1, 0].plot(curve["step"], curve["loss"], **{**look(name), "lw": 2.6}, ls=style)
    label(panels[1, 0], "Loss divided twice by the\nbatch's size (dashed)", "step", "training loss")
    panels[1, 0].set_ylim(0, 2.5)

    clipping = facts["clipping"]
    kinds = (("free", "as it is"), ("clipped", f"clipped at {clipping['clipped_at']:g}"))
    for panel, (kind, how) in zip(panels[1, 1:], kinds, strict=True):
        ranking, tops = clipping[f"{kind}_ranking"], []
        for rank, name in enumerate(ranking):
            its = clipping[kind][name]
            tops.append(f"{OPTIMIZERS[name].title}\nγ = {its['lr']:.2g}")
            panel.barh(rank, its["height"], color=OPTIMIZERS[name].colour, height=0.7)
            panel.text(1.5 * its["height"], rank, f"{its['height']:.0e}", va="center",
                       fontsize=TICK)  # fmt: skip
        panel.set_xscale("log")
        panel.set_xlim(1e-7, 1e3)
        panel.set_yticks(range(len(ranking)), tops)
        panel.invert_yaxis()
        label(panel, f"Rosenbrock, gradient\n{how}: best on top",
              f"height after {clipping['steps']} steps")  # fmt: skip
    names = dict.fromkeys([*facts["eps"]["moved"], *divided["loss"]])
    black = [Line2D([], [], color="black", lw=3, ls=DASHES, label="the trap")]
    finish(
        figure,
        "what looks alike and is not",
        [*legend_of([n for n in OPTIMIZERS if n in names]), *black],
    )
    return figure
