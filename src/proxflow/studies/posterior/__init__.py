"""The study of posterior sampling: every method against posteriors that are known, and on images, beside azula's."""
