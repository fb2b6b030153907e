"""Places of inputs and outputs: on a disk or in an object store, with one interface."""
