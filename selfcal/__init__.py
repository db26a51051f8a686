"""selfcal: train a jet-flavour tagger together with its own calibration."""

__version__ = "0.1.0"
