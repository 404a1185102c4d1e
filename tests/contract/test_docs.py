"""What the documentation and the package docstrings say of the tree is true."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md")), *ROOT.glob("clients/*/*.md")]
PACKAGES = sorted(path for path in (ROOT / "server").rglob("__init__.py"))
_LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")
_CODE_PATH = re.compile(r"`((?:[\w-]+/)+[\w.-]+\.(?:py|lua|proto))`")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    assert [link for link in _LINK.findall(text) if not (page.parent / link).exists()] == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.parent.relative_to(ROOT).as_posix())
def test_packages_say_what_lives_in_them(package: Path) -> None:
    text = ast.get_docstring(ast.parse(package.read_text()))
    assert text, "no docstring"
    assert len(text.splitlines()) <= 25


def test_the_three_walks_are_ten_files_or_fewer() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    walks = re.split(r"^### ", page.split("## Three walks")[1].split("\n## ")[0], flags=re.M)[1:]
    assert [walk.splitlines()[0] for walk in walks] == ["Classify", "StreamChat", "AddDocuments"]
    for walk in walks:
        files = list(dict.fromkeys(_CODE_PATH.findall(walk)))
        assert 0 < len(files) <= 10, files
        assert [file for file in files if not (ROOT / "server" / file).is_file()] == []
