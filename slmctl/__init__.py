"""Company data set in, small language model out: measured, quantized, published and served."""

__version__ = "0.1.0"
