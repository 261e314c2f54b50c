"""Deterministic inline SVG figures with the colours and fonts of the page and a text alternative."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from mlmrepro.report.words import clean

__all__ = ["BAND", "GRID", "INK", "MUTED", "SERIES", "SURFACE", "Drawing", "Swatch", "draw", "label"]

# matplotlib does not support CSS variables, so it draws with unique colour codes, which are then replaced.
INK, MUTED, GRID, BAND, SURFACE = "#000001", "#000002", "#000003", "#000004", "#000005"
SERIES = ("#000011", "#000012", "#000013", "#000014", "#000015", "#000016")
_VARIABLES = {
    **dict(zip((INK, MUTED, GRID, BAND, SURFACE), ("ink", "muted", "grid", "band", "surface"), strict=True)),
    "#000000": "ink",  # matplotlib's own default
    **{code: f"c{n}" for n, code in enumerate(SERIES, start=1)},
}
_WIDTH = 5.2  # inches, 374 units: text stays readable on a phone, and two figures fit side by side on a screen
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # keep text as text, so that it can be searched, selected and read aloud
    "font.family": ["DejaVu Sans"],  # bundled with matplotlib; wider than the page's font, so nothing is cut off
    "font.size": 10,
    "text.parse_math": False,  # a `$` in a name is just a dollar sign
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "figure.facecolor": "none",
    "lines.linewidth": 1.4,
}


@dataclass(frozen=True)
class Swatch:
    """A line of a legend. Legends are HTML, so long names can wrap and take no space in the drawing."""

    label: str
    colour: str  # a CSS variable
    dashes: str = ""
    width: float = 2.0
    block: bool = False  # a filled box instead of a line


@dataclass(frozen=True)
class Drawing:
    """An inline SVG with its legend and a table of its numbers."""

    name: str
    title: str
    description: str
    svg: str
    legend: tuple[Swatch, ...]
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def label(text: str, width: int = 22) -> str:
    """Shorten a name to fit an axis."""
    line = clean(text)
    return line if len(line) <= width else f"{line[: width - 1]}…"


def draw(name: str, title: str, description: str, height: float, paint: Callable[[Any], None]) -> str:
    """Return the figure that `paint` draws as SVG; equal content gives equal bytes."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # Avoid pyplot, so that the figures and settings of the process are left alone.
    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the page uses the reader's fonts instead
        figure = Figure((_WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(out.getvalue(), name, title, description)


def _inline(source: str, name: str, title: str, description: str) -> str:
    """Turn a standalone SVG into an inline one: no namespaces, fonts or colours of its own, ids prefixed by figure.

    Only attributes are rewritten, never text, because a name may look like a colour or an id.
    """
    root = ElementTree.fromstring(source)
    used = {found for e in root.iter() for v in e.attrib.values() for found in re.findall(r"(?:url\(|^)#([\w.-]+)", v)}
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {
            key.rpartition("}")[2]: _of_the_page(content, name)
            for key, content in element.attrib.items()
            if key != "id" or content in used
        }
        if "id" in element.attrib:
            element.attrib["id"] = f"{name}-{element.attrib['id']}"
        for attribute in ("text", "tail"):
            if not (getattr(element, attribute) or "").strip():
                setattr(element, attribute, None)
    for defs in [child for child in root if child.tag == "defs" and any(e.tag == "style" for e in child)]:
        root.remove(defs)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-labelledby": f"{name}-title {name}-desc"}
    for place, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(tag, {"id": f"{name}-{tag}"})
        element.text = clean(text)
        root.insert(place, element)
    return ElementTree.tostring(root, encoding="unicode")


def _of_the_page(content: str, name: str) -> str:
    content = re.sub(r"font-family: [^;]+;? ?", "", " ".join(content.split()))
    content = re.sub("|".join(_VARIABLES), lambda match: f"var(--{_VARIABLES[match[0]]})", content)
    return re.sub(r"^#(?=\w)|(?<=url\()#", f"#{name}-", content)
