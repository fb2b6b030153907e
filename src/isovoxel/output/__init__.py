"""The output: whole-shard writes into OME-Zarr."""
