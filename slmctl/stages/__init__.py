"""The nine stages, a folder each: pull, prepare, finetune, merge, quantize, predict, evaluate, calibrate, publish."""
