'use strict';
// Starts the real shim over files in a temporary directory and plays the service's part of the protocol.

const { spawn } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');

const MAIN = path.join(__dirname, '..', 'main.js');
const LIMITS = { resultBytesMax: 10_000_000, logLinesMax: 1000, logBytesMax: 1_000_000, logLineBytesMax: 65_536 };

const frame = (message) => {
  const body = typeof message === 'string' ? message : JSON.stringify(message);
  return `Content-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`;
};

/** Of a trace that nobody else knows. */
const TRACE = { traceparent: '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00', onward: false };

class Worker {
  /** @param {import('node:test').TestContext} t @param {Record<string, string>} files @param {string[]} args */
  constructor(t, files = {}, args = []) {
    this.directory = fs.mkdtempSync(path.join(os.tmpdir(), 'chatfn-shim-'));
    for (const [name, text] of Object.entries(files)) {
      const file = path.join(this.directory, name);
      fs.mkdirSync(path.dirname(file), { recursive: true });
      fs.writeFileSync(file, text);
    }
    this.child = spawn(process.execPath, [MAIN, ...args], {
      cwd: '/', // As a worker in reserve, which has no files of an app's yet.
      env: { PATH: process.env.PATH },
      stdio: ['ignore', 'pipe', 'pipe', 'pipe', 'pipe'],
    });
    t.after(async () => {
      this.child.kill('SIGKILL');
      await this.exited;
      fs.rmSync(this.directory, { recursive: true, force: true });
    });
    this.messages = []; // Everything the shim said, in order.
    this.watchers = new Set();
    this.stdout = '';
    this.stderr = '';
    this.lastId = 0;
    this.child.stdout.on('data', (data) => (this.stdout += data));
    this.child.stderr.on('data', (data) => (this.stderr += data));
    this.child.stdio[3].on('error', () => {}); // EPIPE after an exit.
    let pending = Buffer.alloc(0);
    this.child.stdio[4].on('data', (data) => {
      pending = Buffer.concat([pending, data]);
      for (;;) {
        const header = /^Content-Length: (\d+)\r\n\r\n/.exec(pending.toString('latin1', 0, 64));
        if (header === null) break;
        const end = header[0].length + Number(header[1]);
        if (pending.length < end) break;
        this.messages.push(JSON.parse(pending.toString('utf8', header[0].length, end)));
        pending = pending.subarray(end);
      }
      this.wake();
    });
    // 'close' comes when the process is gone and every pipe was read to its end.
    this.exited = new Promise((resolve) => {
      this.child.on('close', (code, signal) => {
        this.exit = { code, signal, leftover: pending.length };
        this.wake();
        resolve(this.exit);
      });
    });
  }

  wake() {
    for (const watcher of this.watchers) watcher();
  }

  /** The first message, past or future, for which `matches` holds. */
  message(matches, what = matches.toString()) {
    return new Promise((resolve, reject) => {
      const look = () => {
        const found = this.messages.find(matches);
        if (found === undefined && this.exit === undefined) return;
        this.watchers.delete(look);
        if (found !== undefined) resolve(found);
        else reject(new Error(`exited with ${JSON.stringify(this.exit)} before ${what}; last: ${JSON.stringify(this.messages.at(-1))}; stderr: ${this.stderr}`));
      };
      this.watchers.add(look);
      look();
    });
  }

  send(message) {
    this.child.stdio[3].write(frame(message));
  }

  sendRaw(bytes) {
    this.child.stdio[3].write(bytes);
  }

  /** Sends a request; `.id` of the promise is its id. */
  request(method, params) {
    const id = `r${(this.lastId += 1)}`;
    this.send({ jsonrpc: '2.0', id, method, params });
    return Object.assign(this.message((m) => m.id === id, `an answer to ${method}`), { id });
  }

  initialize(params = {}) {
    return this.request('initialize', {
      appId: 'app1', version: 7, directory: this.directory, environment: {}, concurrency: 1, init: null, functions: [], sdk: null,
      ...params, limits: { ...LIMITS, ...params.limits },
    });
  }

  invoke(event = {}, params = {}) {
    return this.request('invoke', {
      triggerType: 'UserSentMessage', invocationId: 'inv1', attempt: 1, hops: 0, timeoutMs: 60_000, trace: TRACE, event, ...params,
    });
  }

  /** @returns {Promise<any>} */
  async outcome(event, params) {
    const reply = await this.invoke(event, params);
    if (reply.error) throw new Error(JSON.stringify(reply.error));
    return reply.result.outcome;
  }

  logs() {
    return this.messages.filter((m) => m.method === 'log').map((m) => m.params);
  }
}

const fn = (file, kind = 'cjs', more = {}) => ({ triggerType: 'UserSentMessage', blocking: true, name: 'F', file, kind, ...more });

/** A worker with one function, whose CommonJS source is given, ready to be invoked. */
async function serve(t, source, { env = {}, files, ...params } = {}) {
  const worker = new Worker(t, { 'f.js': source, ...files });
  const reply = await worker.initialize({ environment: env, functions: [fn('f.js')], ...params });
  if (reply.error) throw new Error(JSON.stringify(reply.error));
  return worker;
}

module.exports = { TRACE, Worker, fn, frame, serve };
