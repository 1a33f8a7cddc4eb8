"""The options that commands share, one line each. A test compares every table with its dataclass."""

from cli.options import Table
from core.config import EngineConfig
from core.sampling_params import SamplingParams
from server.settings import ServerSettings

ENGINE = Table(
    keyword="engine",
    panel="Engine (also from the environment, as LLM_<NAME>)",
    source=EngineConfig,
    environment=True,
    defaults={
        "tokenizer": "the model's",
        "revision": "the source's",
        "memory_share": "1, and an equal part for each model of a server",
    },
    help={
        "model": "Alias, folder, .gguf file, ORG/NAME, or SCHEME:NAME (wheel:, modelscope:).",
        "tokenizer": "Where the tokenizer comes from, when it is not the model's own.",
        "revision": "Branch, tag or commit of the model and its tokenizer.",
        "model_impl": "native, or transformers: its own code, with attention and cache of the platform; auto: native "
        "where there is one.",
        "load_format": "safetensors or gguf; dummy: random weights for a config.json, to measure with; auto: what "
        "is there.",
        "task": "generate; embed: vectors of texts, also from models that generate; classify; auto: what the model is "
        "made for.",
        "platform": "Platform package to run on; see `llm platforms`. One that is named must be able to run.",
        "dtype": "float32, bfloat16 or float16.",
        "quantization": "int8, int4, int4-g64 or int4-g128: quantise linear layers while they are loaded; none: unpack "
        "what is stored quantised; auto: run that as it is.",
        "max_model_len": "Longest prompt plus answer, in tokens.",
        "max_num_seqs": "Sequences in one step at most.",
        "max_num_batched_tokens": "Tokens in one step at most; longer prompts are computed in chunks, but those of "
        "encoders must fit.",
        "prefill_chunk_size": "Prompt tokens in a step at most while others decode, whose next tokens wait for it.",
        "block_size": "Tokens per block of the KV cache.",
        "kv_cache_memory": "Memory for the KV cache: bytes, or 512MiB, 4GiB.",
        "memory_share": "How much of the memory that it would take for the KV cache it takes, 0 to 1.",
        "kv_cache_dtype": "int8: keeps keys and values in 8 bits, and so almost twice as many tokens.",
        "enable_prefix_caching": "Reuse the cache of prompts that begin alike.",
        "scheduling_policy": "fcfs, or priority (lower numbers first).",
        "generation_config": "Sampling defaults: auto takes the model's, core takes ours.",
        "skip_tokenizer_init": "Work on token ids only.",
        "seed": "Seed of everything random.",
        "trust_remote_code": "Run the code that a model comes with, where nothing else runs its architecture.",
    },
)

SAMPLING = Table(
    keyword="sampling",
    panel="Sampling",
    source=SamplingParams,
    defaults={
        "temperature": "the model's, else 0.8",
        "top_p": "the model's, else 0.95",
        "top_k": "the model's, else all",
        "min_p": "the model's, else 0",
        "repetition_penalty": "the model's, else 1",
        "logprobs": "none",
        "prompt_logprobs": "none",
    },
    help={
        "max_tokens": "New tokens at most.",
        "temperature": "0 takes the likeliest token; above, the higher the more varied.",
        "top_p": "Choose among the likeliest tokens whose mass reaches this.",
        "top_k": "Choose among this many likeliest tokens; 0 means all.",
        "min_p": "Choose among tokens at least this many times as likely as the likeliest.",
        "n": "Answers per prompt.",
        "min_tokens": "The answer cannot end before this many tokens.",
        "stop": "Text that ends the answer; may be repeated.",
        "stop_token_ids": "Token id that ends the answer; may be repeated.",
        "ignore_eos": "The model's end-of-sequence token is an ordinary token.",
        "presence_penalty": "Taken from the logit of every token that the answer holds already.",
        "frequency_penalty": "Taken from the logit of a token once for each time the answer holds it.",
        "repetition_penalty": "Divides positive and multiplies negative logits of tokens seen before.",
        "logit_bias": "ID=BIAS, added to the logit of a token, -100 to 100; may be repeated.",
        "logprobs": "With --json: log-probabilities of this many likeliest tokens at each position.",
        "prompt_logprobs": "With --json: the same for the prompt.",
        "skip_special_tokens": "Leave special tokens out of the text.",
        "include_stop_str_in_output": "Keep the stop text that ended the answer.",
        "detokenize": "Turn tokens into text.",
    },
)

SERVER = Table(
    keyword="server",
    panel="Server (also from the environment, as LLM_<NAME>)",
    source=ServerSettings,
    environment=True,
    defaults={
        "ssl_certfile": "none",
        "ssl_keyfile": "none",
        "served_model_name": "the model's",
        "allowed_hosts": "this machine's own when only it is listened to, else any",
        "request_timeout": "none",
        "response_store": "memory",
    },
    help={
        "host": "Address to listen on; 0.0.0.0 is every one of this machine.",
        "port": "Port to listen on; 0 lets the system choose.",
        "api_key": "Key that clients must send one of; may be repeated.",
        "ssl_certfile": "Certificate in a PEM file, to serve HTTPS; with --ssl-keyfile.",
        "ssl_keyfile": "The certificate's key, in a PEM file without a password.",
        "allowed_hosts": "Name that a Host header may have, or *; may be repeated.",
        "allowed_origins": "Web page whose scripts may call the API, as https://NAME, or *; may be repeated.",
        "served_model_name": "What clients call the model.",
        "max_queued": "Requests that may be unfinished at once; more are answered with 429.",
        "max_queued_tokens": "Prompt tokens that may wait at once; more are answered with 429.",
        "request_timeout": "Seconds after which an unfinished answer is ended.",
        "progress_timeout": "Seconds without a step of a busy engine after which /health/progress says 503.",
        "engine_timeout": "Seconds without a word of an engine that was asked something after which it is ended.",
        "restart_engine": "Start an engine that ended anew, instead of ending the server.",
        "shutdown_timeout": "Seconds that running answers get after SIGTERM.",
        "max_body_bytes": "Longer request bodies are answered with 413.",
        "body_timeout": "Seconds that a request may take to arrive, and an answer may stay unread.",
        "access_log": "A line for each request on standard error.",
        "ui": "A web page at /.",
        "response_store": "SQLite file that keeps what /v1/responses made.",
    },
)
