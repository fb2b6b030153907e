"""``python -m isovoxel`` is the command line."""

from isovoxel.cli import main

main()
