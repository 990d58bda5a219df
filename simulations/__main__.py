"""``python -m simulations NAME``: the demo and the benchmarks."""

import argparse
import sys
from pathlib import Path

from simulations.demo import demo


def main() -> int:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m simulations", description=__doc__)
    commands = parser.add_subparsers(dest="name", required=True)
    demo_parser = commands.add_parser("demo", help=demo.__doc__)
    demo_parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    arguments = parser.parse_args()
    print(demo(arguments.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
