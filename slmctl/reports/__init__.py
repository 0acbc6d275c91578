"""Tables, charts and HTML pages."""

RELEASE = "release"  # in a gate: the model that a release of the measured models answers by
IN_SUM = "+sum"  # the end of the name of a GGUF file that answers with linear models
