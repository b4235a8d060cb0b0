"""What libraries raise in mid-training, raised by them for real: no memory, a loader's worker killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, launch_command
from test_supervision import until
from test_trainer import built

from asr import failures
from asr.errors import DataError, TrainingError

SHORT = ["trainer.args.max_steps=3", "trainer.args.per_device_train_batch_size=4", "trainer.args.save_strategy=no"]


def test_memory_that_ends_in_mid_training_names_the_batch_and_the_step(tmp_path):
    made, _ = built(tmp_path, *SHORT, "batching=fixed", "batching.seconds=4", "batching.labels=40")
    made.model.register_forward_pre_hook(lambda *_: torch.empty(2**50) if made.state.global_step == 1 else None)
    with pytest.raises(TrainingError) as raised, failures.explained(made):
        made.train()
    said = str(raised.value)
    assert "memory doesn't suffice for a training batch of 4 rows of 4 s with up to 40 labels, at step 2. Lower trainer.args." in said
    assert "batching.seconds, which leaves longer utterances out; or set trainer.args.gradient_checkpointing=true" in said
    assert "DefaultCPUAllocator: can't allocate memory" in said


def test_memory_that_ends_in_an_evaluation_names_its_own_batch_size(tmp_path):
    made, _ = built(tmp_path, "trainer.args.per_device_eval_batch_size=2", "batching.max_shapes=1")
    made.model.register_forward_pre_hook(lambda *_: torch.empty(2**50))
    with (
        pytest.raises(TrainingError, match=r"an evaluation batch of 2 rows .* Lower trainer\.args\.per_device_eval_batch_size \(2\), "),
        failures.explained(made),
    ):
        made.evaluate()


def test_an_utterance_that_is_too_long_alone_isn_t_blamed_on_the_batch_size(tmp_path):
    made, _ = built(tmp_path, "trainer.args.per_device_train_batch_size=1", "batching.max_shapes=1")
    made.model.register_forward_pre_hook(lambda *_: torch.empty(2**50))
    with (
        pytest.raises(
            TrainingError, match=r"of 1 row of .*\. Lower dataset\.max_duration_in_seconds, which leaves longer utterances out; or"
        ),
        failures.explained(made),
    ):
        made.train()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("[Rank:0] FATAL ERROR :: MODULE:PT_DEVMEM Allocation failed for size::268435456 (256)MB"),
        RuntimeError("No executable batch size found, reached zero."),
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_other_words_for_the_same(error):
    assert failures.is_out_of_memory(error)


def test_a_rank_whose_neighbour_is_gone_says_so(tmp_path):
    gloo = "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4242"
    with pytest.raises(TrainingError, match="another rank is gone"), failures.explained(object()):
        raise RuntimeError(gloo)


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), OSError(28, "No space left on device"), DataError("x is cut short")])
def test_what_is_no_want_of_memory_passes_as_it_is(tmp_path, error):
    with pytest.raises(type(error)) as raised, failures.explained(object()):
        raise error
    assert raised.value is error


def test_a_worker_that_is_killed_is_one_message_and_no_hang(tmp_path):
    made, _ = built(tmp_path, *SHORT, "trainer.args.dataloader_num_workers=1")

    class Deadly(type(made.train_dataset)):
        def __getitem__(self, slot):
            if os.getpid() != parent and slot.row == deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__getitem__(slot)

    parent, deadly = os.getpid(), 7
    made.train_dataset.__class__ = Deadly
    with (
        pytest.raises(
            TrainingError, match=r"process \d+, which loads batches, (was killed by the signal 'Killed'|ended without a word): most likely"
        ),
        failures.explained(made),
    ):
        made.train()


# --- slow: whole processes ---------------------------------------------------------------------------------------------


CHILD = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_trainer import built
from asr import experiment, failures
from asr.stops import End

folder = Path({folder!r})
made, _ = built(folder, *{overrides!r})
made.args.max_steps = 1
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + {room},) * 2)

def story():
    with failures.explained(made):
        made.train()
    return End()

end = experiment.explained(story, folder)
print(end.exit_code, end.error, sep="|")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("room", "code"), [(2**28, 1), (2**34, 0)])
def test_a_process_whose_memory_is_bounded_fails_at_the_first_try(tmp_path, room, code, own_cache):
    """The allocator is refused by the kernel: a batch of 24 long rows in a wide model, and room for some hundred megabytes."""
    wide = ["model.architecture.hidden_size=128", "model.architecture.intermediate_size=4096", "batching=fixed", "batching.seconds=20"]
    overrides = [*wide, "trainer.args.per_device_train_batch_size=24", "trainer.try_shapes=true", "trainer.args.save_strategy=no"]
    script = CHILD.format(tests=str(ROOT / "tests"), folder=str(tmp_path / "run"), overrides=overrides, room=room)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    exit_code, _, said = done.stdout.strip().splitlines()[-1].partition("|")
    assert int(exit_code) == code, done.stderr
    if code:
        assert "memory doesn't suffice for a training batch of 24 rows of 20 s" in said
        assert "as it was tried before the first step" in said
        assert "Traceback" not in done.stderr


def children(pid: int) -> list[int]:
    return [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["cpu", "cpu2"])
def test_a_launched_run_whose_worker_is_killed_ends_with_one_message(tmp_path, topology):
    options = [*TINY, "trainer.args.num_train_epochs=100000", "trainer.args.save_strategy=no", "trainer.args.dataloader_num_workers=1"]
    command = launch_command(
        *options, "trainer.args.dataloader_persistent_workers=true", f"topology={topology}", f"hydra.run.dir={tmp_path}/run"
    )
    out = tmp_path / "out"
    with out.open("w") as shown:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=shown, stderr=shown)
    try:
        log = tmp_path / "run" / "run.log"
        until(lambda: process.poll() is not None or (log.exists() and "first optimizer step done" in log.read_text()), seconds=200)
        trains = process.pid if topology == "cpu" else json.loads((tmp_path / "run" / "ranks" / "1.json").read_text())["pid"]
        os.kill(children(trains)[-1], signal.SIGKILL)
        begin = time.monotonic()
        assert process.wait(timeout=120) == 1
        assert time.monotonic() - begin < 60
    finally:
        process.kill()
        process.wait()
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], record["exit_code"]) == ("failed", 1)
    assert "which loads batches, " in record["error"]
    assert "trainer.args.dataloader_num_workers (1)" in record["error"]
    assert "Traceback" not in out.read_text()
