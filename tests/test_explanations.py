"""Every mistake leads to the right key, and the nearest right one."""

import shutil

import pytest
from conftest import ROOT, composed

from asr import composition
from asr.errors import ConfigError
from asr.pipeline import Pipeline

CONF = ROOT / "conf"

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
    shutil.copytree(CONF, tmp_path / "conf")
    path = tmp_path / "conf" / "topology" / "cpu.yaml"
    path.write_text(path.read_text() + "wrold_size: 1\n")
    with pytest.raises(ConfigError, match=r"wrold_size"):
        composition.compose(conf=tmp_path / "conf")
