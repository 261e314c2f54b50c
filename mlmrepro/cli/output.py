"""How a command shows its result: the options that its users choose from, and the one place that follows them."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mlmrepro.report.document import Document

__all__ = ["Html", "JUnit", "Json", "Markdown", "Output", "print_json"]

Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print Markdown, for a pull request.")]
JUnit = Annotated[Path | None, typer.Option(help="Also write JUnit XML to this file.")]
Html = Annotated[Path | None, typer.Option(help="Also write an HTML page to this file.")]


@dataclass(frozen=True)
class Output:
    """The output options of a command."""

    as_json: bool = False
    markdown: bool = False
    junit: Path | None = None
    html: Path | None = None

    @property
    def quiet(self) -> bool:
        """Return whether standard output is for a program, so that no progress may be shown on it."""
        return self.as_json or self.markdown

    def write(self, document: Document, content: Any) -> None:
        """Print the document, or the JSON `content`; write the files; tell GitHub Actions, if it runs there."""
        from mlmrepro.report.ci import append_step_summary, github_commands, write_junit

        if self.html is not None:
            from mlmrepro.report.page import write_page

            write_page(document, self.html)
        if self.as_json:
            print_json(content)
        elif self.markdown:
            from mlmrepro.report.markdown import document_markdown

            print(document_markdown(document))
        else:
            from mlmrepro.report.terminal import print_document

            print_document(document)
        if self.junit is not None:
            write_junit(self.junit, document)
        if os.environ.get("GITHUB_ACTIONS"):
            for line in github_commands(document):
                print(line, file=sys.stderr if self.quiet else sys.stdout)
        append_step_summary(document)


def print_json(content: Any) -> None:
    """Print plain JSON values on one line."""
    print(json.dumps(content, ensure_ascii=False, allow_nan=False))
