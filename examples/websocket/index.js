// WebSockets: a handshake goes to `upgrade(req, socket, head)` beside `func`, here handed to the `ws`
// package. The connection may last as long as the function's `timeout`.

const { WebSocketServer } = require('ws');

const sockets = new WebSocketServer({ noServer: true });

sockets.on('connection', (socket) => {
  socket.send('welcome');
  socket.on('message', (data) => socket.send(`echo: ${data}`));
});

exports.chat = {
  func: (req, res) => res.status(426).send('This function speaks WebSocket.\n'),
  upgrade: (req, socket, head) => {
    sockets.handleUpgrade(req, socket, head, (client) => sockets.emit('connection', client, req));
  },
  config: { timeout: '15m', concurrency: 100, maxInstances: 2 },
};
