"""penchant import: comparisons, utilities, activations and directions from elsewhere, in penchant's own files.

`import` is no name that a statement can import; the command loads this module by its name, as it does every other.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from experiments.commands.direction import describe as describe_directions
from experiments.commands.store import describe as describe_store
from experiments.imports import import_activations, import_comparisons, import_directions, import_labels
from experiments.imports.tables import mapping_of
from experiments.shipped import model_source
from store.provenance import ModelIdentity

_DESCRIPTION = """Take over what others measured. A file from elsewhere is not trusted: nothing in it is unpickled or run, and
what is wrong with it is named with its row."""

File = Annotated[Path, tyro.conf.Positional]


def main(arguments: Sequence[str]) -> int:
    """Run `penchant import`."""
    actions = {
        "comparisons": _comparisons,
        "utilities": _utilities,
        "activations": _activations,
        "directions": _directions,
    }
    said = tyro.extras.subcommand_cli_from_dict(actions, prog="penchant import", description=_DESCRIPTION, args=list(arguments))
    print(said)
    return 0


def _comparisons(
    file: File,
    out: Path,
    columns: tuple[str, ...] = (),
    outcomes: tuple[str, ...] = (),
    tasks: str | None = None,
) -> str:
    """Choices between two tasks: a row an answer, in CSV, TSV, JSON, JSONL, YAML or Parquet.

    Parameters
    ----------
    file
        The table.
    out
        Run directory, a new one; penchant fit makes utilities of what is there.
    columns
        Penchant's names and the file's: first=task_a second=task_b outcome=choice. In place of outcome: winner (an id),
        p_first, logit, or wins_first and wins_second (counts); or winner and loser alone. Further: weight, template, draw,
        mass, refusal.
    outcomes
        The file's values and what they are: A=first B=second tie=tie "no answer"=refused.
    tasks
        The tasks that were compared, a file or builtin: other ids are then an error, and origins are kept.
    """
    found = import_comparisons(
        file,
        out,
        columns=mapping_of(columns, "--columns"),
        outcomes=mapping_of(outcomes, "--outcomes", last=True),
        tasks=tasks,
    )
    table = found.table
    ends = table[["first", "second"]]
    n_pairs = len(set(map(frozenset, ends.itertuples(index=False))))
    counts = ", ".join(f"{count:,} {name}" for name, count in table["outcome"].value_counts().items())
    lines = [
        f"{len(table):,} answers about {n_pairs:,} pairs of {len(set(ends.to_numpy().ravel())):,} tasks ({counts}) written to "
        f"{out / 'tables' / 'comparisons.parquet'}",
        *found.notes,
        f"Next: penchant fit {out}",
    ]
    return "\n".join(lines)


def _utilities(file: File, out: Path, target: str = "utility", columns: tuple[str, ...] = (), tasks: str | None = None) -> str:
    """A value per task, such as fitted utilities or ratings: a row a task, in the same formats.

    Parameters
    ----------
    file
        The table.
    out
        Run directory; other targets that were imported there stay.
    target
        What the values are of.
    columns
        Penchant's names and the file's: task_id=id value=mu se=error. Further: low, high, n.
    tasks
        The tasks, a file or builtin: other ids are then an error, and origins are kept.
    """
    labels = import_labels(file, out, target=target, columns=mapping_of(columns, "--columns"), tasks=tasks)
    with_error = int(labels["se"].notna().sum())
    return (
        f"{len(labels):,} labels of {target} ({with_error:,} with a standard error) written to "
        f"{out / 'tables' / 'labels.parquet'}"
    )


def _activations(
    file: File,
    out: Path,
    arrays: tuple[str, ...] = (),
    task_ids: Path | None = None,
    id_column: str = "task_id",
    split: str | None = None,
    model: str | None = None,
    fingerprint: str | None = None,
    family: str = "unknown",
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> str:
    """Residual streams, a row a task: an npz, safetensors or Parquet file, or a Hugging Face data set saved to disk.

    Parameters
    ----------
    file
        File, or folder of a data set.
    out
        The activation store to write, such as acts.h5.
    arrays
        The file's names, and the layer and position that each is of: layer_15=L15/prompt_last. Arrays called like that
        themselves need no mapping.
    task_ids
        File with the ids of the rows, one a line, if the arrays come without.
    id_column
        Of a data set or Parquet file.
    split
        Of a data set that has several.
    model
        Whose activations these are. It is loaded to learn its fingerprint, unless that is given.
    fingerprint
        The model's fingerprint, as penchant store info shows it.
    family
        The model's architecture, beside a fingerprint.
    dtype
        float32, or bfloat16 to round.
    """
    store = import_activations(
        file,
        out,
        arrays=mapping_of(arrays, "--arrays"),
        task_ids=task_ids,
        id_column=id_column,
        split=split,
        model=_identity(model, fingerprint, family)[0],
        dtype=dtype,
    )
    return describe_store(store)


def _directions(
    file: File,
    out: Path,
    layer: str | None = None,
    model: str | None = None,
    fingerprint: str | None = None,
    family: str = "unknown",
) -> str:
    """Steering directions: a GGUF control vector of repeng or llama.cpp, or the .npy of one vector.

    Parameters
    ----------
    file
        The vectors.
    out
        Where to: v.safetensors for one vector, or a folder for a file a layer.
    layer
        Of a .npy, the layer that it is at (residual stream after the block); of a GGUF file, the one wanted.
    model
        Whose residual stream it is for. It is loaded to learn its fingerprint, width and layers, unless the fingerprint is
        given.
    fingerprint
        The model's fingerprint, as penchant store info shows it.
    family
        The model's architecture, beside a fingerprint.
    """
    identity, shape = _identity(model, fingerprint, family)
    written = import_directions(file, out, layer=layer, model=identity, shape=shape)
    return describe_directions({str(path): each for path, each in written})


def _identity(model: str | None, fingerprint: str | None, family: str) -> tuple[ModelIdentity | None, tuple[int, int] | None]:
    """The model that is named, and its number of blocks and width where it is loaded, as its fingerprint is not given."""
    if fingerprint:
        return ModelIdentity(model or "unknown", family, fingerprint), None
    if model is None:
        return None, None
    from interp import LocalModel

    loaded = LocalModel.load(model_source(model))
    return loaded.identity, (loaded.n_layers, loaded.d_model)
