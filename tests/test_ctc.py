"""Models of the whole CTC mapping: from scratch, from a checkpoint, saved and loaded."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import composed
from test_frames import WITH_ADAPTER

from asr.collate import Collator, Row
from asr.ctc import CTCModel
from asr.ctc_outputs import frame_lengths, greedy_tokens, utterance_losses
from asr.errors import ConfigError
from asr.frames import MODEL_TYPES
from asr.pipeline import Pipeline
from asr.shrinking import small_sizes
from asr.spec_augment import takes_masks
from asr.vocabulary import Vocabulary

LABELS = [[3, 4, 4], [5, 3], [6, 4, 3, 5, 5], [3]]
SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
CONVOLUTIONS = {"conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}


def rows_of(extractor, lengths=(9000, 12000, 15000, 16000)):
    from asr.features import extract

    dice = np.random.default_rng(0)
    waves = [dice.standard_normal(n).astype(np.float32) * 0.1 for n in lengths]
    return [Row(i, extract(extractor, wave), LABELS[i], len(wave) / 16000) for i, wave in enumerate(waves)]


def batch_of(collator, rows):
    batch = dict(collator(rows))
    return batch, batch.pop("facts")


def described(name: str) -> CTCModel:
    return Pipeline.of(composed(f"model={name}")).model


@pytest.mark.parametrize("name", ["wav2vec2_bert_tiny", "wav2vec2_tiny"])
def test_a_mask_probability_masks(name, tokenizer):
    node = described(name)
    node.mask_time_prob, node.mask_time_length = 0.3, 2
    model = node.load(tokenizer, new_head=True).train()
    extractor = node.processor(tokenizer, model).feature_extractor
    batch, _ = batch_of(Collator.for_extractor(extractor), rows_of(extractor))
    model(**batch).loss.backward()
    embedding = next(p for n, p in model.named_parameters() if n.endswith("masked_spec_embed"))
    assert embedding.requires_grad
    assert embedding.grad.abs().sum() > 0


def tiny(model_type: str, **values) -> CTCModel:
    """Describe a small model of a type from scratch, with its feature extractor."""
    extra = {"feature_projection_input_dim": 160} if model_type == "wav2vec2-bert" else CONVOLUTIONS
    if model_type.startswith("sew"):
        extra = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "squeeze_factor": 2}
    extractor = (
        {"feature_extractor_type": "SeamlessM4TFeatureExtractor"} if model_type == "wav2vec2-bert" else {"return_attention_mask": True}
    )
    if model_type == "wav2vec2-bert":
        extractor |= {"feature_size": 80, "num_mel_bins": 80, "stride": 2, "padding_value": 0.0}
    return CTCModel(architecture={"model_type": model_type, **SMALL, **extra, **values}, feature_extractor=extractor)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_whole_ctc_mapping_trains_and_decodes(model_type, tokenizer):
    node = tiny(model_type, apply_spec_augment=False)
    model = node.load(tokenizer, new_head=True)
    processor = node.processor(tokenizer, model)
    batch, facts = batch_of(Collator.for_extractor(processor.feature_extractor), rows_of(processor.feature_extractor))
    loss = model(**batch).loss
    loss.backward()
    labels = batch.pop("labels")
    model.eval()
    with torch.no_grad():
        logits, theirs = model(**batch).logits, model(**batch, labels=labels).loss
    frames = frame_lengths(model, facts.lengths)
    ours = utterance_losses(logits, labels, frames, facts.label_lengths, model.config)
    if model.config.ctc_loss_reduction == "sum":
        torch.testing.assert_close(ours.sum(), theirs)
    else:
        torch.testing.assert_close(ours.mean(), theirs)
    assert greedy_tokens(logits, frames, 0).shape == logits.shape[:2]


@pytest.fixture
def saved(tokenizer, tmp_path):
    node = described("wav2vec2_tiny")
    model = node.load(tokenizer, new_head=True)
    model.save_pretrained(tmp_path / "saved")
    node.processor(tokenizer, model).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_local_folder_is_a_model(saved, tokenizer):
    node = CTCModel(name_or_path=str(saved), attention_dropout=0.25, config={"conv_bias": True})
    node.check_reachable()
    assert node.has_own_tokenizer()
    model = node.load(tokenizer, new_head=False)
    assert model.config.attention_dropout == 0.25
    assert model.config.hidden_size == 32
    before = CTCModel(name_or_path=str(saved)).load(tokenizer, new_head=False)
    for (name, a), b in zip(model.state_dict().items(), before.state_dict().values(), strict=False):
        assert torch.equal(a, b), name
    assert not next(model.wav2vec2.feature_extractor.parameters()).requires_grad  # frozen by default, as published


def test_a_checkpoint_saved_by_either_transformers_has_an_input_length(saved):
    """transformers 5 puts the feature extractor's config into processor_config.json and writes no preprocessor_config.json."""
    kept = {"feature_extractor_type": "SeamlessM4TFeatureExtractor", "stride": 3, "sampling_rate": 8000}
    for name, content in (("preprocessor_config.json", kept), ("processor_config.json", {"feature_extractor": kept})):
        for other in ("preprocessor_config.json", "processor_config.json"):
            (saved / other).unlink(missing_ok=True)
        (saved / name).write_text(json.dumps(content))
        length = CTCModel(name_or_path=str(saved)).input_length()
        assert (length.sample_rate_hz, length.stride) == (8000, 3)
    (saved / "processor_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"has no preprocessor_config\.json"):
        CTCModel(name_or_path=str(saved)).input_length()


def test_a_pretrained_encoder_without_a_head_gets_one(tokenizer, tmp_path):
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForPreTraining

    encoder = Wav2Vec2ForPreTraining(Wav2Vec2Config(**SMALL, **CONVOLUTIONS, codevector_dim=16, proj_codevector_dim=16))
    encoder.save_pretrained(tmp_path / "encoder")
    Wav2Vec2FeatureExtractor(return_attention_mask=False).save_pretrained(tmp_path / "encoder")
    node = CTCModel(name_or_path=str(tmp_path / "encoder"))
    node.check_reachable()
    assert not node.has_own_tokenizer()
    model = node.load(tokenizer, new_head=True)
    assert model.lm_head.out_features == len(tokenizer)
    kept = model.wav2vec2.encoder.layers[0].attention.q_proj.weight
    assert torch.equal(kept, encoder.wav2vec2.encoder.layers[0].attention.q_proj.weight)
    assert not Collator.for_extractor(node.processor(tokenizer, model).feature_extractor).with_attention_mask


def test_a_new_vocabulary_starts_the_head_afresh_though_the_sizes_agree(saved, tmp_path):
    vocabulary = Vocabulary()
    other = vocabulary.tokenizer_from(vocabulary.build(["uvwxyz"]), tmp_path)
    kept, afresh = (CTCModel(name_or_path=str(saved)).load(other, new_head=new) for new in (False, True))
    assert not torch.equal(kept.lm_head.weight, afresh.lm_head.weight)
    assert afresh.lm_head.bias.abs().sum() == 0
    assert torch.equal(kept.wav2vec2.encoder.layers[0].attention.q_proj.weight, afresh.wav2vec2.encoder.layers[0].attention.q_proj.weight)


def test_a_head_for_another_vocabulary_is_refused_unless_it_is_made_anew(saved, tmp_path):
    vocabulary = Vocabulary()
    larger = vocabulary.tokenizer_from(vocabulary.build(["abcdefghij"]), tmp_path)
    with pytest.raises(ConfigError, match=r"size mismatch|mismatched"):
        CTCModel(name_or_path=str(saved)).load(larger, new_head=False)
    assert CTCModel(name_or_path=str(saved)).load(larger, new_head=True).lm_head.out_features == 13


def test_a_checkpoint_without_a_feature_extractor_is_named(saved, tokenizer):
    for name in ("preprocessor_config.json", "processor_config.json"):  # transformers 4.55 writes the one, 5 the other
        (saved / name).unlink(missing_ok=True)
    node = CTCModel(name_or_path=str(saved))
    with pytest.raises(ConfigError, match=r"^model\.name_or_path: no feature extractor"):
        node.processor(tokenizer, node.load(tokenizer, new_head=False))


@pytest.mark.parametrize(
    ("extractor", "message"),
    [
        ({}, "Wav2Vec2FeatureExtractor gives input_values, but Wav2Vec2BertForCTC takes input_features"),
        ({"feature_extractor_type": "NoSuch"}, "no feature extractor can be had: .*NoSuch"),
        ({"feature_extractor_type": "SeamlessM4TFeatureExtractor", "stride": 2}, "num_mel_bins times stride is 160, but .* is 240"),
    ],
)
def test_an_extractor_that_does_not_fit_the_model_is_refused(extractor, message, tokenizer):
    node = described("wav2vec2_bert_tiny")
    node.feature_extractor = extractor
    with pytest.raises(ConfigError, match=rf"^model\.feature_extractor: {message}"):
        node.processor(tokenizer, node.load(tokenizer, new_head=True))


def test_values_that_no_model_can_have_are_a_configuration_error(tokenizer):
    with pytest.raises(ConfigError, match=r"^model: the model can't be made"):
        CTCModel(architecture={"model_type": "wav2vec2", "hidden_size": "wide"}).load(tokenizer, new_head=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nosuch/model", r"^name_or_path: 'nosuch/model' is neither a local folder.*HF_HUB_OFFLINE"),
        ("./nosuch", r"^name_or_path: there is no folder"),
        ("/a/b/c", r"^name_or_path: there is no folder"),
        ("no such name!", r"^name_or_path: "),
    ],
)
def test_a_model_that_can_not_be_found_names_the_key(name, message):
    with pytest.raises(ConfigError, match=message):
        CTCModel(name_or_path=name).check_reachable()


def test_a_hub_model_comes_from_the_hub_s_cache_without_a_network(saved, tokenizer, tmp_path):
    import shutil

    commit = "0123456789" * 4
    repository = tmp_path / "hub" / "models--someone--tiny"
    shutil.copytree(saved, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    node = CTCModel(name_or_path="someone/tiny", cache_dir=str(tmp_path / "hub"))
    node.check_reachable()
    assert node.has_own_tokenizer()
    model = node.load(tokenizer, new_head=False)
    kept = CTCModel(name_or_path=str(saved)).load(tokenizer, new_head=False)
    assert torch.equal(model.lm_head.weight, kept.lm_head.weight)
    assert node.processor(tokenizer, model).feature_extractor.sampling_rate == 16000
    with pytest.raises(ConfigError, match=r"^name_or_path: 'someone/tiny' is neither"):
        CTCModel(name_or_path="someone/tiny", revision="v2", cache_dir=str(tmp_path / "hub")).check_reachable()


def test_folders_that_are_no_ctc_model(tmp_path):
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        CTCModel(name_or_path=str(tmp_path)).check_reachable()
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"Did you mean .*run/model\?"):
        CTCModel(name_or_path=str(tmp_path / "run")).check_reachable()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        CTCModel(name_or_path=str(tmp_path)).check_reachable()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ConfigError, match="'bert' has no CTC model"):
        CTCModel(name_or_path=str(tmp_path)).check_reachable()


def test_a_knob_that_the_model_lacks_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"^add_adapter: the config of hubert has no add_adapter"):
        CTCModel(architecture={"model_type": "hubert"}, add_adapter=True)


def test_every_knob_reaches_the_model(tokenizer):
    values = {
        "attention_dropout": 0.11, "activation_dropout": 0.12, "feat_proj_dropout": 0.13, "hidden_dropout": 0.14, "final_dropout": 0.15,
        "mask_time_prob": 0.2, "mask_time_length": 3, "mask_feature_prob": 0.1, "mask_feature_length": 4, "layerdrop": 0.01,
        "ctc_loss_reduction": "sum", "ctc_zero_infinity": True, "add_adapter": True,
    }  # fmt: skip
    node = CTCModel(
        architecture={"model_type": "wav2vec2", **SMALL, **CONVOLUTIONS},
        freeze_feature_encoder=False,
        attn_implementation="eager",
        **values,
    )
    model = node.load(tokenizer, new_head=True)
    assert {name: getattr(model.config, name) for name in values} == values
    assert model.config._attn_implementation == "eager"
    assert all(p.requires_grad for p in model.wav2vec2.feature_extractor.parameters())
    assert model.wav2vec2.adapter is not None


# ---- shrunk, for rehearsals ----


def large_checkpoint(folder: Path, model_type: str, **values) -> Path:
    """Write what shrinking reads of a checkpoint of the published size; there are no weights to read."""
    from transformers import AutoConfig

    folder.mkdir()
    config = AutoConfig.for_model(model_type, architectures=["SomeModelForCTC"], vocab_size=1000, **values).to_dict()
    (folder / "config.json").write_text(json.dumps(config | {"of_another_version": 1, "_attn_implementation_autoset": True}))
    extractor = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "return_attention_mask": True, "do_normalize": True}
    if model_type == "wav2vec2-bert":
        extractor = {"feature_extractor_type": "SeamlessM4TFeatureExtractor", "num_mel_bins": 80, "feature_size": 80, "stride": 2}
    (folder / "preprocessor_config.json").write_text(json.dumps({**extractor, "processor_class": "Wav2Vec2Processor"}))
    return folder


def plain(values):
    """Return config values as JSON has them: lists for tuples."""
    return json.loads(json.dumps(values))


LOADED = {"architectures", "vocab_size", "torch_dtype", "dtype", "transformers_version"}
"""What a config says of a model that was loaded, and no option of it."""


@pytest.mark.parametrize(("model_type", "adapter"), [*((kind, None) for kind in MODEL_TYPES), *((kind, True) for kind in WITH_ADAPTER)])
def test_every_type_shrinks_to_a_small_model_of_its_own_class(model_type, adapter, tokenizer, tmp_path):
    node = CTCModel(name_or_path=str(large_checkpoint(tmp_path / "large", model_type)), add_adapter=adapter, mask_time_prob=0.05)
    small = node.shrunk()
    assert small.name_or_path is None
    lengths = np.arange(400, 60_000, 777)
    np.testing.assert_array_equal(small.frame_count()(lengths), node.frame_count()(lengths))
    assert small.input_length() == node.input_length()
    model = small.load(tokenizer, new_head=True)
    assert sum(p.numel() for p in model.parameters()) < 200_000
    asked, made = plain(node.config_values()), plain(model.config.to_dict())
    assert {key for key in asked if key in made and made[key] != asked[key]} - LOADED == small_sizes(asked).keys()
    extractor = small.processor(tokenizer, model).feature_extractor
    collator = Collator.for_extractor(extractor).with_masks_for(model, seed=0)
    batch, facts = batch_of(collator, rows_of(extractor))
    labels = batch.pop("labels")
    logits = takes_masks(model)(**batch).logits
    utterance_losses(logits, labels, frame_lengths(model, facts.lengths), facts.label_lengths, model.config).mean().backward()
    assert small.shrunk() == small


def test_a_model_from_scratch_shrinks_with_its_own_values_over_the_architecture_s():
    node = CTCModel(
        architecture={
            "model_type": "wav2vec2",
            "hidden_size": 256,
            "num_attention_heads": 4,
            "layerdrop": 0.2,
            "do_stable_layer_norm": True,
        },
        feature_extractor={"do_normalize": False},
        config={"num_hidden_layers": 6, "feat_extract_norm": "layer", "mask_feature_length": 90},
        attn_implementation="eager",
        mask_feature_prob=0.1,
        mask_feature_length=100,
    )
    small = node.shrunk()
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "mask_feature_length": 32}
    assert {key: small.config_values()[key] for key in sizes} == sizes
    assert {key: small.config_values()[key] for key in ("layerdrop", "do_stable_layer_norm")} == {
        "layerdrop": 0.2,
        "do_stable_layer_norm": True,
    }
    assert small.config == {"feat_extract_norm": "layer"}
    assert (small.feature_extractor, small.attn_implementation, small.mask_feature_prob) == ({"do_normalize": False}, "eager", 0.1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model_type": "my-speech", "auto_map": {"AutoConfig": "configuration.Mine"}}, "the repository's own code"),
        ({"model_type": "wav2vec2", "auto_map": {"AutoModelForCTC": "modeling.Mine"}}, "the repository's own code"),
        ({"model_type": "my-speech"}, "a 'my-speech'"),
    ],
)
def test_a_model_whose_sizes_are_not_known_can_not_be_shrunk(content, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(content))
    (tmp_path / "preprocessor_config.json").write_text("{}")
    node = CTCModel(name_or_path=str(tmp_path), trust_remote_code=True)
    with pytest.raises(ConfigError, match=rf"^name_or_path: is {message}, whose sizes a rehearsal can't shrink: .* a method shrunk\(\)"):
        node.shrunk()


def test_code_of_a_repository_that_is_not_run_does_not_matter(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "wav2vec2", "auto_map": {"AutoModelForCTC": "modeling.Mine"}}))
    (tmp_path / "preprocessor_config.json").write_text("{}")
    assert CTCModel(name_or_path=str(tmp_path)).shrunk().architecture["hidden_size"] == 32
