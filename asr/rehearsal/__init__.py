"""A rehearsal: an experiment's real HPU path on a stand-in device, where there is no Gaudi.

In: a composed configuration. Out: a smaller experiment on the same path, and what its steps would compile or fail at.
"""
