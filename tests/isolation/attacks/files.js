'use strict';
// What is thrown is the outcome: see main.js.
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');

const tmp = (name) => path.join(os.tmpdir(), name);
const read = (file) => `ok, ${fs.readFileSync(file).length} bytes`;
const write = (file) => {
  fs.writeFileSync(file, 'x');
  return 'ok';
};
const code = (attempt) => {
  try {
    return attempt() ?? 'ok';
  } catch (error) {
    return error.code;
  }
};
const each = (files, attempt) => [...new Set(files.map((file) => code(() => attempt(file))))].sort().join(' ');

module.exports = {
  read_shadow: () => read('/etc/shadow'),
  read: ({ path }) => read(path),
  list: ({ path }) => `ok, ${fs.readdirSync(path).length} entries`,
  stat: ({ path }) => (fs.statSync(path), 'ok'),
  write: ({ path }) => write(path),
  truncate: ({ path }) => (fs.truncateSync(path, 0), 'ok'),
  remove: ({ path }) => (fs.rmSync(path, { recursive: true }), 'ok'),
  read_service_account: () => read('/var/run/secrets/kubernetes.io/serviceaccount/token'),
  read_homes: () => each(['/root/.bashrc', '/root/.npmrc', '/root/.ssh/id_rsa', '/home'], (file) => fs.readdirSync(file).length),
  read_host_files: () => each(['/etc/hostname', '/etc/machine-id', '/etc/sudoers', '/boot', '/var/log', '/sys/kernel', '/run'], (file) => {
    return fs.statSync(file).isDirectory() ? fs.readdirSync(file).join() : fs.readFileSync(file, 'utf8');
  }),
  // In a root of its own: only what somebody put there.
  list_root: () => {
    const known = ['node', 'app', 'bin', 'dev', 'etc', 'home', 'layer', 'lib', 'lib64', 'npm', 'proc', 'shim', 'tmp', 'usr', 'work', 'opt'];
    const others = fs.readdirSync('/').filter((name) => !known.includes(name));
    return others.length === 0 ? 'nothing else' : others.join();
  },
  users_of_the_host: () => fs.readFileSync('/etc/passwd', 'utf8').trim().split('\n').length + ' users',
  write_app: () => each(['new.js', 'attacks/files.js', 'functions'].map((name) => path.join(__dirname, '..', name)), (file) => {
    if (file.endsWith('functions')) fs.renameSync(file, file + '.old');
    else fs.appendFileSync(file, 'x');
  }),
  // Nobody is to get at files by what else there is to them.
  change_modes: ({ path: other }) => [...new Set([other, path.join(__dirname, 'files.js')].flatMap((file) => [
    code(() => fs.chmodSync(file, 0)),
    code(() => fs.chownSync(file, process.getuid(), process.getgid())),
    code(() => fs.utimesSync(file, 0, 0)),
    code(() => fs.lutimesSync(file, 0, 0)),
  ]))].sort().join(' '),
  change_mode_of_open_file: () => {
    const descriptor = fs.openSync(path.join(__dirname, 'files.js'));
    code(() => fs.fchmodSync(descriptor, 0o777)); // Whatever it answers.
    code(() => fs.futimesSync(descriptor, 0, 0));
    const { mode, mtimeMs } = fs.fstatSync(descriptor);
    return (mode & 0o777) === 0o777 || mtimeMs === 0 ? 'changed' : 'as it was';
  },
  write_shim: ({ path: shim }) => each(['main.js', 'new.js'].map((name) => path.join(shim, name)), write),
  write_node: () => each([process.execPath, '/proc/self/exe'], (file) => fs.closeSync(fs.openSync(file, 'r+'))),
  write_own_memory_file: () => (fs.openSync('/proc/self/mem', 'r+'), 'ok'),
  write_elsewhere: () => each(['/x', '/etc/x', '/usr/x', '/usr/bin/x', '/home/x', '/work/x', '/dev/x', '/var/tmp/x', '/dev/shm/x', '/npm/x'], write),
  open_devices: () => each(['mem', 'kmsg', 'kvm', 'fuse', 'net/tun', 'sda', 'vda', 'tty', 'console', 'ptmx', 'shm', 'vsock'].map((name) => '/dev/' + name), (file) => {
    fs.openSync(file, 'r+');
  }),
  write_zeroes: () => (fs.openSync('/dev/zero', 'r+'), 'ok'),
  load_code_from_tmp: () => {
    fs.copyFileSync(path.join(__dirname, '../lib/raw.node'), tmp('raw.node'));
    process.dlopen({ exports: {} }, tmp('raw.node'));
    return 'ok';
  },
  // No more than twice what the app may have: where nothing holds it, it must not fill the test's machine.
  fill_tmp: ({ tmp_bytes }) => {
    const chunk = Buffer.alloc(1 << 20);
    try {
      for (let n = 0; n < (2 * tmp_bytes) >> 20; n++) fs.writeFileSync(tmp(`fill${n}`), chunk);
      return 'ok';
    } finally {
      for (const name of fs.readdirSync(os.tmpdir())) if (name.startsWith('fill')) fs.rmSync(tmp(name));
    }
  },
  one_large_file: ({ tmp_bytes }) => {
    const descriptor = fs.openSync(tmp('large'), 'w');
    try {
      fs.ftruncateSync(descriptor, tmp_bytes + 1);
      return 'ok';
    } finally {
      fs.closeSync(descriptor);
      fs.rmSync(tmp('large'));
    }
  },
  many_files: () => {
    fs.mkdirSync(tmp('many'));
    try {
      for (let n = 0; n < 4200; n++) fs.closeSync(fs.openSync(tmp(`many/${n}`), 'w'));
      return 'ok';
    } finally {
      fs.rmSync(tmp('many'), { recursive: true });
    }
  },
  follow_link: () => {
    fs.symlinkSync('/proc/1/root/etc/shadow', tmp('link'));
    return read(tmp('link'));
  },
  follow_own_root: () => read('/proc/self/root/etc/shadow'),
  climb_up: () => read(path.join(__dirname, '../'.repeat(20), 'etc/shadow')),
  hard_link: ({ path }) => (fs.linkSync(path, tmp('hard')), 'ok'),
  set_user_id: () => {
    fs.writeFileSync(tmp('program'), 'x');
    fs.chmodSync(tmp('program'), 0o4755);
    return (fs.statSync(tmp('program')).mode & 0o7777).toString(8);
  },
};
