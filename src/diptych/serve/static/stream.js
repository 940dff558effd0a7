// Answers that arrive word by word: server-sent events over fetch.

/** Events of a body as they arrive: the data of each, without "[DONE]". A part may end anywhere, within a letter too. */
export async function* eventsOf(body) {
  const reader = body.getReader(), decoder = new TextDecoder();
  let held = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      held += done ? decoder.decode() : decoder.decode(value, { stream: true });
      const blocks = held.split(/\r?\n\r?\n/);
      held = done ? "" : blocks.pop();
      for (const block of blocks) {
        const data = block.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).replace(/^ /, "")).join("\n");
        if (data && data !== "[DONE]") yield data;
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {}); // closing the connection is how the server learns that nobody listens
  }
}
