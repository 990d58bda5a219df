"""``python -m simulations NAME``: the demo and the benchmarks."""

import argparse
import sys
from pathlib import Path

from simulations.bench import bench
from simulations.demo import demo


def main() -> int:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m simulations", description=__doc__)
    commands = parser.add_subparsers(dest="name", required=True)
    for name, text, out in (
        ("demo", "train on digits with ten simulated devices", Path("runs/demo")),
        ("bench", "seconds a step against the plain PyTorch loop", Path("runs/bench.json")),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--out", type=Path, default=out, help=f"results (default: {out})")
    arguments = parser.parse_args()
    if arguments.name == "demo":
        print(demo(arguments.out))
    else:
        _print_bench(arguments.out)
    return 0


def _print_bench(out: Path) -> None:
    print(f"{'a step of':<28}{'split':>12}{'plain loop':>14}{'ratio':>10}")
    for row in bench(out):
        milliseconds = f"{row.ours_s * 1e3:>9.1f} ms{row.reference_s * 1e3:>11.1f} ms"
        print(f"{row.name:<28}{milliseconds}{row.ratio:>10.2f}")
    print(f"medians; written to {out}")


if __name__ == "__main__":
    sys.exit(main())
