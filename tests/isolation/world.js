'use strict';
// The stand-in internet: web servers on every address of this namespace, and a resolver. What it hears goes to a log.
// With `host` after the log: the services of the host itself.
const http = require('node:http');
const dgram = require('node:dgram');
const fs = require('node:fs');
process.stdin.resume().on('end', () => process.exit()); // With the test, however that ends.
const [log, host] = process.argv.slice(2);
const ready = () => console.log('ready');
const hear = (what) => fs.appendFileSync(log, `${what}\n`);
const serve = (text, port, host, then) => http.createServer(({ socket, url }, response) => {
  response.end(url === '/peer' ? socket.remoteAddress : `${text} from ${socket.localAddress}`);
}).on('connection', ({ localAddress }) => hear(`connection to ${localAddress}`)).listen(port, host, then);

if (host) {
  serve('host service', 80, '::', () => serve('host loopback', 9000, '127.0.0.1', ready));
} else {
  // By type of record. The last one's IPv6 address leads into a black hole.
  const names = {
    'site.example': { 1: '203.0.113.10' },
    'inside.example': { 1: '10.96.0.1' },
    'half.example': { 1: '203.0.113.10', 28: '3ffe:dead::1' },
  };
  const resolver = dgram.createSocket('udp4');
  resolver.on('message', (message, from) => resolver.send(answer(message), from.port, from.address));
  const other = dgram.createSocket('udp6');
  other.on('message', (message) => hear(`datagram ${message}`));
  serve('hello', 80, '::', () => serve('ssh', 22, '::', () => resolver.bind(53, '198.51.100.1', () => other.bind(5353, '::', ready))));

  function answer(message) {
    const labels = [];
    let at = 12;
    for (; message[at]; at += 1 + message[at]) labels.push(message.toString('latin1', at + 1, at + 1 + message[at]));
    const [name, kind] = [labels.join('.').toLowerCase(), message.readUInt16BE(at + 1)];
    hear(`name ${name}`);
    const address = names[name]?.[kind];
    const records = address ? [record(kind, address)] : [];
    const header = Buffer.alloc(12);
    message.copy(header, 0, 0, 2);
    header.writeUInt16BE(names[name] ? 0x8180 : 0x8183, 2);
    header.writeUInt16BE(1, 4);
    header.writeUInt16BE(records.length, 6);
    return Buffer.concat([header, message.subarray(12, at + 5), ...records]);
  }
  function record(kind, address) {
    const data = kind === 1 ? Buffer.from(address.split('.').map(Number)) : v6(address);
    return Buffer.concat([Buffer.from([0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 60, 0, data.length]), data]);
  }
  function v6(address) {
    const [head, tail] = address.split('::').map((part) => part.split(':').filter(Boolean));
    const words = [...head, ...Array(8 - head.length - tail.length).fill('0'), ...tail];
    return Buffer.from(words.map((word) => word.padStart(4, '0')).join(''), 'hex');
  }
}
