"""The geometry study: effects of geometry and schedule of a proximal flow."""
