"""Make the word problems: ``python -m osora_bench.arithmetic [--output FOLDER] [--seed N]``."""

import argparse
from pathlib import Path

from osora_bench.arithmetic import problems


def main() -> None:
    """Write the files of `problems.files` below the output folder."""
    parser = argparse.ArgumentParser(prog="python -m osora_bench.arithmetic", description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=problems.DATA, help="folder (default: the package's)"
    )
    parser.add_argument("--seed", type=int, default=problems.SEED)
    given = parser.parse_args()
    problems.write_data(given.output, given.seed)


if __name__ == "__main__":
    main()
