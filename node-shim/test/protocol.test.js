'use strict';
const { test } = require('node:test');
const assert = require('node:assert/strict');
const { TRACE, Worker, fn, frame, serve } = require('./harness.js');

const ECHO = 'exports.handleEvent = (event) => ({ echo: event });';

test('a handshake: ready, initialize, invoke, shutdown', async (t) => {
  const worker = new Worker(t, { 'f.js': ECHO });
  const ready = await worker.message((m) => m.method === 'ready');
  assert.equal(ready.params.node, process.version);
  const initialized = await worker.initialize({ functions: [fn('f.js')] });
  assert.ok(initialized.result.initMs >= 0);
  assert.deepEqual(worker.messages.slice(1), [{ jsonrpc: '2.0', method: 'initializing', params: {} }, initialized]);
  const reply = await worker.invoke({ text: 'grüße 🐈 \u2028' });
  assert.deepEqual(reply.result.outcome, { value: { echo: { text: 'grüße 🐈 \u2028' } } });
  assert.ok(reply.result.usage.cpuMicros >= 0);
  assert.ok(reply.result.usage.rssBytes > 1e6);
  assert.ok(reply.result.usage.peakRssBytes > 1e6);
  assert.deepEqual((await worker.request('shutdown', {})).result, {});
  assert.deepEqual(await worker.exited, { code: 0, signal: null, leftover: 0 });
  assert.equal(worker.stdout + worker.stderr, '');
});

test('frames may be cut anywhere and may share a chunk', async (t) => {
  const worker = await serve(t, ECHO, { concurrency: 50 });
  const params = { triggerType: 'UserSentMessage', invocationId: 'i', attempt: 1, hops: 0, timeoutMs: 1000, trace: TRACE };
  const invoke = (id, event) => frame({ jsonrpc: '2.0', id, method: 'invoke', params: { ...params, event } });
  worker.sendRaw(invoke('a1', 1) + invoke('a2', 2) + invoke('a3', 'ü'));
  for (const id of ['a1', 'a2', 'a3']) await worker.message((m) => m.id === id);
  // One byte at a time: splits the header and the two bytes of the umlaut.
  for (const byte of Buffer.from(invoke('b', 'ü'))) {
    await new Promise((done) => worker.child.stdio[3].write(Buffer.from([byte]), done));
  }
  assert.deepEqual((await worker.message((m) => m.id === 'b')).result.outcome, { value: { echo: 'ü' } });
  const large = 'x'.repeat(3_000_000);
  worker.sendRaw(invoke('c', large) + invoke('d', 4));
  assert.equal((await worker.message((m) => m.id === 'c')).result.outcome.value.echo, large);
  assert.deepEqual((await worker.message((m) => m.id === 'd')).result.outcome, { value: { echo: 4 } });
});

test('requests out of order or unknown are refused with the codes of JSON-RPC', async (t) => {
  const worker = new Worker(t, { 'f.js': ECHO });
  assert.equal((await worker.invoke()).error.code, -32600);
  assert.equal((await worker.request('initialize', { appId: 1 })).error.code, -32602);
  const numbers = await worker.initialize({ environment: { A: '1', B: 2 } });
  assert.deepEqual([numbers.error.code, numbers.error.message], [-32602, 'environment.B must be a string']);
  await worker.initialize({ functions: [fn('f.js')] });
  assert.equal((await worker.initialize()).error.code, -32600);
  assert.equal((await worker.request('reboot', {})).error.code, -32601);
  assert.equal((await worker.invoke({}, { triggerType: 'Nope' })).error.code, -32602);
  assert.equal((await worker.invoke({}, { timeoutMs: 'soon' })).error.code, -32602);
  for (const trace of [undefined, null, {}, { traceparent: 1, onward: true }, { ...TRACE, tracestate: 1 }]) {
    assert.equal((await worker.invoke({}, { trace })).error.code, -32602);
  }
  worker.send('{"jsonrpc":');
  await worker.message((m) => m.error?.code === -32700);
  worker.send('[]');
  await worker.message((m) => m.id === null && m.error?.code === -32600);
  worker.send({ jsonrpc: '2.0', method: 'unknown notification' });
  assert.deepEqual(await worker.outcome(1), { value: { echo: 1 } });
});

test('more invocations than the concurrency are refused', async (t) => {
  const worker = await serve(t, 'exports.handleEvent = () => new Promise(() => {});');
  worker.invoke().catch(() => {});
  assert.equal((await worker.invoke()).error.code, -32600);
});

for (const [name, bytes] of [
  ['a header that is none', 'Hello\r\n\r\n'],
  ['a header without a number', 'Content-Length: \r\n\r\n'],
  ['a frame over 64 MiB', `Content-Length: ${64 * 1024 * 1024 + 1}\r\n\r\n`],
]) {
  test(`${name} ends the process with 71`, async (t) => {
    const worker = new Worker(t);
    await worker.message((m) => m.method === 'ready');
    worker.sendRaw(bytes);
    assert.equal((await worker.exited).code, 71);
  });
}

test('the process ends when the service hangs up', async (t) => {
  const worker = await serve(t, 'setInterval(() => {}, 1000); exports.handleEvent = () => new Promise(() => {});');
  worker.invoke().catch(() => {});
  worker.child.stdio[3].end();
  assert.equal((await worker.exited).code, 0);
});
