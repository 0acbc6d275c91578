"""Stages as a graph: their artifacts, how one is found or made, and the plan of a run."""

# Each stage with the kind of artifact that it leaves, in the order of the pipeline. Everything else
# about a stage stands in `slmctl/stages/NAME/stage.py`.
LEAVES = {
    "pull": "base",
    "label": "labelled",
    "prepare": "prepared",
    "encode": "encoder",
    "finetune": "adapter",
    "merge": "merged",
    "quantize": "gguf",
    "predict": "predictions",
    "sum": "sum",
    "evaluate": "report",
    "calibrate": "policy",
    "publish": "published",
}
PATH_ID = 12  # characters of a recipe id in the path of its artifact
