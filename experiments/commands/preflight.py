"""preflight: before a run, whether a model can answer the templates at all, and how it reads them."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from elicit import (
    Endpoint,
    Task,
    bail,
    builtin_tasks,
    choice,
    choice_after,
    disjoint_pairs,
    judge,
    ranking,
    rating,
    sample_tasks,
)
from elicit.endpoint_limits import BudgetReached
from elicit.endpoint_server import EndpointError
from elicit.templates import TemplateError, template, templates
from experiments.settings import RespondentSettings
from interp import LocalModel
from store import Answer, Message, Outcome, Question

_TASKS_PER_ORIGIN = 2
_HERE = RespondentSettings()
_VERDICTS = {
    "off format": "get too little probability on their answers; most answers to them would be left out as off format.",
    "not all listed": "have answers that the server does not list; let it list more (--respondent.top-logprobs).",
    "cannot be asked": "need a begun answer, which is not gone on with there: write prompts here (--respondent.tokenizer)",
}
_REPLY = "Certainly. Here is a first attempt."
_JUDGED = ["task_id", "draw", "task", "task_a", "task_b", "text"]


@dataclass(frozen=True)
class Preflight:
    """What was found.

    Attributes
    ----------
    facts
        How the model reads a prompt.
    table
        One row per template: questions, mean and least mass on the options, share on format, and for choices the
        log-odds for the task shown first.
    tokens_per_second
        Speed of exact scoring, shared tokens counted as often as they were asked for.
    """

    facts: dict[str, str]
    table: pd.DataFrame
    tokens_per_second: float

    @property
    def screen(self) -> str:
        """What the command prints."""
        margin = max(map(len, self.facts)) + 2
        lines = [name.ljust(margin) + value for name, value in self.facts.items()]
        table = self.table.to_string(index=False, na_rep="", float_format="{:.2f}".format)
        counts = self.table["verdict"].value_counts()
        advice = [
            f"{counts[verdict]} of {len(self.table)} templates {meaning}"
            for verdict, meaning in _VERDICTS.items()
            if verdict in counts
        ] or ["Every template can be answered."]
        return "\n".join([*lines, "", table, "", *advice])


def preflight(respondent: LocalModel | Endpoint, names: Sequence[str] = ()) -> Preflight:
    """Ask a few questions with each template, in both orders, and describe how the model reads them.

    Parameters
    ----------
    names
        Templates as `mode:name`; `mode:` alone stands for the first axis of a mode. Default: choices and ratings.

    Raises
    ------
    EndpointError, ValueError
        The server cannot be asked, or tells no log-probabilities.
    """
    if isinstance(respondent, Endpoint) and not respondent.capabilities.log_probs:
        raise ValueError(
            f"{respondent.server.address} tells no log-probabilities of {respondent.server.model!r}, so there is no mass to "
            "look at. Its answers can be sampled: Context(sampling=Sampling(...), n_draws=...)."
        )
    tasks = sample_tasks(builtin_tasks(), _TASKS_PER_ORIGIN, seed=0)
    rows, n_tokens, started = [], 0, time.monotonic()
    for mode, name in _templates(names or ("choice:", "choice:labels=12", "choice:labels=ordinal", "rating:")):
        asked = TRIALS[mode](tasks, name)
        try:
            answers = respondent.score(asked)
        except ValueError as error:
            if not isinstance(respondent, Endpoint) or isinstance(error, EndpointError | BudgetReached):
                raise
            rows.append(_row(mode, name, [Answer(Outcome.ERROR, error=str(error)) for _ in asked]))  # needs a begun answer
            continue
        first = choice.comparisons(asked, answers)["logit"].mean() if mode == "choice" else np.nan
        rows.append(_row(mode, name, answers) | {"first_logit": first})
        if isinstance(respondent, LocalModel):
            n_tokens += sum(len(respondent.render(question).token_ids) for question in asked)
    seconds = time.monotonic() - started
    if isinstance(respondent, Endpoint):
        n_tokens = respondent.budget.read
        facts = _served_facts(respondent, seconds, choice.questions(tasks, _pairs(tasks)[:1])[0])
    else:
        facts = _facts(respondent, n_tokens / seconds)
    return Preflight(facts, pd.DataFrame(rows), n_tokens / seconds)


def _pairs(tasks: Sequence[Task]) -> list[tuple[str, str]]:
    return disjoint_pairs([task.id for task in tasks], seed=0)


def _replies(tasks: Sequence[Task]) -> dict[str, str]:
    return {task.id: _REPLY for task in tasks}


TRIALS: Mapping[str, Callable[[Sequence[Task], str], list[Question]]] = {
    "choice": lambda tasks, name: choice.questions(tasks, _pairs(tasks), wording=name),
    "rating": lambda tasks, name: rating.questions(
        tasks, scale=name, completions=_replies(tasks) if "when=after" in name else None
    ),
    "choice_after": lambda tasks, name: choice_after.questions(tasks, _pairs(tasks), _replies(tasks), wording=name),
    "ranking": lambda tasks, name: ranking.questions(tasks, [[task.id for task in tasks[:3]]], wording=name),
    "bail": lambda tasks, name: bail.questions(tasks[:4], method=name),
    "judge": lambda tasks, name: judge.questions(
        pd.DataFrame([(task.id, 0, task.text, task.text, tasks[0].text, _REPLY) for task in tasks], columns=_JUDGED),
        criterion=name,
    ),
}
"""What is asked to try a template, by mode."""


def _templates(names: Sequence[str]) -> list[tuple[str, str]]:
    found = []
    for each in names:
        mode, _, name = each.partition(":")
        if mode not in TRIALS:
            raise TemplateError(f"There is nothing to try of mode {mode!r} ({each!r}); expected one of {sorted(TRIALS)}.")
        wordings = templates(mode)
        found += [(mode, wordings.template(name).name)] if name else [(mode, every) for every in wordings]
    return found


def _row(mode: str, name: str, answers: Sequence[Answer]) -> dict[str, object]:
    masses = [answer.mass or 0.0 for answer in answers]
    on_format = float(np.mean([answer.outcome is Outcome.CHOSE for answer in answers]))
    return {
        "mode": mode,
        "template": name,
        "questions": len(answers),
        "mean_mass": float(np.mean(masses)),
        "least_mass": min(masses),
        "minimum": template(mode, name).minimum_mass,
        "on_format": on_format,
        "verdict": "ok" if on_format >= 0.9 else _why_not(answers),
    }


def _why_not(answers: Sequence[Answer]) -> str:
    if all(answer.outcome is Outcome.ERROR for answer in answers):
        return "cannot be asked"
    return "not all listed" if any("not listed" in (answer.error or "") for answer in answers) else "off format"


def _facts(model: LocalModel, tokens_per_second: float) -> dict[str, str]:
    renderer, layout = model.renderer, model.engine.layout
    rendered = model.render(Question((Message("user", "Hello."),)))
    written = "; the chat template writes what is needed" if renderer.has_chat_template else ""
    bos = "one, first in every prompt" if renderer.tokens.adds_bos else f"none added{written}"
    return {
        "model": f"{model.identity.name} ({model.identity.family}), fingerprint {model.fingerprint[:16]}",
        "size": f"{model.n_layers} layers, residual stream {model.d_model}, {model.dtype} on {model.device}",
        "context": f"{model.context_length or 'unknown'} tokens",
        "chat template": "its own" if renderer.has_chat_template else "none; plain 'User:' and 'Assistant:' are written",
        "system prompt": {"system turn": "a turn of its own", "first user turn": "opens the first user turn"}[
            renderer.system_role
        ],
        "thinking": "can be turned on and off (off here)" if renderer.knows_thinking else "not known to the chat template",
        "BOS": bos,
        "end of turn": ", ".join(renderer.decode([token_id], special=True) for token_id in renderer.end_of_turn_ids) or "none",
        "batches": {"packed": "packed, shared prefixes run once"}.get(layout, f"padded on the {layout}"),
        "speed": f"{tokens_per_second:,.0f} tokens/s of questions",
        "a prompt": repr(rendered.text),
    }


def _served_facts(endpoint: Endpoint, seconds: float, question: Question) -> dict[str, str]:
    able, spent = endpoint.capabilities, endpoint.budget
    begun = "as they are; prompts are written here" if able.prefill == {} and able.spaces else "yes"
    if able.prefill is None:
        begun = "no: a prefill is left out, and options of several tokens cannot be read (give --respondent.tokenizer)"
    elif not able.spaces:
        begun = "yes, but spaces at their end are dropped"
    return {
        "model": f"{endpoint.server.model} at {endpoint.server.address}, fingerprint {endpoint.fingerprint[:16]}",
        "log-probs": f"of the {able.top_k} likeliest tokens; of the others it is known that they are less probable",
        "begun answers": begun,
        "forced tokens": "yes, so that options are read that are not listed" if able.logit_bias else "no",
        "thinking": "turned off by chat_template_kwargs, as far as the template knows it"
        if able.template_options
        else "the server takes no template options; it thinks if it does by default",
        "speed": f"{spent.n_requests / seconds:.1f} requests/s, {spent.read / seconds:,.0f} tokens/s with what is shared",
        "spent": f"{spent.n_requests:,} requests, {spent.read:,} tokens read, {spent.written:,} written"
        + (f", {spent.spent_usd:.4f} USD" if spent.spent_usd else ""),
        "a prompt": repr(endpoint.shown(question)),
    }


def main(arguments: Sequence[str]) -> int:
    """Run `penchant preflight`; returns 0 if at least one template of each mode can be answered."""
    import tyro

    def command(
        model: tyro.conf.Positional[str] = "smollm2-135m",
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
        device: str = "auto",
        templates: tuple[str, ...] = (),
        respondent: RespondentSettings = _HERE,
    ) -> tuple[LocalModel | Endpoint, tuple[str, ...]]:
        """Say whether a model can answer the templates: on-format mass, order bias, system prompt, BOS, context, speed.

        Parameters
        ----------
        model
            Embedded model, folder with a checkpoint, or Hugging Face hub id.
        dtype
            Dtype of weights and residual stream.
        device
            auto, cpu, cuda, cuda:1, ...
        templates
            Which to try, as MODE:NAME, for instance choice:pick_one,language=fr; MODE: alone tries every level of its first
            axis. Default: the phrasings of choice with each kind of labels, and every scale of rating.
        respondent
            A model behind a server, tried instead of one on this machine.
        """
        _templates(templates)  # a wrong name is an error before the model is loaded
        return respondent.endpoint() or LocalModel.load(model, dtype=dtype, device=device), templates

    found = preflight(*tyro.cli(command, args=list(arguments), prog="penchant preflight"))
    print(found.screen)
    return 0 if found.table.groupby("mode")["verdict"].agg(lambda verdicts: (verdicts == "ok").any()).all() else 1
