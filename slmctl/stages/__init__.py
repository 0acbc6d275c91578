"""The ten stages, a folder each: pull, label, prepare, finetune, merge, quantize, predict,
evaluate, calibrate, publish.
"""
