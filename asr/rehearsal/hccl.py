"""The process group "hccl" of hpu tensors, over gloo on the host memory behind them; and what the environment tells a rank.

In: a launcher's environment, and tensors on the stand-in device. Out: torch.distributed's backend "hccl", and the variables
that a rank's process needs. Every collective has happened when its call returns: optimum-habana's fast_ddp waits for none
(distributed/fast_ddp.py:122), since a Gaudi's stream keeps the order. A capture doesn't hold collectives.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C import _distributed_c10d as c10d

from asr.rehearsal import device

NUM_DEVICES = 8
"""Gaudis of a server, where HABANA_VISIBLE_MODULES doesn't choose among them."""
FROM_OPEN_MPI = {"RANK": "OMPI_COMM_WORLD_RANK", "WORLD_SIZE": "OMPI_COMM_WORLD_SIZE", "LOCAL_RANK": "OMPI_COMM_WORLD_LOCAL_RANK"}
MASTER = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
"""Where Open MPI's ranks meet: it doesn't say (optimum-habana sets the same, distributed/distributed_runner.py)."""


def rank_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that importing habana_frameworks.torch adds for a launched rank; none that is set already.

    Raise RuntimeError for a rank that has no device.
    """
    wanted = {name: environ[mpi] for name, mpi in FROM_OPEN_MPI.items() if mpi in environ}
    if wanted:
        wanted |= MASTER
    local_rank = environ.get("LOCAL_RANK", wanted.get("LOCAL_RANK"))
    if local_rank is not None and "HLS_MODULE_ID" not in environ:
        wanted["HLS_MODULE_ID"] = _module(int(local_rank), environ)
    return {name: value for name, value in wanted.items() if name not in environ}


def check_devices(size: int, environ: Mapping[str, str]) -> None:
    """Raise RuntimeError for a group with more ranks on this host than devices."""
    here = next((environ[name] for name in ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE") if name in environ), size)
    ranks = min(size, int(here))
    if ranks > len(_modules(environ)):
        raise RuntimeError(f"hccl: {ranks} ranks on this host, but {_named(environ)}; start at most one rank for each.")


def _module(local_rank: int, environ: Mapping[str, str]) -> str:
    modules = _modules(environ)
    if local_rank >= len(modules):
        raise RuntimeError(f"hccl: the rank with LOCAL_RANK {local_rank} has no device: {_named(environ)}.")
    return modules[local_rank]


def _modules(environ: Mapping[str, str]) -> list[str]:
    chosen = environ.get("HABANA_VISIBLE_MODULES", "all")
    return list(map(str, range(NUM_DEVICES))) if chosen == "all" else [module.strip() for module in chosen.split(",") if module.strip()]


def _named(environ: Mapping[str, str]) -> str:
    number, chosen = len(_modules(environ)), environ.get("HABANA_VISIBLE_MODULES", "all")
    return f"{number} Gaudi devices" if chosen == "all" else f"HABANA_VISIBLE_MODULES={chosen} names {number} Gaudi devices"


def register() -> None:
    """Make "hccl" a backend of torch.distributed, once."""
    if not dist.is_backend_available("hccl"):
        dist.Backend.register_backend("hccl", _process_group, devices=["hpu"])


def _process_group(store: dist.Store, rank: int, size: int, timeout: timedelta) -> ProcessGroupHCCL:
    check_devices(size, os.environ)
    return ProcessGroupHCCL(store, rank, size, timeout)


class ProcessGroupHCCL(dist.ProcessGroup):  # type: ignore[misc]
    """Moves and reduces hpu tensors, by one gloo collective on the host memory behind them.

    What is only moved travels as bytes, so that any dtype does; what is reduced has a dtype that gloo adds up (bfloat16 does).
    torch 2.13 calls the single-tensor collectives *_single and falls back to the older names in C++ alone (PyProcessGroup.hpp):
    both are here.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, timeout: timedelta) -> None:
        super().__init__(rank, size)  # with a store it would be no Python group (init.cpp)
        self._gloo = dist.ProcessGroupGloo(store, rank, size, timeout)
        # tells torch which device this group's object collectives take (_get_object_coll_device asks the group's own table)
        self._set_default_backend(dist.ProcessGroup.BackendType.CUSTOM)
        self._register_backend(torch.device("hpu"), dist.ProcessGroup.BackendType.CUSTOM, self._gloo)

    def getBackendName(self) -> str:  # noqa: N802
        return "hccl"

    # ---------------------------------------------------------------- one to all, all to one

    def broadcast(self, tensors: list[torch.Tensor], opts: Any = None) -> dist.Work:
        self._run("broadcast", [_bytes(tensor) for tensor in tensors], opts or c10d.BroadcastOptions())
        return _finished(tensors)

    def scatter(self, outputs: list[torch.Tensor], inputs: list[list[torch.Tensor]], opts: Any) -> dist.Work:
        self._run("scatter", [_bytes(tensor) for tensor in outputs], [[_bytes(tensor) for tensor in row] for row in inputs], opts)
        return _finished(outputs)

    def gather(self, outputs: list[list[torch.Tensor]], inputs: list[torch.Tensor], opts: Any) -> dist.Work:
        self._run("gather", [[_bytes(tensor) for tensor in row] for row in outputs], [_bytes(tensor) for tensor in inputs], opts)
        return _finished([tensor for row in outputs for tensor in row])

    def reduce(self, tensors: list[torch.Tensor], opts: Any) -> dist.Work:
        for tensor in tensors:
            memory = _host(tensor)
            if self.rank() != opts.rootRank:
                memory = memory.clone()  # gloo works in every rank's tensor; a device's collective changes the root's alone, as NCCL's does
            self._reduce("reduce", memory, opts)
        return _finished(tensors)

    # ---------------------------------------------------------------- all to all

    def allreduce(self, tensors: list[torch.Tensor], opts: Any = None) -> dist.Work:
        for tensor in tensors:
            self._reduce("allreduce", _host(tensor), opts or c10d.AllreduceOptions())
        return _finished(tensors)

    def allreduce_coalesced(self, tensors: list[torch.Tensor], opts: Any = None) -> dist.Work:
        return self.allreduce(tensors, opts)

    def allgather(self, outputs: list[list[torch.Tensor]], inputs: list[torch.Tensor], opts: Any = None) -> dist.Work:
        for row, tensor in zip(outputs, inputs, strict=True):
            self._run("allgather", [[_bytes(output) for output in row]], [_bytes(tensor)], opts or c10d.AllgatherOptions())
        return _finished([tensor for row in outputs for tensor in row])

    def all_gather_single(self, output: torch.Tensor, tensor: torch.Tensor, opts: Any = None) -> dist.Work:
        self._check_size("all_gather_single's output", output, tensor)
        parts = list(_bytes(output).view(self.size(), -1).unbind())
        self._run("allgather", [parts], [_bytes(tensor)], opts or c10d.AllgatherOptions())
        return _finished([output])

    _allgather_base = all_gather_single

    def all_gather_single_coalesced(self, outputs: list[torch.Tensor], inputs: list[torch.Tensor], opts: Any = None) -> dist.Work:
        for output, tensor in zip(outputs, inputs, strict=True):
            self.all_gather_single(output, tensor, opts)
        return _finished(outputs)

    allgather_into_tensor_coalesced = all_gather_single_coalesced

    def allgather_coalesced(self, outputs: list[list[torch.Tensor]], inputs: list[torch.Tensor], opts: Any = None) -> dist.Work:
        """Gather tensors of several shapes: `outputs` has a row a rank, `allgather`'s has one an input."""
        return self.allgather([list(column) for column in zip(*outputs, strict=True)], inputs, opts)

    def reduce_scatter(self, outputs: list[torch.Tensor], inputs: list[list[torch.Tensor]], opts: Any = None) -> dist.Work:
        for output, row in zip(outputs, inputs, strict=True):
            self._reduce_scatter(output, torch.stack([_host(tensor).view(-1) for tensor in row]), opts)
        return _finished(outputs)

    def reduce_scatter_single(self, output: torch.Tensor, tensor: torch.Tensor, opts: Any = None) -> dist.Work:
        self._check_size("reduce_scatter_single's input", tensor, output)
        self._reduce_scatter(output, _host(tensor).view(self.size(), -1).clone(), opts)
        return _finished([output])

    _reduce_scatter_base = reduce_scatter_single

    def reduce_scatter_single_coalesced(self, outputs: list[torch.Tensor], inputs: list[torch.Tensor], opts: Any = None) -> dist.Work:
        for output, tensor in zip(outputs, inputs, strict=True):
            self.reduce_scatter_single(output, tensor, opts)
        return _finished(outputs)

    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced

    def all_to_all_single(
        self, output: torch.Tensor, tensor: torch.Tensor, output_sizes: list[int], input_sizes: list[int], opts: Any = None
    ) -> dist.Work:
        rows = [_host(each).view(each.shape[0], -1).view(torch.uint8) for each in (output, tensor)]
        self._run("alltoall_base", *rows, output_sizes, input_sizes, opts or c10d.AllToAllOptions())
        return _finished([output])

    alltoall_base = all_to_all_single

    def alltoall(self, outputs: list[torch.Tensor], inputs: list[torch.Tensor], opts: Any = None) -> dist.Work:
        into, out_of = ([_bytes(tensor) for tensor in tensors] for tensors in (outputs, inputs))
        received = torch.empty(sum(part.numel() for part in into), dtype=torch.uint8)
        sizes = [[part.numel() for part in parts] for parts in (into, out_of)]
        self._run("alltoall_base", received, torch.cat(out_of), *sizes, opts or c10d.AllToAllOptions())
        for part, memory in zip(into, received.split(sizes[0]), strict=True):
            part.copy_(memory)
        return _finished(outputs)

    def barrier(self, opts: Any = None) -> dist.Work:
        self._run("barrier", opts or c10d.BarrierOptions())
        return _finished()

    # ---------------------------------------------------------------- one to one

    def send(self, tensors: list[torch.Tensor], destination: int, tag: int = 0) -> dist.Work:
        return self._start("send", tensors, destination, tag)

    def recv(self, tensors: list[torch.Tensor], source: int, tag: int = 0) -> dist.Work:
        return self._start("recv", tensors, source, tag)

    def recv_anysource(self, tensors: list[torch.Tensor], tag: int = 0) -> dist.Work:
        return self._start("recv_anysource", tensors, tag)

    # ---------------------------------------------------------------- gloo

    def _end_graph(self) -> None:
        """What is sent has to be computed: a collective ends the lazy graph. A replay would leave it out, so a capture can't have one."""
        if device.load().is_capturing():
            raise RuntimeError("hccl: a collective within an HPU graph's capture can't be rehearsed: this graph holds ops of one device.")
        device.mark_step()

    def _run(self, collective: str, *arguments: Any) -> None:
        self._end_graph()
        getattr(self._gloo, collective)(*arguments).wait()

    def _start(self, collective: str, tensors: list[torch.Tensor], *arguments: int) -> dist.Work:
        """Start a send or a receive: two ranks may send to each other before either receives. gloo's work keeps the memory."""
        self._end_graph()
        return getattr(self._gloo, collective)([_bytes(tensor) for tensor in tensors], *arguments)

    def _reduce(self, collective: str, memory: torch.Tensor, opts: Any) -> None:
        """Reduce in place; gloo has no average (ProcessGroupGloo.cpp), so that is a sum, divided."""
        averaged = opts.reduceOp == dist.ReduceOp.AVG
        own: Any = c10d.ReduceOptions() if collective == "reduce" else c10d.AllreduceOptions()
        own.reduceOp = dist.ReduceOp.SUM if averaged else opts.reduceOp
        own.timeout = opts.timeout
        if collective == "reduce":
            own.rootRank = opts.rootRank
        self._run(collective, [memory], own)
        if averaged:
            memory.div_(self.size(), rounding_mode=None if memory.is_floating_point() else "trunc")

    def _reduce_scatter(self, output: torch.Tensor, rows: torch.Tensor, opts: Any) -> None:
        """Reduce `rows`, a scratch tensor with a row a rank, and keep this rank's."""
        self._reduce("allreduce", rows, opts or c10d.ReduceScatterOptions())
        _host(output).view(-1).copy_(rows[self.rank()])

    def _check_size(self, name: str, whole: torch.Tensor, part: torch.Tensor) -> None:
        if whole.numel() != self.size() * part.numel() or whole.dtype != part.dtype:
            raise RuntimeError(
                f"hccl: {name} has {whole.numel()} elements of {whole.dtype}, "
                f"and must have {self.size()} times {part.numel()} of {part.dtype}."
            )


def _finished(tensors: Sequence[torch.Tensor] = ()) -> dist.Work:
    """Return a collective that has happened; its future holds the tensors, as DDP's reducer wants them.

    A work of C++'s own: older torch drops the Python part of one that is made in Python (PyProcessGroup.hpp).
    """
    future: torch.futures.Future[list[torch.Tensor]] = torch.futures.Future()
    future.set_result(list(tensors))
    return c10d._create_work_from_future(future)  # type: ignore[attr-defined]


def _host(tensor: torch.Tensor) -> torch.Tensor:
    """Return the memory behind an hpu tensor; raise RuntimeError for what HCCL wouldn't take."""
    if tensor.device.type != "hpu":
        raise RuntimeError(f"hccl takes hpu tensors, and got one on {tensor.device}: move it to the device first.")
    if not tensor.is_contiguous():
        raise RuntimeError(
            f"hccl takes contiguous tensors, and got shape {tuple(tensor.shape)}, strides {tensor.stride()}: call .contiguous()."
        )
    return device.host_view(tensor.detach())


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return _host(tensor).view(-1).view(torch.uint8)
