'use strict';
// `console` and `context.log`, as tenants see them: formatted here, sent by logs.js, never through stdout.

const {
  IntrinsicError, apply, formatWithOptions, freeze, indexOf, inspect, slice, toText,
} = require('./primordials.js');
const logs = require('./logs.js');
const scope = require('./scope.js');
const { INSPECT_OPTIONS, messageOf, tenantFrames } = require('./failure.js');

/** @typedef {import('./logs.js').Level} Level */
/** @typedef {import('./logs.js').Ledger} Ledger */

const OPTIONS = freeze({ ...INSPECT_OPTIONS, colors: false });
const format = formatWithOptions.bind(null, OPTIONS);

/** @type {Record<string, Level>} */
const LEVELS = { debug: 'debug', log: 'info', info: 'info', warn: 'warn', error: 'error' };

/** Replaces the methods on the one console object there is, so that every way to it leads here. */
function captureConsole() {
  const target = /** @type {any} */ (globalThis.console);
  for (const [method, level] of Object.entries(LEVELS)) {
    target[method] = named(method, (...args) => emit(ledger(), level, () => apply(format, undefined, args)));
  }
  // `table`, `count`, `time` and their kin format by themselves, then call `console.log`.
  target.dirxml = target.log;
  target.dir = named('dir', (value, options) =>
    emit(ledger(), 'info', () => inspect(value, { ...OPTIONS, customInspect: false, ...options })));
  target.trace = named('trace', (...args) => emit(ledger(), 'error', () => traceText(apply(format, undefined, args))));
  target.assert = named('assert', (condition, ...args) => {
    if (condition) return;
    emit(ledger(), 'error', () =>
      (args.length === 0 ? 'Assertion failed' : `Assertion failed: ${apply(format, undefined, args)}`));
  });
  target.group = named('group', (...args) => {
    if (args.length > 0) apply(target.log, target, args);
    const open = ledger();
    if (open.indent.length < 100) open.indent += '  ';
  });
  target.groupCollapsed = target.group;
  target.groupEnd = named('groupEnd', () => {
    const open = ledger();
    open.indent = slice(open.indent, 2);
  });
}

/**
 * `context.log`. Bound to its invocation, so that it is right even where `console` has to guess.
 * @param {import('./invocation.js').Invocation} invocation
 */
function createLog(invocation) {
  const to = (/** @type {Level} */ level) => (/** @type {any[]} */ ...args) =>
    emit(invocation.answered ? logs.outside : invocation.ledger, level, () => apply(format, undefined, args));
  return freeze({ debug: to('debug'), info: to('info'), warn: to('warn'), error: to('error') });
}

/** @returns {Ledger} */
function ledger() {
  const invocation = scope.current();
  return invocation === null ? logs.outside : invocation.ledger;
}

/**
 * Logging never fails the code that logs.
 * @param {Ledger} to
 * @param {Level} level
 * @param {() => string} text not called when nobody would see it; runs tenant code (`[util.inspect.custom]`)
 */
function emit(to, level, text) {
  if (to.silent) return;
  try {
    let line;
    try {
      line = text();
    } catch (error) {
      line = `[value that cannot be shown: ${messageOf(error)}]`;
    }
    logs.write(to, level, to.indent === '' ? line : indented(line, to.indent));
  } catch {
    // The stack is exhausted: the tenant's own next call reports that.
  }
}

/** @param {string} text @param {string} indent */
function indented(text, indent) {
  let result = '';
  for (let at = 0; ;) {
    const end = indexOf(text, '\n', at);
    if (end < 0) return result + indent + slice(text, at);
    result += indent + slice(text, at, end + 1);
    at = end + 1;
  }
}

/** @param {string} message */
function traceText(message) {
  const stack = toText(new IntrinsicError().stack);
  const frames = indexOf(stack, '\n    at ');
  return `Trace${message === '' ? '' : `: ${message}`}${frames < 0 ? '' : tenantFrames(slice(stack, frames))}`;
}

/** @param {string} name @param {(...args: any[]) => void} method */
const named = (name, method) => Object.defineProperty(method, 'name', { value: name });

module.exports = { captureConsole, createLog };
