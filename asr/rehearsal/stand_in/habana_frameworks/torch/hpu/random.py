"""The device's random numbers."""

from asr.rehearsal.hpu import get_rng_state, get_rng_state_all, initial_seed, manual_seed, manual_seed_all, set_rng_state, set_rng_state_all

__all__ = [
    "get_rng_state",
    "get_rng_state_all",
    "initial_seed",
    "manual_seed",
    "manual_seed_all",
    "set_rng_state",
    "set_rng_state_all",
]
