"""penchant templates: list, show and check the wordings that questions are made from."""

import sys
from collections.abc import Sequence
from typing import Annotated, Literal

from elicit.templates import check_templates, modes, read_templates, template, templates


def main(arguments: Sequence[str]) -> int:
    """Run `penchant templates`."""
    import tyro

    def command(
        action: tyro.conf.Positional[Literal["list", "show", "check"]],
        what: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    ) -> tuple[str, tuple[str, ...]]:
        """List the modes with their axes, show templates as they are asked, or check wordings.

        A template's name is the level of the first axis and what differs from the defaults, for instance
        `choice:would_rather` or `choice:pick_one,language=fr,labels=12,format=xml`.

        Parameters
        ----------
        action
            list [MODE ...]; show MODE:NAME ...; check [FILE.yaml ...] (default: all that come with penchant).
        what
            Modes, names or files.
        """
        return action, what

    action, what = tyro.cli(command, args=list(arguments), prog="penchant templates")
    {"list": _list, "show": _show, "check": _check}[action](what)
    return 0


def _list(what: Sequence[str]) -> None:
    for mode in what or modes():
        wordings = templates(mode)
        print(f"{mode}")
        for axis, levels in wordings.axes.items():
            print(f"  {axis.ljust(12)} {', '.join(levels)}")


def _show(what: Sequence[str]) -> None:
    if not what:
        raise ValueError("Name what to show, for instance choice:would_rather; `penchant templates list` names all.")
    for name in what:
        mode, _, rest = name.partition(":")
        chosen = template(mode, rest)
        print(f"--- {mode}:{chosen.name}")
        for number, turn in enumerate(chosen.turns):
            print(f"[{'assistant' if number % 2 else 'user'}] {turn}")
        print(f"[answer begins] {chosen.prefill}")
        for option in chosen.options():
            forms = ", ".join(map(repr, option.forms))
            ends = f", ended by {', '.join(map(repr, option.terminators))}" if option.terminators else ""
            print(f"  {option.label} = {chosen.scale[option.label]:g}: {forms}{ends}")
        print(f"  least mass on these to count: {chosen.minimum_mass:g}")


def _check(what: Sequence[str]) -> None:
    found = [read_templates(path) for path in what] or [templates(mode) for mode in modes()]
    for wordings in found:
        print(f"{wordings.mode}: {check_templates(wordings):,} templates are well formed", file=sys.stdout)
