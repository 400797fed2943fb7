"""Run directories made by hand, with tasks like those that people give: for what reads runs and asks no model."""

import json

import numpy as np
import pandas as pd

from store import write_labels

ORIGINS = ("art", "code", "law", "math")
SUBJECTS = {
    "art": (
        "a poem about the sea",
        "a song for two voices",
        "the plot of a comedy",
        "a haiku on autumn",
        "a portrait in words",
    ),
    "code": (
        "a parser for dates",
        "a test of the cache",
        "a loop without side effects",
        "a query over two tables",
        "a small shell",
    ),
    "law": ("a lease of one page", "the rights of a tenant", "a letter of complaint", "a clause on late payment", "a will"),
    "math": (
        "the sum of odd numbers",
        "a proof by induction",
        "the area of a ring",
        "an integral by parts",
        "two linear equations",
    ),
}
VERBS = ("Write", "Explain", "Check", "Improve", "Shorten", "Translate", "Compare", "Sketch", "Criticise", "Outline")
DETAILS = (
    "Keep it plain, and say why each step is there.",
    "It is for somebody who has never seen one before, so do not skip what seems obvious to you.",
    "I tried twice already and it came out wrong; the second attempt is what I would like you to look at first.",
    "Three paragraphs are enough.",
    "Please name what could go wrong, and how one would notice.",
    "Use no more than a hundred words, and end with a question.",
)


def made_tasks(n, seed=0):
    """Texts of different lengths, of four origins in turn."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(n):
        origin = ORIGINS[number % len(ORIGINS)]
        subject, verb = (str(random.choice(each)) for each in (SUBJECTS[origin], VERBS))
        details = random.choice(DETAILS, size=int(min(random.geometric(0.3), 12)))
        text = f"{verb} {subject}, number {number}. {' '.join(map(str, details))}"
        rows.append({"id": f"{origin}_{number:05d}", "text": text, "origin": origin})
    return pd.DataFrame(rows)


def labels_of(ids, values, target, method, se=0.1):
    values = np.asarray(values, dtype=float)
    margin = 1.96 * np.broadcast_to(se, values.shape)
    return pd.DataFrame(
        {"task_id": list(ids), "target": target, "value": values, "se": se, "low": values - margin, "high": values + margin}
        | {"n": 8, "method": method}
    )


def both_orders(ids, content, position, degree=4):
    """Comparisons of every task with the next ones, in both orders, with log-odds of content and position."""
    rows = []
    n, random = len(ids), np.random.default_rng(3)
    for one in range(n):
        for step in range(1, degree // 2 + 1):
            other = (one + step * 7) % n
            if one == other:
                continue
            p = position + random.normal(scale=0.3)
            lean = content[one] - content[other]
            rows += [(ids[one], ids[other], lean + p), (ids[other], ids[one], -lean + p)]
    table = pd.DataFrame(rows, columns=["first", "second", "logit"])
    return table.assign(p_first=1 / (1 + np.exp(-table["logit"])), outcome="chose", template="t")


def made_run(path, n=80, seed=0, tasks=None):
    """A run with utilities, self-reports, refusals, comparisons and the file of its tasks."""
    tasks = made_tasks(n, seed) if tasks is None else tasks
    random = np.random.default_rng(seed)
    ids, n = tasks["id"].tolist(), len(tasks)
    by_origin = tasks["origin"].map({"art": 0.8, "code": 0.2, "law": -0.9, "math": 0.0}).to_numpy()
    utility = by_origin + random.normal(scale=0.5, size=n)
    said = 0.6 * utility + random.normal(scale=0.6, size=n)
    refused = np.clip(random.beta(1, 6, n) + 0.5 * (tasks["origin"] == "law").to_numpy(), 0, 1).round(2)
    (path / "tables").mkdir(parents=True)
    labels = [
        labels_of(ids, utility, "utility", "least squares"),
        labels_of(ids, said, "self_report", "mean of scales", 0.2),
        labels_of(ids, refused, "refusal", "judge", 0.05),
    ]
    write_labels(pd.concat(labels, ignore_index=True), path / "tables" / "labels.parquet")
    both_orders(ids, utility, 0.4).to_parquet(path / "tables" / "comparisons.parquet", index=False)
    file = path / "tasks.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in tasks.to_dict("records")), encoding="utf-8")
    (path / "config.yaml").write_text(f"tasks: [{json.dumps(str(file))}]\n", encoding="utf-8")
    return path
