"""Encoder-decoders: warm-started as the published recipe does, from scratch, and loaded again by a pipeline."""

import json

import numpy as np
import pytest
import torch
import transformers

from asr.errors import ConfigError
from asr.seq2seq import EncoderDecoderModel
from asr.vocabulary import Vocabulary

ENCODER = {
    "model_type": "wav2vec2", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "feat_extract_norm": "layer",
    "do_stable_layer_norm": True, "num_adapter_layers": 1, "output_hidden_size": 32, "mask_time_prob": 0.0,
}  # fmt: skip
DECODER = {
    "model_type": "bart", "d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 32,
    "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "max_position_embeddings": 512,
}  # fmt: skip
"""transformers 5 counts the layers of a BART's cache by encoder_layers, where it decodes for another encoder."""
EXTRACTOR = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "return_attention_mask": True}


@pytest.fixture
def tokenizer(tmp_path):
    vocabulary = Vocabulary()
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary.build(["ab cd", "ef"], sequences=True)))
    return vocabulary.sequence_tokenizer_in(tmp_path)


@pytest.fixture
def checkpoints(tokenizer, tmp_path):
    """A pretrained encoder with its extractor, and a pretrained BART with its tokenizer, as the hub has them."""
    folders = tmp_path / "encoder", tmp_path / "decoder"
    values = {k: v for k, v in ENCODER.items() if k != "model_type"}
    transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**values)).save_pretrained(folders[0])
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folders[0])
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    bart = {k: v for k, v in DECODER.items() if k != "model_type"}
    config = transformers.BartConfig(**bart, **special, vocab_size=len(tokenizer), forced_eos_token_id=special["eos_token_id"])
    transformers.BartForConditionalGeneration(config).save_pretrained(folders[1])
    tokenizer.save_pretrained(folders[1])
    return folders


def described(**values) -> EncoderDecoderModel:
    return EncoderDecoderModel(**{"encoder": ENCODER, "decoder": DECODER, "feature_extractor": EXTRACTOR, "max_length": 12, **values})


def warm(checkpoints, **values) -> EncoderDecoderModel:
    return EncoderDecoderModel(encoder_name_or_path=str(checkpoints[0]), decoder_name_or_path=str(checkpoints[1]), **values)


def test_a_tokenizer_of_characters_gives_the_labels_and_the_text_back(tokenizer, tmp_path):
    vocabulary = Vocabulary()
    built = vocabulary.build(["ab cd", "ef"], sequences=True)
    ids = tokenizer("ab  fe").input_ids
    assert ids == [tokenizer.bos_token_id, *vocabulary.labels(built, ["ab  fe"], sequences=True)[0]]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ab  fe"
    tokenizer.save_pretrained(tmp_path / "saved")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")("ab  fe").input_ids == ids
    assert tokenizer.unk_token_id in tokenizer("z").input_ids


def test_a_warm_start_is_what_the_published_recipe_makes(checkpoints, tokenizer):
    node = warm(checkpoints, encoder_add_adapter=True, encoder_feat_proj_dropout=0.25, max_length=20, num_beams=5)
    node.check_reachable()
    assert node.has_own_tokenizer() and not node.is_trained() and node.most_labels() == 512
    model = node.load(tokenizer, new_head=False)
    theirs = transformers.SpeechEncoderDecoderModel.from_encoder_decoder_pretrained(
        *map(str, checkpoints), encoder_add_adapter=True, encoder_feat_proj_dropout=0.25
    )
    ours, known = model.state_dict(), theirs.state_dict()
    assert ours.keys() == known.keys()
    whole = transformers.BartModel.from_pretrained(checkpoints[1])
    shared = whole.get_input_embeddings().weight
    for name, weights in known.items():
        if "embed_tokens" in name or "lm_head" in name:
            assert torch.equal(ours[name], shared), f"{name}, which transformers itself would begin with random values"
        elif "adapter" not in name:  # it starts from nothing
            assert torch.equal(ours[name], weights), name
    assert model.config.decoder_start_token_id == tokenizer.bos_token_id == model.generation_config.decoder_start_token_id
    assert model.config.encoder.feat_proj_dropout == 0.25
    generation = model.generation_config
    assert (generation.max_length, generation.num_beams, generation.forced_eos_token_id) == (20, 5, None)
    assert not any(p.requires_grad for p in model.encoder.feature_extractor.parameters())
    assert any(p.requires_grad for p in model.encoder.adapter.parameters())


def test_a_frozen_encoder_has_nothing_to_train(checkpoints, tokenizer):
    model = warm(checkpoints, freeze_encoder=True).load(tokenizer, new_head=False)
    assert not any(p.requires_grad for p in model.encoder.parameters())
    assert all(p.requires_grad for p in model.decoder.parameters())


def test_a_saved_model_is_where_the_next_run_starts_and_what_a_pipeline_loads(tokenizer, tmp_path):
    node = described(generation={"length_penalty": 0.5, "num_beams": 2})
    model = node.load(tokenizer, new_head=True)
    model.save_pretrained(tmp_path / "saved")
    node.processor(tokenizer, model).save_pretrained(tmp_path / "saved")
    if not (tmp_path / "saved" / "preprocessor_config.json").exists():
        node.processor(tokenizer, model).feature_extractor.save_pretrained(tmp_path / "saved")
    again = EncoderDecoderModel(name_or_path=str(tmp_path / "saved"), encoder_layerdrop=0.5)
    again.check_reachable()
    assert again.is_trained() and again.known_layerdrop()["encoder_layerdrop"] == 0.5
    loaded = again.load(tokenizer, new_head=False)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True))
    assert loaded.generation_config.length_penalty == 0.5
    waveform = np.sin(np.arange(8000) / 7).astype(np.float32)
    pipe = transformers.pipeline("automatic-speech-recognition", str(tmp_path / "saved"), device="cpu")
    heard = pipe(waveform.copy())
    inputs = node.processor(tokenizer, model).feature_extractor(waveform, sampling_rate=16000, return_tensors="pt")
    assert heard["text"] == tokenizer.decode(
        model.eval().generate(**inputs, generation_config=getattr(pipe, "generation_config", pipe.model.generation_config))[0],
        skip_special_tokens=True,
    )


def test_a_decoder_without_cross_attention_is_refused(tokenizer):
    gpt = {"model_type": "gpt_neox", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    node = described(decoder=gpt)
    with pytest.raises(ConfigError, match=r"GPTNeoXForCausalLM has no cross-attention"):
        node.load(tokenizer, new_head=True)


def test_cross_attention_of_another_width_is_refused(tokenizer):
    node = described(decoder={**DECODER, "cross_attention_hidden_size": 24})
    with pytest.raises(ConfigError, match=r"the model can't be made.*cross_attention_hidden_size"):
        node.load(tokenizer, new_head=True)


@pytest.mark.parametrize(
    ("values", "key", "message"),
    [
        ({"encoder": {}}, "encoder_name_or_path", "give a checkpoint"),
        ({"decoder": {}}, "decoder_name_or_path", "give a checkpoint"),
        ({"encoder": {"model_type": "bert"}}, "encoder.model_type", "'bert' is no speech encoder"),
        ({"decoder": {"model_type": "wav2vec2"}}, "decoder.model_type", "'wav2vec2' is no text decoder"),
        ({"decoder": {**DECODER, "d_modle": 8}}, "decoder.d_modle", "Did you mean d_model?"),
        ({"feature_extractor": {**EXTRACTOR, "sampling_ratee": 8}}, "feature_extractor.sampling_ratee", "Did you mean"),
    ],
)
def test_what_can_not_be_half_of_a_model_is_refused_at_once(values, key, message):
    with pytest.raises(ConfigError) as refused:
        described(**values)
    assert refused.value.key == key and message in refused.value.problem


def test_a_speech_encoder_alone_is_no_whole_model(checkpoints):
    with pytest.raises(ConfigError, match=r"model\.encoder_name_or_path"):
        EncoderDecoderModel(name_or_path=str(checkpoints[0])).check_reachable()


@pytest.mark.parametrize("token", ["pad", "eos", "bos"])
def test_a_tokenizer_that_lacks_a_token_is_refused(tokenizer, token):
    setattr(tokenizer, f"{token}_token", None)
    with pytest.raises(ConfigError, match=f"has no {token} token"):
        described().check_tokenizer(tokenizer)


def test_a_tokenizer_of_more_tokens_than_outputs_is_refused(checkpoints, tokenizer):
    tokenizer.add_tokens([f"more{i}" for i in range(3)])
    with pytest.raises(ConfigError, match=r"the decoder has 11 outputs, but the tokenizer 14 tokens"):
        warm(checkpoints).load(tokenizer, new_head=False)


def test_generation_values_that_do_not_go_together_are_refused_before_training(tokenizer):
    with pytest.raises(ConfigError, match="num_beams") as refused:
        described(generation={"early_stopping": True, "num_beams": 1}).load(tokenizer, new_head=True)
    assert refused.value.key == "model.generation"


def test_a_generation_value_that_is_none_is_refused(tokenizer):
    with pytest.raises(ConfigError, match=r"Did you mean length_penalty\?") as refused:
        described(generation={"lenght_penalty": 1.0}).load(tokenizer, new_head=True)
    assert refused.value.key == "model.generation.lenght_penalty"


# ---- LoRA ----


def parts_trained_whole(model):
    """Return the parts of encoder and decoder that are trained without LoRA, and those that have LoRA."""
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    return {".".join(n.split(".")[:2]) for n in names if ".lora_" not in n}, {n.split(".")[0] for n in names if ".lora_" in n}


def test_lora_adapts_both_halves_and_what_lies_between_is_trained_whole(checkpoints, tokenizer, tmp_path):
    from asr import lora

    model = warm(checkpoints, encoder_add_adapter=True, lora={"r": 2}).load(tokenizer, new_head=False)
    assert parts_trained_whole(model) == ({"encoder.adapter"}, {"encoder", "decoder"})
    layer = model.decoder.model.decoder.layers[0]
    assert all(hasattr(attention.q_proj, "lora_A") for attention in (layer.self_attn, layer.encoder_attn))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_()
    plain = warm(checkpoints, encoder_add_adapter=True).load(tokenizer, new_head=False)
    weights = lora.merged(model)
    assert weights.keys() == plain.state_dict().keys()
    model.save_pretrained(tmp_path / "saved", state_dict=weights)
    loaded = transformers.SpeechEncoderDecoderModel.from_pretrained(tmp_path / "saved").eval()
    heard = {"input_values": torch.randn(2, 8000), "decoder_input_ids": torch.tensor([[0, 5, 6], [0, 6, 7]]), "use_cache": False}
    with torch.no_grad():
        torch.testing.assert_close(loaded(**heard).logits, model.eval()(**heard).logits, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(loaded(**heard).logits, plain.eval()(**heard).logits, atol=1e-2)


def test_a_frozen_encoder_gets_no_lora(checkpoints, tokenizer):
    model = warm(checkpoints, freeze_encoder=True, lora={"r": 2}).load(tokenizer, new_head=False)
    assert parts_trained_whole(model) == (set(), {"decoder"})


def test_a_decoder_from_scratch_is_trained_whole_beside_an_encoder_with_lora(checkpoints, tokenizer):
    node = EncoderDecoderModel(encoder_name_or_path=str(checkpoints[0]), decoder=DECODER, lora={"r": 2})
    model = node.load(tokenizer, new_head=True)
    assert parts_trained_whole(model)[1] == {"encoder"}
    assert all(p.requires_grad for p in model.decoder.parameters())
    assert not any(p.requires_grad for name, p in model.encoder.named_parameters() if ".lora_" not in name)
