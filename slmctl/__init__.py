"""Company data set in, small language model out: measured, quantized, published and served."""

__version__ = "0.1.0"

# type checkers take it for typing's, which would take longer to import than this module
TYPE_CHECKING = False
if TYPE_CHECKING:
    from slmctl.stages.predict.answerer import Answerer as Answerer
    from slmctl.stages.predict.answerer import TextAnswer as TextAnswer


def __getattr__(name: str) -> object:
    """The public classes, imported on first access, so that `import slmctl` stays fast."""
    if name in ("Answerer", "TextAnswer"):
        from importlib import import_module

        return getattr(import_module("slmctl.stages.predict.answerer"), name)
    raise AttributeError(f"module 'slmctl' has no attribute '{name}'")
