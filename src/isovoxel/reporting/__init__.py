"""What people look at: progress, pictures and reports. They listen and draw; only the command line needs them."""
