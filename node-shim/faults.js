'use strict';
// Ends nobody asked for: uncaught errors and `process.exit()`. Everyone who waits gets an answer first.

const { IntrinsicError, apply, define, exit, reallyExit } = require('./primordials.js');
const { syncBuiltinESMExports } = require('node:module');
const channel = require('./channel.js');
const { deniedBy } = require('./denial.js');
const { EXIT_UNCAUGHT } = require('./exit-codes.js');
const { describe, encodeFailure, failure, show } = require('./failure.js');
const initialization = require('./initialization.js');
const { fail, refuse } = require('./invocation.js');
const scope = require('./scope.js');

/** @typedef {import('./failure.js').Failure} Failure */

let reported = false;
let leaving = false;

function install() {
  // `removeAllListeners('uncaughtException')` must not silence the report, and `setUncaughtExceptionCaptureCallback` would
  // make `require('domain')` throw (Sentry does that). Node raises both events through `process.emit`, so we stand there.
  const { emit } = process;
  define(process, 'emit', /** @this {any} */ function emitOrReport() {
    const event = arguments[0];
    if (event === 'uncaughtException' || event === 'unhandledRejection') {
      uncaught(arguments[1]);
      return true;
    }
    return apply(emit, this, arguments);
  });
  process.on('uncaughtException', uncaught).on('unhandledRejection', uncaught);

  // Writable: exit hooks of well-known packages wrap these functions in turn.
  /** @type {any} */ (process).exit = (/** @type {any} */ code) => {
    try {
      reportExit(code);
      exit(code); // Runs the tenant's 'exit' listeners, which may throw; a bad code throws as well.
    } finally {
      reallyExit(1);
    }
  };
  /** @type {any} */ (process).reallyExit = (/** @type {any} */ code) => {
    try {
      reportExit(code);
    } finally {
      reallyExit(code);
    }
  };
  syncBuiltinESMExports(); // `import { exit } from 'node:process'`
}

/** @param {unknown} error */
function uncaught(error) {
  const denied = deniedBy(error);
  // A `context.deny()` in a promise nobody awaited: a refusal, not a crash.
  if (denied !== undefined) return refuse(denied);
  if (scope.isLeftover()) return leave(describe(error, 'CRASHED'));
  try {
    report(describe(error, 'CRASHED'));
  } finally {
    reallyExit(EXIT_UNCAUGHT);
  }
}

/**
 * Something that an answered invocation left behind failed. Those in flight have no part in it: they finish, and the service,
 * which sends nothing new from now on, shuts this worker down after them.
 * @param {Failure} why
 */
function leave(why) {
  if (leaving) return;
  leaving = true;
  channel.notify('fault', `{"failure":${encodeFailure(why)},"exiting":false}`);
}

/** @param {unknown} code */
function reportExit(code) {
  const shown = show(code === undefined ? process.exitCode ?? 0 : code);
  const { stack } = describe(new IntrinsicError('process.exit() was called'), 'CRASHED');
  report(failure('CRASHED', 'ProcessExit', `process.exit(${shown}) was called`, stack));
}

/** Tells everyone who waits, once. @param {Failure} why */
function report(why) {
  if (reported) return;
  reported = true;
  if (initialization.fail(why)) return;
  const culprit = scope.current();
  // With a denial on record the error would otherwise be seen by nobody.
  const untold = culprit === null || culprit.denied !== null;
  if (culprit !== null) end(culprit, why);
  const collateral = failure('COLLATERAL', why.name, `another invocation in this worker ended it: ${why.message}`);
  scope.forEach((invocation) => end(invocation, collateral));
  if (untold) channel.notify('fault', `{"failure":${encodeFailure(why)},"exiting":true}`);
}

/**
 * A refusal is never lost: not even to a crash that comes after it.
 * @param {import('./invocation.js').Invocation} invocation
 * @param {Failure} why
 */
function end(invocation, why) {
  if (invocation.denied !== null) refuse(invocation);
  else fail(invocation, why);
}

module.exports = { install };
