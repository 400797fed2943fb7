"""Publishing: the figures, report, summary and screen of a finished experiment, from one list of findings."""

import shlex
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from elicit import Endpoint, ask
from experiments.findings import Finding
from experiments.report import Report, Table
from experiments.run_directory import RunDirectory
from experiments.setup import Setup
from store import Answer, Question
from store.provenance import ModelIdentity

_SCREEN_WIDTH = 100
"""Columns at most; a narrower terminal has its own width."""


@dataclass(frozen=True)
class Result:
    """What an experiment returns.

    Attributes
    ----------
    findings
        One sentence each.
    summary
        The numbers behind them, as in `summary.json`.
    path
        Run directory, with `report.html`.
    screen
        What the command prints.
    """

    findings: Sequence[Finding]
    summary: Mapping[str, Any]
    path: Path
    screen: str


@dataclass(frozen=True)
class Source:
    """Whose answers the results are about.

    Attributes
    ----------
    subtitle
        A line that says it.
    model
        Name, fingerprint and dtype, for the summary, and what it is under (`interventions`); empty without a model.
    n_questions
        Answers behind the results.
    example_prompt, example_answer
        One of them, as the model read it and as it came back; empty to show none.
    """

    subtitle: str
    model: Mapping[str, Any]
    n_questions: int = 0
    example_prompt: str = ""
    example_answer: str = ""

    @property
    def models(self) -> dict[str, str]:
        """Fingerprints of all models, by name."""
        return {self.model["name"]: self.model["fingerprint"], **self.model.get("others", {})} if self.model else {}

    @classmethod
    def of(cls, setup: Setup, question: Question, others: Sequence[ModelIdentity] = ()) -> "Source":
        """The model of a set-up, with one of the questions that it was asked; `others` are models that were asked too."""
        model = setup.respondent
        n_origins = len({task.origin for task in setup.tasks})
        where = f"({model.dtype} on {model.device})"
        under = "".join(f" under [{each}]" for each in model.interventions)
        names = [model.identity.name, *(each.name for each in others)]
        if isinstance(model, Endpoint):  # all are on its server
            who = f"{', '.join(names)} {where}"
        else:
            who = f"{names[0]} {where}{under}" + (f" beside {', '.join(names[1:])}" if others else "")
        return cls(
            f"{who}, {len(setup.tasks)} tasks of {n_origins} origins",
            {
                "name": model.identity.name,
                "fingerprint": model.fingerprint,
                "dtype": model.dtype,
                "interventions": [each.describe() for each in model.interventions],
            }
            | ({"others": {each.name: each.fingerprint for each in others}} if others else {}),
            len(setup.run.log),
            model.shown(question) if isinstance(model, Endpoint) else model.render(question).text,
            _describe_answer(ask([question], model, setup.run.log)[0]),
        )


def publish(
    run: RunDirectory,
    source: Source,
    *,
    experiment: str,
    findings: Sequence[Finding],
    figures: Mapping[str, Figure],
    tables: Sequence[Table],
    extras: Sequence[Finding] = (),
    methods: str,
    summary: Mapping[str, Any],
    seconds: float,
) -> Result:
    """Write everything to the run directory."""
    for name, figure in figures.items():
        run.save_figure(name, figure)
    report = Report(
        title=f"penchant {experiment}",
        subtitle=source.subtitle,
        findings=findings,
        figures=figures,
        tables=tables,
        extras=extras,
        example_prompt=source.example_prompt,
        example_answer=source.example_answer,
        n_questions=source.n_questions,
        methods=methods,
        command=f"penchant {experiment} --config {shlex.quote(str(run.path / 'config.yaml'))}",
        models={name: fingerprint[:16] for name, fingerprint in source.models.items()},
    )
    path = run.path / "report.html"
    path.write_text(report.render(), encoding="utf-8")
    run.save_summary(dict(summary) | {"findings": {each.name: each.sentence for each in findings}}, dict(source.model))
    screen = _screen(f"{report.title}: {source.subtitle}, {seconds:.0f} s", findings, path)
    return Result(findings, summary, run.path, screen)


def _describe_answer(answer: Answer) -> str:
    if not answer.log_probs:
        return f"{answer.outcome.value}: {answer.text or answer.error}"
    shares = ", ".join(f"{label} {100 * share:.1f} %" for label, share in answer.distribution().items())
    return f"{shares} (of the {100 * (answer.mass or 0):.1f} % of probability that falls on these answers)"


def _screen(heading: str, findings: Sequence[Finding], path: Path) -> str:
    margin = max(len(finding.name) for finding in findings) + 2
    width = min(_SCREEN_WIDTH, max(shutil.get_terminal_size((_SCREEN_WIDTH, 24)).columns, 2 * margin))
    lines = [heading, ""]
    for finding in findings:
        lines += textwrap.wrap(
            finding.sentence,
            width,
            initial_indent=finding.name.ljust(margin),
            subsequent_indent=" " * margin,
            break_on_hyphens=False,
            break_long_words=False,
        )
        lines += [" " * margin + row for row in finding.rows]
        lines.append("")
    return "\n".join([*lines, f"Report: {path.resolve().as_uri() if path.is_absolute() else path}"])
