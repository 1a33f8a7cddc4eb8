"""What models are made of: small objects that hold weights and call the kernels and attention they were given.

    settings.py   a decoder as declared data: sizes, names of weights, differences between families
    config.py     reading a config.json with checks
    reading.py    from a config to such settings, with Llama's answers where a family gives none
    decoder.py    a whole decoder: embedding, layers, norm, head
    layer.py      one layer, as the kernel that computes all of it or composed
    attention.py  mixers: attention over keys and values
    latent.py     attention over a compressed cache
    mamba.py      a recurrent state
    mlp.py        feed-forward halves
    moe.py        mixtures of experts
    norm.py       norms
    classifier.py heads that give numbers for labels
    embedding.py  lookup of token ids
    rotary.py     tables of cosines and sines, and the scalings of their frequencies

No layer knows a device, and none keeps state between steps.
"""
