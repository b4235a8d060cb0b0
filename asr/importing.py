"""An old command line to a new one: what `asr import` prints.

In: the command line of a published script, with what starts it. Out: overrides of launch.py, and a line for each flag without one.
Where the flags go is data: asr.script_arguments.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from asr import compatibility, composition, config_files
from asr.errors import ConfigError, did_you_mean
from asr.pipeline import Pipeline
from asr.script_arguments import DEFAULTS, ENCODER_DECODER, LAUNCHERS, SCRIPTS, SPAWN, STREAMING, WHISPER, Argument, arguments_of
from asr.secrets import SECRET_NAME

LAUNCH_MODULE = "torch.distributed.launch"
MODULES = {LAUNCH_MODULE: LAUNCH_MODULE, "torch.distributed.run": LAUNCH_MODULE}
STRAY = "nproc_per_node"
SIZES = {"gpu": (1, 4, 8), "hpu": (1, 8)}
"""Numbers of devices that have an option of the topology group."""
RENAMED_DATASETS = {"librispeech_asr": "openslr/librispeech_asr"}
GAUDI_CONFIGS = ("wav2vec2", "whisper")
_TRUE, _FALSE = ("true", "t", "yes", "y", "1"), ("false", "f", "no", "n", "0")
_PLAIN = re.compile(r"[A-Za-z0-9_./:@+-]+")
_NOT_TEXT = re.compile(r"true|false|null|none|[-+]?[\d.]+(e[-+]?\d+)?|[-+]?(inf|nan)", re.IGNORECASE)


@dataclass
class OldCommand:
    """The parts of an old command line; flags have their values as they stand there."""

    script: str
    flags: dict[str, list[str]]
    launcher: str = ""
    launcher_flags: dict[str, list[str]] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Imported:
    """The new command line: chosen options, values by key, and what has no counterpart."""

    groups: dict[str, str] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def overrides(self) -> list[str]:
        """Return what follows `python launch.py`: without the default experiment, whose values would stay otherwise."""
        return ["~experiment", *(f"{k}={v}" for k, v in self.groups.items()), *(f"{k}={v}" for k, v in self.values.items())]

    def __str__(self) -> str:
        """Return the command for a shell, and the notes as its comments."""
        lines = ["python launch.py", *(shlex.quote(override) for override in self.overrides)]
        return " \\\n  ".join(lines) + "".join(f"\n# {note}" for note in self.notes)


def imported(command: str) -> Imported:
    """Return the new command line for an old one; raise ConfigError for what can't be read, with the nearest flag."""
    new = translated(command)
    composed = composition.to_container(composition.compose(new.overrides))
    new.notes += [f"a launch would refuse this: {problem}" for problem in refusals(composed)]
    return new


def translated(command: str) -> Imported:
    """As `imported`, without asking whether the new command line would be launched."""
    return _Importing(parse(command)).done()


def refusals(composed: Mapping[str, Any]) -> list[str]:
    """Return what keeps a composed configuration from working wherever it is launched."""
    try:
        described = Pipeline.of(composed)
    except ConfigError as error:
        return [str(error)]
    return [str(problem) for problem in compatibility.problems(described, on_this_host=False)]


# ---- reading the old command line ----


def parse(command: str) -> OldCommand:
    """Take a command line apart: variables, what starts the script, the script, its flags."""
    try:
        words = shlex.split(re.sub(r"\\[ \t]*\r?\n", " ", command))
    except ValueError as error:
        raise ConfigError(f"the command line can't be taken apart ({str(error).lower()}); a quote is missing.") from error
    environment = {}
    while words and (found := re.fullmatch(r"(?s)([A-Za-z_]\w*)=(.*)", words[0])):
        environment[found[1]] = found[2]
        words = words[1:]
    launcher, words = _launcher(words)
    at = next((i for i, word in enumerate(words) if word.endswith(".py")), None)
    if at is None:
        raise ConfigError(f"there is no script in it: give the whole command, with {', '.join(f'{name}.py' for name in SCRIPTS)}.")
    if PurePosixPath(words[at]).stem == SPAWN:
        launcher, words = SPAWN, words[at + 1 :]
        at = next((i for i, word in enumerate(words) if word.endswith(".py")), None)
        if at is None:
            raise ConfigError(f"{SPAWN}.py starts no script here: the command is cut off.")
    elif not launcher and at > 0 and words[:at] != ["-u"]:
        raise ConfigError(f"{words[0]!r} before the script can't be read.")
    script = PurePosixPath(words[at]).stem
    if script not in SCRIPTS:
        raise ConfigError(f"{script}.py is none of {', '.join(f'{name}.py' for name in SCRIPTS)}.{did_you_mean(script, SCRIPTS)}")
    known = {argument.name: argument for argument in LAUNCHERS.get(launcher, ())}
    launcher_flags = _flags(words[:at], known, launcher)
    return OldCommand(script, _script_flags(words[at + 1 :], script), launcher, launcher_flags, environment)


def _launcher(words: Sequence[str]) -> tuple[str, list[str]]:
    """Return what starts the script, and the words after it."""
    program = PurePosixPath(words[0]).name if words else ""
    if program == "torchrun":
        return LAUNCH_MODULE, list(words[1:])
    if not program.startswith("python"):
        raise ConfigError(
            f"it starts with {program!r}, which isn't read: give the command from `python` or torchrun on, and say what starts the "
            "processes by topology.launcher (torchrun, mpirun, deepspeed)."
        )
    rest = list(words[1:])
    if len(rest) > 1 and re.fullmatch(r"-u?m", rest[0]):
        if rest[1] not in MODULES:
            raise ConfigError(f"python -m {rest[1]} isn't read; python -m {LAUNCH_MODULE} is.{did_you_mean(rest[1], MODULES)}")
        return MODULES[rest[1]], rest[2:]
    return "", rest


def _script_flags(words: Sequence[str], script: str) -> dict[str, list[str]]:
    known = arguments_of(script)
    if len(words) == 1 and words[0].endswith(".json"):
        return _flags_of_file(Path(words[0]), known, script)
    return _flags(words, known, f"{script}.py")


def _flags_of_file(path: Path, known: Mapping[str, Argument], script: str) -> dict[str, list[str]]:
    """Return the flags in a JSON file, which the scripts take in place of a command line."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        pairs = list(content.items())
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path} can't be read as the script's arguments ({error}).") from error
    flags = {}
    for name, value in pairs:
        _check_known(str(name), known, f"{script}.py")
        listed = value if isinstance(value, list) else [value]
        flags[str(name)] = [item if isinstance(item, str) else json.dumps(item) for item in listed if item is not None]
    return {name: values for name, values in flags.items() if content[name] is not None}


def _flags(words: Sequence[str], known: Mapping[str, Argument], owner: str) -> dict[str, list[str]]:
    """Return every flag's values: those behind it up to the next flag, or the one behind its equals sign."""
    flags: dict[str, list[str]] = {}
    name = ""
    for word in words:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            if name not in known and name.startswith("no_") and getattr(known.get(name[3:]), "kind", "") == "bool":
                name, equals, value = name[3:], "=", "False"
            if name != STRAY:
                _check_known(name, known, owner)
            flags[name] = [value] if equals else []
        elif name:
            flags[name].append(word)
        else:
            raise ConfigError(f"{word!r} stands where {owner or 'python'} takes no value.")
    for name, values in flags.items():
        if len(values) > 1 and name in known and name not in _TAKES_SEVERAL and known[name].kind != "list":
            raise ConfigError(f"--{name} takes one value, not {len(values)}: {' '.join(values)}.")
    return flags


_TAKES_SEVERAL = ("report_to", "label_names", "optim_target_modules", "include_for_metrics", "debug", "fsdp")
"""Training arguments with several values."""


def _check_known(name: str, known: Mapping[str, Argument], owner: str) -> None:
    if name in known:
        return
    others = [script for script in SCRIPTS if name in arguments_of(script)]
    whose = f" It is one of {others[0]}.py." if others else did_you_mean(name, known)
    raise ConfigError(f"{owner or 'python'} has no flag --{name}.{whose}")


# ---- writing the new one ----


class _Importing:
    """One old command line on its way to a new one."""

    def __init__(self, old: OldCommand) -> None:
        self.old = old
        self.new = Imported()
        self.known = arguments_of(old.script)
        self.flags = {**{name: [value] for name, value in DEFAULTS[old.script].items()}, **old.flags}
        self.given = old.flags
        self.family = ""

    def done(self) -> Imported:
        self._model()
        self._dataset()
        self.new.groups["trainer"] = SCRIPTS[self.old.script]
        self._topology()
        self._stages()
        if STRAY in self.flags and STRAY not in self.known:
            words = " ".join(["--" + STRAY, *self.flags.pop(STRAY)])
            self._note(words, f"belongs to {LAUNCH_MODULE}: left out, one process is started")
        for name, values in self.flags.items():
            self._flag(name, values)
        for name, value in self.old.environment.items():
            self._variable(name, value)
        return self.new

    def _flag(self, name: str, values: list[str]) -> None:
        argument = self.known[name]
        if handle := getattr(self, f"_{name}", None):
            handle(values)
        elif name in _TOGETHER:
            pass
        elif not argument.keys or (self.family and argument.not_for == self.family):
            self._note(f"--{name}", argument.note)
        else:
            for key in argument.keys:
                self._set(key, self._value(argument, values))

    def _value(self, argument: Argument, values: list[str]) -> str:
        if argument.kind == "bool":
            return hydra_value(_truth(argument.name, values))
        if argument.kind == "list" or len(values) > 1:
            return hydra_value(values)
        if not values:
            if argument.keys[0].startswith("trainer.args."):
                return "true"
            raise ConfigError(f"--{argument.name} has no value.")
        if argument.keys[0].startswith("trainer.args."):
            return training_value(values[0])
        return hydra_value(values[0], text=argument.keys[0] in _TEXT_KEYS)

    def _set(self, key: str, value: str) -> None:
        self.new.values[key] = value

    def _note(self, what: str, why: str) -> None:
        self.new.notes.append(f"{what}: {why}.")

    def _one(self, name: str) -> str | None:
        values = self.flags.get(name)
        return values[0] if values else None

    def _is_set(self, name: str) -> bool:
        return name in self.flags and _truth(name, self.flags[name])

    def _model(self) -> None:
        name = self._one("model_name_or_path")
        if not name:
            raise ConfigError("--model_name_or_path is missing.")
        options = model_options()
        if SCRIPTS[self.old.script] == "ctc":
            self.new.groups["model"] = options.get(name, "wav2vec2_base")
        else:
            self.family = WHISPER if _is_whisper(name) else ENCODER_DECODER
            self.new.groups["model"] = options.get(name, "whisper_small" if self.family == WHISPER else "wav2vec2_bart_base")
        if self.family == ENCODER_DECODER and name.startswith(".") and not (Path(name) / "config.json").is_file():
            self._note(
                f"--model_name_or_path {name}",
                "no model is there; model=wav2vec2_bart_base, or wav2vec2_bart_large, makes in the run what a script had to make before",
            )
        elif name not in options:
            self._set("model.name_or_path", hydra_value(name, text=True))

    def _dataset(self) -> None:
        name = self._one("dataset_name")
        if not name:
            raise ConfigError("--dataset_name is missing.")
        self.new.groups["dataset"] = "hub"
        self._set("dataset.path", hydra_value(RENAMED_DATASETS.get(name, name), text=True))
        if name == "common_voice":
            why = "a loading script, which datasets 4 doesn't run: give a folder of its Parquet files as dataset.root"
            self._note(f"--dataset_name {name}", why)
        if self.old.script == STREAMING:
            self._set("dataset.streaming", "true")

    def _topology(self) -> None:
        given = self.old.launcher_flags
        number = {name: _number(name, values) for name, values in given.items() if name in _NUMBERS}
        habana = self._is_set("use_habana") or self.old.launcher == SPAWN
        device = "hpu" if habana else "cpu" if self._is_set("use_cpu") or self._is_set("no_cuda") else "gpu"
        ranks = number.get("process_per_node") or number.get("nproc_per_node") or number.get("world_size") or 1
        if number.get("process_per_node"):
            number["nnodes"] = max(1, number.get("world_size", ranks) // ranks)
        if "hostfile" in given:
            self.new.groups["topology"] = "hpu_nodes"
            self._set("topology.hostfile", hydra_value(given["hostfile"][0], text=True))
            hosts = Path(given["hostfile"][0])
            if hosts.is_file():
                number["nnodes"] = len([line for line in hosts.read_text(encoding="utf-8").splitlines() if line.partition("#")[0].strip()])
        elif device == "cpu":
            self.new.groups["topology"] = "cpu"
        else:
            self.new.groups["topology"] = f"{device}{ranks if ranks in SIZES[device] else SIZES[device][-1]}"
        if "hostfile" not in given and ranks not in SIZES.get(device, (1,)):
            self._set("topology.ranks_per_node", str(ranks))
        for name, key in (("nnodes", "num_nodes"), ("node_rank", "node_rank"), ("master_port", "master_port")):
            if name in number:
                self._set(f"topology.{key}", str(number[name]))
        if "master_addr" in given:
            self._set("topology.master_addr", hydra_value(given["master_addr"][0], text=True))
        for name, launcher in (("use_mpi", "mpirun"), ("use_deepspeed", "deepspeed")):
            if name in given:
                self._set("topology.launcher", launcher)
        for argument in LAUNCHERS.get(self.old.launcher, ()):
            if argument.name in given and not argument.keys:
                self._note(f"--{argument.name}", argument.note)
        if not habana:  # a command of transformers' own scripts
            self._set("trainer.args.adam_epsilon", "1e-8")
            self._set("trainer.engine", "transformers")

    def _stages(self) -> None:
        trains, scores = self._is_set("do_train"), self._is_set("do_eval")
        if self._is_set("preprocessing_only") or not (trains or scores):
            self._set("stages", "[prepare]")
        elif not (trains and scores):
            self._set("stages", "[train]" if trains else "[evaluate]")

    def _output_dir(self, values: list[str]) -> None:
        name = PurePosixPath(values[0]).name if values else ""
        if not name:
            self._note(f"--output_dir {' '.join(values)}", "a run starts in an empty folder: it lies in outputs/<experiment>/<stamp> now")
            return
        self._set("hydra.run.dir", hydra_value(values[0], text=True))

    def _gaudi_config_name(self, values: list[str]) -> None:
        name = values[0] if values else ""
        short = PurePosixPath(name).name
        path = Path(name) / "gaudi_config.json" if Path(name).is_dir() else Path(name)
        if path.is_file():
            for key, value in _json_of(path).items():
                if key.startswith("use_"):
                    self._set(f"gaudi_config.{key}", hydra_value(value))
            return
        self.new.groups["gaudi_config"] = short if short in GAUDI_CONFIGS else "wav2vec2"
        if short not in GAUDI_CONFIGS:
            why = "is not here: gaudi_config=wav2vec2 has the values published for most models; compare them"
            self._note(f"--gaudi_config_name {name}", why)

    def _chars_to_ignore(self, values: list[str]) -> None:
        characters = re.sub(r"\\(.)", r"\1", "".join(values).replace(" ", ""))
        self._set("text.remove", hydra_value("".join(dict.fromkeys(characters)), text=True))

    def _do_lower_case(self, values: list[str]) -> None:
        self._set("text.case", "lower" if _truth("do_lower_case", values) else "keep")

    def _suppress_tokens(self, values: list[str]) -> None:
        self._set("model.generation.suppress_tokens", f"[{','.join(str(_number('suppress_tokens', [value])) for value in values)}]")

    def _label_features_max_length(self, values: list[str]) -> None:
        self.new.groups["batching"] = "fixed"
        self._set("batching.seconds", "null")
        self._set("batching.labels", str(_number("label_features_max_length", values)))

    def _group_by_length(self, values: list[str]) -> None:
        self._dynamic("group_by_length", values)

    def _dataloader_drop_last(self, values: list[str]) -> None:
        self._dynamic("dataloader_drop_last", values)

    def _dynamic(self, name: str, values: list[str]) -> None:
        """Take what static shapes contradict together with dynamic padding."""
        if not _truth(name, values):
            return
        if "label_features_max_length" in self.flags:
            self._note(f"--{name}", "static shapes, which --label_features_max_length asks for, do without")
            return
        self.new.groups["batching"] = "longest"
        self._set(f"trainer.args.{name}", "true")

    def _use_flash_attention(self, values: list[str]) -> None:
        if _truth("use_flash_attention", values):
            self._set("model.attn_implementation", "gaudi_fused_sdpa")

    def _use_lazy_mode(self, values: list[str]) -> None:
        if self.new.groups["topology"].startswith("hpu") and not _truth("use_lazy_mode", values):
            self._set("topology.use_lazy_mode", "false")

    def _deepspeed(self, values: list[str]) -> None:
        path = Path(values[0] if values else "")
        if path.is_file():
            self._set("topology.deepspeed", hydra_value(_json_of(path)))
            return
        self.new.groups["+deepspeed@topology.deepspeed"] = "zero2"
        self._note(f"--deepspeed {path}", "is not here: conf/deepspeed/zero2.yaml takes its place, which has ZeRO stage 2")

    def _resume_from_checkpoint(self, values: list[str]) -> None:
        self._set("resume", "auto")
        self._note(
            "--resume_from_checkpoint",
            "resume=auto goes on with a run of this project; a checkpoint that the script left can't be gone on from",
        )

    def _variable(self, name: str, value: str) -> None:
        if name == "PT_HPU_LAZY_MODE":
            if value == "0":
                self._set("topology.use_lazy_mode", "false")
        elif SECRET_NAME.search(name):
            self._note(name, "secrets come from your shell's environment: export it")
        else:
            self._set(f"topology.environment.{name}", hydra_value(value))


_TOGETHER = ("model_name_or_path dataset_name do_train do_eval preprocessing_only use_habana use_cpu no_cuda").split()
"""Flags that are read together with others."""
_NUMBERS = ("world_size", "process_per_node", "nproc_per_node", "nnodes", "node_rank", "master_port")
_TEXT_KEYS = (
    "vocabulary.tokenizer_name_or_path vocabulary.unk_token vocabulary.pad_token vocabulary.word_delimiter_token "
    "vocabulary.phoneme_language dataset.config_name dataset.train_split dataset.eval_split dataset.audio_column dataset.text_column "
    "dataset.root model.cache_dir dataset.cache_dir model.revision model.language model.task"
).split()
"""Keys whose value is text, whatever it looks like."""


def _truth(name: str, values: Sequence[str]) -> bool:
    """Return what a flag says that may stand alone."""
    word = values[0].lower() if values else "true"
    if word not in _TRUE + _FALSE:
        raise ConfigError(f"--{name} is true or false, not {values[0]!r}.")
    return word in _TRUE


def _number(name: str, values: Sequence[str]) -> int:
    try:
        return int(values[0])
    except (IndexError, ValueError) as error:
        raise ConfigError(f"--{name} takes a whole number, not {' '.join(values) or 'nothing'}.") from error


def _json_of(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} can't be read as JSON ({error}).") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no JSON object.")
    return content


@lru_cache
def model_options() -> dict[str, str]:
    """Return the options of the model group that are a checkpoint, by its name."""
    found: dict[str, str] = {}
    for path in sorted((config_files.CONF / "model").glob("*.yaml")):
        name = yaml.safe_load(path.read_text(encoding="utf-8")).get("name_or_path")
        found |= {name: path.stem} if name else {}
    return found


def _is_whisper(name: str) -> bool:
    config = Path(name) / "config.json"
    if config.is_file():
        return bool(_json_of(config).get("model_type") == "whisper")
    return "whisper" in name.lower()


def training_value(word: str) -> str:
    """Return one training argument's value as an override has it.

    >>> training_value("True"), training_value('{"num_cycles": 3}')
    ('true', '{num_cycles:3}')
    """
    if word.lower() in ("true", "false"):
        return word.lower()
    if word.startswith("{"):
        try:
            return hydra_value(json.loads(word))
        except ValueError as error:
            raise ConfigError(f"{word!r} is not JSON ({error}).") from error
    return hydra_value(word)


def hydra_value(value: Any, *, text: bool = False) -> str:
    r"""Return a value as Hydra's override grammar has it; `text` quotes what would be read as something else.

    >>> hydra_value("a b"), hydra_value([1, "x"]), hydra_value("1e5", text=True), hydra_value('"')
    ('"a b"', '[1,x]', '"1e5"', "'\"'")
    """
    if value is None or isinstance(value, (bool, int, float)):
        return json.dumps(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{hydra_value(item)}" for key, item in value.items()) + "}"
    if not isinstance(value, str):
        return f"[{','.join(map(hydra_value, _items(value)))}]"
    if _PLAIN.fullmatch(value) and not (text and _NOT_TEXT.fullmatch(value)):
        return value
    quote = "'" if '"' in value and "'" not in value else '"'
    escaped = re.sub(rf"(\\*)({quote}|$)", lambda found: found[1] * 2 + ("\\" + quote if found[2] else ""), value)
    return f"{quote}{escaped}{quote}"


def _items(value: Iterable[Any]) -> list[Any]:
    return list(value)
