'use strict';
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { spawn } = require('node:child_process');
const { Worker } = require('node:worker_threads');

/** Until it throws; what it had by then is let go. */
const fill = (make, max) => {
  const held = [];
  try {
    while (held.length < max) held.push(make());
    return 'ok';
  } catch (error) {
    return error.code ?? error.name;
  }
};
const MIB = 1 << 20;

module.exports = {
  heap: () => {
    const held = [];
    for (;;) held.push({ n: held.length, text: `${held.length}`.repeat(10) });
  },
  buffers: () => fill(() => Buffer.alloc(8 * MIB, 1), 1000),
  strings: () => {
    const held = [];
    for (;;) held.push('x'.repeat(MIB) + held.length);
  },
  shared_buffers: () => fill(() => new Uint8Array(new SharedArrayBuffer(8 * MIB)).fill(1), 1000),
  wasm: () => {
    const memory = new WebAssembly.Memory({ initial: 1 });
    for (let pages = 1; pages < 60_000; pages += 128) {
      memory.grow(128);
      new Uint8Array(memory.buffer).fill(1, pages << 16);
    }
    return 'ok';
  },
  // Less than each limit alone allows.
  files_and_buffers: ({ tmp_bytes, buffers_bytes }) => {
    const chunk = Buffer.alloc(MIB, 1);
    for (let n = 0; n < tmp_bytes / MIB; n++) fs.writeFileSync(path.join(os.tmpdir(), `mem${n}`), chunk);
    return fill(() => Buffer.alloc(MIB, 1), buffers_bytes / MIB);
  },
  spin: () => {
    for (;;);
  },
  spin_in_microtasks: async () => {
    for (;;) await null;
  },
  never: () => new Promise(() => {}),
  many_processes: async ({ count }) => {
    const started = await Promise.all(Array.from({ length: count }, () => new Promise((done) => {
      const child = spawn('sleep', ['600'], { stdio: 'ignore', detached: true });
      child.on('error', (error) => done(error.code));
      child.on('spawn', () => done('started'));
    })));
    const number = started.filter((state) => state === 'started').length;
    const errors = [...new Set(started.filter((state) => state !== 'started'))];
    return JSON.stringify({ number, errors });
  },
  many_threads: ({ count }) => Promise.all(Array.from({ length: count }, () => new Promise((done, fail) => {
    const worker = new Worker('setInterval(() => {}, 1000); require("node:worker_threads").parentPort.postMessage(1)', { eval: true });
    worker.on('message', done);
    worker.on('error', fail);
  }))).then(() => 'ok'),
  many_descriptors: () => fill(() => fs.openSync('/dev/null'), 10_000),
  many_timers: () => {
    for (let n = 0; n < 100_000; n++) setInterval(() => {}, 1);
    return 'ok';
  },
};
