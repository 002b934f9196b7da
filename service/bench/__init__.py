"""`stride bench`: a load generator that knows the service only by its HTTP interface."""

from service.bench.command import add_arguments, run

__all__ = ["add_arguments", "run"]
