from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab

from nni_cssnas.genotype import NAMED_GENOTYPES, OPERATIONS, Cell, Edge, Genotype
from nni_cssnas.results.draw import Box, CellLayout, draw_genotype, layout_cell, operation_colors

LABELS = {
    "max_pool_3x3": "max 3\u00d73",
    "avg_pool_3x3": "avg 3\u00d73",
    "skip_connect": "skip",
    "sep_conv_3x3": "sep 3\u00d73",
    "sep_conv_5x5": "sep 5\u00d75",
    "dil_conv_3x3": "dil 3\u00d73",
    "dil_conv_5x5": "dil 5\u00d75",
}
SVG = "{http://www.w3.org/2000/svg}"


def random_cell(rng: random.Random, num_nodes: int, kind: str) -> Cell:
    """``two`` edges a node; ``dense``: from every earlier state; ``sparse``: any number, also none."""
    nodes = []
    for index in range(num_nodes):
        states = range(index + 2)
        count = {"two": 2, "dense": len(states), "sparse": rng.randint(0, len(states))}[kind]
        nodes.append(tuple(Edge(rng.choice(OPERATIONS[1:]), source) for source in rng.sample(states, count)))
    concat = range(2, num_nodes + 2)
    if kind == "sparse":
        concat = rng.sample(concat, rng.randint(1, num_nodes))
    return Cell(tuple(nodes), tuple(concat))


def random_cells() -> list[Cell]:
    rng = random.Random(0)
    kinds = itertools.cycle(itertools.product((4, 5), ("two", "dense", "sparse")))
    return [random_cell(rng, *next(kinds)) for _ in range(100)]


def dead_cell() -> Cell:
    """Node 1 hears nothing, nobody listens to node 3."""
    nodes = (
        [Edge("sep_conv_3x3", 0)],
        [],
        [Edge("dil_conv_5x5", 3), Edge("skip_connect", 2)],
        [Edge("max_pool_3x3", 1)],
    )
    return Cell(tuple(map(tuple, nodes)), (4,))


def segments(points: tuple[tuple[float, float], ...]) -> list[Box]:
    """The upright boxes without area that a line with right angles consists of."""
    return [
        Box(min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)) for (x0, y0), (x1, y1) in itertools.pairwise(points)
    ]


def texts(svg: Path) -> list[str]:
    return [element.text for element in ElementTree.parse(svg).iter(f"{SVG}text") if element.text]


# ---- layout ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", [False, True])
def test_nothing_collides(reduction: bool) -> None:
    for cell in random_cells():
        layout = layout_cell(cell, reduction=reduction)
        boxes = [*layout.states, layout.output, *(edge.pill for edge in layout.edges)]
        for one, other in itertools.combinations(boxes, 2):
            assert not one.overlaps(other)
        for box in boxes:
            assert box.left >= 0
            assert box.top >= 0
            assert box.right <= layout.width
            assert box.bottom <= layout.height


def test_a_line_touches_no_node_or_name_but_its_own() -> None:
    for cell in random_cells():
        layout = layout_cell(cell)
        for edge in layout.edges:
            own = (layout.states[edge.source], edge.pill)
            others = [*layout.states, layout.output, *(other.pill for other in layout.edges)]
            for part, box in itertools.product(segments(edge.points), others):
                assert any(box is mine for mine in own) or not part.overlaps(box)
        for concat in layout.concat:
            (part,) = segments((concat.start, concat.end))
            assert not any(part.overlaps(box) for box in [*layout.states, *(edge.pill for edge in layout.edges)])


def test_two_lines_meet_only_at_a_right_angle() -> None:
    def along(one: Box, other: Box) -> bool:
        if one.top == one.bottom and other.top == other.bottom:
            return abs(one.top - other.top) < 0.03 and one.left < other.right and other.left < one.right
        if one.left == one.right and other.left == other.right:
            return abs(one.left - other.left) < 0.03 and one.top < other.bottom and other.top < one.bottom
        return False

    for cell in random_cells():
        layout = layout_cell(cell)
        lines = [edge.points for edge in layout.edges] + [(line.start, line.end) for line in layout.concat]
        for one, other in itertools.combinations(lines, 2):
            assert not any(along(*pair) for pair in itertools.product(segments(one), segments(other)))


def test_lines_of_one_source_do_not_cross() -> None:
    for cell in random_cells():
        layout = layout_cell(cell)
        for one, other in itertools.combinations(layout.edges, 2):
            if one.source == other.source:
                assert not any(
                    first.left <= second.right
                    and second.left <= first.right
                    and first.top <= second.bottom
                    and second.top <= first.bottom
                    for first, second in itertools.product(segments(one.points), segments(other.points))
                )


def test_edges_run_from_their_source_to_their_target() -> None:
    for cell in random_cells():
        layout = layout_cell(cell)
        drawn = {(edge.operation, edge.source, edge.target) for edge in layout.edges}
        assert drawn == {
            (edge.operation, edge.source, target) for target, edges in enumerate(cell.nodes, 2) for edge in edges
        }
        for edge in layout.edges:
            source, target = layout.states[edge.source], layout.states[edge.target]
            (x, y), turn, (port, row) = edge.points
            assert source.left < x < source.right
            assert source.top <= y <= source.bottom
            assert turn == (x, row)
            assert port == target.left
            assert target.top < row < target.bottom
            assert edge.pill.top < row < edge.pill.bottom
            assert x < edge.pill.left < edge.pill.right < port
        assert [line.source for line in layout.concat] == sorted(cell.concat)


def test_states_run_from_left_to_right() -> None:
    for cell in random_cells():
        layout = layout_cell(cell)
        for one, other in itertools.pairwise([*layout.states, layout.output]):
            assert one.right < other.left


def test_only_the_inputs_of_a_reduction_cell_have_stride_2() -> None:
    cell = NAMED_GENOTYPES["DARTS_V2"].reduce
    assert {edge.stride for edge in layout_cell(cell).edges} == {1}
    assert all(edge.stride == (2 if edge.source < 2 else 1) for edge in layout_cell(cell, reduction=True).edges)


def test_dead_parts_are_known() -> None:
    layout = layout_cell(dead_cell())
    assert layout.live == {0, 2, 4}
    assert {(edge.source, edge.target): edge.live for edge in layout.edges} == {
        (0, 2): True,
        (3, 4): False,
        (2, 4): True,
        (1, 5): False,
    }


def test_one_node_and_many_nodes() -> None:
    rng = random.Random(1)
    for num_nodes in (1, 2, 12):
        layout = layout_cell(random_cell(rng, num_nodes, "dense"))
        for edge in layout.edges:
            source = layout.states[edge.source]
            assert source.left < edge.points[0][0] < source.right


@pytest.mark.parametrize("operation", OPERATIONS[1:])
def test_a_name_fits_into_its_pill_beside_the_stride(operation: str) -> None:
    layout = layout_cell(Cell(((Edge(operation, 0),),), (2,)), reduction=True)
    pill = layout.edges[0].pill
    name = TextPath((0, 0), LABELS[operation], size=9.5, prop=FontProperties(weight="bold"))
    assert name.get_extents().width / 72 < (pill.right - pill.left) - (pill.bottom - pill.top)


# ---- colours --------------------------------------------------------------------------------------


def test_every_operation_has_a_colour() -> None:
    assert tuple(sorted(operation_colors)) == tuple(sorted(OPERATIONS))


@pytest.mark.parametrize(
    "matrix",
    [
        np.eye(3),
        # Machado, Oliveira and Fernandes (2009), severity 1: protanopia, deuteranopia
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    ],
    ids=["normal", "protanopia", "deuteranopia"],
)
def test_colours_differ_for_every_reader(matrix: list[list[float]]) -> None:
    colors = [color for operation, color in operation_colors.items() if operation != "none"]
    values = np.array([[int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)] for color in colors])
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.asarray(matrix).T, 0, 1)
    lab = rgb2lab(np.where(seen <= 0.0031308, seen * 12.92, 1.055 * seen ** (1 / 2.4) - 0.055))
    for one, other in itertools.combinations(lab, 2):
        assert deltaE_ciede2000(one, other) > 15


# ---- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["best", "best.svg", "best.PNG"])
def test_writes_both_files_and_nothing_else(tmp_path: Path, given: str) -> None:
    files = draw_genotype(NAMED_GENOTYPES["DARTS_V2"], str(tmp_path / "new" / given))
    assert files == [tmp_path / "new" / "best.svg", tmp_path / "new" / "best.png"]
    assert sorted(os.listdir(tmp_path / "new")) == ["best.png", "best.svg"]
    with Image.open(files[1]) as image:
        image.load()
        assert image.width >= 1600
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
        assert Genotype.from_json(image.text["Description"]) == NAMED_GENOTYPES["DARTS_V2"]


def test_a_dot_in_the_name_is_kept(tmp_path: Path) -> None:
    files = draw_genotype(NAMED_GENOTYPES["DARTS_V2"], tmp_path / "seed.3")
    assert [file.name for file in files] == ["seed.3.svg", "seed.3.png"]


def unread(cell: Cell) -> bool:
    """Whether there is a node that neither the output nor another node reads that is read."""
    read = set(cell.concat)
    for state in reversed(range(2, 2 + len(cell.nodes))):
        if state in read:
            read.update(edge.source for edge in cell.nodes[state - 2])
    return not read.issuperset(range(2, 2 + len(cell.nodes)))


def test_svg_names_every_edge(tmp_path: Path) -> None:
    rng = random.Random(2)
    genotypes = [
        *NAMED_GENOTYPES.values(),
        Genotype(random_cell(rng, 5, "dense"), random_cell(rng, 5, "dense")),
        Genotype(random_cell(rng, 4, "two"), random_cell(rng, 4, "two")),
        Genotype(dead_cell(), dead_cell()),
    ]
    for genotype in genotypes:
        svg, _ = draw_genotype(genotype, tmp_path / "cell")
        found = Counter(texts(svg))
        edges = [edge for cell in (genotype.normal, genotype.reduce) for edges in cell.nodes for edge in edges]
        wanted = Counter(LABELS[edge.operation] for edge in edges)
        assert {label: found[label] for label in LABELS.values()} == {label: wanted[label] for label in LABELS.values()}
        strided = sum(edge.source < 2 for edges in genotype.reduce.nodes for edge in edges)
        assert found["/2"] == strided + 1  # and once in the legend
        for node in range(len(genotype.normal.nodes)):
            assert found[str(node)] == 2
        assert found["Normal cell"] == found["Reduction cell"] == 1
        assert ("unused" in found) == (unread(genotype.normal) or unread(genotype.reduce))
    assert unread(dead_cell())
    assert unread(NAMED_GENOTYPES["CNAS_ISIC_s5"].reduce)


def test_same_genotype_gives_same_bytes(tmp_path: Path) -> None:
    one, other = (
        [file.read_bytes() for file in draw_genotype(NAMED_GENOTYPES["CNAS_ISIC_s4"], tmp_path / name, title="best")]
        for name in ("one", "other")
    )
    assert one == other


def test_the_callers_settings_neither_matter_nor_change(tmp_path: Path) -> None:
    plain = [file.read_bytes() for file in draw_genotype(NAMED_GENOTYPES["DARTS_V2"], tmp_path / "plain")]
    ours = {"savefig.bbox": "tight", "font.family": ["serif"], "svg.fonttype": "path", "lines.scale_dashes": False}
    with matplotlib.rc_context(ours):
        before = dict(matplotlib.rcParams.items())
        styled = [file.read_bytes() for file in draw_genotype(NAMED_GENOTYPES["DARTS_V2"], tmp_path / "styled")]
        assert dict(matplotlib.rcParams.items()) == before
    assert styled == plain


def test_does_not_choose_a_backend(tmp_path: Path) -> None:
    script = (
        "import sys, matplotlib\n"
        "before = matplotlib.rcParams._get('backend')\n"
        "from nni_cssnas.genotype import NAMED_GENOTYPES\n"
        "from nni_cssnas.results.draw import draw_genotype\n"
        "draw_genotype(NAMED_GENOTYPES['DARTS_V2'], sys.argv[1])\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert matplotlib.rcParams._get('backend') is before\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "cell")], check=True, env=environment)


def test_a_failure_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = [file.read_bytes() for file in draw_genotype(NAMED_GENOTYPES["DARTS_V2"], tmp_path / "best")]

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        draw_genotype(NAMED_GENOTYPES["CNAS_ISIC_s4"], tmp_path / "best")
    assert sorted(os.listdir(tmp_path)) == ["best.png", "best.svg"]
    assert [(tmp_path / name).read_bytes() for name in ("best.svg", "best.png")] == old


def test_any_title(tmp_path: Path) -> None:
    title = "a $broken < title & " + "very " * 60 + "long"
    svg, _ = draw_genotype(NAMED_GENOTYPES["DARTS_V2"], tmp_path / "cell", title=title)
    found = texts(svg)
    lines = found[: found.index("Normal cell")]
    assert len(lines) > 2
    assert " ".join(lines) == title


def test_cells_of_different_size_and_without_life(tmp_path: Path) -> None:
    small = Cell(((),), (2,))
    large = Cell(((Edge("skip_connect", 0),), (Edge("sep_conv_5x5", 2),)), (3,))
    svg, _ = draw_genotype(Genotype(small, large), tmp_path / "cell")
    assert Counter(texts(svg))["0"] == 2


def test_layout_is_data() -> None:
    cell = NAMED_GENOTYPES["DARTS_V2"].normal
    assert isinstance(layout_cell(cell), CellLayout)
    assert layout_cell(cell) == layout_cell(cell)
