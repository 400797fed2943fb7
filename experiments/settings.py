"""Settings: every experiment is configured by one pydantic model, from a YAML file and the command line."""

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from elicit import Endpoint, Task, TaskError, builtin_tasks, load_hub_tasks, load_tasks, read_ids, sample_tasks, select_tasks
from elicit.endpoint_server import Server
from elicit.hub import PREFIX, PRESETS
from experiments.shipped import model_source
from interp import LocalModel, PromptWriter, load_intervention

_HUB_TASKS = 20_000
"""At most so many tasks of a data set on the hub are chosen from, the first ones."""


COMMAND_LINE = "the command line"
"""Where values are from that were given as flags; messages then name the flag."""


class ConfigError(ValueError):
    """A configuration is wrong; the message names the key, what was expected, and the nearest valid key."""


class RunSettings(BaseModel):
    """What every run has, with a model or without."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    QUICK: ClassVar[Mapping[str, Any]] = {}
    """What `--quick` changes: an experiment small enough for a look."""

    out: Path = Field(default=Path("runs"), description="Run directory. The same one continues, or repeats at no cost.")
    seed: int = Field(default=0, ge=0, description="Seeds every sample, design and bootstrap.")

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read settings from a YAML file.

        Raises
        ------
        ConfigError
            The file is missing or not a mapping, a key is unknown, or a value is not what was expected.
        """
        path = Path(path)
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except OSError as error:
            raise ConfigError(f"Cannot read the configuration {path}: {error.strerror}.") from error
        except yaml.YAMLError as error:
            raise ConfigError(f"{path} is not YAML: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{path} holds a {type(values).__name__}; expected keys and values, e.g. 'per_origin: 12'.")
        return cls.of(values, where=str(path))

    @classmethod
    def of(cls, values: dict[str, Any], where: str = "the configuration") -> Self:
        """Check values; see `read` for the errors."""
        try:
            return cls(**values)
        except ValidationError as error:
            raise ConfigError(explain(error, cls, where)) from error

    @classmethod
    def quick(cls) -> Self:
        """The defaults, with the changes of `--quick`."""
        return cls(**cls.QUICK)


class RespondentSettings(BaseModel):
    """A model behind an OpenAI-compatible server, asked instead of one on this machine."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    base_url: str | None = Field(
        default=None,
        description="Address of a server, such as http://127.0.0.1:8000/v1; without one, the model is loaded here.",
    )
    model: str | None = Field(default=None, description="Name under which the server knows the model.")
    tokenizer: str | None = Field(
        default=None,
        description="Folder or hub id of the model's tokenizer: prompts are then written here, and the server completes them "
        "as they are. For servers that do not go on with a begun answer (llama-cpp-python).",
    )
    api_key_env: str | None = Field(
        default=None, description="Environment variable that holds the key; the key itself is kept nowhere."
    )
    provider: str | None = Field(default=None, description="Who is to serve the model, where a host has several (OpenRouter).")
    concurrency: int = Field(default=8, ge=1, description="Requests under way at a time.")
    repeats: int = Field(
        default=1, ge=1, description="Calls for each exact answer, averaged: for servers that are not deterministic."
    )
    top_logprobs: int = Field(default=20, ge=1, description="How many of the likeliest tokens to ask for.")
    budget_tokens: int | None = Field(default=None, ge=1, description="The most tokens that this run may read and write.")
    budget_usd: float | None = Field(default=None, gt=0, description="The most that this run may cost, at price_per_million.")
    price_per_million: tuple[float, float] | None = Field(
        default=None, description="US dollars for a million tokens read and written."
    )

    @field_validator("base_url")
    @classmethod
    def _without_credentials(cls, base_url: str | None) -> str | None:
        if base_url is not None:
            Server(base_url, "any")
        return base_url

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.base_url is None) != (self.model is None):
            raise ValueError("base_url and model belong together; expected --respondent.base-url URL --respondent.model NAME")
        if self.budget_usd is not None and self.price_per_million is None:
            raise ValueError("budget_usd needs to know what tokens cost; expected --respondent.price-per-million READ WRITTEN")
        return self

    def endpoint(self) -> Endpoint | None:
        """The endpoint that these settings name, if they name one.

        Raises
        ------
        MissingModel
            There is no such tokenizer.
        """
        if self.base_url is None or self.model is None:
            return None
        write = PromptWriter.load(self.tokenizer) if self.tokenizer else None
        options = self.model_dump(exclude={"base_url", "model", "tokenizer"})
        return Endpoint(self.base_url, self.model, write=write, **options)


class Settings(RunSettings):
    """What all experiments that ask a model have in common."""

    model: str = Field(
        default="smollm2-135m",
        description="Embedded model, folder with a checkpoint or adapter, organism:NAME, or Hugging Face hub id.",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(default="auto", description="Dtype of weights and residual stream.")
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, ...")
    respondent: RespondentSettings = RespondentSettings()
    intervention: Path | None = Field(
        default=None, description="File with an intervention, or a steering vector; every model is asked under it."
    )
    dose: float | None = Field(default=None, description="How hard, instead of the dose that the intervention's file gives.")
    tasks: tuple[str, ...] = Field(
        default=("builtin",),
        min_length=1,
        description="One source or several: builtin, math, alpaca, wildchat, bailbench, hub:owner/name?text=prompt, or a "
        ".jsonl, .csv or .parquet file with columns id and text.",
    )
    include: Path | None = Field(default=None, description="File with the ids of the tasks to choose from, one a line.")
    exclude: Path | None = Field(default=None, description="File with the ids of tasks to leave out, one a line.")
    origins: tuple[str, ...] = Field(default=(), description="Origins to sample from; empty for all.")
    per_origin: int = Field(default=12, ge=1, description="Tasks sampled from each origin.")

    @property
    def respondent_name(self) -> str:
        """Name of the model that is asked, here or on a server."""
        return self.respondent.model or self.model

    def with_model(self, name: str) -> Self:
        """The same settings for another model: on this machine, or on the server that they name."""
        if self.respondent.base_url is None:
            return self.model_copy(update={"model": name})
        return self.model_copy(update={"respondent": self.respondent.model_copy(update={"model": name})})

    def load_model(self) -> LocalModel:
        """Load the model that these settings name, under the intervention that they name.

        Raises
        ------
        FileNotFoundError, ValueError
            The intervention cannot be read, or does not fit the model.
        ConfigError
            A server is to be asked, and what needs the model needs it here.
        """
        if self.respondent.base_url is not None:
            raise ConfigError(needs_weights(self))
        intervention = load_intervention(self.intervention, self.dose) if self.intervention else None  # before what takes long
        model = LocalModel.load(model_source(self.model), dtype=self.dtype, device=self.device)
        return model.steered(intervention) if intervention else model

    def load_respondent(self) -> LocalModel | Endpoint:
        """What these settings say is to be asked: a model loaded here, or one behind a server.

        Raises
        ------
        FileNotFoundError, ValueError
            See `load_model`; or an intervention on a model behind a server.
        """
        endpoint = self.respondent.endpoint()
        if endpoint and self.intervention:
            raise ConfigError(needs_weights(self, "An intervention"))
        return endpoint or self.load_model()

    @field_validator("dose")
    @classmethod
    def _dose_of_something(cls, dose: float | None, info: ValidationInfo) -> float | None:
        if dose is not None and info.data.get("intervention") is None:
            raise ValueError("a dose of no intervention; expected --intervention FILE with it")
        return dose

    @field_validator("tasks", mode="before")
    @classmethod
    def _one_or_several(cls, tasks: Any) -> Any:
        return (tasks,) if isinstance(tasks, str) else tasks

    def load_tasks(self) -> list[Task]:
        """Sample the tasks that these settings name."""
        return sample_tasks(self.available_tasks(builtin_tasks), self.per_origin, self.seed, self.origins or None)

    def available_tasks(self, builtin: Callable[[], list[Task]]) -> list[Task]:
        """Every task of the sources that these settings name, as far as it is not excluded.

        Parameters
        ----------
        builtin
            What the source `builtin` stands for.

        Raises
        ------
        TaskError
            A source cannot be read, or two of them use the same id.
        """
        found: dict[str, Task] = {}
        for source in self.tasks:
            for task in read_source(source, builtin):
                if task.id in found:
                    raise TaskError(
                        f"The id {task.id!r} in {source} was used before; tasks are joined by id, so each needs its own."
                    )
                found[task.id] = task
        include, exclude = (read_ids(path) if path else None for path in (self.include, self.exclude))
        return select_tasks(list(found.values()), include, exclude)


def needs_weights(settings: Settings, what: str = "") -> str:
    """Why a model behind a server does not do."""
    name = what or type(settings).__module__.rpartition(".")[2]
    return (
        f"{name} needs the model's weights, to read its activations or to steer it; a server ({settings.respondent.base_url}) "
        "can only be asked. Leave out --respondent, and give --model a checkpoint."
    )


def read_source(source: str, builtin: Callable[[], list[Task]] = builtin_tasks) -> list[Task]:
    """Read the tasks of one source, as `Settings.tasks` names it; `builtin` is what the source of that name stands for."""
    if source == "builtin":
        return builtin()
    if source in PRESETS or source.startswith(PREFIX):
        return load_hub_tasks(source, _HUB_TASKS)
    return load_tasks(source)


def explain(error: ValidationError, settings: type[BaseModel], where: str) -> str:
    """What is wrong with settings from `where`: each value, what was expected and the way out, a line each."""
    inside = "/".join(  # where flags are read, nested settings are checked by themselves
        name for name, field in settings.model_fields.items() if getattr(field.annotation, "__name__", "") == error.title
    )
    return "\n".join(_explain(problem, settings, where, inside) for problem in error.errors())


def _explain(problem: Any, settings: type[BaseModel], where: str, inside: str = "") -> str:
    key = ".".join([inside] * bool(inside) + [str(part) for part in problem["loc"]])
    if problem["type"] == "extra_forbidden":
        valid = _keys(settings)
        near = difflib.get_close_matches(key, valid, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {valid}."
        return f"Unknown key {key!r} in {where}: {hint}"
    wrong = f"{problem['msg'].removeprefix('Value error, ').rstrip('.')}."
    name = f"--{key.replace('_', '-')}" if where == COMMAND_LINE else f"{key} in {where}"
    if not problem["loc"]:  # of several values together, which the message names
        return wrong if where == COMMAND_LINE else f"In {where}: {wrong}"
    if key.startswith(("respondent", "rewriter")):  # an address may hold what should not be shown
        return f"{name}: {wrong}"
    if problem["type"] == "too_short":
        value, least = list(problem["input"]), problem["ctx"]["min_length"]
        return f"{name} is {value}; expected {least} or more. Name them, or leave {key} out for the default."
    return f"{name} is {problem['input']!r}: {wrong}"


def _keys(settings: type[BaseModel]) -> list[str]:
    """All keys, those of nested settings with a dot."""
    found: list[str] = []
    for name, field in settings.model_fields.items():
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            found += [f"{name}.{key}" for key in _keys(nested)]
        else:
            found.append(name)
    return found
