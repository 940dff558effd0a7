"""The tasks of S4 on a page: a request and its answer, both as text, with boxes as "<left top right bottom>" in hundredths.

| task | request → answer |
|---|---|
| ``parse`` | the page → its elements with their texts, nested |
| ``ocr`` | a box → the text in it |
| ``image`` | the concept of a picture → its box |
| ``element`` | an element and its text → its box |
| ``attribute`` | a box → the kind of the element there, of buttons with its colour |
| ``relation`` | two boxes → parent, child, sibling or none |
| ``find-table`` | the page → the box of its table, or that there is none |
| ``table`` | the box of a table → its cells, row by row |
| ``title`` | the page → its heading |
| ``layout`` | the page → its blocks with boxes |
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from diptych.data.pages.tree import Node

Asked = tuple[str, str]  # a request and its answer
NAMES = {
    **{"h1": "heading", "p": "text", "ul": "list", "table": "table", "button": "button", "a": "link", "img": "picture"},
    **{"row": "row", "li": "item", "td": "cell", "line": "line", "tr": "table row", "page": "page"},
}
NO_TABLE = "there is no table"


def place(box: tuple[int, int, int, int], size: int) -> str:
    """A box in hundredths of the page: "<3 10 40 22>", which ``data.regions.locations.parse_boxes`` reads by ``100``."""
    return f"<{' '.join(str(round(100 * edge / size)) for edge in box)}>"


def _of(page: Node, *tags: str) -> list[Node]:
    return [node for node in page.walk() if node.tag in tags]


def _one(random: Random, nodes: list[Node]) -> Node | None:
    return nodes[random.randrange(len(nodes))] if nodes else None


def parse(page: Node, random: Random) -> Asked | None:
    """Screen parsing."""

    def written(node: Node) -> str:
        """An element with what is in it."""
        inner = " ".join(filter(None, [node.name, node.text, *map(written, node.children)]))
        return f"({node.tag} {inner})"

    return "parse the page.", " ".join(map(written, page.children))


def ocr(page: Node, random: Random) -> Asked | None:
    """Text at a box: of one line, heading, item, link, button or cell."""
    node = _one(random, [n for n in page.walk() if n.text])
    return None if node is None else (f"read the text in {place(node.box, page.box[2])}.", node.text)


def image(page: Node, random: Random) -> Asked | None:
    """Image grounding; None if there is no picture, or two of the same."""
    shown = _of(page, "img")
    alone = [n for n in shown if sum(other.name == n.name for other in shown) == 1]
    node = _one(random, alone)
    return None if node is None else (f"where is the picture of the {node.name}?", place(node.box, page.box[2]))


def element(page: Node, random: Random) -> Asked | None:
    """Element grounding."""
    node = _one(random, _of(page, "h1", "li", "button", "a", "line"))
    return None if node is None else (f"where is the {NAMES[node.tag]} {node.text}?", place(node.box, page.box[2]))


def attribute(page: Node, random: Random) -> Asked | None:
    """Attribute prediction."""
    node = _one(random, _of(page, "h1", "li", "button", "a", "img", "td", "table", "p"))
    if node is None:
        return None
    own = f"{node.name} {NAMES[node.tag]}" if node.tag == "button" else NAMES[node.tag]
    return f"which element is at {place(node.box, page.box[2])}?", own


def relation(page: Node, random: Random) -> Asked | None:
    """Node relation; each answer that the page allows is drawn equally often. Elements with the same box are not asked about."""
    nodes = list(page.walk())
    parent = {id(child): node for node in nodes for child in node.children}
    found: dict[str, list[tuple[Node, Node]]] = {}
    for a in nodes:
        for b in nodes:
            if a.box == b.box:
                continue
            above, below = parent.get(id(a)), parent.get(id(b))
            named = (
                "parent" if below is a else "child" if above is b else "sibling" if above is below and above is not None else "none"
            )
            found.setdefault(named, []).append((a, b))
    kinds = sorted(found)
    answer = kinds[random.randrange(len(kinds))]
    a, b = found[answer][random.randrange(len(found[answer]))]
    size = page.box[2]
    return f"what is {place(a.box, size)} to {place(b.box, size)}?", answer


def find_table(page: Node, random: Random) -> Asked | None:
    """Table detection; None if there are several tables."""
    tables = _of(page, "table")
    if len(tables) > 1:
        return None
    return "where is the table?", place(tables[0].box, page.box[2]) if tables else NO_TABLE


def table(page: Node, random: Random) -> Asked | None:
    """Table parsing: cells separated by |, rows by ;. None without a table."""
    node = _one(random, _of(page, "table"))
    if node is None:
        return None
    rows = [" | ".join(cell.text for cell in row.children) for row in node.children]
    return f"read the table in {place(node.box, page.box[2])}.", " ; ".join(rows)


def title(page: Node, random: Random) -> Asked | None:
    """Screen titling."""
    return "what is the title of the page?", page.children[0].text


def layout(page: Node, random: Random) -> Asked | None:
    """Layout analysis."""
    return "list the blocks of the page.", ", ".join(f"{NAMES[n.tag]} {place(n.box, page.box[2])}" for n in page.children)


TASKS: dict[str, Callable[[Node, Random], Asked | None]] = {
    "parse": parse,
    "ocr": ocr,
    "image": image,
    "element": element,
    "attribute": attribute,
    "relation": relation,
    "find-table": find_table,
    "table": table,
    "title": title,
    "layout": layout,
}
