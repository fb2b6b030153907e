"""Voxel sizes, positions and channels from files' metadata, as pure functions of text and mappings."""
