"""What training can't reach is frozen, in every model of the CTC mapping; what it can is not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from test_ctc import CONVOLUTIONS, SMALL, rows_of, tiny

from asr.collate import Collator
from asr.ctc import CTCModel
from asr.ctc_outputs import batch_loss, frame_lengths
from asr.frames import MODEL_TYPES
from asr.freezing import freeze_unused, trained_parameters
from asr.spec_augment import takes_masks
from asr.vocabulary import Vocabulary


def ready_to_train(node: CTCModel, tokenizer):
    """Return model and training batch as asr.stages.build makes them, before anything is frozen, and its short example."""
    torch.manual_seed(0)
    model = node.load(tokenizer, new_head=True)
    extractor = node.processor(tokenizer, model).feature_extractor
    collator = Collator.for_extractor(extractor).with_masks_for(model, seed=0)
    return takes_masks(model), collator.example(extractor), collator(rows_of(extractor))


def training_loss(model, forward, batch):
    """Return the loss of CTCTrainerMixin's training step."""
    inputs = dict(batch)
    facts, labels = inputs.pop("facts"), inputs.pop("labels")
    return batch_loss(forward(**inputs).logits, labels, frame_lengths(model, facts.lengths), facts, model.config)


UNUSED = {"wav2vec2-conformer": {"pos_conv_embed.conv.bias", "original0", "original1"}}
"""Parameters that no forward of a type uses, by the end of their names (transformers 4.55)."""


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_what_gets_no_gradient_is_frozen_and_nothing_else(model_type, masked, tokenizer, caplog):
    caplog.set_level("INFO", "asr")
    masks = {"mask_time_prob": 0.3, "mask_time_length": 2, "mask_feature_prob": 0.1, "mask_feature_length": 2}
    layers = {} if model_type == "sew-d" else {"layerdrop": 0.9}  # a layer that is dropped in training is used all the same
    model, example, batch = ready_to_train(tiny(model_type, **masks, **layers, apply_spec_augment=masked), tokenizer)
    dice, before = torch.get_rng_state(), {name: buffer.clone() for name, buffer in model.named_buffers()}
    frozen = freeze_unused(model.train(), example)
    assert model.training
    assert torch.equal(torch.get_rng_state(), dice)
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
    model.config.layerdrop = 0.0
    training_loss(model, model, batch).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    ends = UNUSED.get(model_type, set()) | (set() if masked else {"masked_spec_embed"})
    assert len(frozen) == len(ends)
    assert all(name.endswith(tuple(ends)) and name in caplog.text for name in frozen)
    assert ("froze" in caplog.text) == bool(frozen)
    assert freeze_unused(model, example) == []


def test_an_unused_mask_embedding_is_frozen_and_said_so(tokenizer, caplog):
    caplog.set_level("INFO", "asr")
    node = CTCModel(architecture={"model_type": "wav2vec2", **SMALL, **CONVOLUTIONS}, mask_time_prob=0.0, mask_feature_prob=0.1)
    model, example, _ = ready_to_train(node, tokenizer)
    assert freeze_unused(model, example) == ["wav2vec2.masked_spec_embed"]
    assert "froze what would get no gradient: wav2vec2.masked_spec_embed (no time masks)" in caplog.text
    counts = trained_parameters(model)
    assert counts["total"] - counts["trained"] == 32 + sum(p.numel() for p in model.wav2vec2.feature_extractor.parameters())


def test_a_graph_that_is_hidden_freezes_nothing(tokenizer, monkeypatch):
    """Reentrant checkpointing keeps its part of the graph to itself: what it uses would look unused."""
    model, example, _ = ready_to_train(tiny("wav2vec2", apply_spec_augment=False), tokenizer)
    layer = model.wav2vec2.encoder.layers[0]
    plain = layer.forward

    def checkpointed(hidden, **kwargs):
        given = plain(hidden, **kwargs)
        if isinstance(given, tuple):  # transformers 4.55
            return (torch.utils.checkpoint.checkpoint(lambda h: plain(h, **kwargs)[0], hidden, use_reentrant=True),)
        return torch.utils.checkpoint.checkpoint(lambda h: plain(h, **kwargs), hidden, use_reentrant=True)

    monkeypatch.setattr(layer, "forward", checkpointed)
    assert freeze_unused(model, example) == []


def train_on_a_rank(rank: int, folder: Path, freezes: bool) -> None:
    """Train a Conformer, whose pos_conv_embed no forward uses, with DDP as GaudiTrainingArguments has it: every gradient is awaited."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/{freezes}", rank=rank, world_size=2)
    node = tiny("wav2vec2-conformer", apply_spec_augment=False, layerdrop=0.0)
    model, example, batch = ready_to_train(node, Vocabulary().tokenizer_from(Vocabulary().build(["abcdef"]), folder))
    assert not freezes or len(freeze_unused(model, example)) == 4
    parallel = torch.nn.parallel.DistributedDataParallel(model.train())
    optimizer = torch.optim.AdamW(parallel.parameters(), lr=1e-3)
    for _ in range(3):
        training_loss(model, parallel, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    theirs = weights.clone()
    dist.broadcast(theirs, src=0)
    assert torch.equal(weights, theirs)
    dist.destroy_process_group()


def train_on_two_ranks(folder: str) -> None:
    """Fork two ranks with the unused parameters frozen, then two without, from a process that has computed nothing yet."""
    import transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer  # noqa: F401 - once, and not in each rank
    from torch.multiprocessing import ProcessRaisedException, start_processes

    start_processes(train_on_a_rank, (Path(folder), True), nprocs=2, start_method="fork")
    print("frozen: trained")
    try:
        start_processes(train_on_a_rank, (Path(folder), False), nprocs=2, start_method="fork")
    except ProcessRaisedException as error:
        print("not frozen:", error)


@pytest.mark.slow
def test_two_processes_train_what_used_to_break_ddp(tmp_path):
    code = f"import test_freezing; test_freezing.train_on_two_ranks({str(tmp_path)!r})"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=240)
    assert "frozen: trained" in done.stdout, done.stderr
    assert "Expected to have finished reduction in the prior iteration" in done.stdout.partition("not frozen:")[2]
