"""What models are made of: small objects that hold weights and call the kernels and attention they were given.

    linear.py     Linear, GatedMLP
    norm.py       RMSNorm
    embedding.py  Embedding
    rotary.py     RotaryTable and the frequency scalings
    attention.py  SelfAttention

No layer knows a device, and none keeps state between steps.
"""
