"""Stream processors: windowed detectors over sealed events."""
