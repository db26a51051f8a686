"""Studies and the pipeline: the stages of a run, and runs at many points."""
