"""Dry run: an experiment is gone through with made-up answers, to say how many questions, tokens and minutes it takes.

The experiment's own code runs, in a scratch directory, so the plan cannot differ from the run. Answers that the run's log
has are taken from it, and not counted as work.
"""

import contextlib
import io
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd

from experiments.settings import RespondentSettings, RunSettings, Settings
from interp import LocalModel
from interp.rehearsal import RehearsedModel, Tally
from store import MeasurementLog

_LOG = "measurements.sqlite"


@dataclass(frozen=True)
class Plan:
    """What a run would take.

    Attributes
    ----------
    table
        One row per kind of question: `questions, known, to_ask, tokens, new_tokens, minutes`. Tokens are those of the
        questions to ask, before sharing; new tokens the most that can be written; minutes are of this machine, reckoned from
        real batches.
    unfinished
        Why the rehearsal stopped early, if it did; what comes after is then not counted.
    """

    table: pd.DataFrame
    model: str
    unfinished: str = ""

    @property
    def screen(self) -> str:
        """What the command prints."""
        whole = self.table.drop(columns="kind").sum()
        lines = [
            f"On {self.model}: {whole['to_ask']:,.0f} questions to ask ({whole['known']:,.0f} more repeat one of them or "
            f"are in the log), {whole['tokens']:,.0f} tokens to read and at most {whole['new_tokens']:,.0f} to write, about "
            f"{_duration(whole['minutes'])}.",
            "",
            self.table.to_string(index=False, formatters={"minutes": _duration}, float_format="{:,.0f}".format),
        ]
        if self.unfinished:
            lines += ["", f"Not everything is counted: with made-up answers the run stopped early ({self.unfinished})."]
        return "\n".join(lines)


def dry_run(module: ModuleType, settings: RunSettings) -> Plan:
    """Go through an experiment without asking the model anything; the run directory stays as it is."""
    if not isinstance(settings, Settings):
        raise ValueError("This experiment asks no model anything, so there is nothing to plan; run it.")
    asked = [value for value in dict(settings).values() if isinstance(value, RespondentSettings)]
    if any(each.base_url is not None for each in asked):
        raise ValueError(
            "--dry-run plans for models on this machine. What a server may be asked is limited by "
            "--respondent.budget-tokens or --respondent.budget-usd; a run that reaches its budget goes on where it stopped."
        )
    tally, unfinished = Tally(), ""
    models: list[RehearsedModel] = []
    with tempfile.TemporaryDirectory() as scratch:
        _copy_log(settings.out / _LOG, Path(scratch) / _LOG)
        with contextlib.redirect_stderr(io.StringIO()):  # the progress bars of what only seems to be done
            try:
                module.run(_rehearsed(settings, Path(scratch), tally, models))
            except ValueError as error:
                if not tally.counts:
                    raise
                unfinished = str(error)
    seconds = tally.seconds()
    rows = [
        {
            "kind": mode,
            "questions": count.questions,
            "known": max(0, count.questions - count.missing),
            "to_ask": count.missing,
            "tokens": count.tokens,
            "new_tokens": count.new_tokens,
            "minutes": seconds.get(mode, 0.0) / 60,
        }
        for mode, count in tally.counts.items()
    ]
    names = dict.fromkeys(f"{model.identity.name} ({model.dtype} on {model.device})" for model in models)
    return Plan(pd.DataFrame(rows), " and ".join(names), unfinished)


def _rehearsed(settings: Settings, scratch: Path, tally: Tally, models: list[RehearsedModel]) -> Settings:
    """The same settings, whose models only count; those that are loaded are added to `models`."""

    class Rehearsed(type(settings)):
        def load_model(self) -> LocalModel:
            models.append(RehearsedModel(super().load_model(), tally))
            return models[-1]

    values: dict[str, Any] = dict(settings) | {"out": scratch}
    return Rehearsed(**values)


def _copy_log(source: Path, target: Path) -> None:
    if source.exists():
        with MeasurementLog(target) as log:
            log.merge(source)


def _duration(minutes: float) -> str:
    return f"{60 * minutes:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
