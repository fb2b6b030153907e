"""What people look at: progress and pictures. They listen and draw; only the command line needs them."""
