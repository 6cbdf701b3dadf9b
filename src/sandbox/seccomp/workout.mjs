// What tenants' code does with Node, one thing after the other. Prints `ok` at the end; anything else is a failure.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import crypto from 'node:crypto';
import dgram from 'node:dgram';
import dns from 'node:dns/promises';
import { once } from 'node:events';
import fs from 'node:fs/promises';
import { watch } from 'node:fs';
import http from 'node:http';
import os from 'node:os';
import path from 'node:path';
import timers from 'node:timers/promises';
import { promisify } from 'node:util';
import { Worker } from 'node:worker_threads';
import zlib from 'node:zlib';

const subprocesses = process.env.SUBPROCESSES === '1';
const datagrams = process.env.DATAGRAMS === '1';
const step = async (name, run) => {
  try { await run(); } catch (error) { throw new Error(name, { cause: error }); }
};

await step('timers', async () => { await timers.setTimeout(5); await timers.setImmediate(); });
await step('worker_threads', async () => {
  const worker = new Worker("require('node:worker_threads').parentPort.postMessage(6 * 7)", { eval: true });
  assert.deepEqual(await once(worker, 'message'), [42]);
  await worker.terminate();
});
await step('wasm', async () => {
  // (module (memory (export "m") 1) (func (export "add") (param i32 i32) (result i32) local.get 0 local.get 1 i32.add))
  const { instance } = await WebAssembly.instantiate(Uint8Array.from([0, 97, 115, 109, 1, 0, 0, 0, 1, 7, 1, 96, 2, 127, 127, 1, 127, 3, 2, 1, 0,
    5, 3, 1, 0, 1, 7, 11, 2, 1, 109, 2, 0, 3, 97, 100, 100, 0, 0, 10, 9, 1, 7, 0, 32, 0, 32, 1, 106, 11]));
  for (let i = 0; i < 100_000; i += 1) assert.equal(instance.exports.add(i, 2), i + 2);
  instance.exports.m.grow(10);
  const shared = new WebAssembly.Memory({ initial: 1, maximum: 100, shared: true });
  shared.grow(20);
  Atomics.add(new Int32Array(shared.buffer), 0, 1);
});
await step('zlib', async () => {
  const text = Buffer.alloc(1e6, 'chat');
  assert.deepEqual(await promisify(zlib.gunzip)(await promisify(zlib.gzip)(text)), text);
  assert.deepEqual(zlib.brotliDecompressSync(zlib.brotliCompressSync(text)), text);
});
await step('crypto', async () => {
  await promisify(crypto.scrypt)('a', 'b', 32);
  await promisify(crypto.generateKeyPair)('ed25519', {});
  crypto.randomBytes(32);
  await crypto.subtle.digest('SHA-256', Buffer.from('x'));
});
await step('fs', async () => {
  const directory = await fs.mkdtemp(path.join(process.env.WORKOUT_TMP, 'w-'));
  const file = path.join(directory, 'a');
  await fs.writeFile(file, 'hello');
  await fs.appendFile(file, ' there');
  await fs.copyFile(file, `${file}.copy`);
  await fs.rename(`${file}.copy`, `${file}.moved`);
  await fs.symlink(file, `${file}.link`);
  await fs.link(file, `${file}.hard`);
  await fs.chmod(file, 0o600);
  await fs.utimes(file, 1, 1);
  await fs.truncate(file, 5);
  const handle = await fs.open(file, 'r+');
  await handle.sync();
  await handle.datasync();
  await handle.stat({ bigint: true });
  await handle.close();
  assert.equal(await fs.readFile(`${file}.link`, 'utf8'), 'hello');
  assert.equal((await fs.readdir(directory)).length, 4);
  await fs.cp(directory, `${directory}-cp`, { recursive: true });
  await fs.statfs(directory);
  await fs.realpath(`${file}.link`);
  const watcher = watch(directory);
  const seen = once(watcher, 'change');
  await fs.writeFile(path.join(directory, 'new'), '');
  await seen;
  watcher.close();
  await fs.rm(directory, { recursive: true });
  await fs.rm(`${directory}-cp`, { recursive: true });
});
await step('dns', async () => { assert.ok((await dns.lookup('localhost', { all: true })).length > 0); });
await step('http', async () => {
  const server = http.createServer((request, response) => request.pipe(response));
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const url = `http://127.0.0.1:${server.address().port}/`;
  const body = 'x'.repeat(300_000);
  assert.equal(await (await fetch(url, { method: 'POST', body })).text(), body);
  server.closeAllConnections();
  server.close();
});
await step('unix socket', async () => {
  const where = path.join(process.env.WORKOUT_TMP, 's');
  const server = http.createServer((_, response) => response.end('unix')).listen(where);
  await once(server, 'listening');
  const [response] = await once(http.get({ socketPath: where, path: '/' }), 'response');
  assert.equal((await response.toArray()).join(''), 'unix');
  server.closeAllConnections();
  server.close();
});
await step('dgram', async () => {
  const socket = dgram.createSocket('udp4');
  if (!datagrams) {
    const failed = once(socket, 'error');
    socket.bind(0, '127.0.0.1');
    assert.equal((await failed)[0].code, 'ENOSYS');
    socket.close();
    return;
  }
  socket.bind(0, '127.0.0.1');
  await once(socket, 'listening');
  const received = once(socket, 'message');
  socket.send('hello', socket.address().port, '127.0.0.1');
  assert.equal((await received)[0].toString(), 'hello');
  socket.close();
});
await step('os', async () => {
  os.networkInterfaces();
  os.cpus();
  os.userInfo();
  os.availableParallelism();
  os.getPriority();
  os.setPriority(1);
  process.memoryUsage();
  process.resourceUsage();
  process.report.getReport();
});
await step('signals', async () => {
  const got = once(process, 'SIGUSR2');
  const alive = setInterval(() => {}, 1000); // A signal alone keeps no process up.
  process.kill(process.pid, 'SIGUSR2');
  await got;
  clearInterval(alive);
  if (!subprocesses) assert.throws(() => process.kill(process.ppid, 0), { code: 'EPERM' });
});
await step('child_process', async () => {
  const child = spawn('/bin/sh', ['-c', 'echo child']);
  if (subprocesses) {
    assert.equal((await child.stdout.toArray()).join(''), 'child\n');
  } else {
    const [error] = await once(child, 'error');
    assert.equal(error.code, 'EACCES');
  }
});
console.log('ok');
