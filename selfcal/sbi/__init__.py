"""Inference of what the detector does differently in data, before any map is fitted."""
