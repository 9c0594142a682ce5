"""Likelihood: what a flow says of data, in nats, exactly where it can be computed and as a bound where it cannot."""

from proxflow.likelihood.channel import two_class_bound
from proxflow.likelihood.nats import Nats

__all__ = ["Nats", "two_class_bound"]
