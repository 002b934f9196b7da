"""`stride train`: data, objectives and loops that make the embedded models."""
