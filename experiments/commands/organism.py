"""penchant organism: models whose preferences are known, since they were trained in; to list, to train and to evaluate."""

import sys
from collections.abc import Sequence

import pandas as pd

from experiments.cli import COMMANDS, parse_settings
from experiments.organisms import Organism, OrganismSettings, describe, train
from experiments.shipped import PREFIX, shipped

_HELP = """usage: penchant organism list
       penchant organism train --out FOLDER [--rule.name origins] [--rule.utilities math 2 harmful -2 ...] [--steps 150]
       penchant organism evaluate NAME [...]

list       the organisms that come with penchant; any command takes one as --model organism:NAME
train      plant preferences of your own in a model (minutes on a CPU): penchant organism train --help
evaluate   measure an organism and hold the measurement against its truth: penchant planted_preference --organism NAME"""


def main(arguments: Sequence[str]) -> int:
    """Run `penchant organism`."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_HELP)
        return 0
    action, rest = arguments[0], arguments[1:]
    match action:
        case "list":
            table = pd.DataFrame([describe(Organism.read(name)) for name in shipped()])
            print(table.to_string(index=False) if len(table) else "No organism is installed.")
            print(f"\nAny command takes one: --model {PREFIX}NAME")
            return 0
        case "train":
            settings = parse_settings("organism train", OrganismSettings, rest, COMMANDS["organism"])
            organism = train(settings)
            print("  ".join(f"{key}: {value}" for key, value in describe(organism).items()))
            print(f"Use it with --model {organism.folder}")
            return 0
        case "evaluate" if rest:
            from experiments.cli import run_experiment

            run_experiment("planted_preference", [f"--organism={rest[0]}", *rest[1:]])
            return 0
    print(_HELP, file=sys.stderr)
    return 2
