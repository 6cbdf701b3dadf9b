'use strict';
const { call, call32 } = require('../lib/raw.node');
const { getSystemErrorName } = require('node:util');

const name = (result) => (result < 0 ? getSystemErrorName(result) : `ok, ${result}`);

module.exports = {
  // Zeroes do for most: what is forbidden is so whatever the arguments.
  call: ({ call: which, values = [] }) => name(call(which, ...values.map((value) => (Array.isArray(value) ? Buffer.alloc(value[0]) : value)))),
  call32: () => name(call32()),
  x32: () => name(call(0x40000000 + 39)),
};
