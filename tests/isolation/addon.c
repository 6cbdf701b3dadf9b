/* Raw system calls for JavaScript: call(name or number, ...arguments) returns the result, or -errno. A tenant can publish just this:
 * native code among an app's files. Node's few functions are declared here, so that no headers of Node's are needed to build it. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef struct napi_env__ *napi_env;
typedef struct napi_value__ *napi_value;
typedef struct napi_callback_info__ *napi_callback_info;
typedef napi_value (*napi_callback)(napi_env, napi_callback_info);
enum { NAPI_NUMBER = 3, NAPI_STRING = 4 };
int napi_get_cb_info(napi_env, napi_callback_info, size_t *, napi_value *, napi_value *, void **);
int napi_typeof(napi_env, napi_value, int *);
int napi_get_value_int64(napi_env, napi_value, int64_t *);
int napi_get_value_string_utf8(napi_env, napi_value, char *, size_t, size_t *);
int napi_get_buffer_info(napi_env, napi_value, void **, size_t *);
int napi_create_int64(napi_env, int64_t, napi_value *);
int napi_create_function(napi_env, const char *, size_t, napi_callback, void *, napi_value *);
int napi_set_named_property(napi_env, napi_value, const char *, napi_value);

#define CALL(name) { #name, SYS_##name }
static const struct { const char *name; long number; } calls[] = {
    CALL(getpid), CALL(execve), CALL(execveat), CALL(clone), CALL(clone3), CALL(dup3), CALL(prlimit64), CALL(prctl), CALL(ioctl),
    CALL(fcntl), CALL(kill), CALL(tkill), CALL(tgkill), CALL(rt_sigqueueinfo), CALL(setuid), CALL(setresuid), CALL(capset),
    CALL(ptrace), CALL(process_vm_readv), CALL(process_vm_writev), CALL(bpf), CALL(perf_event_open), CALL(userfaultfd),
    CALL(io_uring_setup), CALL(io_uring_enter), CALL(io_uring_register), CALL(keyctl), CALL(add_key), CALL(request_key), CALL(mount),
    CALL(umount2), CALL(pivot_root), CALL(chroot), CALL(setns), CALL(unshare), CALL(open_tree), CALL(move_mount), CALL(fsopen),
    CALL(fsmount), CALL(mount_setattr), CALL(open_by_handle_at), CALL(name_to_handle_at), CALL(quotactl), CALL(kexec_load),
    CALL(kexec_file_load), CALL(init_module), CALL(finit_module), CALL(delete_module), CALL(reboot), CALL(swapon), CALL(swapoff),
    CALL(acct), CALL(settimeofday), CALL(clock_settime), CALL(adjtimex), CALL(personality), CALL(syslog), CALL(vhangup),
    CALL(mknodat), CALL(fanotify_init), CALL(vmsplice), CALL(splice), CALL(tee), CALL(sched_setscheduler), CALL(sched_setaffinity),
    CALL(ioprio_set), CALL(pidfd_open), CALL(pidfd_getfd), CALL(pidfd_send_signal), CALL(seccomp), CALL(landlock_create_ruleset),
    CALL(memfd_create), CALL(shmget), CALL(semget), CALL(msgget), CALL(mq_open), CALL(socket), CALL(socketpair), CALL(bind),
    CALL(connect), CALL(sendto), CALL(mmap), CALL(setpriority), CALL(kcmp), CALL(process_madvise), CALL(setsid), CALL(sethostname),
    CALL(migrate_pages), CALL(move_pages), CALL(setsockopt), CALL(sendmsg), CALL(listen), CALL(shutdown), CALL(getpeername),
    CALL(getsockopt), CALL(close),
#ifdef SYS_fork
    CALL(fork), CALL(vfork), CALL(mknod), CALL(modify_ldt), CALL(iopl), CALL(ioperm),
#endif
};

static long number_of(const char *name) {
    for (size_t at = 0; at < sizeof calls / sizeof *calls; at++)
        if (strcmp(calls[at].name, name) == 0) return calls[at].number;
    return -1;
}

static bool makes_processes(long number) {
#ifdef SYS_fork
    if (number == SYS_fork || number == SYS_vfork) return true;
#endif
    return number == SYS_clone || number == SYS_clone3;
}

static napi_value call(napi_env env, napi_callback_info info) {
    size_t count = 7;
    napi_value given[7], returned;
    long value[7] = {0};
    napi_get_cb_info(env, info, &count, given, NULL, NULL);
    for (size_t at = 0; at < count && at < 7; at++) {
        int kind;
        int64_t number = 0;
        void *memory = NULL;
        size_t length;
        char text[64];
        napi_typeof(env, given[at], &kind);
        if (kind == NAPI_NUMBER) napi_get_value_int64(env, given[at], &number);
        else if (kind == NAPI_STRING && napi_get_value_string_utf8(env, given[at], text, sizeof text, NULL) == 0) number = number_of(text);
        else if (napi_get_buffer_info(env, given[at], &memory, &length) == 0) number = (int64_t)(intptr_t)memory;
        value[at] = number;
    }
    long result = value[0] < 0 ? -EINVAL : syscall(value[0], value[1], value[2], value[3], value[4], value[5], value[6]);
    if (result == 0 && makes_processes(value[0])) _exit(0); /* The child, if there is one after all. */
    if (result < 0 && value[0] >= 0) result = -errno;
    napi_create_int64(env, result, &returned);
    return returned;
}

/* Where a Buffer's bytes are, for calls that take pointers to pointers. */
static napi_value address(napi_env env, napi_callback_info info) {
    size_t count = 1, length;
    napi_value given, returned;
    void *memory = NULL;
    napi_get_cb_info(env, info, &count, &given, NULL, NULL);
    napi_get_buffer_info(env, given, &memory, &length);
    napi_create_int64(env, (int64_t)(intptr_t)memory, &returned);
    return returned;
}

/* The way of 32-bit programs, whose numbers are others: 20 is getpid. */
static napi_value call32(napi_env env, napi_callback_info info) {
    (void)info;
    int64_t result = -ENOSYS;
    napi_value returned;
#ifdef __x86_64__
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(20L) : "memory");
#endif
    napi_create_int64(env, result, &returned);
    return returned;
}

napi_value napi_register_module_v1(napi_env env, napi_value exports) {
    napi_value function;
    napi_create_function(env, "call", SIZE_MAX, call, NULL, &function);
    napi_set_named_property(env, exports, "call", function);
    napi_create_function(env, "address", SIZE_MAX, address, NULL, &function);
    napi_set_named_property(env, exports, "address", function);
    napi_create_function(env, "call32", SIZE_MAX, call32, NULL, &function);
    napi_set_named_property(env, exports, "call32", function);
    return exports;
}
