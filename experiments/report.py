"""The report: one self-contained HTML page with the findings, their figures, and how to get them again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from io import StringIO

import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from experiments.findings import Finding
from store.provenance import stamp

_FOLDED = 15
"""Longer tables are folded."""


@dataclass(frozen=True)
class Table:
    """A table in a report; numbers are right-aligned with two decimals."""

    title: str
    note: str
    frame: pd.DataFrame

    @property
    def columns(self) -> list[str]:
        """Column names."""
        return [str(name) for name in self.frame.columns]

    @property
    def numeric(self) -> set[str]:
        """Names of the columns that hold numbers."""
        return {str(name) for name in self.frame.select_dtypes("number").columns}

    @property
    def rows(self) -> list[list[tuple[str, str]]]:
        """Cells as text, each with its column."""
        return [
            [(str(name), _cell(value)) for name, value in zip(self.frame.columns, row, strict=True)]
            for row in self.frame.itertuples(index=False)
        ]


@dataclass(frozen=True)
class Report:
    """Everything on the page.

    Attributes
    ----------
    title, subtitle
        What was run, on what.
    findings, extras
        Sentences with their figures; `extras` only illustrate.
    figures
        By name.
    tables
        Shown after the figures.
    example_prompt, example_answer, n_questions
        A real rendered prompt and what came back, out of so many.
    methods
        A paragraph ready to paste.
    command
        What runs it again.
    models
        Fingerprints of the models that were asked, by name.
    """

    title: str
    subtitle: str
    findings: Sequence[Finding]
    figures: Mapping[str, Figure]
    example_prompt: str
    example_answer: str
    n_questions: int
    methods: str
    command: str
    models: Mapping[str, str]
    tables: Sequence[Table] = field(default_factory=list)
    extras: Sequence[Finding] = field(default_factory=list)

    def render(self) -> str:
        """Return the page as HTML; figures are inline SVG, everything else is escaped."""
        environment = Environment(autoescape=True, undefined=StrictUndefined)
        template = environment.from_string((resources.files("experiments") / "report.html.j2").read_text(encoding="utf-8"))
        figures = {name: Markup(_inline_svg(figure)) for name, figure in self.figures.items()}
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "figures"}
        return template.render(**fields, figures=figures, folded=_FOLDED, versions=stamp())


def _inline_svg(figure: Figure) -> str:
    buffer = StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:.2f}"
    return str(value)
