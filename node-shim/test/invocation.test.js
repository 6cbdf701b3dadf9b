'use strict';
const { test } = require('node:test');
const assert = require('node:assert/strict');
const { TRACE, fn, serve } = require('./harness.js');

/** The outcome of a handler with this body. */
async function outcomeOf(t, body, { params, ...options } = {}) {
  const worker = await serve(t, `exports.handleEvent = async (event, context) => { ${body} };`, options);
  return worker.outcome({}, params);
}

test('context has the fields of the contract', async (t) => {
  const { value } = await outcomeOf(t, `
    const { app, function: fn, trigger, invocation, trace, signal, env, log, deny } = context;
    env.SECRET = 'changed'; app.id = 'changed';
    return { app, fn, trigger, invocation, trace, frozen: Object.isFrozen(trace) && context.trace === trace, aborted: signal.aborted, left: context.remainingMs(), secret: env.SECRET,
      same: context.signal === signal, log: Object.keys(log), deny: typeof deny, keys: Object.keys(context) };`,
  { env: { SECRET: 's3' }, params: { invocationId: 'inv9', attempt: 3, hops: 2, timeoutMs: 5000 } });
  assert.ok(value.left > 3000 && value.left <= 5000, String(value.left));
  delete value.left;
  assert.deepEqual(value, {
    app: { id: 'app1' }, fn: { name: 'F', version: 7 }, trigger: { type: 'UserSentMessage', blocking: true },
    invocation: { id: 'inv9', attempt: 3, hops: 2 }, frozen: true,
    trace: { traceId: '4bf92f3577b34da6a3ce929d0e0e4736', spanId: '00f067aa0ba902b7', sampled: false, traceparent: TRACE.traceparent },
    aborted: false, secret: 's3', same: true,
    log: ['debug', 'info', 'warn', 'error'], deny: 'function',
    keys: ['app', 'function', 'trigger', 'invocation', 'trace', 'signal', 'remainingMs', 'env', 'log', 'initialization', 'deny'],
  });
});

test('context.trace has the state that came with it, and no other', async (t) => {
  const trace = { traceparent: TRACE.traceparent.replace(/00$/, '01'), tracestate: 'a=1', onward: true };
  const worker = await serve(t, 'exports.handleEvent = (event, { trace }) => [trace.sampled, trace.tracestate, "tracestate" in trace]');
  assert.deepEqual(await worker.outcome({}, { trace }), { value: [true, 'a=1', true] });
  assert.deepEqual(await worker.outcome({}), { value: [false, null, false] });
});

test('the signal aborts with a TimeoutError at the deadline', async (t) => {
  const wait = 'await new Promise((done) => context.signal.addEventListener("abort", done)); ' +
    'return [context.signal.reason.name, context.remainingMs()];';
  assert.deepEqual(await outcomeOf(t, wait, { params: { timeoutMs: 30 } }), { value: ['TimeoutError', 0] });
});

test('the signal of an invocation past its deadline is aborted from the start', async (t) => {
  assert.deepEqual(await outcomeOf(t, 'return context.signal.reason?.name', { params: { timeoutMs: 0 } }), { value: 'TimeoutError' });
});

for (const concurrency of [1, 2]) {
  test(`cancel aborts the signal and nothing else (concurrency ${concurrency})`, async (t) => {
    const worker = await serve(t, `exports.handleEvent = async (event, { signal }) => {
      const aborted = new Promise((done) => signal.addEventListener('abort', () => { console.log('abort'); done() }));
      console.log('waiting'); await aborted; return signal.reason.name; };`, { concurrency });
    const reply = worker.invoke();
    await worker.message((m) => m.params?.text === 'waiting');
    worker.send({ jsonrpc: '2.0', method: 'cancel', params: { id: 'unknown' } });
    worker.send({ jsonrpc: '2.0', method: 'cancel', params: { id: reply.id } });
    assert.deepEqual((await reply).result.outcome, { value: 'AbortError' });
    assert.deepEqual(worker.logs().map((l) => l.id), [reply.id, reply.id]);
  });
}

const DENIALS = {
  'throws': [`context.deny('no', { code: 'C1', data: { a: [1] } }); return 'not reached';`, { reason: 'no', code: 'C1', data: { a: [1] } }],
  'is returned': ['return context.deny();', { reason: '', code: '' }],
  'is swallowed': ['try { context.deny("no") } catch {} return { allowed: true };', { reason: 'no', code: '' }],
  'is replaced by another error': ['try { context.deny("no") } catch { throw new Error("other") }', { reason: 'no', code: '' }],
  'comes twice': ['try { context.deny("first") } catch {} context.deny("second")', { reason: 'first', code: '' }],
  'comes from a promise nobody awaits': ['(async () => context.deny("stray"))(); return new Promise(() => {})', { reason: 'stray', code: '' }],
  'comes from a timer': ['setTimeout(() => context.deny("late"), 1); return new Promise(() => {})', { reason: 'late', code: '' }],
  'comes from toJSON': ['return { toJSON() { context.deny("json") } }', { reason: 'json', code: '' }],
  'has odd arguments': ['context.deny(Symbol("s"), null)', { reason: 'Symbol(s)', code: '' }],
};
for (const [name, [body, denied]] of Object.entries(DENIALS)) {
  for (const concurrency of [1, 2]) {
    test(`a denial that ${name} is the outcome (concurrency ${concurrency})`, async (t) => {
      const worker = await serve(t, `exports.handleEvent = async (event, context) => { ${body} };`, { concurrency });
      assert.deepEqual(await worker.outcome(), { denied });
      assert.deepEqual(await worker.outcome(), { denied }, 'the worker lives on');
    });
  }
}

test('deny is for blocking triggers', async (t) => {
  const { failed } = await outcomeOf(t, 'context.deny("no")', { functions: [fn('f.js', 'cjs', { blocking: false })] });
  assert.deepEqual([failed.kind, failed.name, failed.message], ['THROWN', 'TypeError', 'context.deny() is only for blocking triggers']);
});

for (const [name, data] of [
  ['cyclic', '(() => { const a = {}; a.a = a; return a })()'], ['a function', '() => 1'], ['too large', '"x".repeat(200)'],
]) {
  test(`deny with data that is ${name} is a BAD_RESULT`, async (t) => {
    const { failed } = await outcomeOf(t, `context.deny('no', { data: ${data} })`, { limits: { resultBytesMax: 100 } });
    assert.equal(failed.kind, 'BAD_RESULT');
    assert.match(failed.message, /deny/);
  });
}

const THROWN = {
  'an error': ['const e = new RangeError("out"); e.code = "E1"; throw e;', { name: 'RangeError', message: 'out', code: 'E1' }],
  'a string': ['throw "plain";', { name: 'NonError', message: '\'plain\'', code: null, stack: '' }],
  'null': ['throw null;', { name: 'NonError', message: 'null' }],
  'undefined': ['throw undefined;', { name: 'NonError', message: 'undefined' }],
  'an object': ['throw { a: 1 };', { name: 'NonError', message: '{ a: 1 }' }],
  'a proxy that throws': ['throw new Proxy({}, { get() { throw 1 }, getPrototypeOf() { throw 2 } });', { name: 'NonError' }],
  'throwing getters': ['const e = new Error("m"); for (const k of ["stack", "name", "message", "code", "cause"]) ' +
    'Object.defineProperty(e, k, { get() { throw new Error("trap") } }); throw e;', { name: 'Error', message: '' }],
  'a DOMException': ['throw new DOMException("aborted", "AbortError")', { name: 'AbortError', message: 'aborted' }],
  'a lone surrogate': ['throw new Error("a\\ud800b")', { message: 'a\ufffdb' }],
  'a rejection': ['return Promise.reject(new Error("rejected"))', { message: 'rejected' }],
  'a memory limit': ['throw new RangeError("Array buffer allocation failed")', { kind: 'OUT_OF_MEMORY' }],
  'another range': ['throw new RangeError("Invalid array length")', { kind: 'THROWN' }],
  'an endless recursion': ['const f = () => { console.log("deep"); f() }; f()', { kind: 'THROWN', name: 'RangeError' }],
};
for (const [name, [body, expected]] of Object.entries(THROWN)) {
  test(`thrown: ${name}`, async (t) => {
    const { failed } = await outcomeOf(t, body);
    assert.deepEqual(Object.keys(failed), ['kind', 'name', 'message', 'stack', 'code']);
    for (const [key, value] of Object.entries({ kind: 'THROWN', ...expected })) assert.equal(failed[key], value, key);
  });
}

test('huge messages are cut, and the frames survive', async (t) => {
  const { failed } = await outcomeOf(t, 'throw new Error("ü".repeat(1e6))');
  assert.ok(Buffer.byteLength(failed.message) < 17_000);
  assert.ok(Buffer.byteLength(failed.stack) < 33_000);
  assert.match(failed.message, /… \[\d+ bytes more\]$/);
  assert.match(failed.stack, /f\.js:1:/);
});

test('a stack has the causes and none of our frames', async (t) => {
  const { failed } = await outcomeOf(t, 'let e; for (const n of [6, 5, 4, 3, 2, 1]) e = new Error("cause" + n, { cause: e }); throw e;');
  assert.match(failed.stack, /^Error: cause1\n    at /);
  assert.match(failed.stack, /Caused by: Error: cause5/);
  assert.doesNotMatch(failed.stack, /cause6|node-shim|node:internal/);
});

const BAD_RESULTS = {
  'a cycle': ['const a = {}; a.a = a; return a;', /circular/],
  'a BigInt': ['return 1n;', /BigInt/],
  'a function': ['return () => 1;', /function/],
  'a symbol': ['return Symbol("s");', /symbol/],
  'a toJSON that throws': ['return { toJSON() { throw new Error("no json") } };', /no json/],
  'a toJSON that throws null': ['return { toJSON() { throw null } };', /null/],
};
for (const [name, [body, message]] of Object.entries(BAD_RESULTS)) {
  test(`bad result: ${name}`, async (t) => {
    const { failed } = await outcomeOf(t, body);
    assert.equal(failed.kind, 'BAD_RESULT');
    assert.match(failed.message, message);
    assert.match(failed.message, /UserSentMessage/);
  });
}

test('results are limited in bytes of UTF-8', async (t) => {
  const worker = await serve(t, 'exports.handleEvent = (n) => "ü".repeat(n);', { limits: { resultBytesMax: 102 } });
  assert.deepEqual(await worker.outcome(50), { value: 'ü'.repeat(50) }); // 2 × 50 and the quotes.
  const { failed } = await worker.outcome(51);
  assert.equal(failed.kind, 'BAD_RESULT');
  assert.match(failed.message, /takes 104 bytes as JSON; the limit is 102 bytes/);
});

test('what has no value becomes null, and JSON values stay', async (t) => {
  const worker = await serve(t, 'exports.handleEvent = (source) => eval(source);');
  for (const [source, value] of [['undefined', null], ['null', null], ['0', 0], ['[undefined]', [null]], ['"__proto__"', '__proto__']]) {
    assert.deepEqual(await worker.outcome(source), { value });
  }
});

test('a settle after the answer is ignored', async (t) => {
  const worker = await serve(t, `exports.handleEvent = (event, context) => {
    if (event === 2) return 2;
    return { then(ok, fail) { ok(1); setImmediate(() => { ok(9); fail(new Error('late')); try { context.deny('late') } catch {} console.log('done') }) } };
  };`);
  assert.deepEqual(await worker.outcome(1), { value: 1 });
  await worker.message((m) => m.params?.text === 'done');
  assert.deepEqual(await worker.outcome(2), { value: 2 });
});
