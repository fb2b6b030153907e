"""Carrying a plan out on many workers: one volume, one client, dask's distributed scheduler between them."""
