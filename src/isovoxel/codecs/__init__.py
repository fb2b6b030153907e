"""Chunk formats, and codecs that a GPU runs; below readers and output, which both use them."""
