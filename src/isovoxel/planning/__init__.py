"""Pure planning: numbers in, a `Plan` out. No array is touched and no device is asked."""
