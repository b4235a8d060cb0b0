"""The stand-in `hpu` device, and the rehearsal of an experiment on it."""
