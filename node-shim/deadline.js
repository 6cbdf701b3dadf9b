'use strict';
// `context.signal` and `context.remainingMs()`. Nothing is allocated and no timer runs until a handler asks for the signal:
// it is the service that ends an invocation which overstays.

const {
  IntrinsicDOMException, abort, clearTimeout, floor, monotonic, newAbortController, setTimeout, signalOf,
} = require('./primordials.js');
const scope = require('./scope.js');

/** @typedef {import('./invocation.js').Invocation} Invocation */

const TIMER_MS_MAX = 2 ** 31 - 1;

/** @param {Invocation} invocation @returns {number} whole milliseconds, never negative */
function remainingMs(invocation) {
  const left = floor(invocation.deadline - monotonic());
  return left > 0 ? left : 0;
}

/** @param {Invocation} invocation @returns {AbortSignal} */
function signal(invocation) {
  if (invocation.controller === null) {
    invocation.controller = newAbortController();
    if (invocation.cancelled) {
      abort(invocation.controller, cancelled());
    } else if (!invocation.answered) {
      const left = remainingMs(invocation);
      if (left === 0) abort(invocation.controller, timedOut(invocation));
      else invocation.timer = setTimeout(() => expire(invocation), left < TIMER_MS_MAX ? left : TIMER_MS_MAX);
    }
  }
  return signalOf(invocation.controller);
}

/** @param {Invocation} invocation */
function expire(invocation) {
  if (invocation.answered || invocation.controller === null) return;
  const left = invocation.deadline - monotonic();
  // Timers may be early by a fraction of a millisecond, or were clamped.
  if (left > 0) invocation.timer = setTimeout(() => expire(invocation), left < TIMER_MS_MAX ? left : TIMER_MS_MAX);
  else abort(invocation.controller, timedOut(invocation));
}

/** Aborts the signal and nothing else: what the handler makes of it is its own business. @param {Invocation} invocation */
async function cancel(invocation) {
  invocation.cancelled = true;
  await undefined; // Listeners are tenant code: off the socket's stack, as handlers are.
  if (invocation.answered || invocation.controller === null) return;
  scope.enter(invocation, () => abort(invocation.controller, cancelled()));
}

/** @param {Invocation} invocation */
function disarm(invocation) {
  if (invocation.timer !== null) clearTimeout(invocation.timer);
  invocation.timer = null;
}

const cancelled = () => new IntrinsicDOMException('The invocation was cancelled', 'AbortError');
/** @param {Invocation} invocation */
const timedOut = (invocation) =>
  new IntrinsicDOMException(`The invocation exceeded its ${invocation.timeoutMs} ms`, 'TimeoutError');

module.exports = { cancel, disarm, remainingMs, signal };
