"""Pictures of a search, from its records: how it went, its front, which choices are good, how the losses fell.

Each function gives a matplotlib ``Figure``, or None where the records have nothing to show.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nni_cssnas.results.draw import operation_colors
from nni_cssnas.results.records import TrialRecord

__all__ = [
    "front_picture",
    "good_trials",
    "hypervolume_curve",
    "loss_curves",
    "operation_use",
    "save",
    "search_curve",
]

INK, GREY, PALE, BLUE, ORANGE = "#1F2430", "#6B7280", "#C9CED6", "#0067A6", "#C44F00"
SETTINGS = {
    "svg.fonttype": "none",  # text stays text: smaller, and can be searched
    "svg.hashsalt": "nni_cssnas",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
}
NAME_SIZE = (45.0, 12.0)
"""Width and height of a name in a picture, in points; of names that would overlap, only the first is written."""

AXES = {
    "macs": ("multiply-adds (millions)", 1e6),
    "params": ("parameters (millions)", 1e6),
    "latency_ms": ("latency (ms)", 1.0),
}

CURVES = 5
"""Loss curves of so many best and worst trials."""


def good_trials(finished: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The best tenth, at least three, best first."""
    ranked = sorted(finished, key=_score, reverse=True)
    return ranked[: max(3, len(ranked) // 10)]


def search_curve(records: Sequence[TrialRecord], num_random: int | None = None) -> Figure | None:
    """Score against the trial's number, and the best so far; the first ``num_random`` trials are marked as drawn at random."""
    finished = _finished(records)
    if not finished:
        return None
    figure, axes = _figure()
    numbers = np.array([record.sequence for record in finished])
    scores = np.array([_score(record) for record in finished])
    best = np.maximum.accumulate(scores)
    if num_random:
        end = min(num_random, max(record.sequence for record in records) + 1) - 0.5
        axes.axvspan(-0.5, end, color=PALE, alpha=0.35, linewidth=0)
        axes.annotate(
            "random start", (0, 1), (4, 3), xycoords=("data", "axes fraction"), textcoords="offset points", color=GREY
        )
    axes.scatter(numbers, scores, s=_dots(len(finished)), color=BLUE, alpha=0.6, linewidth=0, label="trial")
    axes.step(numbers, best, where="post", color=ORANGE, linewidth=2, label="best so far")
    failed = [record.sequence for record in records if record.status == "failed"]
    if failed:
        axes.scatter(
            failed,
            [0.02] * len(failed),
            marker="x",
            s=22,
            color=GREY,
            label="failed",
            transform=axes.get_xaxis_transform(),
        )
    # A few hopeless trials shall not squeeze all others into a line.
    low = float(np.percentile(scores, 2)) if len(scores) >= 50 else float(scores.min())
    margin = 0.06 * (float(scores.max()) - low) or 1.0
    axes.set_ylim(low - 1.5 * margin, float(scores.max()) + margin)
    axes.set_xlim(-0.5, max(record.sequence for record in records) + 0.5)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("trial")
    axes.set_ylabel("score (larger is better)")
    axes.legend(loc="lower right", frameon=False)
    return figure


def front_picture(
    members: Sequence[tuple[str, float, float]], objective: str, points: Sequence[tuple[float, float]] = ()
) -> Figure:
    """Score against what shall be small, with the front and its names.

    Parameters
    ----------
    members
        Name, objective and score of each of the front.
    objective
        Its name.
    points
        Objective and score of everything that was scored.
    """
    figure, axes = _figure()
    name, unit = AXES.get(objective, (objective, 1.0))
    if points:
        costs, scores = np.array(points, dtype=float).T
        axes.scatter(costs / unit, scores, s=_dots(len(points)), color=BLUE, alpha=0.6, linewidth=0, label="trial")
    ordered = sorted(members, key=lambda member: member[1:])
    x = np.array([cost for _, cost, _ in ordered]) / unit
    y = np.array([score for _, _, score in ordered])
    # With more than two objectives it is no line: what lies below the others is better in the third.
    axes.plot(x, y, "o-" if (np.diff(y) > 0).all() else "o", color=ORANGE, markersize=5, linewidth=1.5, label="front")
    everything = np.array([score for _, score in points] or y)
    low = float(np.percentile(everything, 2)) if len(everything) >= 50 else float(everything.min())
    low = min(low, float(y.min()))
    margin = 0.08 * (float(everything.max()) - low) or 1.0
    axes.set_ylim(low - margin, float(everything.max()) + margin)
    axes.margins(x=0.13)
    places = axes.transData.transform(np.column_stack([x, y])) * 72 / figure.dpi  # in points
    named: list[int] = []
    for index in (0, len(ordered) - 1, *range(1, len(ordered) - 1)):  # the ends in any case
        if all((abs(places[index] - places[other]) >= NAME_SIZE).any() for other in named):
            named.append(index)
            # A front rises to the right, so its line passes below.
            axes.annotate(
                ordered[index][0],
                (x[index], y[index]),
                (-4, 4),
                textcoords="offset points",
                ha="right",
                color=ORANGE,
                fontsize=9,
            )
    axes.set_xlabel(name)
    axes.set_ylabel("score (larger is better)")
    axes.legend(loc="lower right", frameon=False)
    return figure


def hypervolume_curve(history: Sequence[float]) -> Figure:
    """How much the front covered after each architecture, as a part of what it covers at the end."""
    figure, axes = _figure()
    covered = np.array(history) / (history[-1] or 1.0)
    axes.step(np.arange(1, len(covered) + 1), covered, where="post", color=ORANGE, linewidth=2)
    axes.set_ylim(0, 1.05)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("architectures")
    axes.set_ylabel("hypervolume of the front (end: 1)")
    return figure


def operation_use(records: Sequence[TrialRecord]) -> Figure | None:
    """What the good trials (:func:`good_trials`) choose, against all: operations of cells, or choices of another space."""
    finished = _finished(records)
    if len(finished) < 2:
        return None
    good = good_trials(finished)
    title = f"{len(good)} best of {len(finished)} trials"
    if all(record.genotype for record in finished):
        return _cell_operations(finished, good, title)
    return _choices(finished, good, title)


def loss_curves(records: Sequence[TrialRecord]) -> Figure | None:
    """Training loss by epoch of the best and the worst trials; None if nothing was trained."""
    trained = sorted(
        (record for record in _finished(records) if len(record.epoch_losses) > 1), key=_score, reverse=True
    )
    if not trained:
        return None
    number = min(CURVES, max(1, len(trained) // 2))
    figure, axes = _figure()
    groups = [("worst", ORANGE, trained[number:][-number:]), ("best", BLUE, trained[:number])]
    for name, color, group in groups:
        for index, record in enumerate(group):
            epochs = range(1, len(record.epoch_losses) + 1)
            label = f"{name} {len(group)}" if index == 0 else None
            axes.plot(epochs, record.epoch_losses, color=color, alpha=0.8, linewidth=1.5, label=label)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("epoch")
    axes.set_ylabel("contrastive loss")
    axes.legend(loc="upper right", frameon=False)
    return figure


def save(figure: Figure, path: Path | None = None) -> str:
    """The figure as SVG text; with ``path``, also ``path`` with the endings ``.svg`` and ``.png``."""
    with matplotlib.rc_context(SETTINGS):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": "nni_cssnas"})
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".svg").write_text(buffer.getvalue(), encoding="utf-8")
            figure.savefig(path.with_suffix(".png"), dpi=160)
    return buffer.getvalue()


def _finished(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    return sorted((record for record in records if record.finished), key=lambda record: record.sequence)


def _score(record: TrialRecord) -> float:
    assert record.score is not None
    return record.score


def _dots(number: int) -> float:
    return 30 if number < 100 else 14


def _figure(width: float = 6.2, height: float = 3.7) -> tuple[Figure, Any]:
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        return figure, figure.add_subplot()


def _operations(record: TrialRecord, cell: str) -> Iterator[str]:
    assert record.genotype is not None
    for edges in record.genotype[cell]:
        yield from (operation for operation, _ in edges)


def _cell_operations(finished: Sequence[TrialRecord], good: Sequence[TrialRecord], title: str) -> Figure:
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(6.2, 3.7), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        names = [name for name in operation_colors if name != "none"][::-1]
        for axes, cell, heading in zip(panels, ("normal", "reduce"), ("normal cell", "reduction cell"), strict=True):
            shares = []
            for group in (finished, good):
                counts = Counter(name for record in group for name in _operations(record, cell))
                shares.append([100 * counts[name] / max(1, counts.total()) for name in names])
            rows = np.arange(len(names))
            axes.barh(rows, shares[1], height=0.62, color=[operation_colors[name] for name in names])
            # What all trials have: a line to compare with, in the same row.
            axes.vlines(shares[0], rows - 0.42, rows + 0.42, color=INK, linewidth=2)
            axes.set_yticks(rows, [name.replace("_", " ") for name in names])
            axes.tick_params(left=False)
            axes.set_title(heading)
            axes.set_xlabel("share of the edges (%)")
        figure.suptitle(f"bars: {title}; lines: all", fontsize=9, color=GREY, x=0.99, ha="right")
    return figure


def _choices(
    finished: Sequence[TrialRecord], good: Sequence[TrialRecord], title: str, number: int = 12
) -> Figure | None:
    """The values whose shares differ most between the good and all."""

    def shares(group: Sequence[TrialRecord]) -> dict[tuple[str, str], float]:
        counts = Counter((label, str(value)) for record in group for label, value in record.parameters.items())
        return {key: 100 * count / len(group) for key, count in counts.items()}

    everywhere, among_good = shares(finished), shares(good)
    ranked = sorted(everywhere, key=lambda key: (-abs(among_good.get(key, 0.0) - everywhere[key]), key))[:number][::-1]
    if not ranked:
        return None
    figure, axes = _figure(height=0.9 + 0.27 * len(ranked))
    rows = np.arange(len(ranked))
    axes.barh(rows, [among_good.get(key, 0.0) for key in ranked], height=0.62, color=BLUE)
    axes.vlines([everywhere[key] for key in ranked], rows - 0.42, rows + 0.42, color=INK, linewidth=2)
    axes.set_yticks(rows, [_shortened(f"{label} = {value}") for label, value in ranked])
    axes.tick_params(left=False)
    axes.set_xlabel("share of the trials (%)")
    figure.suptitle(f"bars: {title}; lines: all", fontsize=9, color=GREY, x=0.99, ha="right")
    return figure


def _shortened(text: str, length: int = 34) -> str:
    return text if len(text) <= length else text[: length // 2 - 1] + "…" + text[-length // 2 :]
