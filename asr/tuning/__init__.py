"""Sweeps whose jobs Optuna chooses: Hydra's sweeper `asr_optuna`, which hydra_plugins/asr_optuna brings to Hydra.

In: hydra.sweeper, the command line and a launcher. Out: one job a trial, a study on disk that goes on, and the best parameters.
"""
