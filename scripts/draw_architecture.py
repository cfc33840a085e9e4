"""Draw the modules and who imports whom: `python scripts/draw_architecture.py -o docs/architecture.svg`.

Read from the source with ``ast``; nothing is imported. Packages of ``mrfomm`` are one box each, ``eval`` is two: its
commands and its measures. What nearly everybody imports (errors, bundled) is left out, and so is an arrow where a
longer way leads to the same module. A box stands above all that it imports.
"""

import argparse
import ast
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parent.parent
EVERYBODYS = {"errors", "bundled", "mrfomm", "__main__"}  # mrfomm: the version; __main__: the list of commands
EVAL_COMMANDS, EVAL_MEASURES = "eval: commands", "eval: measures"

BOX_HEIGHT, ROW_HEIGHT = 26, 84
CHARACTER, PADDING, GAP = 7.2, 10, 16  # width of a character and of the margins, pixels
FREE_WIDTH = 8  # of an arrow that passes a row
SWEEPS = 24

HEADER = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">
<title>The modules of mrfomm and who imports whom</title>
<style>
  rect {{ stroke: #3b4a5a; }} .ground {{ fill: #fff; stroke: none; }}
  .light {{ fill: #eef1f4; }} .nnabla {{ fill: #cfe3f7; }}
  text {{ font-size: 13px; text-anchor: middle; fill: #1b2733; }} .note {{ text-anchor: start; fill: #5a6875; }}
  path {{ fill: none; stroke: #8796a5; }} marker path {{ fill: #8796a5; stroke: none; }}
</style>
<marker id="tip" viewBox="0 0 6 6" refX="6" refY="3" markerWidth="6" markerHeight="6" orient="auto">
<path d="M0 0 L6 3 L0 6 z"/></marker>
<rect class="ground" width="{width}" height="{height}"/>"""


# Reading


def modules():
    """Every module's dotted name and file."""
    for folder in ("mrfomm", "eval"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(path):
    """The dotted names a file of this checkout imports, with `from a import b` as a.b, and `from .a import b` too."""
    found, package = set(), path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            found |= {".".join([*above, *filter(None, [node.module]), alias.name]) for alias in node.names}
    return found


def within(name, packages):
    """Whether a dotted name is one of the packages or inside one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


class Graph(NamedTuple):
    """below: box -> the boxes it imports; nnabla: the boxes that need nnabla, by themselves or through others."""

    below: dict[str, set[str]]
    nnabla: set[str]


def read_graph():
    """The Graph of this checkout."""
    sources = dict(modules())
    boxes = {name: _box(name, path) for name, path in sources.items()}
    found = {name: imports(path) for name, path in sources.items()}
    straight = {name: {_module_of(other, boxes) for other in found[name]} - {None, "mrfomm"} for name in sources}
    below = {box: set() for box in boxes.values() if box not in EVERYBODYS}
    nnabla = {name for name in sources if any(within(other, {"nnabla", "nnabla_ext"}) for other in found[name])}
    blue = {boxes[name] for name in sources if ({name} | reachable(straight, name)) & nnabla}
    for name in (name for name in sources if boxes[name] in below):
        below[boxes[name]] |= {boxes[other] for other in straight[name]} - EVERYBODYS - {boxes[name]}
    return Graph(_without_shortcuts(below), blue & below.keys())


def _box(name, path):
    """The box of a module: a package's or the module's name, without `mrfomm.`."""
    top, *rest = name.split(".")
    if top == "eval":
        return EVAL_COMMANDS if '__name__ == "__main__"' in path.read_text(encoding="utf-8") else EVAL_MEASURES
    return rest[0] if rest else top


def _module_of(name, known):
    """The module that an imported name is or belongs to, None for others' modules."""
    if name in known:
        return name
    parent = name.rpartition(".")[0]
    return parent if parent in known else None


def reachable(below, box):
    """Everything that a box imports, directly or through others."""
    found, waiting = set(), list(below[box])
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            waiting += below[current]
    return found


def _without_shortcuts(below):
    """The same graph without those arrows that a longer way makes superfluous."""
    everything = {box: reachable(below, box) for box in below}
    if any(box in found for box, found in everything.items()):
        raise ValueError("modules import each other in a circle")
    return {box: {t for t in targets if not any(t in everything[o] for o in targets)} for box, targets in below.items()}


# Placing


class Item(NamedTuple):
    """What takes room in a row: a box, or an arrow (its two ends) that passes."""

    row: int
    box: str
    passing: str = ""

    @property
    def width(self):
        """In pixels."""
        return FREE_WIDTH if self.passing else CHARACTER * len(self.box) + 2 * PADDING


def rows_of(below):
    """The row of every box, counted from 0 at the bottom: one above the highest that it imports."""
    rows = {}

    def row(box):
        if box not in rows:
            rows[box] = 1 + max((row(target) for target in below[box]), default=-1)
        return rows[box]

    for box in sorted(below):
        row(box)
    return rows


def chains_of(below, rows) -> list[list[Item]]:
    """Every arrow as the items it runs through, from the importing box down."""
    chains = []
    for box in sorted(below):
        for target in sorted(below[box]):
            between = [Item(row, box, target) for row in range(rows[box] - 1, rows[target], -1)]
            chains.append([Item(rows[box], box), *between, Item(rows[target], target)])
    return chains


def place(below) -> tuple[dict[Item, float], list[list[Item]]]:
    """The x of every item's middle, and the arrows. Items are drawn to their neighbours' middle, row by row."""
    rows = rows_of(below)
    chains = chains_of(below, rows)
    items = sorted({item for chain in chains for item in chain} | {Item(row, box) for box, row in rows.items()})
    neighbours = {item: ([], []) for item in items}  # above, below
    for chain in chains:
        for upper, lower in zip(chain, chain[1:]):
            neighbours[upper][1].append(lower)
            neighbours[lower][0].append(upper)
    layers = [[item for item in items if item.row == row] for row in range(max(rows.values()) + 1)]
    x = {}
    for layer in layers:
        x.update(_apart(layer, dict.fromkeys(layer, 0.0)))
    for sweep in range(SWEEPS):
        downwards = sweep % 2
        for layer in reversed(layers) if downwards else layers:
            wished = {}
            for item in layer:
                near = neighbours[item][1 - downwards] or neighbours[item][downwards]
                wished[item] = sum(x[other] for other in near) / len(near) if near else x[item]
            x.update(_apart(sorted(layer, key=lambda item: (wished[item], item)), wished))  # noqa: B023
    return x, chains


def _apart(layer, wished):
    """Places near the wished ones, in the layer's order, that do not overlap: the mean of packing from either side."""
    right, edge = [], -1e9
    for item in layer:
        right.append(max(wished[item], edge + item.width / 2))
        edge = right[-1] + item.width / 2 + GAP
    left, edge = [], 1e9
    for item in reversed(layer):
        left.append(min(wished[item], edge - item.width / 2))
        edge = left[-1] - item.width / 2 - GAP
    return {item: (a + b) / 2 for item, a, b in zip(layer, right, reversed(left))}


# Drawing


def draw(graph) -> str:
    """The picture of a Graph as SVG."""
    x, chains = place(graph.below)
    start = min(place - item.width / 2 for item, place in x.items()) - GAP
    width = round(max(place + item.width / 2 for item, place in x.items()) + GAP - start)
    top = max(item.row for item in x)
    height = top * ROW_HEIGHT + BOX_HEIGHT + 2 * GAP + 24

    def middle(item):
        return round(x[item] - start), (top - item.row) * ROW_HEIGHT + GAP + BOX_HEIGHT // 2

    lines = [HEADER.format(width=width, height=height)]
    lines += [_arrow([middle(item) for item in chain]) for chain in chains]
    for item in sorted(item for item in x if not item.passing):
        (centre, y), kind = middle(item), "nnabla" if item.box in graph.nnabla else "light"
        left, top_edge, box_width = round(centre - item.width / 2), y - BOX_HEIGHT // 2, round(item.width)
        lines.append(
            f'<rect class="{kind}" x="{left}" y="{top_edge}" width="{box_width}" height="{BOX_HEIGHT}" rx="4"/>'
            f'<text x="{centre}" y="{y + 5}">{escape(item.box)}</text>'
        )
    note = "blue: needs nnabla; grey: does not. Left out: errors, bundled, and arrows that a longer way implies."
    lines.append(f'<text class="note" x="{GAP}" y="{height - 10}">{note}</text>')
    return "\n".join([*lines, "</svg>", ""])


def _arrow(points):
    """A path from the lower edge of the first point's box, past the points between, to the upper edge of the last's."""
    (x, y), *between, (end_x, end_y) = points
    parts = [f"M{x} {y + BOX_HEIGHT // 2}"]
    y += BOX_HEIGHT // 2
    for next_x, next_y in (*between, (end_x, end_y - BOX_HEIGHT // 2)):
        half = (y + next_y) // 2
        parts.append(f"C{x} {half} {next_x} {half} {next_x} {next_y}")
        x, y = next_x, next_y
    return f'<path d="{" ".join(parts)}" marker-end="url(#tip)"/>'


def main(arguments=None):
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-o", "--output", required=True, metavar="OUT.svg", help="the picture")
    args = parser.parse_args(arguments)
    Path(args.output).write_text(draw(read_graph()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
