"""The emoji study: a flow of small colour pictures, its one-step student, and memorisation."""
