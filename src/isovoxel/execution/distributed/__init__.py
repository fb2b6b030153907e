"""Executor on workers: one volume, one client, dask's distributed scheduler between them."""
