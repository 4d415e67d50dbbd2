"""Plots for people who would rather see than read, beside the numbers in `.cache/bench`."""

import matplotlib
from matplotlib.figure import Figure
from places import CACHE

# Text stays text, and the same numbers give the same file.
matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "tributary"})
OURS, OTHERS = "#22aa77", "#9aa5ab"


def bars(name, values, unit, ours):
    """A bar for each value, the largest at the top; those of whose names `ours` is true stand out."""
    figure = Figure(figsize=(6.4, 0.9 + 0.26 * len(values)), layout="constrained")
    axes = figure.subplots()
    ranked = sorted(values.items(), key=lambda pair: pair[1])
    drawn = axes.barh([what for what, _ in ranked], [value for _, value in ranked], color=[OURS if ours(what) else OTHERS for what, _ in ranked])
    axes.bar_label(drawn, fmt="{:,.0f}", padding=3)
    axes.margins(x=0.12)
    axes.set_xlabel(unit)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, name)


def shares(name, series, unit):
    """For each series which share of its values is no larger than so much."""
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    for (what, values), colour in zip(series.items(), ("#22aa77", "#2277cc", "#cc4422")):
        axes.ecdf(values, label=what, color=colour, linewidth=2)
    axes.set_xscale("log")
    axes.set_xlabel(unit)
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.grid(color="#dddddd")
    axes.legend(loc="center right", bbox_to_anchor=(0.92, 0.5), frameon=False)
    save(figure, name)


def save(figure, name):
    CACHE.mkdir(parents=True, exist_ok=True)
    figure.savefig(CACHE / f"{name}.svg", metadata={"Date": None})
