"""The device's functions, and HPU graphs."""

from asr.rehearsal.graphs import HPUGraph, ModuleCacher, graph, wrap_in_hpu_graph
from asr.rehearsal.hpu import *  # noqa: F403
from habana_frameworks.torch.hpu import random

__all__ = ["HPUGraph", "ModuleCacher", "graph", "random", "wrap_in_hpu_graph"]
