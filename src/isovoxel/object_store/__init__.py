"""Where do inputs and outputs lie? On a disk or in an object store, asked in the same words."""
