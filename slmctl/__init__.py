"""Company data set in, small language model out: measured, quantized, published and served."""

__version__ = "0.1.0"

TYPE_CHECKING = False  # as `typing` has it; importing that takes longer than all of this module
if TYPE_CHECKING:
    from slmctl.stages.predict.answerer import Answerer as Answerer
    from slmctl.stages.predict.answerer import TextAnswer as TextAnswer


def __getattr__(name: str) -> object:
    """The classes for programs, imported when they are first asked for: `import slmctl` stays light."""
    if name in ("Answerer", "TextAnswer"):
        from importlib import import_module

        return getattr(import_module("slmctl.stages.predict.answerer"), name)
    raise AttributeError(f"module 'slmctl' has no attribute '{name}'")
