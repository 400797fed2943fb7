"""What is readable where utilities are made of features: each feature, and what the rule makes of them, by the same probes."""

from collections.abc import Sequence

import pandas as pd

from elicit import Task
from experiments.findings import Finding, scored
from experiments.organisms import Organism
from interp import ProbeSweep
from interp.probe import RESIDUAL

PLANTED = "planted"
"""Target of the planted utility, beside those of the features."""


def feature_labels(organism: Organism, tasks: Sequence[Task]) -> list[pd.DataFrame]:
    """Labels of the features, 0 and 1, and of the planted utility; none where utilities are not made of features."""
    rule = organism.rule
    columns = {name: [float(rule.cell(task)[place]) for task in tasks] for place, name in enumerate(rule.features)}
    if columns:
        columns[PLANTED] = [rule.utility(task) for task in tasks]
    known = {"se": 0.0, "n": 1, "method": "rule"}
    ids = [task.id for task in tasks]
    return [
        pd.DataFrame({"task_id": ids, "target": name, "value": values, "low": values, "high": values} | known)
        for name, values in columns.items()
    ]


def readable_table(sweep: ProbeSweep, organism: Organism, untouched: str) -> pd.DataFrame:
    """Held-out R2 of the features and of the planted utility in the organism and in another model, at the best layer of each.

    The stream before block 0 counts, as what the words give is readable too. The best of several layers is a little too good,
    for both models alike.
    """
    rows = []
    for target in (*organism.rule.features, PLANTED):
        tried = sweep.table[sweep.table["layer"].notna() & (sweep.table["target"] == target)]
        for model, features in ((organism.folder.name, RESIDUAL), (untouched, untouched)):
            part = tried[tried["features"] == features]
            best = part.iloc[int(part["r2"].to_numpy().argmax())]
            rows.append({"target": target, "model": model} | best[["layer_name", "r2", "r2_low", "r2_high", "n"]].to_dict())
    return pd.DataFrame(rows)


def features_finding(readable: pd.DataFrame) -> Finding:
    """What of a rule can be read, and in which model."""
    said = []
    for target, part in readable.groupby("target", sort=False):
        scores = " and ".join(f"{scored(row, 'r2')} in {row['model']}" for _, row in part.iterrows())
        said.append(f"{'their exclusive or, which was planted,' if target == PLANTED else target} {scores}")
    planted = readable[readable["target"] == PLANTED]
    above = planted.loc[planted["r2_low"] > 0, "model"].tolist()
    verdict = f"it is read in {' and '.join(above)}" if above else "it is read in neither"
    return Finding(
        "Readable: features",
        f"Held-out R² of each feature, of {planted['n'].iloc[0]:.0f} tasks of unseen topics: {'; '.join(said)}. As many tasks "
        f"are in each of the four cells, so no sum of the two features gives their exclusive or; {verdict}, going by intervals "
        "above zero at the best layer.",
    )
