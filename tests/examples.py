"""The examples in prose: blocks of Python in Markdown, and what the page says that they print."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]

EXAMPLE = re.compile(r"```python\n(.*?)```(?:\n\s*```text\n(.*?)```)?", flags=re.DOTALL)


def examples(page: Path) -> list[tuple[str, str]]:
    """Each block of Python, and the block of text below it: its output."""
    return EXAMPLE.findall(page.read_text(encoding="utf-8"))
