"""Waveforms to a model's inputs: what the feature extractor of transformers computes, without its loop over frames.

In: a feature extractor and mono float32 samples. Out: float32 [frames, features], or [samples] for waveform models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray


def extract(feature_extractor: Any, waveform: NDArray[np.float32]) -> torch.Tensor:
    """Return the inputs of one utterance, normalised and unpadded, as the extractor itself would give them."""
    import torch

    if type(feature_extractor).__name__ == "SeamlessM4TFeatureExtractor":
        return torch.from_numpy(_stacked_log_mel(feature_extractor, waveform))
    features = feature_extractor(waveform, sampling_rate=feature_extractor.sampling_rate, return_attention_mask=True, return_tensors="pt")
    return features[feature_extractor.model_input_names[0]][0][features["attention_mask"][0].bool()]


def _stacked_log_mel(extractor: Any, waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return normalised log-mel frames, `stride` of them side by side: [frames // stride, stride * mel bins].

    The same numbers as SeamlessM4TFeatureExtractor (transformers 4.55, feature_extraction_seamless_m4t.py), all
    frames at once: its audio_utils.spectrogram loops over them in Python (benchmarks/features.py has the ratio).
    """
    import numpy as np

    frame, hop, fft = 400, 160, 512  # 25 ms, 10 ms at 16 kHz, as in the extractor
    shortest = frame + (extractor.stride - 1) * hop  # what one stack of frames takes: less is padded with silence
    if len(waveform) < shortest:
        waveform = np.pad(waveform, (0, shortest - len(waveform)))
    frames = np.lib.stride_tricks.sliding_window_view(waveform * np.float32(2**15), frame)[::hop].astype(np.float64)
    frames -= frames.mean(axis=1, keepdims=True)
    frames[:, 1:] -= 0.97 * frames[:, :-1]
    frames[:, 0] *= 1 - 0.97
    spectrum = np.fft.rfft(frames * extractor.window, n=fft)
    power = spectrum.real**2 + spectrum.imag**2
    log_mel = np.log(np.maximum(power @ extractor.mel_filters, 1.192092955078125e-07)).astype(np.float32)
    if len(log_mel) > 1:  # of one frame there is no variance
        log_mel = (log_mel - log_mel.mean(axis=0)) / np.sqrt(log_mel.var(axis=0, ddof=1) + 1e-7)
    real, stride = len(log_mel), extractor.stride
    log_mel = np.pad(log_mel, ((0, real % 2), (0, 0)), constant_values=extractor.padding_value)  # its pad_to_multiple_of=2
    whole = len(log_mel) // stride
    stacked = log_mel[: whole * stride].reshape(whole, -1)
    return np.ascontiguousarray(stacked[np.arange(whole) * stride + 1 < real])  # its attention mask
