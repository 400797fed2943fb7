"""A contrast: what is written about the same tasks under two system prompts, and the directions between its activations.

The concept is what the prompts differ in. Activations are those of the completions that were really given, read after the
prompt that they were given under.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import pandas as pd

from elicit import Context, Task, completion
from elicit.context import unmentioned
from experiments.setup import Setup
from interp import Positions, capture, paired_difference
from store import ActivationStore, Direction, Question, Sampling, layer_name
from store.provenance import digest

LEAST_TASKS = 3
ABOVE, BELOW = "above", "below"


@dataclass(frozen=True)
class Contrast:
    """Tasks under two conditions.

    Attributes
    ----------
    written
        Every completion, with the condition it was `written_under`, and whether its task is `kept`.
    tasks
        Ids of the tasks kept: under either prompt, their completion is not empty and does not repeat the prompt.
    leaks
        By condition, how many completions repeat their prompt.
    stores
        By condition, the residual streams of the completions of these tasks.
    """

    written: pd.DataFrame
    tasks: Sequence[str]
    leaks: Mapping[str, int]
    stores: Mapping[str, ActivationStore]

    @classmethod
    def of(
        cls,
        setup: Setup,
        tasks: Sequence[Task],
        prompts: Mapping[str, str],
        wording: str,
        sampling: Sampling,
        layers: Sequence[int],
        selectors: Sequence[str],
    ) -> Self:
        """Have completions written under both prompts, with the instruction not to mention them, and read them.

        Parameters
        ----------
        prompts
            System prompts by condition, `above` and `below`.
        wording
            Of mode `completion`: what is asked.

        Raises
        ------
        ValueError
            A selector is not of these completions, or fewer than three tasks have a usable one under both.
        """
        asked = {
            name: completion.questions(tasks, wording=wording, context=Context(system=unmentioned(text), sampling=sampling))
            for name, text in prompts.items()
        }
        example = setup.model.render(next(iter(asked.values()))[0], "An answer.")
        for selector in selectors:
            Positions.parse(selector).tokens(example)  # a wrong one is an error before anything is asked
        found = setup.ask_each(asked, "completions")
        written = {
            name: completion.completions(*each).drop(columns="outcome").assign(written_under=name)
            for name, each in found.items()
        }
        clean = {name: completion.without_leaks(table, prompts[name]) for name, table in written.items()}
        usable = [set(table.loc[table["text"].str.strip() != "", "task_id"]) for table in clean.values()]
        kept = [task.id for task in tasks if all(task.id in each for each in usable)]
        leaks = {name: len(table) - len(clean[name]) for name, table in written.items()}
        if len(kept) < LEAST_TASKS:
            raise ValueError(
                f"{len(kept)} of {len(tasks)} tasks have a completion under both system prompts that is not empty and does not "
                f"repeat its prompt ({leaks}); expected at least {LEAST_TASKS}. Sample more tasks, or shorten the prompts."
            )
        stores = {}
        for name, questions in asked.items():
            texts = completion.texts(written[name])
            own = [(question, texts[_task(question)]) for question in questions if _task(question) in kept]
            path = setup.run.activations(
                model=setup.model.fingerprint,
                completions=digest([setup.model.prompt_digest(question) for question, _ in own], [text for _, text in own]),
                layers=list(layers),
                positions=list(selectors),
            )
            stores[name] = capture(
                setup.model,
                [question for question, _ in own],
                [_task(question) for question, _ in own],
                path,
                layers=[layer_name(layer) for layer in layers],
                positions=selectors,
                completions=[text for _, text in own],
            )
        table = pd.concat(written.values(), ignore_index=True)
        return cls(table.assign(kept=table["task_id"].isin(kept)), kept, leaks, stores)

    @property
    def usable(self) -> pd.DataFrame:
        """The completions of the tasks kept."""
        return self.written[self.written["kept"]].reset_index(drop=True)

    def directions(self, layers: Sequence[int], selectors: Sequence[str]) -> dict[tuple[int, str], Direction]:
        """From `below` to `above` within tasks, by layer and selector."""
        return {
            (layer, selector): paired_difference(self.stores[ABOVE], self.stores[BELOW], layer, selector, self.tasks)
            for layer in layers
            for selector in selectors
        }


def _task(question: Question) -> str:
    return str(question.measures["task"])
