"""The study of posterior sampling: every method on known posteriors and on images, compared with azula's."""
