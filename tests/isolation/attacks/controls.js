'use strict';
// What everybody's code does on a usual machine, and must go on to do. Each answers 'ok', or something that says more.
const assert = require('node:assert');
const crypto = require('node:crypto');
const dns = require('node:dns');
const events = require('node:events');
const fs = require('node:fs');
const http = require('node:http');
const os = require('node:os');
const path = require('node:path');
const zlib = require('node:zlib');
const { promisify } = require('node:util');
const { setTimeout: sleep } = require('node:timers/promises');
const { Worker } = require('node:worker_threads');

// (module (func (export "add") (param i32 i32) (result i32) local.get 0 local.get 1 i32.add))
const ADD = Buffer.from('0061736d0100000001070160027f7f017f030201000707010361646400000a09010700200020016a0b', 'hex');

const controls = {
  use_threads: async () => {
    const source = 'const { parentPort, workerData } = require("node:worker_threads"); parentPort.postMessage(workerData * 2)';
    const workers = Array.from({ length: 4 }, (_, n) => new Worker(source, { eval: true, workerData: n }));
    const answers = await Promise.all(workers.map((worker) => events.once(worker, 'message')));
    assert.deepStrictEqual(answers.flat(), [0, 2, 4, 6]);
  },
  use_wasm: async () => {
    const { instance } = await WebAssembly.instantiate(ADD);
    let sum = 0;
    for (let n = 0; n < 200_000; n++) sum = instance.exports.add(sum, 1);
    assert.strictEqual(sum, 200_000);
    const memory = new WebAssembly.Memory({ initial: 16, maximum: 65_536 });
    assert.strictEqual(memory.grow(16), 16);
  },
  use_shared_memory: () => {
    const shared = new Int32Array(new SharedArrayBuffer(1024));
    Atomics.add(shared, 0, 7);
    assert.strictEqual(Atomics.wait(shared, 1, 0, 1), 'timed-out');
  },
  use_zlib: async () => {
    const data = Buffer.alloc(1 << 20, 'abc');
    for (const [pack, unpack] of [[zlib.gzip, zlib.gunzip], [zlib.brotliCompress, zlib.brotliDecompress]]) {
      assert(data.equals(await promisify(unpack)(await promisify(pack)(data))));
    }
  },
  use_crypto: async () => {
    assert.strictEqual((await promisify(crypto.scrypt)('secret', 'salt', 32)).length, 32);
    const { privateKey, publicKey } = await promisify(crypto.generateKeyPair)('ed25519', {});
    assert(crypto.verify(null, Buffer.from('x'), publicKey, crypto.sign(null, Buffer.from('x'), privateKey)));
    assert.strictEqual(crypto.randomUUID().length, 36);
    assert.strictEqual((await globalThis.crypto.subtle.digest('SHA-256', Buffer.from('x'))).byteLength, 32);
  },
  use_timers: async () => {
    const started = performance.now();
    await sleep(20);
    assert(performance.now() - started >= 19);
    await new Promise(setImmediate);
  },
  use_tmp: async () => {
    const directory = await fs.promises.mkdtemp(path.join(os.tmpdir(), 'a-'));
    const file = path.join(directory, 'file');
    await fs.promises.writeFile(file, 'text');
    await fs.promises.appendFile(file, ' and more');
    await fs.promises.copyFile(file, file + '2');
    await fs.promises.rename(file + '2', file + '3');
    await fs.promises.symlink(file, file + '4');
    assert.strictEqual(await fs.promises.readFile(file + '4', 'utf8'), 'text and more');
    const watcher = fs.watch(directory);
    await fs.promises.truncate(file, 1);
    watcher.close();
    assert.strictEqual((await fs.promises.stat(file)).size, 1);
    await fs.promises.rm(directory, { recursive: true });
  },
  use_much_memory: () => {
    assert.strictEqual(Buffer.alloc(64 << 20, 7).at(-1), 7);
  },
  use_the_compiler: () => {
    let sum = 0;
    const add = new Function('a', 'b', 'return (a * 31 + b) | 0');
    for (let n = 0; n < 5_000_000; n++) sum = add(sum, n);
    assert(Number.isInteger(sum));
  },
  ask_about_itself: () => {
    assert(process.memoryUsage().rss > 10 << 20);
    assert(process.memoryUsage.rss() > 10 << 20 && process.resourceUsage().maxRSS > 0 && process.cpuUsage().user > 0);
    assert(process.execPath.endsWith('node') && fs.existsSync(process.execPath));
    assert(process.title === 'node' && process.pid > 0 && process.uptime() > 0);
    assert(os.totalmem() > 0 && os.freemem() > 0 && os.uptime() > 0 && os.loadavg().length === 3);
    assert(os.hostname() && os.release() && os.arch() && os.tmpdir() && os.homedir());
    assert(fs.statSync(os.tmpdir()).isDirectory());
    assert(process.report.getReport().header.nodejsVersion === process.version);
  },
  ask_who_it_is: () => {
    // Not known to /etc/passwd: as in every container that is given a number.
    try {
      os.userInfo();
    } catch (error) {
      assert.strictEqual(error.code, 'ERR_SYSTEM_ERROR');
    }
  },
  // Packages divide by it, and start as many threads.
  count_processors: () => {
    assert(os.availableParallelism() >= 1, 'availableParallelism');
    assert(os.cpus().length >= 1, `os.cpus().length is ${os.cpus().length}`);
  },
  look_up_localhost: async () => {
    assert(['127.0.0.1', '::1'].includes((await dns.promises.lookup('localhost')).address));
  },
  serve_itself: async () => {
    const server = http.createServer((request, response) => request.pipe(response));
    await new Promise((done, fail) => server.on('error', fail).listen(0, '127.0.0.1', done));
    const answer = await fetch(`http://localhost:${server.address().port}/`, { method: 'POST', body: 'hello' });
    assert.strictEqual(await answer.text(), 'hello');
    server.closeAllConnections();
    await new Promise((done) => server.close(done));
  },
  serve_on_a_path: async () => {
    const server = http.createServer((_, response) => response.end('hello'));
    const socketPath = path.join(os.tmpdir(), 'own.sock');
    await new Promise((done, fail) => server.on('error', fail).listen(socketPath, done));
    const text = await new Promise((done, fail) => {
      http.get({ socketPath, agent: false }, (response) => response.on('data', (data) => done(String(data)))).on('error', fail);
    });
    server.closeAllConnections();
    await new Promise((done) => server.close(done));
    assert.strictEqual(text, 'hello');
  },
  use_intl: () => {
    assert.strictEqual(new Date(0).toLocaleString('de-DE', { timeZone: 'Europe/Berlin' }), '1.1.1970, 01:00:00');
  },
  use_tls_roots: () => {
    assert(require('node:tls').rootCertificates.length > 100);
    require('node:tls').createSecureContext();
  },
  fail_to_spawn_as_on_a_usual_machine: async () => {
    const child = require('node:child_process').spawn('nothing-is-called-so');
    const [error] = await events.once(child, 'error');
    assert(['ENOENT', 'EACCES'].includes(error.code));
  },
  signal_itself: async () => {
    const heard = events.once(process, 'SIGUSR2');
    process.kill(process.pid, 'SIGUSR2');
    await heard;
    assert(process.kill(process.pid, 0));
  },
  use_modules: async () => {
    assert.strictEqual((await import('node:path')).sep, '/');
    assert.strictEqual(require('node:module').createRequire(__filename)('./controls.js'), module.exports);
  },
};

// An assertion's message is the outcome.
module.exports = Object.fromEntries(Object.entries(controls).map(([name, control]) => [name, async () => {
  try {
    await control();
    return 'ok';
  } catch (error) {
    return `${error.code ?? error.name}: ${error.message}`;
  }
}]));
