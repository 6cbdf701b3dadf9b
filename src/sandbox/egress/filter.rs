//! The seccomp filter that egress relies on. Stack it with the sandbox's own: of all filters' verdicts, the strictest holds, and
//! USER_NOTIF is stricter than ALLOW (but weaker than ERRNO and KILL).

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use libc::sock_filter;
use nix::errno::Errno;

use super::notify::NATIVE_ARCH;

/// Offsets in `struct seccomp_data`; arguments are 64 bit, little endian.
const CALL: u32 = 0;
const ARCH: u32 = 4;
const fn argument(index: u32) -> u32 {
    16 + 8 * index
}
/// `__X32_SYSCALL_BIT`: same architecture, same calls, other numbers.
const X32_CALLS: u32 = 0x4000_0000;
const SIOC_FIRST: u32 = 0x8900;
const SIOC_LAST: u32 = 0x89ff;

/// Sends connect, bind and listen to the supervisor, and refuses what would use a handed-over socket for more than its connection:
///
/// - `MSG_FASTOPEN`, which is connect by another name;
/// - the SIOC… ioctls, which list the interfaces of the namespace that the *socket* lives in, thus the host's;
/// - binding to a device, and IP options (source routing).
///
/// The calls of other architectures have other numbers: x86-64's 32-bit ones are killed, x32's do not exist.
///
/// io_uring must be refused elsewhere: its operations pass no filter.
pub fn program() -> Vec<sock_filter> {
    let notify = libc::SECCOMP_RET_USER_NOTIF;
    let refuse = |errno: Errno| libc::SECCOMP_RET_ERRNO | errno as u32;
    let mut program = vec![load(ARCH), skip_if_equal(NATIVE_ARCH, 1), ret(libc::SECCOMP_RET_KILL_PROCESS), load(CALL)];
    if cfg!(target_arch = "x86_64") {
        program.extend([jump(libc::BPF_JGE, X32_CALLS, 0, 1), ret(refuse(Errno::ENOSYS))]);
    }
    for call in [libc::SYS_connect, libc::SYS_bind, libc::SYS_listen] {
        program.extend(on(call, &[ret(notify)]));
    }
    let fast_open = libc::MSG_FASTOPEN.cast_unsigned();
    for (call, flags) in [(libc::SYS_sendto, 3), (libc::SYS_sendmsg, 2), (libc::SYS_sendmmsg, 3)] {
        let body = [load(argument(flags)), skip_unless_set(fast_open, 1), ret(refuse(Errno::EOPNOTSUPP)), allow()];
        program.extend(on(call, &body));
    }
    let interfaces = [
        load(argument(1)),
        jump(libc::BPF_JGE, SIOC_FIRST, 0, 2),
        jump(libc::BPF_JGT, SIOC_LAST, 1, 0),
        ret(refuse(Errno::EPERM)),
        allow(),
    ];
    program.extend(on(libc::SYS_ioctl, &interfaces));
    program.extend(on(libc::SYS_setsockopt, &refused_options(refuse(Errno::EPERM))));
    program.push(allow());
    program
}

fn refused_options(refusal: u32) -> Vec<sock_filter> {
    const OPTIONS: [(i32, i32); 6] = [
        (libc::SOL_SOCKET, libc::SO_BINDTODEVICE),
        (libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX),
        (libc::IPPROTO_IP, libc::IP_OPTIONS),
        (libc::IPPROTO_IPV6, libc::IPV6_RTHDR),
        (libc::IPPROTO_IPV6, libc::IPV6_2292RTHDR),
        (libc::IPPROTO_IPV6, IPV6_2292PKTOPTIONS),
    ];
    let mut body = Vec::new();
    for (level, name) in OPTIONS {
        let [level, name] = [level, name].map(i32::cast_unsigned);
        body.extend([load(argument(1)), jump(libc::BPF_JEQ, level, 0, 3), load(argument(2))]);
        body.extend([jump(libc::BPF_JEQ, name, 0, 1), ret(refusal)]);
    }
    body.push(allow());
    body
}

/// linux/in6.h; a list of control messages, routing headers among them.
const IPV6_2292PKTOPTIONS: i32 = 6;

/// Installs it for the calling thread and all that it becomes, and returns the listener: for the supervisor, and for nobody else.
/// Needs no_new_privs, and that no filter before this one refuses seccomp(2).
///
/// # Errors
/// The kernel is older than 5.19, or a listener is installed already.
pub fn install() -> io::Result<OwnedFd> {
    let program = program();
    let len = u16::try_from(program.len()).map_err(io::Error::other)?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // WAIT_KILLABLE_RECV: once received, only a deadly signal ends the call. Else a signal between "socket replaced" and "answered"
    // would make the program connect a second time, and see EALREADY. Go's and V8's signals are frequent.
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    // SAFETY: the kernel copies the program.
    let fd = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    let fd = i32::try_from(Errno::result(fd)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `body` for this call, which must not fall out of its end; the next instruction for others.
fn on(call: libc::c_long, body: &[sock_filter]) -> Vec<sock_filter> {
    let over = u8::try_from(body.len()).unwrap_or(u8::MAX); // The longest has 31.
    let mut program = vec![jump(libc::BPF_JEQ, u32::try_from(call).unwrap_or(u32::MAX), 0, over)];
    program.extend_from_slice(body);
    program
}

fn load(offset: u32) -> sock_filter {
    statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset)
}

fn ret(value: u32) -> sock_filter {
    statement(libc::BPF_RET | libc::BPF_K, value)
}

fn allow() -> sock_filter {
    ret(libc::SECCOMP_RET_ALLOW)
}

fn skip_if_equal(value: u32, over: u8) -> sock_filter {
    jump(libc::BPF_JEQ, value, over, 0)
}

fn skip_unless_set(bits: u32, over: u8) -> sock_filter {
    jump(libc::BPF_JSET, bits, 0, over)
}

fn statement(code: u32, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

fn jump(test: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: (libc::BPF_JMP | test | libc::BPF_K) as u16, jt, jf, k }
}
