"""What follows from a configuration, computed without torch."""
