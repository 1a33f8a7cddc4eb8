"""Checkpoints: where a model's files come from, what they claim to hold, and reading it.

    sources.py      what the user typed -> a folder or file on this machine
    cache.py        our own folder for downloads
    checkpoint.py   a folder or .gguf file -> a Checkpoint
    safetensors.py  checkpoints of safetensors files, whole or sharded
    packed.py       checkpoints of safetensors that a quantization plugin unpacks
    dummy.py        a config.json with random weights
    gguf.py         checkpoints of one GGUF file, under the names a safetensors folder would have
    gguf_file.py    the GGUF container: header, metadata, tensor table
    mapped.py       a file as tensors, without copying it
    formats.py      which format each weight is held in
    quantize.py     tensors -> quantised weights
    dequantize.py   quantised weights -> tensors
    loader.py       the Weights that a model builds itself from

No file is believed: every header is checked against the size of its file before anything is read.
"""
