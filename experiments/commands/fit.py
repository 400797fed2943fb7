"""penchant fit: utilities of comparisons that are on disk already, with labels and a report."""

from collections.abc import Sequence

from experiments.cli import COMMANDS, parse_settings
from experiments.fit import FitSettings, run


def main(arguments: Sequence[str]) -> int:
    """Run `penchant fit RUN`, which is `penchant fit --run RUN`."""
    rest = list(arguments)
    if rest and not rest[0].startswith("-"):
        rest = ["--run", *rest]
    print(run(parse_settings("fit", FitSettings, rest, COMMANDS["fit"])).screen)
    return 0
