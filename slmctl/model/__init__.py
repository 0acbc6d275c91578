"""Stages from records to a measured model: finetune, merge, quantize, predict, evaluate."""
