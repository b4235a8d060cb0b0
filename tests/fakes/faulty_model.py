"""A model whose loss is NaN for long input: what a fault of a kernel or a division by nothing does to a training."""

from dataclasses import dataclass

from asr.ctc import CTCModel

LONGEST_FRAMES = 60
"""Of input that it computes right, at 20 ms a frame."""


@dataclass(kw_only=True)
class FaultyModel(CTCModel):
    def load(self, *args, **options):
        model = super().load(*args, **options)

        def spoil(_module, _positional, named, output):
            width = named["input_features"].shape[1]
            output["logits"] = output["logits"] * (float("nan") if width > LONGEST_FRAMES else 1.0)
            return output

        model.register_forward_hook(spoil, with_kwargs=True)
        return model
