"""Publishing: the figures, report, summary and screen of a finished experiment, from one list of findings."""

import shlex
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from elicit import ask
from experiments.findings import Finding
from experiments.report import Report, Table
from experiments.setup import Setup
from store import Answer, Question

_SCREEN_WIDTH = 100


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


def publish(
    setup: Setup,
    *,
    experiment: str,
    question: Question,
    findings: Sequence[Finding],
    figures: Mapping[str, Figure],
    tables: Sequence[Table],
    extras: Sequence[Finding] = (),
    methods: str,
    summary: Mapping[str, Any],
    seconds: float,
) -> Result:
    """Write everything to the run directory.

    Parameters
    ----------
    question
        One of the questions that were asked, to be shown as the model read it.
    """
    run, model = setup.run, setup.model
    for name, figure in figures.items():
        run.save_figure(name, figure)
    answer = ask([question], model, run.log)[0]
    n_origins = len({task.origin for task in setup.tasks})
    subtitle = f"{model.identity.name} ({model.dtype} on {model.device}), {len(setup.tasks)} tasks of {n_origins} origins"
    report = Report(
        title=f"penchant {experiment}",
        subtitle=subtitle,
        findings=findings,
        figures=figures,
        tables=tables,
        extras=extras,
        example_prompt=model.render(question).text,
        example_answer=_describe_answer(answer),
        n_questions=len(run.log),
        methods=methods,
        command=f"penchant {experiment} --config {shlex.quote(str(run.path / 'config.yaml'))}",
        model=model.identity.name,
        fingerprint=model.fingerprint[:16],
    )
    path = run.path / "report.html"
    path.write_text(report.render(), encoding="utf-8")
    run.save_summary(dict(summary) | {"findings": {each.name: each.sentence for each in findings}}, model)
    screen = _screen(f"{report.title}: {subtitle}, {seconds:.0f} s", findings, path)
    return Result(findings, summary, run.path, screen)


def _describe_answer(answer: Answer) -> str:
    if not answer.log_probs:
        return f"{answer.outcome.value}: {answer.text or answer.error}"
    shares = ", ".join(f"{label} {100 * share:.1f} %" for label, share in answer.distribution().items())
    return f"{shares} (of the {100 * (answer.mass or 0):.1f} % of probability that falls on these answers)"


def _screen(heading: str, findings: Sequence[Finding], path: Path) -> str:
    margin = max(len(finding.name) for finding in findings) + 2
    lines = [heading, ""]
    for finding in findings:
        lines += textwrap.wrap(
            finding.sentence,
            _SCREEN_WIDTH,
            initial_indent=finding.name.ljust(margin),
            subsequent_indent=" " * margin,
            break_on_hyphens=False,
            break_long_words=False,
        )
        lines += [" " * margin + row for row in finding.rows]
        lines.append("")
    return "\n".join([*lines, f"Report: {path.resolve().as_uri() if path.is_absolute() else path}"])
