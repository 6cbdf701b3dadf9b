'use strict';
const net = require('node:net');
const dgram = require('node:dgram');
const dns = require('node:dns');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');

const connect = (options) => new Promise((done) => {
  const socket = net.connect({ ...options, timeout: 2000 });
  const end = (outcome) => {
    socket.destroy();
    done(outcome);
  };
  socket.on('connect', () => end('connected'));
  socket.on('timeout', () => end('TIMEOUT'));
  socket.on('error', (error) => end(error.code));
});
const listen = (...where) => new Promise((done, fail) => {
  const server = net.createServer((socket) => socket.on('error', () => {}).end('secret'));
  server.on('error', fail);
  server.listen(...where, () => done(server));
});
/** Whoever else comes and goes: they end with the worker. */
const kept = [];

module.exports = {
  connect: ({ host, port, path }) => connect(path === undefined ? { host, port } : { path }),
  connect_all: async ({ hosts, port = 80 }) => {
    const codes = [];
    for (const host of hosts) codes.push(`${host} ${await connect({ host, port })}`);
    return codes.join('\n');
  },
  send: ({ host, port }) => new Promise((done) => {
    const socket = dgram.createSocket(net.isIPv6(host) ? 'udp6' : 'udp4');
    socket.on('error', (error) => done(error.code));
    socket.send('x', port, host, (error) => done(error?.code ?? 'ok'));
  }),
  fetch: async ({ url }) => {
    const answer = await fetch(url).catch((error) => { throw error.cause ?? error; });
    return (await answer.text()).trim();
  },
  lookup: async ({ name }) => (await dns.promises.lookup(name)).address,
  ask: async ({ name, server, timeout = 1000 }) => {
    const resolver = new dns.promises.Resolver({ timeout, tries: 1 });
    if (server) resolver.setServers([server]);
    return (await resolver.resolve4(name)).join();
  },
  listen: async ({ host, port = 0, path }) => {
    const server = await listen(...(path === undefined ? [port, host] : [path]));
    kept.push(server);
    return path ?? server.address().port;
  },
  // Everything that a neighbour could be got at by. What cannot be had here is told by its error.
  sit: async () => {
    const had = { tmp: path.join(os.tmpdir(), 'secret'), memory: kept.push(Buffer.from('a secret in memory')) };
    fs.writeFileSync(had.tmp, 'secret', { mode: 0o644 });
    fs.chmodSync(os.tmpdir(), 0o755);
    const attempts = { port: [0, '127.0.0.1'], abstract: ['\0chatfn-neighbour'], socket: [path.join(os.tmpdir(), 'socket')] };
    for (const [name, where] of Object.entries(attempts)) {
      try {
        const server = await listen(...where);
        kept.push(server);
        had[name] = name === 'port' ? server.address().port : where[0];
      } catch (error) {
        had[name] = error.code;
      }
    }
    return JSON.stringify(had);
  },
  interfaces: () => Object.keys(os.networkInterfaces()).join(),
  own_port_53: () => listen(53, '127.0.0.53').then(() => 'ok'),
};
