// GET /stats, as the rest of the page knows it.

import { read } from "./api.js";

/** What the server says of a model. Throws ApiError. */
export async function statsOf(name) {
  const { uptime, models } = await read("stats");
  return { ...models.find((model) => model.name === name), uptime };
}

/** A point of the charts: {at, generated, prompt, first, between, cache, running, waiting}; null where unknown. */
export function sampleOf(stats, before) {
  const at = performance.now() / 1000;
  const { prompt_tokens, generation_tokens, latency } = stats;
  const rate = (name) => (before ? Math.max(0, (stats[name] - before[name]) / (at - before.at)) : null);
  return {
    at,
    prompt_tokens,
    generation_tokens,
    generated: rate("generation_tokens"),
    prompt: rate("prompt_tokens"),
    first: latency.time_to_first_token,
    between: latency.inter_token,
    cache: stats.kv_cache_usage,
    running: stats.num_running,
    waiting: stats.num_waiting,
  };
}
