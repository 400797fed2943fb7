"""sysprompt_grid: system prompts while a task is done, crossed with system prompts while it is rated."""

import itertools
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Float
from pydantic import Field, field_validator

from elicit import Context, completion, rating
from elicit.templates import template
from experiments.crossed import LEAST_TASKS, Crossed, effects_figure
from experiments.findings import Finding, null_note, plain
from experiments.personas import done_under, leaked, usable
from experiments.publish import Result, Source, publish
from experiments.report import Table
from experiments.settings import Settings
from experiments.setup import Setup
from store import Estimate

_CHANGE = "change of the rating, as a share of a scale's length"
_PROMPTS = {
    "neutral": "You are an assistant. Whatever you are asked to do next, you do it as it is described.",
    "keen": "You love your work. Whatever you are asked to do next, you look forward to it.",
    "weary": "You are tired of your work. Whatever you are asked to do next is one task too many.",
}


class SyspromptGridSettings(Settings):
    """Do tasks under each system prompt, and rate the doing under each."""

    QUICK: ClassVar[Mapping[str, Any]] = {"per_origin": 3, "out": Path("runs/sysprompt_grid_quick")}

    out: Path = Field(
        default=Path("runs/sysprompt_grid"), description="Run directory. The same one continues, or repeats at no cost."
    )
    per_origin: int = Field(default=8, ge=1, description="Tasks sampled from each origin.")
    prompts: dict[str, str] = Field(
        default=_PROMPTS, description="System prompts by name; the first is what the others are compared with."
    )
    scales: tuple[str, ...] = Field(
        default=("yes_somewhat_no", "likert_agreement", "stated_10"),
        min_length=1,
        description="Scales of mode rating, asked after doing.",
    )
    max_new_tokens: int = Field(default=60, ge=1, description="Length of a completion.")
    temperature: float = Field(default=0.7, ge=0, description="Of the completions.")

    @field_validator("prompts")
    @classmethod
    def _several(cls, prompts: dict[str, str]) -> dict[str, str]:
        if len(prompts) < 2:
            raise ValueError("expected two system prompts or more, the first of them to compare with")
        return prompts


SETTINGS = SyspromptGridSettings


def run(settings: SyspromptGridSettings) -> Result:
    """Run the experiment; what was asked before in the same directory is not asked again."""
    started = time.monotonic()
    for scale in settings.scales:
        template("rating", scale)  # a wrong name is an error before the model is loaded
    setup = Setup.of(settings, settings.load_tasks())
    setup.check_can_rate(settings.scales)
    written = done_under(setup, setup.tasks, settings.prompts, settings.max_new_tokens, settings.temperature)
    kept = usable(written, settings.prompts)
    if len(kept) < LEAST_TASKS:
        raise ValueError(
            f"{len(kept)} of {len(setup.tasks)} tasks have a completion under every prompt that does not repeat it; expected "
            f"{LEAST_TASKS}. Sample more tasks, or shorten the system prompts."
        )
    tasks = [task for task in setup.tasks if task.id in kept]
    asked = {
        (doing, rating_under, scale): rating.questions(
            tasks,
            scale=scale,
            completions=completion.texts(written[doing]),
            context=Context(system=settings.prompts[rating_under]),
        )
        for doing, rating_under, scale in itertools.product(settings.prompts, settings.prompts, settings.scales)
    }
    found = setup.ask_each({"/".join(key): questions for key, questions in asked.items()}, "ratings after doing")
    ratings = pd.concat(
        [rating.ratings(*found["/".join(key)]).assign(done_under=key[0], rated_under=key[1]) for key in asked],
        ignore_index=True,
    )
    crossed = Crossed.of(ratings, ("done_under", "rated_under"), list(settings.prompts))
    cells, effects = crossed.cells(), effects_of(crossed.values, settings)
    for name, table in (("completions", pd.concat(written.values())), ("ratings", ratings), ("cells", cells)):
        setup.run.save_table(name, table)
    setup.run.save_table("effects", pd.DataFrame([{"effect": name} | each.to_dict() for name, each in effects.items()]))
    return publish(
        setup.run,
        Source.of(setup, next(iter(asked.values()))[0]),
        experiment="sysprompt_grid",
        findings=[
            _effects_finding("Rated under", "rated", effects, settings),
            _effects_finding("Done under", "done", effects, settings),
            _interaction_finding(effects, settings),
            _leak_finding(written, settings, f"{len(kept)} of {len(setup.tasks)}", crossed),
        ],
        figures={
            "sysprompt_grid": crossed.figure(),
            "sysprompt_effects": effects_figure(effects, _CHANGE, "Effects within tasks"),
        },
        tables=[Table("Cells", "Mean rating, as a share of the scale's length, with Student's intervals over tasks.", cells)],
        methods=(
            f"{len(setup.tasks)} tasks were done under each of {len(settings.prompts)} system prompts, with the instruction "
            f"not to mention them (up to {settings.max_new_tokens} tokens, temperature {settings.temperature:g}); tasks of "
            f"which a completion repeats its prompt were left out. Each completion was then rated after doing, under each "
            f"prompt, on {', '.join(settings.scales)}; ratings are shares of a scale's length, averaged over scales. Effects "
            f"are within tasks, against {next(iter(settings.prompts))}; intervals are Student's, over tasks."
        ),
        summary={"cells": cells.to_dict("records"), "effects": effects, "tasks_kept": len(kept)},
        seconds=time.monotonic() - started,
    )


def effects_of(values: Float[np.ndarray, "tasks done rated"], settings: SyspromptGridSettings) -> dict[str, Estimate]:
    """Effects within tasks, against the first prompt.

    `done X`: of doing under X, averaged over what it is rated under; `rated X`: the other way round; `same X`: by how much
    doing and rating under X are more than their sum.
    """
    effects = {}
    for place, name in list(enumerate(settings.prompts))[1:]:
        done = (values[:, place] - values[:, 0]).mean(axis=1)
        rated = (values[:, :, place] - values[:, :, 0]).mean(axis=1)
        same = values[:, place, place] - values[:, place, 0] - values[:, 0, place] + values[:, 0, 0]
        for kind, each in (("rated", rated), ("done", done), ("same", same)):
            effects[f"{kind} {name}"] = Estimate.of_mean(each)
    return effects


def _effects_finding(name: str, kind: str, effects: Mapping[str, Estimate], settings: SyspromptGridSettings) -> Finding:
    base, *others = settings.prompts
    said = "; ".join(f"{other} {plain(effects[f'{kind} {other}'], 3)}" for other in others)
    verb = "Being asked for the rating" if kind == "rated" else "Having done the task"
    null = [other for other in others if not effects[f"{kind} {other}"].differs_from(0)]
    sentence = f"{verb} under another system prompt than {base} moves it by {said} of a scale's length."
    if null:
        worst = max((effects[f"{kind} {other}"] for other in null), key=lambda each: each.se)
        sentence += null_note(worst, f"effect of {' or '.join(null)}", digits=3)
    return Finding(name, sentence, "sysprompt_effects")


def _interaction_finding(effects: Mapping[str, Estimate], settings: SyspromptGridSettings) -> Finding:
    _, *others = settings.prompts
    said = "; ".join(f"{other} {plain(effects[f'same {other}'], 3)}" for other in others)
    null = [effects[f"same {other}"] for other in others if not effects[f"same {other}"].differs_from(0)]
    note = null_note(max(null, key=lambda each: each.se), "interaction", digits=3) if null else ""
    return Finding(
        "Both at once", f"Done and rated under the same prompt, ratings differ from the sum of the two effects by {said}.{note}"
    )


def _leak_finding(written: Mapping[str, pd.DataFrame], settings: SyspromptGridSettings, kept: str, crossed: Crossed) -> Finding:
    leaks = ", ".join(f"{name} {n}" for name, n in leaked(written, settings.prompts).items())
    return Finding(
        "Completions",
        f"{kept} tasks have a usable completion under every prompt; completions that repeat their prompt: "
        f"{leaks}.{crossed.dropped_note}",
        "sysprompt_grid",
    )


if __name__ == "__main__":
    from experiments.cli import main

    sys.exit(main(["sysprompt_grid", *sys.argv[1:]]))
