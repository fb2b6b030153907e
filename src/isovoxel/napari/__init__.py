"""The plug-in of napari; `napari.yaml` beside this package is its manifest."""
