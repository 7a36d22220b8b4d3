// node send.js udp PORT PASSWORD NUMBER TEXT | node send.js http URL LINE USER PASSWORD NUMBER TEXT
'use strict';
const { SocketSms, HttpSms } = require('goip');

const [way, ...args] = process.argv.slice(2);

async function send() {
  if (way === 'udp') {
    const [port, password, number, text] = args;
    return new SocketSms('127.0.0.1', Number(port), password).sendOne(number, text);
  }
  const [url, line, user, password, number, text] = args;
  const http = new HttpSms(url, Number(line), user, password, { waitForStatus: true, waitTime: 100 });
  return http.send(number, text);
}

send().then(
  (answer) => console.log(JSON.stringify(answer)),
  (error) => console.log(JSON.stringify({ failed: error.message })),
);
