"""The `asr` command: what one does with runs once they are there. Training is `python launch.py`.

In: run directories, experiments, or an old command line. Out: tables, the lock of released versions, or the new command line. Built on
typer; a mistake ends in the contract's exit codes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Optional

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
    """Show one run: error rates, losses, speed, hours of audio; or a sweep: its jobs, the best first."""
    from rich import print as show_table

    from asr import sweep_report, sweeps
    from asr.report import summary

    if (run / sweeps.SWEEP_FILE).exists():
        show_table(sweep_report.as_table(sweep_report.results_of(sweeps.Sweep.load(run))))
        return

    show_table(summary(Run.load(run)))


@commands.command()
def report(run: Annotated[Path, typer.Argument(help="A run directory, whatever became of the run.")]) -> None:
    """Write a run's page, report.html, again: error rates, curves, where errors are, the worst utterances to read and hear."""
    from asr.report import shown_path
    from asr.run_report import write

    print(shown_path(write(Run.load(run))))


@commands.command(name="list")
def list_runs(folder: Annotated[Path, typer.Argument(help="Where to look.")] = Path("outputs")) -> None:
    """List the runs below a folder, the newest last."""
    from rich import print as show_table

    from asr.report import listing, runs_under

    show_table(listing(runs_under(folder)))


@commands.command(name="compare")
def compare_runs(
    run: Annotated[list[Path], typer.Argument(help="Two or more run directories; the others are compared with the first.")],
    page: Annotated[Path, typer.Option(help="Where the page is written.")] = Path("compare.html"),
) -> None:
    """Compare runs: what differs in their configurations, their metrics, and whether their WER differs by more than chance.

    A table here and a page, which also has the utterances in which they differ most.
    """
    from rich import print as show_table

    from asr import comparison

    found = comparison.compare(run)
    for table in comparison.as_tables(found):
        show_table(table)
    comparison.write_page(found, page)
    print(f"page: {page}")


@commands.command(name="publish")
def publish_run(
    run: Annotated[Path, typer.Argument(help="The directory of a run that has finished.")],
    to: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(metavar="NAME/MODEL", help="The repository of the hub; by default trainer.args.hub_model_id of the run."),
    ] = None,
    private: Annotated[Optional[bool], typer.Option(help="Whether a new repository is private.")] = None,  # noqa: UP045
) -> None:
    """Push a run's model/ with its card to the Hugging Face hub; the token is taken from HF_TOKEN."""
    from asr import publishing

    print(publishing.publish_later(Run.load(run), to, private=private))


ALLOW = "What the run directory may do beside this package's classes: a package (mypackage.), or a key that an error has named. Repeatable."
Allowed = Annotated[list[str] | None, typer.Option("--allow", metavar="NAME", help=ALLOW)]


@commands.command()
def resume(
    run: Annotated[Path, typer.Argument(help="The directory of a run that was stopped, killed or preempted.")],
    allow: Allowed = None,
) -> None:
    """Go on with a run from its newest whole checkpoint, or with a sweep; what has finished is left alone.

    With several servers, start launch.py with resume=auto on each instead.
    """
    from asr import replay, sweeps
    from asr.report import show_end

    if (run / sweeps.SWEEP_FILE).exists():
        command, cwd = sweeps.command_to_resume(run.resolve())
        os.chdir(cwd)
        os.execv(command[0], command)  # noqa: S606  # a list of words, looked at: no shell

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


experiments_commands = typer.Typer(
    no_args_is_help=True,
    help="Versions of experiments: conf/experiment/<name>/v<N>.yaml, and lock.json, which holds what each released one composes to.",
)
commands.add_typer(experiments_commands, name="experiments")
ConfigDir = Annotated[
    Optional[Path],  # noqa: UP045 - typer reads it when it runs, on Python 3.10 too
    typer.Option(help="A folder of your own with experiment/<name>/v<N>.yaml and a lock, as launch.py takes it."),
]


@experiments_commands.command(name="lock")
def lock_experiments(
    replace: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="NAME/vN", help="A release to take as it is now (before anybody used it), or to withdraw: its file is gone."),
    ] = None,
    config_dir: ConfigDir = None,
) -> None:
    """Release every v<N> that isn't yet; refuse when one that is composes to something else."""
    from asr import experiments

    done = experiments.release(experiments.Catalogue(config_dir), replace or ())
    print("\n".join(done.lines()))
    done.found.raise_if_any()


@experiments_commands.command(name="check")
def check_experiments(config_dir: ConfigDir = None) -> None:
    """Compose every released version again; name each key that moved, and the line that moved it."""
    from asr import experiments

    found = experiments.check(experiments.Catalogue(config_dir))
    print("\n".join(found.lines() or [f"Released versions that compose to what they did: all {found.num_released}."]))
    found.raise_if_any()


@experiments_commands.command(name="list")
def list_experiments(config_dir: ConfigDir = None) -> None:
    """List experiments with their versions and drafts."""
    from rich import print as show_table

    from asr import experiments, report

    show_table(report.experiments_table(experiments.experiments(experiments.Catalogue(config_dir))))


@experiments_commands.command(name="diff")
def diff_experiments(
    left: Annotated[
        str, typer.Argument(metavar="A", help="A version (name/v1), a draft (name/v3-draft), a name (its newest), or a run directory.")
    ],
    right: Annotated[str, typer.Argument(metavar="B", help="Likewise.")],
    config_dir: ConfigDir = None,
) -> None:
    """Show the keys at which two versions, drafts or runs differ, side by side."""
    from rich import print as show_table

    from asr import experiments, report

    catalogue = experiments.Catalogue(config_dir)
    found = experiments.differences(experiments.configuration(left, catalogue), experiments.configuration(right, catalogue))
    show_table(report.differences_table(left, right, found) if found else f"{left} and {right} are the same.")


def app() -> None:
    """Run the command line; a user's mistake is one line and its exit code."""
    try:
        commands()
    except AsrError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        sys.exit(mistake.exit_code)
    except (KeyboardInterrupt, stops.Terminated) as stop:
        sys.exit(stops.ended_by(stop).exit_code)
