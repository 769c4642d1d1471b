"""The pages of docs/ name tests and files that there are."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted(ROOT.glob("docs/*.md"))


def functions_of(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_line_of_the_proof_names_tests_that_exist():
    named = re.findall(r"`(tests/\w+\.py)::(\w+)`", (ROOT / "docs/passivity.md").read_text())
    assert len(named) >= 30
    for file, test in named:
        assert test in functions_of(ROOT / file), f"{file} has no {test}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in link:
            assert (page.parent / link).is_file(), link
