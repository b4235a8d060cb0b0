"""The real conf/: every file composes, and every mistake leads to the right key."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, composed, other_half

from asr import composition
from asr.errors import ConfigError
from asr.pipeline import Pipeline

CONF = ROOT / "conf"
GROUPS = ("dataset", "model", "gaudi_config", "trainer", "topology", "experiment")
OPTIONS = [
    f"{group}={path.relative_to(CONF / group).with_suffix('')}"
    for group in GROUPS
    for path in sorted((CONF / group).rglob("*.yaml"))
    if path.parent.name != "published" and (group != "experiment" or "spoken_digits" in str(path))
]
"""All but the published recipes, which tests/test_recipes.py composes."""


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_into_checked_objects(option):
    pipeline = Pipeline.of(composed(option, *other_half(option)))
    assert pipeline.stages == ["train", "evaluate"]


def test_the_defaults():
    assert composed() == composed("experiment=spoken_digits_ctc") == composed("experiment=spoken_digits_ctc/v1")
    pipeline = Pipeline.of(composed())
    assert (pipeline.experiment_name, pipeline.experiment_version) == ("spoken_digits_ctc", "v1")
    assert (pipeline.dataset.train_split, pipeline.dataset.eval_split) == ("train", "test")
    assert pipeline.model.architecture["model_type"] == "wav2vec2-bert"


def test_the_published_gaudi_values():
    node = Pipeline.of(composed("gaudi_config=wav2vec2")).gaudi_config
    assert (node.use_fused_adam, node.use_fused_clip_norm, node.use_torch_autocast) == (True, True, True)


def test_conf_local_is_optional_and_wins(tmp_path):
    import shutil

    shutil.copytree(CONF, tmp_path / "conf")
    (tmp_path / "conf" / "local").mkdir(exist_ok=True)
    (tmp_path / "conf" / "local" / "default.yaml").write_text("seed: 5\ntrainer:\n  args:\n    save_steps: 9\n")
    local = composition.to_container(composition.compose(conf=tmp_path / "conf"))
    assert (local["seed"], local["trainer"]["args"]["save_steps"]) == (5, 9)


def test_an_argument_that_no_file_lists_needs_no_plus():
    args = composed("trainer.args.max_steps=20", "trainer.args.adam_beta1=0.8")["trainer"]["args"]
    assert (args["max_steps"], args["adam_beta1"]) == (20, 0.8)


MISTAKES = [
    ("model.layerdop=0.1", r"^model\.layerdop: there is no such key. Did you mean model\.layerdrop\?"),
    ("learning_rate=1", r"^learning_rate: .* Did you mean trainer\.args\.learning_rate\?"),
    ("max_steps=1", r"^max_steps: .* Did you mean trainer\.args\.max_steps\?"),
    ("modle=wav2vec2_tiny", r"^modle: .* Did you mean model"),
    ("+modle=1", r"^modle: .* Did you mean model"),
    ("model.layerdrop=high", r"^model\.layerdrop: 'high' is not of type float"),
    ("dataset.max_train_samples=1.5", r"^dataset\.max_train_samples: '1\.5' is not of type int"),
    ("stages=7", r"^stages: "),
    ("model=wav2vec2_tny", r"^model: there is no 'wav2vec2_tny' in conf/model. Did you mean wav2vec2_tiny\?"),
    ("experiment=spoken_digit_ctc", r"^experiment: .* Did you mean spoken_digits_ctc\?"),
    ("experiment=spoken_digits_ctc/v9", r"^experiment: .* Did you mean spoken_digits_ctc/v1\?"),
    ("trainer.args.learning_rat=1", r"^trainer\.args\.learning_rat: .* Did you mean learning_rate\?"),
    ("trainer.args.learning_rate=fast", r"^trainer\.args\.learning_rate: 'fast' is not of type float"),
    ("trainer.args.learning_rate=-1", r"^trainer\.args\.learning_rate: -1 is out of range"),
    ("trainer.args.per_device_train_batch_size=0", r"^trainer\.args\.per_device_train_batch_size: 0 is out of range"),
    ("trainer.args.max_steps=0", r"^trainer\.args\.max_steps: 0 is out of range"),
    ("trainer.args.lr_scheduler_type=linaer", r"^trainer\.args\.lr_scheduler_type: .* Did you mean linear\?"),
    ("trainer.args.output_dir=x", r"^trainer\.args\.output_dir: is not set here: hydra\.run\.dir"),
    ("trainer.args.hub_token=secret", r"^trainer\.args\.hub_token: .*HF_TOKEN"),
    ("trainer.eval_metrics=[wre]", r"^trainer\.eval_metrics: 'wre'.*Did you mean wer\?"),
    ("dataset.eval_split=tset", r"^dataset\.eval_split: spoken_digits has no split 'tset'.*Did you mean test\?"),
    ("dataset.max_duration_in_seconds=-1", r"^dataset\.max_duration_in_seconds: "),
    ("model.architecture.hiden_size=8", r"^model\.architecture\.hiden_size: .* Did you mean hidden_size\?"),
    ("model.architecture.model_type=wav2vec", r"^model\.architecture\.model_type: 'wav2vec' has no CTC model"),
    ("model.ctc_loss_reduction=median", r"^model\.ctc_loss_reduction: 'median' is not one of mean, sum"),
    ("text.case=Lower", r"^text\.case: .* Did you mean lower\?"),
    ("stages=[evaluate]", r"^model\.name_or_path: .* name a trained model"),
    ("seed=${nowhere}", r"nowhere"),
    ("dataset=null", r".+"),
    ("+dataset._partial_=true", r"^dataset\._partial_: "),
    ("+model._args_=[1]", r"^model\._args_: "),
    ("+model.config._target_=os.makedirs", r"^model\.config\._target_: only a group's own _target_"),
    ("model.feature_extractor.num_mel_bin=40", r"^model\.feature_extractor\.num_mel_bin: .* Did you mean num_mel_bins\?"),
    ("trainer.args.learning_rate=inf", r"^trainer\.args\.learning_rate: inf is not a finite number"),
    ("trainer.args.metric_for_best_model=wre", r"^trainer\.args\.metric_for_best_model: .* Did you mean wer\?"),
    ("trainer.args.label_smoothing_factor=0.1", r"^trainer\.args\.label_smoothing_factor: is not set here: CTC"),
    ("trainer.eval_metrics=[]", r"^trainer\.eval_metrics: is empty"),
    ("trainer.args.run_name=é", r"^trainer\.args\.run_name: .* quotes"),
    ("experiment_name=..", r"^experiment_name: "),
    ("trainer.args.ddp_backend=nccl", r"^trainer\.args\.ddp_backend: is not set here: topology\.backend names it"),
    ("trainer.args.deepspeed=zero.json", r"^trainer\.args\.deepspeed: is not set here: topology\.deepspeed holds"),
    ("trainer.args.ddp_timeout=0", r"^trainer\.args\.ddp_timeout: 0 is out of range; it must be at least 1"),
    ("topology.environment.WANDB_API_KEY=x", r"^topology\.environment\.WANDB_API_KEY: secrets come from"),
    ("trainer.args.run_name=${oc.env:PLANTED_TOKEN}", r"^trainer\.args\.run_name: holds the value of \$PLANTED_TOKEN"),
    ("trainer.args.max_steps=1,2", r"--multirun"),
    ("=", r".+"),
    ("model", r".+"),
    ("a" * 5000, r"^.{,900}$"),
    ("trainer.args.run_name=" + "[" * 400 + "]" * 400, r"^trainer\.args\.run_name: is nested too deep"),
    ("seed=" + "9" * 5000, r"digits"),
    ("dataset.max_train_samples=" + "9" * 400, r"^dataset\.max_train_samples: 9{20}\.\.\. has more digits"),
    ("augment.speed_factors=${oc.dict.keys:trainer.args}", r"^augment\.speed_factors: .* is not of type list\[float\]"),
    ("+model.architecture={1:2}", r"^model\.architecture\.1: "),
    ("trainer.args.run_name='a\udc80'", r"^trainer\.args\.run_name: is no text"),
    ("batching=../dataset/folder", r"^batching\._target_: 'asr\.sources\.folder\.Folder' is no Batching"),
    ("seed=${seed}", r"."),
]


@pytest.mark.parametrize(("override", "message"), MISTAKES)
def test_a_mistake_names_the_key_and_the_nearest_right_one(override, message, monkeypatch):
    monkeypatch.setenv("PLANTED_TOKEN", "not to be written")
    with pytest.raises(ConfigError, match=message):
        Pipeline.of(composed(override))


def test_a_misspelt_key_in_a_file_is_named(tmp_path):
    import shutil

    shutil.copytree(CONF, tmp_path / "conf")
    path = tmp_path / "conf" / "topology" / "cpu.yaml"
    path.write_text(path.read_text() + "wrold_size: 1\n")
    with pytest.raises(ConfigError, match=r"wrold_size"):
        composition.compose(conf=tmp_path / "conf")


def test_yaml_that_is_no_yaml_is_a_configuration_error(tmp_path):
    import shutil

    shutil.copytree(CONF, tmp_path / "conf")
    (tmp_path / "conf" / "topology" / "cpu.yaml").write_text("a: [1\n")
    with pytest.raises(ConfigError):
        composition.compose(conf=tmp_path / "conf")


def test_no_read_bare_is_the_word_no():
    assert Pipeline.of(composed("trainer.args.eval_strategy=no")).trainer.args["eval_strategy"] == "no"


def test_a_small_grid_is_checked_whole_and_a_large_one_value_by_value():
    pairs = [["a=1", "b=x", "c=5"], ["a=1", "b=y", "c=5"], ["a=2", "b=x", "c=5"], ["a=2", "b=y", "c=5"]]
    assert composition.sweep_variants(["a=1,2", "b=x,y", "c=5"]) == pairs
    variants = composition.sweep_variants(["a=range(0,20)", "b=choice(x,y,z)", "experiment=glob(*)"])
    assert len(variants) == 20 + 3 - 1
    assert {"b=x", "b=y", "b=z"} == {word for variant in variants for word in variant if word.startswith("b=")}


def test_a_sweep_without_end_is_refused_before_it_is_listed():
    for swept in ("seed=range(0,1000000000)", "seed=shuffle(range(0,1000000000))", "seed=range(0,1,1e-12)"):
        with pytest.raises(ConfigError, match=r"^seed: a sweep of more than 10000 values"):
            composition.read_command_line(["-m", swept])
    with pytest.raises(ConfigError, match=r"^the sweep has 1000000 jobs"):
        composition.read_command_line(["-m", "seed=range(0,1000)", "trainer.args.max_steps=range(1,1001)"])
    with pytest.raises(ConfigError, match=r"must not be zero"):
        composition.read_command_line(["-m", "seed=range(0,3,0)"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nosuch"], "unrecognized arguments: --nosuch"),
        (["--config-dir", "nowhere"], "--config-dir: there is no folder 'nowhere'"),
        (["--config-path", ""], "--config-path: there is no folder ''"),
        (["--experimental-rerun", "a.pickle"], "--experimental-rerun unpickles a file"),
        (["seed=1\0"], "holds a null byte"),
        (["x=" + "a" * 20_000], "is 20002 characters long"),
    ],
)
def test_a_flag_that_can_t_be_followed_is_refused_in_a_line(words, message):
    with pytest.raises(ConfigError) as refused:
        composition.read_command_line(words)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_part_of_a_configuration_is_no_configuration():
    with pytest.raises(ConfigError, match=r"^stages: is missing"):
        Pipeline.of({key: value for key, value in composed().items() if key != "stages"})


def bomb(first: str, line: str) -> str:
    return first + "".join(line.format(this=i, that=", ".join([f"*b{i - 1}"] * 9)) for i in range(1, 12))


BAD_FILES = {
    "lists of lists": (bomb("b0: &b0 [a]\n", "b{this}: &b{this} [{that}]\n"), r"spoilt\.yaml:\d+: holds more than 100000 values"),
    "merges of merges": (bomb("b0: &b0 {a: 1}\n", "b{this}: &b{this} {{<<: [{that}]}}\n"), r":\d+: holds more than 100000 values"),
    "what holds itself": ("a: &a [*a]\n", r":1: \*a stands for what holds it"),
    "a deep list": ("a: " + "[" * 2000 + "]" * 2000, r":1: is nested more than 100 deep"),
    "an open bracket": ("a: [1\n", r":\d+ is not YAML"),
    "another encoding": ("é: 1\n".encode("utf-16"), r"is not UTF-8"),
    "a list": ("- a\n", r"spoilt\.yaml"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_is_wrong_or_grows_when_it_is_read_is_named(name, tmp_path):
    content, message = BAD_FILES[name]
    path = tmp_path / "topology" / "spoilt.yaml"
    path.parent.mkdir()
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    asked = composition.read_command_line(["--config-dir", str(tmp_path), "topology=spoilt"])
    with pytest.raises(ConfigError, match=message):
        composition.compose(asked.jobs[0])


def test_a_defaults_list_that_leads_back_to_itself_is_refused_soon(tmp_path):
    (tmp_path / "topology").mkdir()
    (tmp_path / "topology" / "circle.yaml").write_text("defaults:\n  - circle\n")
    asked = composition.read_command_line(["--config-dir", str(tmp_path), "topology=circle"])
    limit = sys.getrecursionlimit()
    with pytest.raises(ConfigError, match=r"leads back to itself"):
        composition.compose(asked.jobs[0])
    assert sys.getrecursionlimit() == limit


def test_anchors_that_stand_for_little_are_followed(tmp_path):
    (tmp_path / "ok.yaml").write_text("a: &a {x: [1, 2]}\nb: *a\nc: {<<: *a, y: 3}\n")
    composition.check_yaml(tmp_path / "ok.yaml")


def test_config_path_and_searchpath_are_followed(tmp_path):
    import shutil

    shutil.copytree(CONF, tmp_path / "my conf, x=1")
    (tmp_path / "extra it's" / "topology").mkdir(parents=True)
    shutil.copy(CONF / "topology" / "cpu.yaml", tmp_path / "extra it's" / "topology" / "mine.yaml")
    asked = composition.read_command_line(["-cp", str(tmp_path / "my conf, x=1"), "seed=3"])
    assert composition.compose(asked.jobs[0], conf=asked.conf)["seed"] == 3
    asked = composition.read_command_line(["--config-dir", str(tmp_path / "extra it's"), "topology=mine"])
    assert composition.compose(asked.jobs[0])["topology"]["device"] == "cpu"
    with pytest.raises(ConfigError, match=r"leave --multirun out"):
        composition.read_command_line(["-m", "--cfg", "job"])


def test_local_paths_become_absolute(tmp_path):
    (tmp_path / "m").mkdir()
    config = composition.with_absolute_paths(composed("model.name_or_path=m", "dataset.root=nowhere"), tmp_path)
    assert config["model"]["name_or_path"] == str(tmp_path / "m")
    assert config["dataset"]["root"] == "nowhere"
    halves = ["trainer=seq2seq", "model=wav2vec2_bart_base", "model.encoder_name_or_path=m", "model.decoder_name_or_path=someone/else"]
    config = composition.with_absolute_paths(composed(*halves), tmp_path)
    assert config["model"]["encoder_name_or_path"] == str(tmp_path / "m")
    assert config["model"]["decoder_name_or_path"] == "someone/else"


def test_composing_and_checking_import_no_heavy_package():
    code = (
        "import sys; from asr import composition; from asr.pipeline import Pipeline;"
        "Pipeline.of(composition.to_container(composition.compose(['model=wav2vec2_large_lv60'])));"
        "print([m for m in ('torch', 'transformers', 'datasets', 'evaluate', 'optimum.habana', 'numpy', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_yaml_files_name_no_unknown_place():
    for path in CONF.rglob("*.yaml"):
        assert isinstance(yaml.safe_load(path.read_text()), dict), path
    assert Path(CONF / "config.yaml").read_text().count("\n") < 40


def test_a_bare_experiment_name_is_its_newest_version():
    for alias in (CONF / "experiment").glob("*.yaml"):
        versions = sorted(int(path.stem[1:]) for path in (CONF / "experiment" / alias.stem).glob("v*.yaml") if path.stem[1:].isdigit())
        assert yaml.safe_load(alias.read_text())["defaults"] == [f"{alias.stem}/v{versions[-1]}"]
        released = composed(f"experiment={alias.stem}")
        assert (released["experiment_name"], released["experiment_version"]) == (alias.stem, f"v{versions[-1]}")


def test_defaults_that_count_epochs_are_not_meant_for_streams():
    stream = ["dataset=hub", "dataset.streaming=true"]
    for overrides, epochs, saves in (
        ([], 4, "epoch"),
        (stream, None, "steps"),
        ([*stream, "trainer.args.num_train_epochs=2", "trainer.args.save_strategy=epoch"], 2, "epoch"),
    ):
        args = composed(*overrides)["trainer"]["args"]
        assert (args["num_train_epochs"], args["save_strategy"]) == (epochs, saves)
