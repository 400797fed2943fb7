"""A frozen table: every pair of some tasks, asked once in both orders and kept, to study statistics at no model cost.

`penchant freeze` makes one, as Parquet with its provenance in the schema's metadata. The one that is shipped holds all pairs of
60 built-in tasks.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Self

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from elicit import all_pairs, choice, order_averages
from elicit.designs import Pair
from experiments.publish import Source
from experiments.settings import Settings
from experiments.setup import Setup
from store.provenance import stamp

SHIPPED = "shipped"
_FILE = "frozen_choices.parquet"
_KEY = b"penchant_frozen_table"
_COLUMNS = ("first", "second", "template", "outcome", "mass", "refusal", "logit", "p_first")


class FreezeSettings(Settings):
    """Ask every pair of some tasks in both orders, exactly, and write the answers to a table."""

    out: Path = Field(default=Path("runs/freeze"), description="Run directory with the log. The same one continues.")
    per_origin: int = Field(default=10, ge=1, description="Tasks sampled from each origin.")
    wording: str = Field(default="would_rather", description="Template of the choices.")
    table: Path = Field(default=Path("runs/freeze/frozen_choices.parquet"), description="The table to write.")


@dataclass(frozen=True)
class FrozenTable:
    """Exact answers to every pair of some tasks, in both orders.

    Attributes
    ----------
    comparisons
        As from `choice.comparisons`.
    origins
        Origin of every task.
    provenance
        Model (`name`, `fingerprint`, `dtype`), `wording`, `command` that re-creates the table, `versions`.
    """

    comparisons: pd.DataFrame
    origins: Mapping[str, str]
    provenance: Mapping[str, Any]

    @classmethod
    def read(cls, name: str | Path = SHIPPED) -> Self:
        """Read a table: the one that is shipped, or a file of `penchant freeze`.

        Raises
        ------
        ValueError
            There is no such file, it is not a frozen table, or pairs are missing from it.
        """
        path = Path(str(resources.files("experiments") / _FILE)) if str(name) == SHIPPED else Path(name)
        if not path.exists():
            raise ValueError(f"There is no frozen table {path}; `penchant freeze --table {path}` makes one.")
        try:
            stored = pq.read_table(path)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path} is not a Parquet file: {error}.") from error
        described = (stored.schema.metadata or {}).get(_KEY)
        if described is None or not set(_COLUMNS) <= set(stored.column_names):
            raise ValueError(f"{path} is not a frozen table; `penchant freeze` makes one, {SHIPPED!r} is the one shipped.")
        meta = json.loads(described)
        table = cls(stored.to_pandas(), meta["origins"], meta["provenance"])
        n = len(table.task_ids)
        if len(table.comparisons) != n * (n - 1):
            raise ValueError(f"{path} has {len(table.comparisons)} answers about {n} tasks; expected all pairs in both orders.")
        return table

    def write(self, path: Path) -> None:
        """Write the table as Parquet."""
        meta = {"origins": dict(self.origins), "provenance": dict(self.provenance)}
        stored = pa.Table.from_pandas(self.comparisons[list(_COLUMNS)], preserve_index=False)
        stored = stored.replace_schema_metadata({**(stored.schema.metadata or {}), _KEY: json.dumps(meta).encode()})
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(stored, path, compression="zstd")

    @property
    def task_ids(self) -> list[str]:
        """The tasks, sorted."""
        return sorted(self.origins)

    @property
    def n_pairs(self) -> int:
        """Pairs with an answer on format in both orders."""
        return len(order_averages(self.comparisons))

    def answers(self, pairs: Sequence[Pair]) -> pd.DataFrame:
        """Comparisons of some pairs, each in both orders, in the order of the pairs."""
        both = [order for one, other in pairs for order in ((one, other), (other, one))]
        indexed = self.comparisons.set_index(["first", "second"])
        return indexed.loc[both].reset_index()

    def source(self) -> Source:
        """What results from this table are about."""
        model = {name: str(self.provenance[name]) for name in ("name", "fingerprint", "dtype")}
        n = len(self.task_ids)
        return Source(
            f"frozen table of {model['name']} ({model['dtype']}): all {n * (n - 1) // 2} pairs of {n} tasks, both orders",
            model,
            len(self.comparisons),
        )


def freeze(settings: FreezeSettings) -> FrozenTable:
    """Ask every pair, or find it in the log, and write the table."""
    setup = Setup.of(settings, settings.load_tasks())
    model = setup.model
    asked = choice.questions(setup.tasks, all_pairs([task.id for task in setup.tasks]), wording=settings.wording)
    comparisons = choice.comparisons(asked, setup.ask(asked, "all pairs"))
    comparisons = comparisons.sort_values(["first", "second"], ignore_index=True)
    defaults = FreezeSettings()
    changed = {
        name: value for name, value in settings if value != getattr(defaults, name) and name not in ("out", "table", "device")
    }
    flags = "".join(f" --{name.replace('_', '-')} {_flag(value)}" for name, value in changed.items())
    table = FrozenTable(
        comparisons,
        dict(setup.origins),
        {
            "name": model.identity.name,
            "fingerprint": model.fingerprint,
            "dtype": model.dtype,
            "wording": settings.wording,
            "command": f"penchant freeze{flags}",
            "versions": stamp(),
        },
    )
    table.write(settings.table)
    return table


def _flag(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
