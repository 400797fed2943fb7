"""penchant direction make: a direction from an activation store, by task ids, labels, two conditions or variance alone."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from elicit import read_ids
from experiments.commands.direction import describe
from experiments.commands.direction_labels import of_held_tasks, read_labels, read_table
from interp import difference_of_means, paired_difference, preference_direction, principal_directions, probe_direction
from interp.probe_block import upper_class
from store import ActivationStore, Direction, layer_name
from store.directions import save
from store.layout import layer_number

Method = Literal["difference_of_means", "ridge", "logistic", "mass_mean", "bradley_terry", "pca"]
Place = tuple[int, str]
"""Layer and position."""

REFUSAL = "refusal"
"""Target whose tasks fall into two groups by themselves: refused in half of the completions or more, and complied with."""
_REFUSED = 0.5
_OF_GROUPS = ("difference_of_means", "logistic", "mass_mean")
"""Methods that tell two groups of tasks apart, so that labels can be cut in two for them."""

_DESCRIPTION = """Make a direction, a unit vector at one layer with its provenance, from cached activations and one of these:
- task ids: --store acts.h5 --above yes.txt --below no.txt --out v.safetensors
- labels: --store acts.h5 --labels runs/demo/tables/labels.parquet --target utility --method ridge --out v.safetensors
- refusals: --store acts.h5 --labels runs/refusal_correlation/tables/labels.parquet --target refusal --labels-by judge --out ...
- two system prompts: --store kind.h5 --against plain.h5 --out ..., after penchant capture --out kind.h5 --system "Be kind."
- how activations vary: --store acts.h5 --method pca --out ..."""


class Recipe(BaseModel):
    """What a direction is made from, and how."""

    model_config = ConfigDict(extra="forbid")

    out: Annotated[Path, Field(description="Where to; the name ends in .safetensors.")]
    store: Annotated[tuple[Path, ...], Field(description="Activations, as penchant capture writes them; shards are one store.")]
    layer: Annotated[
        str | None, Field(description="Such as L15, 15 or embed; it need not be said where the store has only one.")
    ] = None
    position: Annotated[
        str | None, Field(description="Such as task_mean; it need not be said where the store has only one with a row a task.")
    ] = None
    above: Annotated[Path | None, Field(description="File of ids, one a line, of the tasks that the direction leads to.")] = (
        None
    )
    below: Annotated[Path | None, Field(description="File of ids of the tasks that it leads away from.")] = None
    against: Annotated[
        tuple[Path, ...], Field(description="Store of the same tasks under the other condition, which it leads away from.")
    ] = ()
    labels: Annotated[Path | None, Field(description="Labels of tasks: a Parquet or CSV file, tables/labels of a run.")] = None
    target: Annotated[str | None, Field(description="Which of the labels, if there are several: utility, refusal, ...")] = None
    labels_by: Annotated[
        str | None,
        Field(description="Which labels of the target, if it was obtained in several ways: the method in the table."),
    ] = None
    method: Annotated[
        Method | None,
        Field(
            description="What is made of labels: a difference of means (between the tasks with the highest and the lowest "
            "thirds of labels; the default), what a probe of the kind reads, or pca, the first principal component of their "
            "tasks, which without --labels is that of all tasks."
        ),
    ] = None
    cut: Annotated[
        float | None,
        Field(
            description="Labels at or above it are one group, those below it the other: for difference_of_means, logistic and "
            "mass_mean. Of refusal it is 0.5; of other targets difference_of_means takes thirds, and probes cut at the median."
        ),
    ] = None
    choices: Annotated[
        Path | None, Field(description="Comparisons that a bradley_terry probe is fitted to: tables/comparisons of a run.")
    ] = None


def main(arguments: Sequence[str]) -> int:
    """Run `penchant direction make`."""
    import tyro

    recipe = tyro.cli(Recipe, args=list(arguments), prog="penchant direction make", description=_DESCRIPTION)
    if recipe.out.suffix != ".safetensors":
        raise ValueError(f"penchant direction make writes to {recipe.out}; expected a name that ends in .safetensors.")
    direction, differing = make(recipe)
    save(direction, recipe.out)
    print(describe({str(recipe.out): direction}))
    print(
        f"\n{differing}\nIt has no norm: it can be ablated, and to add it measure the norm where it is to push, with "
        f'store.directions.load: vector = model.calibrate(load("{recipe.out}"), questions, ["task_a", "task_b"])'
    )
    return 0


def make(recipe: Recipe) -> tuple[Direction, str]:
    """Make a direction; say how what it was made from differs.

    Raises
    ------
    ValueError, KeyError
        There is not exactly one source, a setting goes with another source, or what is named is not there.
    """
    source = _source(recipe)
    _check_settings(recipe)
    store = ActivationStore(recipe.store)
    place = _layer(store, recipe.layer), _position(store, recipe.position)
    match source:
        case "--above and --below":
            direction, differing = _of_ids(recipe, store, place)
        case "--labels":
            direction, differing = _of_labels(recipe, store, place)
        case "--against":
            return _of_conditions(recipe, store, place)
        case _:
            direction, differing = _of_variance(store, place, None)
    return replace(direction, provenance={**direction.provenance, "store": store.name}), differing


def _source(recipe: Recipe) -> str:
    """The one source that is given."""
    given = {
        "--above and --below": recipe.above or recipe.below,
        "--labels": recipe.labels,
        "--against": recipe.against,
        "--method pca": recipe.method == "pca" and not recipe.labels,
    }
    named = [name for name, is_given in given.items() if is_given]
    if len(named) != 1:
        raise ValueError(
            f"The sources given are {' and '.join(named) or 'none'}; expected one of --above and --below, --labels, --against, "
            "or --method pca alone."
        )
    if named == ["--above and --below"] and not (recipe.above and recipe.below):
        raise ValueError(f"--{'below' if recipe.above else 'above'} is missing; expected ids of both groups.")
    return named[0]


def _check_settings(recipe: Recipe) -> None:
    """Refuse what another source or method would need, before anything is read."""
    method = recipe.method or "difference_of_means"
    misplaced = {
        "--target goes with --labels": recipe.target and not recipe.labels,
        "--labels-by goes with --labels": recipe.labels_by and not recipe.labels,
        "--cut goes with --labels": recipe.cut is not None and not recipe.labels,
        f"--method {method} goes with --labels": recipe.method not in (None, "pca") and not recipe.labels,
        f"--cut goes with --method {', '.join(_OF_GROUPS)}": recipe.cut is not None and method not in _OF_GROUPS,
        "--choices goes with --method bradley_terry": recipe.choices and method != "bradley_terry",
    }
    if wrong := [sentence for sentence, is_wrong in misplaced.items() if is_wrong]:
        raise ValueError(f"{wrong[0]}, which is not given.")
    if method == "bradley_terry" and not recipe.choices:
        raise ValueError("--method bradley_terry is fitted to choices; expected --choices, such as tables/comparisons.parquet.")


def _layer(store: ActivationStore, given: str | None) -> int:
    held = store.header.layers
    if given is None and len(held) == 1:
        return held[0]
    named = ", ".join(map(layer_name, held))
    if given is None:
        raise ValueError(f"{store.name} has the layers {named}; say which with --layer.")
    try:
        layer = layer_number(given)
    except ValueError as error:
        raise ValueError(f"{error} {store.name} has {named}.") from error
    if layer not in held:
        raise ValueError(f"{store.name} has no layer {layer_name(layer)}; it has {named}.")
    return layer


def _position(store: ActivationStore, given: str | None) -> str:
    held = [position for position in store.header.positions if position not in store.by_token]
    if given is None and len(held) == 1:
        return held[0]
    if given not in store.header.positions:
        what = "several positions" if given is None else f"no position {given!r}"
        raise ValueError(
            f"{store.name} has {what if held else 'no position with one row a task'}; expected --position, one of "
            f"{', '.join(held or store.header.positions)}{'' if held else ' with a reduction, such as _mean: capture it'}."
        )
    return given


def _of_ids(recipe: Recipe, store: ActivationStore, place: Place) -> tuple[Direction, str]:
    assert recipe.above and recipe.below
    above, below = (list(dict.fromkeys(read_ids(path))) for path in (recipe.above, recipe.below))
    direction = difference_of_means(store, *place, above, below)
    return direction, _apart(store, direction, f"tasks of {recipe.above.name}", f"of {recipe.below.name}")


def _of_conditions(recipe: Recipe, store: ActivationStore, place: Place) -> tuple[Direction, str]:
    direction = paired_difference(store, ActivationStore(recipe.against), *place)
    known = direction.provenance
    error = "" if known["se"] is None else f" (se {known['se']:.3g})"
    return direction, (
        f"{known['n']} tasks under both conditions, which differ by {known['length']:.3g}{error} on average: "
        f"{_share_of_norm(store, direction)}."
    )


def _of_variance(store: ActivationStore, place: Place, tasks: Sequence[str] | None) -> tuple[Direction, str]:
    direction = principal_directions(store, *place, tasks=tasks)[0]
    n, share = len(direction.provenance["tasks"]), direction.provenance["variance_share"]
    return direction, f"{n} tasks; the direction has {share:.0%} of their variance, and an arbitrary sign."


def _of_labels(recipe: Recipe, store: ActivationStore, place: Place) -> tuple[Direction, str]:
    assert recipe.labels
    labelled = read_labels(recipe.labels, recipe.target, recipe.labels_by)
    labels = of_held_tasks(labelled, store)
    target, method = str(labels["target"].iloc[0]), recipe.method or "difference_of_means"
    cut = _REFUSED if recipe.cut is None and target == REFUSAL and method in _OF_GROUPS else recipe.cut
    if cut is not None:
        _check_groups(labels, cut)
    if method == "pca":
        direction, differing = _of_variance(store, place, labels["task_id"].tolist())
    elif method == "difference_of_means":
        direction, differing = _between_groups(store, place, labels, cut)
    else:
        values = labels if cut is None else labels.assign(value=(labels["value"] >= cut).astype(float))
        choices = read_table(recipe.choices) if recipe.choices else None
        direction = probe_direction(store, values, *place, kind=method, choices=choices)
        differing = _read_off(direction, values)
    known: dict[str, Any] = {"target": target, "labels": str(recipe.labels)}
    known |= {"labels_by": sorted(labels["method"].unique()), **({} if cut is None else {"cut": cut})}
    if left_out := len(labelled) - len(labels):
        differing += f" {left_out} tasks with labels are left out, which {store.name} does not hold."
    return replace(direction, provenance={**direction.provenance, **known}), differing


def _check_groups(labels: pd.DataFrame, cut: float) -> None:
    values = labels["value"]
    n_above = int((values >= cut).sum())
    if n_above in (0, len(values)):
        raise ValueError(
            f"Of {len(values)} tasks {n_above} have {labels['target'].iloc[0]} at or above {cut:g} and {len(values) - n_above} "
            f"below; expected some of both. The values go from {values.min():g} to {values.max():g}: --cut sets the border."
        )


def _between_groups(store: ActivationStore, place: Place, labels: pd.DataFrame, cut: float | None) -> tuple[Direction, str]:
    """Difference of means between the tasks with the highest and the lowest labels, or on both sides of a cut."""
    target = labels["target"].iloc[0]
    if cut is None:
        direction = preference_direction(store, labels, *place)
        return direction, _apart(store, direction, f"tasks with the highest {target}", "with the lowest")
    above, below = (labels.loc[side, "task_id"].tolist() for side in (labels["value"] >= cut, labels["value"] < cut))
    method = "refused_less_complied" if target == REFUSAL else "difference_of_means"
    direction = difference_of_means(store, *place, above, below, method=method)
    return direction, _apart(store, direction, f"tasks with {target} at or above {cut:g}", "below")


def _apart(store: ActivationStore, direction: Direction, above: str, below: str) -> str:
    known = direction.provenance
    return (
        f"{len(known['above'])} {above}, {len(known['below'])} {below}; their means are {known['length']:.3g} apart: "
        f"{_share_of_norm(store, direction)}."
    )


def _share_of_norm(store: ActivationStore, direction: Direction) -> str:
    norms = store.norms().set_index(["layer", "position"])["mean_norm"]
    norm = float(norms.loc[(direction.layer, direction.provenance["position"])])
    return f"{direction.provenance['length'] / norm:.1%} of the mean norm there, {norm:.3g}"


def _read_off(direction: Direction, labels: pd.DataFrame) -> str:
    """How many tasks a probe was fitted to, and its held-out error beside that of knowing no activations."""
    known, values = direction.provenance, labels["value"].to_numpy(dtype=float)
    n, upper = len(values), int(upper_class(values).sum())
    n_tasks = (
        f"{n} tasks"
        if known["method"] == "ridge_probe"
        else f"{n} tasks, {upper} in the upper class and {n - upper} in the lower"
    )
    if "errors" not in known:
        return f"{n_tasks}."
    error = known["errors"][known["alphas"].index(known["alpha"])]
    match known["method"]:
        case "ridge_probe":
            said = f"squared error {error:.3g}, against {values.var() * (n / (n - 1)) ** 2:.3g} of the mean of the others"
        case "logistic_probe":
            share = upper / n
            blind = -share * np.log(share) - (1 - share) * np.log(1 - share)
            said = f"log loss {error:.3g}, against {blind:.3g} of the share of the classes alone"
        case _:
            n_tasks, said = f"{n} tasks", f"log loss of a choice {error:.3g}, against {np.log(2):.3g} of a coin"
    return f"{n_tasks}; held-out {said} (alpha {known['alpha']:g} was chosen by it)."
