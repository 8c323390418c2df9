"""A picture of an architecture: both cells of a genotype as a metro map.

Every edge is a line of its own, coloured by its operation. It leaves its source downwards, turns once, and runs
in a row of its own into its target; the operation's name sits on that row, just before the target. A node's
rows lie below those of all earlier nodes, and its column to the right of theirs. Hence, whatever the genotype:
no two names overlap, no line runs through a name or a node that is not its own, and two lines meet only at a
right angle. :func:`layout_cell` is that geometry without any drawing.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, PathPatch, Polygon
from matplotlib.path import Path as Curve
from matplotlib.textpath import TextPath

from nni_cssnas.base.files import write_atomically
from nni_cssnas.genotype import Cell, Genotype

__all__ = [
    "Box",
    "CellLayout",
    "ConcatLine",
    "EdgeLine",
    "draw_genotype",
    "genotype_svg",
    "layout_cell",
    "operation_colors",
]

operation_colors: dict[str, str] = {
    "none": "#D5D9E0",
    "max_pool_3x3": "#008A6E",
    "avg_pool_3x3": "#8ED6BF",
    "skip_connect": "#3B4252",
    "sep_conv_3x3": "#56B4E9",
    "sep_conv_5x5": "#0067A6",
    "dil_conv_3x3": "#F0A202",
    "dil_conv_5x5": "#C44F00",
}
"""One colour for each operation, for every picture of this package.

After Okabe and Ito's palette for colour-blind readers: a hue for each family (green pools, blue separable and
orange dilated convolutions), and within a family a light and a dark tone.
"""

_FAMILIES = (
    ("separable convolution", ("sep_conv_3x3", "sep_conv_5x5")),
    ("dilated convolution", ("dil_conv_3x3", "dil_conv_5x5")),
    ("pooling", ("max_pool_3x3", "avg_pool_3x3")),
    ("skip connection", ("skip_connect",)),
)

_STRIDE, _UNUSED = "stride 2", "unused"
_LEGEND_SIZE = 8.5
_DASHES = (0, (2.2, 1.4))
_INK, _GREY, _PALE, _WASH = "#1F2430", "#6B7280", "#B4BAC4", "#F4F5F7"

# All lengths are inches; y grows downwards.
_MARGIN = 0.2
_PITCH = 0.3  # from one row to the next
_BAND_GAP = 0.12  # added between the rows of two nodes
_PILL_WIDTH, _PILL_HEIGHT = 0.97, 0.23
_NODE_WIDTH = 0.36
_INPUT_WIDTH, _INPUT_HEIGHT, _INPUT_GAP = 0.56, 0.34, 0.14
_TURN_GAP, _PORT_GAP = 0.17, 0.17  # before and after a pill
_OUTPUT_GAP = 0.38
_LINE_GAP = 0.075  # between parallel lines that leave one state
_CORNER = 0.11
_ARROW = 0.085
_HEADING, _TITLE_LINE, _LEGEND_LINE, _CELL_GAP = 0.42, 0.26, 0.24, 0.36

_PNG_DPI = 200


# Verdana has the widths of DejaVu Sans, which matplotlib carries but most browsers lack.
_SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "nni_cssnas",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
}


# ---- geometry -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Box:
    """An upright rectangle; inches, y downwards."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def center(self) -> tuple[float, float]:
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2

    def overlaps(self, other: Box) -> bool:
        """Whether the two share more than a border; a box without area is a line."""
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


@dataclass(frozen=True)
class EdgeLine:
    """An edge from state ``source`` into state ``target``.

    ``points`` are its three corners: in the source, the turn, and the port at the target's left side.
    ``pill`` holds the operation's name. An edge is ``live`` if the cell's output depends on it.
    """

    operation: str
    source: int
    target: int
    points: tuple[tuple[float, float], tuple[float, float], tuple[float, float]]
    pill: Box
    stride: int
    live: bool


@dataclass(frozen=True)
class ConcatLine:
    """The level line from state ``source`` to the cell's output."""

    source: int
    start: tuple[float, float]
    end: tuple[float, float]
    live: bool


@dataclass(frozen=True)
class CellLayout:
    """Where everything in the picture of a cell lies; ``states`` are the inputs and nodes in order."""

    width: float
    height: float
    states: tuple[Box, ...]
    output: Box
    edges: tuple[EdgeLine, ...]
    concat: tuple[ConcatLine, ...]
    live: frozenset[int]


def layout_cell(cell: Cell, *, reduction: bool = False) -> CellLayout:
    """Place a cell; in a ``reduction`` cell the edges from the inputs have stride 2."""
    live = cell.live_nodes() | cell.live_inputs()
    left = _INPUT_WIDTH + _INPUT_GAP
    states = [Box(0.0, 0.0, _INPUT_WIDTH, _INPUT_HEIGHT), Box(left, 0.0, left + _INPUT_WIDTH, _INPUT_HEIGHT)]

    # The nearest source takes the top row: its line then ends before the lines from farther left
    # pass below it, which saves a crossing.
    rows: list[tuple[int, int, str, float]] = []  # target, source, operation, y
    right, y = states[-1].right, _INPUT_HEIGHT + _BAND_GAP + _PITCH / 2
    for target, edges in enumerate(cell.nodes, start=2):
        top = y
        for edge in sorted(edges, key=lambda edge: -edge.source):
            rows.append((target, edge.source, edge.operation, y))
            y += _PITCH
        y = max(y, top + _PITCH)  # a node without edges still needs a row
        left = right + _TURN_GAP + _PILL_WIDTH + _PORT_GAP
        right = left + _NODE_WIDTH
        states.append(Box(left, top - _NODE_WIDTH / 2, right, y - _PITCH + _NODE_WIDTH / 2))
        y += _BAND_GAP

    lines = []
    for source, box in enumerate(states):
        # From left to right in the order in which they turn, the lowest first: none crosses another.
        leaving = sorted((row for row in rows if row[1] == source), key=lambda row: -row[3])
        gap = min(_LINE_GAP, 0.8 * _NODE_WIDTH / max(1, len(leaving) - 1))
        for index, (target, _, operation, y) in enumerate(leaving):
            x = box.center[0] + (index - (len(leaving) - 1) / 2) * gap
            port = states[target].left
            pill = Box(port - _PORT_GAP - _PILL_WIDTH, y - _PILL_HEIGHT / 2, port - _PORT_GAP, y + _PILL_HEIGHT / 2)
            lines.append(
                EdgeLine(
                    operation,
                    source,
                    target,
                    ((x, box.center[1]), (x, y), (port, y)),
                    pill,
                    stride=2 if reduction and source < 2 else 1,
                    live={source, target} <= live,
                )
            )

    left = right + _OUTPUT_GAP
    ends = [states[state].center[1] for state in sorted(cell.concat)]
    output = Box(left, ends[0] - _NODE_WIDTH / 2, left + _NODE_WIDTH, ends[-1] + _NODE_WIDTH / 2)
    concat = tuple(
        ConcatLine(
            state, (states[state].right, states[state].center[1]), (left, states[state].center[1]), state in live
        )
        for state in sorted(cell.concat)
    )
    height = max(box.bottom for box in states)
    return CellLayout(output.right, height, tuple(states), output, tuple(lines), concat, live)


# ---- drawing --------------------------------------------------------------------------------------


def draw_genotype(genotype: Genotype, path: Path | str, *, title: str | None = None) -> list[Path]:
    """Write ``<path>.svg`` and ``<path>.png``, the picture of both cells, and return these two paths.

    A suffix ``.svg`` or ``.png`` of ``path`` is dropped first, and missing folders are made. Each file is
    replaced at once or not at all. The same genotype and title give the same bytes with the same matplotlib.
    The genotype's JSON is in the metadata of both files, as ``Description``.

    Parts that the output does not depend on are grey and dashed. Labels in the SVG are text, not outlines.

    Raises
    ------
    OSError
        If a file cannot be written.
    """
    path = Path(path)
    stem = path.with_suffix("") if path.suffix.lower() in (".svg", ".png") else path
    stem.parent.mkdir(parents=True, exist_ok=True)
    contents = _drawn(genotype, title, "svg", "png")
    files = [stem.with_name(f"{stem.name}.{kind}") for kind in contents]
    for file, content in zip(files, contents.values(), strict=True):
        write_atomically(file, content)
    return files


def genotype_svg(genotype: Genotype, *, title: str | None = None) -> str:
    """The picture of both cells as the text of an SVG file."""
    return _drawn(genotype, title, "svg")["svg"].decode()


def _drawn(genotype: Genotype, title: str | None, *kinds: str) -> dict[str, bytes]:
    """The contents of a file of each kind."""
    metadata = {"Title": title or "genotype", "Description": genotype.to_json()}
    contents = {}
    # The caller's own settings (a style, savefig.bbox, usetex) must not leak in, nor ours out.
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        figure = _figure(genotype, title)
        for kind in kinds:
            buffer = io.BytesIO()
            unwanted = {"svg": "Date", "png": "Software"}[kind]
            figure.savefig(buffer, format=kind, dpi=_PNG_DPI, facecolor="white", metadata=metadata | {unwanted: None})
            contents[kind] = buffer.getvalue()
    return contents


def _figure(genotype: Genotype, title: str | None) -> Figure:
    cells = [
        ("Normal cell", layout_cell(genotype.normal)),
        ("Reduction cell", layout_cell(genotype.reduce, reduction=True)),
    ]
    width = max(layout.width for _, layout in cells) + 2 * _MARGIN
    # 13 pt bold is about 0.115 inch a letter.
    titles = textwrap.wrap(title, width=int((width - 2 * _MARGIN) / 0.115)) if title else []
    legend = _legend((layout for _, layout in cells), width - 2 * _MARGIN)
    top = _MARGIN + len(titles) * _TITLE_LINE + (0.14 if titles else 0.0)
    height = (
        top + sum(_HEADING + layout.height + _CELL_GAP for _, layout in cells) + len(legend) * _LEGEND_LINE + _MARGIN
    )

    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)

    for line, text in enumerate(titles):
        _text(axes, _MARGIN, _MARGIN + (line + 0.5) * _TITLE_LINE, text, size=13, ha="left", weight="bold")
    for index, (name, layout) in enumerate(cells):
        if index:
            y = top - _CELL_GAP / 2
            axes.plot([_MARGIN, width - _MARGIN], [y, y], color="#E3E6EB", linewidth=0.8)
        _text(axes, _MARGIN, top + 0.14, name, size=11.5, ha="left", weight="bold")
        # A cell with fewer nodes than the other is drawn at the left, like the heading.
        _Pen(axes, _MARGIN, top + _HEADING).cell(layout)
        top += _HEADING + layout.height + _CELL_GAP
    for line, entries in enumerate(legend):
        _draw_legend(axes, entries, top + (line + 0.5) * _LEGEND_LINE)
    return figure


def _text(axes: Any, x: float, y: float, text: str, *, size: float, color: str = _INK, **kwargs: Any) -> None:
    kwargs = {"ha": "center", "va": "center_baseline", "parse_math": False, **kwargs}
    axes.text(x, y, text, fontsize=size, color=color, **kwargs)


def _label(operation: str) -> str:
    """``sep_conv_3x3``: ``sep 3×3``; ``skip_connect``: ``skip``."""
    name, *_, size = operation.split("_")
    return name + " " + size.replace("x", "\N{MULTIPLICATION SIGN}") if "x" in size else name


def _ink_on(color: str) -> str:
    """White or dark, whichever reads better on ``color`` (WCAG relative luminance)."""
    channels = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "white" if luminance < 0.25 else _INK


def _rounded(box: Box, radius: float, **kwargs: Any) -> FancyBboxPatch:
    return FancyBboxPatch(
        (box.left, box.top),
        box.right - box.left,
        box.bottom - box.top,
        boxstyle=f"round,pad=0,rounding_size={radius}",
        **kwargs,
    )


class _Pen:
    """Draws a cell's layout with its upper left corner at ``(x, y)`` of the page."""

    def __init__(self, axes: Any, x: float, y: float) -> None:
        self.axes, self.x, self.y = axes, x, y

    def cell(self, layout: CellLayout) -> None:
        for concat in layout.concat:
            self.line((concat.start, concat.end), _GREY if concat.live else _PALE, concat.live, width=1.5)
        # A line is crossed only by lines from earlier states; drawn last, these pass over it.
        for edge in sorted(layout.edges, key=lambda edge: (edge.live, -edge.source, edge.target)):
            self.line(edge.points, operation_colors[edge.operation] if edge.live else _PALE, edge.live)
        for edge in layout.edges:
            self.pill(edge)
        for state, box in enumerate(layout.states):
            name = ("$c_{k-2}$", "$c_{k-1}$")[state] if state < 2 else str(state - 2)
            self.node(box, name, live=state in layout.live, math=state < 2)
        self.node(layout.output, "$c_k$", live=any(concat.live for concat in layout.concat), math=True, fill=_INK)
        x, y = self.x + layout.output.center[0], self.y + layout.output.top - 0.1
        _text(self.axes, x, y, "concat", size=8, color=_GREY)

    def box(self, box: Box) -> Box:
        return Box(box.left + self.x, box.top + self.y, box.right + self.x, box.bottom + self.y)

    def line(self, points: tuple[tuple[float, float], ...], color: str, live: bool, width: float = 2.4) -> None:
        *before, (tip, y) = ((x + self.x, y + self.y) for x, y in points)
        end = tip - 0.8 * _ARROW
        vertices, codes = [before[0]], [Curve.MOVETO]
        if len(before) == 2:
            x = before[1][0]
            vertices += [(x, y - _CORNER), (x, y), (x + _CORNER, y)]
            codes += [Curve.LINETO, Curve.CURVE3, Curve.CURVE3]
        curve = Curve([*vertices, (end, y)], [*codes, Curve.LINETO])
        style = {"facecolor": "none", "capstyle": "butt"}
        if len(before) == 2:
            self.axes.add_artist(PathPatch(curve, edgecolor="white", linewidth=width + 2.6, **style))
        dashes = "solid" if live else _DASHES
        width = width if live else 1.3
        self.axes.add_artist(PathPatch(curve, edgecolor=color, linewidth=width, linestyle=dashes, **style))
        arrow = [(tip, y), (tip - _ARROW, y - 0.55 * _ARROW), (tip - _ARROW, y + 0.55 * _ARROW)]
        self.axes.add_artist(Polygon(arrow, closed=True, facecolor=color, edgecolor="none"))

    def pill(self, edge: EdgeLine) -> None:
        box = self.box(edge.pill)
        color = operation_colors[edge.operation]
        fill, border, ink = (color, color, _ink_on(color)) if edge.live else ("white", _PALE, _GREY)
        radius = _PILL_HEIGHT / 2
        self.axes.add_artist(
            _rounded(box, radius, facecolor=fill, edgecolor=border, linewidth=0.9, linestyle="-" if edge.live else "--")
        )
        x, y = box.center
        if edge.stride > 1:
            badge = box.right - radius
            self.axes.add_artist(
                Circle(
                    (badge, y), radius * 0.8, facecolor="white", edgecolor="none" if edge.live else _PALE, linewidth=0.7
                )
            )
            _text(self.axes, badge, y, f"/{edge.stride}", size=7.5, weight="bold", color=_INK if edge.live else _GREY)
            x -= 0.1
        _text(self.axes, x, y, _label(edge.operation), size=9.5, weight="bold", color=ink)

    def node(self, box: Box, name: str, *, live: bool, math: bool, fill: str = "white") -> None:
        box = self.box(box)
        edge, ink = (_INK, _ink_on(fill) if fill.startswith("#") else _INK) if live else (_PALE, _GREY)
        self.axes.add_artist(
            _rounded(
                box,
                _NODE_WIDTH / 2 - 0.01,
                facecolor=fill if live else _WASH,
                edgecolor=edge,
                linewidth=1.6,
                linestyle="-" if live else _DASHES,
            )
        )
        _text(
            self.axes,
            *box.center,
            name,
            size=12 if math else 11,
            color=ink,
            weight="bold",
            va="center" if math else "center_baseline",
            parse_math=math,
        )


_LegendLine = list[tuple[float, str, tuple[str, ...]]]


def _legend(layouts: Iterable[CellLayout], width: float) -> list[_LegendLine]:
    """Lines of ``(x, text, colours of the text's marks)``, broken before ``width``."""
    edges = [edge for layout in layouts for edge in layout.edges]
    used = {edge.operation for edge in edges if edge.live}
    entries = [
        (name, tuple(operation_colors[operation] for operation in operations if operation in used))
        for name, operations in _FAMILIES
        if used.intersection(operations)
    ]
    if any(edge.stride > 1 for edge in edges):
        entries.append((_STRIDE, (_INK, _INK)))
    if any(not edge.live for edge in edges):
        entries.append((_UNUSED, (_PALE, _PALE)))
    lines: list[_LegendLine] = [[]]
    x = 0.0
    for text, colors in entries:
        extent = 0.15 * len(colors) + TextPath((0, 0), text, size=_LEGEND_SIZE).get_extents().width / 72
        if lines[-1] and x + extent > width:
            lines.append([])
            x = 0.0
        lines[-1].append((x, text, colors))
        x += extent + 0.28
    return lines


def _draw_legend(axes: Any, line: _LegendLine, y: float) -> None:
    for start, text, colors in line:
        x = _MARGIN + start
        marks = 0.15 * len(colors)
        if text == _STRIDE:
            axes.add_artist(Circle((x + 0.14, y), 0.095, facecolor="white", edgecolor=_GREY, linewidth=0.8))
            _text(axes, x + 0.14, y, "/2", size=7, weight="bold")
        elif text == _UNUSED:
            axes.plot([x, x + marks - 0.05], [y, y], color=_PALE, linewidth=1.3, linestyle=_DASHES)
        else:
            for index, color in enumerate(colors):
                axes.add_artist(Circle((x + 0.06 + 0.15 * index, y), 0.06, facecolor=color, edgecolor="none"))
        _text(axes, x + marks + 0.03, y, text, size=_LEGEND_SIZE, color=_GREY, ha="left")
