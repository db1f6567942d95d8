// A typical function of the web platform, in an ES module. Only called by `../warm.js`.

export default {
  async fetch(request) {
    const { pathname } = new URL(request.url);
    const body = request.method === 'POST' ? await request.text() : null;
    return Response.json({ pathname, body });
  },
};
