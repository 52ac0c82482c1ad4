"""Where `python -m benchmarks.study.published` went."""

import sys

if __name__ == "__main__":
    print("This command is now python -m benchmarks.reproductions", file=sys.stderr)
    sys.exit(2)
