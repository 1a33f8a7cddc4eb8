"""Text in, tokens out, and back.

    tokenizer.py         Tokenizer: one type for every model; load_tokenizer: from a folder or a .gguf file
    folder_tokenizer.py  the tokenizer of a model folder
    gguf_tokenizer.py    the tokenizer inside a GGUF file
    pretokenizers.py     how each family cuts text before merging, by the names that GGUF uses
    spelling.py          what each token spells, in bytes
    detokenizer.py       tokens to text as they arrive; stop strings that never leak
    fill.py              a prefix and a suffix into the prompt for what stands between them
    chat.py              conversations through a model's chat template
    sandbox.py           where the template runs, and what it may spend

Imports no torch. Everything but Detokenizer and StopChecker may be used from several threads at once.
"""
