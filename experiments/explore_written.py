"""What `explore` leaves behind beside its page: tables of everything, those of the report, and the static figures."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.explore_findings import crosses_figure, flips_figure, map_figure, said_figure
from experiments.explored import Explored
from experiments.joined import ORIGIN, Joined
from experiments.report import Table
from experiments.run_directory import RunDirectory
from experiments.task_tables import top_and_bottom


def save_tables(run: RunDirectory, found: Explored, top: int) -> list[Table]:
    """Save all tables; those of the report are returned, with `top` tasks each."""
    joined, labels, said = found.joined, found.labels, found.said
    run.save_table("tasks", _everything(found))
    ends = {label.name: top_and_bottom(label, top) for label in labels if label.kind == "number"}
    whole = pd.concat([table.assign(label=name) for name, table in ends.items()], ignore_index=True) if ends else pd.DataFrame()
    whole = _with_texts(whole, joined)
    near = found.map.near if found.map else pd.DataFrame()
    tables = {"top_and_bottom": whole, "neighbourhoods": near}
    if found.flips:
        tables["order_flips"] = _stacked({name: each.tasks for name, each in found.flips.items()})
        tables["flipped_pairs"] = _stacked({name: each.pairs for name, each in found.flips.items()})
    if found.crosses:
        corners = [each.tasks.assign(preferred_by=each.preference, refused_by=each.refusal) for each in found.crosses]
        tables["preferred_refused"] = pd.concat(corners, ignore_index=True)
    if said:
        tables["said_and_chosen"] = said.tasks
    for name, table in tables.items():
        if len(table):
            run.save_table(name, table)
    report = [Table("Neighbours", "Held-out R² of the mean of the nearest tasks; chance, origin: permuted labels.", near)]
    first = next((label.name for label in labels if label.kind == "number"), "")
    if len(whole):
        shown = whole[whole["label"] == first].drop(columns="label")
        report.append(Table(f"Top and bottom by {first}", "With 95 % intervals.", shown))
    if found.flips:
        worst = tables["order_flips"].sort_values(["rate", "pairs"], ascending=False).head(top)
        note = "expected: if position were worth alike in all pairs."
        report.append(Table("Where the order decides", note, _with_texts(worst, joined)))
    for each in found.crosses:
        counts = each.counts.rename_axis(each.preference).reset_index()
        report.append(Table(f"Preferred by refused: {each.refusal}", "Tasks.", counts))
        both = each.tasks[each.tasks["preferred"] & each.tasks["refused"]][["task_id", "preference", "refusal", "sure"]]
        report.append(Table("Preferred, and yet refused", each.refusal, _with_texts(both.head(top), joined)))
    if said:
        furthest = said.tasks.sort_values("difference", key=abs, ascending=False).head(top)
        report.append(Table("Says one thing, chooses another", "Standardised over tasks.", _with_texts(furthest, joined)))
    return [table for table in report if len(table.frame)]


def _everything(found: Explored) -> pd.DataFrame:
    """One row a task: its place and all its labels."""
    ids = found.joined.ids
    places = np.array([found.places.get(task, (np.nan, np.nan)) for task in ids], dtype=float)
    columns = {"task_id": pd.Series(ids), "x": places[:, 0], "y": places[:, 1]}
    for label in found.labels:
        values = label.values.map("; ".join) if label.kind == "codes" else label.values
        columns[label.name] = columns["task_id"].map(values)
    return pd.DataFrame(columns)


def _with_texts(table: pd.DataFrame, joined: Joined) -> pd.DataFrame:
    if table.empty:
        return table
    texts = [joined.texts.get(str(task), "")[:160] for task in table["task_id"]]
    return table.assign(origin=table["task_id"].map(joined.origins), text=texts)


def _stacked(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    return pd.concat([table.assign(run=name) for name, table in tables.items()], ignore_index=True)


def figures_of(found: Explored) -> dict[str, Figure]:
    """The map in the colours of the preference, origins and what else there is; and a figure for each of the tables."""
    first = [label for label in found.labels if label.name in (ORIGIN, "said minus chosen")]
    shown = list(dict.fromkeys([*found.labels[:1], *first, *found.labels]))
    return {
        **({"map": map_figure(found.places, shown, found.map.said)} if found.map else {}),
        **({"flips": flips_figure(found.flips)} if found.flips else {}),
        **({"crosses": crosses_figure(found.crosses)} if found.crosses else {}),
        **({"said": said_figure(found.said, found.joined.origins)} if found.said else {}),
    }
