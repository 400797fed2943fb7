"""penchant capture: tasks to residual streams, in an activation store that analyses and probes read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from elicit import Context, builtin_tasks, completion, load_tasks, sample_tasks, task_question
from experiments.commands.store import describe
from interp import LocalModel, capture
from store import MeasurementLog, Sampling


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
    model = LocalModel.load(settings.model, backend=settings.backend, dtype=settings.dtype)
    where = {"layers": settings.layers, "positions": settings.positions, "dtype": settings.store_dtype, "unfit": settings.unfit}
    ids = [task.id for task in tasks]
    if settings.complete:
        sampling = Sampling(max_new_tokens=settings.complete, seed=settings.seed)
        asked = completion.questions(tasks, context=Context(system=settings.system, sampling=sampling))
        with MeasurementLog(settings.log or settings.out.with_suffix(".sqlite")) as log:
            store = capture(model, asked, ids, settings.out, completions=log, **where)
    else:
        store = capture(model, [task_question(task, system=settings.system) for task in tasks], ids, settings.out, **where)
    print(describe(store))
    return 0
