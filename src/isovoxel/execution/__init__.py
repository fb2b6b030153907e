"""Carrying a plan out: lazily as a dask array, or as a job that writes."""
