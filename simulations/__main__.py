"""``python -m simulations NAME``: the paper's experiments, the demo and the benchmarks.

Each experiment leaves its results (``results.csv``, ``summary.json``) and pictures in a
folder, and goes on there if it was stopped. ``NAME --help`` says what it does.
"""

import argparse
import inspect
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flower_psl import PslError
from simulations.accuracy import AccuracySettings, accuracy
from simulations.bench import bench
from simulations.demo import demo
from simulations.deviation import DeviationSettings, deviation
from simulations.one_thread import one_thread
from simulations.options import OneLineParser, RunSettings, add_options, read_settings
from simulations.overhead import OverheadSettings, overhead
from simulations.scale import ScaleSettings, scale
from simulations.steps import StepsSettings, steps
from simulations.stragglers import StragglerSettings, stragglers


@dataclass(frozen=True)
class Experiment:
    """A subcommand: a function that returns what to print, and its settings' class."""

    settings: type[RunSettings]
    run: Callable[[Any], str]


EXPERIMENTS: dict[str, Experiment] = {
    "accuracy": Experiment(AccuracySettings, accuracy),
    "deviation": Experiment(DeviationSettings, deviation),
    "overhead": Experiment(OverheadSettings, overhead),
    "scale": Experiment(ScaleSettings, scale),
    "steps": Experiment(StepsSettings, steps),
    "stragglers": Experiment(StragglerSettings, stragglers),
}


def main(words: list[str] | None = None) -> int:
    """Run what the command line names.

    Parameters
    ----------
    words : list of str, optional
        The command line, without the program's name; that of the process unless given.
    """
    arguments = _parser().parse_args(words)
    if arguments.name == "demo":
        print(demo(arguments.out))
    elif arguments.name == "bench":
        print(bench(arguments.out, quick=arguments.quick))
    else:
        one_thread()
        experiment = EXPERIMENTS[arguments.name]
        try:
            settings = read_settings(arguments, experiment.settings)
            print(experiment.run(settings))
        except PslError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("stopped; the same command goes on from here", file=sys.stderr)
            return 130
        print(f"\nresults and pictures are in {settings.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m simulations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for name, text, out in (
        ("demo", "Train on digits with ten simulated devices.", Path("runs/demo")),
        ("bench", "Seconds a step against the plain PyTorch loop.", Path("runs/bench.json")),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--out", type=Path, default=out, help=f"results (default: {out})")
        if name == "bench":
            command.add_argument("--quick", action="store_true", help="fewer rows, sooner")
    for name, experiment in EXPERIMENTS.items():
        text = inspect.getdoc(experiment.run) or ""
        command = commands.add_parser(
            name,
            help=text.partition("\n")[0],
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add_options(command, experiment.settings, Path("runs") / name)
    return parser


if __name__ == "__main__":
    # As an exception, so that processes that were started for a run are ended with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
