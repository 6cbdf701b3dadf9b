'use strict';
const { test } = require('node:test');
const assert = require('node:assert/strict');
const path = require('node:path');
const { Worker, fn, serve } = require('./harness.js');

const FORMS = {
  'a published top-level declaration': ['cjs', 'async function handleEvent(e) { return e.n + 1 }\nexports.handleEvent = handleEvent;'],
  'exports.handleEvent': ['cjs', 'exports.handleEvent = (e) => e.n + 1;'],
  'module.exports = function': ['cjs', 'module.exports = async (e) => e.n + 1;'],
  'module.exports.default': ['cjs', 'exports.__esModule = true; exports.default = (e) => e.n + 1;'],
  'a method that uses this': ['cjs', 'exports.by = 1; exports.handleEvent = function (e) { return e.n + this.by };'],
  'default.handleEvent': ['cjs', 'exports.default = { by: 1, handleEvent(e) { return e.n + this.by } };'],
  'CommonJS with top-level await': ['cjs-async',
    'module.exports.__chatfnLoading = (async () => { const by = await 1; exports.handleEvent = (e) => e.n + by; })();'],
  'CommonJS with top-level await that replaces module.exports': ['cjs-async',
    'module.exports.__chatfnLoading = (async () => { const by = await 1; module.exports = (e) => e.n + by; })();'],
  'export function handleEvent': ['esm', 'export async function handleEvent(e) { return e.n + 1 }'],
  'export default function': ['esm', 'const by = await 1; export default (e) => e.n + by;'],
  'export default object': ['esm', 'export default { by: 1, handleEvent(e) { return e.n + this.by } };'],
};
for (const [name, [kind, source]] of Object.entries(FORMS)) {
  test(`handler form: ${name}`, async (t) => {
    const file = kind === 'esm' ? 'f.mjs' : 'f.js';
    const worker = new Worker(t, { [file]: source });
    assert.equal((await worker.initialize({ functions: [fn(file, kind)] })).error, undefined);
    assert.deepEqual(await worker.outcome({ n: 41 }), { value: 42 });
  });
}

test('the directory and the environment are there before any tenant code, as if the process had been started with them', async (t) => {
  const worker = await serve(t, `
    const seen = [process.cwd(), process.env.SECRET, new Date(0).getHours(), require('fs').readFileSync('data.txt', 'utf8')];
    exports.handleEvent = (e, { env, initialization }) => [seen, initialization, env.SECRET, require.resolve('./f.js')];`, {
    env: { SECRET: 's3', TZ: 'Asia/Tokyo' },
    init: { file: 'init.js', kind: 'cjs' },
    files: { 'init.js': 'module.exports = () => [process.cwd(), process.env.SECRET];', 'data.txt': 'text' },
  });
  const { directory } = worker;
  const { value } = await worker.outcome();
  assert.deepEqual(value, [[directory, 's3', 9, 'text'], [directory, 's3'], 's3', path.join(directory, 'f.js')]);
});

test('a worker that waited in reserve shows nothing of that', async (t) => {
  const look = `({ argv: process.argv.length, main: process.mainModule === undefined })`;
  const worker = new Worker(t, {
    'f.mjs': `import dep from './dep.cjs'; export const handleEvent = () => [dep, ${look}];`,
    'g.js': `exports.handleEvent = () => [Object.keys(require.cache), ${look}];`,
    'dep.cjs': 'module.exports = 1;',
  }, ['reserve']);
  assert.equal((await worker.initialize({ functions: [fn('f.mjs', 'esm'), { ...fn('g.js'), triggerType: 'G' }] })).error, undefined);
  const fresh = { argv: 1, main: true };
  assert.deepEqual(await worker.outcome(), { value: [1, fresh] });
  const { value } = await worker.outcome({}, { triggerType: 'G' });
  assert.deepEqual([value[0].filter((file) => !file.startsWith(worker.directory)), value[1]], [[], fresh]);
});

test('a directory that is not there fails the initialization', async (t) => {
  const worker = new Worker(t, { 'f.js': 'exports.handleEvent = () => 1' });
  const { error } = await worker.initialize({ directory: '/nowhere', functions: [fn('f.js')] });
  assert.deepEqual([error.code, error.data.failure.code], [-32000, 'ENOENT']);
});

test('require finds the project\'s files and dependencies, and shares one cache', async (t) => {
  const worker = await serve(t, `
    const dep = require('dep'); const shared = require('./lib/shared'); process.chdir('/');
    exports.handleEvent = () => [dep, shared.n, typeof require, module.parent?.filename, require.main === undefined];`, {
    init: { file: 'init.js', kind: 'cjs' },
    files: {
      'init.js': `require('./lib/shared').n += 1;`, 'lib/shared.js': 'exports.n = 1;',
      'node_modules/dep/index.js': `module.exports = 'dep!';`,
    },
  });
  const { value } = await worker.outcome();
  assert.deepEqual(value.slice(0, 3), ['dep!', 2, 'function']);
  assert.equal(value[4], true);
});

const INITS = {
  'exports': ['cjs', 'exports.a = 1;', { a: 1 }],
  'a function as module.exports': ['cjs', 'module.exports = async () => ({ a: 2 });', { a: 2 }],
  'initialize that returns nothing': ['cjs', 'exports.initialize = async () => { exports.a = 3 };', { a: 3 }],
  'top-level await': ['cjs-async', 'exports.__chatfnLoading = (async () => { exports.a = await 4 })();', { a: 4 }],
  'default of an ES module': ['esm', 'export default () => ({ a: 5 });', { a: 5 }],
  'a namespace': ['esm', 'export const a = await 6;', { a: 6 }],
};
for (const [name, [kind, source, expected]] of Object.entries(INITS)) {
  test(`initialization value: ${name}`, async (t) => {
    const file = kind === 'esm' ? 'init.mjs' : 'init.js';
    const worker = await serve(t, 'exports.handleEvent = (e, { initialization }) => initialization;', {
      init: { file, kind }, files: { [file]: source },
    });
    assert.deepEqual(await worker.outcome(), { value: expected });
  });
}

test('initialization that throws names its phase, file and error', async (t) => {
  const worker = new Worker(t, {
    'init.js': 'module.exports = async () => { const e = new TypeError("no db"); e.code = "EDB"; throw e }',
    'f.js': 'exports.handleEvent = () => 1',
  });
  const { error } = await worker.initialize({ init: { file: 'init.js', kind: 'cjs' }, functions: [fn('f.js')] });
  assert.equal(error.code, -32000);
  assert.equal(error.data.phase, 'init');
  assert.equal(error.data.file, 'init.js');
  const { failure } = error.data;
  assert.deepEqual([failure.kind, failure.name, failure.message, failure.code], ['INIT_FAILED', 'TypeError', 'no db', 'EDB']);
  assert.match(failure.stack, /init\.js:1:/);
  assert.equal((await worker.invoke()).error.code, -32600);
});

for (const [name, source, message] of [
  ['throws on load', 'throw new RangeError("bad module")', /^bad module$/],
  ['does not parse', 'const const = 1;', /Unexpected token/],
  ['requires what is missing', 'require("nowhere")', /Cannot find module 'nowhere'/],
  ['has no handler', 'exports.a = 1; exports.b = 2;',
    /^f\.js: no handler found: declare `function handleEvent\(event, context\)` or export one \(exports found: a, b\)$/],
  ['exports null', 'module.exports = null', /exports found: none/],
]) {
  test(`a function's module that ${name} fails the load phase`, async (t) => {
    const worker = new Worker(t, { 'f.js': source });
    const { error } = await worker.initialize({ functions: [fn('f.js')] });
    assert.equal(error.code, -32000);
    assert.deepEqual([error.data.phase, error.data.file, error.data.failure.kind], ['load', 'f.js', 'INIT_FAILED']);
    assert.match(error.data.failure.message, message);
  });
}

test('a stray rejection during initialization fails it and ends the process', async (t) => {
  const worker = new Worker(t, { 'init.js': 'Promise.reject(new Error("stray")); module.exports = () => new Promise(() => {});' });
  const { error } = await worker.initialize({ init: { file: 'init.js', kind: 'cjs' } });
  assert.equal(error.data.failure.message, 'stray');
  assert.equal((await worker.exited).code, 70);
});

test('process.exit during initialization answers first', async (t) => {
  const worker = new Worker(t, { 'init.js': 'process.exit(3)' });
  const { error } = await worker.initialize({ init: { file: 'init.js', kind: 'cjs' } });
  assert.equal(error.data.failure.name, 'ProcessExit');
  assert.equal((await worker.exited).code, 3);
});
