"""The few-step study: methods for good samples in few evaluations, at counted cost."""
