"""The set-up that every experiment starts from: its settings, a run directory, the model, and the tasks."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Self

from elicit import Endpoint, Task, ask, rating
from experiments.run_directory import RunDirectory
from experiments.settings import ConfigError, Settings, needs_weights
from interp import LocalModel
from store import Answer, Question


@dataclass(frozen=True)
class Setup:
    """What an experiment works with."""

    settings: Settings
    run: RunDirectory
    respondent: LocalModel | Endpoint
    tasks: Sequence[Task]

    @classmethod
    def of(cls, settings: Settings, tasks: Sequence[Task]) -> Self:
        """Open the run directory and load the model, or name the server that is asked.

        Tasks are loaded by the caller, before: a wrong task file is then an error within a second.
        """
        respondent = settings.load_respondent()  # a model that is not there leaves no run directory behind
        return cls(settings, RunDirectory(settings), respondent, tasks)

    @property
    def model(self) -> LocalModel:
        """The model, for what needs more than its answers.

        Raises
        ------
        ConfigError
            It is behind a server.
        """
        if isinstance(self.respondent, Endpoint):
            raise ConfigError(needs_weights(self.settings))
        return self.respondent

    def with_others(self, names: Sequence[str]) -> Iterator[LocalModel | Endpoint]:
        """The respondent, then other models by name, where it is: each loaded here in its turn, or on the same server.

        Raises
        ------
        ConfigError
            A model is named twice.
        EndpointError, BudgetReached
            One cannot be asked. In a new run directory all models of a server are tried before any is asked.
        """
        twice = [name for name, times in Counter([self.settings.respondent_name, *names]).items() if times > 1]
        if twice:
            raise ConfigError(f"{', '.join(twice)}: named more than once; expected every model once, the respondent included.")
        if not isinstance(self.respondent, Endpoint):
            return chain([self.respondent], (self.settings.with_model(name).load_model() for name in names))
        served = [self.respondent, *map(self.respondent.with_model, names)]
        if not len(self.run.log):
            for each in served:
                _ = each.capabilities
        return iter(served)

    def check_can_rate(self, scales: Sequence[str], *respondents: LocalModel | Endpoint) -> None:
        """In a new run directory, find out whether servers can rate on these scales, before they are paid for texts to rate.

        Raises
        ------
        ValueError, EndpointError
            One cannot.
        """
        ratings = [question for scale in scales for question in rating.questions(self.tasks[:1], scale=scale)]
        for each in respondents or [self.respondent]:
            if isinstance(each, Endpoint) and not len(self.run.log):
                each.check_can_score(ratings)

    @property
    def origins(self) -> Mapping[str, str]:
        """Origin of every task."""
        return {task.id: task.origin for task in self.tasks}

    def ask_each(
        self, conditions: Mapping[str, Sequence[Question]], description: str
    ) -> dict[str, tuple[list[Question], list[Answer]]]:
        """Questions and answers of every condition, asked together so that they share what they have in common."""
        answers = iter(self.ask([question for asked in conditions.values() for question in asked], description))
        return {name: (list(asked), [next(answers) for _ in asked]) for name, asked in conditions.items()}

    def ask(self, questions: Sequence[Question], description: str) -> list[Answer]:
        """Answers of the model, from the run's log where it knows them."""
        return ask(questions, self.respondent, self.run.log, description=description)
