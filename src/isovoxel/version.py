"""Version of isovoxel; plans and outputs name the version that made them."""

__version__ = "0.1.0"
