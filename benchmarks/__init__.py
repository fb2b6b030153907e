"""Measurements: ``python -m benchmarks NAME``. Figures in the README and in RESULTS.md come from here."""
