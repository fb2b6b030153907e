"""Array and where it lies in, array out. An engine scales one block; it knows nothing of dask, zarr or files."""
