// The web-standard form: a Request in, a Response out, streamed as it is made. The function has the
// project's name: `web`.

export default {
  async fetch(request) {
    const { pathname } = new URL(request.url);
    if (pathname === '/events') return events(request.signal);
    if (pathname === '/upper') return new Response(request.body?.pipeThrough(upperCase()) ?? 'send me some text\n');
    return Response.json({ try: ['/events (server-sent events)', '/upper (POST some text)'] });
  },
};

/** Five events, one each 200 ms. */
function events(signal) {
  const encoder = new TextEncoder();
  const stream = new ReadableStream({
    async start(out) {
      for (let n = 1; n <= 5 && !signal.aborted; n += 1) {
        out.enqueue(encoder.encode(`data: ${n}\n\n`));
        await new Promise((resolve) => setTimeout(resolve, 200));
      }
      if (!signal.aborted) out.close();
    },
  });
  return new Response(stream, { headers: { 'content-type': 'text/event-stream' } });
}

function upperCase() {
  const decoder = new TextDecoder();
  const encoder = new TextEncoder();
  return new TransformStream({
    transform: (chunk, out) => out.enqueue(encoder.encode(decoder.decode(chunk, { stream: true }).toUpperCase())),
  });
}
