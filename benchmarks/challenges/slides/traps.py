"""One page of traps."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.challenges.setup import Facts
from benchmarks.challenges.slides import Pictures, label, look, slide
from benchmarks.optimizers import CONTENDERS
from benchmarks.pictures import TICK, finish, legend_of

DASHES = (0, (2, 1.2))


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
    styles = ("-", (0, (1, 1)), DASHES)
    for (name, heights), style, shade in zip(
        momenta["height"].items(), styles, ("0.0", "0.35", "0.6"), strict=True
    ):
        panels[0, 2].plot(heights, color=shade, lw=3.5, ls=style, label=name)
    panels[0, 2].axvline(momenta["falls_at"], color="0.4", lw=1.2)
    panels[0, 2].text(momenta["falls_at"] + 1, 7.2, "γ falls to γ/10", fontsize=TICK)
    panels[0, 2].legend(fontsize=11.5, frameon=False)
    label(panels[0, 2], "Three formulas,\none name: momentum", "step", "height (Rosenbrock)")

    divided = facts["divided_twice"]
    for name, by_kind in divided["loss"].items():
        for kind, style in (("right", "-"), ("divided", DASHES)):
            curve = by_kind[kind]
            panels[1, 0].plot(curve["step"], curve["loss"], **{**look(name), "lw": 2.6}, ls=style)
    label(panels[1, 0], "Loss divided twice by the\nbatch's size (dashed)", "step", "training loss")
    panels[1, 0].set_ylim(0, 2.5)

    clipping = facts["clipping"]
    for panel, kind, title in ((panels[1, 1], "free", "Rosenbrock, gradient as it is"),
                               (panels[1, 2], "clipped", "Rosenbrock, gradient clipped at "
                                f"{clipping['clipped_at']:g}")):  # fmt: skip
        for place, name in enumerate(clipping[f"{kind}_ranking"]):
            its = clipping[kind][name]
            panel.barh(place, max(its["height"], 1e-16), color=CONTENDERS[name].colour, left=1e-18)
            panel.text(2e-18, place, f"{CONTENDERS[name].title}, γ = {its['lr']:.1g}: "
                       f"{its['height']:.1e}", va="center", fontsize=TICK)  # fmt: skip
        panel.set_xscale("log")
        panel.set_xlim(1e-18, 1e3)
        panel.set_yticks([])
        panel.invert_yaxis()
        label(panel, f"{title}:\nbest on top", f"height after {clipping['steps']} steps")
    names = dict.fromkeys([*facts["eps"]["moved"], *divided["loss"]])
    black = [Line2D([], [], color="black", lw=3, ls=DASHES, label="the trap")]
    finish(figure, "they look alike", [*legend_of([n for n in CONTENDERS if n in names]), *black])
    return figure
