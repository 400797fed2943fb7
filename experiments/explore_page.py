"""The page of `explore`: everything joined by task id, as one HTML file that asks no network for anything.

Texts and labels are from anywhere. They travel as JSON, with every character escaped that could end or begin markup, and the
scripts put them on the page as text. A content security policy lets no other script run, and nothing be fetched.
"""

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from experiments.explored import Explored
from experiments.findings import Finding
from experiments.hand_labels import TaskLabel
from experiments.task_tables import OrderFlips, PreferredRefused, SaidAndChosen

_SCRIPTS = ("scales.js", "filters.js", "map.js", "tables.js", "explore.js")
_STYLE = "explore.css"
_TEMPLATE = "explore.html.j2"
_UNSAFE = re.compile("[<>&\u2028\u2029\ud800-\udfff]")
_LONGEST_TEXT = 20_000
_MOST_PAIRS = 20_000
_STOPS = 33
# Okabe and Ito's colours (2008), which people with any kind of colour vision tell apart; without black, for dark pages.
CATEGORIES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442")


def page(found: Explored, *, title: str, subtitle: str, findings: Sequence[Finding], methods: str) -> str:
    """The page as HTML."""
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    script = '"use strict";\n(() => {\n' + "\n".join(_asset(name) for name in _SCRIPTS) + "\n})();"
    style = _asset(_STYLE)
    return environment.from_string(_asset(_TEMPLATE)).render(
        title=title,
        subtitle=subtitle,
        findings=findings,
        methods=methods,
        map_said=found.map.said if found.map else "",
        style=Markup(style),
        script=Markup(script),
        style_hash=Markup(_hash(style)),
        script_hash=Markup(_hash(script)),
        payload=Markup(embedded_json(payload(found))),
    )


def embedded_json(value: Any) -> str:
    """JSON that may stand inside a script element: nothing in it can end the element, or begin another."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def payload(found: Explored) -> dict[str, Any]:
    """What the scripts read: columns, with tasks as their numbers."""
    joined = found.joined
    near = found.map.near if found.map else pd.DataFrame()
    number = {task: place for place, task in enumerate(joined.ids)}
    places = [found.places.get(task) for task in joined.ids]
    texts = [joined.texts.get(task) for task in joined.ids]
    return {
        "id": joined.ids,
        "text": [text if text is None or len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]} ..." for text in texts],
        "x": [place and _short(place[0]) for place in places],
        "y": [place and _short(place[1]) for place in places],
        "map": found.map.said if found.map else "",
        "labels": [_label(label, joined.ids) for label in found.labels],
        "views": [
            {"name": view.name, "note": view.note, "members": [number[task] for task in view.members]} for view in found.views
        ],
        "pairs": [_pairs(name, flips, number) for name, flips in found.flips.items()],
        "crosses": [_cross(each, number) for each in found.crosses],
        "said": _said(found.said, number) if found.said else None,
        "near": [[_plain(value) for value in row] for row in near.itertuples(index=False)],
        "nearColumns": [str(name) for name in near.columns],
        "colours": {
            "sequential": _stops("viridis"),
            "diverging": _stops("coolwarm"),  # Moreland's (2009), even to the eye on both sides of its grey middle
            "categories": CATEGORIES,
        },
    }


def _label(label: TaskLabel, ids: Sequence[str]) -> dict[str, Any]:
    found = {"name": label.name, "kind": label.kind, "source": label.source, "method": label.method}
    aligned = label.table.reindex(list(ids))
    if label.kind == "number":
        values = aligned["value"].to_numpy(dtype=float)
        low, high, diverging = _range(values)
        found |= {"values": _shorts(values), "scale": [_short(low), _short(high)], "diverging": diverging}
        for end in ("low", "high"):
            if aligned[end].notna().any():
                found[end] = _shorts(aligned[end].to_numpy(dtype=float))
        return found
    present = aligned["value"].notna()
    if label.kind == "text":
        return found | {
            "values": [str(value) if there else None for value, there in zip(aligned["value"], present, strict=True)]
        }
    lists = label.values.map(lambda each: each if label.kind == "codes" else (each,))
    counts = lists.explode().value_counts()
    names = sorted(counts.index, key=lambda each: (-counts[each], str(each)))
    place = {name: row for row, name in enumerate(names)}
    rows = [
        [place[each] for each in (value if label.kind == "codes" else (value,))] if there else None
        for value, there in zip(aligned["value"], present, strict=True)
    ]
    return found | {"values": rows, "categories": names, "meanings": [label.meanings.get(each, "") for each in names]}


def _range(values: Float[np.ndarray, " tasks"]) -> tuple[float, float, bool]:
    """Ends of the colour scale, so that a few far out do not take all the colours; and whether zero is its middle."""
    known = values[np.isfinite(values)]
    if not len(known):
        return 0.0, 1.0, False
    low, high = np.quantile(known, [0.02, 0.98])
    if low < 0 < high:
        end = float(max(-low, high))
        return -end, end, True
    if high <= low:
        low, high = known.min(), known.max()
    return float(low), float(high) if high > low else float(low) + 1.0, False


def _pairs(name: str, flips: OrderFlips, number: Mapping[str, int]) -> dict[str, Any]:
    table = flips.pairs[flips.pairs["flips"]]
    table = table[table["task_1"].isin(number) & table["task_2"].isin(number)]
    strength = table[["when_first", "when_second"]].abs().min(axis=1)
    table = table.loc[strength.sort_values(ascending=False, kind="stable").index].head(_MOST_PAIRS)
    return {
        "run": name,
        "unit": flips.unit,
        "asked": len(flips.pairs),
        "flips": int(flips.pairs["flips"].sum()),
        "one": [number[task] for task in table["task_1"]],
        "two": [number[task] for task in table["task_2"]],
        "first": _shorts(table["when_first"].to_numpy()),
        "second": _shorts(table["when_second"].to_numpy()),
    }


def _cross(each: PreferredRefused, number: Mapping[str, int]) -> dict[str, Any]:
    members = [
        [
            number[task]
            for task in each.tasks.loc[(each.tasks["preferred"] == row) & (each.tasks["refused"] == column), "task_id"]
        ]
        for row in (True, False)
        for column in (True, False)
    ]
    return {"preference": each.preference, "refusal": each.refusal, "members": members}


def _said(said: SaidAndChosen, number: Mapping[str, int]) -> dict[str, Any]:
    columns = ("chosen", "said", "difference", "low", "high", "p_corrected", "rank_difference")
    return {
        "choice": said.choice,
        "report": said.report,
        "tested": said.tested,
        "tasks": [number[task] for task in said.tasks["task_id"]],
    } | {name: _shorts(said.tasks[name].to_numpy(dtype=float)) for name in columns}


# ---- the small change


def _shorts(values: Float[np.ndarray, " n"]) -> list[float | None]:
    return [_short(value) for value in values]


def _short(value: float) -> float | None:
    """Four digits, so that the page stays small; null where there is no number."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return _short(value) if isinstance(value, float) else value


def _stops(name: str) -> list[str]:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps[name](place)) for place in np.linspace(0, 1, _STOPS)]


def _asset(name: str) -> str:
    return (resources.files("experiments") / "page" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """As a content security policy names what may run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
