"""The text study: flows of classes and an autoregressive model on one transformer."""
