'use strict';
// Which invocations are in flight, and which one the running code belongs to.

const { AsyncLocalStorage, define, getStore, mapDelete, mapForEach, mapGet, mapSet, runWithStore } = require('./primordials.js');

/** @typedef {import('./invocation.js').Invocation} Invocation */

/** @type {Map<number, Invocation>} */
const inFlight = new Map();
let count = 0;
let concurrencyMax = 1;
/** With one invocation at a time: that one. @type {Invocation | null} */
let only = null;
/**
 * Also with one invocation at a time: what an earlier one left running must not be blamed on it. Costs little per call (a few µs
 * on Node 20, less on 24), and nothing else can tell the two apart.
 * @type {import('node:async_hooks').AsyncLocalStorage<number>}
 */
const storage = new AsyncLocalStorage();
// `run` asks the instance for these: a tenant may replace the prototype's.
for (const name of ['getStore', '_enable']) {
  const method = /** @type {any} */ (AsyncLocalStorage.prototype)[name];
  if (method !== undefined) define(storage, name, method);
}

/** @param {number} concurrency */
function setConcurrency(concurrency) {
  concurrencyMax = concurrency;
}

const isFull = () => count >= concurrencyMax;

/**
 * Runs `body` as the invocation's code.
 * @template T
 * @param {Invocation} invocation
 * @param {() => T} body
 * @returns {T}
 */
function enter(invocation, body) {
  // The number, not the invocation: on Node 20 tenants can read stores from `executionAsyncResource()`.
  return runWithStore(storage, invocation.seq, body);
}

/** @param {Invocation} invocation */
function add(invocation) {
  mapSet(inFlight, invocation.seq, invocation);
  count += 1;
  only = invocation;
}

/** @param {Invocation} invocation */
function remove(invocation) {
  if (!mapDelete(inFlight, invocation.seq)) return;
  count -= 1;
  only = null;
}

/** The invocation in flight that the running code belongs to. @returns {Invocation | null} */
function current() {
  const seq = getStore(storage);
  // Code that lost its context (a socket opened by the initialization script…): with one in flight, that one is the best guess.
  if (seq === undefined) return concurrencyMax === 1 ? only : null;
  return mapGet(inFlight, seq) ?? null;
}

/** Whether the running code was left behind by an invocation that was answered, while others are in flight. */
function isLeftover() {
  const seq = getStore(storage);
  return count > 0 && seq !== undefined && mapGet(inFlight, seq) === undefined;
}

/** `visit` may answer, and so remove, what it is given. @param {(invocation: Invocation) => void} visit */
const forEach = (visit) => mapForEach(inFlight, visit);

module.exports = { add, current, enter, forEach, isFull, isLeftover, remove, setConcurrency };
