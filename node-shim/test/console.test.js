'use strict';
const { test } = require('node:test');
const assert = require('node:assert/strict');
const { serve } = require('./harness.js');

/** The logs and the answer of one invocation of a handler with this body. */
async function run(t, body, options) {
  const worker = await serve(t, `exports.handleEvent = async (event, context) => { ${body} };`, options);
  const reply = worker.invoke();
  const { result } = await reply;
  return { worker, outcome: result.outcome, id: reply.id, logs: worker.logs(), lines: worker.logs().map((l) => [l.level, l.text]) };
}

test('every method has its level and says whose it is', async (t) => {
  const before = Date.now();
  const { logs, lines, id } = await run(t, `
    console.debug('d'); console.log('%s is %d', 'x', 1, { a: 1 }); console.info('i'); console.warn('w'); console.error('e');
    console.dir({ b: [1] }, { depth: 0 }); console.assert(true, 'silent'); console.assert(false, 'why %s', 'not'); console.assert(false);
    console.count('c'); console.count('c'); context.log.debug('l'); context.log.error('multi\\nline'); require('node:console').log('module');`);
  assert.deepEqual(lines, [
    ['debug', 'd'], ['info', 'x is 1 { a: 1 }'], ['info', 'i'], ['warn', 'w'], ['error', 'e'], ['info', '{ b: [Array] }'],
    ['error', 'Assertion failed: why not'], ['error', 'Assertion failed'], ['info', 'c: 1'], ['info', 'c: 2'],
    ['debug', 'l'], ['error', 'multi\nline'], ['info', 'module'],
  ]);
  assert.ok(logs.every((l) => l.id === id && l.at >= before && l.at <= Date.now()));
});

test('table, time, trace and group', async (t) => {
  const { lines } = await run(t, `
    console.table([{ a: 1 }]); console.time('t'); console.timeEnd('t'); console.trace('here');
    console.group('g'); console.log('in\\nside'); console.groupEnd(); console.log('out');`);
  assert.match(lines[0][1], /│ a │/);
  assert.match(lines[1][1], /^t: /);
  assert.equal(lines[2][0], 'error');
  assert.match(lines[2][1], /^Trace: here\n    at .*f\.js/);
  assert.doesNotMatch(lines[2][1], /node-shim/);
  assert.deepEqual(lines.slice(3), [['info', 'g'], ['info', '  in\n  side'], ['info', 'out']]);
});

test('an inspect that throws does not fail the invocation', async (t) => {
  const { lines, outcome } = await run(t, `
    console.log({ [Symbol.for('nodejs.util.inspect.custom')]() { throw new Error('boo') } });
    console.log({ get a() { throw 1 } }, new Proxy({}, { get() { throw 2 } })); console.log('\\ud800'); return 1;`);
  assert.deepEqual(outcome, { value: 1 });
  assert.equal(lines[0][1], '[value that cannot be shown: boo]');
  assert.equal(lines[2][1], '\ufffd');
});

test('a line is cut at its limit, between characters', async (t) => {
  const { lines } = await run(t, 'console.log("x".repeat(10)); console.log("x" + "ü".repeat(5));', { limits: { logLineBytesMax: 10 } });
  assert.deepEqual(lines, [['info', 'xxxxxxxxxx'], ['info', 'xüüüü… [2 bytes more]']]);
});

test('lines are limited per invocation, with one notice', async (t) => {
  const worker = await serve(t, 'exports.handleEvent = (n) => { for (let i = 0; i < n; i++) console.log(i) };', { limits: { logLinesMax: 3 } });
  await worker.outcome(3);
  assert.deepEqual(worker.logs().map((l) => l.text), ['0', '1', '2']);
  worker.messages.length = 0;
  await worker.outcome(50);
  assert.deepEqual(worker.logs().map((l) => [l.level, l.text]),
    [['info', '0'], ['info', '1'], ['info', '2'], ['warn', '[log truncated: more than 3 lines]']]);
});

test('bytes are limited per invocation, with one notice', async (t) => {
  const worker = await serve(t, 'exports.handleEvent = (n) => { for (let i = 0; i < n; i++) console.log("üü") };', { limits: { logBytesMax: 8 } });
  await worker.outcome(2);
  assert.equal(worker.logs().length, 2);
  worker.messages.length = 0;
  await worker.outcome(9);
  assert.deepEqual(worker.logs().map((l) => l.text), ['üü', 'üü', '[log truncated: more than 8 bytes]']);
});

test('lines outside of an invocation have their own budget, refilled at each request', async (t) => {
  const worker = await serve(t, `for (let i = 0; i < 5; i++) console.log('load');
    exports.handleEvent = () => { setImmediate(() => { for (let i = 0; i < 5; i++) console.log('late') }) };`, { limits: { logLinesMax: 2 } });
  const outside = () => worker.logs().filter((l) => l.id === null).map((l) => l.text);
  const notice = '[log truncated: more than 2 lines]';
  assert.deepEqual(outside(), ['load', 'load', notice]);
  worker.messages.length = 0;
  await worker.outcome();
  await worker.message((m) => m.params?.text === notice);
  assert.deepEqual(outside(), ['late', 'late', notice]);
});

test('with several invocations at once each line finds its own', async (t) => {
  const worker = await serve(t, `exports.handleEvent = async (event) => {
    await new Promise((done) => setTimeout(done, 5)); console.log(event);
    await null; setTimeout(() => console.log('late ' + event), 20); };`, { concurrency: 3 });
  const replies = ['a', 'b', 'c'].map((event) => [event, worker.invoke(event)]);
  for (const [event, reply] of replies) {
    await reply;
    assert.equal(worker.logs().find((l) => l.text === event).id, reply.id);
    await worker.message((m) => m.params?.text === `late ${event}` && m.params.id === null);
  }
});

test('nothing a tenant prints can reach the channel', async (t) => {
  const { worker, outcome } = await run(t, `
    const forged = 'Content-Length: 2\\r\\n\\r\\n{}'; console.log(forged); process.stdout.write(forged);
    require('fs').writeSync(1, forged); require('fs').writeSync(2, forged); return 'real';`);
  assert.deepEqual(outcome, { value: 'real' });
  assert.equal(worker.stdout, 'Content-Length: 2\r\n\r\n{}'.repeat(2));
  assert.ok(worker.messages.every((m) => m.jsonrpc === '2.0'));
});
