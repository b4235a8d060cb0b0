"""Any experiment of conf/ made small: the same path where the stand-in has it, and every other change said with its reason."""

import json
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from types import SimpleNamespace

import pytest
from conftest import ROOT, composed, other_half
from test_ctc import large_checkpoint

from asr import compatibility, vocabulary
from asr.errors import ConfigError
from asr.pipeline import Pipeline
from asr.rehearsal.shrink import shrink
from asr.vocabulary import Vocabulary

pytestmark = pytest.mark.optimum_habana  # most topologies are Gaudi's


def shrunk(*overrides):
    asked = composed(*overrides, "rehearse=true")
    before = deepcopy(asked)
    made = shrink(asked)
    assert asked == before
    assert made.config["rehearse"] is True
    assert json.loads(json.dumps(made.config)) == made.config  # config.yaml holds it
    json.dumps([vars(change) for change in (*made.sizes, *made.substitutions)])
    assert all(change.why for change in (*made.sizes, *made.substitutions))
    Pipeline.of(made.config)
    return made


def by_key(changes):
    return {change.key: (change.asked, change.rehearsed) for change in changes}


def args(made):
    return made.config["trainer"]["args"]


@lru_cache
def composed_once():
    return composed()


# ---- topologies ----

TOPOLOGIES = [
    # overrides, launcher, backend, ranks, what is replaced
    (["topology=hpu1"], "torchrun", None, 1, {}),
    (["topology=hpu8"], "torchrun", "hccl", 2, {}),
    (["topology=hpu8", "topology.launcher=mpirun"], "mpirun", "hccl", 2, {}),
    (["topology=hpu1", "topology.world_size=2", "topology.master_port=29500"], "torchrun", None, 2, {}),
    (["topology=hpu_nodes", "topology.node_rank=1", "topology.master_addr=h"], "torchrun", "hccl", 2, {"topology.num_nodes": (2, 1)}),
    (["topology=cpu"], "torchrun", None, 1, {"topology.device": ("cpu", "hpu")}),
    (["topology=cpu2"], "torchrun", "hccl", 2, {"topology.device": ("cpu", "hpu"), "topology.backend": ("gloo", "hccl")}),
    (["topology=gpu1"], "torchrun", None, 1, {"topology.device": ("cuda", "hpu")}),
    (["topology=gpu4"], "torchrun", "hccl", 2, {"topology.device": ("cuda", "hpu"), "topology.backend": ("nccl", "hccl")}),
    (["topology=gpu8"], "torchrun", "hccl", 2, {"topology.device": ("cuda", "hpu"), "topology.backend": ("nccl", "hccl")}),
    (
        ["topology=hpu8_deepspeed"],
        "torchrun",
        "hccl",
        2,
        {"topology.launcher": ("deepspeed", "torchrun"), "topology.deepspeed": ("ZeRO stage 2", "DDP")},
    ),
    (
        ["topology=hpu8_deepspeed", "topology.world_size=1"],
        "torchrun",
        "hccl",
        1,
        {"topology.launcher": ("deepspeed", "torchrun"), "topology.deepspeed": ("ZeRO stage 2", "one rank without it")},
    ),
]


def test_no_topology_of_conf_is_left_out():
    named = {override for overrides, *_ in TOPOLOGIES for override in overrides}
    assert {f"topology={path.stem}" for path in (ROOT / "conf" / "topology").glob("*.yaml")} <= named


@pytest.mark.parametrize(("overrides", "launcher", "backend", "ranks", "replaced"), TOPOLOGIES)
def test_every_topology_becomes_at_most_two_ranks_of_the_hpu_on_this_host(overrides, launcher, backend, ranks, replaced):
    made = shrunk(*overrides, "+topology.environment.PT_HPU_ENABLE_LAZY_COLLECTIVES=1")
    asked, where = Pipeline.of(composed(*overrides)), Pipeline.of(made.config).topology
    assert (where.device, where.use_habana, where.use_lazy_mode) == ("hpu", True, True)
    assert (where.num_processes, where.num_nodes, where.launcher, where.backend) == (ranks, 1, launcher, backend)
    assert (where.hostfile, where.node_rank, where.master_addr, where.master_port, where.deepspeed) == (None, None, None, None, {})
    assert where.environment == asked.topology.environment | {"PT_HPU_ENABLE_LAZY_COLLECTIVES": 1}
    assert by_key(made.substitutions) == replaced
    of_ranks = by_key(made.sizes).get("topology.world_size")
    assert of_ranks == ((asked.topology.num_processes, 2) if asked.topology.num_processes > 2 else None)
    assert made.config["trainer"]["engine"] == asked.trainer.engine


def test_eager_mode_and_an_hpu_reached_by_accelerate_alone_stay():
    where = shrunk("topology=hpu1", "topology.use_lazy_mode=false", "topology.use_habana=false").config["topology"]
    assert (where["use_lazy_mode"], where["use_habana"]) == (False, False)


def test_deepspeed_on_several_servers(tmp_path):
    (tmp_path / "hosts").write_text("a slots=8\nb slots=8\n")
    made = shrunk("topology=hpu_nodes", "topology.launcher=deepspeed", f"topology.hostfile='{tmp_path}/hosts'")
    assert made.config["topology"]["hostfile"] is None
    assert set(by_key(made.substitutions)) == {"topology.num_nodes", "topology.launcher"}


@pytest.mark.parametrize(
    ("overrides", "name", "value"),
    [
        (["model.layerdrop=0.1"], "ddp_find_unused_parameters", True),
        (["model.layerdrop=0.1", "+trainer.args.ddp_find_unused_parameters=true"], "", None),
        (["model.layerdrop=0"], "", None),
        (["+trainer.args.use_hpu_graphs_for_training=true"], "distribution_strategy", "fast_ddp"),
        (["model.layerdrop=0.1", "topology.world_size=1"], "", None),
        (["model.layerdrop=0.1", "stages=[evaluate]", "model=wav2vec2_base"], "", None),
    ],
)
def test_what_deepspeed_would_have_done_is_not_asked_of_ddp(overrides, name, value, tmp_path):
    checkpoint = [f"model.name_or_path='{large_checkpoint(tmp_path / 'ctc', 'wav2vec2')}'"] if "stages=[evaluate]" in overrides else []
    made = shrunk("topology=hpu8_deepspeed", *overrides, *checkpoint)
    changed = {key: rehearsed for key, (_, rehearsed) in by_key(made.substitutions).items() if key.startswith("trainer.args.")}
    assert changed == ({f"trainer.args.{name}": value} if name else {})
    rules = [problem.key for problem in compatibility.problems(Pipeline.of(made.config))]
    assert rules == []


# ---- the model ----


def test_the_default_experiment():
    made = shrunk()
    assert by_key(made.sizes) == {
        "model": (
            "2 layers of width 128, 4 heads, feed-forward of width 384",
            "2 layers of width 32, 4 heads, feed-forward of width 64",
        ),
        "trainer.args.num_train_epochs": ("4 epochs", "a few steps"),
        "trainer.args.report_to": (["tensorboard"], []),
        "trainer.args.save_strategy": ("saves by epoch, evaluates by no", "once, in the middle"),
    }
    asked = composed()
    for node in ("dataset", "text", "vocabulary", "augment", "batching", "gaudi_config", "seed", "stages"):
        assert made.config[node] == asked[node], node


def test_a_large_checkpoint_s_weights_are_not_even_there(tmp_path):
    folder = large_checkpoint(
        tmp_path / "large", "wav2vec2", hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    )
    made = shrunk("topology=hpu8", "model=wav2vec2_large_lv60", f"model.name_or_path='{folder}'", "vocabulary.rebuild=true")
    sizes = by_key(made.sizes)
    assert sizes["model.name_or_path"] == (str(folder), None)
    assert sizes["model"] == (
        "24 layers of width 1024, 16 heads, feed-forward of width 4096, convolutions of width 512",
        "2 layers of width 32, 4 heads, feed-forward of width 64, convolutions of width 16",
    )
    pipeline = Pipeline.of(made.config)
    assert pipeline.builds_vocabulary
    assert (pipeline.model.mask_time_prob, pipeline.model.freeze_feature_encoder) == (0.05, True)


def test_a_span_of_masked_features_fits_the_small_model():
    made = shrunk("model.mask_feature_length=100", "model.mask_feature_prob=0.1")
    assert by_key(made.sizes)["model.mask_feature_length"] == (100, 32)
    assert Pipeline.of(made.config).model.mask_feature_length == 32


MODELS = sorted(path.stem for path in (ROOT / "conf" / "model").glob("*.yaml"))


@pytest.mark.parametrize("name", [name for name in MODELS if not other_half(f"model={name}")])
def test_every_ctc_model_of_conf_shrinks(name, tmp_path):
    kind = {"w2v_bert_2": "wav2vec2-bert", "hubert_large": "hubert"}.get(name, "wav2vec2")
    here = [] if name.endswith("_tiny") else [f"model.name_or_path='{large_checkpoint(tmp_path / 'large', kind)}'"]
    made = shrunk(f"model={name}", *here)
    assert made.config["model"]["name_or_path"] is None
    assert made.config["model"]["architecture"]["hidden_size"] == 32
    assert "model" in by_key(made.sizes)


WHISPER = {"model_type": "whisper", "vocab_size": 51865, "d_model": 512, "encoder_layers": 6, "encoder_ffn_dim": 2048, "decoder_layers": 6}


GENERATING = [name for name in MODELS if other_half(f"model={name}")]
LIKE_ANOTHER = {name for name in GENERATING if name.startswith("whisper_")} - {"whisper_small"} | {"wav2vec2_bart_large"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in LIKE_ANOTHER else []) for n in GENERATING])
def test_every_model_of_conf_that_generates_shrinks(name, tmp_path):
    here = []
    if name.startswith("whisper_"):
        (tmp_path / "config.json").write_text(json.dumps(WHISPER))
        (tmp_path / "preprocessor_config.json").write_text('{"feature_extractor_type": "WhisperFeatureExtractor"}')
        here = [f"model.name_or_path='{tmp_path}'"]
    elif name.startswith("wav2vec2_bart_"):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "bart", "d_model": 768, "decoder_layers": 6}))
        encoder = large_checkpoint(tmp_path / "large", "wav2vec2")
        here = [f"model.encoder_name_or_path='{encoder}'", f"model.decoder_name_or_path='{tmp_path}'"]
    made = shrunk("trainer=seq2seq", f"model={name}", *here)
    small = Pipeline.of(made.config).model
    values = small.config_values("decoder") if hasattr(small, "decoder") else small.config_values()
    assert (values["d_model"], values["decoder_layers"]) == (32, 2)
    whole = Pipeline.of(composed("trainer=seq2seq", f"model={name}", *here)).model
    assert small.input_length()(1.0) == whole.input_length()(1.0)
    assert small.known_layerdrop() == whole.known_layerdrop(), "an option stays, whatever the checkpoint's config says of it"
    if name != "digits_whisper" and name != "digits_encoder_decoder":
        assert made.config["vocabulary"]["tokenizer_name_or_path"] == str(tmp_path)


def trained(folder, tmp_path):
    """Add a tokenizer to a checkpoint: it is a trained model, but for its weights."""
    Vocabulary().tokenizer_from(Vocabulary().build(["xyz"]), tmp_path).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("stages", ["[train,evaluate]", "[evaluate]"])
def test_a_trained_model_s_own_tokenizer_is_kept(stages, tmp_path):
    folder = trained(large_checkpoint(tmp_path / "ctc", "wav2vec2"), tmp_path)
    made = shrunk("model=wav2vec2_base", f"model.name_or_path='{folder}'", f"stages={stages}")
    pipeline = Pipeline.of(made.config)
    assert not pipeline.builds_vocabulary
    assert "x" in pipeline.tokenizer(tmp_path).get_vocab()
    assert pipeline.model.load(pipeline.tokenizer(tmp_path), new_head=False).lm_head.out_features == 6
    pipeline.check_reachable()


def test_a_tokenizer_has_the_checkpoint_s_revision_or_none(tmp_path, monkeypatch):
    from transformers import AutoTokenizer

    folder = trained(large_checkpoint(tmp_path / "ctc", "wav2vec2"), tmp_path)
    seen = []

    def spied(name, *, key, revision=None, **where):
        seen.append((name, revision))
        return tmp_path

    monkeypatch.setattr(vocabulary, "tokenizer_folder", spied)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: SimpleNamespace(pad_token_id=0))
    named = ["model=wav2vec2_base", f"model.name_or_path='{folder}'", "model.revision=v2"]
    for given in ([], ["vocabulary.tokenizer_name_or_path=another/one"]):
        Pipeline.of(shrunk(*named, *given).config).tokenizer(tmp_path)
    assert seen == [(str(folder), "v2"), ("another/one", None)]


def test_an_encoder_alone_is_not_evaluated(tmp_path):
    folder = large_checkpoint(tmp_path / "encoder", "wav2vec2")
    (folder / "config.json").write_text(json.dumps({"model_type": "wav2vec2", "architectures": ["Wav2Vec2ForPreTraining"]}))
    named = ["model=wav2vec2_base", f"model.name_or_path='{folder}'"]
    with pytest.raises(ConfigError, match=r"^model\.name_or_path: .* has no CTC output layer"):
        shrunk(*named, "stages=[evaluate]")
    assert Pipeline.of(shrunk(*named).config).builds_vocabulary


# ---- what is refused ----


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stages=[prepare]"], r"^stages: has neither train nor evaluate, so there is nothing to rehearse"),
        (["stages=[evaluate]"], r"^model\.name_or_path: .* name a trained model"),
        (["trainer.args.learning_rat=1"], r"^trainer\.args\.learning_rat"),
        (["model=wav2vec2_base", "model.name_or_path=./nosuch"], r"^model\.name_or_path: there is no folder"),
    ],
)
def test_what_is_refused_stays_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        shrink(composed(*(f"+{o}" if "learning_rat=" in o else o for o in overrides), "rehearse=true"))


def test_a_repository_s_own_code_can_not_be_shrunk(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "configuration.Mine"}}))
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"^model\.name_or_path: .* a rehearsal can't shrink"):
        shrunk("model=wav2vec2_base", f"model.name_or_path='{tmp_path}'", "model.trust_remote_code=true")


@dataclass(kw_only=True)
class Theirs:
    """A team's own model class."""

    layers: int = 24
    name_or_path: str | None = None

    def has_own_tokenizer(self):
        return False


@dataclass(kw_only=True)
class TheirsThatShrinks(Theirs):
    def shrunk(self):
        return type(self)(layers=1)


def test_a_team_s_own_model_says_how_it_is_shrunk():
    asked = composed()
    asked["model"] = {"_target_": f"{__name__}.Theirs"}
    with pytest.raises(ConfigError, match=r"^model: Theirs has no method shrunk\(\)"):
        shrink(asked)
    asked["model"] = {"_target_": f"{__name__}.TheirsThatShrinks", "layers": 12}
    made = shrink(asked)
    assert made.config["model"] == {"_target_": f"{__name__}.TheirsThatShrinks", "layers": 1}
    assert by_key(made.sizes)["model.layers"] == (12, 1)


# ---- training arguments ----


def test_training_is_short_and_saves_when_it_is_told_to():
    made = shrunk(
        "topology=hpu1",
        *("trainer.args.eval_strategy=epoch", "+trainer.args.max_steps=500", "+trainer.args.push_to_hub=true"),
        *("+trainer.args.dataloader_num_workers=8", "+trainer.args.dataloader_prefetch_factor=4", "+trainer.args.bf16=true"),
        *("+trainer.args.auto_find_batch_size=true", "+trainer.args.gradient_accumulation_steps=4"),
    )
    asked = composed()["trainer"]["args"]
    steps = {"save_strategy": "steps", "save_steps": 1_000_000, "eval_strategy": "steps", "eval_steps": 1_000_000}
    ours = {"num_train_epochs": 1, "max_steps": -1, "report_to": [], "save_total_limit": None, "push_to_hub": False, **steps}
    ours |= {"auto_find_batch_size": False, "dataloader_num_workers": 1, "dataloader_prefetch_factor": 4}
    assert args(made) == {**asked, **ours, "bf16": True, "gradient_accumulation_steps": 4}
    assert by_key(made.sizes)["trainer.args.num_train_epochs"] == ("500 steps", "a few steps")
    assert by_key(made.sizes)["trainer.args.dataloader_num_workers"] == (8, 1)
    assert by_key(made.substitutions) == {
        "trainer.args.auto_find_batch_size": (True, False),
    }


def test_no_worker_stays_none_and_no_evaluation_none():
    assert "dataloader_num_workers" not in args(shrunk())
    assert args(shrunk("+trainer.args.dataloader_num_workers=0"))["dataloader_num_workers"] == 0
    assert args(shrunk())["eval_strategy"] == "no"
    assert args(shrunk("trainer.args.eval_strategy=no"))["eval_strategy"] in ("no", False)


STRATEGIES = ["no", "steps", "epoch"]


@pytest.mark.parametrize(
    ("evaluates", "saves", "steps"),
    [
        *product(STRATEGIES, [*STRATEGIES, "best"], [(None, None)]),
        *(("steps", "steps", each) for each in ((4, 8), (4, 6), (0.1, 0.3), (0.1, 0.25), (0.1, 50))),
    ],
)
def test_what_the_library_refuses_of_the_best_model_it_refuses_of_the_rehearsal(evaluates, saves, steps, tmp_path):
    from transformers import TrainingArguments

    given = dict(zip(("eval_steps", "save_steps"), steps, strict=True)) if steps[0] else {}
    asked = {"eval_strategy": evaluates, "save_strategy": saves, "load_best_model_at_end": True, "metric_for_best_model": "loss", **given}

    def refused(**arguments):
        names = ("eval_strategy", "save_strategy", "load_best_model_at_end", "metric_for_best_model", "eval_steps", "save_steps")
        try:
            TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], **{k: v for k, v in arguments.items() if k in names})
        except ValueError as error:
            return "load_best_model_at_end" in str(error)
        return False

    plain = deepcopy(composed_once())
    plain["trainer"]["args"] |= asked
    assert refused(**args(shrink(plain))) == refused(**asked)


def test_the_one_checkpoint_of_a_rehearsal_is_not_averaged():
    made = shrunk("trainer.average_checkpoints=2")
    assert made.config["trainer"]["average_checkpoints"] is None
    assert by_key(made.sizes)["trainer.average_checkpoints"] == (2, None)
    assert "trainer.average_checkpoints" not in by_key(shrunk().sizes)


@pytest.mark.parametrize("name", ["torch_compile=true", "torch_compile_backend=hpu_backend", "torch_compile_mode=default"])
def test_the_compiler_is_left_out(name):
    eager = ["topology=hpu1", "topology.use_lazy_mode=false"]
    made = shrunk(*eager, f"+trainer.args.{name}")
    assert args(made)["torch_compile"] is False
    assert not {"torch_compile_backend", "torch_compile_mode"} & args(made).keys()
    assert set(by_key(made.substitutions)) == {"trainer.args.torch_compile"}


def test_graphs_go_with_the_compiler_that_took_lazy_mode_s_place():
    graphs = ["use_hpu_graphs_for_inference=true", "max_hpu_graphs=4", "torch_compile_backend=hpu_backend"]
    made = shrunk("topology=hpu1", "topology.use_lazy_mode=false", *(f"+trainer.args.{each}" for each in graphs))
    assert set(by_key(made.substitutions)) == {"trainer.args.torch_compile", "trainer.args.use_hpu_graphs_for_inference"}
    assert compatibility.problems(Pipeline.of(made.config)) == []


def test_a_compiler_that_lazy_mode_excludes_is_refused_by_the_library_here_too():
    made = shrunk("topology=hpu1", "+trainer.args.torch_compile_backend=hpu_backend")
    assert args(made)["torch_compile_backend"] == "hpu_backend"
    assert made.substitutions == []


def test_fp8_is_left_out():
    made = shrunk("topology=hpu1", "+trainer.args.fp8=true", "+trainer.args.flash_attention_fp8=true", "+trainer.args.bf16=true")
    assert by_key(made.substitutions) == {"trainer.args.fp8": (True, False), "trainer.args.flash_attention_fp8": (True, False)}
    assert args(made)["bf16"] is True


CHECKPOINTING = "trainer.args.gradient_checkpointing"


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["topology=hpu1", f"+{CHECKPOINTING}=true"], CHECKPOINTING),
        (["topology=hpu1", "+trainer.args.activation_checkpointing=true"], "trainer.args.activation_checkpointing"),
        (["topology=cpu", f"+{CHECKPOINTING}=true"], CHECKPOINTING),
        (["topology=hpu8_deepspeed", f"+{CHECKPOINTING}=true"], CHECKPOINTING),
        (["topology=hpu1", "topology.use_lazy_mode=false", f"+{CHECKPOINTING}=true"], None),
        (["topology=gpu1", f"+{CHECKPOINTING}=true"], None),
        (["topology=hpu1"], None),
    ],
)
@pytest.mark.parametrize("fits", [True, False])
def test_checkpointing_is_left_out_only_where_it_can_not_run(overrides, key, fits, monkeypatch):
    taken = ("function", "args") if fits else ("fn", "early_stop", "args")
    monkeypatch.setattr(compatibility, "function_parameters", lambda *_: taken)
    made = shrunk(*overrides)
    changed = {k: pair for k, pair in by_key(made.substitutions).items() if "checkpointing" in k}
    assert changed == ({key: (True, False)} if key and not fits else {})
    named = {k: v for k, v in args(made).items() if "checkpointing" in k}
    assert list(named.values()) == ([] if overrides == ["topology=hpu1"] else [not changed])
