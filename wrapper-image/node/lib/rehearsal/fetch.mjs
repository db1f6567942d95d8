// What functions of the web platform mostly do, in an ES module. Served by `../warm.js` to nobody.

export default {
  async fetch(request) {
    const { pathname } = new URL(request.url);
    const body = request.method === 'POST' ? await request.text() : null;
    return Response.json({ pathname, body });
  },
};
