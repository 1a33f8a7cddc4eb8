// Server-sent events out of a stream of bytes.

/** The data of each event, up to where the stream ends or breaks. Events may be cut anywhere. */
export async function* eventsOf(bytes) {
  const reader = bytes.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  try {
    for (;;) {
      const { done, value } = await reader.read().catch(broken);
      if (done) return;
      const blocks = (pending + value).split("\n\n");
      pending = blocks.pop();
      for (const block of blocks) if (block.startsWith("data: ")) yield block.slice(6);
    }
  } finally {
    await reader.cancel().catch(() => undefined); // a stream that failed cannot be cancelled, and need not be
  }
}

function broken(error) {
  if (error.name === "AbortError") throw error;
  return { done: true };
}
