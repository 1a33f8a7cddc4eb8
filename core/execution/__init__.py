"""Running a batch on a device.

dispatch.py  which provider serves each kernel and contract, decided once at load
inputs.py    a batch's numbers as tensors
runner.py    ModelRunner: prepare, forward, sample
sampler.py   logits into tokens and log-probabilities
"""
