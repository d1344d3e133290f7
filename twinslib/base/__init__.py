"""The ground under everything: errors, paths, files, statistics and bounds."""
