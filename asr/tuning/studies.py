"""The study of a sweep on disk: trials that are there whole or not at all, and go on after whatever ended the sweep.

In: settings, parameters and the sweep's folder. Out: a study that this process alone works on, the parameters of the next trial, and
the best one. A trial is numbered as its job is. Parameters are drawn in memory and written with the trial, in one line of a journal that
is synced to the disk: what a kill can leave is half of the last line. SQLite would do as well on a local disk, but relies on byte-range
locks and on its own second file, which many an NFS doesn't serve well (https://www.sqlite.org/faq.html#q5); a journal is appended to, can
be mended with an editor, and is Optuna's own advice there (optuna 5.0, storages/journal/_file.py:25).
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asr import sessions
from asr.errors import ConfigError, LaunchError, did_you_mean
from asr.files import sync
from asr.runs import RUN_FILE, Run
from asr.secrets import redacted
from asr.tuning.settings import KEY, STORAGE_VARIABLE, Settings
from asr.tuning.space import PARAMS, Parameter

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)

FOLDER, JOURNAL = "study", "journal.jsonl"
SAMPLERS = {"tpe": "TPESampler", "random": "RandomSampler", "gp": "GPSampler"}
"""Those whose next values follow from the trials before and a seed: a sweep that goes on draws what it would have drawn."""
OBJECTS = ("gamma", "weights", "constraints_func", "independent_sampler")
"""Arguments of theirs that YAML has no values for."""
NEEDED = {"gp": ("scipy", "torch")}
ASKED = "asked"
"""The study's attribute that says what sweep it belongs to."""
NO_RESULT = ("resume=", "hydra.", "hydra/", "topology.", "topology=", "+sweep=")
"""Overrides that may differ when a sweep goes on: they change no result, or what they say is compared itself."""


def require() -> None:
    """Raise ConfigError where Optuna isn't installed."""
    if find_spec("optuna") is None:
        raise ConfigError("Optuna is not installed: pip install -e '.[optuna]'.", key=KEY)


def sampler_of(settings: Settings, number: int = 0) -> optuna.samplers.BaseSampler:
    """Return the sampler that draws a trial; raise ConfigError for one that there isn't, or an argument that it doesn't take.

    Each trial has a seed of its own, so that what is drawn for it doesn't depend on how often the sweep was started.
    """
    import optuna

    given = dict(settings.sampler)
    name = given.pop("name", "tpe")
    if not isinstance(name, str) or name not in SAMPLERS:
        raise ConfigError(f"{name!r} is not one of {', '.join(SAMPLERS)}.{did_you_mean(str(name), SAMPLERS)}", key=f"{KEY}.sampler.name")
    for package in NEEDED.get(name, ()):
        if find_spec(package) is None:
            raise ConfigError(f"{name} needs {package}: pip install {package}.", key=f"{KEY}.sampler.name")
    cls = getattr(optuna.samplers, SAMPLERS[name])
    taken = list(inspect.signature(cls.__init__).parameters)[1:]
    for key, value in given.items():
        if key not in taken:
            raise ConfigError(f"{cls.__name__} has no such argument.{did_you_mean(key, taken)}", key=f"{KEY}.sampler.{key}")
        if key in OBJECTS or not isinstance(value, (int, float, type(None))):
            raise ConfigError(f"{value!r} can't be given here: numbers, true and false can.", key=f"{KEY}.sampler.{key}")
    seed = given.pop("seed", 0)
    if "constant_liar" in taken:
        given.setdefault("constant_liar", True)  # trials that run beside this one aren't tried again; 4's default is False
    if seed is not None:
        given["seed"] = int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4], "big")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            return cls(**given)  # type: ignore[no-any-return]
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{cls.__name__} doesn't take {given} ({error}).", key=f"{KEY}.sampler") from error


@contextlib.contextmanager
def opened(
    settings: Settings, sweep_dir: Path, parameters: Sequence[Parameter], fixed: Sequence[str], *, resumes: bool, named_by_number: bool
) -> Iterator[Study]:
    """Give the study of a sweep, begun or gone on with, to this process alone.

    Raises ConfigError where another works on it, where it is there and isn't resumed, where it is another sweep's, and for a storage
    that can't be read. `named_by_number`: jobs lie in folders of their numbers.
    """
    home = sweep_dir / FOLDER
    sessions.hold(home, key="hydra.sweep.dir")
    try:
        with _explained(settings, home):
            storage = _storage(settings, home)
            study = _load(settings, storage, sweep_dir, resumes=resumes)
        asked = _asked(settings, sweep_dir, parameters, fixed)
        with _explained(settings, home):
            _check_same(study, asked)
        yield Study(study, settings, {p.key: p for p in parameters}, sweep_dir if named_by_number else None, home)
    finally:
        sessions.let_go(home)
        with contextlib.suppress(OSError):  # there is something in them, unless the sweep was refused
            home.rmdir()
            sweep_dir.rmdir()


@dataclass
class Study:
    """Trials of a sweep. `jobs` holds their folders, by number, where they are so named."""

    study: optuna.Study
    settings: Settings
    parameters: Mapping[str, Parameter]
    jobs: Path | None
    home: Path

    @property
    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """All but those that somebody else put in line for later."""
        from optuna.trial import TrialState

        with _explained(self.settings, self.home, while_running=True):
            return [trial for trial in self.study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]

    def numbers(self, state: str) -> list[int]:
        """Return the numbers of the trials in a state: RUNNING, COMPLETE or FAIL."""
        return [trial.number for trial in self.trials if trial.state.name == state]

    def overrides(self, number: int) -> list[str]:
        """Return what a trial gives its job."""
        chosen = self.trial(number).params
        return [parameter.override(chosen[key]) for key, parameter in self.parameters.items()]

    def trial(self, number: int) -> optuna.trial.FrozenTrial:
        return next(trial for trial in self.trials if trial.number == number)

    def ask(self) -> int:
        """Begin the next trial and return its number."""
        from optuna.trial import TrialState, create_trial

        with _explained(self.settings, self.home, while_running=True):
            number = len(self.study.get_trials(deepcopy=False))
            left_behind = self._left_behind(number)
            params, attributes = (left_behind, {}) if left_behind else self._drawn(number)
            self.study.add_trial(
                create_trial(
                    state=TrialState.RUNNING,
                    params=params,
                    distributions={key: parameter.distribution() for key, parameter in self.parameters.items()},
                    system_attrs=attributes,
                )
            )
        return number

    def tell(self, number: int, value: float | None) -> None:
        """End a trial with the value of its job; None for one that has failed."""
        from optuna.trial import TrialState

        with _explained(self.settings, self.home, while_running=True):
            if value is None:
                self.study.tell(number, state=TrialState.FAIL)
            else:
                self.study.tell(number, value)

    @property
    def best(self) -> optuna.trial.FrozenTrial | None:
        """The best trial; None while none has a value."""
        ended = [trial for trial in self.trials if trial.value is not None]
        sign = 1 if self.settings.direction == "minimize" else -1
        return min(ended, key=lambda trial: (sign * float(trial.value or 0), trial.number), default=None)

    def results(self) -> dict[str, Any]:
        """Return what optimization_results.yaml holds; the first three keys are hydra-optuna-sweeper's."""
        best = self.best
        assert best is not None
        return {
            "name": "optuna",
            "best_params": {key: self.parameters[key].shown(value) for key, value in best.params.items()},
            "best_value": best.value,
            "best_trial": best.number,
            "best_overrides": self.overrides(best.number),
            "trials": {state.lower(): len(self.numbers(state)) for state in ("COMPLETE", "FAIL", "RUNNING")},
        }

    def _drawn(self, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the parameters that the sampler gives the next trial, and what it notes of it: drawn from a copy in memory."""
        import optuna

        copy = optuna.create_study(sampler=sampler_of(self.settings, number), direction=self.study.direction)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            copy.add_trials(self.trials)
            copy.ask({key: parameter.distribution() for key, parameter in self.parameters.items()})
        drawn = copy.get_trials(deepcopy=False)[-1]
        return dict(drawn.params), dict(drawn.system_attrs)

    def _left_behind(self, number: int) -> dict[str, Any] | None:
        """Return the parameters of a run that the study has lost, where one lies in the job's folder."""
        folder = self.jobs / str(number) if self.jobs else None
        if folder is None or not (folder / RUN_FILE).exists():
            return None
        given = {str(word).partition("=")[0]: str(word) for word in Run.load(folder).record.get("overrides", ())}
        found = {key: parameter.value_in(given.get(key, "")) for key, parameter in self.parameters.items()}
        if None in found.values():
            raise ConfigError(
                f"{folder} holds a run that isn't one of this sweep's trials; move it away, or choose another folder.",
                key="hydra.sweep.dir",
            )
        log.warning("the study has lost trial %d: it is taken from the run in %s", number, folder)
        return found


def _storage(settings: Settings, home: Path) -> Any:
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if settings.address is None:
        path = home / JOURNAL
        mend(path)
        Path(f"{path}.lock").unlink(missing_ok=True)  # a killed sweep's: Optuna would wait 30 s for it, and the folder is ours
        return optuna.storages.JournalStorage(JournalFileBackend(str(path)))
    return optuna.storages.RDBStorage(settings.address)


def mend(path: Path) -> None:
    """Cut off the last line of a journal where only a part of it was written; raise ConfigError for a journal damaged elsewhere."""
    if not path.exists():
        return
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    good = 0
    for number, line in enumerate(lines, start=1):
        if not _is_entry(line):
            if number < len(lines):
                raise ConfigError(
                    f"{path}:{number} is damaged, and lines follow it. Move the file away and start again with resume=auto: trials are "
                    "taken from their runs, and those that have finished aren't run again.",
                    key="hydra.sweep.dir",
                )
            log.warning("%s was cut short: its last line is left out, and what it said is taken from the runs", path)
            os.truncate(path, good)
            sync(path)
        good += len(line)


def _is_entry(line: bytes) -> bool:
    try:
        return line.endswith(b"\n") and isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _load(settings: Settings, storage: Any, sweep_dir: Path, *, resumes: bool) -> optuna.Study:
    import optuna

    in_folder = settings.address is None
    name = settings.study_name or ("sweep" if in_folder else str(sweep_dir.resolve()))
    if name not in optuna.study.get_all_study_names(storage):
        return optuna.create_study(storage=storage, study_name=name, direction=optuna.study.StudyDirection[settings.direction.upper()])
    if not resumes:
        where = f"{sweep_dir} holds a study already" if in_folder else f"the storage holds a study {name!r} already"
        raise ConfigError(f"{where}: resume=auto goes on with it; otherwise choose another.", key="hydra.sweep.dir")
    return optuna.load_study(storage=storage, study_name=name)


def _asked(settings: Settings, sweep_dir: Path, parameters: Sequence[Parameter], fixed: Sequence[str]) -> dict[str, Any]:
    from optuna.distributions import distribution_to_json

    return {
        "hydra.sweeper.direction": settings.direction,
        PARAMS: {parameter.key: distribution_to_json(parameter.distribution()) for parameter in parameters},
        "overrides": sorted(redacted(override) for override in fixed if not override.startswith(NO_RESULT)),
        **({} if settings.address is None else {"hydra.sweep.dir": str(sweep_dir.resolve())}),
    }


def _check_same(study: optuna.Study, asked: dict[str, Any]) -> None:
    """Raise ConfigError where a study belongs to a sweep of something else; a new one is told what it belongs to."""
    before = study.user_attrs.get(ASKED)
    if before is None:
        study.set_user_attr(ASKED, asked)
        return
    for key, value in asked.items():
        if before.get(key) != value:
            raise ConfigError(
                f"is {_in_words(value)}, and was {_in_words(before.get(key))} when this sweep began; give it as it was, or choose another "
                "hydra.sweep.dir.",
                key="command line" if key == "overrides" else key,
            )


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {said}" for key, said in sorted(value.items()))
    return " ".join(value) or "without overrides" if isinstance(value, list) else str(value)


@contextlib.contextmanager
def _explained(settings: Settings, home: Path, *, while_running: bool = False) -> Iterator[None]:
    """Raise an error of ours for what a storage can't do. An address of a database may hold a password: it isn't said."""
    import optuna

    foreseen: tuple[type[Exception], ...] = (optuna.exceptions.OptunaError, OSError)
    if settings.address is not None:
        from sqlalchemy.exc import SQLAlchemyError

        foreseen = (*foreseen, SQLAlchemyError)
    if not while_running:  # what Optuna raises for an address, or for content that it didn't write
        foreseen = (*foreseen, ImportError, LookupError, TypeError, ValueError, AssertionError)
    try:
        yield
    except foreseen as error:
        if settings.address is None:
            where, mend_it = f"{home / JOURNAL}", "move it away and start again with resume=auto: trials are taken from their runs"
        else:
            where = f"the storage that {'hydra.sweeper.storage' if settings.storage else f'${STORAGE_VARIABLE}'} names"
            mend_it = "see whether it is there, is Optuna's and isn't locked by another program"
        if isinstance(error, OSError):
            mend_it = "see to it, and go on with resume=auto"
        said = _said(error, settings.address)
        if while_running:
            raise LaunchError(f"{where} can't be used ({said}): {mend_it}; runs stay, and resume=auto goes on with them.") from None
        raise ConfigError(f"{where} can't be used ({said}): {mend_it}.", key=f"{KEY}.storage") from None


def _said(error: BaseException, address: str | None) -> str:
    """Return the cause of an error in one line, without the address."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = " ".join(str(error).split()).rstrip(".")
    return redacted(line.replace(address, "...") if address else line)[:300] or type(error).__name__
