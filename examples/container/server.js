// A plain web server of your own: no wrapper, no framework, any language.

const http = require('node:http');

const server = http.createServer((req, res) => {
  res.setHeader('content-type', 'text/plain');
  res.end(`Hello from a container: ${req.method} ${req.url}\n`);
});

server.listen(process.env.PORT ?? 8080);
process.on('SIGTERM', () => server.close());
