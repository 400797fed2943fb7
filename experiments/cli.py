"""The `penchant` command: experiments by name, each configured by a YAML file and by flags."""

import contextlib
import difflib
import importlib
import io
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

EXPERIMENTS = {
    "demo": "The whole loop on a small model: ask, read, probe, steer, ask again.",
    "active_learning": "Utilities of many tasks from few comparisons, asked batch by batch until the ranking is stable.",
    "bail": "At every turn of a conversation, would the model leave? Beside conversations that nobody should leave.",
    "calibration": "Are the intervals and tests right? Studied on a frozen table of real answers, at no model cost.",
    "compare": "Runs, models, personas or imports side by side: what agrees, and what differs by task and by origin.",
    "concept_steering": "Push along what tells two system prompts apart, while doing under each prompt is rated under each.",
    "cross_probe": "Do probes of one target, wording, persona, layer or position read the others? By one direction?",
    "explore": "A map of the tasks coloured by any label, and the tasks that want a look, on one page that needs no network.",
    "open_ended_steering": "Open replies pushed along a concept, by unscaled coefficients and by doses, and the norms between.",
    "opt_out": "Which tasks would the model sooner not do? Beside requests that nobody should decline.",
    "planted_preference": "The whole pipeline on a model whose preferences were trained in, held against what they are.",
    "position_bias": "How much of a choice is its order of showing, template by template, and what one order alone is worth.",
    "prompt_search": "Prompts that a model prefers yet refuses, or the reverse: searched for, beside random rewriting.",
    "ranking_methods": "Which way of choosing comparisons ranks tasks with the fewest of them; judges whose truth is known.",
    "refusal_correlation": "Is what a model refuses what it would rather not do, or says it dislikes?",
    "scale_discrimination": "Which scales of self-report tell tasks apart (KL), and do so again in other words (ICC).",
    "seed_sensitivity": "What depends on chance: seeds of sampled answers beside exact ones, and seeds of the design.",
    "self_vs_cross": "Models, or steered views of one, rate each other's work and their own.",
    "probe_sweep": "Probes from every layer and position to every target, against their baselines, logged to W&B.",
    "steer_then_measure": "Steer along preference directions at several layers and doses, and ask choices and ratings again.",
    "sysprompt_grid": "System prompts while a task is done, crossed with system prompts while it is rated.",
    "sysprompt_variation": "How system prompts of six kinds move what is chosen over what.",
    "task_consistency": "Which tasks are answered alike from seed to seed, and whether templates, scales and models agree.",
    "template_sensitivity": "How far preferences depend on how they are asked, over a balanced sample of templates.",
    "thurstone_regularisation": "How far a spread per task must be held back, and whether it then predicts better than none.",
    "transitivity": "Do preferences go round in circles? Hard cycles of all pairs, beside what noise and coins would give.",
}
"""Experiments by name; each is a module with SETTINGS and run(settings)."""

_OWN_FLAGS = ("--quick", "--dry-run", "--config")
"""Flags of every experiment that are no settings."""

COMMANDS = {
    "list": "Name every experiment.",
    "preflight": "Say whether a model can answer the templates: penchant preflight MODEL.",
    "templates": "List, show and check wordings: penchant templates show choice:would_rather,language=fr.",
    "capture": "Cache residual streams of tasks in an activation store: penchant capture --out acts.h5.",
    "store": "What an activation store holds, and the way out of it: penchant store info acts.h5.",
    "direction": "Make directions, look at them, and export to llama.cpp: penchant direction show v.safetensors.",
    "organism": "Models whose preferences are known, since they were trained in: list, train, evaluate.",
    "log": "What a measurement log holds: penchant log summary runs/demo/measurements.sqlite.",
    "import": "Take over comparisons, utilities, activations or directions: penchant import comparisons c.csv --out runs/mine.",
    "fit": "Utilities of imported comparisons, and how far they can be trusted: penchant fit runs/mine.",
    "freeze": "Ask every pair of some tasks once, and keep the answers as a table: penchant freeze --table mine.parquet.",
    "inspect": "Show one answer of a log, token by token: penchant inspect KEY --log runs/demo/measurements.sqlite.",
}

_EPILOGUE = """
penchant EXPERIMENT --help        what an experiment does, and every setting
penchant EXPERIMENT --quick       a version of it that takes a few minutes on a laptop
penchant EXPERIMENT --dry-run     how many questions, tokens and minutes it would take, with any other flags; asks nothing
penchant EXPERIMENT --config F    settings from a YAML file; flags override it, e.g. --per-origin 20 --steer.doses -0.2 0.2
Answers, activations and reports go to the run directory (--out). Running the same again continues or repeats at no cost."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    warnings.formatwarning = _one_line
    try:
        status = _dispatch(arguments[0], arguments[1:]) if arguments else _print_help()
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("\nStopped. What was done so far is kept: the same command continues.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever reads what is printed has seen enough, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, KeyError, OSError, ImportError) as error:
        if os.environ.get("PENCHANT_TRACEBACK"):
            raise
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"penchant: {message}", file=sys.stderr)
        return 1


def _one_line(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> str:
    """A warning as people read it in a terminal: without the line of source that gave it."""
    return f"{category.__name__}: {message}\n"


def _print_help() -> int:
    print(_help())
    return 0


def _dispatch(name: str, rest: Sequence[str]) -> int:
    if name in ("-h", "--help", "help"):
        return _print_help()
    if name == "list":
        print(_table(EXPERIMENTS))
        return 0
    if name in COMMANDS:
        return importlib.import_module(f"experiments.commands.{name}").main(rest)
    if name not in EXPERIMENTS:
        near = difflib.get_close_matches(name, [*EXPERIMENTS, *COMMANDS], n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join([*EXPERIMENTS, *COMMANDS])}."
        raise ValueError(f"There is no experiment or command {name!r}; {hint}")
    run_experiment(name, rest)
    return 0


def run_experiment(name: str, arguments: Sequence[str]) -> None:
    """Configure an experiment from a YAML file and flags, run it (or only plan it), and print its screen."""
    module = importlib.import_module(f"experiments.{name}")
    rest = [argument for argument in arguments if argument != "--dry-run"]
    settings = parse_settings(name, module.SETTINGS, rest, EXPERIMENTS[name])
    if len(rest) < len(arguments):
        from experiments.dry_run import dry_run

        print(dry_run(module, settings).screen)
        return
    print(module.run(settings).screen)


def parse_settings(name: str, settings: type[Any], arguments: Sequence[str], line: str) -> Any:
    """Settings from `--config FILE`, if given, overridden by the other flags; `line` says what they are for.

    Raises
    ------
    ConfigError
        The file or a value is not what was expected.
    SystemExit
        Help was asked for, or a flag is unknown or cannot be read; tyro has said so.
    """
    import tyro

    rest, config = _take_config(list(arguments))
    quick = "--quick" in rest
    if quick and config:
        raise ValueError("--quick and --config both say what the settings are; give one of them.")
    if quick and not settings.QUICK:
        raise ValueError(f"{name} has no quick form; leave out --quick.")
    rest = [argument for argument in rest if argument != "--quick"]
    _check_own_flags(rest)
    defaults = settings.quick() if quick else settings.read(config) if config else settings()
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            found = tyro.cli(
                settings, args=rest, default=defaults, prog=f"penchant {name}", description=_description(name, line, settings)
            )
    except SystemExit as stopped:
        _explain_invalid(stopped, settings)
        sys.stderr.write(said.getvalue())
        raise
    sys.stderr.write(said.getvalue())
    if quick and getattr(found, "tasks", None) != getattr(settings(), "tasks", None) and "per_origin" in settings.QUICK:
        sample = f"--quick samples {found.per_origin} tasks of every origin of {', '.join(found.tasks)}"
        print(f"{sample}; --per-origin says how many.", file=sys.stderr)
    return found


def _explain_invalid(stopped: SystemExit, settings: type[Any]) -> None:
    """Raise a ConfigError if it was pydantic's that stopped tyro, which would print it in pydantic's words."""
    from pydantic import ValidationError

    from experiments.settings import COMMAND_LINE, ConfigError, explain

    error: BaseException | None = stopped
    while error is not None and not isinstance(error, ValidationError):
        error = error.__context__
    if error is not None:
        raise ConfigError(explain(error, settings, COMMAND_LINE)) from error


def _check_own_flags(arguments: Sequence[str]) -> None:
    """Flags that are taken before tyro sees them are none that it could suggest."""
    for argument in arguments:
        near = difflib.get_close_matches(argument, _OWN_FLAGS, n=1, cutoff=0.8)
        if argument.startswith("-") and near and argument != near[0]:
            raise ValueError(f"There is no flag {argument}; did you mean {near[0]}?")


def _take_config(arguments: list[str]) -> tuple[list[str], Path | None]:
    for place, argument in enumerate(arguments):
        if argument == "--config":
            if place + 1 == len(arguments):
                raise ValueError("--config needs a YAML file after it.")
            return arguments[:place] + arguments[place + 2 :], Path(arguments[place + 1])
        if argument.startswith("--config="):
            return arguments[:place] + arguments[place + 1 :], Path(argument.removeprefix("--config="))
    return arguments, None


def _description(name: str, line: str, settings: type[Any]) -> str:
    sampled = settings.QUICK.get("per_origin")
    look = f" or be those of a short look (--quick{f': {sampled} tasks of every origin' if sampled else ''})"
    plan = " --dry-run says how many questions, tokens and minutes it would take, and asks nothing."
    return (
        f"{line} Settings may come from a YAML file (--config FILE){look if settings.QUICK else ''}; the flags below override "
        f"them.{plan if name in EXPERIMENTS else ''}"
    )


def _help() -> str:
    return (
        "penchant: measure what a language model prefers, find it in the residual stream, and push on it.\n\n"
        f"Experiments:\n{_table(EXPERIMENTS)}\n\nCommands:\n{_table(COMMANDS)}\n{_EPILOGUE}"
    )


def _table(rows: dict[str, str]) -> str:
    width = max(map(len, [*EXPERIMENTS, *COMMANDS])) + 2
    return "\n".join(f"  {name.ljust(width)}{line}" for name, line in rows.items())


if __name__ == "__main__":
    sys.exit(main())
