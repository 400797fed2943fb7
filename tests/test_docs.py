"""The documentation runs: every Python block of README and docs, in order and as shown, on the embedded model."""

import re
import shlex
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from experiments.cli import COMMANDS, EXPERIMENTS, main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [page.name for page in PAGES]
LONG = (
    "tutorial.md",
    "concept_steering.md",
    "cross_probe.md",
    "experiments.md",
    "open_ended_steering.md",
    "probe_sweep.md",
    "steer_then_measure.md",
)
"""Their Python takes long, and other tests run the same experiments; `make test-all` runs it."""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.slow) if page.name in LONG else page for page in PAGES], ids=NAMES
)
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


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def links(page: Path) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", prose(page))


def anchors(page: Path) -> set[str]:
    """What the headings of a page are linked by, as GitHub makes it of them; a heading that returns gets a number."""
    found, seen = set(), Counter()
    for heading in re.findall(r"^#+ +(.+?)\s*$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_to_files_and_headings_that_exist(page):
    for target in links(page):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(linked), f"{page.name}: {target}; {linked.name} has {sorted(anchors(linked))}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_addresses_are_well_formed(page):
    for address in (target for target in links(page) if re.match(r"[a-z]+:", target)):
        parts = urlsplit(address)
        assert parts.scheme == "https" and re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", parts.netloc), f"{page.name}: {address}"
        assert re.fullmatch(r"[\w.~:/?#@!$&*+,;=%-]+", address), f"{page.name}: {address}"


def test_every_page_can_be_reached_from_the_readme():
    reached, ahead = set(), [ROOT / "README.md"]
    while ahead:
        page = ahead.pop()
        if page in reached:
            continue
        reached.add(page)
        paths = {target.partition("#")[0] for target in links(page)}
        ahead += [linked for path in paths if path.endswith(".md") and (linked := (page.parent / path).resolve()).exists()]
    assert not set(PAGES) - reached


def test_a_heading_is_linked_as_github_does_it(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A `b_c`: d, e?\n## Twice\n## Twice\n```sh\n# no heading\n```\n## [elicit](x.md) here\n")
    assert anchors(page) == {"a-b_c-d-e", "twice", "twice-1", "elicit-here"}


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
