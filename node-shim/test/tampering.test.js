'use strict';
const { test } = require('node:test');
const assert = require('node:assert/strict');
const { serve } = require('./harness.js');

const TAMPER = `
  const seen = [];
  const spoil = (object, key) => {
    try { Object.defineProperty(object, key, { configurable: true, writable: true, value() { seen[seen.length] = key; return 'spoiled' } }) } catch {}
  };
  const { defineProperty, getOwnPropertyNames } = Object;
  module.exports = { seen, tamper() {
    for (const k of ['stringify', 'parse']) spoil(JSON, k);
    for (const k of ['then', 'catch', 'finally']) spoil(Promise.prototype, k);
    for (const k of ['resolve', 'all']) spoil(Promise, k);
    for (const k of ['get', 'set', 'has', 'delete', 'forEach']) { spoil(Map.prototype, k); spoil(WeakMap.prototype, k) }
    for (const k of ['from', 'alloc', 'allocUnsafe', 'allocUnsafeSlow', 'byteLength', 'concat']) spoil(Buffer, k);
    for (const k of ['write', 'utf8Write', 'utf8Slice', 'toString', 'copy', 'slice', 'subarray']) spoil(Buffer.prototype, k);
    for (const k of ['set', 'subarray', 'slice']) spoil(Object.getPrototypeOf(Uint8Array.prototype), k);
    defineProperty(Object.getPrototypeOf(Uint8Array.prototype), 'byteLength', { configurable: true, get() { seen[seen.length] = 'byteLength'; return 0 } });
    for (const k of ['setTimeout', 'clearTimeout', 'setInterval', 'setImmediate', 'queueMicrotask', 'AbortController', 'DOMException',
      'TextEncoder', 'Map', 'Uint8Array', 'Error', 'String', 'Promise', 'performance']) spoil(globalThis, k);
    for (const k of ['push', 'join', 'slice', 'map', 'forEach']) spoil(Array.prototype, k);
    for (const k of ['indexOf', 'slice', 'startsWith', 'toWellFormed', 'replace', 'split']) spoil(String.prototype, k);
    for (const k of ['call', 'bind']) spoil(Function.prototype, k);
    // Not \`apply\`: with async hooks on, Node 20 itself calls it on its way to the socket's callback, and aborts. The tenant's own loss.
    for (const k of ['writeSync', 'write']) spoil(require('fs'), k);
    for (const k of ['inspect', 'format', 'formatWithOptions']) spoil(require('util'), k);
    for (const k of ['exit', 'reallyExit', 'cpuUsage', 'resourceUsage', 'memoryUsage', 'hrtime']) spoil(process, k);
    for (const k of ['apply', 'get', 'construct']) spoil(Reflect, k);
    for (const k of ['now']) spoil(Date, k);
    for (const k of ['keys', 'freeze', 'hasOwn']) spoil(Object, k);
    for (const k of ['run', 'getStore', '_enable', 'enterWith']) spoil(require('async_hooks').AsyncLocalStorage.prototype, k);
    spoil(RegExp.prototype, 'exec'); spoil(Number, 'isInteger'); spoil(Math, 'floor'); spoil(Array, 'isArray'); spoil(Atomics, 'wait');
    defineProperty(Object.prototype, 'toJSON', { configurable: true, writable: true, value() { seen[seen.length] = 'toJSON'; return this } });
    for (const k of ['id', 'method', 'params', 'idJson', 'event']) {
      defineProperty(Object.prototype, k, { configurable: true, get() { seen[seen.length] = 'proto ' + k; return 'x' }, set() {} });
    }
    spoil(Array.prototype, Symbol.iterator); // Last: the loops above need it.
    seen.length = 0;
  } };`;

for (const concurrency of [1, 2]) {
  test(`a tenant that replaces every primordial neither breaks nor sees the protocol (concurrency ${concurrency})`, async (t) => {
    const worker = await serve(t, `
      const { seen, tamper } = require('./tamper.js');
      exports.handleEvent = async (event, context) => {
        if (event === 'tamper') { tamper(); return 'done' }
        if (event === 'throw') throw new TypeError('oops');
        if (event === 'deny') context.deny('no', { code: 'c', data: 'd' });
        if (event === 'log') { console.log('still %s', 'here'); context.log.warn('w'); return context.signal.aborted }
        if (event === 'seen') { let all = ''; for (let i = 0; i < seen.length; i++) all += (typeof seen[i] === 'symbol' ? 'iterator' : seen[i]) + ' '; return all }
        if (event === 'crash') { (async () => { throw new TypeError('bad') })(); return new (async () => {}).constructor.prototype.constructor };
        return event;
      };`, { files: { 'tamper.js': TAMPER }, concurrency });
    assert.deepEqual(await worker.outcome('tamper'), { value: 'done' });
    assert.deepEqual(await worker.outcome('plain'), { value: 'plain' });
    assert.deepEqual((await worker.outcome('throw')).failed.message, 'oops');
    assert.deepEqual(await worker.outcome('deny'), { denied: { reason: 'no', code: 'c', data: 'd' } });
    assert.deepEqual(await worker.outcome('log'), { value: false });
    assert.deepEqual(worker.logs().map((l) => l.text), ['still here', 'w']);
    assert.deepEqual(await worker.outcome('x'.repeat(300_000)), { value: 'x'.repeat(300_000) });
    assert.equal((await worker.request('nope', {})).error.code, -32601);
    const { value } = await worker.outcome('seen');
    // Node's own code may stumble over an accessor on Object.prototype; frames, ids and promises must not have passed by.
    assert.doesNotMatch(value, /stringify|parse|then|byteLength|write|Write|toJSON|utf8|getStore|_enable|proto (id|method|params)/);
    worker.send({ jsonrpc: '2.0', id: 'end', method: 'shutdown', params: {} });
    assert.equal((await worker.exited).code, 0);
  });
}

test('a promise that hides its class is awaited without the replaced then', async (t) => {
  const worker = await serve(t, `exports.handleEvent = () => {
    Promise.prototype.then = function () { throw new Error('intercepted') };
    Object.defineProperty(Promise.prototype, 'constructor', { get() { return Object } });
    return (async () => 5)(); };`);
  assert.deepEqual(await worker.outcome(), { value: 5 });
  assert.deepEqual(await worker.outcome(), { value: 5 });
});

test('a tenant finds no trace of the shim\'s modules', async (t) => {
  const worker = await serve(t, `
    const hooks = require('async_hooks');
    exports.handleEvent = (event, context) => {
      const paths = []; const functions = [];
      for (let m = module; m; m = m.parent) paths.push(m.filename);
      Error.prepareStackTrace = (e, sites) => { for (const s of sites) functions.push(s.getFunction(), s.getThis()); return '' };
      new Error().stack; delete Error.prepareStackTrace;
      const ours = module.constructor.prototype;
      const foreign = functions.filter((f) => f !== undefined && f !== null && f !== exports.handleEvent && f !== exports && f !== globalThis);
      const resource = hooks.executionAsyncResource();
      return {
        cache: Object.keys(require.cache).filter((f) => f.includes('node-shim')), argv: process.argv.length, main: typeof require.main,
        mainModule: typeof process.mainModule, paths: paths.filter((p) => p.includes('node-shim')), foreign: foreign.length,
        handles: process._getActiveHandles().map((h) => h.constructor.name + h.fd).filter((h) => /Socket|Pipe/.test(h)),
        // Async context stores numbers under its symbols (on Node 20), never an invocation.
        objects: Object.getOwnPropertySymbols(resource).filter((s) => typeof resource[s] !== 'number').length,
      };
    };`);
  const { value } = await worker.outcome();
  assert.deepEqual(value, {
    cache: [], argv: 1, main: 'undefined', mainModule: 'undefined', paths: [], foreign: 0, handles: [],
    objects: 0,
  });
});
