"""penchant log: what a measurement log holds, and the way out of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd

from store import MeasurementLog


def main(arguments: Sequence[str]) -> int:
    """Run `penchant log`."""
    import tyro

    def command(
        action: tyro.conf.Positional[Literal["summary", "export", "merge"]],
        paths: Annotated[tuple[Path, ...], tyro.conf.Positional],
    ) -> tuple[str, tuple[Path, ...]]:
        """Summarise a measurement log, export it to Parquet, or merge logs.

        Parameters
        ----------
        action
            summary LOG; export LOG OUT.parquet; merge LOG ... OUT (answers that OUT has already stay as they are).
        paths
            Files.
        """
        return action, paths

    action, paths = tyro.cli(command, args=list(arguments), prog="penchant log")
    needed = {"summary": 1, "export": 2, "merge": 2}[action]
    if len(paths) < needed or (action != "merge" and len(paths) > needed):
        raise ValueError(
            f"penchant log {action} takes {needed} paths{' or more' if action == 'merge' else ''}; got {len(paths)}."
        )
    for path in paths[: 1 if action != "merge" else -1]:
        if not path.exists():
            raise ValueError(f"There is no measurement log {path}.")
    if action == "summary":
        with MeasurementLog(paths[0]) as log:
            print(_screen(log.summary()) if len(log) else f"{paths[0]} holds no answers.")
    elif action == "export":
        with MeasurementLog(paths[0]) as log:
            log.export(paths[1])
            print(f"{len(log):,} answers written to {paths[1]}")
    else:
        with MeasurementLog(paths[-1]) as log:
            for path in paths[:-1]:
                print(f"{log.merge(path):,} new answers from {path}")
    return 0


def _screen(summary: pd.DataFrame) -> str:
    """A line a kind of answer, texts to the left and dates to the minute; and from when to when all were given."""
    first, last = (moment[:16].replace("T", " ") for moment in (summary["first"].min(), summary["last"].max()))
    table = summary.drop(columns=["first", "last"]).rename(columns={"respondents": "models", "mean_mass": "mass"}).fillna("")
    for name in ("mode", "template", "outcome"):
        table[name] = table[name].astype(str).str.ljust(max(map(len, [name, *table[name].astype(str)])))
    formats = {"mass": lambda mass: f"{mass:.3f}" if mass != "" else ""}
    lines = table.to_string(index=False, formatters=formats, justify="left")
    n = int(summary["answers"].sum())
    return f"{lines}\n{n:,} answers, {first} to {last} (UTC); mass is the mean probability of the options together"
