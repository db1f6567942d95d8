// Any program that listens on $PORT and speaks HTTP works.
const http = require('node:http');

const server = http.createServer((request, response) => {
  console.log(request.method, request.url);
  response.setHeader('content-type', 'application/json');
  response.end(JSON.stringify({ message: 'Hello from a container!' }));
});

server.listen(process.env.PORT ?? 8080);
process.on('SIGTERM', () => server.close(() => process.exit(0)));
