"""Every collective over "hccl" against gloo's on the same numbers: `torchrun --nproc-per-node=2 collectives.py <folder>`.

Started as a rehearsal's ranks are: accelerate finds the stand-in device and chooses the backend. Each rank writes
<folder>/<rank>.json, in which a check's name stands with "" or how it failed.
"""

import json
import os
import sys
import traceback
import warnings
from datetime import timedelta
from pathlib import Path

import accelerate
import torch
import torch.distributed as dist
from accelerate.utils import operations
from torch.nn.parallel import DistributedDataParallel

STATE = accelerate.PartialState(timeout=timedelta(seconds=30))
RANK, SIZE = dist.get_rank(), dist.get_world_size()
GLOO = dist.new_group(backend="gloo")
WORLDS = {"cpu": GLOO, "hpu": dist.group.WORLD}
CHECKS = {}


def check(function):
    CHECKS[function.__name__] = function
    return function


def same(collective):
    """Add a check that a function of (device, group) returns equal tensors over both backends."""

    def over_both():
        expected, got = (collective(device, group) for device, group in WORLDS.items())
        assert len(expected) == len(got) > 0
        for reference, tensor in zip(expected, got, strict=True):
            assert tensor.device.type == "hpu"
            torch.testing.assert_close(tensor.cpu(), reference, rtol=0, atol=0)

    CHECKS[collective.__name__] = over_both
    return collective


def numbers(device, *shape, dtype=torch.float32, rank=RANK):
    """Numbers of this rank's own."""
    generator = torch.Generator().manual_seed(rank)
    return (torch.rand(*shape, generator=generator) * 20 + 1).to(dtype).to(device)


def empty(device, *shape, dtype=torch.float32):
    return torch.full(shape, 77).to(dtype).to(device)


def raises(text, function, *args, **options):
    try:
        function(*args, **options)
    except RuntimeError as error:
        assert text in str(error), f"{text!r} isn't in: {error}"
    else:
        raise AssertionError(f"nothing was raised: {text}")


# ---- what the group says of itself


@check
def accelerate_chose_it():
    assert STATE.backend == "hccl" == dist.get_backend()
    assert STATE.distributed_type == accelerate.DistributedType.MULTI_HPU
    assert STATE.device.type == "hpu"
    assert type(dist.group.WORLD).__name__ == "ProcessGroupHCCL"
    assert dist.group.WORLD.name() == "hccl"
    assert (dist.group.WORLD.rank(), dist.group.WORLD.size()) == (RANK, SIZE) == (int(os.environ["RANK"]), 2)
    assert os.environ["HLS_MODULE_ID"] == os.environ["LOCAL_RANK"]


@check
def registers_once():
    from asr.rehearsal import hccl

    plugin = dist.Backend._plugins["HCCL"]
    hccl.register()
    assert dist.Backend._plugins["HCCL"] is plugin


# ---- collectives


@same
def broadcasts(device, group):
    tensors = [numbers(device, 3, 4, dtype=dtype) for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.uint8)]
    for tensor in tensors:
        dist.broadcast(tensor, src=1, group=group)
    scalar = torch.tensor(RANK + 5.0).to(device)
    dist.broadcast(scalar, 0, group=group)
    return [*tensors, scalar]


@same
def all_reduces(device, group):
    done = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.uint8):
        for op in (dist.ReduceOp.SUM, dist.ReduceOp.MAX, dist.ReduceOp.MIN, dist.ReduceOp.PRODUCT):
            tensor = numbers(device, 5, 3, dtype=dtype)
            dist.all_reduce(tensor, op=op, group=group)
            done.append(tensor)
    return done


@check
def averages():
    for dtype in (torch.float32, torch.bfloat16, torch.int64):
        mean = (numbers("cpu", 7, dtype=dtype, rank=0) + numbers("cpu", 7, dtype=dtype, rank=1)).div(2).to(dtype)
        tensor = numbers("hpu", 7, dtype=dtype)
        dist.all_reduce(tensor, op=dist.ReduceOp.AVG)
        assert torch.equal(tensor.cpu(), mean), dtype
        scattered = empty("hpu", 4, dtype=dtype)
        dist.reduce_scatter_tensor(scattered, numbers("hpu", 8, dtype=dtype), op=dist.ReduceOp.AVG)
        whole = (numbers("cpu", 8, dtype=dtype, rank=0) + numbers("cpu", 8, dtype=dtype, rank=1)).div(2).to(dtype)
        assert torch.equal(scattered.cpu(), whole[4 * RANK : 4 * RANK + 4]), dtype


@check
def a_collective_is_done_when_it_returns():
    """fast_ddp all-reduces one flat buffer and doesn't wait (optimum-habana, distributed/fast_ddp.py:121)."""
    buffer = numbers("hpu", 1000, dtype=torch.bfloat16)
    work = dist.all_reduce(buffer, group=dist.group.WORLD, async_op=True)
    total = numbers("cpu", 1000, dtype=torch.bfloat16, rank=0) + numbers("cpu", 1000, dtype=torch.bfloat16, rank=1)
    assert torch.equal(buffer.cpu(), total)
    assert work.is_completed()
    assert work.wait()
    assert torch.equal(work.get_future().wait()[0].cpu(), total)


@same
def all_reduces_several(device, group):
    tensors = [numbers(device, 3), numbers(device, 2, 2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a deprecated call
        dist.all_reduce_coalesced(tensors, group=group)
    return tensors


@same
def reduces(device, group):
    done = []
    for op in (dist.ReduceOp.SUM, dist.ReduceOp.MAX):
        tensor = numbers(device, 6)
        dist.reduce(tensor, dst=1, op=op, group=group)
        done.append(tensor if RANK == 1 else torch.zeros(6, device=device))  # gloo leaves what it likes at the others
    return done


@check
def reduce_leaves_the_others_alone():
    tensor = numbers("hpu", 6)
    dist.reduce(tensor, dst=0)
    if RANK == 1:
        assert torch.equal(tensor.cpu(), numbers("cpu", 6))


@same
def gathers_into_lists(device, group):
    done = []
    for dtype in (torch.float32, torch.bfloat16, torch.int32, torch.bool):
        outputs = [empty(device, 2, 3, dtype=dtype) for _ in range(SIZE)]
        dist.all_gather(outputs, numbers(device, 2, 3, dtype=dtype), group=group)
        done += outputs
    return done


@same
def gathers_into_one(device, group):
    done = [empty(device, SIZE * 2, 3), empty(device, SIZE, dtype=torch.int64)]
    dist.all_gather_into_tensor(done[0], numbers(device, 2, 3), group=group)
    dist.all_gather_into_tensor(done[1], torch.tensor([RANK], device=device), group=group)
    return done


@check
def gathers_in_a_stack():
    stacked = empty("hpu", SIZE, 2, 3)
    dist.all_gather_into_tensor(stacked, numbers("hpu", 2, 3))
    assert torch.equal(stacked.cpu(), torch.stack([numbers("cpu", 2, 3, rank=rank) for rank in range(SIZE)]))


@check
def moves_dtypes_that_gloo_can_not_name():
    for dtype in (torch.int16, torch.float8_e4m3fn, torch.bool):
        tensor, outputs = numbers("hpu", 5, dtype=dtype), [empty("hpu", 5, dtype=dtype) for _ in range(SIZE)]
        dist.all_gather(outputs, tensor)
        dist.broadcast(tensor, 1)
        for each, rank in ((tensor, 1), (outputs[0], 0), (outputs[1], 1)):
            assert torch.equal(each.cpu().view(torch.uint8), numbers("cpu", 5, dtype=dtype, rank=rank).view(torch.uint8)), dtype


@check
def gathers_several():
    outputs = [[empty("hpu", 2), empty("hpu", 3)] for _ in range(SIZE)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dist.all_gather_coalesced(outputs, [numbers("hpu", 2), numbers("hpu", 3)])
    for rank, row in enumerate(outputs):
        assert [torch.equal(tensor.cpu(), numbers("cpu", n, rank=rank)) for tensor, n in zip(row, (2, 3), strict=True)] == [True, True]


@same
def gathers_at_one_rank(device, group):
    outputs = [empty(device, 3) for _ in range(SIZE)]
    dist.gather(numbers(device, 3), outputs if RANK == 1 else None, dst=1, group=group)
    return outputs


@same
def scatters(device, group):
    output = empty(device, 2, 2)
    dist.scatter(output, [numbers(device, 2, 2), numbers(device, 2, 2) + 1] if RANK == 0 else None, src=0, group=group)
    return [output]


@check
def reduces_and_scatters():
    for dtype in (torch.float32, torch.bfloat16):
        total = sum(numbers("cpu", SIZE, 2, 3, dtype=dtype, rank=rank) for rank in range(SIZE))[RANK]
        listed, single = empty("hpu", 2, 3, dtype=dtype), empty("hpu", 2, 3, dtype=dtype)
        whole = numbers("hpu", SIZE, 2, 3, dtype=dtype)
        dist.reduce_scatter(listed, list(whole))
        dist.reduce_scatter_tensor(single, whole)
        assert torch.equal(listed.cpu(), total)
        assert torch.equal(single.cpu(), total)
        assert torch.equal(whole.cpu(), numbers("cpu", SIZE, 2, 3, dtype=dtype)), "the input was changed"


@same
def sends_all_to_all(device, group):
    even, uneven = empty(device, 4, 3, dtype=torch.bfloat16), empty(device, 3 + RANK, 2)
    dist.all_to_all_single(even, numbers(device, 4, 3, dtype=torch.bfloat16), group=group)
    # rank 0 keeps 1 row and gets 2; rank 1 gets 3 and keeps 1
    sizes = {0: ([1, 2], [1, 3]), 1: ([3, 1], [2, 1])}[RANK]
    dist.all_to_all_single(uneven, numbers(device, sum(sizes[1]), 2), *sizes, group=group)
    return [even, uneven]


@check
def sends_lists_all_to_all():
    outputs = [empty("hpu", 2 + source) for source in range(SIZE)]
    dist.all_to_all(outputs, [numbers("hpu", 2 + RANK) + target for target in range(SIZE)])
    for source, output in enumerate(outputs):
        assert torch.equal(output.cpu(), numbers("cpu", 2 + source, rank=source) + RANK)


@same
def sends_and_receives(device, group):
    tensor = numbers(device, 3, dtype=torch.bfloat16) if RANK == 0 else empty(device, 3, dtype=torch.bfloat16)
    dist.send(tensor, 1, group=group) if RANK == 0 else dist.recv(tensor, 0, group=group)
    both = [numbers(device, 4), empty(device, 4)]
    for work in (dist.isend(both[0], 1 - RANK, group=group), dist.irecv(both[1], 1 - RANK, group=group)):
        work.wait()
    anyone = numbers(device, 2) if RANK == 0 else empty(device, 2)
    if RANK == 0:
        dist.send(anyone, 1, group=group)
    else:
        assert dist.recv(anyone, group=group) == 0
    return [tensor, *both, anyone]


@check
def waits_for_everyone():
    path = Path(sys.argv[1]) / "rank 1 was here"
    if RANK == 1:
        path.touch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a rank that says nothing of its device is no matter here
        dist.barrier(device_ids=[0])
    assert path.exists()
    dist.barrier(async_op=True).wait()


@check
def moves_nothing():
    tensor = empty("hpu", 0, 3)
    dist.all_reduce(tensor)
    dist.broadcast(tensor, 0)
    assert tensor.shape == (0, 3)


# ---- objects, groups, functional collectives


@check
def moves_objects():
    mine = {"rank": RANK, "text": "x" * (10 + 1000 * RANK)}
    everyone = [None] * SIZE
    dist.all_gather_object(everyone, mine)
    assert [len(each["text"]) for each in everyone] == [10, 1010]
    at_one = [None] * SIZE if RANK == 0 else None
    dist.gather_object(mine, at_one, dst=0)
    assert RANK or [each["rank"] for each in at_one] == [0, 1]
    listed = [mine, None] if RANK == 1 else [None, None]
    dist.broadcast_object_list(listed, src=1)
    assert listed[0]["rank"] == 1
    scattered = [None]
    dist.scatter_object_list(scattered, ["first", "second"] if RANK == 0 else None, src=0)
    assert scattered == [["first", "second"][RANK]]


@check
def makes_groups_of_some_ranks():
    alone = dist.new_group([1])
    together = dist.new_group([0, 1], timeout=timedelta(seconds=20))
    assert dist.get_backend(together) == "hccl"
    if RANK == 1:
        tensor = numbers("hpu", 2)
        dist.all_reduce(tensor, group=alone)
        assert torch.equal(tensor.cpu(), numbers("cpu", 2))
        names = [None]
        dist.all_gather_object(names, "I", group=alone)
        assert names == ["I"]
        dist.destroy_process_group(alone)
    tensor = torch.ones(2, device="hpu")
    dist.all_reduce(tensor, group=together)
    assert tensor.tolist() == [2, 2]
    dist.destroy_process_group(together)


@check
def gives_up_after_the_group_s_timeout():
    lonely = dist.new_group(timeout=timedelta(seconds=0.5))
    if RANK == 0:
        raises("imed out", dist.all_reduce, torch.ones(2, device="hpu"), group=lonely)


@same
def serves_functional_collectives(device, group):
    from torch.distributed import _functional_collectives as functional

    tensor = numbers(device, 2, 3)
    done = [functional.all_reduce(tensor, "sum", group), functional.all_gather_tensor(tensor, 0, group)]
    done += functional.all_reduce_coalesced([tensor, tensor[0]], "sum", group)
    return [functional.wait_tensor(each) for each in done]


@check
def serves_functional_collectives_that_gloo_has_not():
    from torch.distributed import _functional_collectives as functional

    group, tensors = dist.group.WORLD, [numbers("hpu", SIZE, 3), numbers("hpu", SIZE)]
    gathered = functional.all_gather_into_tensor_coalesced(tensors, group)
    scattered = functional.reduce_scatter_tensor_coalesced(tensors, "avg", [0, 0], group)
    for index, shape in enumerate(((SIZE, 3), (SIZE,))):
        everyone = [numbers("cpu", *shape, rank=rank) for rank in range(SIZE)]
        assert torch.equal(functional.wait_tensor(gathered[index]).cpu(), torch.cat(everyone))
        assert torch.equal(functional.wait_tensor(scattered[index]).cpu(), (sum(everyone) / SIZE)[RANK : RANK + 1])


@check
def serves_torch_before_2_13_by_its_names():
    group = dist.group.WORLD
    gathered, scattered, swapped = empty("hpu", SIZE * 2), empty("hpu", 2), empty("hpu", SIZE)
    group._allgather_base(gathered, numbers("hpu", 2)).wait()
    group._reduce_scatter_base(scattered, numbers("hpu", SIZE * 2)).wait()
    group.alltoall_base(swapped, torch.tensor([10.0 * RANK, 10.0 * RANK + 1], device="hpu"), [], []).wait()
    assert torch.equal(gathered.cpu(), torch.cat([numbers("cpu", 2, rank=rank) for rank in range(SIZE)]))
    assert torch.equal(scattered.cpu(), sum(numbers("cpu", SIZE * 2, rank=rank) for rank in range(SIZE))[2 * RANK : 2 * RANK + 2])
    assert swapped.tolist() == [RANK, 10 + RANK]


# ---- what it refuses


@check
def refuses_what_hccl_does():
    raises("hccl takes hpu tensors, and got one on cpu", dist.all_reduce, torch.ones(2))
    raises("hccl takes contiguous tensors, and got shape (3, 2), strides (1, 3)", dist.all_reduce, torch.ones(2, 3, device="hpu").t())
    raises("must have 2 times 3", dist.all_gather_into_tensor, empty("hpu", 5), empty("hpu", 3))
    raises("must have 2 times 3", dist.reduce_scatter_tensor, empty("hpu", 3), empty("hpu", 7))


# ---- DDP and accelerate


def model_on(device):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 40), torch.nn.BatchNorm1d(40), torch.nn.GELU(), torch.nn.Linear(40, 3))
    return model.to(device)


def gradients_of(model, rank):
    model.zero_grad()
    model(numbers("hpu", 8, 6, rank=rank)).square().mean().backward()
    return [parameter.grad.cpu().clone() for parameter in model.parameters()]


@check
def ddp_averages_gradients():
    plain = model_on("hpu")
    mean = [sum(each) / SIZE for each in zip(*(gradients_of(plain, rank) for rank in range(SIZE)), strict=True)]
    for options in ({}, {"bucket_cap_mb": 0.0005, "gradient_as_bucket_view": True}, {"find_unused_parameters": True}):
        wrapped = DistributedDataParallel(model_on("hpu"), **options)
        for gradient, expected in zip(gradients_of(wrapped, RANK), mean, strict=True):
            torch.testing.assert_close(gradient, expected)
            others = [torch.empty_like(gradient, device="hpu") for _ in range(SIZE)]
            dist.all_gather(others, gradient.to("hpu"))
            assert torch.equal(*others), "the ranks differ"


@check
def ddp_starts_from_rank_0_and_accumulates():
    model = model_on("hpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(RANK)
    wrapped = DistributedDataParallel(model, device_ids=None)
    for parameter, expected in zip(wrapped.parameters(), model_on("cpu").parameters(), strict=True):
        assert torch.equal(parameter.cpu(), expected)
    with wrapped.no_sync():
        local = gradients_of(wrapped, RANK)
    wrapped(numbers("hpu", 8, 6, rank=RANK + 2)).square().mean().backward()
    total = [parameter.grad for parameter in wrapped.parameters()]
    for gradient, first in zip(total, local, strict=True):
        everyone = [torch.empty_like(gradient) for _ in range(SIZE)]
        dist.all_gather(everyone, gradient)
        assert torch.equal(*everyone)
        assert not torch.equal(everyone[0].cpu(), first)


@check
def accelerate_gathers_and_reduces():
    mine = {"loss": numbers("hpu", 2), "count": torch.tensor(RANK, device="hpu"), "mask": torch.tensor([True, RANK == 0], device="hpu")}
    gathered = operations.gather(mine)
    assert torch.equal(gathered["loss"].cpu(), torch.cat([numbers("cpu", 2, rank=rank) for rank in range(SIZE)]))
    assert gathered["count"].tolist() == [0, 1]
    assert gathered["mask"].tolist() == [True, True, True, False]
    assert operations.gather_object([RANK, "x"]) == [0, "x", 1, "x"]
    assert operations.broadcast(torch.tensor([RANK], device="hpu"), from_process=1).tolist() == [1]
    assert operations.broadcast_object_list([RANK, None])[0] == 0
    reduced = operations.reduce(torch.tensor([1.0 + RANK], device="hpu"), reduction="mean")
    assert reduced.tolist() == [1.5]
    ragged = operations.pad_across_processes(torch.ones(2, 3 + RANK, device="hpu"), dim=1, pad_index=-100)
    assert ragged.shape == (2, 4)
    assert ragged.sum().item() == (6 - 200 if RANK == 0 else 8)
    STATE.wait_for_everyone()


@check
def a_collective_ends_the_lazy_graph():
    from asr.rehearsal import device

    controls = device.load()
    controls.forget_counts()
    tensor = numbers("hpu", 3) * 2
    dist.all_reduce(tensor)
    assert sum(device.graphs("other").values()) == 1
    assert not device.events("sync", "other"), "a collective isn't a host sync"


@check
def ends():
    """The last: everything is taken down, and a world can be made again."""
    dist.destroy_process_group()
    assert not dist.is_initialized()
    store = Path(sys.argv[1]) / "store"
    dist.init_process_group("hccl", init_method=f"file://{store}", rank=RANK, world_size=SIZE)
    tensor = torch.ones(1, device="hpu")
    dist.all_reduce(tensor)
    assert tensor.item() == SIZE
    dist.destroy_process_group()


def main() -> None:
    said = {}
    for name, function in CHECKS.items():
        try:
            function()
        except Exception:  # noqa: BLE001 (one check's end is none of the others')
            said[name] = traceback.format_exc()
        else:
            said[name] = ""
    (Path(sys.argv[1]) / f"{RANK}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main()
