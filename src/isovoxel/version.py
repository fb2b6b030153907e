"""Which version is this? It stands below everything else, for plans and outputs name the version that made them."""

__version__ = "0.1.0"
