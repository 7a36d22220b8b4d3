// The SMS server of npm's goip: one line of JSON for each message that it was sent, until its input ends.
'use strict';
const { ServerFactory } = require('goip');

const server = ServerFactory.make(0, { address: '127.0.0.1' });
server.onServerListening(() => {
  console.log(JSON.stringify({ port: server._socket.address().port }));
});
server.onAll((message) => {
  console.log(JSON.stringify({ type: message.constructor.name, ...message.attributes() }));
});
server.run();
process.stdin.on('end', () => server.close()).resume();
