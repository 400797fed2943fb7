"""Explored: what `explore` looks at, read and counted before anything is written; and the selections worth saving."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from elicit import read_ids
from experiments.hand_labels import TaskLabel, number_label
from experiments.joined import Joined, join
from experiments.neighbourhoods import neighbourhoods
from experiments.side_by_side import LEAST_TASKS
from experiments.task_map import TaskRows, kept_neighbours, lay_out, of_activations, of_embeddings, of_words
from experiments.task_tables import (
    OrderFlips,
    PreferredRefused,
    SaidAndChosen,
    order_flips,
    preferred_refused,
    said_and_chosen,
)
from store import ActivationStore

if TYPE_CHECKING:
    from experiments.explore import ExploreSettings

_FLIPPING = 0.5
_RANKS_APART = 0.5
_REFUSAL = "refus"
_SELF_REPORTS = ("mean of scales", "rating")


@dataclass(frozen=True, eq=False)
class TaskMap:
    """Where tasks lie, and what is known of their neighbourhoods.

    Attributes
    ----------
    places
        By task id, of those that have a row.
    of, laid_out
        What the rows are, and how they came into the plane.
    k, kept
        So many nearest tasks, and the share of them that are nearest on the map too.
    near
        See `neighbourhoods`.
    """

    places: Mapping[str, tuple[float, float]]
    of: str
    laid_out: str
    k: int
    kept: float
    near: pd.DataFrame

    @property
    def said(self) -> str:
        """All of it in a line."""
        return f"{self.of}; {self.laid_out}"


@dataclass(frozen=True)
class View:
    """A saved selection of tasks: what it is called, what it means, and its tasks."""

    name: str
    note: str
    members: Sequence[str]


@dataclass(frozen=True, eq=False)
class Explored:
    """Everything that was read and counted.

    Attributes
    ----------
    labels
        In the order in which they are offered, the preference first; with those that the tables make.
    map, no_map
        The map; or why there is none.
    flips
        By run.
    """

    joined: Joined
    labels: Sequence[TaskLabel]
    map: TaskMap | None
    no_map: str
    flips: Mapping[str, OrderFlips]
    crosses: Sequence[PreferredRefused]
    said: SaidAndChosen | None

    @property
    def places(self) -> Mapping[str, tuple[float, float]]:
        """By task id, where it lies on the map."""
        return self.map.places if self.map else {}

    @property
    def views(self) -> list[View]:
        """The selections of tasks that are worth saving."""
        return _views(self.flips, self.crosses, self.said)


def explored(settings: "ExploreSettings") -> Explored:
    """Read and count what the settings name.

    Raises
    ------
    ValueError, KeyError, OSError, ImportError
        See `join`, and the maps of `experiments.task_map`.
    """
    stores = _stores(settings)
    ids = {run: [task for store in found for task in store.task_ids] for run, found in stores.items()}
    include = read_ids(settings.include) if settings.include else None
    joined = join(settings.runs, settings.labels, settings.tasks, ids, include)
    flips = {name: found for name, table in joined.comparisons.items() if (found := order_flips(table)) is not None}
    crosses, said = _crosses(joined, settings), _said(joined, settings)
    labels = _offered(joined, settings, flips, said)
    rows, without = _rows(settings, joined, stores)
    drawn = _map(rows, labels, joined, settings) if rows else None
    return Explored(joined, labels, drawn, without, flips, crosses, said)


def _map(rows: TaskRows, labels: Sequence[TaskLabel], joined: Joined, settings: "ExploreSettings") -> TaskMap:
    plane, laid_out = lay_out(rows.rows, settings.reduce, neighbours=settings.neighbours, seed=settings.seed)
    places = {task: (float(x), float(y)) for task, (x, y) in zip(rows.ids, plane, strict=True)}
    k = min(settings.k, len(rows.ids) - 1)
    near = neighbourhoods(rows, labels, joined.origins, k=k, permutations=settings.permutations, seed=settings.seed)
    return TaskMap(places, rows.said, laid_out, k, kept_neighbours(rows.rows, plane, k), near)


def _stores(settings: "ExploreSettings") -> dict[Path, list[ActivationStore]]:
    """By run, the activation stores in it."""
    found = {run: [ActivationStore(path) for path in sorted((run / "activations").glob("*.h5"))] for run in settings.runs}
    return {run: stores for run, stores in found.items() if stores}


def _rows(
    settings: "ExploreSettings", joined: Joined, stores: Mapping[Path, Sequence[ActivationStore]]
) -> tuple[TaskRows | None, str]:
    """What the map is of; or, where nothing was asked for and nothing is there, why there is none."""
    kind = settings.map
    if kind == "auto":
        kind = "embeddings" if settings.embeddings else "activations" if stores or settings.store else "words"
        if kind == "words" and not joined.texts:
            why = "the runs have no activations, and the texts of their tasks are not known. Give them with --tasks FILE."
            return None, why
    if kind == "embeddings":
        if settings.embeddings is None:
            raise ValueError(
                "A map of embeddings needs them; expected --embeddings FILE.npz, or a sentence-transformers model."
            )
        return of_embeddings(settings.embeddings, joined.ids, joined.texts), ""
    if kind == "words":
        return of_words(joined.ids, joined.texts, settings.seed), ""
    listed = [ActivationStore(settings.store)] if settings.store else [store for found in stores.values() for store in found]
    if not listed:
        raise ValueError(
            "None of the runs has activations; give a store with --store acts.h5 (penchant capture makes one), or take "
            "--map words."
        )
    known = set(joined.ids)
    most = max(listed, key=lambda store: len(known.intersection(store.task_ids)))
    return of_activations(most, joined.ids, settings.layer, settings.position), ""


def _preference(joined: Joined, settings: "ExploreSettings", beside: str = "") -> TaskLabel | None:
    """The label of preference that is named; else the first utility, of the run `beside` if that has one."""
    if settings.preference:
        return joined.label(settings.preference, "--preference")
    utilities = [label for label in joined.labels if label.target == "utility"]
    return next((label for label in utilities if label.source == beside), utilities[0] if utilities else None)


def _crosses(joined: Joined, settings: "ExploreSettings") -> list[PreferredRefused]:
    if settings.refusal:
        refusals = [joined.label(settings.refusal, "--refusal")]
    else:
        refusals = [each for each in joined.labels if each.kind == "number" and (each.target or each.name).startswith(_REFUSAL)]
    found = []
    for refusal in refusals:
        if preference := _preference(joined, settings, refusal.source):
            found.append(
                preferred_refused(
                    preference, refusal, preferred_above=settings.preferred_above, refused_above=settings.refused_above
                )
            )
    return [each for each in found if each is not None]


def _said(joined: Joined, settings: "ExploreSettings") -> SaidAndChosen | None:
    if settings.report:
        report = joined.label(settings.report, "--report")
    else:
        report = next((label for method in _SELF_REPORTS for label in joined.labels if label.method == method), None)
    preference = _preference(joined, settings, report.source) if report else None
    if preference is None or report is None:
        return None
    both = preference.table.index.intersection(report.table.index)
    if len(both) < LEAST_TASKS or min(label.values[both].nunique() for label in (preference, report)) < 2:
        return None  # of so few, or where all are alike, there is nothing to differ
    return said_and_chosen(preference, report, seed=settings.seed)


def _offered(
    joined: Joined, settings: "ExploreSettings", flips: Mapping[str, OrderFlips], said: SaidAndChosen | None
) -> list[TaskLabel]:
    """All labels, the preference first, with those that the tables make."""
    preference = _preference(joined, settings)
    made = [
        number_label(
            "order flips" if len(flips) == 1 else f"order flips ({name})",
            each.tasks.rename(columns={"rate": "value"}),
            name,
            method="share of pairs in which the order decides",
        )
        for name, each in flips.items()
    ]
    if said:
        table = said.tasks.rename(columns={"difference": "value"})
        made.append(number_label("said minus chosen", table, "explore", method="standard deviations over tasks"))
    first = [preference] if preference else []
    known = {label.name for label in joined.labels}
    rest = [label for label in joined.labels if label is not preference]
    return [*first, *rest, *(each for each in made if each.name not in known)]


def _views(flips: Mapping[str, OrderFlips], crosses: Sequence[PreferredRefused], said: SaidAndChosen | None) -> list[View]:
    """Saved selections of tasks."""
    views = []
    for name, each in flips.items():
        decided = each.tasks[each.tasks["rate"] >= _FLIPPING]["task_id"]
        which = "" if len(flips) == 1 else f" ({name})"
        views.append(View(f"order flips{which}", "Tasks in half of whose pairs, or more, the order decides.", list(decided)))
    for each in crosses:
        corners = {
            "prefers yet refuses": (True, True),
            "prefers and does": (True, False),
            "spurns and refuses": (False, True),
            "spurns and does": (False, False),
        }
        for name, (preferred, refused) in corners.items():
            part = each.tasks[(each.tasks["preferred"] == preferred) & (each.tasks["refused"] == refused)]
            note = (
                f"{each.preference} {'above' if preferred else 'up to'} {each.preferred_above:+.2f}, {each.refusal} "
                f"{'above' if refused else 'up to'} {each.refused_above:g}; {int(part['sure'].sum())} of them with both "
                "intervals clear of that."
            )
            views.append(View(f"{name} ({each.refusal})", note, list(part["task_id"])))
    if said:
        if said.tested:
            apart, how = said.tasks[said.tasks["apart"]], "by more than their errors (standardised, corrected over tasks)."
        else:
            apart = said.tasks[said.tasks["rank_difference"].abs() >= _RANKS_APART]
            how = f"by {100 * _RANKS_APART:.0f} % of the ranks or more; not tested, as they do not both have standard errors."
        for name, part in (("higher", apart[apart["difference"] > 0]), ("lower", apart[apart["difference"] < 0])):
            note = f"{said.report} is {name} than {said.choice} {how}"
            views.append(View(f"says one thing, chooses another: said {name}", note, list(part["task_id"])))
    return views
