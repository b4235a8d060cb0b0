"""Our log-mel features against transformers' own extractor."""

import numpy as np
import pytest

from asr.features import InputLength, extract


def waveform(num_samples: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(num_samples) * 0.1).astype(np.float32)


@pytest.mark.parametrize("stride", [2, 3])  # at 1 the library's own mask is empty
@pytest.mark.parametrize("num_samples", [1700, 16000, 16160, 21333, 40001, 40160])
def test_log_mel_equals_the_library(stride, num_samples):
    from transformers import SeamlessM4TFeatureExtractor

    extractor = SeamlessM4TFeatureExtractor(feature_size=80, num_mel_bins=80, stride=stride, padding_value=0.0)
    theirs = extractor(waveform(num_samples), sampling_rate=16000, return_tensors="np", return_attention_mask=True)
    ours = extract(extractor, waveform(num_samples))
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs.input_features[0][theirs.attention_mask[0].astype(bool)], atol=1e-4)


@pytest.mark.parametrize("with_mask", [True, False])
def test_waveforms_are_the_library_s(with_mask):
    from transformers import Wav2Vec2FeatureExtractor

    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=with_mask)
    samples = waveform(5000)
    theirs = extractor(samples, sampling_rate=16000, return_tensors="np").input_values[0]
    np.testing.assert_array_equal(extract(extractor, samples), theirs)


@pytest.mark.parametrize("stride", [2, 3])
def test_less_than_a_stack_of_frames_is_padded_with_silence(stride):
    """The library gives no frame at all then, and attention over nothing is NaN."""
    from transformers import SeamlessM4TFeatureExtractor

    extractor = SeamlessM4TFeatureExtractor(feature_size=80, num_mel_bins=80, stride=stride, padding_value=0.0)
    short = extract(extractor, waveform(100))
    assert short.shape == (1, 80 * stride)
    assert np.isfinite(short).all()


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_the_length_of_features_is_known_beforehand(stride):
    from transformers import SeamlessM4TFeatureExtractor

    extractor = SeamlessM4TFeatureExtractor(feature_size=80, num_mel_bins=80, stride=stride, padding_value=0.0)
    length = InputLength.of(extractor.to_dict())
    for num_samples in (100, 400, 560, 719, 720, 721, 1543, 2505, 16000, 21333, 40160):
        assert length.of_samples(num_samples) == len(extract(extractor, waveform(num_samples)))


def test_the_length_of_a_waveform_is_its_samples():
    from transformers import Wav2Vec2FeatureExtractor

    length = InputLength.of(Wav2Vec2FeatureExtractor(sampling_rate=8000).to_dict())
    assert (length(1.5), length.unit) == (12000, 160)
