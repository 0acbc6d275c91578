"""The twelve stages, a folder each: pull, label, prepare, encode, finetune, merge, quantize,
predict, sum, evaluate, calibrate, publish.
"""
