"""The engine: which sequence computes which tokens in which blocks, step after step.

    request.py     Request, Sequence
    block_pool.py  block ids: free, owned, shared, found again by hash
    kv_cache.py    block tables per cache group; prefixes; forks
    scheduler.py   a step's token budget spent; sequences admitted, preempted, finished
    budget.py      how many blocks the memory holds
    engine.py      Engine.step(): schedule, run, update
    build.py       from an EngineConfig to a running Engine
    intake.py      prompts into requests
    delivery.py    deltas into outputs
    process.py     the engine in a process of its own
    spawn.py       starts that process
    link.py        the client's end of it
    async_engine.py its client, for asyncio

Nothing here touches a tensor.
"""
