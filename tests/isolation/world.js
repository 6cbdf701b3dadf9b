'use strict';
// The stand-in internet: web servers on every address of this namespace, and a resolver. What it hears by datagrams goes to a log.
// With `host` instead of a log: the services of the host itself.
const http = require('node:http');
const dgram = require('node:dgram');
const fs = require('node:fs');
process.stdin.resume().on('end', () => process.exit()); // With the test, however that ends.
const [log] = process.argv.slice(2);
const ready = () => console.log('ready');
const serve = (text, port, host, then) => http.createServer((request, response) => {
  response.end(`${text} from ${request.socket.localAddress}`);
}).listen(port, host, then);

if (log === 'host') {
  serve('host service', 80, '::', () => serve('host loopback', 9000, '127.0.0.1', ready));
} else {
  const names = { 'site.example': '203.0.113.10', 'inside.example': '10.96.0.1' };
  const resolver = dgram.createSocket('udp4');
  resolver.on('message', (message, from) => resolver.send(answer(message), from.port, from.address));
  const other = dgram.createSocket('udp6');
  other.on('message', (message) => fs.appendFileSync(log, `datagram ${message}\n`));
  serve('hello', 80, '::', () => serve('ssh', 22, '::', () => resolver.bind(53, '198.51.100.1', () => other.bind(5353, '::', ready))));

  function answer(message) {
    const labels = [];
    let at = 12;
    for (; message[at]; at += 1 + message[at]) labels.push(message.toString('latin1', at + 1, at + 1 + message[at]));
    const [name, kind] = [labels.join('.').toLowerCase(), message.readUInt16BE(at + 1)];
    fs.appendFileSync(log, `name ${name}\n`);
    const records = kind === 1 && names[name] ? [record(names[name])] : [];
    const header = Buffer.alloc(12);
    message.copy(header, 0, 0, 2);
    header.writeUInt16BE(names[name] ? 0x8180 : 0x8183, 2);
    header.writeUInt16BE(1, 4);
    header.writeUInt16BE(records.length, 6);
    return Buffer.concat([header, message.subarray(12, at + 5), ...records]);
  }
  function record(address) {
    return Buffer.from([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, ...address.split('.').map(Number)]);
  }
}
