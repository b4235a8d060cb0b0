"""Waveforms to a model's inputs: what the feature extractor of transformers computes, without its loop over frames.

In: a feature extractor and mono float32 samples. Out: float32 [frames, features], or [samples] for waveform models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FRAME, HOP, FFT = 400, 160, 512  # samples: 25 ms, 10 ms at 16 kHz, as in SeamlessM4TFeatureExtractor


@dataclass(frozen=True)
class InputLength:
    """How long a model's input is for so many seconds: samples, stacks of `stride` log-mel frames, or Whisper's window.

    `window_frames` is Whisper's: its input has as many frames for whatever seconds; what is longer than `window_seconds` is cut off.
    """

    sample_rate_hz: int
    stride: int | None = None
    window_frames: int | None = None
    window_seconds: float | None = None

    @classmethod
    def of(cls, extractor: Mapping[str, Any]) -> InputLength:
        """Read it from a feature extractor's own config (preprocessor_config.json), no class of it needed."""
        rate = int(extractor.get("sampling_rate", 16000))
        if extractor.get("feature_extractor_type") == "WhisperFeatureExtractor":
            seconds, hop = int(extractor.get("chunk_length", 30)), int(extractor.get("hop_length", 160))
            return cls(rate, None, seconds * rate // hop, float(seconds))
        log_mel = extractor.get("feature_extractor_type") == "SeamlessM4TFeatureExtractor"
        return cls(rate, int(extractor.get("stride", 2)) if log_mel else None)

    def __call__(self, seconds: float) -> int:
        """Return samples [input of a waveform model], or frames [input of a log-mel model]."""
        return self.of_samples(round(seconds * self.sample_rate_hz))

    def of_samples(self, num_samples: int) -> int:
        if self.window_frames is not None:
            return self.window_frames
        if self.stride is None:
            return num_samples
        frames = 1 + (max(num_samples, shortest(self.stride)) - FRAME) // HOP
        whole = (frames + frames % 2) // self.stride  # its pad_to_multiple_of=2
        return min(whole, -(-(frames - 1) // self.stride))  # stacks whose second frame is real: its attention mask

    @property
    def unit(self) -> int:
        """What lengths are rounded up to: a fiftieth of a second of waveform, or one stack of frames."""
        return self.sample_rate_hz // 50 if self.stride is None and self.window_frames is None else 1

    def audio_frames(self, seconds: float) -> int:
        """Return how many of the input's frames are audio: all of them, but in Whisper's window."""
        if self.window_frames is None or self.window_seconds is None:
            return self(seconds)
        return min(round(seconds / self.window_seconds * self.window_frames), self.window_frames)


def shortest(stride: int) -> int:
    """Return the samples that one stack of frames takes."""
    return FRAME + (stride - 1) * HOP


def extract(feature_extractor: Any, waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the inputs of one utterance, normalised and unpadded, as the extractor itself would give them."""
    import numpy as np

    kind = type(feature_extractor).__name__
    if kind == "SeamlessM4TFeatureExtractor":
        return _stacked_log_mel(feature_extractor, waveform)
    if kind == "Wav2Vec2FeatureExtractor":  # what it does to one waveform, without its batching
        if not feature_extractor.do_normalize:
            return waveform
        centred = waveform - waveform.mean()
        variance = (centred * centred).sum() / np.float32(len(centred))  # the very bits of waveform.var(), which takes the mean again
        centred /= np.sqrt(variance + 1e-7)
        return centred  # type: ignore[no-any-return]
    if kind == "WhisperFeatureExtractor":  # its silence depends on the loudest frame: the window is made whole, [frames, mel bins]
        window = feature_extractor(waveform, sampling_rate=feature_extractor.sampling_rate, return_tensors="np")
        return np.ascontiguousarray(window["input_features"][0].T)
    features = feature_extractor(waveform, sampling_rate=feature_extractor.sampling_rate, return_attention_mask=True, return_tensors="np")
    return features[feature_extractor.model_input_names[0]][0][features["attention_mask"][0].astype(bool)]  # type: ignore[no-any-return]


def _stacked_log_mel(extractor: Any, waveform: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return normalised log-mel frames, `stride` of them side by side: [frames // stride, stride * mel bins].

    The same numbers as SeamlessM4TFeatureExtractor (transformers 4.55, feature_extraction_seamless_m4t.py), all
    frames at once: its audio_utils.spectrogram loops over them in Python (benchmarks/features.py has the ratio).
    """
    import numpy as np

    least = shortest(extractor.stride)
    if len(waveform) < least:  # padded with silence
        waveform = np.pad(waveform, (0, least - len(waveform)))
    frames = np.lib.stride_tricks.sliding_window_view(waveform * np.float32(2**15), FRAME)[::HOP].astype(np.float64)
    frames -= frames.mean(axis=1, keepdims=True)
    frames[:, 1:] -= 0.97 * frames[:, :-1]
    frames[:, 0] *= 1 - 0.97
    spectrum = np.fft.rfft(frames * extractor.window, n=FFT)
    power = spectrum.real**2 + spectrum.imag**2
    log_mel = np.log(np.maximum(power @ extractor.mel_filters, 1.192092955078125e-07)).astype(np.float32)
    if len(log_mel) > 1:  # of one frame there is no variance
        log_mel = (log_mel - log_mel.mean(axis=0)) / np.sqrt(log_mel.var(axis=0, ddof=1) + 1e-7)
    real, stride = len(log_mel), extractor.stride
    log_mel = np.pad(log_mel, ((0, real % 2), (0, 0)), constant_values=extractor.padding_value)  # its pad_to_multiple_of=2
    whole = len(log_mel) // stride
    stacked = log_mel[: whole * stride].reshape(whole, -1)
    return np.ascontiguousarray(stacked[np.arange(whole) * stride + 1 < real])  # its attention mask
