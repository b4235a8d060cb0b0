"""Frames from a config alone, held against every model of transformers' CTC mapping."""

import numpy as np
import pytest
import torch

from asr.ctc import CTCModel
from asr.errors import ConfigError
from asr.frames import MODEL_TYPES, FrameCount

NOT_COUNTED = ["mctct", "granite_speech5_ctc", "lasr_ctc", "parakeet_ctc"]
WITH_ADAPTER = ["data2vec-audio", "wav2vec2", "wav2vec2-bert", "wav2vec2-conformer", "wavlm"]
SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 10}


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("with_adapter", [False, True])
def test_frames_are_the_model_s_own(model_type, with_adapter):
    from transformers import AutoConfig, AutoModelForCTC

    if with_adapter and model_type not in WITH_ADAPTER:
        pytest.skip("its config has no adapter")
    with torch.device("meta"):
        model = AutoModelForCTC.from_config(AutoConfig.for_model(model_type, **SMALL, add_adapter=with_adapter))
    lengths = np.arange(400, 60_000, 77)
    expected = model._get_feat_extract_output_lengths(torch.tensor(lengths)).numpy()
    node = CTCModel(architecture={"model_type": model_type}, add_adapter=True if with_adapter else None, freeze_feature_encoder=False)
    np.testing.assert_array_equal(node.frame_count()(lengths), expected)
    np.testing.assert_array_equal(FrameCount.of(model.config.to_dict())(lengths), expected)


def test_the_mapping_has_no_other_model_type():
    from transformers.models.auto.modeling_auto import MODEL_FOR_CTC_MAPPING_NAMES

    assert set(MODEL_TYPES) <= set(MODEL_FOR_CTC_MAPPING_NAMES) <= {*MODEL_TYPES, *NOT_COUNTED}


@pytest.mark.parametrize("model_type", [*NOT_COUNTED, "bert"])
def test_a_model_whose_frames_are_not_counted_is_refused(model_type):
    with pytest.raises(ConfigError, match=rf"^architecture\.model_type: '{model_type}' has .*; these have one that is: data2vec"):
        CTCModel(architecture={"model_type": model_type})


def test_less_than_a_frame_is_none():
    counted = FrameCount(((10, 5, 0), (3, 2, 0)))
    assert counted([0, 9, 20]).tolist() == [0, 0, 1]


def test_a_checkpoint_s_config_counts(tmp_path):
    import json

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "wav2vec2", "conv_kernel": [4], "conv_stride": [4]}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"sampling_rate": 8000}))
    node = CTCModel(name_or_path=str(tmp_path))
    assert node.frame_count()(17) == 4
    assert node.input_length()(0.5) == 4000
