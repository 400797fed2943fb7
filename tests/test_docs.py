"""The documentation runs: every Python block of README and docs, in order and as shown, on the embedded model."""

import re
import shlex
from pathlib import Path

import pytest

from experiments.cli import COMMANDS, EXPERIMENTS, main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [page.name for page in PAGES]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_python_blocks_run_as_shown(page, tmp_path, monkeypatch, embedded):
    from interp import LocalModel

    monkeypatch.chdir(tmp_path)
    loaded = LocalModel.load
    monkeypatch.setattr(
        LocalModel, "load", classmethod(lambda cls, name="smollm2-135m", **kw: loaded(name, **kw) if kw else embedded)
    )
    namespace: dict = {}
    for number, block in enumerate(blocks(page, "python")):
        exec(compile(block, f"{page.name}, block {number + 1}", "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_in_shell_blocks_exist_and_their_flags_parse(page, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    for line in "\n".join(blocks(page, "sh")).splitlines():
        words = shlex.split(line, comments=True)
        if not words or words[0] != "penchant":
            continue
        assert words[1] in (*EXPERIMENTS, *COMMANDS), line
        if words[1] in EXPERIMENTS:
            with pytest.raises(SystemExit) as stopped:
                main([*words[1:], "--help"])
            assert stopped.value.code == 0, line


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_and_figures_exist(page):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http", "mailto")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_experiment_has_a_page_with_a_figure():
    for name in EXPERIMENTS:
        page = ROOT / "docs" / f"{name}.md"
        assert re.search(r"!\[.+\]\(figures/.+\.png\)", page.read_text(encoding="utf-8")), name


def test_the_readme_loop_has_fifteen_lines_and_the_readme_shows_a_mode_of_ones_own_and_the_screen_of_the_demo():
    loop, mode = blocks(ROOT / "README.md", "python")
    assert len([line for line in loop.splitlines() if line.strip()]) <= 15
    assert "yield Question(" in mode
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make demo" in readme and "make test" in readme
    for name in ("Position bias", "Hold-out", "Self-report", "Probe: utility", "Steering: choice", "Report:"):
        assert name in readme
