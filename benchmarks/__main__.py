"""The commands, with a line on each: python -m benchmarks"""

from __future__ import annotations

import ast
from pathlib import Path


def main() -> None:
    for program in sorted(Path(__file__).parent.glob("*/__main__.py")):
        source = program.read_text(encoding="utf-8")
        what = (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
        print(f"python -m benchmarks.{program.parent.name:18} {what}")


if __name__ == "__main__":
    main()
