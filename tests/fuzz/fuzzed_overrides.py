"""Command lines that a user might type, by hand or by a script that went wrong, and worse ones.

In: a seed and a number. Out: the arguments of a `python launch.py`, the same ones each time.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache

from omegaconf import OmegaConf

from asr import composition
from asr.config import dotted_keys

LONG = "a" * 50_000
DEEP = 400

VALUES = [
    *("null", "true", "no", "0", "1", "2", "-1", "0.5", "1e-3", "1e999", "nan", "inf", "-inf", "NaN", ".inf", "-0.0", "1_000", "0x10"),
    *("007",),
    *("9" * 30, "9" * 400, "9" * 5000, "-" + "9" * 400, "1e308", "2147483648", "9223372036854775808", "4294967296"),
    *("", " ", "''", '""', "'", '"', "'a", 'a"b', "'it''s'", "a b", "a\tb", "a\nb", "\n", "\r", "\\", "\\'", "%s", "{}", "#", "a#b"),
    *("a:b", "a: b", "=", "=="),
    *("é", "日本語", "\u202eabc", "\ufeff", "\u2028", "🙂"),
    *("\x00", "a\x00b", "\x1b[31m", "\x7f", "\udc80\udcff", "'\udc80'", "'\x00'", "'é'"),
    *("[", "]", "[]", "[1,", "[1,2]", "[null]", "[[1],[2]]", "[a,{b:c}]", "(", ")", "{", "}", "{a:1}", "{a:{b:{c:1}}}", "{a:1,a:2}"),
    *("{1:2}", "{null:1}"),
    *("[" * DEEP, "[" * DEEP + "]" * DEEP, "{a:" * DEEP + "1" + "}" * DEEP, "${" * DEEP, "${a:" * DEEP + "}" * DEEP),
    *("${", "${}", "${seed}", "${nowhere}", "${nowhere.at.all}", "${.}", "${..}", "${..seed}", "${.seed}", "${....seed}"),
    *("${seed}${seed}", "a${seed}"),
    *("${oc.env:HOME}", "${oc.env:NOT_SET}", "${oc.env:NOT_SET,null}", "${oc.env}", "${oc.decode:'{'}", "${oc.create:{a:1}}"),
    *("${oc.create:{_target_:os.getcwd}}",),
    *("${oc.select:seed}", "${oc.select:}", "${oc.dict.keys:trainer.args}", "${oc.dict.values:trainer}", "${oc.deprecated:seed}"),
    *("${nosuch:1}", "${trainer}"),
    *("${trainer.args}", "${hydra:runtime.cwd}", "${hydra:nowhere}", "${hydra:}", "${now:%Y}", "${now:%}", "${now:}"),
    *("${python_version:}", "???"),
    *("a,b", "1,2,3", "a,,b", ",", "range(0,3)", "range(3)", "range(0,1000000000)", "range(0,3,0)", "range(a,b)", "range(0,1,1e-12)"),
    *("glob(*)", "glob([)"),
    *("glob(no*)", "choice(1,2)", "choice()", "choice(1", "interval(0,1)", "interval(a,b)", "shuffle(1,2)", "shuffle(range(0,5))"),
    *("sort(3,1)", "sort([3,a])"),
    *("tag(x,choice(1))", "tag(x)", "int(x)", "int(1.5)", "float(1)", "float(x)", "str(1)", "bool(x)", "json_str({a:1})"),
    *("extend_list(1)", "nosuch(1)"),
    *("..", ".", "/", "~", "../../../etc/passwd", "/etc/passwd", "/dev/null", "/nowhere/at/all", "file:///", "schema://x", "pkg://os"),
    *("http://a/b", "a/b/c"),
    *(LONG, f"'{LONG}'", "/".join(["d"] * 3000), f"[{','.join(['1'] * 5000)}]", "hpu", "cpu", "torchrun", "*", "_target_", "os.makedirs"),
    *("class",),
]  # fmt: skip
OTHER_KEYS = [
    *("", ".", "..", "a", "a.b", "seed.x", "seed.x.y", "stages.0", "stages[0]", "stages.x", "trainer.args", "trainer", "hydra", "_self_"),
    *("defaults",),
    *("_target_", "_args_", "_partial_", "_convert_", "_recursive_", "dataset._target_", "model._target_", "trainer.args._target_"),
    *("topology._args_",),
    *("trainer._convert_", "model._recursive_", "dataset._partial_", "@", "dataset@x", "model@_global_", "dataset@dataset"),
    *("trainer@trainer.args",),
    *("schema/asr.config.Config", "schema", "experiment@_global_", "é", "a b", "a\x00", "\udc80", "a-b", "1", "null", "true", "[a]"),
    *("{a}", "${seed}"),
    *("trainer..args", "trainer.args.", ".seed", "seed.", "learning_rate", "trainer.args.nope", "trainer.args.fp16", "a" * 3000),
    *(".".join("a" * 300),),
    *("model.architecture.hidden_size", "model.architecture", "model.feature_extractor", "topology.environment.X"),
    *("topology.environment.A_TOKEN",),
    *("topology.deepspeed.x", "topology.environment", "dataset.parts", "trainer.args.bf16", "trainer.args.max_steps"),
    *("trainer.args.lr_scheduler_kwargs",),
    *("trainer.args.fsdp", "trainer.args.report_to", "trainer.args.logging_dir", "trainer.args.eval_strategy", "trainer.args.save_steps"),
]  # fmt: skip
HYDRA_KEYS = [
    *("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.launcher", "hydra.launcher._target_", "hydra.sweeper"),
    *("hydra.sweeper._target_",),
    *("hydra.sweeper.max_batch_size", "hydra.sweeper.params", "hydra.mode", "hydra.searchpath", "hydra.job.chdir", "hydra.job.name"),
    *("hydra.job.env_set",),
    *("hydra.job.env_copy", "hydra.job.num", "hydra.job.id", "hydra.job.config.override_dirname", "hydra.verbose", "hydra.output_subdir"),
    *("hydra.callbacks",),
    *("hydra.callbacks.x", "hydra.job_logging", "hydra.job_logging.version", "hydra.job_logging.root", "hydra.hydra_logging"),
    *("hydra.hydra_logging.handlers",),
    *("hydra.help", "hydra.help.template", "hydra.help.app_name", "hydra.hydra_help.template", "hydra.overrides", "hydra.overrides.task"),
    *("hydra.runtime",),
    *("hydra.runtime.cwd", "hydra.runtime.output_dir", "hydra.runtime.choices", "hydra.env", "hydra.nope", "hydra.job.env_set.X"),
]  # fmt: skip
GROUPS = "dataset batching model gaudi_config trainer topology experiment hydra/launcher hydra/sweeper hydra/job_logging hydra/help".split()
GROUPS += "hydra/hydra_logging deepspeed deepspeed@topology.deepspeed local@_global_ nowhere model/published hydra hydra/output".split()
CHOICES = [
    *("", "null", "[]", "[a,b]", "..", "../config", "../../launch", "/etc/passwd", "../dataset/folder", "config", "cpu", "hub", "folder"),
    *("jsonl", "kaldi"),
    *("librispeech", "common_voice", "librispeech_clean_100", "hpu1", "hpu8", "hpu_nodes", "gpu8", "gpu1", "cpu2", "hpu8_deepspeed"),
    *("zero2", "default"),
    *("published/ctc", "published", "wav2vec2_tiny", "xls_r_300m", "w2v_bert_2", "buckets,fixed", "glob(*)", "spoken_digits_ctc/v1"),
    *("spoken_digits_ctc/v9",),
    *("wav2vec2_tny", "é", "\x00", "a b", "a" * 3000, "none", "basic", "colorlog", "optuna", "gaudi_slurm", "stdout", "disabled"),
    *("${seed}", "???", "1"),
]  # fmt: skip
LIKELY = [
    *("seed=3", "dry_run=true", "rehearse=true", "stages=[prepare]", "stages=[evaluate]", "topology=cpu2", "dataset=hub"),
    *("trainer.engine=transformers", "trainer.args.max_steps=5", "trainer.args.learning_rate=1e-3", "+trainer.args.max_steps=2"),
    *("model=wav2vec2_tiny",),
    *("hydra.run.dir=x", "hydra.sweep.dir=y", "hydra.job.chdir=true", "hydra.mode=MULTIRUN", "hydra.verbose=true", "hydra.verbose=[asr]"),
    *("seed=1,2,3",),
    *("batching=fixed", "dataset.max_train_samples=4", "model.layerdrop=0.1", "experiment=spoken_digits_ctc/v1"),
    *("hydra.output_subdir=null",),
    *("dataset=spoken_digits", "gaudi_config=wav2vec2", "trainer.args.logging_steps=5", "experiment_name=mine", "text.case=lower"),
]  # fmt: skip
VALUES_OF_FLAGS = {
    "--cfg": ("job", "hydra", "all", "nothing", ""),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath", "nothing"),
    "--package": ("trainer", "_global_", "nowhere", "", "é"),
    "--config-name": ("config", "nowhere", "", "..", "../launch", "/etc/passwd", "dataset/folder", "a\x00", LONG),
    "-cn": ("config", "nowhere", "", "..", "dataset/folder"),
    "--config-path": ("conf", "nowhere", "", "..", "/etc", "/etc/passwd", "pkg://os", "a\x00", LONG, "asr"),
    "-cp": ("conf", "nowhere", "", "asr"),
    "--config-dir": (".", "nowhere", "", "..", "/dev/null", "a'b", "a\x00", LONG, "\udc80"),
    "-cd": (".", "nowhere", "", "/dev/null"),
    "--experimental-rerun": ("nowhere", "/etc/passwd", "", "."),
}
FLAGS = [[flag] for flag in "--help -h --hydra-help --version --resolve --run -r --multirun -m -sc --shell-completion".split()]
FLAGS += [[flag] for flag in "--config-name --config-path --config-dir --cfg --info --nosuch -x -- - ---".split()]
FLAGS += [[flag, value] for flag, values in VALUES_OF_FLAGS.items() for value in values]


@lru_cache
def keys() -> list[str]:
    """Return every key of a composed configuration, Hydra's own included."""
    found: dict[str, None] = {}
    for dataset in ("spoken_digits", "hub", "folder"):
        composed = composition.compose([f"dataset={dataset}"], with_hydra=True)
        found |= dict.fromkeys(dotted_keys(OmegaConf.to_container(composed)))
    return list(found)


def command_line(seed: int, number: int) -> list[str]:
    """Return the arguments of one launch."""
    dice = random.Random(f"{seed}-{number}")
    words = [_override(dice) for _ in range(dice.choices((1, 2, 3, 8), (60, 25, 10, 5))[0])]
    if dice.random() < 0.15:
        words[:0] = dice.choice(FLAGS)
    if dice.random() < 0.05:
        words[:0] = dice.choice(FLAGS)
    if dice.random() < 0.15:
        words.append("-m")
    return words


def _override(dice: random.Random) -> str:
    if dice.random() < 0.2:
        return dice.choice(LIKELY)
    kind = dice.random()
    if kind < 0.12:
        return f"{dice.choice(('', '', '+', '++', '~'))}{dice.choice(GROUPS)}={dice.choice(CHOICES)}"
    if kind < 0.17:
        return dice.choice(VALUES)
    key = dice.choice(dice.choices((keys(), OTHER_KEYS, HYDRA_KEYS), (60, 20, 20))[0])
    if kind < 0.25:
        return f"~{key}" if dice.random() < 0.6 else f"~{key}={dice.choice(VALUES)}"
    sign = dice.choices(("", "+", "++", "+++"), (75, 12, 12, 1))[0]
    return f"{sign}{key}={_value(dice, key)}"


def _value(dice: random.Random, key: str) -> str:
    kind = dice.random()
    if kind < 0.75:
        return dice.choice(VALUES)
    if kind < 0.8:
        return "${" + key + "}"  # of itself
    if kind < 0.9:
        return "".join(dice.choice("[]{}(),:='\"\\$#~+. aé\n1-") for _ in range(dice.randint(1, 12)))
    return dice.choice(("[{}]", "{{a:{}}}", "'{}'", "{},{}", "choice({})", "str({})", "${{oc.env:{}}}")).replace("{}", dice.choice(VALUES))


def can_be_typed(words: Sequence[str]) -> bool:
    """Whether a shell can hand these arguments to a process: no null byte, and not longer than Linux takes."""
    return all("\0" not in word and len(word) < 100_000 for word in words)
