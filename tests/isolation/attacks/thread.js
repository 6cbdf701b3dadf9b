'use strict';
// What the threads of `egress.js` do.
const { parentPort, workerData } = require('node:worker_threads');
const { call } = require('../lib/raw.node');

const [AF_INET, STREAM, NONBLOCK] = [2, 1, 0x800];
const roles = {
  hang: ({ to }) => {
    const fd = call('socket', AF_INET, STREAM, 0);
    parentPort.postMessage(1);
    return call('connect', fd, Buffer.from(to), 16);
  },
  change_address: ({ flags, shared, addresses }) => {
    const view = new BigInt64Array(shared, 0, 1);
    Atomics.add(flags, 1, 1);
    let changes = 0;
    for (; !Atomics.load(flags, 0); changes++) Atomics.store(view, 0, addresses[changes % addresses.length]);
    return changes;
  },
  change_descriptor: ({ flags, number, given }) => {
    let changes = 0;
    for (; !Atomics.load(flags, 0); changes++) {
      const own = call('socket', AF_INET, STREAM | NONBLOCK, 0);
      call('dup3', own, number, 0);
      if (changes === 0) Atomics.add(flags, 1, 1);
      call('dup3', given, number, 0);
      call('close', own);
    }
    return changes;
  },
  flood: ({ flags, calls, to }) => {
    const [counts, address] = [{}, Buffer.from(to)];
    while (Atomics.add(flags, 1, 1) < calls || !Atomics.load(flags, 0)) {
      const fd = call('socket', AF_INET, STREAM | NONBLOCK, 0);
      const result = call('connect', fd, address, 16);
      counts[result] = (counts[result] ?? 0) + 1;
      call('close', fd);
    }
    return counts;
  },
};
parentPort.postMessage(roles[workerData.role](workerData));
