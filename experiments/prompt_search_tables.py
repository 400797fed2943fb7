"""Tables of a search for prompts: every candidate with its scores, the arms at equal budget, labels, and the front as tasks."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from elicit import Task
from elicit.pareto import front, hypervolume
from elicit.prompt_search import NO_SCORE, Line, shared_budget
from elicit.rephrasing import Originals
from experiments.prompt_scores import Goal, Scorer, text_id


def candidate_table(
    lines: Sequence[Line], starts: Sequence[Sequence[Task]], originals: Originals, scorer: Scorer, held_out: Scorer
) -> pd.DataFrame:
    """One row per candidate, those that were dropped included."""
    rows = []
    for line in lines:
        own = starts[line.replicate]
        names = [own[n].id if n < len(own) else f"{line.name}-{line.replicate}-{n}" for n in range(len(line.candidates))]
        counted = iter(range(1, len(line.candidates) + 1))
        for each, on_front in zip(line.candidates, line.on_front, strict=True):
            scored = each.dropped in ("", NO_SCORE)
            rows.append(
                {
                    "id": names[each.number],
                    "arm": line.name,
                    "replicate": line.replicate,
                    "generation": each.generation,
                    "parent": None if each.parent is None else names[each.parent],
                    "start": names[each.start],
                    "origin": own[each.start].origin,
                    "operator": each.operator,
                    "draw": each.draw,
                    "text": each.text,
                    "dropped": each.dropped,
                    "scored_as": next(counted) if scored else None,
                    "kept": originals.kept(each.text, line.candidates[each.start].text),
                    "on_front": bool(on_front),
                    "text_id": text_id(each.text) if scored else None,
                }
            )
    # What another line scored is known of a text, but it is not this one's.
    table = pd.DataFrame(rows).astype({"scored_as": "Int64"}).merge(scorer.table, on="text_id", how="left")
    later = held_out.table.add_prefix("held_out_").rename(columns={"held_out_text_id": "text_id"})
    return table.merge(later, on="text_id", how="left").drop(columns="text_id")


def anchor_table(anchors: Sequence[Task], held_out: Sequence[Task]) -> pd.DataFrame:
    """The tasks that prompts were compared with, and what for."""
    rows = [
        (name, task.id, task.origin, task.text) for name, own in (("search", anchors), ("held out", held_out)) for task in own
    ]
    return pd.DataFrame(rows, columns=["used_for", "id", "origin", "text"])


def label_table(candidates: pd.DataFrame) -> pd.DataFrame:
    """Both scores of every scored prompt as labels: targets `preference` and `refusal`, in logits."""
    known = candidates[candidates["dropped"] == ""].drop_duplicates("id")
    margin = 1.96 * known["preference_se"]
    preference = pd.DataFrame(
        {
            "task_id": known["id"],
            "target": "preference",
            "value": known["preference"],
            "se": known["preference_se"],
            "low": known["preference"] - margin,
            "high": known["preference"] + margin,
            "n": known["anchors"],
            "method": "choice against anchors",
        }
    )
    declined = pd.DataFrame(
        {
            "task_id": known["id"],
            "target": "refusal",
            "value": known["refusal"],
            "se": np.nan,
            "low": np.nan,
            "high": np.nan,
            "n": 1,
            "method": "probability of opening by declining",
        }
    )
    return pd.concat([preference, declined], ignore_index=True)


def write_front(front: pd.DataFrame, path: Path, goal: Goal) -> None:
    """The front as a file for `--tasks`; where nothing is on it, there is no file."""
    path.unlink(missing_ok=True)
    rows = [
        {
            "id": row["id"],
            "text": row["text"],
            "origin": row["origin"],
            "topic": goal,
            "start": row["start"],
            "preference": row["preference"],
            "refusal_p": row["refusal_p"],
        }
        for row in front.to_dict("records")
    ]
    if rows:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def arm_table(candidates: pd.DataFrame, lines: Sequence[Line]) -> pd.DataFrame:
    """One row per arm and replicate, all at the number of scored prompts that every arm of the replicate reached.

    Returns
    -------
    `replicate, arm, budget, rewritings, hypervolume, held_out_hypervolume, on_front`. The held-out hypervolume is that of the
    prompts that are on the front by the scores of the search.
    """
    rows = []
    budgets = {r: shared_budget([line for line in lines if line.replicate == r]) for r in {line.replicate for line in lines}}
    for line in lines:
        budget = budgets[line.replicate]
        own = candidates[(candidates["arm"] == line.name) & (candidates["replicate"] == line.replicate)]
        counted = own[own["scored_as"].le(budget).fillna(False).astype(bool)]
        points = counted[["x", "y"]].to_numpy(dtype=float)
        best = counted[front(points) & (points > 0).all(axis=1)]
        rows.append(
            {
                "replicate": line.replicate,
                "arm": line.name,
                "budget": budget,
                "rewritings": int((own["generation"] > 0).sum()),
                "hypervolume": hypervolume(points),
                "held_out_hypervolume": hypervolume(best[["held_out_x", "held_out_y"]].to_numpy(dtype=float)),
                "on_front": len(best),
            }
        )
    return pd.DataFrame(rows)


def dropped_table(candidates: pd.DataFrame) -> pd.DataFrame:
    """How many rewritings of every arm were dropped for each reason; those that were scored are `scored`."""
    made = candidates[candidates["generation"] > 0]
    counts = pd.crosstab(made["dropped"].replace("", "scored"), made["arm"])
    return counts.assign(all=counts.sum(axis=1)).sort_values("all", ascending=False).rename_axis("reason").reset_index()


def joint_front(candidates: pd.DataFrame) -> pd.Series:
    """Which candidates are on the front of all arms and replicates together."""
    points = candidates[["x", "y"]].to_numpy(dtype=float)
    return pd.Series(front(points) & (points > 0).all(axis=1), index=candidates.index)
