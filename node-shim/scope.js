'use strict';
// Which invocations are in flight, and which one the running code belongs to.

const { AsyncLocalStorage, getStore, mapDelete, mapForEach, mapGet, mapSet, runWithStore } = require('./primordials.js');

/** @typedef {import('./invocation.js').Invocation} Invocation */

/** @type {Map<number, Invocation>} */
const inFlight = new Map();
let count = 0;
let concurrencyMax = 1;
/** With one invocation at a time: that one. @type {Invocation | null} */
let only = null;
/** @type {import('node:async_hooks').AsyncLocalStorage<number> | null} */
let storage = null;

/** @param {number} concurrency */
function setConcurrency(concurrency) {
  concurrencyMax = concurrency;
  // On Node 20 async context slows every promise down, so it is paid for only where one variable is not enough.
  if (concurrency > 1) storage = new AsyncLocalStorage();
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
  return storage === null ? body() : runWithStore(storage, invocation.seq, body);
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
  if (storage === null) return only;
  return mapGet(inFlight, getStore(storage)) ?? null;
}

/** `visit` may answer, and so remove, what it is given. @param {(invocation: Invocation) => void} visit */
const forEach = (visit) => mapForEach(inFlight, visit);

module.exports = { add, current, enter, forEach, isFull, remove, setConcurrency };
