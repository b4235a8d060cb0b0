"""What can't work together is refused with its key and its mend, before anything is written; its neighbour that works is not."""

import json
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import pytest
from conftest import TINY, composed

from asr import compatibility, gaudi
from asr.errors import ConfigError
from asr.pipeline import Pipeline
from asr.signatures import function_parameters


@dataclass(kw_only=True)
class Place:
    """What the rules ask of a topology, whichever way it is configured."""

    device: str = "hpu"
    use_habana: bool = True
    use_lazy_mode: bool = True
    num_processes: int = 1
    deepspeed: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    launcher: str = "torchrun"
    has_launcher: bool = True

    def check_host(self, *, has_devices: bool = True) -> None:
        """This host has whatever it takes."""


CPU = Place(device="cpu", use_habana=False, use_lazy_mode=False)
HPU, EAGER = Place(), Place(use_lazy_mode=False)
CUDA = replace(CPU, device="cuda")
DEEPSPEED = Place(num_processes=8, deepspeed={"zero_optimization": {"stage": 2}})


def several(place: Place) -> Place:
    return replace(place, num_processes=2)


@pytest.fixture(autouse=True)
def a_gaudi_host(monkeypatch):
    monkeypatch.setattr(gaudi, "habana_is_installed", lambda: True)


@lru_cache
def composed_once(overrides: tuple[str, ...]) -> dict:
    return composed(*overrides)


def asked(place: Place, *overrides: str, engine: str = "gaudi", **args: Any) -> Pipeline:
    """Compose the real conf/ and put it on `place`; `args` are training arguments, those of other engines and tasks included."""
    pipeline = Pipeline.of(deepcopy(composed_once(overrides)))
    pipeline.trainer.engine = engine
    pipeline.trainer.args |= args
    return replace(pipeline, topology=place)


def refused(pipeline: Pipeline) -> list[str]:
    return [problem.key for problem in compatibility.problems(pipeline)]


GRAPHS = {"use_hpu_graphs_for_training": True}
FAST = {"distribution_strategy": "fast_ddp"}
DECODER = ["trainer=seq2seq", "model=digits_encoder_decoder"]
DROPS = "model.layerdrop=0.1"
CASES = [
    # place, overrides, arguments, engine, the keys that are refused
    (HPU, [], GRAPHS, "gaudi", []),
    (CPU, [], GRAPHS, "gaudi", ["trainer.args.use_hpu_graphs_for_training"]),
    (CPU, [], {"use_hpu_graphs": True}, "gaudi", ["trainer.args.use_hpu_graphs"]),
    (EAGER, [], {}, "gaudi", []),
    (EAGER, [], {"use_hpu_graphs_for_inference": True}, "gaudi", ["trainer.args.use_hpu_graphs_for_inference"]),
    (EAGER, ["stages=[evaluate]", "model.name_or_path=x/y"], {"use_hpu_graphs": True}, "gaudi", ["trainer.args.use_hpu_graphs"]),
    (EAGER, [], {"use_hpu_graphs_for_inference": True, "torch_compile_backend": "hpu_backend"}, "gaudi", []),
    (EAGER, ["stages=[prepare]"], {"use_hpu_graphs_for_inference": True}, "gaudi", []),
    (HPU, [], {"max_hpu_graphs": 5}, "gaudi", ["trainer.args.max_hpu_graphs"]),
    (HPU, [], {"disable_tensor_cache_hpu_graphs": True}, "gaudi", ["trainer.args.disable_tensor_cache_hpu_graphs"]),
    (HPU, [], {"max_hpu_graphs": 5, "use_hpu_graphs_for_inference": True}, "gaudi", []),
    (several(CPU), [DROPS], {}, "gaudi", ["model.layerdrop"]),
    (several(CPU), ["model.layerdrop=0"], {}, "gaudi", []),
    (CPU, [DROPS], {}, "gaudi", []),
    (several(CPU), [DROPS], {"ddp_find_unused_parameters": True}, "gaudi", []),
    (several(CPU), [DROPS], {"ddp_find_unused_parameters": None}, "gaudi", []),
    (several(CPU), [DROPS], {"ddp_find_unused_parameters": None, "gradient_checkpointing": True}, "gaudi", ["model.layerdrop"]),
    (several(CPU), [DROPS, "stages=[evaluate]", "model.name_or_path=x/y"], {}, "gaudi", []),
    (several(CUDA), [DROPS], {}, "transformers", []),
    (several(CUDA), [DROPS], {"ddp_find_unused_parameters": False}, "transformers", ["model.layerdrop"]),
    (several(CUDA), [DROPS], {"ddp_find_unused_parameters": False, "fsdp": "full_shard"}, "transformers", []),
    (DEEPSPEED, [DROPS], {}, "gaudi", []),
    (HPU, [DROPS], {}, "gaudi", []),
    (HPU, [DROPS], GRAPHS, "gaudi", ["model.layerdrop"]),
    (several(HPU), [DROPS], {**FAST, "ddp_find_unused_parameters": True}, "gaudi", ["model.layerdrop"]),
    (several(HPU), [], FAST, "gaudi", []),
    (several(CPU), [], FAST, "gaudi", ["trainer.args.distribution_strategy"]),
    (CPU, [], FAST, "gaudi", []),
    (several(HPU), [], GRAPHS, "gaudi", ["trainer.args.distribution_strategy"]),
    (several(HPU), [], {**GRAPHS, **FAST}, "gaudi", []),
    (HPU, ["batching.max_shapes=10"], GRAPHS, "gaudi", []),
    (HPU, ["batching.max_shapes=11"], GRAPHS, "gaudi", ["batching.max_shapes"]),
    (HPU, ["batching.max_shapes=11"], {}, "gaudi", []),
    (HPU, ["batching=longest"], GRAPHS, "gaudi", ["batching"]),
    (HPU, ["batching=fixed"], GRAPHS, "gaudi", []),
    (CPU, ["trainer.average_checkpoints=2"], {}, "gaudi", []),
    (DEEPSPEED, ["trainer.average_checkpoints=2"], {}, "gaudi", ["trainer.average_checkpoints"]),
    (DEEPSPEED, ["trainer.average_checkpoints=null"], {}, "gaudi", []),
    (several(CUDA), ["trainer.average_checkpoints=2"], {"fsdp": "full_shard"}, "transformers", ["trainer.average_checkpoints"]),
    (HPU, [], {**GRAPHS, "predict_with_generate": True}, "gaudi", ["trainer.args.predict_with_generate"]),
    (HPU, [], {"predict_with_generate": True, "use_hpu_graphs_for_inference": True}, "gaudi", []),
    (HPU, DECODER, {"use_hpu_graphs_for_inference": True}, "gaudi", ["trainer.args.use_hpu_graphs_for_inference"]),
    (HPU, DECODER, {"use_hpu_graphs_for_inference": True, "predict_with_generate": False}, "gaudi", []),
    (HPU, ["trainer=seq2seq", "model=digits_whisper"], {"use_hpu_graphs_for_inference": True}, "gaudi", []),
    (CPU, [], {"fp16": True}, "gaudi", ["trainer.args.fp16"]),
    (CPU, [], {"fp16_full_eval": True}, "gaudi", ["trainer.args.fp16_full_eval"]),
    (CPU, [], {"tf32": True}, "gaudi", ["trainer.args.tf32"]),
    (HPU, [], {"bf16": True}, "gaudi", []),
    (CUDA, [], {"fp16": True}, "transformers", []),
    (CUDA, [], {}, "gaudi", ["trainer.engine"]),
    (CUDA, ["stages=[prepare]"], {}, "gaudi", []),
    (DEEPSPEED, [], {}, "gaudi", []),
    (DEEPSPEED, ["trainer.on_nan=skip"], {}, "gaudi", ["trainer.on_nan"]),
    (HPU, ["trainer.on_nan=skip"], {}, "gaudi", []),
    (replace(CPU, deepspeed={"a": 1}), [], {}, "gaudi", ["topology.deepspeed"]),
    (HPU, [], {"gradient_checkpointing": True}, "gaudi", ["trainer.args.gradient_checkpointing"]),
    (EAGER, [], {"gradient_checkpointing": True}, "gaudi", []),
    (CPU, [], {"gradient_checkpointing": True}, "gaudi", []),
    (CPU, ["model.lora.r=4"], {}, "gaudi", ["model.lora"]),
    (CPU, ["model.lora.r=4", "model.name_or_path=x/y"], {}, "gaudi", []),
    (CPU, ["model.lora.r=4", "rehearse=true"], {}, "gaudi", []),
]  # fmt: skip


@pytest.mark.parametrize(("place", "overrides", "args", "engine", "keys"), CASES)
def test_what_can_not_work_is_refused_and_its_neighbour_is_not(place, overrides, args, engine, keys, monkeypatch):
    monkeypatch.setattr(compatibility, "function_parameters", lambda *_: ("fn", "early_stop", "args"))
    assert refused(asked(place, *overrides, engine=engine, **args)) == keys


def test_every_rule_has_a_case_and_names_its_source():
    rules = [*compatibility.RULES, *compatibility.TRAINING_RULES]
    assert len(set(rules)) == len(rules)
    for rule in rules:
        assert ".py:" in rule.__doc__ or "documentation" in rule.__doc__, rule.__name__


@pytest.mark.optimum_habana
def test_the_cited_lines_are_there():
    """The rules' reasons, as the installed libraries have them."""
    from importlib.util import find_spec
    from pathlib import Path

    habana = Path(find_spec("optimum").submodule_search_locations[0]) / "habana"
    arguments = (habana / "transformers" / "training_args.py").read_text().splitlines()
    trainer = (habana / "transformers" / "trainer.py").read_text().splitlines()
    fast_ddp = (habana / "distributed" / "fast_ddp.py").read_text().splitlines()
    assert "not self.use_habana" in arguments[437]
    assert "not self.use_lazy_mode and not self.torch_compile_backend" in arguments[441]
    assert [("disable_tensor_cache" in arguments[451]), ("max_hpu_graphs" in arguments[454])] == [True, True]
    assert "self.fp16 or self.fp16_full_eval" in arguments[458]
    assert "must be run on HPUs" in arguments[849]
    assert "No device has been set" in arguments[1076]
    assert "ModuleCacher()(model=model, inplace=True)" in trainer[511]
    assert "use_hpu_graphs=True" in trainer[1061]
    assert 'device="hpu:0"' in fast_ddp[69]


def test_an_absent_habana_frameworks_is_said(monkeypatch):
    monkeypatch.setattr(gaudi, "habana_is_installed", lambda: False)
    assert refused(asked(HPU)) == ["topology"]
    assert refused(asked(CPU)) == refused(asked(HPU, "stages=[prepare]")) == []
    with pytest.raises(ConfigError, match=r"^topology: .*habana_frameworks is not installed here.*choose topology=cpu"):
        asked(HPU).check_compatible()


@pytest.mark.optimum_habana
def test_a_rehearsal_needs_no_habana_frameworks_and_is_not_stopped(monkeypatch):
    monkeypatch.setattr(gaudi, "habana_is_installed", lambda: False)
    pipeline = replace(asked(EAGER, *TINY, "model.layerdrop=0.1", use_hpu_graphs_for_training=True), rehearse=True)
    told = ["trainer.args.use_hpu_graphs_for_training", "model.layerdrop"]
    assert refused(pipeline) == told
    assert refused(replace(pipeline, rehearse=False)) == ["topology", *told]
    pipeline.check_reachable()
    pipeline.check_host()
    with pytest.raises(ConfigError):
        replace(pipeline, rehearse=False).check_reachable()


def test_lists_of_ops_come_too_late():
    pipeline = asked(HPU, bf16=True)
    pipeline.gaudi_config.autocast_bf16_ops, pipeline.gaudi_config.autocast_fp32_ops = ["add"], ["mul"]
    assert refused(pipeline) == ["gaudi_config.autocast_bf16_ops"]
    named = Place(environment={"PT_HPU_AUTOCAST_LOWER_PRECISION_OPS_LIST": "/a"})
    assert refused(replace(pipeline, topology=named)) == refused(replace(pipeline, topology=CPU)) == []
    pipeline.trainer.args["bf16"] = False
    assert refused(pipeline) == []


def test_checkpointing_is_judged_by_the_installed_torch(monkeypatch):
    from importlib.metadata import version

    taken = function_parameters("torch.utils.checkpoint", "_checkpoint_without_reentrant_generator")
    assert taken[:2] == ("fn", "preserve_rng_state")
    assert ("early_stop" in taken) == (tuple(map(int, version("torch").split(".")[:2])) >= (2, 13))
    monkeypatch.setattr(compatibility, "function_parameters", lambda *_: ("function", "args"))
    assert refused(asked(HPU, gradient_checkpointing=True)) == []


def test_an_architecture_s_own_layerdrop_counts():
    """wav2vec2 and its kin skip a tenth of the layers unless they are told not to; SEW-D skips none."""
    node = asked(several(CPU), "model=wav2vec2_tiny").model
    node.layerdrop = None
    assert node.known_layerdrop() == {"layerdrop": 0.1}
    assert refused(replace(asked(several(CPU)), model=node)) == ["model.layerdrop"]
    node.config = {"layerdrop": 0.0}
    assert refused(replace(asked(several(CPU)), model=node)) == []
    node.config, node.architecture = {}, {"model_type": "sew-d"}
    assert node.known_layerdrop() == {}


def checkpoint(folder, **values):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "wav2vec2", "architectures": ["Wav2Vec2ForCTC"], **values}))
    (folder / "preprocessor_config.json").write_text("{}")
    return folder


def test_a_checkpoint_s_layerdrop_is_read_from_its_folder(tmp_path):
    drops, keeps = checkpoint(tmp_path / "drops"), checkpoint(tmp_path / "keeps", layerdrop=0.0)
    named = [asked(several(CPU), "model=wav2vec2_base", "model.layerdrop=null", f"model.name_or_path='{f}'") for f in (drops, keeps)]
    assert [refused(pipeline) for pipeline in named] == [["model.layerdrop"], []]
    (keeps / "config.json").unlink()
    assert refused(named[1]) == ["model.name_or_path"]


def test_a_hub_checkpoint_is_judged_once_its_config_is_in_the_cache(tmp_path):
    hub = [f"model.cache_dir='{tmp_path}'", "model.name_or_path=someone/tiny", "model.layerdrop=null"]
    pipeline = asked(several(CPU), *TINY, "model=wav2vec2_base", *hub)
    assert refused(pipeline) == []
    assert refused(asked(several(CPU), "model=wav2vec2_base", "model.name_or_path='no such name!'", "model.layerdrop=null")) == []
    repository, commit = tmp_path / "models--someone--tiny", "0123456789" * 4
    checkpoint(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    assert refused(pipeline) == ["model.layerdrop"]
    with pytest.raises(ConfigError, match=r"^model\.layerdrop: is 0\.1, but with several processes DDP waits"):
        pipeline.check_reachable()


STREAM = ["dataset=webdataset", "dataset.root=.", "dataset.streaming=true"]


@pytest.mark.parametrize(
    ("args", "key", "said"),
    [
        ({"max_steps": 10}, "", ""),
        ({"max_steps": 10, "save_strategy": "steps", "eval_strategy": "steps"}, "", ""),
        ({}, "max_steps", "a stream has no length, so say after how many steps training ends"),
        ({"max_steps": -1}, "max_steps", "a stream has no length"),
        ({"max_steps": 10, "num_train_epochs": 3}, "num_train_epochs", "set trainer.args.max_steps, and this to null"),
        ({"max_steps": 10, "save_strategy": "epoch"}, "save_strategy", "take steps, with trainer.args.save_steps"),
        ({"max_steps": 10, "eval_strategy": "epoch"}, "eval_strategy", "take steps, with trainer.args.eval_steps"),
        ({"max_steps": 10, "logging_strategy": "epoch"}, "logging_strategy", "take steps, with trainer.args.logging_steps"),
        ({"max_steps": 10, "group_by_length": True}, "group_by_length", "batching=buckets"),
        ({"max_steps": 10, "auto_find_batch_size": True}, "auto_find_batch_size", "planned with one batch size"),
        ({"max_steps": 10, "dataloader_in_order": False}, "dataloader_in_order", "comes in order"),
    ],
)
def test_streams_are_counted_in_steps(args, key, said):
    found = compatibility.problems(asked(CPU, *STREAM, **args))
    assert [problem.key for problem in found] == ([f"trainer.args.{key}"] if key else [])
    assert all(said in problem.problem for problem in found)
    assert compatibility.problems(asked(CPU, *STREAM, "rehearse=true", max_steps=10, num_train_epochs=3)) == []


def test_a_saved_plan_is_for_streams():
    (problem,) = compatibility.problems(asked(CPU, "batching.plan_file=x.json"))
    assert problem.key == "batching.plan_file"
    assert compatibility.problems(asked(CPU, *STREAM, "batching.plan_file=x.json", max_steps=10)) == []
