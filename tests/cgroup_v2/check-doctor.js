// What `chatfn doctor --json` must say in a machine with cgroup v2 and root: full isolation, each limit of a cgroup's proven.
'use strict';
const assert = require('node:assert/strict');
const { readFileSync } = require('node:fs');

const report = JSON.parse(readFileSync(process.argv[2], 'utf8'));
const layer = (name) => report.layers.find((layer) => layer.name === name);
for (const { name, active, proof } of report.layers) console.log(`${name}: ${active ? 'active' : 'MISSING'} - ${proof}`);

assert.equal(report.mode, 'full');
assert.deepEqual(report.modes_refused, []);
assert.equal(report.would_start, true);
const missing = report.layers.filter((layer) => !layer.active);
assert.deepEqual(missing, []);
assert.match(layer('memory').proof, /the kernel ended it/);
for (const name of ['cpu', 'pids']) assert.match(layer(name).proof, /took a limit: (cpu|pids)\.max/);
