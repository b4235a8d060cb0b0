"""Training on a corpus as it is read, shard by shard: nothing of it is copied, listed or decoded beforehand.

In: Parquet files or tar archives, on this disk or on the hub. Out: batches of planned shapes without end, and a state in JSON after
each, from which the next one follows.
"""
