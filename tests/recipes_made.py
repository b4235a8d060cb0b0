"""What published recipes are trained on, made small: their corpora and checkpoints, and the overrides that name them."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

WAVEFORM = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2, "feat_extract_norm": "layer", "do_stable_layer_norm": True,
    "conv_bias": True, "output_hidden_size": 32,
}  # fmt: skip
BART = {
    "d_model": 32, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32, "encoder_layers": 1,
    "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "max_position_embeddings": 256,
}  # fmt: skip
WHISPER = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "num_mel_bins": 80, "max_source_positions": 150, "max_target_positions": 448,
}  # fmt: skip
SPEECH = {"librispeech": "DON'T, SAID MRS. HALE", "common_voice_tr": "Bugün “hava” güzel!", "whisper": "आज मौसम अच्छा है"}
"""What is said in the stand-ins: capitals, an apostrophe, other alphabets."""


def parquet(path: Path, numbers: range, text_column: str, said: str) -> None:
    """Write utterances of up to a second, as the hub's datasets have them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = []
    for number in numbers:
        file = io.BytesIO()
        noise = np.random.default_rng(number).normal(0, 0.1, 8000 + 1000 * (number % 9)).astype(np.float32)
        soundfile.write(file, noise, 16000, format="FLAC")
        cells.append({"bytes": file.getvalue(), "path": f"{number}.flac"})
    audio = pa.array(cells, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    texts = [" ".join(said.split()[: 1 + number % 4]) for number in numbers]
    pq.write_table(pa.table({"audio": audio, text_column: texts}), path, row_group_size=8)


@pytest.fixture(scope="session")
def corpora(tmp_path_factory) -> dict[str, Path]:
    """The folders as the hub's repositories have them."""
    root = tmp_path_factory.mktemp("corpora")
    libri = root / "librispeech"
    parquet(libri / "clean" / "train.100" / "0000.parquet", range(24), "text", SPEECH["librispeech"])
    parquet(libri / "clean" / "validation" / "0000.parquet", range(24, 30), "text", SPEECH["librispeech"])
    files = [{"split": split, "path": f"clean/{split}/*.parquet"} for split in ("train.100", "validation")]
    (libri / "README.md").write_text("---\n" + json.dumps({"configs": [{"config_name": "clean", "data_files": files}]}) + "\n---\n")
    for name in ("common_voice_tr", "whisper"):
        for split, numbers in (("train", range(16)), ("validation", range(16, 24)), ("test", range(24, 30))):
            parquet(root / name / f"{split}-00000-of-00001.parquet", numbers, "sentence", SPEECH[name])
    return {name: root / name for name in SPEECH}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> Path:
    """Small checkpoints of the recipes' classes: an encoder, BART, Whisper, and a tokenizer of Turkish letters."""
    import transformers

    from asr import whisper_tokenizer
    from asr.vocabulary import Vocabulary
    from asr.whisper import WhisperModel

    root = tmp_path_factory.mktemp("checkpoints")
    transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**WAVEFORM)).save_pretrained(root / "encoder")
    transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(root / "encoder")
    vocabulary = Vocabulary()
    (root / "turkish").mkdir()
    tokenizer = vocabulary.tokenizer_from(vocabulary.build([SPEECH["common_voice_tr"].lower()]), root / "turkish")
    tokenizer.save_pretrained(root / "turkish")
    (root / "letters").mkdir()
    (root / "letters" / "vocab.json").write_text(json.dumps(vocabulary.build([SPEECH["librispeech"].lower()], sequences=True)))
    letters = vocabulary.sequence_tokenizer_in(root / "letters")
    special = {f"{name}_token_id": getattr(letters, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = transformers.BartConfig(**BART, **special, vocab_size=len(letters), forced_eos_token_id=letters.eos_token_id)
    transformers.BartForConditionalGeneration(config).save_pretrained(root / "bart")
    letters.save_pretrained(root / "bart")
    node = WhisperModel(architecture=WHISPER, feature_extractor={"chunk_length": 3}, language="hindi")
    bytes_of = whisper_tokenizer.make(root / "bytes")
    node.check_tokenizer(bytes_of)
    model = node.load(bytes_of, new_head=True)
    processor = node.processor(bytes_of, model)
    for part in (model, processor, processor.feature_extractor):
        part.save_pretrained(root / "whisper")
    return root


CPU = (
    "model.attn_implementation=null trainer.args.bf16=false trainer.args.fp16=false trainer.args.max_steps=2 trainer.args.warmup_steps=1 "
    "trainer.args.dataloader_num_workers=0 trainer.args.eval_steps=2 trainer.args.save_steps=2"
).split()
"""What a CPU can't do, or would do too long."""
GAUDI_ONLY = (
    "trainer.args.use_hpu_graphs_for_training=false trainer.args.use_hpu_graphs_for_inference=false "
    "trainer.args.distribution_strategy=ddp trainer.args.throughput_warmup_steps=0"
).split()


def model_of(name: str, checkpoints: Path) -> list[str]:
    if name.startswith("whisper"):
        return [f"model.name_or_path={checkpoints}/whisper", "trainer.args.generation_max_length=12"]
    if "bart" in name:
        halves = [f"model.encoder_name_or_path={checkpoints}/encoder", f"model.decoder_name_or_path={checkpoints}/bart"]
        return [*halves, "trainer.args.generation_max_length=12", "trainer.args.generation_num_beams=2"]
    tokenizer = [f"vocabulary.tokenizer_name_or_path={checkpoints}/turkish"] if name.startswith("common_voice") else []
    return [f"model.name_or_path={checkpoints}/encoder", *tokenizer]


def overrides(version: str, corpora: dict[str, Path], checkpoints: Path) -> list[str]:
    name, _, number = version.partition("/")
    on_gpus = number == "v1" and ("bart" in name or name.startswith("common_voice"))
    several = not name.endswith(("1",))
    root = next(folder for start, folder in corpora.items() if name.startswith(start))
    return [
        f"experiment={version}",
        f"dataset.root={root}",
        f"dataset.cache_dir={root}-cache",
        f"topology={'cpu2' if several else 'cpu'}",
        *(["topology.launcher=torchrun"] if "deepspeed" in name else []),
        *(["topology.ranks_per_node=2"] if several else []),
        *(["trainer.engine=transformers"] if on_gpus else GAUDI_ONLY),
        *CPU,
        *model_of(name, checkpoints),
    ]
