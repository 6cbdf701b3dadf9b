'use strict';
// Takes the shim out of what tenant code can look at: it should see a process in which nothing but its own files was loaded.

const { syncBuiltinESMExports } = require('node:module');
const os = require('node:os');
const path = require('node:path');

/** Without /proc/cpuinfo Node knows of no CPU at all, and packages divide by their number. */
function showCpus() {
  if (os.cpus().length > 0) return;
  const times = { user: 0, nice: 0, sys: 0, idle: 0, irq: 0 };
  const count = os.availableParallelism();
  os.cpus = () => Array.from({ length: count }, () => ({ model: 'unknown', speed: 0, times: { ...times } }));
  syncBuiltinESMExports(); // `import { cpus } from 'node:os'`
}

function hideShim() {
  for (const file of Object.keys(require.cache)) {
    if (file.startsWith(__dirname + path.sep)) delete require.cache[file];
  }
  // `require.main` of modules loaded from now on.
  process.mainModule = undefined;
  process.argv = [process.execPath];
  Error.stackTraceLimit = 30;
}

module.exports = { hideShim, showCpus };
