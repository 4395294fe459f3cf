"""Every code block of README.md and docs/*.md is in the table that says what shows it true."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest
from support.page_blocks import BLOCKS
from support.pages import ROOT, Configuration, NotRun, Shown, find_blocks, list_pages

from keyside_sidecar.config import parse_config

PAGES = list_pages()
# Reasons for not running a block, each looked at; a new one is added here on purpose.
REASONS = 10


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_classified_and_no_other(page: str) -> None:
    """A block that nobody has classified fails, and so does a line of the table without a block."""
    openings = Counter(block.opening for block in find_blocks(page))
    assert not [opening for opening, count in openings.items() if count > 1]
    assert set(openings) == set(BLOCKS.get(page, {}))


def test_the_table_has_no_page_that_is_not_there() -> None:
    assert not BLOCKS.keys() - set(PAGES)


def test_what_another_test_shows_is_shown_by_a_test_that_exists() -> None:
    for page, uses in BLOCKS.items():
        for opening, use in uses.items():
            if isinstance(use, Shown):
                file, _, name = use.by.partition("::")
                tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
                functions = {one.name for one in tree.body if isinstance(one, ast.FunctionDef)}
                assert name in functions, f"{page}: {opening}"


def test_what_is_not_run_has_a_reason_and_the_files_that_it_names_exist() -> None:
    reasons = {
        use.because for uses in BLOCKS.values() for use in uses.values() if isinstance(use, NotRun)
    }
    assert len(reasons) <= REASONS, "look at the new one, then raise the bound"
    for reason in reasons:
        for name in re.findall(r"tests/\S+\.py", reason):
            assert (ROOT / name).is_file(), reason


def test_every_configuration_on_a_page_loads() -> None:
    """With the daemon's own loader, and without a warning."""
    seen = 0
    for page in PAGES:
        for block in find_blocks(page):
            use = BLOCKS[page][block.opening]
            if isinstance(use, Configuration):
                text = use.around.replace("{block}", block.text)
                assert parse_config(text.encode(), Path("keyside.toml")).keys, block
                seen += 1
    assert seen >= 4


def test_blocks_are_found_fenced_and_indented_and_not_in_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "page.md").write_text(
        "Text\n\n    indented\n      more\n\nText\n```sh\nfenced\n```\n\n1. item\n\n"
        "    continued\n\n   ```toml\n   [inside]\n   ```\n\nText\n    no block\n"
    )
    monkeypatch.setattr("support.pages.ROOT", tmp_path)
    found = [(block.language, block.text) for block in find_blocks("page.md")]
    assert found == [("", "indented\n  more\n"), ("sh", "fenced\n"), ("toml", "[inside]\n")]
