'use strict';
// The install script of a package that an app allowed. Prints a line for each attack.
const fs = require('node:fs');
const net = require('node:net');
const path = require('node:path');
const { execFileSync } = require('node:child_process');

const { database, lockfile, pids, ports, secret } = FACTS;
const code = (attempt) => {
  try {
    return attempt() ?? 'ok';
  } catch (error) {
    return error.code ?? error.message;
  }
};
const all = (attempts) => [...new Set(attempts.map(code))].sort().join(' ');
const connect = (port) => new Promise((done) => {
  net.connect(port, '127.0.0.1').on('connect', () => done('connected')).on('error', (error) => done(error.code));
});
const write = (file) => () => void fs.writeFileSync(file, 'x');
/** Wherever npm, or who runs it, might have put it. */
const places = () => {
  const files = ['.npmrc', '../../.npmrc', path.join(process.env.HOME, '.npmrc'), '/npm/npmrc', '/etc/npmrc', process.env.npm_config_userconfig, process.env.npm_config_globalconfig];
  const others = ['self', process.ppid, 1].flatMap((pid) => [`/proc/${pid}/environ`, `/proc/${pid}/cmdline`]);
  return [...files, ...others].filter(Boolean).map((file) => {
    try {
      return fs.readFileSync(file, 'latin1');
    } catch {
      return '';
    }
  });
};

(async () => {
  const outcomes = {
    has_a_shell: code(() => execFileSync('/bin/sh', ['-c', 'echo hello']).toString().trim()),
    writes_its_own: all([write('made-by-script'), write(path.join(process.env.HOME, 'x')), write(path.join(process.env.TMPDIR, 'x'))]),
    read_shadow: code(() => void fs.readFileSync('/etc/shadow')),
    read_database: code(() => void fs.readFileSync(database)),
    write_elsewhere: all(['/x', '/etc/x', '/usr/x', '/bin/x', '/app/x', '/npm/x', '/npm/bin/npm-cli.js', '/node/x', '/var/tmp/x', database].map(write)),
    environment: Object.keys(process.env).filter((name) => !/^npm_/.test(name)).sort().join(),
    secrets: places().concat(Object.values(process.env)).some((text) => secret.some((secret) => text.includes(secret))) ? 'found' : 'none',
    network: [...new Set(await Promise.all(ports.map(connect)))].sort().join(' '),
    signal: all(pids.flatMap((pid) => [() => void process.kill(pid, 0), () => void process.kill(pid, 'SIGKILL')])),
    look_into: all(pids.flatMap((pid) => ['environ', 'mem', 'maps'].map((file) => () => void fs.openSync(`/proc/${pid}/${file}`)))),
    replace_lockfile: code(() => {
      fs.rmSync('../../package-lock.json');
      fs.symlinkSync(lockfile, '../../package-lock.json');
    }),
    user_is_root: String(process.getuid() === 0),
  };
  for (const [name, outcome] of Object.entries(outcomes)) console.log(`attack ${name}: ${outcome}`);
})();
