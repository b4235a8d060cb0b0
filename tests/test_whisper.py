"""Whisper from scratch and from a checkpoint: what it is started with, what it hears, what it is refused."""

import numpy as np
import pytest
import torch
import transformers
from conftest import composed

from asr import config, whisper_tokenizer
from asr.errors import ConfigError
from asr.whisper import WhisperModel

SMALL = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "num_mel_bins": 80, "max_source_positions": 100, "max_target_positions": 32,
}  # fmt: skip


def described(**values) -> WhisperModel:
    return WhisperModel(**{"architecture": SMALL, "feature_extractor": {"chunk_length": 2}, "language": "english", **values})


@pytest.fixture
def tokenizer(tmp_path):
    return whisper_tokenizer.make(tmp_path / "tokenizer")


@pytest.fixture
def saved(tokenizer, tmp_path):
    node = described()
    node.check_tokenizer(tokenizer)
    model = node.load(tokenizer, new_head=True)
    processor = node.processor(tokenizer, model)
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    processor.feature_extractor.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_the_tokenizer_spells_anything_and_starts_as_whisper_s(tokenizer):
    described(language="tr", task="translate").check_tokenizer(tokenizer)
    ids = tokenizer("Güzel, 日本 one").input_ids
    assert tokenizer.convert_ids_to_tokens(ids[:4]) == ["<|startoftranscript|>", "<|tr|>", "<|translate|>", "<|notimestamps|>"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Güzel, 日本 one"
    # in the published tokenizer these stand at the same distance from the end of text (openai/whisper-tiny, added_tokens.json)
    end = tokenizer.eos_token_id
    distances = {"<|startoftranscript|>": 1, "<|en|>": 2, "<|translate|>": 101 + len(whisper_tokenizer.languages()) - 99}
    assert {token: tokenizer.convert_tokens_to_ids(token) - end for token in distances} == distances


def test_labels_are_language_task_text_and_end(tokenizer):
    node = described()
    node.check_tokenizer(tokenizer)
    labels = node.labels(tokenizer, "<|0.00|>ab<|0.50|>")
    assert tokenizer.convert_ids_to_tokens(labels) == ["<|en|>", "<|transcribe|>", "<|notimestamps|>", "a", "b", "<|endoftext|>"]


def test_timestamps_are_kept_where_they_are_asked_for(tokenizer):
    node = described(timestamps=True)
    node.check_tokenizer(tokenizer)
    labels = node.labels(tokenizer, "<|0.00|>ab<|0.50|>")
    assert tokenizer.convert_ids_to_tokens(labels) == ["<|en|>", "<|transcribe|>", "<|0.00|>", "a", "b", "<|0.50|>", "<|endoftext|>"]
    assert tokenizer.decode(labels, skip_special_tokens=True) == "ab"
    assert node.load(tokenizer, new_head=True).generation_config.return_timestamps


def test_generation_starts_with_language_and_task_and_stops_within_the_positions(tokenizer):
    node = described()
    node.check_tokenizer(tokenizer)
    model = node.load(tokenizer, new_head=True)
    tokens = model.generate(torch.randn(2, 80, 200))
    assert tokens.shape[1] <= SMALL["max_target_positions"]
    assert model.generation_config.language == "english"
    assert model.generation_config.forced_decoder_ids is None


def test_a_saved_model_is_where_the_next_run_starts_and_what_a_pipeline_loads(saved):
    node = WhisperModel(name_or_path=str(saved), language="en", generation={"suppress_tokens": [5, 6]}, freeze_encoder=True)
    node.check_reachable()
    assert (node.most_seconds(), node.most_labels(), node.input_length()(0.3)) == (2.0, 32, 200)
    tokenizer = transformers.AutoTokenizer.from_pretrained(saved)
    node.check_tokenizer(tokenizer)
    model = node.load(tokenizer, new_head=False)
    assert model.generation_config.suppress_tokens == [5, 6]
    assert not any(p.requires_grad for p in model.model.encoder.parameters())
    heard = transformers.pipeline("automatic-speech-recognition", str(saved), device="cpu")(np.zeros(16000, np.float32))
    assert isinstance(heard["text"], str)


def test_a_saved_model_generates_as_it_did(saved, tokenizer):
    node = WhisperModel(name_or_path=str(saved), language="english")
    node.check_tokenizer(tokenizer)
    model = node.load(tokenizer, new_head=False)
    heard = torch.zeros(1, 80, 200)
    start = model.generate(heard, max_new_tokens=2, return_dict_in_generate=True, force_unique_generate_call=True).sequences[0, :4].tolist()
    assert tokenizer.convert_ids_to_tokens(start) == ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]


def test_the_input_is_a_window_of_one_length_as_the_extractor_gives_it(tokenizer, saved):
    from asr.collate import Collator, Row
    from asr.features import extract

    extractor = transformers.AutoFeatureExtractor.from_pretrained(saved)
    waveforms = [np.sin(np.arange(n) / 9).astype(np.float32) for n in (9000, 31999)]
    rows = [Row(i, extract(extractor, w), [1, 2], len(w) / 16000, 200) for i, w in enumerate(waveforms)]
    batch = Collator.for_extractor(extractor)(rows)
    theirs = extractor(waveforms, sampling_rate=16000, return_tensors="pt").input_features
    assert torch.equal(batch["input_features"], theirs)
    assert "attention_mask" not in batch
    assert batch["facts"].lengths == (56, 200)


def test_masks_are_of_the_input_and_drawn_with_the_batch(tokenizer, saved):
    from dataclasses import replace

    from asr.collate import Collator, Row

    node = described(apply_spec_augment=True, mask_time_prob=0.2, mask_time_length=5, mask_feature_prob=0.1, mask_feature_length=4)
    node.check_tokenizer(tokenizer)
    model = node.load(tokenizer, new_head=True)
    assert not model.config.apply_spec_augment  # forward would draw others
    plain = Collator.for_extractor(transformers.AutoFeatureExtractor.from_pretrained(saved))
    masking = replace(plain, spec_augment=node.input_masks(model.config, 3))
    rows = [Row(i, np.ones((200, 80), np.float32), [1], 2.0, 200) for i in range(2)]
    masked = masking(rows)["input_features"]
    assert torch.equal(masked, masking(rows)["input_features"])
    silent = (masked == 0).float()
    assert (silent.all(dim=1).sum(dim=1) >= 10).all(), "whole frames"
    assert (silent.all(dim=2).sum(dim=1) >= 4).all(), "whole mel bins"
    assert (plain(rows)["input_features"] == 1).all()
    assert described().input_masks(model.config, 3) is None


@pytest.mark.parametrize(
    ("values", "key", "message"),
    [
        ({"language": "klingon"}, "language", "Whisper knows no 'klingon'"),
        ({"language": "hindy"}, "language", "Did you mean hindi?"),
        ({"architecture": {}}, "name_or_path", "give a checkpoint"),
        ({"architecture": {**SMALL, "d_modle": 1}}, "architecture.d_modle", "Did you mean d_model?"),
        ({"feature_extractor": {"chunk_length": 3}}, "architecture.max_source_positions", "set it to 150"),
    ],
)
def test_what_no_whisper_can_be_is_refused_at_once(values, key, message):
    with pytest.raises(ConfigError) as refused:
        described(**values)
    assert refused.value.key == key and message in refused.value.problem


def test_a_task_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="'transcrib' is not one of transcribe, translate") as refused:
        config.instantiate(composed("trainer=seq2seq", "model=digits_whisper", "model.task=transcrib"))
    assert refused.value.key == "model.task"


def test_an_english_only_checkpoint_takes_no_language(saved):
    content = (
        (saved / "config.json").read_text().replace(f'"vocab_size": {1765 + len(whisper_tokenizer.languages())}', '"vocab_size": 51864')
    )
    assert "51864" in content
    (saved / "config.json").write_text(content)
    with pytest.raises(ConfigError, match="English-only") as refused:
        WhisperModel(name_or_path=str(saved), language="english").check_reachable()
    assert refused.value.key == "language"
    WhisperModel(name_or_path=str(saved), task=None).check_reachable()


def test_a_multilingual_checkpoint_wants_to_know_the_language(saved):
    with pytest.raises(ConfigError, match="name the language"):
        WhisperModel(name_or_path=str(saved)).check_reachable()


def test_another_extractor_s_mel_bins_are_refused(tokenizer):
    node = described(feature_extractor={"chunk_length": 2, "feature_size": 128})
    node.check_tokenizer(tokenizer)
    with pytest.raises(ConfigError, match="of 128 mel bins doesn't fit a Whisper of 80"):
        node.processor(tokenizer, node.load(tokenizer, new_head=True))


# ---- LoRA ----


def test_lora_adapts_whisper_and_what_is_exported_is_a_plain_one(saved, tokenizer, tmp_path):
    from asr import lora

    node = described(name_or_path=str(saved), lora={"r": 2})
    model = node.load(tokenizer, new_head=False)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert {name.split(".lora_")[0].split(".layers.")[1] for name in trained} == {
        f"0.{attention}.{projection}" for attention in ("self_attn", "encoder_attn") for projection in ("q_proj", "v_proj")
    }
    assert len([name for name in trained if name.startswith("model.encoder")]) == 4
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_()
    model.save_pretrained(tmp_path / "exported", state_dict=lora.merged(model))
    loaded = transformers.AutoModelForSpeechSeq2Seq.from_pretrained(tmp_path / "exported").eval()
    heard = {"input_features": torch.randn(1, 80, 200), "decoder_input_ids": torch.tensor([[3, 4, 5]])}
    with torch.no_grad():
        torch.testing.assert_close(loaded(**heard).logits, model.eval()(**heard).logits, rtol=1e-4, atol=1e-4)


def test_lora_beside_tied_weights_is_refused(saved, tokenizer):
    node = described(name_or_path=str(saved), lora={"target_modules": ["proj_out"]})
    with pytest.raises(
        ConfigError, match=r"^model\.lora\.target_modules: 'proj_out' is frozen, or shares its weights with another; those that"
    ):
        node.load(tokenizer, new_head=False)
