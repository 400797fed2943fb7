"""Personas: tasks done under system prompts, and the completions that can be rated without giving the prompt away."""

from collections.abc import Mapping, Sequence

import pandas as pd

from elicit import Context, Task, completion
from elicit.context import unmentioned
from experiments.setup import Setup
from store import Sampling


def done_under(
    setup: Setup, tasks: Sequence[Task], prompts: Mapping[str, str], max_new_tokens: int, temperature: float
) -> dict[str, pd.DataFrame]:
    """What the model writes to every task under every system prompt, told not to mention it (`completion.completions`)."""
    sampling = Sampling(temperature, max_new_tokens=max_new_tokens, seed=setup.settings.seed)
    found = setup.ask_each(
        {
            name: completion.questions(tasks, context=Context(system=unmentioned(text), sampling=sampling))
            for name, text in prompts.items()
        },
        "completions",
    )
    return {name: completion.completions(*each).assign(done_under=name) for name, each in found.items()}


def usable(written: Mapping[str, pd.DataFrame], prompts: Mapping[str, str]) -> set[str]:
    """Tasks with a completion under every prompt, none of which repeats its prompt or is empty."""
    kept = [
        set(clean.loc[clean["text"].str.strip() != "", "task_id"])
        for name, table in written.items()
        for clean in [completion.without_leaks(table, prompts[name])]
    ]
    return set.intersection(*kept)


def leaked(written: Mapping[str, pd.DataFrame], prompts: Mapping[str, str]) -> dict[str, int]:
    """How many completions repeat the prompt that they were written under."""
    return {name: len(table) - len(completion.without_leaks(table, prompts[name])) for name, table in written.items()}
