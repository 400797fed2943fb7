"""penchant freeze: every pair of some tasks, asked once and kept as a table for studies at no model cost."""

from collections.abc import Sequence

from elicit import position_bias
from experiments.cli import COMMANDS, parse_settings
from experiments.findings import position_finding
from experiments.frozen import FreezeSettings, freeze


def main(arguments: Sequence[str]) -> int:
    """Run `penchant freeze`."""
    settings = parse_settings("freeze", FreezeSettings, arguments, COMMANDS["freeze"])
    table = freeze(settings)
    print(f"{len(table.comparisons):,} answers about {len(table.task_ids)} tasks written to {settings.table}")
    print(position_finding(position_bias(table.comparisons)).sentence)
    return 0
