"""LoRA: what is trained, what is saved and what loads it; every model of the CTC mapping, and what can't work."""

import importlib.util
import sys
from dataclasses import replace

import pytest
import soundfile
import torch
from conftest import INSTALLED_ENGINES, composed
from safetensors.torch import load_file
from test_ctc import batch_of, rows_of, tiny
from test_trainer import built

from asr import lora
from asr.collate import Collator
from asr.ctc import CTCModel
from asr.errors import ConfigError
from asr.frames import MODEL_TYPES
from asr.freezing import freeze_unused, trained_parameters
from asr.lora import LoRA
from asr.pipeline import Pipeline
from asr.spec_augment import takes_masks
from asr.trainer import CTCTraining

STEPS = [f"trainer.args.{arg}" for arg in ("max_steps=4", "save_strategy=steps", "save_steps=2", "save_total_limit=null")]
STEPS += [f"trainer.args.{arg}" for arg in ("logging_strategy=no", "warmup_steps=0")]
LORA = ["model.lora.r=4", "model.lora.dropout=0.1"]
FEED_FORWARD = {"wavlm": ["intermediate_dense", "output_dense"]}
"""Layers to choose where the query and value projections won't do."""


@pytest.fixture
def base(tokenizer, tmp_path):
    """A small model's checkpoint that LoRA adapts, with an output layer of its own."""
    node = tiny("wav2vec2", apply_spec_augment=False)
    model = node.load(tokenizer, new_head=True)
    model.save_pretrained(tmp_path / "base")
    node.processor(tokenizer, model).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def trained_names(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def stirred(model):
    """Return a model whose LoRA says something: as it begins, its products are zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_()
    return model.eval()


# ---- every model ----


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_ctc_model_trains_lora_and_its_new_head_and_exports_a_plain_model(model_type, tokenizer, tmp_path):
    node = tiny(model_type, apply_spec_augment=False)
    plain = node.load(tokenizer, new_head=True)
    given = {"r": 3, "alpha": 5} | ({"target_modules": FEED_FORWARD[model_type]} if model_type in FEED_FORWARD else {})
    adapted = replace(node, lora=given)
    torch.manual_seed(0)
    model = stirred(adapted.load(tokenizer, new_head=True))
    extractor = node.processor(tokenizer, plain).feature_extractor
    collator = Collator.for_extractor(extractor)
    lora.check_reached(model, freeze_unused(takes_masks(model), collator.example(extractor)))
    names = trained_names(model)
    assert {name for name in names if ".lora_" not in name} == {f"lm_head.{n}" for n, _ in plain.lm_head.named_parameters()}
    assert len(names) > 4
    batch, _ = batch_of(collator, rows_of(extractor))
    model(**batch).loss.backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == names
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weights = lora.merged(model)
    assert weights.keys() == plain.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())  # the model stays as it is
    model.save_pretrained(tmp_path / "model", state_dict=weights)
    exported = type(plain).from_pretrained(tmp_path / "model").eval()
    del batch["labels"]
    with torch.no_grad():
        theirs, ours = exported(**batch).logits, model(**batch).logits
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(ours, plain.eval()(**batch).logits, atol=1e-2)


def test_only_lora_is_trained_and_counted_where_the_checkpoint_has_its_head(base, tokenizer):
    plain = CTCModel(name_or_path=str(base)).load(tokenizer, new_head=False)
    model = CTCModel(name_or_path=str(base), lora={"r": 4}).load(tokenizer, new_head=False)
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in trained_names(model)} == {"q_proj", "v_proj"}
    (layer,) = plain.wav2vec2.encoder.layers
    width = layer.attention.q_proj.in_features
    counts = trained_parameters(model)
    assert counts["trained"] == 2 * 4 * (width + width)
    assert counts["total"] == trained_parameters(plain)["total"] + counts["trained"]


def test_what_the_checkpoint_does_not_hold_is_trained_whole(base, tokenizer):
    """Frozen, it would stay as chance made it."""
    model = CTCModel(name_or_path=str(base), add_adapter=True, lora={"r": 4}, config={"num_adapter_layers": 1}).load(
        tokenizer, new_head=True
    )
    whole = {name for name in trained_names(model) if ".lora_" not in name}
    assert {name.split(".")[0] for name in whole} == {"wav2vec2", "lm_head"}
    assert {name.split(".")[1] for name in whole if name.startswith("wav2vec2")} == {"adapter"}


def test_modules_can_be_chosen_and_others_trained_whole(base, tokenizer):
    chosen = {"target_modules": ["attention.out_proj"], "modules_to_save": ["encoder.layer_norm"]}
    model = CTCModel(name_or_path=str(base), lora=chosen).load(tokenizer, new_head=False)
    layer = "wav2vec2.encoder.layers.0.attention.out_proj"
    assert trained_names(model) == {
        f"{layer}.lora_A.default.weight",
        f"{layer}.lora_B.default.weight",
        "wav2vec2.encoder.layer_norm.weight",
        "wav2vec2.encoder.layer_norm.bias",
    }


def added_for_checkpointing(model, args) -> dict:
    """Return what the trainer node adds for gradient checkpointing."""
    node = CTCTraining(engine=INSTALLED_ENGINES[0])
    node.args = args  # not checked: either name serves here
    return node._checkpointing(model)


def test_with_gradient_checkpointing_lora_gets_its_gradients(base, tokenizer):
    node = CTCModel(name_or_path=str(base), lora={"r": 4})
    gradients = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model = stirred(node.load(tokenizer, new_head=True)).train()
        model.config.layerdrop = 0.0
        arguments = added_for_checkpointing(model, {"gradient_checkpointing": True})
        if checkpointed:
            model.gradient_checkpointing_enable(arguments["gradient_checkpointing_kwargs"])
        extractor = node.processor(tokenizer, model).feature_extractor
        batch, _ = batch_of(Collator.for_extractor(extractor), rows_of(extractor))
        torch.manual_seed(0)
        model(**batch).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    torch.testing.assert_close(*gradients)


# ---- training ----


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trainer after four steps, and its folder."""
    folder = tmp_path_factory.mktemp("lora")
    made, scorer = built(folder, *STEPS, *LORA, model="wav2vec2_tiny")
    before = {name: p.clone() for name, p in made.model.named_parameters()}
    made.train()
    return made, scorer, folder, before


def test_training_changes_what_is_trained_and_nothing_else(trained):
    made, _, _, before = trained
    moved = {name for name, p in made.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == trained_names(made.model)
    optimised = {id(p) for group in made.optimizer.param_groups for p in group["params"]}
    assert optimised == {id(p) for p in made.model.parameters() if p.requires_grad}


def test_a_resumed_training_ends_with_the_same_bits(trained):
    made, _, folder, _ = trained
    again, _ = built(folder, *STEPS, *LORA, model="wav2vec2_tiny")
    again.train(resume_from_checkpoint=str(folder / "checkpoints" / "checkpoint-2"))
    ours, theirs = again.model.state_dict(), made.model.state_dict()
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


def test_what_is_saved_is_a_plain_model_that_needs_no_peft(trained, tmp_path, monkeypatch):
    import transformers

    made, _, folder, _ = trained
    made.save_model(str(tmp_path / "model"))
    checkpoint = load_file(folder / "checkpoints" / "checkpoint-4" / "model.safetensors")
    assert any(".lora_A." in name for name in checkpoint)  # what training goes on from
    assert not any("lora" in name or "base_layer" in name for name in load_file(tmp_path / "model" / "model.safetensors"))
    assert not (tmp_path / "model" / "adapter_config.json").exists()
    assert "lora" not in (tmp_path / "model" / "config.json").read_text()
    for name in [name for name in sys.modules if name.partition(".")[0] == "peft"]:
        monkeypatch.setitem(sys.modules, name, None)  # importing it fails
    loaded = transformers.AutoModelForCTC.from_pretrained(tmp_path / "model").eval()
    batch = dict(next(iter(made.get_eval_dataloader())))
    inputs = {name: batch[name] for name in ("input_values", "attention_mask") if name in batch}
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, made.model.eval()(**inputs).logits, rtol=1e-4, atol=1e-5)
    recognise = transformers.pipeline("automatic-speech-recognition", model=str(tmp_path / "model"))
    samples, rate = soundfile.read(made.eval_dataset.utterances[0].audio)
    assert set(recognise({"raw": samples, "sampling_rate": rate})) == {"text"}


def test_the_mean_of_checkpoints_is_taken_of_lora_too(trained):
    from asr.averaging import put_mean

    made, _, folder, _ = trained
    folders = [folder / "checkpoints" / f"checkpoint-{step}" for step in (2, 4)]
    model, _ = built(folder, *STEPS, *LORA, model="wav2vec2_tiny")
    put_mean(model.model, folders)
    stored = [load_file(each / "model.safetensors") for each in folders]
    moved = {name for name, value in model.model.state_dict().items() if not torch.equal(value, stored[0][name])}
    assert moved == trained_names(made.model)
    for name in moved:
        torch.testing.assert_close(model.model.state_dict()[name], (stored[0][name] + stored[1][name]) / 2)


# ---- what can't work ----


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"r": 0}, r"^lora\.r: 0 is out of range; it must be at least 1"),
        ({"rank": 3}, r"^lora\.rank: LoRA has no such key"),
        ({"r": 4.5}, r"^lora\.r: 4\.5 is not of type int"),
        ({"dropout": 1.0}, r"^lora\.dropout: 1\.0 is out of range"),
        ({"target_modules": []}, r"^lora\.target_modules: is empty"),
        ({"modules_to_save": [""]}, r"^lora\.modules_to_save: is empty"),
        ({"target_modules": "q_proj"}, r"^lora\.target_modules: 'q_proj' is not of type"),
    ],
)
def test_values_out_of_range_are_refused_at_launch(given, message):
    with pytest.raises(ConfigError, match=message):
        replace(tiny("wav2vec2"), lora=given)


@pytest.mark.parametrize("given", [{}, None])
def test_nothing_given_is_no_lora(given):
    assert LoRA.of(given) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["q_prj"], r"'q_prj' is no layer of the model; those that LoRA can stand beside are .*k_proj.*\. Did you mean q_proj\?"),
        (["encoder.layer_norm"], r"'encoder\.layer_norm' is a LayerNorm, no linear layer;"),
        (["conv"], r"'conv' is a \w*Conv1d, no linear layer;"),
        (["q_proj", "lm_head"], r"lm_head is trained whole already"),
    ],
)
def test_layers_that_are_not_there_are_refused_with_those_that_are(given, message, tokenizer):
    with pytest.raises(ConfigError, match=rf"^model\.lora\.target_modules: {message}"):
        replace(tiny("wav2vec2"), lora={"target_modules": given}).load(tokenizer, new_head=True)


def test_modules_that_are_not_there_are_refused(tokenizer):
    with pytest.raises(
        ConfigError, match=r"^model\.lora\.modules_to_save: 'lm_hed' is no module of the model; it has .*Did you mean lm_head"
    ):
        replace(tiny("wav2vec2"), lora={"modules_to_save": ["lm_hed"]}).load(tokenizer, new_head=True)


def test_projections_that_the_forward_passes_by_are_refused(tokenizer):
    node = replace(tiny("wavlm", apply_spec_augment=False), lora={"r": 2})
    model = node.load(tokenizer, new_head=True)
    extractor = node.processor(tokenizer, model).feature_extractor
    unreached = freeze_unused(model, Collator.for_extractor(extractor).example(extractor))
    with pytest.raises(
        ConfigError, match=r"WavLMForCTC doesn't call q_proj, v_proj, .* choose among intermediate_dense, lm_head, output_dense, projection"
    ):
        lora.check_reached(model, unreached)


def test_reentrant_checkpointing_is_refused(tokenizer):
    model = replace(tiny("wav2vec2"), lora={"r": 2}).load(tokenizer, new_head=True)
    asked = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    with pytest.raises(ConfigError, match="reentrant checkpointing gives LoRA no gradients"):
        added_for_checkpointing(model, asked)
    assert added_for_checkpointing(model, {**asked, "gradient_checkpointing": False}) == {}
    by_its_new_name = added_for_checkpointing(model, {"activation_checkpointing": True})
    assert by_its_new_name == {"activation_checkpointing_kwargs": {"use_reentrant": False}}
    assert added_for_checkpointing(tiny("wav2vec2").load(tokenizer, new_head=True), asked) == {}


def test_an_absent_peft_is_said_before_anything_is_loaded(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(lora, "find_spec", lambda name: None if name == "peft" else found(name))
    pipeline = Pipeline.of(composed("model=wav2vec2_tiny", "model.lora.r=4", "rehearse=true"))
    with pytest.raises(ConfigError, match=r"^model\.lora: takes peft, which is not installed: pip install 'asr-gaudi\[lora\]'"):
        pipeline.check_host()


def test_a_rehearsal_keeps_lora():
    node = replace(tiny("wav2vec2", hidden_size=64), lora={"r": 4})
    assert node.shrunk().lora == {"r": 4}
