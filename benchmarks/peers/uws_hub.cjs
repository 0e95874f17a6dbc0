// A hub on uWebSockets.js (C++), with its own publish and subscribe; argument: port.
const uWS = require('uwebsockets');

const FRAMES = 1024;
const streams = new Map();
function find(name) {
  let stream = streams.get(name);
  if (!stream) streams.set(name, (stream = {
    name, log: [], responses: new Set(), chunks: 0, frames: new Array(FRAMES),
  }));
  return stream;
}

const decoder = new TextDecoder();
const app = uWS.App();

// Not from within a message: there its own socket is corked, and a response costs four writes.
function send(stream, event) {
  for (const response of stream.responses) response.cork(() => response.write(event));
}

function publish(stream, message) {
  const record = JSON.parse(decoder.decode(message));
  record.sequence = stream.log.length + 1;
  const text = JSON.stringify(record);
  stream.log.push(text);
  app.publish(stream.name, text);
  if (stream.responses.size) setImmediate(send, stream, Buffer.from(`data: ${text}\n\n`));
}

// A binary frame of our protocol: its sequence stands at byte 8. The log keeps the last of them.
function publishBinary(stream, message) {
  const frame = message.slice(0);
  new DataView(frame).setBigUint64(8, BigInt(++stream.chunks));
  stream.frames[stream.chunks % FRAMES] = frame;
  app.publish(stream.name, frame, true);
}

const upgrade = (response, request, context) =>
  response.upgrade(
    { stream: find(request.getParameter(0)) },
    request.getHeader('sec-websocket-key'),
    request.getHeader('sec-websocket-protocol'),
    request.getHeader('sec-websocket-extensions'),
    context,
  );
const limits = { maxPayloadLength: 1 << 20, maxBackpressure: 1 << 20 };

app.ws('/pub/:name', {
  ...limits,
  upgrade,
  message: (socket, message, isBinary) =>
    (isBinary ? publishBinary : publish)(socket.getUserData().stream, message),
});
app.ws('/sub/:name', {
  ...limits, upgrade, open: (socket) => socket.subscribe(socket.getUserData().stream.name),
});
app.get('/sse/:name', (response, request) => {
  const { responses } = find(request.getParameter(0));
  response.onAborted(() => responses.delete(response));
  response.cork(() => {
    response.writeHeader('Content-Type', 'text/event-stream').write('retry: 1500\n\n');
  });
  responses.add(response);
});
app.listen('127.0.0.1', Number(process.argv[2]), (listening) => {
  if (!listening) process.exit(1);
});
