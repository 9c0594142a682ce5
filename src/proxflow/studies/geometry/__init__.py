"""What geometry does to a proximal flow, and what its schedule does."""
