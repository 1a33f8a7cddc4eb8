"""What models are made of: small objects that hold weights and call the kernels and attention they were given.

    decoder.py    DecoderLayer
    embedding.py  Embedding
    rotary.py     RotaryTable and the frequency scalings

No layer knows a device, and none keeps state between steps.
"""
