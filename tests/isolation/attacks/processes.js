'use strict';
const fs = require('node:fs');
const path = require('node:path');
const child_process = require('node:child_process');
const { call } = require('../lib/raw.node');

const name = (result) => (result < 0 ? require('node:util').getSystemErrorName(result) : `ok, ${result}`);
const codes = (attempts) => [...new Set(attempts.map((attempt) => {
  try {
    return attempt();
  } catch (error) {
    return error.code;
  }
}))].sort().join(' ');
const text = (value) => Buffer.from(`${value}\0`);
const status = () => Object.fromEntries(fs.readFileSync('/proc/self/status', 'utf8').trim().split('\n').map((line) => {
  const [key, value] = line.split(':');
  return [key, value.trim()];
}));
/** What became of a program that was to start. */
const outcome = (child) => new Promise((done) => {
  child.on('error', (error) => done(error.code));
  child.on('spawn', () => done('ok'));
});

module.exports = {
  list_processes: () => fs.readdirSync('/proc').filter((entry) => Number(entry)).join(),
  list_proc: () => fs.readdirSync('/proc').filter((entry) => !Number(entry)).sort().join(),
  look_into: ({ pids }) => codes(pids.flatMap((pid) => [
    ...['environ', 'mem', 'maps', 'cmdline', 'status', 'auxv', 'stack', 'pagemap'].map((file) => () => (fs.openSync(`/proc/${pid}/${file}`), file)),
    ...['fd', 'task', 'map_files', 'root', 'cwd'].map((file) => () => (fs.readdirSync(`/proc/${pid}/${file}`), file)),
    () => (fs.readlinkSync(`/proc/${pid}/exe`), 'exe'),
    () => (fs.openSync(`/proc/${pid}/mem`, 'r+'), 'write mem'),
    () => (fs.writeFileSync(`/proc/${pid}/oom_score_adj`, '1000'), 'write oom_score_adj'),
  ])),
  look_into_parent: () => codes([
    ...['environ', 'mem', 'maps', 'auxv'].map((file) => () => fs.readFileSync(`/proc/${process.ppid}/${file}`) && file),
    ...['fd', 'root', 'cwd'].map((file) => () => (fs.readdirSync(`/proc/${process.ppid}/${file}`), file)),
  ]),
  kernel_files: () => codes(['kcore', 'kallsyms', 'kmsg', 'keys', 'sysrq-trigger', 'sys/kernel/core_pattern', 'sys/kernel/randomize_va_space', 'sys/vm/overcommit_memory', 'modules', 'timer_list', 'config.gz'].flatMap((file) => [
    () => (fs.openSync(`/proc/${file}`), file),
    () => (fs.openSync(`/proc/${file}`, 'r+'), `write ${file}`),
  ])),
  hosts_connections: () => (fs.readFileSync('/proc/self/net/tcp', 'utf8').trim().includes('\n') ? 'the host’s' : 'none'),
  hosts_mounts: () => (fs.readFileSync('/proc/self/mountinfo', 'utf8').includes(' /sys ') ? 'the host’s' : 'its own'),
  raise_oom_score: () => (fs.writeFileSync('/proc/self/oom_score_adj', '-1000'), 'ok'),
  signal_parent: () => process.kill(process.ppid, 'SIGKILL') && 'ok',
  signal_all: () => process.kill(-1, 'SIGKILL') && 'ok',
  signal_group: () => process.kill(0, 'SIGKILL') && 'ok',
  signal: ({ pids }) => codes(pids.flatMap((pid) => [
    () => process.kill(pid, 0) && 'ok',
    () => process.kill(pid, 'SIGKILL') && 'ok',
    () => name(call('tkill', pid, 9)),
    () => name(call('tgkill', pid, pid, 9)),
    () => name(call('rt_sigqueueinfo', pid, 9, Buffer.alloc(128))),
  ])),
  signal_by_descriptor: ({ pids }) => codes(pids.flatMap((pid) => [
    () => name(call('fcntl', 0, 8, pid)), // F_SETOWN
    () => name(call('fcntl', 0, 10, 9)), // F_SETSIG
    () => name(call('ioctl', 0, 0x8901, Buffer.alloc(4))), // FIOSETOWN
    () => name(call('pidfd_send_signal', 0, 9, 0, 0)),
  ])),
  limit: ({ pids }) => codes(pids.map((pid) => () => name(call('prlimit64', pid, 7, Buffer.alloc(16), 0)))),
  become_root: () => process.setuid(0) ?? 'ok',
  become_root_by_calls: () => codes([() => name(call('setuid', 0)), () => name(call('setresuid', 0, 0, 0)), () => name(call('capset', Buffer.alloc(8), Buffer.alloc(24)))]),
  privileges: () => {
    const { CapInh, CapPrm, CapEff, CapAmb, NoNewPrivs, Seccomp, Groups } = status();
    return [Number(`0x${CapInh}`), Number(`0x${CapPrm}`), Number(`0x${CapEff}`), Number(`0x${CapAmb}`), NoNewPrivs, Seccomp, Groups].join();
  },
  bounding_set: () => Number(`0x${status().CapBnd}`),
  user: () => process.getuid(),
  environment: () => {
    const initial = fs.readFileSync('/proc/self/environ', 'utf8').split('\0').filter(Boolean).map((entry) => entry.split('=')[0]);
    return [...new Set([...Object.keys(process.env), ...initial])].sort().join();
  },
  command_line: () => JSON.stringify([process.argv.map((part) => path.basename(part)), process.execArgv.map((part) => part.split('=')[0])]),
  // Of each descriptor what it is; numbers left out.
  descriptors: () => {
    const kinds = fs.readdirSync('/proc/self/fd').map((number) => {
      try {
        return fs.readlinkSync(`/proc/self/fd/${number}`).replace(/:\[\d+\]|\d+/g, '').replace(/^\/proc\/.*$/, 'proc');
      } catch {
        return 'proc'; // That of the listing.
      }
    });
    return [...new Set(kinds)].sort().join();
  },
  spawn: async () => {
    const programs = ['sh', '/bin/sh', process.execPath, 'su', 'sudo', '/usr/bin/env', path.join(__dirname, '../lib/raw.node')];
    return [...new Set(await Promise.all(programs.map((program) => outcome(child_process.spawn(program)))))].sort().join(' ');
  },
  /** What a script prints, as a worker that may start processes runs it. */
  shell: ({ script }) => child_process.spawnSync('/bin/sh', ['-c', script], { encoding: 'utf8' }).stdout.trim(),
  spawn_sync: () => codes([() => child_process.execFileSync('/bin/sh', ['-c', 'id']), () => child_process.execSync('id')]),
  fork_node: () => outcome(child_process.fork(__filename)),
  cluster: () => {
    const cluster = require('node:cluster');
    cluster.setupPrimary({ exec: __filename });
    return new Promise((done) => {
      const worker = cluster.fork();
      worker.on('error', (error) => done(error.code));
      worker.on('online', () => done('ok'));
    });
  },
  fork: () => codes([() => name(call('fork')), () => name(call('vfork')), () => name(call('clone', 17, 0, 0, 0, 0)), () => name(call('clone', 0x4111, 0, 0, 0, 0))]),
  fork_into_namespace: () => codes([0x10000000, 0x20000, 0x20000000, 0x40000000, 0x8000000, 0x4000000, 0x2000000].map((flag) => () => name(call('clone', flag + 17, 0, 0, 0, 0)))),
  thread_into_namespace: () => name(call('clone', 0x10000000 + 0x10f00, 0, 0, 0, 0)),
  clone3: () => name(call('clone3', Buffer.alloc(88), 88)),
  execve: () => name(call('execve', text('/bin/sh'), 0, 0)),
  put_a_file_where_node_was: () => {
    const descriptor = fs.openSync(path.join(__dirname, '../lib/raw.node'));
    return codes([
      () => name(call('dup3', descriptor, 1000, 0)),
      () => name(call('fcntl', descriptor, 0, 1000)), // F_DUPFD
      () => name(call('execveat', 1000, text(''), 0, 0, 0x1000)),
    ]);
  },
  raise_limits: () => {
    const limit = Buffer.alloc(16);
    limit.writeBigUInt64LE(4096n, 0);
    limit.writeBigUInt64LE(4096n, 8);
    const none = Buffer.alloc(16, 0xff);
    return codes([() => name(call('prlimit64', 0, 7, limit, 0)), () => name(call('prlimit64', 0, 2, none, 0)), () => name(call('prlimit64', 0, 1, none, 0))]);
  },
  // The kernel ignores the descriptor if the path is absolute. The arguments end in null; so no program could go on for long.
  exec_node: () => name(call('execveat', 1000, text(process.execPath), Buffer.alloc(8), Buffer.alloc(8), 0x1000)),
  exec_by_path: ({ paths }) => {
    return codes(paths.map((file) => () => name(call('execveat', 1000, text(file), Buffer.alloc(8), Buffer.alloc(8), 0x1000))));
  },
};
