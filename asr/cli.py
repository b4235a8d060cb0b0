"""The `asr` command: what one does with runs once they are there. Training is `python launch.py`.

In: run directories, or an old command line. Out: tables, or the new one. Built on typer; a mistake ends in the contract's exit codes.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from asr import __version__, stops
from asr.errors import AsrError
from asr.runs import Run

commands = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Look at runs of speech recognition experiments. To train: python launch.py --help",
)


@commands.callback(invoke_without_command=True)
def main(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@commands.command()
def show(run: Annotated[Path, typer.Argument(help="A run directory, such as outputs/spoken_digits_ctc/<stamp>.")]) -> None:
    """Show one run: error rates, losses, speed, hours of audio."""
    from rich import print as show_table

    from asr.report import summary

    show_table(summary(Run.load(run)))


@commands.command(name="list")
def list_runs(folder: Annotated[Path, typer.Argument(help="Where to look.")] = Path("outputs")) -> None:
    """List the runs below a folder, the newest last."""
    from rich import print as show_table

    from asr.report import listing, runs_under

    show_table(listing(runs_under(folder)))


ALLOW = "What the run directory may do beside this package's classes: a package (mypackage.), or a key that an error has named. Repeatable."
Allowed = Annotated[list[str] | None, typer.Option("--allow", metavar="NAME", help=ALLOW)]


@commands.command()
def resume(
    run: Annotated[Path, typer.Argument(help="The directory of a run that was stopped, killed or preempted.")],
    allow: Allowed = None,
) -> None:
    """Go on with a run from its newest whole checkpoint; one that has finished is left alone.

    With several servers, start launch.py with resume=auto on each instead.
    """
    from asr import replay
    from asr.report import show_end

    code, done = replay.resume(run, allowed=allow or ())
    if code:
        raise typer.Exit(code)
    show_end(done)


@commands.command(name="replay")
def replay_run(
    run: Annotated[Path, typer.Argument(help="The directory of a run, finished or not.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value ..., over its configuration.")] = None,
    allow: Allowed = None,
    into: Annotated[Path | None, typer.Option(help="Where the new run lies; by default in outputs/<experiment>/<stamp>.")] = None,
    other_data: Annotated[bool, typer.Option("--other-data", help="Go on where the data isn't what it was; run.json says so.")] = False,
) -> None:
    """Run a run's configuration again: the same metrics on the same machine, or what differs.

    Code, packages, host and keys that differ are said before anything is trained; data that differs stops it (exit code 3).
    """
    from asr import replay
    from asr.report import show_replay

    code, done = replay.again(run, overrides or (), allowed=allow or (), into=into, other_data=other_data)
    if code:
        raise typer.Exit(code)
    if done is not None:  # another server's
        show_replay(done, Run.load(run))


@commands.command(name="import")
def import_command(
    command: Annotated[str, typer.Argument(help="An old command line, in quotes; - reads it from standard input.")],
) -> None:
    """Print what a command line of the published scripts is here, with a line for each flag that has no counterpart."""
    from asr.importing import imported

    print(imported(sys.stdin.read() if command == "-" else command))


def app() -> None:
    """Run the command line; a user's mistake is one line and its exit code."""
    try:
        commands()
    except AsrError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        sys.exit(mistake.exit_code)
    except (KeyboardInterrupt, stops.Terminated) as stop:
        sys.exit(stops.ended_by(stop).exit_code)
