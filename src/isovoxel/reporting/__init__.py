"""Progress, pictures and reports: they listen and draw, and only the command line needs them."""
