"""How many output frames a CTC model gives for an input: what its labels have to fit into.

In: the values of a model's config. Out: frames for input lengths, without the model and without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray


MODEL_TYPES = "data2vec-audio hubert sew sew-d unispeech unispeech-sat wav2vec2 wav2vec2-bert wav2vec2-conformer wavlm".split()
"""Model types of transformers' CTC mapping whose frames are counted here. Those new in transformers 5 nest their encoder's config."""


@dataclass(frozen=True)
class FrameCount:
    """A stack of convolutions, each (kernel, stride, padding): the same numbers as _get_feat_extract_output_lengths.

    That method is alike in all models of MODEL_TYPES: the waveform encoder's convolutions, where there
    are any, then an adapter's. A test holds this class against each of them.
    """

    convolutions: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, config: Mapping[str, Any], *, with_adapter: bool = True) -> FrameCount:
        """Read the convolutions from a config; `with_adapter=False` stops before the adapter, where SpecAugment masks."""
        waveform = "conv_kernel" in config
        layers = [(k, s, 0) for k, s in zip(config["conv_kernel"], config["conv_stride"], strict=True)] if waveform else []
        if with_adapter and config.get("add_adapter"):
            kernel = 1 if waveform else int(config["adapter_kernel_size"])
            layers += [(kernel, int(config["adapter_stride"]), kernel // 2)] * int(config["num_adapter_layers"])
        return cls(tuple(layers))

    def __call__(self, lengths: ArrayLike) -> NDArray[np.int64]:
        """Return the frames of input lengths (samples, or feature frames), int64 of the same shape; never negative."""
        import numpy as np

        frames = np.asarray(lengths, np.int64)
        for kernel, stride, padding in self.convolutions:
            frames = (frames + 2 * padding - kernel) // stride + 1
        return np.maximum(frames, 0)
