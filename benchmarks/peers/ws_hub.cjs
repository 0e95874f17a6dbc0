// A hub on Node's http and `ws`; argument: port.
const http = require('http');
const { WebSocketServer } = require('ws');

const streams = new Map();
function find(name) {
  let stream = streams.get(name);
  if (!stream) streams.set(name, (stream = { log: [], sockets: new Set(), responses: new Set() }));
  return stream;
}

function publish(stream, message) {
  const record = JSON.parse(message);
  record.sequence = stream.log.length + 1;
  const text = JSON.stringify(record);
  stream.log.push(text);
  if (stream.sockets.size) {
    const bytes = Buffer.from(text);
    for (const socket of stream.sockets) socket.send(bytes, { binary: false });
  }
  if (stream.responses.size) {
    const event = Buffer.from(`data: ${text}\n\n`);
    for (const response of stream.responses) response.write(event);
  }
}

const server = http.createServer((request, response) => {
  const { responses } = find(request.url.split('/')[2]);
  response.writeHead(200, { 'Content-Type': 'text/event-stream' });
  response.write('retry: 1500\n\n');
  responses.add(response);
  response.on('close', () => responses.delete(response));
});

new WebSocketServer({ server, perMessageDeflate: false }).on('connection', (socket, request) => {
  const [, role, name] = request.url.split('/');
  const stream = find(name);
  if (role === 'pub') {
    socket.on('message', (message) => publish(stream, message));
  } else {
    stream.sockets.add(socket);
    socket.on('close', () => stream.sockets.delete(socket));
  }
});

server.listen(Number(process.argv[2]), '127.0.0.1', 1024);
