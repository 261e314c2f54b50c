"""Rendering for all pages: one file without scripts or external resources, with all external text escaped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mlmrepro.report.words import SYMBOL, clean, count

__all__ = ["TEMPLATES", "render"]

TEMPLATES = Path(__file__).parent / "templates"


def render(
    template: str,
    styles: Iterable[Path],
    content: Mapping[str, Any],
    filters: Mapping[str, Callable[..., Any]],
    functions: Mapping[str, Callable[..., Any]],
) -> str:
    """Render a template with its style sheets inlined; equal content gives equal bytes."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def shown(text: Any) -> Any:
        return text if isinstance(text, Markup) else clean(text)

    def sentence(text: str) -> Any:
        """Mark up the code spans in one of our own sentences."""
        parts = clean(text).split("`")
        return Markup("").join(Markup("<code>{}</code>").format(p) if n % 2 else p for n, p in enumerate(parts))

    # Everything is escaped, except for our own style sheets and figures.
    pages = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters |= {
        "css": lambda verdict: verdict.name.lower().replace("_", "-"),
        "sentence": sentence,
        "symbol": SYMBOL.__getitem__,
        "trusted": Markup,
        **filters,
    }
    pages.globals |= {"count": count, **functions}
    style = "".join(path.read_text(encoding="utf-8") for path in styles)
    return pages.get_template(template).render(content, style=style)
