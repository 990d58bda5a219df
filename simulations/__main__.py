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
from simulations.chaos import ChaosSettings, chaos
from simulations.compare import CompareSettings, compare
from simulations.demo import demo
from simulations.deviation import DeviationSettings, deviation
from simulations.one_thread import one_thread
from simulations.options import OneLineParser, RunSettings, add_options, read_settings
from simulations.overhead import OverheadSettings, overhead
from simulations.restarts import RestartSettings, restarts
from simulations.scale import ScaleSettings, scale
from simulations.soak import SoakSettings, soak
from simulations.steps import StepsSettings, steps
from simulations.stragglers import StragglerSettings, stragglers


@dataclass(frozen=True)
class Experiment:
    """A subcommand: a function that returns what to print, and its settings' class."""

    settings: type[RunSettings]
    run: Callable[[Any], str]


EXPERIMENTS: dict[str, Experiment] = {
    "accuracy": Experiment(AccuracySettings, accuracy),
    "compare": Experiment(CompareSettings, compare),
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
    try:
        if arguments.name in EXPERIMENTS:
            _experiment(arguments)
        else:
            print(_deployed(arguments))
    except PslError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        goes_on = "; the same command goes on from here" if arguments.name in EXPERIMENTS else ""
        print(f"stopped{goes_on}", file=sys.stderr)
        return 130
    return 0


def _experiment(arguments: argparse.Namespace) -> None:
    one_thread()
    experiment = EXPERIMENTS[arguments.name]
    settings = read_settings(arguments, experiment.settings)
    print(experiment.run(settings))
    print(f"\nresults and pictures are in {settings.out}")


def _deployed(arguments: argparse.Namespace) -> str:
    """Return what a command that runs Flower itself prints."""
    match arguments.name:
        case "bench":
            return bench(arguments.out, quick=arguments.quick)
        case "chaos":
            one_thread()
            return chaos(ChaosSettings(out=arguments.out, moments=arguments.moments))
        case "restarts":
            return restarts(RestartSettings(out=arguments.out, moments=arguments.moments))
        case "soak":
            return soak(SoakSettings(out=arguments.out, minutes=arguments.minutes))
    return demo(arguments.out)


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
        ("chaos", "Kill devices and their processes while they train.", Path("runs/chaos")),
        ("restarts", "Kill the server while it trains, and resume.", Path("runs/restarts")),
        ("soak", "Train for an hour and see whether anything grows.", Path("runs/soak")),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--out", type=Path, default=out, help=f"results (default: {out})")
        if name == "bench":
            command.add_argument("--quick", action="store_true", help="fewer rows, sooner")
        elif name == "chaos":
            command.add_argument("--moments", type=int, default=10, help="kills (default: 10)")
        elif name == "restarts":
            command.add_argument("--moments", type=int, default=20, help="kills (default: 20)")
        elif name == "soak":
            command.add_argument("--minutes", type=float, default=60.0, help="at least so long")
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
