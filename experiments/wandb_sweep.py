"""W&B sweeps: the file from which `wandb agent` learns what to run, one configuration after the other."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import yaml

from experiments.wandb_content import plain
from experiments.wandb_sink import PROJECT

_PARAMETER_KEYS = {"value", "values", "probabilities", "distribution", "min", "max", "mu", "sigma", "q"}


def sweep_file(
    command: Sequence[str],
    parameters: Mapping[str, Sequence[Any] | Mapping[str, Any]],
    *,
    metric: str,
    goal: Literal["maximize", "minimize"],
    method: Literal["grid", "random", "bayes"] = "grid",
    project: str = PROJECT,
) -> str:
    """Text (YAML) of a W&B sweep, for `wandb sweep FILE`; each `wandb agent` then runs one configuration after the other.

    Parameters
    ----------
    command
        Program and fixed arguments, such as `["penchant", "probe_sweep", "--config", "probes.yaml"]`. The agent adds
        `--PARAMETER=VALUE`, and finds the program as a shell does; a Python file is run by `python`.
    parameters
        Values of each, or a distribution as W&B writes it: `{"min": 1e-3, "max": 1e3, "distribution": "log_uniform_values"}`.
    metric
        Name of a metric that the command logs.
    goal
        What to do with the metric.
    method
        How configurations are chosen; `grid` takes all of them, and needs values.
    project
        W&B project.

    Raises
    ------
    ValueError
        There is no command, no parameter, or a parameter that an agent cannot pass on or W&B would not accept.

    References
    ----------
    https://docs.wandb.ai/guides/sweeps/sweep-config-keys
    """
    if not command or not parameters:
        raise ValueError(f"A sweep needs a command and parameters; got {list(command)} and {dict(parameters)}.")
    program, *fixed = map(str, command)
    interpreter = ["${interpreter}"] if program.endswith(".py") else []
    sweep = {
        "program": program,
        "command": ["${env}", *interpreter, "${program}", *fixed, "${args}"],
        "project": project,
        "method": method,
        "metric": {"name": metric, "goal": goal},
        "parameters": {name: _parameter(name, values, method) for name, values in parameters.items()},
    }
    return yaml.safe_dump(sweep, sort_keys=False, allow_unicode=True, width=1000)


def _parameter(name: str, values: Sequence[Any] | Mapping[str, Any], method: str) -> dict[str, Any]:
    """One parameter of a sweep, as W&B writes it."""
    spec = plain(values if isinstance(values, Mapping) else {"values": list(values)})
    if unknown := spec.keys() - _PARAMETER_KEYS:
        raise ValueError(f"Parameter {name!r} has {sorted(unknown)}; expected values or some of {sorted(_PARAMETER_KEYS)}.")
    given = spec.get("values", [spec["value"]] if "value" in spec else None)
    if given is None and method == "grid":
        raise ValueError(f"Parameter {name!r} has no values, which method 'grid' needs; give some, or use 'random' or 'bayes'.")
    if given == []:
        raise ValueError(f"Parameter {name!r} has an empty list of values; give one at least.")
    for value in given or ():
        if isinstance(value, bool | list | dict) or value is None:
            raise ValueError(
                f"Parameter {name!r} has the value {value!r}, which an agent would pass as --{name}={value}; a sweep takes "
                "numbers and strings, one a configuration. Put anything else among the fixed arguments."
            )
    return spec
