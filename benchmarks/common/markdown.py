"""Markdown from results, in which somebody else's text stays text."""

from __future__ import annotations

import re
from html import escape


def plain(text: str) -> str:
    """Somebody's text as Markdown shows it and nothing else: no HTML, link, picture or heading."""
    words = re.sub(
        r"([\\`*\[\]|])|^([#+\-=~])(?=.)", r"\\\1\2", re.sub(r"\s*[\r\n]+\s*", " ", text)
    )
    return escape(words, quote=False)


def table(rows: list[list[str]], texts: int = 2) -> str:
    """A table whose first row is its head; the first columns hold texts, the others numbers."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * texts + "---:|" * (len(rows[0]) - texts))
    return "\n".join(lines)
