"""Pure arithmetic of boxes, grids and axes: the standard library and NumPy only."""
