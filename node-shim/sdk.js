'use strict';
// The platform's SDK in `context`: the package is loaded and built at its first use, once per worker, so that whoever does not touch
// it pays nothing, and all invocations share its token.

const {
  IntrinsicError, apply, construct, define, defineGetter, hasOwn, indexOf, isArray, keys, slice,
} = require('./primordials.js');
const { messageOf } = require('./failure.js');
const { requireAsTenant } = require('./loader.js');
const scope = require('./scope.js');
const { addHeaders } = require('./trace.js');

/** As configured. @typedef {{ package: string, export: string, property: string, options: object }} Spec */
/** A text: literals and variables. @typedef {(string | { name: string, optional: boolean })[]} Template */

const CHATKITTY = 'chatkitty-platform-sdk';
/** What an instance of ChatKitty has; the older guides say `context.getUserApi()` for `context.ChatKitty.Users`. */
const APIS = [
  'Application', 'Channels', 'Functions', 'FunctionVersions', 'Imports', 'Jobs', 'Messages', 'Runtime', 'Threads', 'Users',
];
const HOPS = 'x-chatfn-hops';

class SdkUnavailable extends IntrinsicError {
  /** @param {string} code @param {string} message @param {unknown} [cause] */
  constructor(code, message, cause) {
    super(message);
    define(this, 'name', 'SdkUnavailable');
    define(this, 'code', code);
    if (cause !== undefined) define(this, 'cause', cause);
  }
}

/**
 * The prototype of every context: its getters lead to the SDK. Made before tenant code loads.
 * @param {Spec | null} spec
 * @param {() => Record<string, string>} environment the app's variables, asked at first use
 */
function createPrototype(spec, environment) {
  const prototype = {};
  if (spec === null) return prototype;
  const options = compile(spec.options);
  /** @type {any} */
  let instance = null;
  const sdk = () => (instance ??= build(spec, resolve(options, environment(), spec)));
  defineGetter(prototype, spec.property, sdk);
  if (spec.package !== CHATKITTY) return prototype;
  for (const api of APIS) {
    const singular = api.replace(/s$/, '');
    const getApi = () => sdk()[api];
    define(prototype, `get${singular}Api`, getApi);
    define(prototype, `get${singular}sApi`, getApi);
  }
  return prototype;
}

/**
 * @param {Spec} spec
 * @param {object} options
 */
function build(spec, options) {
  const { property, package: name } = spec;
  let found;
  try {
    const exports = requireAsTenant(name);
    // `module.exports = class` is a default export, too.
    found = spec.export === 'default' ? exports?.default ?? exports : exports?.[spec.export];
  } catch (error) {
    if (/** @type {any} */ (error)?.code !== 'MODULE_NOT_FOUND') throw error;
    const message = `context.${property} needs the package ${name}: add it to the app's dependencies (${messageOf(error)})`;
    throw new SdkUnavailable('SDK_NOT_INSTALLED', message, error);
  }
  if (typeof found !== 'function') {
    const message = `context.${property}: the export ${spec.export} of ${name} is no class or function, but ${typeof found}`;
    throw new SdkUnavailable('SDK_NOT_USABLE', message);
  }
  // Arrow functions and methods have no prototype: there is nothing to construct.
  const instance = hasOwn(found, 'prototype') ? construct(found, [options]) : apply(found, undefined, [options]);
  if (name === CHATKITTY) {
    tellWhere(instance);
    addOlderNames(instance);
  }
  return instance;
}

/** The guides call it so; the package renamed it since. @param {any} instance */
function addOlderNames(instance) {
  const users = instance.Users;
  if (typeof users !== 'object' || users === null) return;
  const { checkUserExists } = users;
  if (typeof checkUserExists !== 'function' || users.getUserExists !== undefined) return;
  define(users, 'getUserExists', (/** @type {unknown[]} */ ...args) => apply(checkUserExists, users, args));
}

/**
 * Has every request say how many functions led to it, so that functions that trigger themselves come to an end, and which trace it
 * belongs to. The client asks its configuration for headers as it makes a request, in the async context of its caller; nothing that others share is changed.
 * @param {any} instance
 */
function tellWhere(instance) {
  const configuration = instance.apiConfiguration;
  if (typeof configuration !== 'object' || configuration.baseOptions !== undefined) return; // Another version: works, untold.
  const baseOptions = {};
  const headers = () => {
    const invocation = scope.current();
    return invocation === null ? {} : addHeaders(invocation.trace, { [HOPS]: `${invocation.hops + 1}` });
  };
  defineGetter(baseOptions, 'headers', headers, true);
  configuration.baseOptions = baseOptions;
}

/** Takes the texts of an option apart, once. @param {any} value @returns {any} */
function compile(value) {
  if (typeof value === 'string') return { template: parseTemplate(value) };
  if (value === null || typeof value !== 'object') return { value };
  const entries = keys(value).map((key) => ({ key, option: compile(value[key]) }));
  return { entries, list: isArray(value) };
}

/** @param {string} text @returns {Template} */
function parseTemplate(text) {
  /** @type {Template} */
  const parts = [];
  let at = 0;
  for (;;) {
    const start = indexOf(text, '${', at);
    const end = start < 0 ? -1 : indexOf(text, '}', start);
    if (end < 0) break;
    const name = slice(text, start + 2, end);
    parts.push(slice(text, at, start));
    parts.push(name.endsWith('?') ? { name: slice(name, 0, -1), optional: true } : { name, optional: false });
    at = end + 1;
  }
  parts.push(slice(text, at));
  return parts;
}

/**
 * @param {any} option compiled
 * @param {Record<string, string>} environment
 * @param {Spec} spec
 */
function resolve(option, environment, spec) {
  /** @type {string[]} */
  const missing = [];
  const value = valueOf(option, environment, missing);
  if (missing.length === 0) return value;
  let names = missing[0];
  for (let i = 1; i < missing.length; i += 1) names += `, ${missing[i]}`;
  const variables = missing.length === 1 ? 'variable' : 'variables';
  const message = `context.${spec.property} needs the environment ${variables} ${names}: set what is missing for the app`;
  throw new SdkUnavailable('SDK_NOT_CONFIGURED', message);
}

/**
 * `undefined`: to be left out.
 * @param {any} option compiled
 * @param {Record<string, string>} environment
 * @param {string[]} missing
 * @returns {any}
 */
function valueOf(option, environment, missing) {
  if (hasOwn(option, 'template')) return textOf(option.template, environment, missing);
  if (hasOwn(option, 'value')) return option.value;
  /** @type {any} */
  const result = option.list ? [] : {};
  for (let i = 0; i < option.entries.length; i += 1) {
    const { key, option: inner } = option.entries[i];
    const value = valueOf(inner, environment, missing);
    // Not an assignment: `__proto__` is a key like any other here.
    if (value !== undefined) define(result, key, value, true);
  }
  return result;
}

/**
 * @param {Template} template
 * @param {Record<string, string>} environment
 * @param {string[]} missing
 */
function textOf(template, environment, missing) {
  let text = '';
  for (let i = 0; i < template.length; i += 1) {
    const part = template[i];
    if (typeof part === 'string') {
      text += part;
    } else if (hasOwn(environment, part.name) && environment[part.name] !== '') {
      text += environment[part.name];
    } else {
      if (part.optional) return undefined;
      note(missing, part.name);
    }
  }
  return text;
}

/** @param {string[]} names @param {string} name */
function note(names, name) {
  for (let i = 0; i < names.length; i += 1) if (names[i] === name) return;
  names[names.length] = name;
}

module.exports = { createPrototype };
