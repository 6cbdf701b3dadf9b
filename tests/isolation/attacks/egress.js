'use strict';
// Connections as only native code makes them: by raw calls on plain descriptors, by many threads at once.
const dgram = require('node:dgram');
const dns = require('node:dns');
const http = require('node:http');
const net = require('node:net');
const { once } = require('node:events');
const { getSystemErrorName } = require('node:util');
const { Worker } = require('node:worker_threads');
const { address, call } = require('../lib/raw.node');

const [AF_INET, STREAM, DATAGRAM, NONBLOCK] = [2, 1, 2, 0x800];
const [SOL_IP, SOL_SOCKET, SOL_TCP] = [0, 1, 6];
const [NOSIGNAL, FASTOPEN] = [0x4000, 0x20000000];
const PUBLIC = ['203.0.113.10', 80];
const OTHER = ['203.0.113.11', 80];
const CLOSED = ['203.0.113.10', 443];
const SSH = ['203.0.113.10', 22];
const HOLE = ['203.0.113.66', 80];
const INSIDE = ['10.96.0.1', 80];
/** Of the host, where it has a server; and of the worker, where it has one if the attack makes it. */
const LOOPBACK = ['127.0.0.1', 9000];

const sockaddr = ([host, port]) => Buffer.from([AF_INET, 0, port >> 8, port & 255, ...host.split('.').map(Number), 0, 0, 0, 0, 0, 0, 0, 0]);
/** An error that is none to Node has no name there. */
const EINPROGRESS = 115;
const said = (result) => (result === -EINPROGRESS ? 'EINPROGRESS' : result < 0 ? getSystemErrorName(result) : 'ok');
const socket = (kind) => call('socket', AF_INET, kind, 0);
const connect = (fd, to) => said(call('connect', fd, sockaddr(to), 16));
const disconnect = (fd, like = Buffer.alloc(16)) => said(call('connect', fd, like, 16));
const listen = (fd) => said(call('listen', fd, 8));
const set = (fd, level, name, ...value) => said(call('setsockopt', fd, level, name, Buffer.from(value), value.length));
const get = (fd, level, name) => {
  const value = Buffer.alloc(4);
  const result = call('getsockopt', fd, level, name, value, Buffer.from([4, 0, 0, 0]));
  return result < 0 ? said(result) : value.readInt32LE();
};
const peer = (fd) => {
  const name = Buffer.alloc(16);
  const result = call('getpeername', fd, name, Buffer.from([16, 0, 0, 0]));
  return result < 0 ? said(result) : `${name.subarray(4, 8).join('.')}:${name.readUInt16BE(2)}`;
};
/** A web server waits for the rest of what the two send. */
const send_to = (fd, to, flags = 0) => said(call('sendto', fd, Buffer.from('G'), 1, flags | NOSIGNAL, sockaddr(to), 16));
const send_message_to = (fd, to) => {
  const [name, text, part, message] = [sockaddr(to), Buffer.from('E'), Buffer.alloc(16), Buffer.alloc(56)];
  part.writeBigUInt64LE(BigInt(address(text)), 0);
  part.writeBigUInt64LE(1n, 8);
  message.writeBigUInt64LE(BigInt(address(name)), 0);
  message.writeUInt32LE(16, 8);
  message.writeBigUInt64LE(BigInt(address(part)), 16);
  message.writeBigUInt64LE(1n, 24);
  return said(call('sendmsg', fd, message, NOSIGNAL));
};
/** Until the attempt that is under way has come to its end. */
const settled = (fd, to) => {
  let outcome;
  do outcome = connect(fd, to);
  while (outcome === 'EALREADY' || outcome === 'EINPROGRESS');
  return outcome;
};
/** A socket of the host's without a peer: what the supervisor gave for an attempt that was then given up. */
const given_up = () => {
  const fd = socket(STREAM | NONBLOCK);
  const outcomes = [connect(fd, HOLE), connect(fd, HOLE), said(call('shutdown', fd, 2))];
  return { fd, outcomes };
};
/** One that gives up after a tenth of a second. */
const patient = () => {
  const fd = socket(STREAM);
  set(fd, SOL_SOCKET, 21, 0, 0, 0, 0, 0, 0, 0, 0, 0xa0, 0x86, 1, 0, 0, 0, 0, 0); // SO_SNDTIMEO
  return fd;
};

const start = (role, data) => new Worker(require.resolve('../attacks/thread.js'), { workerData: { role, ...data } });
/** Threads that sleep in connect; for each, what that says in the end. On return each has come as far as that call. */
const hang = async (count) => {
  const threads = Array.from({ length: count }, () => start('hang', { to: sockaddr(HOLE) }));
  const ended = threads.map((thread) => new Promise((done) => thread.on('message', (result) => result <= 0 && done(said(result)))));
  await Promise.all(threads.map((thread) => once(thread, 'message')));
  return ended;
};

let flooding;

module.exports = {
  keep_alive: async ({ host, count }) => {
    const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
    const ports = new Set();
    for (let n = 0; n < count; n++) {
      const [response] = await once(http.get({ host, agent }), 'response');
      ports.add(response.socket.localPort);
      await once(response.resume(), 'end');
    }
    agent.destroy();
    return `${count} by ${ports.size}`;
  },
  happy_eyeballs: ({ host }) => new Promise((done) => {
    const attempts = [];
    // Where an address has no route of its own, getaddrinfo puts IPv4 first.
    const lookup = (name, options, then) => dns.lookup(name, options, (error, all) => then(error, all?.sort((a, b) => b.family - a.family)));
    const socket = net.connect({ host, port: 80, autoSelectFamily: true, lookup });
    socket.on('connectionAttempt', (ip) => attempts.push(ip));
    socket.on('error', (error) => done(error.code)).on('connect', () => {
      attempts.push(socket.remoteAddress);
      socket.destroy();
      done(attempts.join(' '));
    });
  }),
  own_servers: async () => {
    const answers = [];
    for (const [at, host] of [['127.0.0.1', '127.0.0.1'], ['::1', '[::1]'], ['::', '127.0.0.1'], [undefined, 'localhost']]) {
      const server = http.createServer((_, response) => response.end('own')).listen(0, at);
      await once(server, 'listening');
      answers.push(await (await fetch(`http://${host}:${server.address().port}/`)).text());
      server.close().closeAllConnections();
    }
    const [one, other] = [dgram.createSocket('udp4'), dgram.createSocket('udp4')];
    await once(one.bind(0, '127.0.0.1'), 'listening');
    other.connect(one.address().port, '127.0.0.1');
    await once(other, 'connect');
    other.send('datagram');
    answers.push(String((await once(one, 'message'))[0]));
    [one, other].forEach((socket) => socket.close());
    return answers.join(' ');
  },
  blocking: async ({ count }) => {
    let ended = 0;
    for (const one of await hang(count)) one.then(() => ended++);
    const lines = [];
    // By the end of this one the others have surely been asked for.
    lines.push(`hole: ${connect(patient(), HOLE)}`);
    const options = [[SOL_TCP, 1, 1], [SOL_SOCKET, 9, 1], [SOL_TCP, 4, 77]]; // TCP_NODELAY, SO_KEEPALIVE, TCP_KEEPIDLE
    const fd = socket(STREAM);
    for (const [level, name, value] of options) set(fd, level, name, value, 0, 0, 0);
    lines.push(`meanwhile: ${connect(fd, PUBLIC)} ${peer(fd)}`);
    lines.push(`options: ${options.map(([level, name]) => get(fd, level, name)).join(' ')}, blocks: ${!(call('fcntl', fd, 3, 0) & NONBLOCK)}`);
    await new Promise(setImmediate);
    lines.push(`ended: ${ended}`);
    return lines.join('\n');
  },
  too_many_blocking: async ({ count }) => {
    const refused = await Promise.race(await hang(count));
    const fd = socket(STREAM | NONBLOCK);
    return `${refused} ${connect(patient(), HOLE)}, without blocking ${connect(fd, PUBLIC)} ${settled(fd, PUBLIC)}`;
  },
  hang: async ({ count }) => {
    await hang(count);
    await dns.promises.lookup('hanging.example').catch(() => {});
    await new Promise(() => {});
  },
  die_connecting: async ({ count }) => {
    await hang(count);
    process.kill(process.pid, 'SIGKILL');
    await new Promise(() => {});
  },
  reconnect: () => {
    const lines = [];
    const tell = (what, ...outcomes) => lines.push(`${what}: ${outcomes.flat().join(' ')}`);
    const connected = socket(STREAM);
    tell('connected', connect(connected, PUBLIC), peer(connected));
    tell('again', [OTHER, INSIDE, LOOPBACK].map((to) => connect(connected, to)));
    const [unspecified, with_address] = [Buffer.alloc(16), sockaddr(INSIDE)];
    with_address[0] = 0;
    tell('disconnected', disconnect(connected, unspecified), disconnect(connected, with_address), said(call('connect', connected, unspecified, 2)));
    tell('still', peer(connected));
    // Refused: the error comes once, then a new attempt may go to where any may.
    const refused = socket(STREAM | NONBLOCK);
    tell('refused', connect(refused, CLOSED), settled(refused, CLOSED));
    tell('then', [INSIDE, SSH].map((to) => connect(refused, to)), connect(refused, OTHER), settled(refused, OTHER), peer(refused));
    const { fd, outcomes } = given_up();
    tell('given up', outcomes);
    tell('used for more', said(call('bind', fd, sockaddr(['0.0.0.0', 4444]), 16)), listen(fd), disconnect(fd), send_to(fd, INSIDE), send_to(fd, INSIDE, FASTOPEN));
    tell('elsewhere', connect(fd, INSIDE), connect(fd, LOOPBACK), connect(fd, INSIDE), connect(fd, LOOPBACK), peer(fd));
    // SIOCGIFCONF; SO_BINDTODEVICE, IP_OPTIONS.
    tell('host', said(call('ioctl', connected, 0x8912, Buffer.alloc(16))), set(connected, SOL_SOCKET, 25, 0x6c, 0x6f), set(connected, SOL_IP, 4, 131, 7, 4, 10, 96, 0, 1, 0));
    return lines.join('\n');
  },
  datagrams: ({ hosts }) => {
    const lines = hosts.map((host) => {
      const [fd, to] = [socket(DATAGRAM), [host, 5353]];
      const outcomes = [send_to(fd, to), send_message_to(fd, to), connect(fd, to), said(call('sendto', fd, Buffer.from('x'), 1, 0, 0, 0))];
      return `${host} ${outcomes.join(' ')} ${peer(fd)}`;
    });
    const fd = socket(DATAGRAM);
    lines.push(`after its own ${connect(fd, ['127.0.0.53', 53])} ${connect(fd, [hosts[0], 5353])} ${send_to(fd, [hosts[0], 5353])} ${peer(fd)}`);
    return lines.join('\n');
  },
  stray_segments: () => {
    const fd = socket(STREAM);
    return [connect(fd, PUBLIC), send_to(fd, INSIDE), send_message_to(fd, INSIDE), peer(fd)].join(' ');
  },
  // Changes the address, and what stands under the descriptor's number, while connect and listen are decided: between one that may be
  // connected to, one that may not, and its own loopback; between a socket of its own and one of the host's. Tells who was reached.
  race: async ({ calls }) => {
    const server = net.createServer((socket) => socket.on('error', () => {}).destroy()).listen(LOOPBACK[1], LOOPBACK[0]);
    await once(server, 'listening');
    const [number, given] = [200, given_up().fd];
    const flags = new Int32Array(new SharedArrayBuffer(8)); // To end; how many threads run.
    const shared = Buffer.from(new SharedArrayBuffer(16));
    const addresses = [PUBLIC, INSIDE, LOOPBACK].map((to) => sockaddr(to).readBigInt64LE());
    const threads = [start('change_address', { flags, shared: shared.buffer, addresses }), start('change_descriptor', { flags, number, given })];
    while (Atomics.load(flags, 1) < threads.length) await new Promise(setImmediate);
    const peers = new Set();
    for (let n = 0; n < calls; n++) {
      if (n % 8 === 7) call('listen', number, 8);
      call('connect', number, shared, 16);
      peers.add(peer(number));
      if (n % 64 === 63) await new Promise(setImmediate); // Its own server accepts.
    }
    Atomics.store(flags, 0, 1);
    const swaps = await Promise.all(threads.map(async (thread) => (await once(thread, 'message'))[0]));
    server.close();
    peers.delete('ENOTCONN');
    return JSON.stringify({ peers: [...peers].sort(), swaps, given: [peer(given), get(given, SOL_SOCKET, 30)] }); // SO_ACCEPTCONN
  },
  // Until `end_flood`, and at least so many calls.
  flood: async ({ calls, threads }) => {
    await dns.promises.lookup('flood.example').catch(() => {});
    const started = performance.now();
    flooding = new Int32Array(new SharedArrayBuffer(8)); // To end; calls.
    const running = Array.from({ length: threads }, () => start('flood', { flags: flooding, calls, to: sockaddr(PUBLIC) }));
    const counts = await Promise.all(running.map(async (thread) => (await once(thread, 'message'))[0]));
    const sum = {};
    for (const count of counts) for (const [result, n] of Object.entries(count)) sum[said(+result)] = (sum[said(+result)] ?? 0) + n;
    return JSON.stringify({ seconds: (performance.now() - started) / 1000, counts: sum });
  },
  end_flood: () => Atomics.store(flooding, 0, 1),
};
