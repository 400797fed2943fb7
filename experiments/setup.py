"""The set-up that every experiment starts from: its settings, a run directory, the model, and the tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from elicit import Endpoint, Task, ask
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
