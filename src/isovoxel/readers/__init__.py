"""One module per kind of input, each of which makes a `Volume`; `open` chooses."""
