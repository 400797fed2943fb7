"""prompt_search: prompts that a model prefers to do yet refuses, or the reverse; searched for, beside random rewriting.

A model rewrites prompts, each rewriting gets two exact scores, and the best in both are rewritten again. Controls spend the
same budget with the same rewriter without choosing parents by their scores.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from pydantic import Field, model_validator

from elicit import Context, Endpoint, Task, completion, judge, refusal
from elicit.rephrasing import check_operators, operators
from elicit.templates import template
from experiments.prompt_scores import Goal
from experiments.prompt_search_figures import budget_figure, front_figure
from experiments.prompt_search_findings import (
    check_finding,
    differences,
    dropped_finding,
    front_finding,
    held_out_finding,
    kept_finding,
    search_finding,
)
from experiments.prompt_search_tables import anchor_table, arm_table, dropped_table, label_table, write_front
from experiments.prompt_searched import carry_out
from experiments.publish import Result, Source, publish
from experiments.report import Table
from experiments.settings import ConfigError, RespondentSettings, Settings
from experiments.setup import Setup
from interp import LocalModel
from store import Sampling, write_labels

Control = Literal["starts", "any"]


class RewriterSettings(RespondentSettings):
    """The model that rewrites, if it is not the one under test: another one on this machine, or one behind a server."""

    model: str | None = Field(
        default=None, description="Model that rewrites, here or, with base_url, on the server; default: the one under test."
    )

    @model_validator(mode="after")
    def _complete(self) -> "RewriterSettings":
        if self.base_url is not None and self.model is None:
            raise ValueError("base_url needs a model; expected --rewriter.base-url URL --rewriter.model NAME")
        if self.budget_usd is not None and self.price_per_million is None:
            raise ValueError("budget_usd needs to know what tokens cost; expected --rewriter.price-per-million READ WRITTEN")
        return self


class PromptSearchSettings(Settings):
    """Rewrite prompts, score them exactly, and rewrite the best again; beside random rewriting at the same budget."""

    QUICK: ClassVar[Mapping[str, Any]] = {
        "per_origin": 4,
        "anchors": 4,
        "replicates": 4,
        "n_starts": 3,
        "budget": 11,
        "n_checked": 8,
        "out": Path("runs/prompt_search_quick"),
    }

    out: Path = Field(
        default=Path("runs/prompt_search"), description="Run directory. The same one goes on after the last answer."
    )
    per_origin: int = Field(default=8, ge=1, description="Tasks sampled from each origin, to be anchors or starting prompts.")
    goal: Goal = Field(default="preferred_yet_refused", description="What is searched for.")
    rewriter: RewriterSettings = RewriterSettings()
    operators: tuple[str, ...] = Field(default=(), description=f"Ways to rewrite, of {', '.join(operators())}; default: all.")
    temperature: float = Field(default=0.8, gt=0, description="Of the rewritings.")
    max_new_tokens: int = Field(default=64, ge=8, description="Length of a rewriting.")
    least_words: int = Field(default=4, ge=1, description="A rewriting of fewer words is dropped.")
    most_words: int = Field(default=120, ge=1, description="A rewriting of more words is dropped.")
    minimum_kept: float = Field(
        default=0.0, ge=0, le=1, description="A rewriting that keeps less of its starting prompt is dropped (cosine, TF-IDF)."
    )
    replicates: int = Field(
        default=6, ge=2, description="Independent repetitions, each with its own starting prompts and draws."
    )
    n_starts: int = Field(default=4, ge=1, description="Starting prompts of a replicate.")
    budget: int = Field(default=28, ge=1, description="Prompts that an arm of a replicate may have scored, starts included.")
    batch: int = Field(default=4, ge=1, description="Rewritings of a generation.")
    survivors: int = Field(default=4, ge=1, description="How many of the best may be parents of the next generation.")
    controls: tuple[Control, ...] = Field(
        default=("starts",),
        min_length=1,
        description="Random rewriting of the starting prompts alone, or of any prompt so far.",
    )
    anchors: int = Field(default=6, ge=2, description="Tasks that every prompt is compared with; as many again are held out.")
    wording: str = Field(default="would_rather", description="Template of the choices.")
    held_out_wording: str = Field(default="pick_one", description="Template of the choices against the held-out anchors.")
    degree: int = Field(default=4, ge=2, description="Number of other tasks that each is compared with, to choose anchors by.")
    n_checked: int = Field(default=24, ge=2, description="Prompts whose completions are sampled, to check the refusal score.")
    n_draws: int = Field(default=2, ge=1, description="Completions of each of them.")

    def load_rewriter(self, respondent: LocalModel | Endpoint) -> LocalModel | Endpoint:
        """What rewrites: a server, another model loaded here, or the respondent itself."""
        if endpoint := self.rewriter.endpoint():
            return endpoint
        if self.rewriter.model is None:
            return respondent
        alone = {"model": self.rewriter.model, "respondent": RespondentSettings(), "intervention": None, "dose": None}
        return self.model_copy(update=alone).load_model()


SETTINGS = PromptSearchSettings


def run(settings: PromptSearchSettings) -> Result:
    """Run the experiment; what was asked before in the same directory is not asked again."""
    started = time.monotonic()
    tasks = settings.load_tasks()
    _check(settings, tasks)
    setup = Setup.of(settings, tasks)
    rewriter = settings.load_rewriter(setup.respondent)
    if not len(setup.run.log):
        _check_servers(setup.respondent, rewriter)
    searched = carry_out(setup, rewriter, settings)
    candidates = searched.candidates
    checked = _check_refusal(setup, candidates, settings)
    arms = arm_table(candidates, searched.lines)
    found, by_held_out = (differences(arms, name) for name in ("hypervolume", "held_out_hypervolume"))
    fronts = candidates[candidates["on_front"]].sort_values(["arm", "replicate", "preference"], ignore_index=True)
    joint = candidates[candidates["joint_front"]].drop_duplicates("text")
    reasons, labels = dropped_table(candidates), label_table(candidates)
    for name, table in (
        ("candidates", candidates),
        ("front", fronts),
        ("arms", arms),
        ("dropped", reasons),
        ("checked", checked),
        ("anchors", anchor_table(searched.anchors, searched.held_out_anchors)),
        ("tasks", candidates.drop_duplicates("id")[["id", "origin", "text"]]),
        ("labels", labels),
    ):
        setup.run.save_table(name, table)
    write_labels(labels, setup.run.path / "labels.parquet")
    write_front(joint, setup.run.path / "front.jsonl", settings.goal)
    shown = ["preference", "refusal_p", "kept", "arm", "origin", "operator", "text"]
    budget = int(arms["budget"].min())
    return publish(
        setup.run,
        Source.of(setup, refusal.questions([Task("front", joint["text"].iloc[0] if len(joint) else searched.starts[0])])[0]),
        experiment="prompt_search",
        findings=[
            search_finding(found, budget, settings.goal),
            held_out_finding(by_held_out, fronts),
            front_finding(joint, candidates, settings.goal),
            check_finding(checked, settings.seed),
            kept_finding(fronts),
            dropped_finding(candidates, reasons),
        ],
        figures={
            "prompt_search_front": front_figure(candidates, searched.yardstick, settings.goal),
            "prompt_search_budget": budget_figure(searched.lines),
        },
        tables=[
            Table(
                "Front",
                "Prompts that no other one found surpasses in both scores. preference: log-odds against the anchors, above the "
                "average starting prompt; refusal_p: probability of opening with a phrase of declining.",
                joint[shown],
            ),
            Table("Arms", "Of every replicate, at the same number of scored prompts.", arms),
            Table("Dropped", "Rewritings that were not scored, or have no scores, by reason.", reasons),
        ],
        methods=_methods(settings, rewriter, setup, len(searched.starts), budget),
        summary={
            "budget": budget,
            "differences": {name: {"estimate": each.estimate, "p": each.p} for name, each in found.items()},
            "held_out": {name: {"estimate": each.estimate, "p": each.p} for name, each in by_held_out.items()},
            "arms": arms.to_dict("records"),
            "dropped": reasons.to_dict("records"),
            "front": joint[["id", *shown]].to_dict("records"),
            "yardstick": {"centre": searched.yardstick.centre, "unit": searched.yardstick.unit},
        },
        seconds=time.monotonic() - started,
    )


def _check(settings: PromptSearchSettings, tasks: Sequence[Task]) -> None:
    """What can be wrong before a model is loaded."""
    for wording in (settings.wording, settings.held_out_wording):
        template("choice", wording)
    check_operators(settings.operators or list(operators()))
    if settings.least_words > settings.most_words:
        raise ConfigError(f"least_words is {settings.least_words} and most_words {settings.most_words}; expected no more.")
    if settings.budget < settings.n_starts:
        raise ConfigError(
            f"The budget is {settings.budget} scored prompts; expected at least the {settings.n_starts} starting prompts of a "
            "replicate, which are scored too. Give --budget or --n-starts."
        )
    needed = 2 * settings.anchors + settings.n_starts
    if len({task.text for task in tasks}) < max(needed, settings.degree + 1):
        raise ConfigError(
            f"There are {len(tasks)} tasks, which leaves no {settings.n_starts} starting prompts beside {settings.anchors} "
            f"anchors and as many held out; expected at least {max(needed, settings.degree + 1)} of different texts. Give "
            "--per-origin, more --tasks, or fewer --anchors."
        )


def _check_servers(respondent: LocalModel | Endpoint, rewriter: LocalModel | Endpoint) -> None:
    """Whether servers can do what will be asked of them; not for a run that goes on, which may have no more to ask."""
    if isinstance(rewriter, Endpoint):
        _ = rewriter.capabilities  # one that cannot be reached is an error before anything is asked
    if isinstance(respondent, Endpoint) and respondent.capabilities.log_probs and respondent.capabilities.prefill is None:
        raise ConfigError(
            f"{respondent.server.address} does not go on with a prefilled assistant turn, so the probability of opening with "
            "several words, as of declining, cannot be read. Search on a server that does, such as vLLM, or on a --model here; "
            "this one can still rewrite (--rewriter.base-url)."
        )


def _check_refusal(setup: Setup, candidates: pd.DataFrame, settings: PromptSearchSettings) -> pd.DataFrame:
    """Completions of the joint front and of a random sample, beside the exact score: how often they are refusals."""
    scored = candidates[candidates["dropped"] == ""].drop_duplicates("text")
    front = scored[scored["text"].isin(candidates.loc[candidates["joint_front"], "text"])].head(settings.n_checked // 2)
    others = scored.drop(front.index)
    places = np.random.default_rng([settings.seed, 2]).permutation(len(others))[: settings.n_checked - len(front)]
    chosen = pd.concat([front, others.iloc[np.sort(places)]])
    tasks = [Task(str(name), str(text)) for name, text in zip(chosen["id"], chosen["text"], strict=True)]
    context = Context(sampling=Sampling(1.0, max_new_tokens=40, seed=settings.seed), n_draws=settings.n_draws)
    asked = completion.questions(tasks, context=context)
    written = completion.completions(asked, setup.ask(asked, "completions"))
    judged = judge.questions(written, criterion="refusal")
    written["judge"] = judge.judgements(judged, setup.ask(judged, "judge"))["value"].to_numpy(dtype=float)
    written["phrases"] = [float(refusal.declines(text)) for text in written["text"]]
    means = written.groupby("task_id")[["phrases", "judge"]].mean()
    return chosen[["id", "joint_front", "refusal", "refusal_p", "text"]].merge(means, left_on="id", right_index=True)


def _methods(settings: PromptSearchSettings, rewriter: LocalModel | Endpoint, setup: Setup, n_starts: int, budget: int) -> str:
    who = "the model itself" if rewriter is setup.respondent else rewriter.identity.name
    controls = {"starts": "rewritings of starting prompts", "any": "rewritings of any prompt so far"}
    n_operators = len(settings.operators or operators())
    measured = (
        f"Preference is the mean log-odds, over both orders, of choosing the prompt (template {settings.wording}) against "
        f"{settings.anchors} anchor tasks spread over origins and utilities, less that of the average starting prompt; refusal "
        "the log-odds, from the raw probability, that the reply to the prompt opens with one of "
        f"{len(refusal.OPENINGS)} phrases of declining."
    )
    return (
        f"In each of {settings.replicates} replicates {settings.n_starts} starting prompts ({n_starts} in all) were rewritten "
        f"by {who} (temperature {settings.temperature:g}, {n_operators} instructions, evenly drawn), {settings.batch} a "
        f"generation, until {budget} prompts were scored in every arm. {measured} Scores are in standard deviations over "
        "starting prompts, and the hypervolume is the area, above the average starting prompt in both, that the scored prompts "
        f"dominate. In the search, parents are the better of two drawn from the {settings.survivors} best (prompts above the "
        "average in both first, by front and crowding distance); the controls at the same budget are "
        f"{' and '.join(controls[each] for each in settings.controls)}. Differences are paired over replicates, with Student's "
        "interval and the p of sign flips. Fronts were scored again against as many other anchors (template "
        f"{settings.held_out_wording}) and with the prompt passed on by somebody else."
    )


if __name__ == "__main__":
    from experiments.cli import main

    sys.exit(main(["prompt_search", *sys.argv[1:]]))
