"""penchant capture: tasks to residual streams, in an activation store that analyses and probes read."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from elicit import Context, Task, builtin_tasks, completion, load_tasks, sample_tasks, task_question
from experiments.commands.store import describe
from interp import LocalModel, capture
from store import MeasurementLog, Sampling


@dataclass(frozen=True)
class Shard:
    """One of `n` parts of the tasks, of equal size up to one task, which together are all of them in their order."""

    number: int
    n: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `i/n`.

        Raises
        ------
        ValueError
            It is none, or i is not from 0 to n - 1.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if not found or not int(found[1]) < int(found[2]):
            raise ValueError(f"--shard is {text!r}; expected i/n with i from 0 to n - 1, such as 0/8 for the first of eight.")
        return cls(int(found[1]), int(found[2]))

    def of(self, tasks: Sequence[Task]) -> list[Task]:
        """Its tasks.

        Raises
        ------
        ValueError
            There are fewer tasks than parts.
        """
        if len(tasks) < self.n:
            raise ValueError(f"{len(tasks)} tasks do not make {self.n} parts; expected at most {len(tasks)}.")
        return list(tasks[self.number * len(tasks) // self.n : (self.number + 1) * len(tasks) // self.n])

    def path(self, whole: Path) -> Path:
        """Its file, beside that of the whole."""
        return whole.with_name(f"{whole.stem}.{self.number}-of-{self.n}{whole.suffix}")


def main(arguments: Sequence[str]) -> int:
    """Run `penchant capture`."""
    import tyro
    from pydantic import BaseModel, ConfigDict, Field

    class Settings(BaseModel):
        model_config = ConfigDict(extra="forbid")
        out: Annotated[Path, Field(description="HDF5 file; one that was left unfinished is completed.")]
        model: Annotated[str, Field(description="smollm2-135m, a folder with a checkpoint, or a hub id.")] = "smollm2-135m"
        backend: Annotated[Literal["hf", "nnsight", "transformer_lens"], Field(description="What runs the model.")] = "hf"
        dtype: Annotated[
            Literal["auto", "float32", "bfloat16"],
            Field(description="Of the model: auto is float32 on a CPU, the checkpoint's on a GPU."),
        ] = "auto"
        device: Annotated[str, Field(description="auto, cpu, cuda, cuda:1, ...")] = "auto"
        store_dtype: Annotated[
            Literal["auto", "float32", "bfloat16"], Field(description="Of the file: auto is the model's.")
        ] = "auto"
        tasks: Annotated[Path | None, Field(description="JSONL, CSV or Parquet of tasks; default: the built-in ones.")] = None
        per_origin: Annotated[int | None, Field(description="Take so many tasks of each origin.")] = None
        seed: Annotated[int, Field(description="For sampling tasks and completions.")] = 0
        system: Annotated[
            str | None,
            Field(
                description="System prompt; left out: the chat template's own; '': explicitly none. A text in a file: "
                '--system "$(cat kind.txt)".'
            ),
        ] = None
        shard: Annotated[
            str | None,
            Field(
                description="Only part i of n of the tasks, i/n with i from 0, into a file of its own (acts.0-of-8.h5): one "
                "job each. penchant store merge joins them."
            ),
        ] = None
        layers: Annotated[tuple[str, ...], Field(description="Indices, fractions, ranges such as 5:20:5, embed, all.")] = (
            "0.25",
            "0.5",
            "0.75",
        )
        positions: Annotated[
            tuple[str, ...], Field(description="Such as prompt_last, task_mean, turn_boundary:-1..-5, completion_mean, all.")
        ] = ("prompt_last", "task_mean")
        complete: Annotated[
            int, Field(description="Let the model complete each task first, with at most so many tokens; read those too.")
        ] = 0
        log: Annotated[Path | None, Field(description="Measurement log for the completions; default: beside the store.")] = None
        unfit: Annotated[
            Literal["refuse", "skip"], Field(description="What to do with prompts longer than the model's context.")
        ] = "refuse"

    settings = tyro.cli(
        Settings,
        args=list(arguments),
        prog="penchant capture",
        description="Cache the residual streams of tasks in an activation store. Running it again completes the file.",
    )
    tasks = load_tasks(settings.tasks) if settings.tasks else builtin_tasks()
    if settings.per_origin is not None:
        tasks = sample_tasks(tasks, settings.per_origin, seed=settings.seed)
    out = settings.out
    if settings.shard is not None:
        part = Shard.parse(settings.shard)
        tasks, out = part.of(tasks), part.path(out)
    model = LocalModel.load(settings.model, backend=settings.backend, dtype=settings.dtype, device=settings.device)
    where = {"layers": settings.layers, "positions": settings.positions, "dtype": settings.store_dtype, "unfit": settings.unfit}
    ids = [task.id for task in tasks]
    if settings.complete:
        sampling = Sampling(max_new_tokens=settings.complete, seed=settings.seed)
        asked = completion.questions(tasks, context=Context(system=settings.system, sampling=sampling))
        with MeasurementLog(settings.log or out.with_suffix(".sqlite")) as log:
            store = capture(model, asked, ids, out, completions=log, **where)
    else:
        store = capture(model, [task_question(task, system=settings.system) for task in tasks], ids, out, **where)
    print(describe(store))
    return 0
