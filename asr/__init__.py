"""Config-driven fine-tuning of speech recognition models on Intel Gaudi.

Read the rooms in the order of the data: config, sources, manifest, text, vocabulary,
batching, collate, ctc, trainer, experiment. Importing any of them imports no torch.
"""

__version__ = "0.1.0.dev0"
