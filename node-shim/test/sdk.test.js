'use strict';
const { test } = require('node:test');
const assert = require('node:assert/strict');
const { serve } = require('./harness.js');

const CHATKITTY = {
  package: 'chatkitty-platform-sdk', export: 'ChatKitty', property: 'ChatKitty',
  options: { clientId: '${ID}', clientSecret: '${SECRET}', basePath: '${BASE?}', nested: { text: 'a-${ID}-${SECRET}', n: 3, list: ['${BASE?}', '${ID}'] } },
};
const ENV = { ID: 'id1', SECRET: 's1' };
/** Stands in for the package: how it is built and asked for headers is what the real one does, which tests/e2e/sdk.rs uses. */
const PACKAGE = `
  globalThis.loaded = (globalThis.loaded ?? 0) + 1;
  exports.ChatKitty = class {
    constructor(options) { globalThis.built = (globalThis.built ?? 0) + 1; this.options = options;
      this.apiConfiguration = { baseOptions: undefined }; this.Users = { ask: async () => {
        await null; await new Promise((done) => setTimeout(done, 5)); return { ...this.apiConfiguration.baseOptions }.headers; },
        checkUserExists(name) { return [this === this.self, name]; } }; this.Users.self = this.Users;
      this.Channels = { channels: true }; } };`;

const serving = (t, body, { sdk = CHATKITTY, env = ENV, source = PACKAGE, ...more } = {}) =>
  serve(t, `exports.handleEvent = async (event, context) => { ${body} };`,
    { sdk, env, files: { [`node_modules/${sdk.package}/index.js`]: source }, ...more });

test('the SDK is loaded at its first use and built once', async (t) => {
  const worker = await serving(t, `
    const before = globalThis.loaded ?? 0; void { ...context }; JSON.stringify(context); console.log(context);
    if (event.use) { context.ChatKitty; const { ChatKitty } = context; if (ChatKitty !== context.ChatKitty) throw new Error('two'); }
    return [before, globalThis.loaded ?? 0, globalThis.built ?? 0];`);
  assert.deepEqual(await worker.outcome({}), { value: [0, 0, 0] });
  assert.deepEqual(await worker.outcome({ use: true }), { value: [0, 1, 1] });
  assert.deepEqual(await worker.outcome({ use: true }), { value: [1, 1, 1] });
});

test('options take the app\'s variables, and lose what is optional and not there', async (t) => {
  const worker = await serving(t, 'return context.ChatKitty.options');
  assert.deepEqual(await worker.outcome({}), { value: {
    clientId: 'id1', clientSecret: 's1', nested: { text: 'a-id1-s1', n: 3, list: [null, 'id1'] } } });
  const other = await serving(t, 'return context.ChatKitty.options.basePath', { env: { ...ENV, BASE: 'http://x' } });
  assert.deepEqual(await other.outcome({}), { value: 'http://x' });
});

test('the older guides\' helpers lead to the same APIs', async (t) => {
  const worker = await serving(t, `const { getUserApi, getUsersApi, getChannelApi } = context;
    return [getUserApi() === context.ChatKitty.Users, getUsersApi() === context.ChatKitty.Users, getChannelApi(),
      typeof context.getFunctionVersionsApi, typeof context.getRuntimeApi, typeof context.getApplicationApi];`);
  assert.deepEqual(await worker.outcome({}), { value: [true, true, { channels: true }, 'function', 'function', 'function'] });
});

test('the guides\' name of a method that was renamed leads to it', async (t) => {
  const worker = await serving(t, "return context.getUserApi().getUserExists('jane')");
  assert.deepEqual(await worker.outcome({}), { value: [true, 'jane'] });
});

test('each invocation\'s requests tell its own hops', async (t) => {
  const worker = await serving(t, 'return context.ChatKitty.Users.ask()', { concurrency: 2 });
  const [first, second] = await Promise.all([worker.outcome({}, { hops: 0 }), worker.outcome({}, { hops: 3 })]);
  assert.deepEqual([first, second], [{ value: { 'x-chatfn-hops': '1' } }, { value: { 'x-chatfn-hops': '4' } }]);
});

test('each invocation\'s requests tell its own trace, if others know that', async (t) => {
  const worker = await serving(t, 'Object.prototype.tracestate = "no"; return context.ChatKitty.Users.ask()', { concurrency: 2 });
  const trace = (id, more) => ({ traceparent: `00-${id.repeat(32)}-00f067aa0ba902b7-01`, onward: true, ...more });
  const traces = [trace('a'), trace('b', { tracestate: 'k=v' }), trace('c', { onward: false })];
  const told = await Promise.all(traces.slice(0, 2).map((trace) => worker.outcome({}, { trace })));
  told.push(await worker.outcome({}, { trace: traces[2] }));
  assert.deepEqual(told.map(({ value }) => [value.traceparent, value.tracestate]), [
    [traces[0].traceparent, undefined], [traces[1].traceparent, 'k=v'], [undefined, undefined]]);
});

test('missing variables are named, and their values never told', async (t) => {
  const worker = await serving(t, 'return context.getUserApi()', { env: { ID: 'id1', SECRET: '' } });
  const { failed } = await worker.outcome({});
  assert.deepEqual([failed.kind, failed.name, failed.code], ['THROWN', 'SdkUnavailable', 'SDK_NOT_CONFIGURED']);
  assert.match(failed.message, /context\.ChatKitty needs the environment variable SECRET: set/);
  assert.ok(!JSON.stringify(failed).includes('id1'));
});

test('a package that is not there is to be added', async (t) => {
  const worker = await serve(t, 'exports.handleEvent = (event, context) => context.ChatKitty', { sdk: CHATKITTY, env: ENV });
  const { failed } = await worker.outcome({});
  assert.deepEqual([failed.name, failed.code], ['SdkUnavailable', 'SDK_NOT_INSTALLED']);
  assert.match(failed.message, /needs the package chatkitty-platform-sdk: add it to the app's dependencies/);
});

for (const [what, source] of Object.entries({
  'a class': 'module.exports = class { constructor({ key }) { this.key = key } }',
  'a default export': 'exports.default = class { constructor({ key }) { this.key = key } }',
  'an arrow function': 'module.exports = ({ key }) => ({ key })',
})) {
  test(`another SDK may be ${what}`, async (t) => {
    const sdk = { package: '@acme/sdk', export: 'default', property: 'acme', options: { key: 'k-${ID}' } };
    const body = 'return [context.acme.key, context.ChatKitty, context.getUserApi, context.acme === context.acme]';
    const worker = await serving(t, body, { sdk, source });
    assert.deepEqual(await worker.outcome({}), { value: ['k-id1', null, null, true] });
  });
}

test('an export that is no class is said to be none, and what a constructor throws gets through', async (t) => {
  const none = await serving(t, 'return context.ChatKitty', { source: 'exports.ChatKitty = 7' });
  assert.match((await none.outcome({})).failed.message, /export ChatKitty of chatkitty-platform-sdk is no class or function/);
  const throws = await serving(t, 'return context.ChatKitty', { source: 'exports.ChatKitty = class { constructor() { throw new RangeError("r") } }' });
  assert.equal((await throws.outcome({})).failed.name, 'RangeError');
});

test('handlers may put a double of their own in its place', async (t) => {
  const worker = await serving(t, "'use strict'; context.ChatKitty = { mine: true }; return [context.ChatKitty, globalThis.built ?? 0]");
  assert.deepEqual(await worker.outcome({}), { value: [{ mine: true }, 0] });
});

test('what a tenant did to prototypes does not reach into other invocations\' SDK', async (t) => {
  const worker = await serving(t, `
    Array.prototype.push = Array.prototype.map = String.prototype.slice = () => { throw new Error('replaced') };
    Object.prototype.optional = true; Object.prototype.template = 'x';
    const { ChatKitty } = context; delete Object.prototype.optional; delete Object.prototype.template;
    return ChatKitty.options.clientId;`);
  assert.deepEqual(await worker.outcome({}), { value: 'id1' });
});
