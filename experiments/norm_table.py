"""The norm table: how hard one coefficient of an unscaled difference vector pushes, by layer and by what it was read from.

From the activations of the same tasks under two conditions, and the residual norms of the tokens that will be pushed.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.figure import Figure

from experiments import figures as plots
from experiments.findings import Finding, spaced
from interp.probe import task_rows
from store import ActivationStore, Direction, layer_name

_HALVINGS = 50
_LEAST_TASKS = 4
"""Fewer cannot be halved."""


def norm_table(
    above: ActivationStore,
    below: ActivationStore,
    directions: Mapping[tuple[int, str], Direction],
    steered_norms: Mapping[int, float],
    *,
    seed: int = 0,
) -> pd.DataFrame:
    """What coefficient 1 of every raw difference vector is, in doses, and why norms taken elsewhere mislead.

    Parameters
    ----------
    above, below
        The same tasks under two conditions.
    directions
        From `paired_difference`, by layer and selector (the position that it was read from).
    steered_norms
        By layer, the mean residual norm over the tokens that are pushed (`LocalModel.reference_norm`).

    Returns
    -------
    One row per layer and selector. `length` of the raw vector, and the standard error over tasks of the mean projection on
    it, `length_se`; `chance_length`, the root mean square length that as many tasks would give if the conditions did not
    differ on average; `split_half`, the mean cosine of the vectors of two random halves of the tasks; `steered_norm`; hence
    `dose_of_1` and `dose_of_2`, the doses that these coefficients are. `selector_norm` is the mean norm of the residuals that
    the selector reads, and `dose_of_1_at_selector` what the dose would be taken for if it were measured there. `cosine S` is
    with the direction of selector S at the same layer.
    """
    rows = []
    for (layer, selector), direction in directions.items():
        tasks = direction.provenance["tasks"]
        read = [task_rows(store, layer, selector, tasks).astype(np.float64) for store in (above, below)]
        length, steered = float(direction.provenance["length"]), float(steered_norms[layer])
        selector_norm = float(np.linalg.norm(np.concatenate(read), axis=1).mean())
        differences = read[0] - read[1]
        others = {name: each for (other_layer, name), each in directions.items() if other_layer == layer}
        rows.append(
            {
                "layer": layer,
                "selector": selector,
                "n": len(tasks),
                "length": length,
                "length_se": direction.provenance.get("se"),
                "chance_length": float(np.sqrt(differences.var(axis=0, ddof=1).sum() / len(tasks)))
                if len(tasks) > 1
                else np.nan,
                "split_half": split_half(differences, seed),
                "steered_norm": steered,
                "dose_of_1": length / steered,
                "dose_of_2": 2 * length / steered,
                "selector_norm": selector_norm,
                "dose_of_1_at_selector": length / selector_norm,
                **{f"cosine {name}": direction.cosine(other) for name, other in others.items()},
            }
        )
    return pd.DataFrame(rows).astype({"length_se": float})


def split_half(differences: Float[np.ndarray, "tasks d_model"], seed: int = 0) -> float:
    """Mean cosine of the mean differences of two random halves of the tasks; NaN for fewer than four tasks."""
    n = len(differences)
    if n < _LEAST_TASKS:
        return np.nan
    random = np.random.default_rng([seed, 5])
    orders = [random.permutation(n) for _ in range(_HALVINGS)]
    halves = np.stack([[differences[part].mean(axis=0) for part in (order[: n // 2], order[n // 2 :])] for order in orders])
    units = halves / np.linalg.norm(halves, axis=-1, keepdims=True)
    return float((units[:, 0] * units[:, 1]).sum(axis=-1).mean())


def norm_finding(table: pd.DataFrame, figure: str) -> Finding:
    """By how much pushes of one coefficient differ, layer by layer, and what a norm taken at the selector would say."""
    said, misled = [], []
    for layer, part in table.groupby("layer", sort=False):
        doses = part.set_index("selector")["dose_of_1"]
        ratio = f" ({doses.max() / doses.min():.1f} times as hard by one selector as by another)" if len(part) > 1 else ""
        said.append(f"{_listed(doses, '.1%')} at {layer_name(int(str(layer)))}{ratio}")
        at_selector = part.set_index("selector")["selector_norm"] / part.set_index("selector")["steered_norm"]
        misled.append(f"{_listed(at_selector, '.2f')} at {layer_name(int(str(layer)))}")
    means = table.groupby("selector", sort=False)["dose_of_1"]
    across = means.max() / means.min()
    layers = ""
    if table["layer"].nunique() > 1:
        layers = f" From layer to layer it changes {across.min():.1f} to {across.max():.1f} times."
    return Finding(
        "Norms",
        f"Coefficient 1 of the raw difference vector is a dose of {'; '.join(said)}; n={table['n'].min()} tasks.{layers} "
        f"{_chance(table)} The residuals that the selectors read have these shares of the norm of the tokens that are pushed: "
        f"{'; '.join(misled)}; a dose measured there would be wrong by as much.",
        figure,
        _rows(table),
    )


def _chance(table: pd.DataFrame) -> str:
    """How much of the lengths, and of the directions, is owed to which tasks there happen to be."""
    share, halves = table["chance_length"] / table["length"], table["split_half"]
    return (
        f"Tasks that differ by chance alone would give vectors of {100 * share.min():.0f} to {100 * share.max():.0f} % of "
        f"these lengths, the more the fewer they are; those of two halves of the tasks have cosines of {halves.min():+.2f} to "
        f"{halves.max():+.2f}."
    )


def _listed(values: pd.Series, form: str) -> str:
    cells = [(f"{value:{form}}".replace("%", " %"), spaced(name)) for name, value in values.items()]
    return ", ".join(f"{cell} ({name})" for cell, name in cells)


def _rows(table: pd.DataFrame) -> tuple[str, ...]:
    """A small table for the screen."""
    cosines = [str(name) for name in table if str(name).startswith("cosine ")]
    heads = (
        "length",
        "+-",
        "chance",
        "halves",
        "pushed",
        "1 is",
        "2 is",
        "read",
        *(_short(name.split(" ")[1]) for name in cosines),
    )
    margin = max(len(spaced(name)) for name in table["selector"]) + 7
    lines = ["".ljust(margin) + "".join(head.rjust(9) for head in heads)]
    for _, row in table.iterrows():
        cells = [f"{row['length']:.1f}", f"{row['length_se']:.1f}", f"{row['chance_length']:.1f}"]
        cells += [f"{row['split_half']:.2f}", f"{row['steered_norm']:.0f}"]
        cells += [f"{100 * row['dose_of_1']:.1f} %", f"{100 * row['dose_of_2']:.1f} %", f"{row['selector_norm']:.0f}"]
        cells += [f"{row[name]:.2f}" for name in cosines]
        name = f"{layer_name(int(row['layer'])).ljust(4)} {spaced(row['selector'])}"
        lines.append(name.ljust(margin) + "".join(cell.rjust(9) for cell in cells))
    return tuple(lines)


def _short(selector: str) -> str:
    """A selector without the span that it is of: `completion_mean` is `mean`."""
    return selector.removeprefix("completion_")


def shown_table(table: pd.DataFrame) -> pd.DataFrame:
    """The table as a report shows it: layers by name, doses in per cent of the norm of the tokens that are pushed."""
    doses = ["dose_of_1", "dose_of_2", "dose_of_1_at_selector"]
    percent = table[doses].mul(100).rename(columns=lambda name: f"{spaced(name)} (%)")
    named = table.drop(columns=doses).assign(layer=[layer_name(int(layer)) for layer in table["layer"]])
    return pd.concat([named, percent], axis=1)


def norm_figure(table: pd.DataFrame) -> Figure:
    """The dose that coefficient 1 is, by layer and selector, beside the norms of what is read and of what is pushed."""
    figure = Figure(figsize=(8.6, 3.9), layout="constrained")
    doses, norms = (plots.plain_style(axes) for axes in figure.subplots(1, 2))
    layers = list(dict.fromkeys(table["layer"]))
    selectors = list(dict.fromkeys(table["selector"]))
    width = 0.8 / len(selectors)
    for number, (colour, selector) in enumerate(zip(plots.CYCLE, selectors, strict=False)):
        part = table[table["selector"] == selector].set_index("layer").loc[layers]
        places = np.arange(len(layers)) + (number - (len(selectors) - 1) / 2) * width
        doses.bar(places, 100 * part["dose_of_1"], 0.9 * width, color=colour, label=spaced(selector))
        chance = 100 * part["chance_length"] / part["steered_norm"]
        label = "by chance alone" if selector == selectors[-1] else ""
        doses.hlines(chance, places - 0.45 * width, places + 0.45 * width, color="black", linewidth=1.5, label=label)
        norms.plot(range(len(layers)), part["selector_norm"], color=colour, marker="o", markersize=4, label=spaced(selector))
    pushed = table.drop_duplicates("layer").set_index("layer").loc[layers, "steered_norm"]
    norms.plot(range(len(layers)), pushed, color="black", marker="s", markersize=4, linestyle="--", label="tokens pushed")
    names = [layer_name(int(layer)) for layer in layers]
    for axes in (doses, norms):
        axes.set_xticks(range(len(layers)), names)
        axes.set_xlabel("layer (residual stream after the block)")
        axes.legend(fontsize=8, frameon=False)
    doses.set_ylabel("dose of coefficient 1\n(% of the mean norm of the tokens pushed)")
    norms.set_ylabel("mean residual norm")
    norms.set_ylim(0, None)
    doses.set_ylim(0, 1.35 * doses.get_ylim()[1])  # room for the legend
    n = int(table["n"].iloc[0])
    figure.suptitle(f"Unscaled difference vectors (n={n} tasks, each under two system prompts)", fontsize=10)
    return figure
