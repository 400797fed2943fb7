"""Dry run: an experiment is gone through with made-up answers, to say how many questions, tokens and minutes it takes.

The experiment's own code runs, in a scratch directory, so the plan cannot differ from the run. Answers that the run's log
has are taken from it, and not counted as work. A server is asked nothing; what it would be asked is counted and priced.
"""

import contextlib
import io
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd

from elicit import Endpoint
from experiments.rehearsed_endpoint import RehearsedEndpoint
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
        One row per kind of question: `questions, known, to_ask, requests, tokens, new_tokens, usd, minutes`. Requests are
        those to servers. Tokens are those of the questions to ask, before sharing, or of the requests; new tokens the most
        that can be written. Dollars are at the prices given, missing without. Minutes are of this machine, reckoned from
        real batches, and missing for what a server is asked.
    respondents
        Who would be asked.
    unfinished
        Why the rehearsal stopped early, if it did; what comes after is then not counted.
    """

    table: pd.DataFrame
    respondents: tuple[RehearsedModel | RehearsedEndpoint, ...]
    unfinished: str = ""

    @property
    def screen(self) -> str:
        """What the command prints."""
        whole = self.table.drop(columns="kind").sum()
        names = dict.fromkeys(f"{each.identity.name} ({each.dtype} on {each.device})" for each in self.respondents)
        servers = [each for each in self.respondents if isinstance(each, RehearsedEndpoint)]
        here = len(servers) < len(self.respondents)
        requests = f"up to about {whole['requests']:,.0f} requests to a server, " if servers else ""
        price = f", ${whole['usd']:,.2f} at the prices given" if self.table["usd"].notna().any() else ""
        written = f" and at most {whole['new_tokens']:,.0f} to write" if whole["new_tokens"] else ""
        time = f", about {_duration(whole['minutes'])}" if here else ""
        lines = [
            f"On {' and '.join(names)}: {whole['to_ask']:,.0f} questions to ask ({whole['known']:,.0f} more repeat one of them "
            f"or are in the log), {requests}{whole['tokens']:,.0f} tokens to read{written}{price}{time}.",
            *self._notes(servers),
            "",
            self._shown(servers, here),
        ]
        if self.unfinished:
            lines += ["", f"Not everything is counted: with made-up answers the run stopped early ({self.unfinished})."]
        return "\n".join(lines)

    def _notes(self, servers: Sequence[RehearsedEndpoint]) -> list[str]:
        if not servers:
            return []
        counted = all(each.counts_tokens for each in servers)
        how = (
            "" if counted else " Tokens are reckoned at three bytes each, rather too many; --respondent.tokenizer counts them."
        )
        return [f"No server was asked anything, so how long one takes is not known.{how}"]

    def _shown(self, servers: Sequence[RehearsedEndpoint], here: bool) -> str:
        unused = [*([] if servers else ["requests", "usd"]), *([] if here else ["minutes"])]
        if self.table["usd"].isna().all():
            unused.append("usd")
        return self.table.drop(columns=unused, errors="ignore").to_string(
            index=False,
            formatters={"minutes": _duration, "usd": "{:,.2f}".format},
            float_format="{:,.0f}".format,
            na_rep="",
        )


def dry_run(module: ModuleType, settings: RunSettings) -> Plan:
    """Go through an experiment without asking the model anything; the run directory stays as it is."""
    if not isinstance(settings, Settings):
        raise ValueError("This experiment asks no model anything, so there is nothing to plan; run it.")
    tally, unfinished = Tally(), ""
    respondents: list[RehearsedModel | RehearsedEndpoint] = []
    with tempfile.TemporaryDirectory() as scratch:
        _copy_log(settings.out / _LOG, Path(scratch) / _LOG)
        with contextlib.redirect_stderr(io.StringIO()):  # the progress bars of what only seems to be done
            try:
                module.run(_rehearsed(settings, Path(scratch), tally, respondents))
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
            "requests": count.requests,
            "tokens": count.tokens,
            "new_tokens": count.new_tokens,
            "usd": count.usd or None,
            "minutes": None if count.requests else seconds.get(mode, 0.0) / 60,
        }
        for mode, count in tally.counts.items()
    ]
    return Plan(pd.DataFrame(rows).astype({"usd": float, "minutes": float}), tuple(respondents), unfinished)


def _rehearsed(
    settings: Settings, scratch: Path, tally: Tally, respondents: list[RehearsedModel | RehearsedEndpoint]
) -> Settings:
    """The same settings, whose respondents only count; those that are made are added to `respondents`."""

    class Rehearsed(type(settings)):
        def load_model(self) -> LocalModel:
            respondents.append(model := RehearsedModel(super().load_model(), tally))
            return model

    def behind_server(named: RespondentSettings) -> RespondentSettings:
        class RehearsedRespondent(type(named)):
            def endpoint(self) -> Endpoint | None:
                real = super().endpoint()
                return RehearsedEndpoint(real, tally, respondents) if real else None

        return RehearsedRespondent(**dict(named))

    values: dict[str, Any] = dict(settings) | {"out": scratch}
    for name, value in values.items():
        if isinstance(value, RespondentSettings):
            values[name] = behind_server(value)
    return Rehearsed(**values)


def _copy_log(source: Path, target: Path) -> None:
    if source.exists():
        with MeasurementLog(target) as log:
            log.merge(source)


def _duration(minutes: float) -> str:
    if pd.isna(minutes):
        return ""
    return f"{60 * minutes:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
