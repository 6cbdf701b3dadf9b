'use strict';
const { test } = require('node:test');
const assert = require('node:assert/strict');
const { serve } = require('./harness.js');

const NEVER = 'return new Promise(() => {});';
const ended = (code) => ({ code, signal: null, leftover: 0 });

for (const [name, body] of [
  ['exception', 'setTimeout(() => { throw new TypeError("loose") }, 1);'],
  ['rejection', 'Promise.reject(new TypeError("loose"));'],
  ['error event', 'setTimeout(() => new (require("events"))().emit("error", new TypeError("loose")), 1);'],
  ['exception a tenant listens for', 'process.on("uncaughtException", () => {}); setTimeout(() => { throw new TypeError("loose") }, 1);'],
  ['rejection a tenant listens for', 'process.on("unhandledRejection", () => {}); Promise.reject(new TypeError("loose"));'],
  ['exception after removeAllListeners', 'process.removeAllListeners(); setTimeout(() => { throw new TypeError("loose") }, 1);'],
  ['rejection after removeAllListeners', 'process.removeAllListeners("unhandledRejection"); Promise.reject(new TypeError("loose"));'],
  ['exception after process.emit was deleted', 'delete process.emit; setTimeout(() => { throw new TypeError("loose") }, 1);'],
  ['exception with require("domain")', 'require("domain"); setTimeout(() => { throw new TypeError("loose") }, 1);'],
]) {
  for (const concurrency of [1, 2]) {
    test(`uncaught ${name} crashes the invocation and the process (concurrency ${concurrency})`, async (t) => {
      const worker = await serve(t, `exports.handleEvent = () => { ${body} ${NEVER} };`, { concurrency });
      const { failed } = await worker.outcome();
      assert.deepEqual([failed.kind, failed.name, failed.message], ['CRASHED', 'TypeError', 'loose']);
      assert.match(failed.stack, /f\.js:1:/);
      assert.deepEqual(await worker.exited, ended(70));
      assert.ok(!worker.messages.some((m) => m.method === 'fault'));
    });
  }
}

for (const [name, body] of [
  ['exception', 'setTimeout(() => { throw new Error("mine") }, 1)'],
  ['rejection', '(async () => { await new Promise((d) => setTimeout(d, 1)); throw new Error("mine") })()'],
  ['event listener', 'context.signal.addEventListener("abort", () => { throw new Error("mine") })'],
]) {
  test(`an uncaught ${name} is blamed on its own invocation only`, async (t) => {
    const worker = await serve(t, `exports.handleEvent = async (event, context) => {
      console.log('in ' + event); if (event === 'culprit') { await 1; ${body} } ${NEVER} };`, { concurrency: 3 });
    // The culprit last: requests are taken in order, so the others are in flight when it fails.
    const [a, b, culprit] = [worker.invoke('a'), worker.invoke('b'), worker.invoke('culprit', { timeoutMs: 50 })];
    assert.deepEqual((await culprit).result.outcome.failed.kind, 'CRASHED');
    assert.deepEqual((await culprit).result.outcome.failed.message, 'mine');
    for (const sibling of [a, b]) assert.equal((await sibling).result.outcome.failed.kind, 'COLLATERAL');
    assert.deepEqual(await worker.exited, ended(70));
  });
}

test('a rejection after the answer is a fault, and the answer stands', async (t) => {
  const worker = await serve(t, 'exports.handleEvent = () => { setTimeout(() => Promise.reject(new Error("after")), 5); return 1 };');
  assert.deepEqual(await worker.outcome(), { value: 1 });
  const fault = await worker.message((m) => m.method === 'fault');
  assert.deepEqual([fault.params.failure.kind, fault.params.failure.message], ['CRASHED', 'after']);
  assert.deepEqual(await worker.exited, ended(70));
});

for (const concurrency of [1, 2]) {
  test(`what a finished invocation left behind does not touch the next one (concurrency ${concurrency})`, async (t) => {
    const worker = await serve(t, `let crashed; const crash = new Promise((resolve) => { crashed = resolve });
      exports.handleEvent = async (event) => {
        if (event === 'leaves') { setTimeout(() => { setImmediate(crashed); throw new Error('leftover') }, 20); return 1 }
        await crash; return 2 };`, { concurrency });
    assert.deepEqual(await worker.outcome('leaves'), { value: 1 });
    assert.deepEqual(await worker.outcome('stays'), { value: 2 });
    const fault = await worker.message((m) => m.method === 'fault');
    assert.deepEqual([fault.params.failure.message, fault.params.exiting], ['leftover', false]);
  });
}

test('a crash after a denial leaves the denial standing', async (t) => {
  const worker = await serve(t, `exports.handleEvent = (event, context) => {
    try { context.deny('no') } catch {} Promise.reject(new Error('loose')); ${NEVER} };`);
  assert.deepEqual(await worker.outcome(), { denied: { reason: 'no', code: '' } });
  await worker.message((m) => m.method === 'fault');
  assert.deepEqual(await worker.exited, ended(70));
});

for (const [name, body, code] of [
  ['process.exit(0)', 'process.exit(0)', 0],
  ['process.exit(3)', 'process.exit(3)', 3],
  ['process.exit from an import', 'import("node:process").then(({ exit }) => exit(4))', 4],
  ['process.reallyExit(5)', 'process.reallyExit(5)', 5],
  ['process.exit after Error was replaced', 'globalThis.Error = class { constructor() { throw 1 } }; process.exit(6)', 6],
  ['process.reallyExit after Error was replaced', 'globalThis.Error = () => {}; process.reallyExit(7)', 7],
  ['process.exit with a listener that throws', 'process.on("exit", () => { throw new Error("x") }); process.exit(0)', 1],
]) {
  test(`${name} answers first`, async (t) => {
    const worker = await serve(t, `exports.handleEvent = () => { ${body}; ${NEVER} };`);
    const { failed } = await worker.outcome();
    assert.deepEqual([failed.kind, failed.name], ['CRASHED', 'ProcessExit']);
    assert.match(failed.message, /^process\.exit\(\d\) was called$/);
    assert.match(failed.stack, /f\.js/);
    assert.deepEqual(await worker.exited, ended(code));
  });
}

for (const later of ['setImmediate', 'queueMicrotask', 'process.nextTick']) {
  test(`5 MB followed by process.exit in ${later} arrive whole or as a clean failure`, async (t) => {
    const worker = await serve(t, `exports.handleEvent = async () => { ${later}(() => process.exit(0)); return 'x'.repeat(5e6) };`);
    const outcome = await worker.outcome();
    if (outcome.failed) assert.equal(outcome.failed.name, 'ProcessExit');
    else assert.equal(outcome.value.length, 5e6);
    if (later === 'setImmediate') assert.ok(outcome.value);
    assert.deepEqual(await worker.exited, ended(0));
  });
}

test('shutdown answers what is in flight', async (t) => {
  const worker = await serve(t, `process.on('exit', () => { process.exitCode = 9 }); exports.handleEvent = () => { ${NEVER} };`);
  const reply = worker.invoke();
  assert.deepEqual((await worker.request('shutdown', {})).result, {});
  assert.equal((await reply).result.outcome.failed.kind, 'COLLATERAL');
  assert.deepEqual(await worker.exited, ended(0));
});
