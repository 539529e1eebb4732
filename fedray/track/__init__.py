"""What a run leaves behind: the run folder, which is the truth, and MLflow, which is written from it."""
